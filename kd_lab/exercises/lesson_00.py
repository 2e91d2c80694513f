"""The checks of lesson 00, start here."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator

from kd_lab.errors import described
from kd_lab.evaluation import Accuracy, PairedDifference, correct_answers
from kd_lab.exercises.judging import exercise, expect_number, expect_numbers, mnist, wrong_if
from kd_lab.networks import build_model
from kd_lab.training import train

WIDTH = 0.002  # of the interval in exercise 3, 0.2 points


@exercise(
    "00.1",
    "One filter for each output channel. How many weights has one filter, and how often is it used?",
    "A filter has `kernel * kernel` weights for *each* input channel, and one bias.",
    "The MACs are the weights, without the biases, times the `side * side` places.",
)
def convolution(answer: Any, draw: Generator) -> None:
    """`my_cost(inputs, outputs, kernel, side)` returns a convolution's parameters and MACs."""
    for _ in range(3):
        sizes = [int(torch.randint(low, low + 6, (), generator=draw)) for low in (3, 9, 2, 17)]
        _cost_of(answer, *sizes)


def _cost_of(answer: Any, inputs: int, outputs: int, kernel: int, side: int) -> None:
    """Check the cost of one convolution."""
    form = "Return two numbers: `parameters, macs`."
    given = expect_numbers(answer(inputs, outputs, kernel, side), 2, "[0, 1e12]", form)
    weights, places = inputs * outputs * kernel**2, side**2
    expected = [weights + outputs, weights * places]
    if given == expected:
        return
    called = f"my_cost({inputs}, {outputs}, {kernel}, {side})"
    wrong_if(given == expected[::-1], f"{called} gives the MACs first", "Turn the two round: parameters, then MACs.")
    parameters = f"{called}: there are {expected[0]:,} parameters, not {given[0]:,.10g}"
    wrong_if(given[0] == weights, parameters, "The biases are missing, one for each output channel.")
    wrong_if(given[0] in (weights + 1, weights + inputs), parameters, "Each output channel has a bias of its own.")
    each = "Every filter reads *all* input channels: kernel × kernel weights for each of them."
    wrong_if(given[0] == outputs * kernel**2 + outputs, parameters, each)
    wrong_if(given[0] == inputs * outputs * kernel + outputs, parameters, "A filter is kernel × kernel, not kernel.")
    wrong_if(given[0] != expected[0], parameters, "Weights: inputs × outputs × kernel × kernel; then the biases.")
    macs = f"{called}: there are {expected[1]:,} MACs, not {given[1]:,.10g}"
    wrong_if(given[1] == expected[0] * places, macs, "A bias is added and never multiplied: leave it out.")
    wrong_if(given[1] in (weights, expected[0]), macs, "Each weight works at every place of the image, not once.")
    wrong_if(given[1] == weights * side, macs, "There are side × side places, not side.")
    wrong_if(True, macs, "Each weight is multiplied once at each of the side × side places.")


@exercise(
    "00.2",
    "First, for each network and each image: is the answer right? `argmax(1)` gives the answers.",
    "Gained: the new one is right *and* the old one is not. Lost: the other way round.",
    "`(new_right & ~old_right).sum()` is the first of the two.",
)
def gained_and_lost(answer: Any, draw: Generator) -> None:
    """`my_gained_and_lost(new, old, labels)` counts the images that only one of two networks reads."""
    labels = torch.randint(10, (200,), generator=draw)
    new, old = (torch.randn(200, 10, generator=draw) + help_ * F.one_hot(labels, 10) for help_ in (2.5, 1.5))
    given = expect_numbers(answer(new, old, labels), 2, "[0, 1e9]", "Return two counts: `gained, lost`.")
    new_right, old_right = (logits.argmax(1) == labels for logits in (new, old))
    difference = PairedDifference.of(new_right, old_right)
    expected = [difference.gained, difference.lost]
    if given == expected:
        return
    said = f"of 200 images {expected[0]} are gained and {expected[1]} lost, and your function says {given}"
    wrong_if(given == expected[::-1], said, "Gained are those that only the *new* network reads: turn them round.")
    wrong_if(0 < max(given) < 1, said, "Counts are asked for, not fractions.")
    totals = [int(right.sum()) for right in (new_right, old_right)]
    wrong_if(given == totals, said, "These are all that each reads. What both read says nothing about which is better.")
    other = int((new.argmax(1) != old.argmax(1)).sum())
    wrong_if(other in given, said, "Other answers are not yet better ones: compare each answer with its label first.")
    wrong_if(True, said, "`new_right & ~old_right` marks the images that only the new network reads.")


