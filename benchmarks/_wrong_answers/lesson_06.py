"""Wrong answers to the exercises of lesson 06."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from kd_lab.checkpoints import load_trained
from kd_lab.data import load_optical_digits
from kd_lab.networks import make_permanent
from kd_lab.penalties import match_parameters
from kd_lab.pruning import prune
from kd_lab.training import train


def hiding(network: nn.Module, answers: nn.Module) -> nn.Module:
    """Return a network that answers as another one does, in place of its own weights."""
    hidden = copy.deepcopy(network)
    hidden.forward = answers.forward
    return hidden


def wrong_06_1() -> dict[str, Any]:
    """A similarity map."""

    def products(features):
        return features.flatten(1) @ features.flatten(1).T

    def cosines(features):
        return products(F.normalize(features.flatten(1), dim=1))

    return {
        "not divided by their lengths": products,
        "the columns have length": lambda features: products(features) / products(features).norm(dim=0),
        "the whole map": lambda features: products(features) / products(features).norm(),
        "these are cosines": cosines,
        "each row adds up to 1": lambda features: products(features) / products(features).sum(1, keepdim=True),
        "this is a softmax": lambda features: products(features).softmax(dim=1),
        "these are distances": lambda features: torch.cdist(features.flatten(1), features.flatten(1)),
        "The map is (images, images)": lambda features: F.normalize(features.flatten(1).T @ features.flatten(1)),
        "stops with": lambda features: F.normalize(features @ features.t(), dim=1),
    }


def wrong_06_2() -> dict[str, Any]:
    """To each leaf its share."""

    def levels(right, join, turned=lambda turns: (1 - turns, turns)):
        shares, first = torch.ones(len(right), 1), 0
        while first < right.shape[1]:
            turns = right[:, first : first + shares.shape[1]]
            first += shares.shape[1]
            shares = join([shares * each for each in turned(turns)])
        return shares

    def beside(parts):
        return torch.stack(parts, dim=2).flatten(1)

    def two_levels(right):
        top, left, other = right.T[:3]
        return torch.stack([(1 - top) * (1 - left), (1 - top) * left, top * (1 - other), top * other], dim=1)

    return {
        "left and right are swapped": lambda right: levels(right, beside, lambda turns: (turns, 1 - turns)),
        "in another order": lambda right: levels(right, lambda parts: torch.cat(parts, dim=1)),
        "one leaf has all": lambda right: levels((right > 0.5).float(), beside),
        "a row adds up to": lambda right: levels(right, beside, lambda turns: (turns, turns)),
        "stops with": two_levels,
        "these are logarithms": lambda right: levels(right, beside).log(),
        "the order isn't": lambda right: levels(right, beside).flip(1),
        "use a loop": lambda right: two_levels(torch.cat([right, right, right], dim=1)),
    }


def wrong_06_3() -> dict[str, Any]:
    """The same answers from far away."""
    teacher = load_trained("lenet300")
    first, second = (torch.randperm(count, generator=torch.Generator().manual_seed(0)) for count in (300, 100))

    def shuffled(parts):
        model = copy.deepcopy(teacher)
        changes = {
            "fc1.weight": lambda weight: weight[first],
            "fc1.bias": lambda bias: bias[first],
            "fc1.columns": lambda weight: weight.flip(1),
            "fc2.columns": lambda weight: weight[:, first],
            "fc2.weight": lambda weight: weight[second],
            "fc2.bias": lambda bias: bias[second],
            "fc3.columns": lambda weight: weight[:, second],
        }
        for part in parts:
            layer, kind = part.split(".")
            tensor = getattr(model.get_submodule(layer), kind.replace("columns", "weight"))
            tensor.data = changes[part](tensor.data)
        return model

    one = ["fc1.weight", "fc1.bias", "fc2.columns"]
    scaled = copy.deepcopy(teacher)  # the same logits, and no unit moved
    for layer, factor in ((scaled.fc1, 2), (scaled.fc2, 4)):
        layer.weight.data *= 2
        layer.bias.data *= factor
    scaled.fc3.weight.data /= 4
    return {
        "no factors": scaled,
        "units of fc1 are where they were": copy.deepcopy(teacher),
        "units of fc2 are where they were": shuffled(one),
        "the bias of fc1": shuffled(["fc1.weight", "fc2.columns", "fc2.weight", "fc2.bias", "fc3.columns"]),
        "the rows of fc2.weight are not": hiding(shuffled(["fc1.weight", "fc1.bias"]), teacher),
        "the bias of fc2": shuffled([*one, "fc2.weight", "fc3.columns"]),
        "fc3 reads the units": shuffled([*one, "fc2.weight", "fc2.bias"]),
        "its columns are pixels": shuffled(["fc1.columns"]),
        "another network": load_trained("mlp128"),
        "a network is asked for": teacher.state_dict(),
    }


def right_06_3() -> list[Any]:
    """A network with all units of both layers in the opposite order."""
    model = copy.deepcopy(load_trained("lenet300"))
    for layer in (model.fc1, model.fc2):
        layer.weight.data, layer.bias.data = layer.weight.data.flip(0), layer.bias.data.flip(0)
    model.fc2.weight.data, model.fc3.weight.data = model.fc2.weight.data.flip(1), model.fc3.weight.data.flip(1)
    return [model]


def wrong_06_4() -> dict[str, Any]:
    """Pruned, held, and taught a new hand."""
    teacher, new_hand = load_trained("lenet300"), load_optical_digits()
    pruned = prune(teacher, 0.8)

    def taught(model, strength):
        settings = {"epochs": 5, "steps_per_epoch": 40, "batch_size": 50, "progress": False}
        penalty = match_parameters(teacher, strength)
        return train(
            model,
            new_hand.train,
            F.cross_entropy,
            penalty=penalty,
            validation=new_hand.validation,
            learning_rate=1e-3,
            **settings,
        )

    return {
        "prune first, then train": prune(taught(teacher, 0.001)[0], 0.8),
        "It has forgotten": taught(pruned, 0.0)[0],
        "takes them off": taught(make_permanent(pruned), 0.001)[0],
        "hasn't learned": hiding(pruned, taught(teacher, 0.001)[0]),
        "not 80 %": prune(teacher, 0.9),
        "a network and its history": taught(pruned, 0.001),
        "another network": prune(load_trained("mlp128"), 0.8),
    }


def wrong_06_5() -> dict[str, Any]:
    """When is a weak teacher worse than labels."""
    right = {500: [1.72, 1.84, 3.38], 2000: [2.02, 0.78, 0.82], 10000: [-1.44, -1.68, -1.78]}

    def changed(factor=1.0, plus=0.0):
        return {count: [factor * each + plus for each in points] for count, points in right.items()}

    return {
        "Times 100": changed(0.01),
        "taught minus on labels": changed(-1),
        "These are accuracies": changed(plus=88),
        "Does `seed` reach": {count: [points[0]] * 3 for count, points in right.items()},
        "3 numbers": {count: points[:2] for count, points in right.items()},
        "other keys": {2000: right[2000]},
        "the first images": changed(plus=3.0),
        "`data.train[:500]`": right | {500: [0.0, 0.2, 0.1]},
        "`data.train[:10000]`": right | {10000: [0.44, 0.68, 0.78]},
    }
