"""Round numbers to a grid of 2^num_bits steps: q = round(x / scale) + zero_point, and back."""

import torch
from torch import Tensor

from kd_lab.errors import ParameterError, check_choice, check_kind, check_that, check_whole_number
from kd_lab.networks.checks import check_finite, check_shapes

BITS_RANGE = "[1, 16]"
CALIBRATIONS = ("min_max", "percentile", "least_squares")
PERCENTILE = 99.9  # of the sorted values, the one at which "percentile" cuts off either end
SHRINKS = [step / 40 for step in range(40, 0, -1)]  # of the whole range, those that "least_squares" tries
MIN_SCALE = torch.finfo(torch.float32).tiny  # of the scales whose reciprocal is finite


def integer_range(num_bits: int) -> tuple[int, int]:
    """Return the smallest and the largest signed integer of 1 to 16 bits: 8 give -128 and 127."""
    num_bits = check_whole_number("num_bits", num_bits, BITS_RANGE)
    return -(2 ** (num_bits - 1)), 2 ** (num_bits - 1) - 1


def scale_and_zero_point(low: Tensor, high: Tensor, num_bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Return the scale (float32) and zero point (int32) of a grid from `low` to `high`, tensors of one shape.

    Zero always lies on the grid, so that padding and pruned weights stay exact. A symmetric grid has zero point 0 and
    its largest integer for the larger end; an affine one has an integer for either end. Jacob et al. 2018, arXiv
    1712.05877, section 3.
    """
    smallest, largest = integer_range(num_bits)
    check_kind("symmetric", symmetric, bool, "True or False")
    check_finite(low=low, high=high)
    check_shapes("'low' and 'high' must have one shape", lambda a, b: a == b, low, high)
    low, high = low.clamp(max=0), high.clamp(min=0)
    if symmetric:
        scale = torch.maximum(-low, high) / max(largest, 1)  # one bit has only -1 and 0
    else:
        steps = largest - smallest
        scale = high / steps - low / steps  # high - low could overflow
    scale = torch.where(scale == 0, 1.0, scale.clamp(min=MIN_SCALE))  # where all is 0, any step will do
    return scale, (torch.zeros_like(scale) if symmetric else smallest - (low / scale).round()).int()


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, num_bits: int) -> Tensor:
    """Return the integers (int8, or int16 above 8 bits) nearest to x / scale + zero_point; beyond the ends, the ends.

    `scale`, above 0, and `zero_point` have one number, or a shape that broadcasts to that of x.
    """
    check_finite(x=x)
    whole = _steps(x, scale, zero_point, num_bits) + zero_point
    return whole.to(torch.int8 if num_bits <= 8 else torch.int16)


def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Return the numbers (float32) that these integers stand for: (q - zero_point) · scale."""
    _check_grid("q", q, scale, zero_point)
    return (q.float() - zero_point) * scale


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, num_bits: int) -> Tensor:
    """Return x rounded to the grid, still as floating point: what dequantize makes of quantize.

    Gradients pass straight through the rounding, and stop where x lies beyond the ends (Bengio et al. 2013, arXiv
    1308.3432); to `scale` they are those of Esser et al. 2020, arXiv 1902.08153.
    """
    return _steps(x, scale, zero_point, num_bits) * scale


def _steps(x: Tensor, scale: Tensor, zero_point: Tensor, num_bits: int) -> Tensor:
    """Return how many steps of the grid x lies from 0."""
    smallest, largest = integer_range(num_bits)
    _check_grid("x", x, scale, zero_point)
    check_that("scale", scale, (torch.as_tensor(scale) > 0).all(), "above 0")
    # times the reciprocal, as torch and integer hardware do: a division would round a few numbers to the other side
    return _Round.apply(x * (1 / scale), smallest - zero_point, largest - zero_point)


class _Round(torch.autograd.Function):
    """Round to whole numbers between two ends; backward, hand the gradient through except beyond the ends."""

    @staticmethod
    def forward(context, x: Tensor, smallest: Tensor, largest: Tensor) -> Tensor:
        whole = x.round()  # of two equally near numbers, to the even one
        if context.needs_input_grad[0]:
            context.save_for_backward((whole >= smallest) & (whole <= largest))
        return whole.clamp(smallest, largest)

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient * context.saved_tensors[0], None, None


def _check_grid(name: str, x: Tensor, scale: Tensor, zero_point: Tensor) -> None:
    """Raise a ParameterError unless x is a tensor, to whose shape the others, if not numbers, broadcast."""
    check_kind(name, x, Tensor, "a tensor")
    for argument, value in (("scale", scale), ("zero_point", zero_point)):
        check_kind(argument, value, (Tensor, int, float), "a number or a tensor")
        value = torch.as_tensor(value)
        try:
            value.numel() == 1 or value.expand(x.shape)
        except RuntimeError as error:
            raise ParameterError(
                f"{argument!r} must have one number, or a shape that broadcasts to "
                f"{tuple(x.shape)}, that of {name!r}. Got {tuple(value.shape)}."
            ) from error


def find_grid(
    rows: Tensor, num_bits: int, symmetric: bool = False, calibration: str = "min_max"
) -> tuple[Tensor, Tensor]:
    """Return scale and zero point, both (rows,), of the grid for each row of numbers, `rows` (rows, n).

    "min_max" covers all numbers, "percentile" all but one of a thousand at either end, and "least_squares" the part of
    the whole range whose rounding errs least.
    """
    check_choice("calibration", calibration, list(CALIBRATIONS))
    check_finite(2, rows=rows)
    rows = rows.detach()
    low, high = _percentiles(rows) if calibration == "percentile" else rows.aminmax(dim=1)
    if calibration != "least_squares":
        return scale_and_zero_point(low, high, num_bits, symmetric)
    grids = [scale_and_zero_point(shrink * low, shrink * high, num_bits, symmetric) for shrink in SHRINKS]
    rounded = (fake_quantize(rows, scale[:, None], zero_point[:, None], num_bits) for scale, zero_point in grids)
    best = torch.stack([(each - rows).square().mean(1) for each in rounded]).argmin(0)  # of equal ones the widest
    scale, zero_point = (torch.stack(part)[best, torch.arange(len(rows))] for part in zip(*grids, strict=True))
    return scale, zero_point


def _percentiles(rows: Tensor) -> tuple[Tensor, Tensor]:
    count = rows.shape[1]
    place = round(count * PERCENTILE / 100)
    return rows.kthvalue(count - place + 1, dim=1).values, rows.kthvalue(place, dim=1).values
