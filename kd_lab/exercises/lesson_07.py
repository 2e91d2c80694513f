"""The checks of lesson 07, prune, distil, fine-tune."""

from typing import Any

import torch
from torch import Generator

from kd_lab.checkpoints import load_trained
from kd_lab.evaluation import paired_difference
from kd_lab.exercises.judging import (
    close,
    exercise,
    expect_by_name,
    expect_network,
    expect_number,
    expect_tensor,
    mnist,
    wrong_if,
    wrong_if_like,
)
from kd_lab.formats import pack
from kd_lab.networks import weighted_layers

BYTES = {"Prune": 30_200, "FineTune": 4_950, "Share": 24_070}  # of the last file without this stage, on three seeds


@exercise(
    "07.1",
    "Two things pull at a weight, the loss and the penalty; a third holds pruned weights where they are.",
    "The derivative of λ·w² is 2·λ·w. Which product leaves a pruned weight at zero?",
    "`weight - rate * (gradient + 2 * strength * weight) * mask`",
)
def step(answer: Any, draw: Generator) -> None:
    """`my_step(weight, gradient, mask, strength, rate)` is a step on L + λ·Σw² that keeps zeros zero."""
    weight, gradient, chance = (torch.randn(4, 6, generator=draw) for _ in range(3))
    mask, strength, rate = chance > 0, 0.05, 0.3
    mask[0, 0], weight[0, 0] = True, 0  # not every zero is pruned
    weight = weight * mask
    given = expect_tensor(answer(weight, gradient, mask, strength, rate), weight.shape, "Return the new weight.")
    slope = gradient + 2 * strength * weight
    if close(given, weight - rate * slope * mask):
        return
    filled = "Here a pruned weight follows its gradient. Multiply the step by the mask."
    wrong_if(given[~mask].any(), "what was pruned is no longer zero", filled)
    half, unscaled = gradient + strength * weight, "The derivative of w² is 2·w."
    mistakes = {
        "the weight goes uphill": (weight + rate * slope * mask, "A step goes against the gradient: subtract it."),
        "the penalty is left out": (weight - rate * gradient * mask, "Add the derivative of λ·Σw² to the gradient."),
        "the penalty pulls half as much as it should": (weight - rate * half * mask, unscaled),
        "a zero that stays is held": (
            weight - rate * slope * (weight != 0),
            "Not every zero is pruned: `mask` says which weights stay.",
        ),
        "the rate is left out": (weight - slope * mask, "The step is `rate` times the gradient."),
        "the penalty makes the weights larger": (
            weight - rate * (gradient - 2 * strength * weight) * mask,
            "The penalty's derivative is added to the gradient, not subtracted.",
        ),
        "the penalty is not scaled by the rate": (
            weight - (rate * gradient + 2 * strength * weight) * mask,
            "The rate belongs to the whole derivative: mind the brackets.",
        ),
        "this is the step, not the weight": (-rate * slope * mask, "Start from `weight`."),
    }
    wrong_if_like(given, mistakes)
    wrong_if(True, "some weights that stay are not where one step takes them", "Try it on a single weight, on paper.")


@exercise(
    "07.2",
    "A large layer counts for more than a small one.",
    "Count zeros over all layers, and weights over all layers. Divide once, at the end.",
    "`sum((weight == 0).sum().item() for weight in weights.values())`, over the sum of `weight.numel()`",
)
def whole_sparsity(answer: Any, draw: Generator) -> None:
    """`my_sparsity(weights)` is the share of all weights, of all layers, that are zero."""
    weights = {}
    for name, shape, share in (("fc1", (30, 40), 0.9), ("fc2", (6, 30), 0.6), ("fc3", (2, 3, 5), 0.3)):
        weight = torch.randn(shape, generator=draw)
        weights[name] = weight * (torch.rand(shape, generator=draw) > share)
    zeros, sizes = ([count(each) for each in weights.values()] for count in (_zeros, torch.numel))
    given = expect_number(answer(weights), "[0, inf)", "Return one number: the share of zeros among all weights.")
    right = sum(zeros) / sum(sizes)
    if abs(given - right) < 6e-4:  # three decimals do; one zero more or less doesn't
        return
    shares = [few / size for few, size in zip(zeros, sizes, strict=True)]
    said = f"{given:.4g} came, where {sum(zeros):,} of {sum(sizes):,} weights are zero"
    mean = "This is the mean of the layers' sparsities: it counts a layer of 30 weights like one of 1,200."
    wrong_if(abs(given - sum(shares) / 3) < 1e-4, said, mean)
    wrong_if(abs(given - 1 + right) < 1e-4, said, "This is the share that is left. The sparsity is the share of zeros.")
    wrong_if(abs(given - 100 * right) < 0.06, said, "A sparsity is a fraction: 0.9, not 90.")
    wrong_if(given == sum(zeros), said, "This is how many zeros there are. Divide by the number of weights.")
    one = "This is one layer's alone. Go over all of them, and return after the loop."
    wrong_if(min(abs(given - share) for share in shares) < 1e-4, said, one)
    wrong_if(True, said, "Sum the zeros of all layers, then divide by the number of all weights.")


