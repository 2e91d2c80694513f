"""Train soft trees on labels and on a teacher's answers over five seeds, for the benchmark of distillation.

Settings were chosen on the validation part; the test part is read once for each tree reported.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks._campaign import Campaign, answers
from kd_lab.checkpoints import load_trained
from kd_lab.data import Mnist
from kd_lab.distillation import SingleLeaf, SoftTree, balance_penalty, soft_targets
from kd_lab.networks.predictions import predict
from kd_lab.training import Data, train

SETTINGS = {"learning_rate": 2e-2, "weight_decay": 0.1, "batch_size": 512}
RECIPE = {
    "depth": 8,
    "balance": 0.1,
    "balance_images": 128,
    "teacher": "cnn",
    "temperature": 2,
    "settings": SETTINGS,
    "epochs": {"labels": 16, "moved": 8, "distilled": 8},
}
MOVES = [(0, 0), (0, 1), (0, -1), (1, 0), (-1, 0)]  # pixels down and right


def tree_campaign(running: Campaign) -> dict:
    """Return for each seed the test answers of every tree, of the mixture of its leaves and of the single leaf.

    The trees are "labels", "distilled" on five times as many images, moved by a pixel and answered by the teacher, and
    "moved", on these images with their labels: what the images alone bring.
    """
    return {"recipe": RECIPE, "seeds": running.seeds("trees", tree_seed)}


def tree_seed(seed: int, data: Mnist) -> dict[str, dict]:
    """Return the answers of the trees of one seed."""
    found = {}
    for name, (training, validation) in transfer_sets(data).items():
        tree = grow(seed, training, validation, {**SETTINGS, "epochs": RECIPE["epochs"][name]})
        found |= {f"{name}_mixture": answers(tree, data), f"{name}_single_leaf": answers(SingleLeaf(tree), data)}
        print(f"tree on {name}, seed {seed}: {found[f'{name}_single_leaf']['validation_error']} %", flush=True)
    return found


def grow(seed: int, training: Data, validation: Data, settings: dict[str, Any]) -> nn.Module:
    """Return a soft tree that was trained on labels, or on probabilities."""
    images, _ = training
    some = images[: RECIPE["balance_images"]]
    return train(
        SoftTree(RECIPE["depth"], seed),
        training,
        F.cross_entropy,
        validation=validation,
        seed=seed,
        penalty=lambda tree: RECIPE["balance"] * balance_penalty(tree, some),
        progress=False,
        **settings,
    )[0]


@cache  # in each process, since it takes a minute
def transfer_sets(data: Mnist) -> dict[str, tuple[Data, Data]]:
    """Return for each kind of tree the training and the validation images with what it learns of them.

    What a move pushes over the edge comes in on the other side, but ink hardly ever is there.
    """
    moved = torch.cat([data.train.images.roll(move, dims=(2, 3)) for move in MOVES])
    return {
        "labels": (data.train, data.validation),
        "distilled": (taught(moved), taught(data.validation.images)),
        "moved": ((moved, data.train.labels.repeat(len(MOVES))), data.validation),
    }


def taught(images: Tensor) -> Data:
    """Return images with what the teacher answers."""
    return images, soft_targets(predict(load_trained(RECIPE["teacher"]), images), RECIPE["temperature"])
