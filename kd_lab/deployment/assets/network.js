"use strict";
// Read what kd_lab.formats.coding.RangeWriter wrote, and compute a network's answers with it.

const TOTAL = 2 ** 24; // into which the range is divided
const BLOCK = 28, LEVELS = [1, 2, 3, 5, 9, 17, 33], PRIOR = 30; // as in coding.py
const MAX_TABLE = 256; // as in kdz.py
const TYPES = {
  float32: Float32Array, float64: Float64Array, int32: Int32Array, int8: Int8Array, uint8: Uint8Array,
};

class RangeReader {
  constructor(text) {
    this.words = new Uint32Array(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
    this.place = 0;
    this.range = (1n << 64n) - 1n;
    this.point = (this.word() << 32n) | this.word(); // how far into the range
  }

  word() {
    return BigInt(this.words[this.place++] ?? 0);
  }

  share() { // which of TOTAL equal parts of the range the point lies in
    this.part = this.range >> 24n;
    return Number(this.point / this.part);
  }

  narrow(left, right) {
    this.point -= this.part * BigInt(left);
    this.range = this.part * BigInt(right - left);
    if (this.range < 1n << 32n) {
      this.range <<= 32n;
      this.point = (this.point << 32n) | this.word();
    }
  }

  uniform(size) { // a whole number from 0 to size - 1
    if (size === 1) return 0;
    const width = Math.floor(TOTAL / size);
    const found = Math.min(Math.floor(this.share() / width), size - 1);
    this.narrow(found * width, found === size - 1 ? TOTAL : (found + 1) * width);
    return found;
  }

  symbol(likely) { // its place among these, each as likely as its number says
    const scale = (TOTAL - likely.length) / likely.reduce((sum, each) => sum + each, 0);
    const share = this.share();
    let place = 0, left = 0, right = 0, sum = 0;
    for (; ; place++, left = right) {
      sum += likely[place];
      right = place === likely.length - 1 ? TOTAL : Math.floor(sum * scale) + place + 1;
      if (share < right) break;
    }
    this.narrow(left, right);
    return place;
  }

  matrix(rows, columns, size) { // codes from 0 to size - 1; 0 is a pruned weight
    const codes = new Uint16Array(rows * columns), above = new Uint32Array(columns);
    if (size === 1) return codes;
    const kept = new Counts(2, (LEVELS.length + 1) ** 2), values = new Counts(size - 1);
    for (let row = 0; row < rows; row++) {
      let before = 0;
      for (let start = 0; start < columns; start += BLOCK) {
        const block = above.subarray(start, start + BLOCK);
        const contexts = Array.from(block, (count) => level(count) * (LEVELS.length + 1) + level(before));
        const places = kept.read(this, contexts).flatMap((isKept, place) => (isKept ? [start + place] : []));
        const found = size > 2 ? values.read(this, places.map(() => 0)) : places.map(() => 0);
        places.forEach((column, number) => {
          codes[row * columns + column] = 1 + found[number];
          above[column]++;
        });
        before += places.length;
      }
    }
    return codes;
  }

  tensor([dtype, shape]) {
    const rows = shape[0] ?? 1, columns = shape.slice(1).reduce((product, size) => product * size, 1);
    const count = this.uniform(MAX_TABLE + 2), isShared = count <= MAX_TABLE;
    const codes = this.matrix(rows, columns, isShared ? count + 1 : 2);
    const kept = isShared ? count : codes.filter((code) => code).length;
    const isHalf = this.uniform(2);
    const size = isHalf ? 2 : TYPES[dtype].BYTES_PER_ELEMENT;
    const { buffer } = Uint8Array.from({ length: kept * size }, () => this.uniform(256));
    const table = isHalf ? Array.from(new Uint16Array(buffer), fromHalf) : new TYPES[dtype](buffer);
    let next = 0;
    return Float64Array.from(codes, (code) => (code ? table[isShared ? code - 1 : next++] : 0));
  }
}

class Counts {
  constructor(symbols, contexts = 1) {
    this.counts = Array.from({ length: contexts }, () => new Float64Array(symbols));
    this.anywhere = new Float64Array(symbols).fill(1);
  }

