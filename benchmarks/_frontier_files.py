"""Make and score the files of the frontier: any network, `lenet300` and `lenet5`, each in the fewest bytes.

For each target the files of one recipe are chosen by their validation errors alone: the smallest whose mean is at most
the target or, where none is, those of the smallest mean. They are kept in results/frontier/, packed compactly, and
scored again by loading each and letting it read the test part.
"""

import base64
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from tabulate import tabulate
from torch import nn

from benchmarks import read
from benchmarks._campaign import SEEDS, Campaign, error, scores
from benchmarks.deep_compression import RATES, SETTINGS, TEACHERS, by_layer, moved
from kd_lab.checkpoints import load_trained
from kd_lab.compression import FineTune, Grid, Prune, PruneUnits, compress
from kd_lab.compression.records import enter_record
from kd_lab.compression.stages import Stage
from kd_lab.cost import count_parameters
from kd_lab.data import Mnist
from kd_lab.distillation import DistillationLoss, with_answers
from kd_lab.errors import ParameterError, reason
from kd_lab.formats.kdz import FLOAT32_BYTES, load_packed, pack
from kd_lab.networks.zoo import build_model, small_convolutions
from kd_lab.quantization import fold_batch_norm
from kd_lab.results import RESULTS, PerSeed, Record
from kd_lab.storage import write_safely
from kd_lab.training import train

NAME, PART = "frontier", "files"
OPEN, OPEN_TEACHER = "open", "resnet"
START = {"batch_size": 128, "steps_per_epoch": 430, "learning_rate": 1e-2}  # before a small network is rounded
TARGETS = {  # test error, %
    OPEN: {"2_0": 2.0, "1_0": 1.0},
    "lenet300": {"1_90": 1.90},
    "lenet5": {"1_00": 1.00},
}
TRIALS = {OPEN: 17, "lenet5": 1, "lenet300": 1}  # settings tried on one seed, by their validation errors
COMMAND = "python -m benchmarks frontier --rerun"


@dataclass(frozen=True)
class Recipe:
    """How the file of a class is made: the stages, and for any network the channels and units that it begins with."""

    group: str
    stages: tuple[Stage, ...]
    widths: tuple[int, ...] = ()
    epochs: int = 0  # of the start

    def start(self, seed: int, data: Mnist) -> nn.Module:
        """Return the trained network that the stages begin with."""
        if self.group != OPEN:
            return load_trained(self.group, seed)
        training, validation = (with_answers(load_trained(OPEN_TEACHER), part) for part in data[:2])
        loss = DistillationLoss(SETTINGS["temperature"], SETTINGS["alpha"])
        settings = {"validation": validation, "epochs": self.epochs, "seed": seed, "progress": False, **START}
        return fold_batch_norm(train(small_convolutions(self.widths, seed), training, loss, **settings)[0])

    def compressed(self, seed: int, data: Mnist) -> nn.Module:
        """Return the network behind the last stage, taught on moved images unless it is too small to learn by heart."""
        teacher = load_trained(TEACHERS.get(self.group, OPEN_TEACHER))
        images = data if self.group == OPEN else moved(data)
        settings = {**SETTINGS, "learning_rate": RATES.get(self.group, 3e-3), "seed": seed, "progress": False}
        return compress(self.start(seed, data), teacher, images, list(self.stages), **settings).model


def lenet5_stages(sparsity: float) -> tuple[Stage, ...]:
    """Return the stages of `lenet5`, with fewer channels and units left than those of deep compression leave."""
    units = PruneUnits({"conv1": 0.75, "conv2": 0.8, "fc1": 0.95}, 12)
    return units, Prune(sparsity, 8, 8), FineTune(30), Grid(by_layer(4, 3, 3, 4), 30)


def lenet300_stages(sparsity: float) -> tuple[Stage, ...]:
    """Return the stages of `lenet300`, with fewer weights left than those of deep compression leave."""
    return PruneUnits(0.5, 8), Prune(sparsity, 12, 8), FineTune(60), Grid(by_layer(2, 3, 4), 30)


RECIPES = {
    "open_4_6_9": Recipe(OPEN, (Grid({"conv1": 4, "conv2": 3, "conv3": 3, "fc1": 3}, 30),), (4, 6, 9), 30),
    "open_4_8_10": Recipe(OPEN, (Grid({"conv1": 4, "conv2": 3, "conv3": 3, "fc1": 3}, 30),), (4, 8, 10), 30),
    "lenet5_82": Recipe("lenet5", lenet5_stages(0.82)),
    "lenet300_98": Recipe("lenet300", lenet300_stages(0.98)),
}