@exercise(
    "00.3",
    "`low, high = Accuracy(correct=990, count=1000).interval`, and `high - low` is a fraction: 0.2 points are 0.002.",
    "Four times the images give half the width. Keep 99 of 100 correct while the count grows.",
    "Double the count until the width is below 0.002, then go back in steps of 1,000.",
)
def images_needed(answer: Any, draw: Generator) -> None:
    """`my_images` is how many images make the interval around 99 % at most 0.2 points wide."""
    count = int(expect_number(answer, "[1, 1e9]", "A count of images, one number."))
    low, high = Accuracy(round(0.99 * count), count).interval
    width, said = high - low, f"with {count:,} images the interval is {100 * (high - low):.3f} points wide"
    points = "0.2 points are 0.002 as a fraction: `interval` gives fractions, not per cent."
    wrong_if(width > 10 * WIDTH, said, points)
    half = "0.2 points from end to end are asked for; this is 0.2 to either side."
    wrong_if(0.95 < width / (2 * WIDTH) < 1.05, said, half)
    wrong_if(width > 1.005 * WIDTH, said, "Still too wide: more images.")
    wrong_if(width < WIDTH / 5, said, "0.2 points are 0.002 as a fraction. Did you ask for 0.2 of a thousandth?")
    wrong_if(width < 0.95 * WIDTH, said, "Fewer images do, too: go back in smaller steps.")


@exercise(
    "00.4",
    "Three calls of `train`. An error is the kit's refusal: read what it says, and put the call into a comment.",
    '`learning_rate="0.01"` is text, 50 is out of range. Does 10 raise an error? Then measure what came out.',
    "`100 * accuracy(network, data.validation).value` is the accuracy in per cent.",
)
def refusals(answer: Any, draw: Generator) -> None:
    """`my_outcomes` says what became of three learning rates: "refused", or an accuracy in per cent."""
    form = 'Return {"text": …, "50": …, "10": …}, each "refused" or an accuracy in per cent.'
    wrong_if(not isinstance(answer, dict), f"a dict is asked for, and {described(answer)} came", form)
    outcomes = {str(key): value for key, value in answer.items()}
    wrong_if({*outcomes} != {"text", "50", "10"}, f"the dict has the keys {', '.join(outcomes)}", form)
    for key, why in {"text": 'a number in quotes is text: `learning_rate="0.01"`', "50": "rates end at 10"}.items():
        measured = 'The kit raises an error before it trains, whatever it says: write "refused".'
        wrong_if(outcomes[key] != "refused", f"{key}: {outcomes[key]!r} is not what happens: {why}", measured)
    allowed = "Run it again: no error comes. So the network came back: how many digits does it read?"
    wrong_if(outcomes["10"] == "refused", "10 is not refused", allowed)
    percent = expect_number(outcomes["10"], "[0, 100]", "For 10, give the accuracy of the network that came back.")
    said = f'"10": {percent:g}'
    wrong_if(percent < 1, f"{said} reads like a fraction", "Per cent are asked for: times 100.")
    wrong_if(percent > 60, f"{said} is far too good", "Measure the network that `train` returns for 10, on validation.")


@exercise(
    "00.5",
    'A loop over `build_model("mlp128", seed)` for seeds 0 to 9; keep each trained network in a list.',
    "`paired_difference(network, first, data.validation)` for seeds 1 to 9, where `first` is that of seed 0.",
    "Clear is a difference with `interval[0] > 0` or `interval[1] < 0`; points are `100 * difference.value`.",
)
def same_recipe(answer: Any, draw: Generator) -> None:
    """`my_seeds` has the nine differences of one recipe's networks in points, and how many of them are clear."""
    form = 'Return {"points": [nine numbers], "clear": how many intervals do not contain zero}.'
    wrong_if(not isinstance(answer, dict) or {*answer} != {"points", "clear"}, "the dict has other keys", form)
    points = expect_numbers(answer["points"], 9, "[-100, 100]", form)
    clear = expect_number(answer["clear"], "[0, 9]", form)
    repeated = "Does each seed reach `build_model`? The same seed gives the same network."
    wrong_if(len(set(points)) == 1, "all nine differences are the same", repeated)
    differences = _of_seeds()
    expected = [100 * each.value for each in differences]
    count = sum(each.interval[0] > 0 or each.interval[1] < 0 for each in differences)
    errors = [abs(each - right) for each, right in zip(points, expected, strict=True)]
    if max(errors) < 0.3 and abs(clear - count) <= 1:
        return
    place = errors.index(max(errors))
    said = f"seed {place + 1} against seed 0 is {expected[place]:.2f} points here, not {points[place]:.2f}"
    wrong_if(max(map(abs, points)) < 0.05, said, "These are fractions. Times 100 they are points.")
    opposite = max(abs(each + right) for each, right in zip(points, expected, strict=True)) < 0.3
    wrong_if(opposite, said, "The sign: the network of seed 0 is the baseline, so it comes second.")
    recipe = "Is it 5,000 images, one epoch, nothing else changed, seed 0 the first, and all validation images?"
    wrong_if(max(errors) >= 0.3, said, recipe)
    said = f"{count} intervals do not contain zero, and you say {clear:g}"
    wrong_if(abs(9 - clear - count) <= 1, said, "You counted the intervals that *do* contain zero.")
    wrong_if(True, said, "An interval is clear of zero if both ends are above it or both below.")


def _of_seeds() -> list[PairedDifference]:
    """Return the differences of nine networks to the first, of one recipe and ten seeds."""
    data = mnist()
    settings = {"validation": data.validation, "epochs": 1, "progress": False}
    right = []
    for seed in range(10):
        network, _ = train(build_model("mlp128", seed), data.train[:5000], F.cross_entropy, **settings)
        right.append(correct_answers(network, data.validation))
    return [PairedDifference.of(each, right[0]) for each in right[1:]]
