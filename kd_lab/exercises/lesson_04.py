"""The checks of lesson 04, quantization."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Generator, Tensor, nn

from kd_lab.checkpoints import load_trained
from kd_lab.errors import described
from kd_lab.evaluation import PairedDifference, accuracy, paired_difference
from kd_lab.exercises.judging import (
    close,
    exercise,
    expect_numbers,
    expect_tensor,
    hides_numbers,
    mnist,
    wrong_if,
    wrong_if_like,
)
from kd_lab.networks import weights
from kd_lab.quantization import fake_quantize, quantize_activations, quantize_model

SLACK = 0.001  # of a bound on a measured difference: five images, which another processor may round otherwise
NEVER_A_NAN = "A row of zeros has a scale of 0, and 0 / 0 is NaN. Use another scale there; any one will do."


@exercise(
    "04.1",
    "A scale for each row: how large is its largest |w|, and which integer shall that become?",
    "`weight.abs().amax(dim=1, keepdim=True)` has the shape (rows, 1), so it divides row by row.",
    "`scale = ... / (2 ** (num_bits - 1) - 1)`, 1 where that is 0, then `(weight / scale).round() * scale`.",
)
def rounded(answer: Any, draw: Generator) -> None:
    """`my_rounded(weight, num_bits)` returns s·q, with a symmetric grid for each row."""
    for num_bits in (3, 4, 2):
        weight = torch.randn(4, 9, generator=draw) * torch.tensor([[1.0], [0.1], [3.0], [0.5]])
        _rounded_of(answer, weight, num_bits)
    weight[2] = 0
    given = answer(weight, 4)
    wrong_if(not torch.isfinite(given).all() or (given[2] != 0).any(), "a row of zeros doesn't stay so", NEVER_A_NAN)
    _rounded_of(answer, weight, 4)


def _rounded_of(answer: Any, weight: Tensor, num_bits: int) -> None:
    """Check the rounding of one weight."""
    shape = "The result has the weight's shape: divide by a scale of shape (rows, 1)."
    given = expect_tensor(answer(weight, num_bits), weight.shape, shape)
    end, widest = 2 ** (num_bits - 1) - 1, weight.abs().amax(dim=1, keepdim=True)
    expected = _on_grid(weight, widest / end)
    if close(given, expected):
        return
    mistakes = {
        "this is one grid for the whole tensor": (
            _on_grid(weight, weight.abs().max() / end),
            "A grid for each row: the largest |w| of each, not of all.",
        ),
        "each column has a grid": (
            _on_grid(weight, weight.abs().amax(dim=0, keepdim=True) / end),
            "A row is an output: take the largest along `dim=1`.",
        ),
        "the steps are too narrow": (
            _on_grid(weight, widest / (2**num_bits - 1)),
            f"{num_bits} bits go from {-end - 1} to {end}: half of the integers are negative.",
        ),
        "the scale is that of 3 bits": (
            _on_grid(weight, widest / 3),
            "The lesson's 3 is right for 3 bits only: 2 ** (num_bits - 1) - 1.",
        ),
        f"the largest |w| becomes {end + 1}": (
            _on_grid(weight, widest / (end + 1)),
            f"{num_bits} bits hold {-end - 1} to {end}; zero takes a place on the upper side.",
        ),
        "a row's scale comes from its largest weight": (
            _on_grid(weight, weight.amax(dim=1, keepdim=True) / end),
            "The largest of |w| counts: a row's largest weight may be a negative one.",
        ),
        "these are the integers q": (_on_grid(weight, widest / end) / (widest / end), "Times the scale: s · q."),
        "each weight goes to a neighbour nearer to zero": (
            _on_grid(weight, widest / end, torch.trunc),
            "`.int()` and `.long()` cut off what is behind the point. `.round()` first.",
        ),
        "each weight goes to the point below it": (_on_grid(weight, widest / end, torch.floor), "Use `.round()`."),
    }
    wrong_if_like(given, mistakes)
    off = (given - expected).abs().max()
    wrong_if(
        True, f"with {num_bits} bits a weight is off by up to {off:.2g}", "Is it (weight / scale).round() · scale?"
    )


def _on_grid(weight: Tensor, scale: Tensor, rounding: Callable[[Tensor], Tensor] = torch.round) -> Tensor:
    """Return the weight on a grid of this scale; where the scale is 0, zeros."""
    return rounding(weight / scale.where(scale != 0, 1)) * scale


@exercise(
    "04.2",
    "First the forward part alone: divide, clamp to the ends, round, multiply. Then look at its gradient.",
    "`.detach()` hides a part from the gradient. In y + (z - y).detach(), the value is z and the gradient that of y.",
    "`steps = (x / scale).clamp(low, high)`, and `steps + (steps.round() - steps).detach()`, times the scale.",
)
def straight_through(answer: Any, draw: Generator) -> None:
    """`my_fake_quantize(x, scale, num_bits)` rounds and clamps; its gradient is 1 between the ends, 0 beyond."""
    for scale, num_bits in ((0.5, 3), (0.1, 2), (1.0, 4)):
        end = 2 ** (num_bits - 1)
        whole = torch.randint(-2 * end, 2 * end, (3, 40), generator=draw)
        off = 0.8 * torch.rand(3, 40, generator=draw) - 0.4
        off = torch.where(whole.abs() >= end - 1, -whole.sign() * off.abs(), off)  # never just beyond an end
        x = ((whole + off) * scale).requires_grad_()
        given = answer(x, scale, num_bits)
        _values_of(expect_tensor(given, x.shape, "The result has the shape of x."), x.detach(), scale, num_bits)
        _gradients_of(given, x, (whole >= -end) & (whole < end), scale)


def _values_of(given: Tensor, x: Tensor, scale: float, num_bits: int) -> None:
    """Check what comes out of the forward part."""
    expected = fake_quantize(x, scale, 0, num_bits)
    if close(given.detach(), expected):
        return
    end, steps = 2 ** (num_bits - 1), x / scale
    range_said = f"{num_bits} bits: q is {-end} to {end - 1}"
    mistakes = {
        "these are the integers q": (expected / scale, "Back to numbers: times the scale."),
        "x is rounded to whole numbers": (x.round().clamp(-end, end - 1), "A step is as wide as the scale: x / scale."),
        "nothing becomes the end of the grid": (
            steps.round() * scale,
            f"Clamp before or after rounding. {range_said}.",
        ),
        "the grid goes too far up": (steps.round().clamp(-end, end) * scale, f"One integer is zero. {range_said}."),
        "the lowest integer is not used": (steps.round().clamp(1 - end, end - 1) * scale, f"{range_said}."),
        "x is clamped to the integers' ends": (
            (x.clamp(-end, end - 1) / scale).round() * scale,
            "The ends are those of q: clamp x / scale, not x.",
        ),
        "x moves to the point below, not to the nearest": (
            steps.floor().clamp(-end, end - 1) * scale,
            "`.round()` goes to the nearest, `.floor()` doesn't.",
        ),
        "x moves towards zero, not to the nearest": (
            steps.trunc().clamp(-end, end - 1) * scale,
            "`.int()` and `.trunc()` cut off what is behind the point. `.round()` first.",
        ),
        "nothing is rounded": (x, "Forward, the value is the rounded one; what is detached must be added back."),
    }
    wrong_if_like(given.detach(), mistakes)
    said = f"with a scale of {scale}, {num_bits} bits: up to {(given - expected).abs().max():.2g} off"
    wrong_if(True, said, f"Divide by the scale, clamp, round, multiply. {range_said}.")


def _gradients_of(given: Tensor, x: Tensor, inside: Tensor, scale: float) -> None:
    """Check that gradients go straight through between the ends, and not beyond them."""
    detached = "The result has no gradient at all: only the *difference* that rounding makes is to be detached."
    wrong_if(not given.requires_grad, "nothing reaches x", detached)
    (gradient,) = torch.autograd.grad(given.sum(), x, allow_unused=True)
    gradient = torch.zeros_like(x) if gradient is None else gradient
    if close(gradient, inside.float()):
        return
    mistakes = {
        "the gradient is 0 everywhere": (torch.zeros_like(x), "`.round()` has slope 0: detach what it changes."),
        "the gradient is 1 beyond the ends, too": (
            torch.ones_like(x),
            "There, moving x changes nothing. Clamp outside of `.detach()`, where the gradient can see it.",
        ),
        "the gradient between the ends is the scale": (inside * scale, "Divide by the scale outside of `.detach()`."),
        "the gradient between the ends is 1 / scale": (inside / scale, "Multiply outside of `.detach()`."),
    }
    wrong_if_like(gradient, mistakes)
    wrong_if(True, "the gradient isn't 1 between the ends and 0 beyond", "Round as steps + (rounded - steps).detach().")


@exercise(
    "04.3",
    "Sixteen pairs: two loops, one in the other. Keep those that pass, then take the smallest sum.",
    "The rule: `paired_difference(model, dense, data.validation).interval[0] > -0.005`.",
    "No pair with a sum of 6 passes. Of those with 7, weights need more bits than activations.",
)
def fewest_bits(answer: Any, draw: Generator) -> None:
    """`my_bits` is (weight bits, activation bits), the pair of the smallest sum that passes the rule."""
    pair = "Answer with a pair, such as (5, 5): weight bits first, then activation bits, 2 to 5 each."
    bits = expect_numbers(answer, 2, "[2, 5]", pair)
    wrong_if(any(each % 1 for each in bits), "bits are whole numbers", "Take them from `range(2, 6)`.")
    here, total = _cost_of(*map(int, bits)), int(sum(bits))
    said = f"{int(bits[0])} and {int(bits[1])} bits: {here}"
    if here.interval[0] <= -0.005 - SLACK:
        swapped = _cost_of(int(bits[1]), int(bits[0])).interval[0] > -0.005 - SLACK
        wrong_if(swapped, said, "The other way round it passes: weight bits come first.")
        wrong_if(here.value > -0.005, said, "The estimate passes, the bad end of the interval doesn't.")
        wrong_if(True, said, "That is too much. Does your loop read `interval[0]`, of the validation images?")
    for weight_bits in range(max(2, total - 6), min(5, total - 3) + 1):
        smaller = _cost_of(weight_bits, total - 1 - weight_bits)
        fewer = "A pair with a smaller sum passes, too. Go through all sixteen."
        wrong_if(smaller.interval[0] > -0.005, f"{said}. That passes, with more bits than are needed", fewer)


@cache
def _cost_of(weight_bits: int, activation_bits: int) -> PairedDifference:
    """Return what these bits change on the validation images."""
    dense, data = load_trained("lenet300"), mnist()
    model = quantize_model(dense, data.train.images[:500], weight_bits, activation_bits)
    return paired_difference(model, dense, data.validation)


@exercise(
    "04.4",
    "A loop over ten starts; each gives a network of its own, and its accuracy.",
    "`quantize_activations(dense, data.train.images[start:start + 1], 2)`: a slice keeps the shape (1, 1, 28, 28).",
    "`100 * accuracy(model, data.validation).value`, appended to a list.",
)
def one_image(answer: Any, draw: Generator) -> None:
    """`my_accuracies` is a list of ten percentages: 2-bit activations calibrated on one image each."""
    ten = "Append the accuracy of each start, 10 to 19, in percent (100 * its `.value`), to a list."
    percents = expect_numbers(answer, 10, "[0, 100]", ten)
    wrong_if(max(percents) <= 1, "these are fractions", "In percent: times 100.")
    same = "Does `start` move in your loop? Each network needs an image of its own."
    wrong_if(len(set(percents)) == 1, "all ten are the same", same)
    more = "That is what more bits reach: 2 is the third argument."
    wrong_if(min(percents) > 97, f"the worst is {min(percents):.2f} %", more)
    dense, data = load_trained("lenet300"), mnist()
    for place in torch.randperm(10, generator=draw)[:4].tolist():
        model = quantize_activations(dense, data.train.images[10 + place : 11 + place], 2)
        here = 100 * accuracy(model, data.validation).value
        said = f"image {10 + place}: {percents[place]:.2f} %, and here {here:.2f} %"
        order = "`data.train.images[start:start + 1]`, start 10 to 19, read on all validation images, in this order."
        wrong_if(abs(percents[place] - here) > 0.13, said, order)


@exercise(
    "04.5",
    'First `quantize_weights(dense, 2, "per_tensor")`, then `train` the result: the order matters.',
    "`train` returns two things, a new network and its history: `my_network, _ = train(...)`.",
    "`train(rough, data.train[:15000], F.cross_entropy, validation=data.validation[:1000], epochs=1, ...)`.",
)
def four_values(answer: Any, draw: Generator) -> None:
    """`my_network` has lenet300's shape, four values a layer at most, and reads 96.5 % of the validation images."""
    returned = "`train` returns a network and its history: `my_network, _ = train(...)`."
    wrong_if(not isinstance(answer, nn.Module), f"a network is asked for, and {described(answer)} came", returned)
    dense, images = load_trained("lenet300"), mnist().validation
    shapes = [[each.value.shape for each in weights(model).values()] for model in (answer, dense)]
    wrong_if(shapes[0] != shapes[1], "this is another network than lenet300", 'Begin with `load_trained("lenet300")`.')
    counts = {name: len(weight.value.unique()) for name, weight in weights(answer).items()}
    most, reads = max(counts.values()), accuracy(answer, images).value
    said = f"its layers have {', '.join(map(str, counts.values()))} different values"
    wrong_if(most > 1200, said, "Its weights are not quantized: train the network that `quantize_weights` returns.")
    per_layer = 'Four for each layer: 2 bits, and `granularity="per_tensor"`.'
    wrong_if(most > 4, said, per_layer)
    rounded_only = "As much as rounding alone gives. Train *after* quantizing, and take the network that comes back."
    wrong_if(0.93 < reads < 0.955, f"it reads {reads:.1%} of the validation images", rounded_only)
    wrong_if(reads < 0.965, f"it reads {reads:.1%} of the validation images", "Is it `dense` that you began with?")
    hidden = hides_numbers(answer, images[:100].images)
    wrong_if(hidden, "it reads by numbers that are not its weights", "Take the network as `train` gives it back.")
