/* A neural network that reads digits, written by kd_lab.
 *
 * int {{name}}_read(const uint8_t pixels[{{pixels}}]) returns the digit that a picture shows: pixels row by row, 0 for paper, 255 for ink.
 * C99, integers only, no allocation. What it writes to is in two buffers of its own, so one thread may use it at a time.
 */
#ifndef {{guard}}
#define {{guard}}
#include <stdint.h>

typedef struct {
  int inputs, height, width;              /* what it takes */
  int outputs, out_height, out_width;     /* what it gives */
  int size[2], stride[2], pad[2], groups; /* its window, down and across */
  int input_zero, spread;                 /* the integer that stands for 0, and what sums are multiplied by */
  const int8_t *weights, *weight_zeros;
  const int32_t *bias, *multipliers;
  const int32_t *rests; /* of the last layer's multipliers: 22 bits more */
  const int8_t *shifts;
  int zero_step, factor_step;  /* 1 where there is one for each output, 0 where one is for all */
  int zero, low, high;         /* of what it gives: the integer that stands for 0, and the ends */
} {{name}}_layer;

static int8_t {{name}}_buffer_0[{{buffer_0}}], {{name}}_buffer_1[{{buffer_1}}];
static int32_t {{name}}_logits[{{classes}}]; /* the bits of each as float32; minus those of its size where it is negative */

{{tables}}
static const {{name}}_layer {{name}}_layers[] = {
{{layers}}};

static int32_t {{name}}_sum(const {{name}}_layer *l, const int8_t *in, int output, int row, int column) {
  const int inputs = l->inputs / l->groups, first = output / (l->outputs / l->groups) * inputs;
  const int top = row * l->stride[0] - l->pad[0], left = column * l->stride[1] - l->pad[1];
  const int bottom = top + l->size[0], right = left + l->size[1], weight_zero = l->weight_zeros[output * l->zero_step];
  const int stop = right < l->width ? right : l->width;
  int32_t sum = 0;
  for (int i = 0; i < inputs; i++)
    for (int y = top < 0 ? 0 : top; y < bottom && y < l->height; y++) {
      const int8_t *from = in + ((int32_t)(first + i) * l->height + y) * l->width;
      const int8_t *weight = l->weights + (((int32_t)output * inputs + i) * l->size[0] + y - top) * l->size[1];
      for (int x = left < 0 ? 0 : left; x < stop; x++)
        sum += (from[x] - l->input_zero) * (int32_t)(weight[x - left] - weight_zero);
    }
  return sum * l->spread + (l->bias ? l->bias[output] : 0);
}

/* sum * multiplier / 2^shift, rounded half up; >> of a negative number is not the same everywhere */
static int64_t {{name}}_scale(int32_t sum, int32_t multiplier, int shift) {
  const int64_t half_up = (int64_t)sum * multiplier + ((int64_t)1 << (shift - 1));
  return half_up >= 0 ? half_up >> shift : -((-half_up + ((int64_t)1 << shift) - 1) >> shift);
}

static void {{name}}_run(const {{name}}_layer *l, const int8_t *in, int8_t *out) {
  for (int output = 0; output < l->outputs; output++)
    for (int row = 0; row < l->out_height; row++)
      for (int column = 0; column < l->out_width; column++) {
        const int factor = output * l->factor_step;
        const int32_t sum = {{name}}_sum(l, in, output, row, column);
        const int64_t scaled = {{name}}_scale(sum, l->multipliers[factor], l->shifts[factor]) + l->zero;
        *out++ = (int8_t)(scaled < l->low ? l->low : scaled > l->high ? l->high : scaled);
      }
}

static void {{name}}_pool(const {{name}}_layer *l, const int8_t *in, int8_t *out) {
  for (int channel = 0; channel < l->outputs; channel++, in += l->height * l->width)
    for (int row = 0; row < l->out_height; row++)
      for (int column = 0; column < l->out_width; column++) {
        int8_t largest = -128;
        for (int y = row * l->stride[0] - l->pad[0], dy = 0; dy < l->size[0]; dy++, y++)
          for (int x = column * l->stride[1] - l->pad[1], dx = 0; dx < l->size[1]; dx++, x++)
            if (y >= 0 && y < l->height && x >= 0 && x < l->width && in[y * l->width + x] > largest)
              largest = in[y * l->width + x];
        *out++ = largest;
      }
}

/* sum * multiplier, rounded half to even to 53 bits, as float64 is, and then to 24: equal where float32 is, and in its order */
static int32_t {{name}}_logit(const {{name}}_layer *l, int32_t sum, int factor) {
  uint64_t size = (uint64_t)(sum < 0 ? -(int64_t)sum : sum), rest, bits;
  int32_t exponent = l->shifts[factor] + 156, logit; /* 127, the bias of float32, and what the bits stand to the left */
  if (sum == 0) return 0;
  for (; size < (uint64_t)1 << 30; exponent--) size *= 2;
  rest = size * (uint64_t)l->rests[factor];
  bits = (size * (uint64_t)l->multipliers[factor] + (rest >> 22)) * 2 + (rest % 4194304 != 0);
  for (; bits < (uint64_t)1 << 62; exponent--) bits *= 2;
  for (int cut = 10; cut < 40; cut += 29) bits = (bits + (((uint64_t)1 << (cut - 1)) - 1) + (bits >> cut & 1)) >> cut << cut;
  logit = (int32_t)(bits >> 39) + exponent * 8388608;
  return sum < 0 ? -logit : logit;
}

static int {{name}}_read(const uint8_t pixels[{{pixels}}]) {
  const {{name}}_layer *last = &{{name}}_layers[{{count}} - 1];
  int8_t *in = {{name}}_buffer_0, *out = {{name}}_buffer_1, *taken;
  int best = 0;
  for (int i = 0; i < {{pixels}}; i++) in[i] = {{name}}_quantized[pixels[i]];
  for (int i = 0; i + 1 < {{count}}; i++, taken = in, in = out, out = taken)
    ({{name}}_layers[i].weights ? {{name}}_run : {{name}}_pool)(&{{name}}_layers[i], in, out);
  for (int i = 0; i < {{classes}}; i++) {
    {{name}}_logits[i] = {{name}}_logit(last, {{name}}_sum(last, in, i, 0, 0), i * last->factor_step);
    if ({{name}}_logits[i] > {{name}}_logits[best]) best = i;
  }
  return best;
}
#endif
