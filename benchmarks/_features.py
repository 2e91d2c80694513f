"""Does it help to teach a student by layers and parameters, too? Five seeds, each with other training images.

Settings were chosen on the validation part with seeds 0 to 2 and 500 images; the test part is read once for each
network reported.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks._campaign import Campaign, scores
from kd_lab.checkpoints import load_trained
from kd_lab.data import Mnist, Split, load_optical_digits
from kd_lab.distillation import distil, distil_features, train_on_hints
from kd_lab.networks.zoo import build_model
from kd_lab.penalties import match_parameters
from kd_lab.pruning import prune
from kd_lab.training import train

WATCHED = 1000  # validation images to choose the epoch by
STEPS = {"epochs": 8, "batch_size": 50, "progress": False}


def layers(student: str, teacher: str, **settings: object) -> dict:
    """Return which layer of the student learns from which of the teacher, and how."""
    return {"student_layer": student, "teacher_layer": teacher, **settings}


PAIRS = {  # the fewer images, the hotter
    "thin_mlp": {
        "teacher": "lenet300",
        "temperatures": {"500": 20.0, "2000": 8.0, "10000": 4.0},
        "steps_per_epoch": {"500": 40, "2000": 80, "10000": 200},
        "settings": {**STEPS, "learning_rate": 5e-3},
        "ways": {
            "hint relu1": layers("relu1", "relu1", weight=1.0),
            "hint relu2": layers("relu2", "relu2", weight=1.0),
            "similarity relu1": layers("relu1", "relu1", kind="similarity", weight=3000.0),
            "similarity relu2": layers("relu2", "relu2", kind="similarity", weight=3000.0),
            "two stages relu1": layers("relu1", "relu1"),
            "two stages relu2": layers("relu2", "relu2"),
        },
    },
    "thin_cnn": {
        "teacher": "cnn",
        "temperatures": {"500": 20.0},
        "steps_per_epoch": {"500": 60},
        "settings": {**STEPS, "learning_rate": 2e-2},
        "ways": {
            "hint relu2": layers("relu2", "relu2", weight=1.0),
            "attention relu2": layers("relu2", "relu2", kind="attention", weight=3.0),
            "similarity relu1": layers("relu1", "relu1", kind="similarity", weight=1000.0),
            "similarity relu2": layers("relu2", "relu2", kind="similarity", weight=1000.0),
            "similarity relu3": layers("relu2", "relu3", kind="similarity", weight=1000.0),
            "two stages relu2": layers("relu2", "relu2"),
        },
    },
}
ITSELF = {
    "few": {**STEPS, "steps_per_epoch": 40, "learning_rate": 3e-3},
    "all": {"epochs": 6, "batch_size": 128, "learning_rate": 3e-3, "weight_decay": 0.2, "progress": False},
}
PRUNED = {**STEPS, "steps_per_epoch": 40, "learning_rate": 1e-3}
NEW_HAND = {**STEPS, "epochs": 5, "steps_per_epoch": 40}
SPARSITY, STRENGTHS = 0.95, (0.0, 1e-4, 1e-3, 1e-2)
TRADES = [(1e-3, strength) for strength in (0.0, 1e-4, 3e-4, 1e-3, 3e-3)] + [(rate, 0.0) for rate in (1e-4, 2e-4, 3e-4)]


def thin_mlp() -> nn.Module:
    """Build 784-30-30-10: a tenth of lenet300, with its names."""
    layers = nn.Flatten(), nn.Linear(784, 30), nn.ReLU(), nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 10)
    return _named(layers, ("flatten", "fc1", "relu1", "fc2", "relu2", "fc3"))


def thin_cnn() -> nn.Module:
    """Build a quarter of cnn's channels and none of its 128 units; up to relu2 it has cnn's sizes and names."""
    first = nn.Conv2d(1, 4, 3, padding=1), nn.MaxPool2d(2), nn.ReLU()
    second = nn.Conv2d(4, 8, 3, padding=1), nn.MaxPool2d(2), nn.ReLU()
    names = ("conv1", "pool1", "relu1", "conv2", "pool2", "relu2", "flatten", "fc1")
    return _named((*first, *second, nn.Flatten(), nn.Linear(8 * 7 * 7, 10)), names)


def _named(layers: Sequence[nn.Module], names: Sequence[str]) -> nn.Sequential:
    return nn.Sequential(OrderedDict(zip(names, layers, strict=True)))


def _seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


STUDENTS = {"thin_mlp": partial(_seeded, thin_mlp), "thin_cnn": partial(_seeded, thin_cnn)}


def features_campaign(running: Campaign) -> dict:
    """Return the settings and, for each seed, the errors of every way to teach."""
    return {
        "pairs": PAIRS,
        "itself": ITSELF,
        "pruned": {"sparsity": SPARSITY, **PRUNED},
        "new_hand": NEW_HAND,
        "watched": WATCHED,
        "seeds": running.seeds("insides", features_seed),
    }


def features_seed(seed: int, data: Mnist) -> dict:
    """Return what one seed comes to in every part."""
    return {
        **{
            name: {count: teach(name, seed, int(count), data) for count in pair["temperatures"]}
            for name, pair in PAIRS.items()
        },
        "itself": {"500": itself_few(seed, data), "55000": itself_all(seed, data)},
        "pruned": pruned(seed, data),
        "new_hand": new_hand(seed, data),
    }


def few(seed: int, count: int, data: Mnist) -> Split:
    """Return the training images of a seed; no two seeds share one."""
    return data.train[seed * count : (seed + 1) * count]


def teach(name: str, seed: int, count: int, data: Mnist) -> dict[str, dict]:
    """Return how well a thin student reads that learned from labels, from answers, and from features of each kind."""
    pair, images = PAIRS[name], few(seed, count, data)
    student, teacher = STUDENTS[name](seed), load_trained(pair["teacher"])
    settings = {
        **pair["settings"],
        "steps_per_epoch": pair["steps_per_epoch"][str(count)],
        "seed": seed,
        "validation": data.validation[:WATCHED],
    }
    asked = {"temperature": pair["temperatures"][str(count)]}
    answered = partial(distil, teacher=teacher, data=images, **asked, **settings)
    models = {
        "labels": train(student, images, F.cross_entropy, **settings)[0],
        "answers": answered(student)[0],
        "answers, twice as long": answered(student, epochs=2 * settings["epochs"])[0],
    }  # two stages are as long
    for way, layers in pair["ways"].items():
        if way.startswith("two stages"):
            models[way], _ = answered(train_on_hints(student, teacher, images, **layers, **settings)[0])
        else:
            models[way], _ = distil_features(student, teacher, images, **asked, **layers, **settings)
    found = {way: scores(model, data) for way, model in models.items()}
    print(name, count, seed, {way: each["validation_error"] for way, each in found.items()}, flush=True)
    return found


def itself_few(seed: int, data: Mnist) -> dict[str, dict]:
    """Return how well mlp128 reads after 500 images: by labels, taught by one that saw as many, by one that saw all."""
    images, settings = few(seed, 500, data), {**ITSELF["few"], "validation": data.validation[:WATCHED], "seed": seed}
    student = build_model("mlp128", seed + 1)  # seed 0 is where the trained one began
    own, _ = train(build_model("mlp128", seed + 11), images, F.cross_entropy, **settings)
    models = {
        "labels": train(student, images, F.cross_entropy, **settings)[0],
        "teacher": own,
        "taught by its like": distil(student, own, images, **settings)[0],
        "taught by one that saw all": distil(student, load_trained("mlp128"), images, **settings)[0],
    }
    return {way: scores(model, data) for way, model in models.items()}


def itself_all(seed: int, data: Mnist) -> dict[str, dict]:
    """Return how well mlp128 reads after all images, by labels and taught by a trained mlp128."""
    settings = {**ITSELF["all"], "validation": data.validation, "seed": seed}
    student, teacher = build_model("mlp128", seed + 1), load_trained("mlp128")
    models = {
        "labels": train(student, data.train, F.cross_entropy, **settings)[0],
        "teacher": teacher,
        "taught by its like": distil(student, teacher, data.train, **settings)[0],
    }
    return {way: scores(model, data) for way, model in models.items()}


def pruned(seed: int, data: Mnist) -> dict[str, dict]:
    """Return how well a pruned lenet300 reads when 500 images fine-tune it, held near the unpruned one or not."""
    teacher = load_trained("lenet300")
    models = {
        str(strength): _held(
            prune(teacher, SPARSITY),
            teacher,
            strength,
            few(seed, 500, data),
            {**PRUNED, "validation": data.validation[:WATCHED], "seed": seed},
        )
        for strength in STRENGTHS
    }
    return {strength: scores(model, data) for strength, model in models.items()}


def new_hand(seed: int, data: Mnist) -> list[dict]:
    """Return what lenet300 still reads of MNIST when it learns other hands, held where it was or learning slower."""
    teacher, hand, found = load_trained("lenet300"), load_optical_digits(), []
    for rate, strength in TRADES:
        model = _held(
            teacher,
            teacher,
            strength,
            hand.train,
            {**NEW_HAND, "learning_rate": rate, "validation": hand.validation, "seed": seed},
        )
        found.append(
            {
                "learning_rate": rate,
                "strength": strength,
                **scores(model, data),
                **{f"new_{part}": percent for part, percent in scores(model, hand).items()},
            }
        )
    return found


def _held(student: nn.Module, teacher: nn.Module, strength: float, images: Split, settings: dict) -> nn.Module:
    return train(student, images, F.cross_entropy, penalty=match_parameters(teacher, strength), **settings)[0]