  read(reader, contexts) { // a symbol in each of these contexts, all by what came before them
    const total = this.anywhere.reduce((sum, count) => sum + count, 0);
    const found = contexts.map((context) =>
      reader.symbol(this.counts[context].map((count, symbol) => count * total + PRIOR * this.anywhere[symbol])));
    found.forEach((symbol, place) => {
      this.counts[contexts[place]][symbol]++;
      this.anywhere[symbol]++;
    });
    return found;
  }
}

function level(count) {
  return LEVELS.filter((each) => each <= count).length;
}

function fromHalf(bits) {
  const sign = bits >> 15 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  return sign * (exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24);
}

// What each kind of step makes of x, a row of numbers that are planes of rows of columns.
const STEPS = {
  layer({ out, bias, links, values }, x) {
    const [channels, height, width] = out, sums = new Float64Array(channels * height * width);
    if (bias) bias.forEach((value, channel) => sums.fill(value, channel * height * width, (channel + 1) * height * width));
    for (let place = 0, link = 0; place < values.length; place++, link += 8) {
      const value = values[place];
      if (!value) continue;
      for (let row = links[link + 2]; row < links[link + 3]; row++) {
        const to = links[link] + row * width, from = links[link + 1] + row * links[link + 6];
        for (let column = links[link + 4]; column < links[link + 5]; column++) {
          sums[to + column] += value * x[from + column * links[link + 7]];
        }
      }
    }
    return sums;
  },
  relu(step, x) {
    return x.map((value) => Math.max(value, 0));
  },
  pool(step, x) {
    const [, height, width] = step.in, [, rows, columns] = step.out;
    return new Float64Array(step.out[0] * rows * columns).map((_, place) => {
      const channel = Math.floor(place / (rows * columns)), at = place % (rows * columns);
      const top = Math.floor(at / columns) * step.stride[0] - step.pad[0];
      const left = (at % columns) * step.stride[1] - step.pad[1];
      let largest = -Infinity;
      for (let row = top; row < top + step.size[0] * step.dilation[0]; row += step.dilation[0]) {
        for (let column = left; column < left + step.size[1] * step.dilation[1]; column += step.dilation[1]) {
          if (row < 0 || column < 0 || row >= height || column >= width) continue;
          largest = Math.max(largest, x[(channel * height + row) * width + column]);
        }
      }
      return largest;
    });
  },
  mean(step, x) {
    const size = step.in[1] * step.in[2];
    return new Float64Array(step.out[0]).map((_, channel) =>
      x.subarray(channel * size, (channel + 1) * size).reduce((sum, value) => sum + value, 0) / size);
  },
  scale({ out, factor, added }, x) {
    return x.map((value, place) => value * of(factor, place, out) + (added ? of(added, place, out) : 0));
  },
  round({ reciprocal, unit, low, high }, x) { // as float32 numbers are, and of two equally near ones to the even one
    return x.map((value) => {
      const exact = Math.fround(Math.fround(value) * reciprocal), up = Math.round(exact);
      return Math.min(Math.max(up - exact === 0.5 && up % 2 ? up - 1 : up, low), high) * unit;
    });
  },
  requantize({ out, multiplier, shift, low, high }, x) { // exact, in 64 bits
    return x.map((sum, place) => {
      const bits = BigInt(of(shift, place, out));
      const product = BigInt(Math.round(sum)) * BigInt(of(multiplier, place, out));
      return Math.min(Math.max(Number((product + (1n << (bits - 1n))) >> bits), low), high);
    });
  },
  residual({ steps }, x) {
    return run(steps, x).map((value, place) => Math.max(value + x[place], 0));
  },
};

function of(numbers, place, [, height, width]) { // that of this place's channel
  return numbers[numbers.length === 1 ? 0 : Math.floor(place / (height * width))];
}

function run(steps, x) {
  return steps.reduce((given, step) => STEPS[step.kind](step, given), x);
}

// For each weight that is not 0: where its channels begin, in which rows and columns it counts, and their strides.
function linksOf({ weight, in: [, height, width], out, size, stride, pad, dilation, groups }) {
  const perOutput = weight.length / out[0], links = [];
  const ends = (axis, at, inputs) => [
    Math.max(0, Math.ceil((pad[axis] - at) / stride[axis])),
    Math.min(out[axis + 1], Math.floor((inputs - 1 + pad[axis] - at) / stride[axis]) + 1),
  ];
  weight.forEach((value, place) => {
    if (!value) return;
    const output = Math.floor(place / perOutput), rest = place % perOutput, area = size[0] * size[1];
    const group = Math.floor((output * groups) / out[0]);
    const input = (group * perOutput) / area + Math.floor(rest / area);
    const row = Math.floor((rest % area) / size[1]) * dilation[0], column = (rest % size[1]) * dilation[1];
    links.push(
      output * out[1] * out[2], (input * height + row - pad[0]) * width + column - pad[1],
      ...ends(0, row, height), ...ends(1, column, width), stride[0] * width, stride[1],
    );
  });
  return Int32Array.from(links);
}

class Network {
  constructor({ name, steps, tensors, coded, answers }, { mean, std }) {
    const reader = new RangeReader(coded), read = tensors.map((tensor) => reader.tensor(tensor));
    Object.assign(this, { name, answers, mean: Math.fround(mean), std: Math.fround(std), layers: [] });
    this.steps = steps.map((step) => this.prepared(step, read));
    this.bytes = 4 * reader.words.length;
    this.kept = this.layers.reduce((sum, { whole }) => sum + whole.length, 0);
  }

