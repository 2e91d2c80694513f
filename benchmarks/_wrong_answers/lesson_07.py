"""Wrong answers to the exercises of lesson 07."""

from typing import Any

import torch

from benchmarks._wrong_answers.lesson_06 import hiding
from kd_lab.checkpoints import load_trained
from kd_lab.formats import load_packed
from kd_lab.pruning import prune
from kd_lab.quantization import quantize_weights
from kd_lab.results import RESULTS


def wrong_07_1() -> dict[str, Any]:
    """A step."""
    return {
        "no longer zero": lambda w, g, mask, s, rate: w - rate * (g + 2 * s * w),
        "goes uphill": lambda w, g, mask, s, rate: w + rate * (g + 2 * s * w) * mask,
        "the penalty is left out": lambda w, g, mask, s, rate: w - rate * g * mask,
        "half as much": lambda w, g, mask, s, rate: w - rate * (g + s * w) * mask,
        "Not every zero is pruned": lambda w, g, mask, s, rate: w - rate * (g + 2 * s * w) * (w != 0),
        "the rate is left out": lambda w, g, mask, s, rate: w - (g + 2 * s * w) * mask,
        "makes the weights larger": lambda w, g, mask, s, rate: w - rate * (g - 2 * s * w) * mask,
        "mind the brackets": lambda w, g, mask, s, rate: (w - rate * g - 2 * s * w) * mask,
        "Start from `weight`": lambda w, g, mask, s, rate: -rate * (g + 2 * s * w) * mask,
        "on paper": lambda w, g, mask, s, rate: w - rate * (g + s * w.square().sum()) * mask,
    }


def wrong_07_2() -> dict[str, Any]:
    """Sparsity."""

    def shares(weights):
        return [(weight == 0).float().mean().item() for weight in weights.values()]

    def whole(weights):
        return sum((weight == 0).sum() for weight in weights.values()) / sum(map(torch.numel, weights.values()))

    return {
        "the mean of the layers": lambda weights: sum(shares(weights)) / len(weights),
        "the share that is left": lambda weights: 1 - whole(weights),
        "0.9, not 90": lambda weights: 100 * whole(weights),
        "how many zeros": lambda weights: sum((weight == 0).sum() for weight in weights.values()),
        "one layer's alone": lambda weights: shares(weights)[0],
        "Return one number": shares,
        "divide by the number of all": lambda weights: sum(shares(weights)),
    }


def right_07_2() -> list[Any]:
    """Over all numbers at once, and rounded as in the question."""

    def whole(weights):
        return (torch.cat([weight.flatten() for weight in weights.values()]) == 0).double().mean()

    return [whole, lambda weights: round(whole(weights).item(), 3)]


def wrong_07_3() -> dict[str, Any]:
    """Leave one out."""
    return {
        "a dict is asked for": [30_177, 4_945, 24_065],
        "kilobytes or ratios": {"Prune": 30.2, "FineTune": 4.9, "Share": 24.1},
        "what each stage saves": {"Prune": 179_672, "FineTune": -52, "Share": 19_068},
        "left *out*": {"Prune": 24_065, "FineTune": 24_065, "Share": 4_997},
        "an earlier file": {"Prune": 203_737, "FineTune": 203_737, "Share": 203_737},
        "two stages left": {"Prune": 24_065, "FineTune": 407_413, "Share": 30_177},
        "at the right numbers": {"Prune": 24_065, "FineTune": 4_945, "Share": 30_177},
        "those of section 2": {"Prune": 46_000, "FineTune": 7_900, "Share": 42_500},
    }


def wrong_07_4() -> dict[str, Any]:
    """The order of two stages."""
    return {
        "other keys": {"last": 8, "first": 4334},
        "swapped": {"Share last": 4334, "Share first": 8},
        "Zero is counted": {"Share last": 9, "Share first": 4335},
        "number of bits": {"Share last": 3, "Share first": 4334},
        "each value once": {"Share last": 4273, "Share first": 4335},
        "Was `Prune`": {"Share last": 8, "Share first": 100_352},
        "the *last* stage": {"Share last": 8, "Share first": 8},
        "settings of the question": {"Share last": 16, "Share first": 4334},
    }


def wrong_07_5() -> dict[str, Any]:
    """Better than the search; the other network is small and good enough."""
    small = load_trained("mlp128")
    return {
        "a network is asked for": 4_697,
        "another network": load_packed(RESULTS / "deep_compression" / "lenet5_taught_1_0.kdz"),
        "hardly smaller": small,
        "share their values": prune(small, 0.95),
        "prune more of `fc1`": quantize_weights(prune(small, 0.8), 3, "per_tensor"),
        "let `fc2` keep": quantize_weights(prune(small, 0.96), 2, "per_tensor"),
        "trained after it": hiding(prune(small, 0.999), small),
    }
