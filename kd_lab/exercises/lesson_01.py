"""The checks of lesson 01, magnitude pruning."""

from typing import Any

import torch
from torch import Generator, Tensor

from kd_lab.checkpoints import load_trained
from kd_lab.data import load_mnist
from kd_lab.evaluation import accuracy, paired_difference
from kd_lab.exercises.judging import (
    close,
    exercise,
    expect_keys,
    expect_number,
    expect_numbers,
    expect_tensor,
    wrong_if,
)
from kd_lab.pruning import magnitude_mask, prune

STEP = 0.02  # between the sparsities that exercise 4 tries


@exercise(
    "01.1",
    "Set one weight to zero: the loss changes by about -w·g. Which number says how much, up or down?",
    "The lesson's table of four importances has it, in section 4.",
    "`(weight * gradient).abs()`",
)
def importance(answer: Any, draw: Generator) -> None:
    """`my_importance(weight, gradient)` returns |w·g|, as a tensor of the weight's shape."""
    weight, gradient = (torch.randn(4, 6, generator=draw) for _ in range(2))
    given = expect_tensor(answer(weight, gradient), weight.shape, "One importance for each weight: don't sum them up.")
    signed = "A weight matters whether its zero makes the loss rise or fall. The sign must go."
    wrong_if((given < 0).any() and close(given, weight * gradient), "w·g keeps its sign", signed)
    hint = "Here the sign of g is left in: the absolute value must enclose the whole product."
    wrong_if(close(given, weight.abs() * gradient), "this is |w|·g", hint)
    wrong_if(close(given, weight.abs()), "this is |w|, the magnitude", "The gradient is not used.")
    wrong_if(close(given, gradient.abs()), "this is |g|", "The weight is not used: how long is the step to 0?")
    expected = (weight * gradient).abs()
    wrong_if(
        not torch.equal(given.flatten().argsort(), expected.flatten().argsort()),
        "the weights come in another order than by |w·g|",
        "Multiply each weight by its own gradient, then take the absolute value.",
    )
    wrong_if(not close(given, expected), "the order is right, the numbers are not", "Don't square or scale.")


@exercise(
    "01.2",
    "A mask says for each weight whether it stays. Which ones go first?",
    "How many go? `round(sparsity * weight.numel())`. Sort |w| of the whole tensor to see which.",
    "`threshold = weight.abs().flatten().sort().values[count]` is the smallest |w| that stays (mind a count of all).",
)
def mask(answer: Any, draw: Generator) -> None:
    """`my_mask(weight, sparsity)` returns a mask of the weight's shape: True keeps, and the smallest |w| go."""
    for shape, sparsity in (((5, 5), 0.6), ((3, 2, 2, 2), 0.2), ((40,), 0.9), ((44,), 0.1)):
        _mask_of(answer, torch.randn(shape, generator=draw) + 0.5, sparsity)
    weight = torch.randn(4, 4, generator=draw)
    everything = expect_tensor(answer(weight, 0.0), weight.shape, "A mask has one entry for each weight, in its shape.")
    wrong_if(not everything.bool().all(), "at a sparsity of 0 something is pruned", "Nothing goes: count is 0.")


def _mask_of(answer: Any, weight: Tensor, sparsity: float) -> None:
    """Check a mask for one weight."""
    given = expect_tensor(answer(weight, sparsity), weight.shape, "A mask has one entry for each weight, in its shape.")
    wrong_if(
        not ((given == 0) | (given == 1)).all(),
        "a mask has only zeros and ones",
        "1 (or True) keeps, 0 (or False) prunes. Return the mask, not the pruned weights.",
    )
    size, kept = weight.abs(), given.bool()
    if torch.equal(kept, magnitude_mask(weight, sparsity)):
        return
    count = weight.numel() - round(sparsity * weight.numel())
    inverted = torch.equal(kept, ~magnitude_mask(weight, sparsity))
    wrong_if(inverted, "the smallest weights are kept", "True keeps: turn the comparison round.")
    wrong_if(
        kept.sum() == weight.numel() - count,
        f"{kept.sum()} of {weight.numel()} are kept at a sparsity of {sparsity}, not {count}",
        "The sparsity is the fraction that goes, not the one that stays.",
    )
    wrong_if(
        kept.sum() != count,
        f"{kept.sum()} of {weight.numel()} are kept at a sparsity of {sparsity}, not {count}",
        "`round(sparsity * weight.numel())` weights go, of the whole tensor. Does your threshold itself stay? "
        "And mind: `int` cuts off, and a quantile lies between two weights.",
    )
    signed = kept.flatten()[weight.flatten().argsort()[-count:]].all()
    wrong_if(signed, "large negative weights go", "Rank by |w|: -1.5 is a large weight.")
    said = f"a weight of size {size[~kept].max():.2f} goes while one of {size[kept].min():.2f} stays"
    wrong_if(True, said, "One threshold for the whole tensor, not one for each row: flatten it before you sort.")