def make_files(running: Campaign) -> None:
    """Make the files of each recipe that isn't recorded, or was another; record it as soon as its seeds are done."""
    for name in missing():
        found = running.seeds(f"{PART}_{name}", make, name=name)
        for seed, made in zip(SEEDS, found, strict=True):
            write_safely(path_of(name, seed), base64.b64decode(made.pop("file")))
        running.keep(PART, recorded_files() | {name: {"recipe": repr(RECIPES[name]), "seeds": found}})


def missing() -> list[str]:
    """Return the recipes that weren't recorded, or are others now."""
    kept = recorded_files()
    return [name for name, recipe in RECIPES.items() if kept.get(name, {}).get("recipe") != repr(recipe)]


def recorded_files() -> dict:
    """Return what was recorded of the files so far."""
    return read(NAME).get(PART, {})


def make(name: str, seed: int, data: Mnist) -> dict[str, Any]:
    """Return the file of one seed as text, its bytes, its validation error and the minutes of the worker's core."""
    start = time.process_time()
    model = RECIPES[name].compressed(seed, data)
    content = pack(model, "compact")
    return {
        "bytes": len(content),
        "validation_error": error(model, data.validation),
        "cpu_minutes": round((time.process_time() - start) / 60, 2),
        "file": base64.b64encode(content).decode(),
    }


def path_of(name: str, seed: int) -> Path:
    """Return where the file of a recipe and a seed is kept."""
    return RESULTS / NAME / f"{name}_{seed}.kdz"


def choose(recorded: Record, group: str, most: float) -> str:
    """Return the recipe with the smallest files of those whose mean validation error is at most that.

    It is one of the class; in the open one every file counts.
    """
    names = [name for name in recorded.names(PART) if group in (OPEN, RECIPES[name].group)]
    errors = {name: recorded.figures(PART, name, "validation_error").mean for name in names}
    sizes = {name: recorded.figures(PART, name, "bytes").mean for name in names}
    fitting = [name for name in names if errors[name] <= most]
    return min(fitting, key=sizes.__getitem__) if fitting else min(names, key=errors.__getitem__)


def score_files(recorded: Record, data: Mnist) -> dict[str, float]:
    """Let the chosen files read the test part, print the table, and return the figures of what was recorded."""
    made = sorted({RECIPES[name].group for name in recorded.get(PART, {})})
    rows, figures = [], {}
    for group, (target, most) in [(each, limit) for each in made for limit in TARGETS[each].items()]:
        name = choose(recorded, group, most)
        paths = [path_of(name, seed) for seed in SEEDS]
        errors = PerSeed([scores(load_packed(path), data)["test_error"] for path in paths])
        size, validation = mean(path.stat().st_size for path in paths), recorded.figures(PART, name, "validation_error")
        rows.append([group, most, name, size, errors.mean, errors.low, errors.high, validation.mean])
        figures |= named(group, target, size, errors)
    headers = ["class", "limit, %", "recipe", "bytes", "test error, %", "lowest", "highest", "validation error, %"]
    print(tabulate(rows, headers, floatfmt=".4g"))
    return figures


def enter_records(recorded: Record, data: Mnist) -> None:
    """Enter the chosen files as records; where they are none, say by which rule."""
    for group in sorted({RECIPES[name].group for name in recorded.get(PART, {})}):
        for limit in TARGETS[group].values():
            name = choose(recorded, group, limit)
            paths, told = [path_of(name, seed) for seed in SEEDS], {"command": COMMAND, "chosen_on": "validation"}
            try:
                enter_record(group, limit, paths, data, recipe=repr(RECIPES[name]), trials=TRIALS[group], **told)
            except ParameterError as error:
                print(f"{name}: {reason(error)}")


def named(group: str, target: str, size: float, errors: PerSeed) -> dict[str, float]:
    """Return the figures of a target under their names: the bytes of any network, the ratio of one of the kit."""
    if group == OPEN:
        name, figure = f"{NAME}.{OPEN}.bytes_at_{target}", size
    else:
        name, figure = f"{NAME}.{group}.ratio_at_{target}", FLOAT32_BYTES * count_parameters(build_model(group)) / size
    return {name: figure, f"{name}.error": errors.mean, f"{name}.seeds": len(SEEDS)}
