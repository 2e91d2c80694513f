"""Measure what moved images alone bring, and what a teacher brings beside them, for the benchmark `frontier`.

`lenet300` and `lenet5` learn from initial weights, from labels alone, with the images and the batches of the recipes of
deep compression. Hinton's student learns from all 60,000 images, as in the benchmark `hinton`, each moved by up to two
pixels, once from labels and once from the kept teacher, which sees the same moved image. All take fifty epochs. A soft
tree is taught by `cnn` on nine moves, where the benchmark `hinton` has five, and answers by a single leaf.
"""

import time

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor, nn

from benchmarks import _trees, read
from benchmarks._campaign import Campaign, answers
from benchmarks.deep_compression import SETTINGS, moved
from benchmarks.hinton import ALPHA, JITTER, STUDENT_WIDTH, TEMPERATURE, Jitter, everything, kept_teacher, load_teacher
from benchmarks.hinton import network as hinton_network
from kd_lab import checkpoints
from kd_lab.data import Mnist
from kd_lab.distillation import DistillationLoss, SingleLeaf
from kd_lab.networks.zoo import build_model
from kd_lab.results import PerSeed, Record, load_results
from kd_lab.training import train

NAME, PART = "frontier", "controls"
TAUGHT, TREE = "distilled", "tree"


def training_of(name: str) -> dict:
    """Return the settings of a network of the kit: its own recipe, in batches as large as those of compression."""
    batches = {key: SETTINGS[key] for key in ("batch_size", "steps_per_epoch")}
    return {**checkpoints.RECIPES[name], **batches, "epochs": EPOCHS}


EPOCHS = 50
STUDENT_TRAINING = {"epochs": EPOCHS, "learning_rate": 3e-3, "batch_size": 256}
TRAINING = {  # in the order in which they are measured
    "student": STUDENT_TRAINING,
    "lenet300": training_of("lenet300"),
    "lenet5": training_of("lenet5"),
    TAUGHT: STUDENT_TRAINING,
    TREE: {**_trees.SETTINGS, "epochs": 16},
}
BEFORE = {  # where the test errors of the same networks on images as they are stand, of the tree on fewer moves
    "lenet300": ("deep_compression", "lenet300_taught", "dense"),
    "lenet5": ("deep_compression", "lenet5_taught", "dense"),
    "student": ("hinton", "students", "hard"),
    TAUGHT: ("hinton", "students", "distilled"),
    TREE: ("hinton", "trees", "distilled_single_leaf"),
}
FIGURES = {
    "lenet300": "lenet300.moved_errors",
    "lenet5": "lenet5.moved_errors",
    "student": "hinton.moved_errors",
    TAUGHT: "hinton.distilled_errors",
    TREE: "tree.distilled_accuracy",
}


class BothAnswers(nn.Module):
    """Give the logits of a student and of its frozen teacher (N, 20) for the same image, moved while training."""

    def __init__(self, student: nn.Module, teacher: nn.Module, reach: int):
        super().__init__()
        self.jitter, self.student, self.teacher = Jitter(reach), student, teacher.requires_grad_(False)

    def train(self, mode: bool = True) -> "BothAnswers":
        """Set the mode of all but the teacher, which stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        x = self.jitter(x)
        return torch.cat([self.student(x), self.teacher(x)], dim=1)


def taught_loss(both: Tensor, labels: Tensor) -> Tensor:
    """Return the loss of distillation of `BothAnswers`."""
    student, teacher = both.chunk(2, dim=1)
    return DistillationLoss(TEMPERATURE, ALPHA)(student, labels, teacher)


def measure_controls(running: Campaign) -> None:
    """Record for each control its recipe, and for each seed its errors and the test images read wrongly.

    What was recorded by the same recipe isn't run again. Without the teacher nothing is distilled: its file is named.
    """
    for name in missing():
        if name == TAUGHT and not kept_teacher().exists():
            print(f"{name}: left out, since {kept_teacher()} isn't there: python -m benchmarks hinton --rerun makes it")
            continue
        found = running.seeds(f"{PART}_{name}", control, name=name, settings=TRAINING[name])
        running.keep(PART, recorded_controls() | {name: {"recipe": TRAINING[name], "seeds": found}})


def missing() -> list[str]:
    """Return the controls that weren't recorded, or by another recipe."""
    kept = recorded_controls()
    return [name for name, recipe in TRAINING.items() if kept.get(name, {}).get("recipe") != recipe]


def recorded_controls() -> dict:
    """Return what was recorded of the controls so far."""
    return read(NAME).get(PART, {})


def control(name: str, settings: dict, seed: int, data: Mnist) -> dict:
    """Train one network, and return its errors, the test images read wrongly and the minutes of the worker's core."""
    start = time.process_time()
    model = trained(name, settings, seed, data)
    minutes = round((time.process_time() - start) / 60, 2)
    return {**answers(model, data), "cpu_minutes": minutes}


def trained(name: str, settings: dict, seed: int, data: Mnist) -> nn.Module:
    """Return a network that learned from moved images, of the tree its single leaf.

    The validation images of Hinton's student are among those that it learns.
    """
    if name == TREE:
        images, validation = moved(data).train.images, data.validation.images
        return SingleLeaf(_trees.grow(seed, _trees.taught(images), _trees.taught(validation), settings))
    rest = {"validation": data.validation, "seed": seed, "progress": False, **settings}
    if name not in ("student", TAUGHT):
        return train(build_model(name, seed), moved(data).train, F.cross_entropy, **rest)[0]
    student, images = hinton_network(seed, STUDENT_WIDTH), everything(data)
    if name == TAUGHT:
        return train(BothAnswers(student, load_teacher(), JITTER), images, taught_loss, **rest)[0].student
    return train(nn.Sequential(Jitter(JITTER), student), images, F.cross_entropy, **rest)[0]


def score_controls(recorded: Record) -> dict[str, float]:
    """Print and return the test errors of the controls that were measured, beside those without moved images."""
    names, rows = [name for name in TRAINING if name in recorded.get(PART, {})], []
    figures: dict[str, float] = {}
    for name in names:
        errors, before = recorded.errors(PART, name), before_moves(name)
        minutes = recorded.figures(PART, name, "cpu_minutes").high
        rows.append([name, errors.mean, errors.low, errors.high, before.mean, f"{before - errors:+.2f}", minutes])
        figures |= named(FIGURES[name], 100 - errors.mean if name == TREE else counted(recorded, name).mean, errors)
    headers = ["on moved images, test error, %", "mean", "lowest", "highest", "before", "gained (95 %)", "CPU-minutes"]
    print(tabulate(rows, headers, floatfmt=".2f"))
    return figures


def before_moves(name: str) -> PerSeed:
    """Return the test errors that a control is to be compared with: of the same network, taught in the same way."""
    record, *keys = BEFORE[name]
    return load_results(record).errors(*keys)


def counted(recorded: Record, name: str) -> PerSeed:
    """Return how many test images the network of each seed reads wrongly."""
    return PerSeed([len(wrong) for wrong in recorded.runs(PART, name, "wrong")])


def named(figure: str, value: float, errors: PerSeed) -> dict[str, float]:
    """Return the figure, the error in percent, and of how many seeds they are the means."""
    name = f"{NAME}.{figure}"
    return {name: value, f"{name}.error": errors.mean, f"{name}.seeds": len(errors.values)}
