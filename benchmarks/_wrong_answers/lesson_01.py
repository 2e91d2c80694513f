"""Wrong answers to the exercises of lesson 01."""

from typing import Any

import torch


def wrong_01_1() -> dict[str, Any]:
    """Importance."""
    return {
        "w·g keeps its sign": lambda weight, gradient: weight * gradient,
        "this is |w|·g": lambda weight, gradient: weight.abs() * gradient,
        "this is |w|, the magnitude": lambda weight, gradient: weight.abs(),
        "this is |g|": lambda weight, gradient: gradient.abs(),
        "don't sum": lambda weight, gradient: (weight * gradient).abs().sum(),
        "another order": lambda weight, gradient: weight.abs() + gradient.abs(),
        "Don't square": lambda weight, gradient: (weight * gradient) ** 2,
    }


def wrong_01_2() -> dict[str, Any]:
    """A mask."""

    def threshold(weight, sparsity):
        return weight.abs().flatten().sort().values[round(sparsity * weight.numel())]

    def by_row(weight, sparsity):
        count = round(sparsity * weight.shape[-1])
        return weight.abs() >= weight.abs().sort(dim=-1).values[..., count : count + 1]

    def in_place(weight, sparsity):
        weight[weight.abs() < threshold(weight, sparsity)] = 0
        return weight != 0

    def prints(weight, sparsity):
        print(weight.abs() >= threshold(weight, sparsity))

    return {
        "the smallest weights are kept": lambda w, s: w.abs() < threshold(w, s),
        "fraction that goes": lambda w, s: w.abs() >= threshold(w, 1 - s),
        "only zeros and ones": lambda w, s: w * (w.abs() >= threshold(w, s)),
        "large negative weights go": lambda w, s: w >= w.flatten().sort().values[round(s * w.numel())],
        "not one for each row": by_row,
        "Does your threshold itself stay?": lambda w, s: w.abs() > threshold(w, s),
        "in its shape": lambda w, s: (w.abs() >= threshold(w, s)).flatten(),
        "changes its argument in place": in_place,
        "returns nothing": prints,
        "not 19": lambda w, s: w.abs() >= w.abs().flatten().sort().values[int(s * w.numel())],
        "not 40": lambda w, s: w.abs() >= torch.quantile(w.abs(), s),
        "stops with": lambda w, s: w.abs() >= torch.quantile(w.abs(), 100 * s),
    }


def wrong_01_3() -> dict[str, Any]:
    """Chance against magnitude."""
    return {
        "a fraction": 38,
        "Did you look for where `magnitude` falls": 0.9,
        "try a smaller": 0.48,
        "try a larger": 0.25,
    }


def wrong_01_4() -> dict[str, Any]:
    """How many weights can go."""
    return {
        "a fraction": 64,
        "asks for the bad end": 0.7,
        "more than a point": 0.8,
        "the largest sparsity that passes": 0.5,
    }


def wrong_01_5() -> dict[str, Any]:
    """A hundred images for a gradient."""
    hundreds = [-11.0, -20.3, -0.74, -7.68, -5.58, -7.88, -14.1, -13.7, -8.2, 0.3]
    thousands = [2.74, -1.26, -1.58, -4.58, -3.12, -10.32, -5.88, 2.9, -6.44]

    def scaled(factor):
        return {"hundreds": [factor * each for each in hundreds], "thousands": [factor * each for each in thousands]}

    return {
        "Return {": {"hundreds": hundreds},
        "a dict is asked for": (hundreds, thousands),
        "in the order of `start`": {"hundreds": sorted(hundreds), "thousands": thousands},
        "nine numbers": {"hundreds": hundreds, "thousands": [0.0, *thousands]},
        "are fractions": scaled(0.01),
        "comes first": scaled(-1),
        "Does `start` move": {"hundreds": [-11.0] * 10, "thousands": [2.74] * 9},
        "Is the reference": {"hundreds": [each - 8 for each in hundreds], "thousands": thousands},
    }