@exercise(
    "01.3",
    "First measure `magnitude` at 0.9. Then let a loop try sparsities for `random`, ten masks each.",
    "The mean of the ten falls as the sparsity grows: go up in steps of 0.05 and look where it crosses.",
    "Between 0.3 and 0.5. Halve the step near the crossing.",
)
def random_sparsity(answer: Any, draw: Generator) -> None:
    """`my_sparsity` is the sparsity at which ten random masks lose on average what `magnitude` loses at 0.9."""
    fraction = "A sparsity is one plain number, a fraction between 0 and 1: write 0.35 for 35 %."
    sparsity = expect_number(answer, "(0, 1)", fraction)
    sooner = "Did you look for where `magnitude` falls? Random masks do harm much sooner."
    wrong_if(sparsity > 0.6, f"{sparsity:g} is far too sparse for random masks", sooner)
    dense, images = load_trained("lenet300"), load_mnist().validation
    goal = accuracy(prune(dense, 0.9), images).value
    first = int(torch.randint(1000, (), generator=draw))
    found = [accuracy(prune(dense, sparsity, "random", seed=first + seed), images).value for seed in range(10)]
    mean = sum(found) / len(found)
    said = f"at {sparsity:g} ten random masks reach {mean:.1%} on average, and magnitude at 0.9 {goal:.1%}"
    wrong_if(mean < goal - 0.02, said, "Random loses more than that: try a smaller sparsity.")
    wrong_if(mean > goal + 0.015, said, "Random still loses less than that: try a larger sparsity.")


@exercise(
    "01.4",
    "A loop over sparsities from 0.50 to 0.80 in steps of 0.02; keep the largest that passes the rule.",
    "The rule reads the bad end: `paired_difference(pruned, dense, data.validation).interval[0] > -0.01`.",
    "The estimate may be -0.92 points and the rule still fail: the interval's lower end decides.",
)
def how_many(answer: Any, draw: Generator) -> None:
    """`my_sparsity` is the largest sparsity, in steps of 0.02, whose loss is surely under one point."""
    fraction = "A sparsity is one plain number, a fraction between 0 and 1: write 0.58 for 58 %."
    sparsity = expect_number(answer, "(0, 1)", fraction)
    dense, images = load_trained("lenet300"), load_mnist().validation
    here = paired_difference(prune(dense, sparsity), dense, images)
    low, said = here.interval[0], f"at {sparsity:g}: {here}"
    wrong_if(
        low <= -0.01 < here.value,
        f"{said}. The interval reaches below -1 point",
        "The estimate alone passes. The rule asks for the bad end of the interval.",
    )
    smaller = "Take a smaller sparsity, on the validation images. `interval` holds fractions: -1 point is -0.01 there."
    wrong_if(low <= -0.01, f"{said}. That is more than a point", smaller)
    next_one = paired_difference(prune(dense, sparsity + STEP), dense, images)
    wrong_if(
        next_one.interval[0] > -0.01,
        f"{said}, and {sparsity + STEP:g} passes, too",
        "Go on: the largest sparsity that passes is asked for.",
    )


@exercise(
    "01.5",
    '`prune(dense, 0.9, "weight_gradient", data=data.train[start:start + 100])` for ten starts.',
    "Compare each with one reference, the network that used `data.train[:1000]`, by `paired_difference(…).value`.",
    "Differences are fractions of images: times 100 they are points. Each hundred gets its own, so does each thousand.",
)
def hundreds(answer: Any, draw: Generator) -> None:
    """`my_points` is a dict: "hundreds" and "thousands", each a list of differences in points."""
    shape = 'Return {"hundreds": [ten numbers], "thousands": [nine numbers]}.'
    expect_keys(answer, {"hundreds", "thousands"}, shape)
    for size, name, first, count in ((100, "hundreds", 0, 10), (1000, "thousands", 1000, 9)):
        points = expect_numbers(answer[name], count, "(-100, 100)", f"Points, as plain numbers. {shape}")
        place = int(torch.randint(count, (), generator=draw))
        expected = _points_behind(first + place * size, size)
        said = f"{name}[{place}] is {points[place]:.2f}; here it is {expected:.2f} points"
        wrong_if(len(set(points)) == 1, f"all {name} are the same", "Does `start` move? Each needs images of its own.")
        wrong_if(max(map(abs, points)) < 0.5, said, "These are fractions. Times 100 they are points.")
        swapped = "The sign: the network of fewer images comes first, so below zero means that it is worse."
        wrong_if(abs(points[place] + expected) < 0.3 < abs(expected), said, swapped)
        reference = (
            "Is the reference the network that used `data.train[:1000]`, at a sparsity of 0.9, on validation, and are "
            "the differences in the order of `start`?"
        )
        wrong_if(abs(points[place] - expected) > 0.3, said, reference)


def _points_behind(start: int, size: int) -> float:
    """Return by how many points the gradients of these images are better than those of the first thousand."""
    dense, data = load_trained("lenet300"), load_mnist()
    first, other = (
        prune(dense, 0.9, "weight_gradient", data=images)
        for images in (data.train[:1000], data.train[start : start + size])
    )
    return 100 * paired_difference(other, first, data.validation).value
