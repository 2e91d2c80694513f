"""Compute with weights of few bits, while the ones that training changes stay whole (straight-through estimator)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kd_lab.errors import check_choice, check_kind, check_whole_number
from kd_lab.networks.checks import check_finite
from kd_lab.networks.layers import Weight, warn_of_whole_weights, weights
from kd_lab.networks.permanent import without
from kd_lab.quantization.grids import BITS_RANGE, CALIBRATIONS, fake_quantize, find_grid, integer_range, quantize

GRANULARITIES = ("per_tensor", "per_channel")
WEIGHT_BITS_RANGE = "[1, 8]"
TERNARY_THRESHOLD = 0.7  # of the mean |w|: what lies below becomes 0


class Quantizer(nn.Module):
    """A parametrization that gives a weight fewer different values.

    `encode(weight)` returns the codes, whole numbers from 0 in the weight's shape, and the tensors that decode them:
    `scale` and `zero_point`, as in (codes - zero_point) · scale, or a `codebook` that holds the value of each code.
    """

    def encode(self, weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the codes and what decodes them."""
        raise NotImplementedError


class FakeQuantizer(Quantizer):
    """Round to a grid of 2^num_bits steps; used for weights and, at a layer's input, for activations."""

    def __init__(self, scale: Tensor, zero_point: Tensor, num_bits: int):
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)
        self.num_bits = check_whole_number("num_bits", num_bits, BITS_RANGE)

    def forward(self, x: Tensor) -> Tensor:
        return _laid_out(fake_quantize(x, self.scale, self.zero_point, self.num_bits), x)

    def encode(self, weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        smallest, _ = integer_range(self.num_bits)
        codes = quantize(weight, self.scale, self.zero_point, self.num_bits).int() - smallest
        return codes, {"scale": self.scale, "zero_point": (self.zero_point - smallest).float()}

    def extra_repr(self) -> str:
        return f"num_bits={self.num_bits}"


class BinaryQuantizer(Quantizer):
    """Replace a weight by its sign times the mean |w| of its channel or tensor; 0 stays 0, so masks hold.

    That scale errs least in squares (Rastegari et al. 2016, arXiv 1603.05279, section 3.1); gradients go straight
    through to the whole weight, as in BinaryConnect (Courbariaux et al. 2015, arXiv 1511.00363).
    """

    num_bits = 1

    def __init__(self, granularity: str, axis: int = 0):
        super().__init__()
        self.granularity, self.axis = granularity, axis

    def forward(self, weight: Tensor) -> Tensor:
        # plus 0, which hands the gradient straight through
        return _laid_out(torch.mul(*self._signs(weight)).detach() + (weight - weight.detach()), weight)

    def _signs(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return -1, 0 or 1 for each weight, and the scale."""
        return weight.sign(), self._mean_size(weight, weight != 0)

    def _mean_size(self, weight: Tensor, counted: Tensor) -> Tensor:
        """Return the mean |w| of those counted, in each channel or in all, in a shape that broadcasts."""
        sizes, counts = (
            _rows(part, self.granularity, self.axis).sum(1, dtype=torch.float64)  # so that equal ones have their mean
            for part in (weight.abs() * counted, counted)
        )
        return _broadcast((sizes / counts.clamp(min=1)).to(weight.dtype), weight, self.axis)

    def encode(self, weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        signs, scale = self._signs(weight)
        if (signs == 0).any():
            return signs.int() + 1, {"scale": scale, "zero_point": scale.new_ones(())}
        return (signs.int() + 1) // 2, {"scale": 2 * scale, "zero_point": scale.new_full((), 0.5)}


class TernaryQuantizer(BinaryQuantizer):
    """Replace a weight by -scale, 0 or scale; 0 where |w| is below 0.7 of its mean (Li & Liu 2016, 1605.04711)."""

    num_bits = 2

    def _signs(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        large = weight.abs() > TERNARY_THRESHOLD * self._mean_size(weight, torch.ones_like(weight))
        return weight.sign() * large, self._mean_size(weight, large)


def _laid_out(value: Tensor, weight: Tensor) -> Tensor:
    # a product with one scale for each output forgets that a convolution of one channel is laid out channels_last,
    # which then is a third slower and rounds another way
    return value if value.stride() == weight.stride() else torch.empty_like(weight).copy_(value)


def quantize_weights(
    model: nn.Module,
    num_bits: int | dict[str, int],
    granularity: str = "per_channel",
    symmetric: bool = True,
    calibration: str = "least_squares",
) -> nn.Module:
    """Return a new model that computes with weights of 1 to 8 bits; a layer that `num_bits` leaves out stays whole.

    `num_bits` is one number, or one for each layer by name; biases are never quantized. One grid for a whole tensor
    ("per_tensor") or one for each output, and each row of an embedding ("per_channel"), found by find_grid. With one
    bit a grid would hold 0 and one other number, so a weight keeps its sign instead (BinaryQuantizer). Quantizers that
    were there are replaced. Warns of weights that stay whole, such as those of an LSTM.
    """
    wanted = bits_by_layer(model, num_bits)
    check_kind("symmetric", symmetric, bool, "True or False")
    check_choice("calibration", calibration, list(CALIBRATIONS))

    def quantizer(name: str, weight: Weight) -> Quantizer:
        value, axis = weight.value, weight.output_axis
        if wanted[name] == 1:
            return BinaryQuantizer(granularity, axis)
        scale, zero_point = find_grid(_rows(value, granularity, axis), wanted[name], symmetric, calibration)
        return FakeQuantizer(_broadcast(scale, value, axis), _broadcast(zero_point, value, axis), wanted[name])

    return set_quantizers(model, quantizer, list(wanted), granularity)


def ternarize_weights(model: nn.Module, granularity: str = "per_channel") -> nn.Module:
    """Return a new model that computes with weights of three values, -scale, 0 and scale; others are replaced."""

    def quantizer(_name: str, weight: Weight) -> Quantizer:
        return TernaryQuantizer(granularity, weight.output_axis)

    return set_quantizers(model, quantizer, list(weights(model)), granularity)


def bits_by_layer(model: nn.Module, num_bits: int | dict[str, int], argument: str = "num_bits") -> dict[str, int]:
    """Return the bits of each layer: one number for all, or those given by name; `argument` names them in an error."""
    layers = weights(model)
    wanted = num_bits if isinstance(num_bits, dict) else dict.fromkeys(layers, num_bits)
    for name in wanted:
        check_choice(argument, name, list(layers))
    return {name: check_whole_number(argument, bits, WEIGHT_BITS_RANGE) for name, bits in wanted.items()}


@torch.inference_mode(False)  # whose tensors could never be trained
def set_quantizers(
    model: nn.Module, quantizer: Callable[[str, Weight], Quantizer], names: list[str], granularity: str
) -> nn.Module:
    """Return a new model whose named layers compute with `quantizer(name, weight)`, and no other with any."""
    check_choice("granularity", granularity, list(GRANULARITIES))
    quantized = without(model, Quantizer)
    for name, weight in weights(quantized).items():
        if name in names:
            check_finite(**{f"the weight of {name}": weight.value})
            with torch.no_grad():
                weight.parametrize(quantizer(name, weight))
    warn_of_whole_weights(quantized)
    return quantized


def _rows(weight: Tensor, granularity: str, axis: int) -> Tensor:
    """Return the weights that share a grid as the rows of a matrix; `axis` is that of the outputs."""
    return weight.movedim(axis, 0).flatten(1) if granularity == "per_channel" else weight.reshape(1, -1)


def _broadcast(values: Tensor, weight: Tensor, axis: int) -> Tensor:
    """Return one value for each row, (rows,), in a shape that broadcasts to the weight's."""
    return values.view(*[1] * axis, -1, *[1] * (weight.dim() - 1 - axis))