def _zeros(weight: torch.Tensor) -> int:
    """Return how many numbers of a tensor are zero."""
    return int((weight == 0).sum())


@exercise(
    "07.3",
    "Three runs of two stages each. `run([…]).bytes` has the bytes after each stage.",
    "Without `Prune`: `run([FineTune(epochs=2), Share(num_bits=3, epochs=2)])`.",
    "The last file of a run: `list(run(stages).bytes.values())[-1]`. The key is the stage that is missing.",
)
def leave_one_out(answer: Any, draw: Generator) -> None:
    """`my_bytes` is a dict: the bytes of the last file by the stage that was left out."""
    found = expect_by_name(answer, BYTES, "(-inf, inf)")
    said = ", ".join(f"without {name} {size:,.0f} bytes" for name, size in found.items())
    if all(abs(found[name] / size - 1) < 0.15 for name, size in BYTES.items()):
        return
    small = "These are kilobytes or ratios. Give bytes, as `result.bytes` has them."
    wrong_if(max(map(abs, found.values())) < 300, said, small)
    saved = "Is this what each stage saves? The size of the file is asked for."
    wrong_if(found["FineTune"] < 1_000, said, saved)
    stages = "The key names the stage that is left *out*, and these are the sizes after each stage of the whole recipe."
    wrong_if(found["Prune"] < 26_000 and found["FineTune"] > 20_000 and found["Share"] < 6_000, said, stages)
    first = "This is an earlier file of the run, or these are bits. Take the bytes of the last one."
    wrong_if(found["Prune"] > 100_000, said, first)
    wrong_if(
        sorted(BYTES, key=found.__getitem__) != sorted(BYTES, key=BYTES.__getitem__),
        said,
        "Are the names at the right numbers, and are two stages left each time?",
    )
    hint = "Are the settings those of section 2: 0.95, five steps of one epoch; two epochs; 3 bits, two epochs?"
    wrong_if(True, said, hint)


@exercise(
    "07.4",
    "Only the order differs: two runs, and `.unique()` on the weights of `fc1` that are left.",
    "`weight[weight != 0].unique()` has each value once; `len` counts them.",
    "`run([Share(3, epochs=2), Prune(0.95, steps=5, epochs=1)]).model.fc1.weight`, and the same with `Share` last.",
)
def share_first(answer: Any, draw: Generator) -> None:
    """`my_values` is a dict: how many different values `fc1` has with Share last and with Share first."""
    found = expect_by_name(answer, ("Share last", "Share first"))
    last, first = found["Share last"], found["Share first"]
    said = f"Share last {last:,.0f}, Share first {first:,.0f}"
    if 6 <= last <= 8 and 3_500 < first < 5_500:
        return
    wrong_if(first <= 9 < last, said, "The two are swapped. Which order leaves every weight a value of its own?")
    wrong_if(last == 9, said, "Zero is counted, too: drop it by `weight[weight != 0]`.")
    wrong_if(last == 3, said, "This is the number of bits. How many values can they tell apart?")
    weights = "These are weights, not values. `.unique()` keeps each value once."
    wrong_if(last > 1_000 and first > 1_000, said, weights)
    wrong_if(first > 50_000, said, "Was `Prune` in the recipe? About 5,000 weights of `fc1` should be left.")
    after = "Look at the weight after the *last* stage, `run(stages).model`: there it has been trained again."
    wrong_if(first <= 9, said, after)
    wrong_if(True, said, "Two runs with the settings of the question; count the values of `fc1` that are not zero.")


@exercise(
    "07.5",
    "Which layer has nearly all the weights? There a percent costs bytes; in the other it costs next to none.",
    "Prune more than 95 % of `fc1`, and much less of `fc2`. 3 bits are enough for both.",
    '`[Prune({"fc1": 0.96, "fc2": 0.5}, steps=4, epochs=1), Share({"fc1": 3, "fc2": 3}, epochs=1)]`',
)
def by_hand(answer: Any, draw: Generator) -> None:
    """`my_network` packs into 5,000 bytes and loses at most 3.5 points against `mlp128`."""
    network = "Give the network itself, `run(stages).model`."
    answer = expect_network(answer, "mlp128", network, whole=False)
    size = len(pack(answer))
    lost = -100 * paired_difference(answer, load_trained("mlp128"), mnist().validation).value
    said = f"{size:,} bytes, {lost:.2f} points lost"
    wrong_if(size > 100_000, said, "This is hardly smaller than the dense network. Is it the last one of a recipe?")
    values = "Do weights share their values? Without `Share`, or with training after it, each takes four bytes."
    most = max(len(layer.weight.unique()) for layer in weighted_layers(answer).values())
    wrong_if(size > 5_000 and most > 256, f"{said}; a layer has {most:,} different values", values)
    wrong_if(size > 5_000 and lost > 3.5, said, "Too large and too bad: give `fc2` more of the weights, `fc1` fewer.")
    wrong_if(size > 5_000, said, "Still too large: prune more of `fc1`, or give it fewer bits.")
    wrong_if(lost > 50, said, "It hardly reads any more. Was it trained after it was pruned?")
    wrong_if(lost > 3.5, said, "Small enough, but it loses too much: let `fc2` keep half of its weights, and 3 bits.")
