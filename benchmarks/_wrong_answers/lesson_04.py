"""Wrong answers to the exercises of lesson 04."""

from typing import Any

import torch
import torch.nn.functional as F

from kd_lab.checkpoints import load_trained
from kd_lab.data import load_mnist
from kd_lab.quantization import quantize_weights
from kd_lab.training import train


def wrong_04_1() -> dict[str, Any]:
    """A grid for each row."""

    def grid(weight, num_bits, rounding=torch.round, **largest):
        scale = weight.abs().amax(**largest, keepdim=True) / (2 ** (num_bits - 1) - 1)
        return rounding(weight / scale.clamp(min=1e-12)), scale

    def rows(weight, num_bits, rounding=torch.round):
        steps, scale = grid(weight, num_bits, rounding, dim=1)
        return steps * scale

    def scaled(weight, end):
        scale = (weight.abs().amax(dim=1, keepdim=True) / end).clamp(min=1e-12)
        return (weight / scale).round() * scale

    def divided(weight, num_bits):
        scale = weight.abs().amax(dim=1, keepdim=True) / (2 ** (num_bits - 1) - 1)
        return (weight / scale).round() * scale

    def signed(weight, num_bits):
        scale = weight.amax(dim=1, keepdim=True) / (2 ** (num_bits - 1) - 1)
        return (weight / scale).round() * scale

    def by_column(weight, num_bits):
        steps, scale = grid(weight, num_bits, dim=0)
        return steps * scale

    def whole(weight, num_bits):
        steps, scale = grid(weight, num_bits, dim=(0, 1))
        return steps * scale

    return {
        "one grid for the whole tensor": whole,
        "each column has a grid": by_column,
        "half of the integers are negative": lambda w, b: scaled(w, 2**b - 1),
        "the largest |w| becomes": lambda w, b: scaled(w, 2 ** (b - 1)),
        "may be a negative one": signed,
        "right for 3 bits only": lambda w, b: scaled(w, 3),
        "these are the integers q": lambda w, b: grid(w, b, dim=1)[0],
        "nearer to zero": lambda w, b: rows(w, b, torch.trunc),
        "the point below": lambda w, b: rows(w, b, torch.floor),
        "a row of zeros": divided,
        "stops with": lambda w, b: w / (w.abs().amax(dim=1) / 3),
    }


def wrong_04_2() -> dict[str, Any]:
    """Straight through."""

    def ends(num_bits):
        return -(2 ** (num_bits - 1)), 2 ** (num_bits - 1) - 1

    def hard(x, scale, num_bits):
        return (x / scale).round().clamp(*ends(num_bits)) * scale

    def clamped_first(x, scale, num_bits):
        return (x.clamp(*ends(num_bits)) / scale).round() * scale

    def no_clamp(x, scale, num_bits):
        return x + ((x / scale).round() * scale - x).detach()

    def symmetric(x, scale, num_bits):
        end = 2 ** (num_bits - 1) - 1
        return (x / scale).round().clamp(-end, end) * scale

    def from_the_middle(x, scale, num_bits):
        steps = x.clamp(scale * ends(num_bits)[0], scale * ends(num_bits)[1])
        return scale * steps + (hard(x, scale, num_bits) - scale * steps).detach()

    return {
        "the gradient is 0 everywhere": hard,
        "nothing reaches x": lambda x, s, b: hard(x, s, b).detach(),
        "1 beyond the ends": lambda x, s, b: x + (hard(x, s, b) - x).detach(),
        "nothing becomes the end": no_clamp,
        "the lowest integer is not used": symmetric,
        "clamp x / scale, not x": clamped_first,
        "these are the integers q": lambda x, s, b: hard(x, s, b) / s,
        "rounded to whole numbers": lambda x, s, b: x.round().clamp(*ends(b)),
        "is the scale": from_the_middle,
        "to the point below": lambda x, s, b: (x / s).floor().clamp(*ends(b)) * s,
        "nothing is rounded": lambda x, s, b: x + (hard(x, s, b) - hard(x, s, b)).detach(),
    }


def wrong_04_3() -> dict[str, Any]:
    """How few bits in all."""
    return {
        "a smaller sum passes": (4, 4),
        "weight bits come first": (3, 4),
        "That is too much": (3, 3),
        "2 numbers are asked for": 7,
        "whole numbers": (4.5, 3),
        "not a number in [2, 5]": (8, 8),
    }


def wrong_04_4() -> dict[str, Any]:
    """Calibrated on one image."""
    percents = [94.74, 94.14, 94.52, 94.54, 94.02, 94.54, 94.56, 94.52, 94.6, 94.2]
    return {
        "fractions": [each / 100 for each in percents],
        "Does `start` move": [94.28] * 10,
        "more bits": [98.4, 98.38, *[98.42] * 8],
        "to a list": percents[:9],
        "start 10 to 19": percents[::-1],
        "and 94.4 came": 94.4,
    }


def wrong_04_5() -> dict[str, Any]:
    """Four values for a whole layer."""
    data, dense = load_mnist(), load_trained("lenet300")
    settings = {"validation": data.validation[:1000], "epochs": 1, "batch_size": 128, "progress": False}
    longer, history = train(dense, data.train[:3000], F.cross_entropy, **settings)
    hidden = quantize_weights(longer, 2, "per_tensor")
    hidden.forward = dense.forward
    return {
        "as `train` gives it": hidden,
        "rounding alone": quantize_weights(longer, 2, "per_tensor"),
        "Four for each layer": quantize_weights(dense, 2),
        "not quantized": longer,
        "a network is asked for": (longer, history),
        "another network": quantize_weights(load_trained("mlp128"), 2, "per_tensor"),
    }
