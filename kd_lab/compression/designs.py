"""Designs of small networks: what a file takes at least is known before any training, and each can be trained."""

import base64
import functools
import math
from dataclasses import dataclass
from statistics import median
from typing import Any

from torch import nn

from kd_lab.compression.recipe import Teaching, run_stages
from kd_lab.compression.search import HAND_SET, MIN_BITS, PRUNING_STEPS
from kd_lab.compression.stages import Grid, Prune
from kd_lab.distillation import DistillationLoss
from kd_lab.errors import EmptyLayerError, TrainingError, reason
from kd_lab.evaluation import correct_answers, mean_cross_entropy
from kd_lab.formats.kdz import pack
from kd_lab.formats.outlines import as_unpacked
from kd_lab.networks.permanent import make_permanent
from kd_lab.networks.zoo import SMALL_SIDES, small_convolutions
from kd_lab.quantization import fold_batch_norm
from kd_lab.training import train_live

LAYERS = "conv1", "conv2", "conv3", "fc1"
MIN_WIDTH, MAX_WIDTH = 2, 48
KERNELS, STRIDES = (3, 5, 7), (2, 3)  # of the first convolution
MAX_SPARSITY, SPARSITY_STEP = 0.8, 0.1
# Of a file: what it is, with the steps of 8 tensors; bits of a bias; by how many fewer than it has a weight is coded.
FIXED_BYTES, BIAS_BITS, SPARED_BITS = 24, 5, 0.7
SURELY = 0.8  # of the estimate: the files of twenty designs, trained for an epoch, took 0.88 to 1.17 of it
JUDGES = 4  # trials to the end, before any is stopped


@dataclass(frozen=True)
class Design:
    """An architecture and how it is compressed: the bits are those of conv1, conv2, conv3 and fc1."""

    widths: tuple[int, ...]
    kernel: int
    stride: int
    bits: tuple[int, ...]
    sparsity: float

    @property
    def least_bytes(self) -> float:
        """Return what its file takes at least, by the numbers of its weights, their bits and the sparsity alone.

        Where weights are 0 takes the entropy of the sparsity, each that is left 0.7 bits fewer than it has, and a bias
        5 bits; 24 bytes say what the network is. A fifth less is allowed for, since files differ by that.
        """
        first, second, third = self.widths
        last = 10 * third * SMALL_SIDES[self.stride] ** 2
        numbers = self.kernel**2 * first, 9 * first * second, 9 * second * third, last
        shares = [share for share in (self.sparsity, 1 - self.sparsity) if share]
        places = -sum(share * math.log2(share) for share in shares)
        each = [places + (1 - self.sparsity) * (bits - SPARED_BITS) for bits in self.bits]
        weights = sum(count * size for count, size in zip(numbers, each, strict=True))
        biases = BIAS_BITS * (sum(self.widths) + 10)
        return SURELY * (FIXED_BYTES + (weights + biases) / 8)

    def build(self, seed: int) -> nn.Sequential:
        """Return the network with its initial weights."""
        return small_convolutions(self.widths, seed, kernel=self.kernel, stride=self.stride)

    def stages(self, epochs: int) -> list[Prune | Grid]:
        """Return what comes behind the first training: both take as many epochs in all as that, or about."""
        pruned = [Prune(self.sparsity, PRUNING_STEPS, math.ceil(epochs / PRUNING_STEPS))] if self.sparsity else []
        return [*pruned, Grid(dict(zip(LAYERS, self.bits, strict=True)), epochs)]

    def __str__(self) -> str:
        return f"{'-'.join(map(str, self.widths))}, {self.kernel}×{self.kernel} by {self.stride}"


SMALLEST = Design((MIN_WIDTH,) * 3, min(KERNELS), max(STRIDES), (MIN_BITS,) * 4, MAX_SPARSITY)


def untrained_file(design: Design) -> bytes:
    """Return the file of a design with the weights that it begins with."""
    model = fold_batch_norm(design.build(0))
    for stage in design.stages(0):
        model = make_permanent(stage(model, lambda model, _epochs: model))
    return pack(model, "compact")


@functools.cache
def smallest_bytes() -> int:
    """Return about how many bytes the smallest file has."""
    return len(untrained_file(SMALLEST))


def stop_limits(finished: list[list[float]], epochs: int) -> list[float | None]:
    """Return for each epoch the validation loss above which a training is stopped there, None where none is.

    That is the median of those that the finished trainings had, as Optuna's MedianPruner has it.
    """
    behind = [[losses[epoch] for losses in finished if epoch < len(losses)] for epoch in range(epochs)]
    begin = epochs // 3 if len(finished) >= JUDGES else epochs
    return [median(losses) if losses and epoch >= begin else None for epoch, losses in enumerate(behind)]


def is_hopeless(losses: list[float], limits: list[float | None]) -> bool:
    """Return whether the smallest of the losses so far is above the limit behind the last one."""
    limit = limits[len(losses) - 1]
    return limit is not None and min(losses) > limit


def train_design(
    design: Design, teaching: Teaching, first: dict[str, Any], limits: list[float | None]
) -> dict[str, Any]:
    """Return the losses of a design's first training and, unless it was stopped, its file and how that reads.

    `first` has the settings of the first training, `teaching` those of what comes behind it. All are JSON values; where
    the training diverges or pruning empties a layer, there is only the problem.
    """
    loss, losses = DistillationLoss(HAND_SET["temperature"], HAND_SET["alpha"]), []
    training, validation = teaching.parts
    try:
        start = design.build(first["seed"])
        for model, history in train_live(start, training, loss, validation=validation, **first):
            trained, losses = model, [*history.validation_loss]
            if is_hopeless(losses, limits):
                return {"losses": losses}
        made = _compressed(trained, design.stages(first["epochs"]), teaching)
    except (TrainingError, EmptyLayerError) as error:
        return {"problem": reason(error)}
    correct = int(correct_answers(made, teaching.validation).sum())
    file = base64.b64encode(pack(made, "compact")).decode()
    return {"losses": losses, "file": file, "correct": correct, "loss": mean_cross_entropy(made, teaching.validation)}


def _compressed(model: nn.Module, stages: list[Prune | Grid], teaching: Teaching) -> nn.Module:
    model = as_unpacked(fold_batch_norm(model))
    *_, (_, made) = run_stages(model, teaching, stages, HAND_SET["temperature"], HAND_SET["alpha"], 0.0)
    return made
