"""Wrong answers to the exercises of lesson 02."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from kd_lab.checkpoints import load_trained
from kd_lab.data import load_mnist
from kd_lab.pruning import hard_prune, prune_channels
from kd_lab.training import train


def wrong_02_1() -> dict[str, Any]:
    """Removal by hand."""

    def soft(first, bias, second, keep):
        return first * keep[:, None], bias * keep, second * keep

    def shuffled(first, bias, second, keep):
        return first[keep], bias[keep], second[:, keep].flip(1)

    return {
        "zeros stay in the tensors": soft,
        "the units that *stay*": lambda f, b, s, keep: (f[~keep], b[~keep], s[:, ~keep]),
        "has a bias": lambda f, b, s, keep: (f[keep], b, s[:, keep]),
        "it loses columns": lambda f, b, s, keep: (f[keep], b[keep], s),
        "in the same order": shuffled,
        "Return the new": lambda f, b, s, keep: f[keep],
        "stops with": lambda f, b, s, keep: (f[keep], b[keep], s[keep]),
    }


def wrong_02_2() -> dict[str, Any]:
    """Columns behind a flatten."""
    return {
        "do not take turns": lambda keep, places: keep.repeat(places),
        "True keeps": lambda keep, places: ~keep.repeat_interleave(places),
        "channels × places": lambda keep, places: keep,
        "no numbers of columns": lambda keep, places: torch.arange(len(keep) * places),
        "all of its places": lambda keep, places: F.pad(keep, (0, len(keep) * (places - 1))),
        "c · places + p": lambda keep, places: keep.repeat_interleave(places).roll(1),
    }


def wrong_02_3() -> dict[str, Any]:
    """A step that keeps the zeros."""
    return {
        "Mask what the step gives": lambda w, g, mask, rate: w - rate * g,
        "goes *against*": lambda w, g, mask, rate: (w + rate * g) * mask,
        "Times the learning rate": lambda w, g, mask, rate: (w - g) * mask,
        "1 keeps, 0 prunes": lambda w, g, mask, rate: w - rate * g * (1 - mask),
        "not the value": lambda w, g, mask, rate: w - rate * g * (w != 0),
        "do not change": lambda w, g, mask, rate: w * mask,
        "Step from the old weight": lambda w, g, mask, rate: -rate * g * mask,
        "changes its argument in place": lambda w, g, mask, rate: w.sub_(rate * g * mask),
    }


def wrong_02_4() -> dict[str, Any]:
    """BatchNorm measured again."""

    def with_batch_norm(model, change):
        model = copy.deepcopy(model)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                change(module)
        return model

    def passed(model, images):
        model.train()
        with torch.no_grad():
            model(images)
        return model

    def forget(module):
        module.reset_running_stats()
        module.momentum = None

    def in_part(model, images):
        model = passed(copy.deepcopy(model), images)
        model.training = False  # its layers are in training mode still
        return model

    def one_step(model, images):
        labels = torch.zeros(len(images), dtype=torch.long)
        batch = (images, labels)
        return train(model, batch, F.cross_entropy, validation=batch, epochs=1, progress=False)[0].eval()

    return {
        "Work on a copy": lambda model, images: passed(model, images).eval(),
        "end with `.eval()`": in_part,
        "your function is given": lambda model, images: passed(
            with_batch_norm(model, forget), load_mnist().validation.images[:500]
        ).eval(),
        "moves them by a tenth": lambda model, images: passed(copy.deepcopy(model), images).eval(),
        "when images pass in training mode": lambda model, images: copy.deepcopy(model),
        "no image has passed": lambda model, images: with_batch_norm(model, nn.BatchNorm2d.reset_running_stats),
        "No training": one_step,
        "Return the copy": lambda model, images: passed(copy.deepcopy(model), images)(images),
    }


def wrong_02_5() -> dict[str, Any]:
    """A tenth of the work."""
    cnn, data = load_trained("cnn"), load_mnist()
    narrow = prune_channels(cnn, 0.72)
    settings = {"validation": data.validation[:1000], "epochs": 1, "batch_size": 64, "progress": False}
    briefly, _ = train(hard_prune(narrow), data.train[:3000], F.cross_entropy, **settings)
    return {
        "masked ones are multiplied": narrow,
        "is not fine-tuned": hard_prune(narrow),
        "raise the ratios": hard_prune(prune_channels(cnn, 0.5)),
        "Nothing is removed": cnn,
        "this is not `cnn`": load_trained("mlp128"),
        "bring more back": briefly,
        "The trained network itself": (briefly, "history"),
    }