  prepared(step, read) { // with numbers in the place of the tensors' places
    const filled = { ...step };
    for (const key of ["weight", "bias", "factor", "added", "multiplier", "shift"]) {
      if (key in step) filled[key] = read[step[key]];
    }
    if (step.steps) filled.steps = step.steps.map((each) => this.prepared(each, read));
    if (step.kind === "layer") {
      filled.links = linksOf(filled);
      filled.values = filled.whole = filled.weight.filter((value) => value);
      this.layers.push(filled);
    }
    return filled;
  }

  logits(pixels) { // of one digit, 784 numbers from 0 to 1
    return run(this.steps, Float64Array.from(pixels).map((value) =>
      Math.fround(Math.fround(Math.fround(value) - this.mean) / this.std)));
  }

  answer(pixels) {
    const logits = this.logits(pixels);
    return logits.indexOf(Math.max(...logits));
  }

  prune(fraction) { // of each layer's weights, the smallest
    for (const layer of this.layers) {
      const count = Math.round(fraction * layer.whole.length);
      layer.values = layer.whole.slice();
      Array.from(layer.whole.keys()).sort((a, b) => Math.abs(layer.whole[a]) - Math.abs(layer.whole[b]))
        .slice(0, count).forEach((place) => (layer.values[place] = 0));
    }
  }

  addNoise(strength) { // normal, as large as the layer's weights where it is 1, and always the same
    for (const layer of this.layers) {
      const squares = layer.whole.reduce((sum, value) => sum + value * value, 0);
      const size = strength * Math.sqrt(squares / layer.whole.length), chance = randomNumbers();
      layer.values = layer.whole.map((value) =>
        value + size * Math.sqrt(-2 * Math.log(1 - chance())) * Math.cos(2 * Math.PI * chance()));
    }
  }
}

function randomNumbers() { // from 0 to 1, the same each time (Marsaglia's xorshift, 2003)
  let state = 2463534242;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) / 2 ** 32;
  };
}
