"""Wrong answers to the exercises of lesson 03."""

from typing import Any

import torch


def damped(hessian: torch.Tensor) -> torch.Tensor:
    """Return the Hessian as the kit uses it."""
    return hessian + 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=hessian.dtype)


def wrong_03_1() -> dict[str, Any]:
    """What a removal costs."""

    def inverse(hessian):
        return torch.linalg.inv(hessian).diagonal()

    return {
        "invert first": lambda w, h: w**2 * h.diagonal(),
        "of the *inverse*": lambda w, h: w**2 / h.diagonal(),
        "of the inverse divides": lambda w, h: w**2 * inverse(h),
        "a cost is never negative": lambda w, h: w / inverse(h),
        "The weight is squared.": lambda w, h: w.abs() / inverse(h),
        "by way of H": lambda w, h: w**2,
        "No other factor": lambda w, h: w**2 / inverse(h) / 2,
        "as it is given": lambda w, h: w**2 / inverse(damped(h)),
        "One cost for each": lambda w, h: w**2 / torch.linalg.inv(h),
        "entry by entry": lambda w, h: torch.linalg.inv(h) @ w**2,
    }


def wrong_03_2() -> dict[str, Any]:
    """The weights that stay, refitted."""

    def filled(weight, keep, values):
        result = torch.zeros_like(weight)
        result[keep] = values
        return result

    def surgeon(weight, keep, hessian):  # for one removal at a time, with an inverse that is never updated
        inverse = torch.linalg.inv(hessian)
        for gone in (~keep).nonzero().flatten():
            weight = weight - weight[gone] / inverse[gone, gone] * inverse[:, gone]
        return weight * keep

    def whole(weight, keep, hessian):
        return torch.linalg.solve(hessian, (hessian @ weight) * keep)

    def solved(weight, keep, hessian, right):
        return filled(weight, keep, torch.linalg.solve(hessian[keep][:, keep], right[keep]))

    return {
        "Use H as it is given": lambda w, keep, h: solved(w, keep, damped(h), damped(h) @ w),
        "Add them": lambda w, keep, h: solved(w, keep, h, h @ (w * ~keep)),
        "multiply by the whole H": lambda w, keep, h: w * keep,
        "not w_K": lambda w, keep, h: solved(w, keep, h, w),
        "K: `keep` is True": lambda w, keep, h: solved(w, ~keep, h, h @ w),
        "in their places": lambda w, keep, h: torch.linalg.solve(h[keep][:, keep], (h @ w)[keep]),
        "can be had": surgeon,
        "Zero where `keep` is False": whole,
        "stops with": lambda w, keep, h: filled(w, keep, torch.linalg.solve(h[keep], (h @ w)[keep])),
    }


def wrong_03_3() -> dict[str, Any]:
    """Images to fit on."""
    right = {"hundreds": [0.56, 0.44, 0.52], "noise": 34.5}
    return {
        "has lost more than 0": right | {"hundreds": [-0.56, -0.44, -0.52]},
        "Times 100": right | {"hundreds": [0.0056, 0.0044, 0.0052]},
        "does `start` move": right | {"hundreds": [0.56] * 3},
        "costs far more": right | {"noise": 2.1},
        "by magnitude, loses": right | {"hundreds": [44.0, 44.1, 44.2]},
        "images 0 to 99": right | {"hundreds": [0.76, 0.64, 0.72]},
        "Return {": [0.56, 0.44, 0.52, 34.5],
    }


def wrong_03_4() -> dict[str, Any]:
    """What training leaves of the advantage."""
    return {
        "least squares comes first": {"before": -67.5, "after": -47.4},
        "Times 100": {"before": 0.675, "after": 0.474},
        "did you swap": {"before": 47.4, "after": 67.5},
        "the lead is": {"before": 61.5, "after": 46.9},
        "of *every* layer": {"before": 43.6, "after": 9.2},
        "compare these": {"before": 67.5, "after": 67.5},
        "more training": {"before": 67.5, "after": 2.1},
        "less training": {"before": 67.5, "after": 65.7},
        "Return {": {"least squares": 97.3, "magnitude": 49.9},
    }


def wrong_03_5() -> dict[str, Any]:
    """A ticket of another seed."""
    return {
        "not to the trained ones": {"whole": 0.283, "ticket": 0.195, "control": 0.36},
        "control from seed 6": {"whole": 0.283, "ticket": 0.254, "control": 0.254},
        "did you swap the two": {"whole": 0.283, "ticket": 0.36, "control": 0.254},
        "is behind the control": {"whole": 0.36, "ticket": 0.254, "control": 0.283},
        "not accuracies": {"whole": 0.92, "ticket": 0.93, "control": 0.9},
        "of a later epoch": {"whole": 0.249, "ticket": 0.244, "control": 0.302},
        "of the first epoch": {"whole": 0.346, "ticket": 0.302, "control": 0.447},
        "Is it seed 1": {"whole": 0.290, "ticket": 0.257, "control": 0.352},
        "each layer by itself": {"whole": 0.283, "ticket": 0.242, "control": 0.329},
        "54 % of `fc3`": {"whole": 0.283, "ticket": 0.277, "control": 0.375},
        "with the ticket's mask": {"whole": 0.283, "ticket": 0.254, "control": 0.295},
        "Return {": {"dense": 0.283, "ticket": 0.254, "control": 0.36},
    }
