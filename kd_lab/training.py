"""Train any network on tensors in memory: the one training loop of the kit."""

import copy
import itertools
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import mean
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import ConstantLR, OneCycleLR
from tqdm import tqdm

from kd_lab.errors import (
    ParameterError,
    TrainingError,
    check_choice,
    check_kind,
    check_number,
    check_whole_number,
    reason,
)
from kd_lab.evaluation import check_data, check_labels
from kd_lab.networks.layers import BATCH_SIZE, evaluation_mode, predict
from kd_lab.penalties import Penalty

Data = tuple[Tensor, ...]
Loss = Callable[..., Tensor]
SCHEDULES = ("one_cycle", "constant")
FINISHED = "finished"


class Epoch(NamedTuple):
    """Hold the mean training and validation loss of one epoch."""

    train_loss: float
    validation_loss: float


@dataclass
class History:
    """Hold the losses of each epoch, how long the training took and why it ended."""

    epochs: list[Epoch] = field(default_factory=list)
    seconds: float = 0.0
    stopped: str = FINISHED

    @property
    def train_loss(self) -> list[float]:
        """Return the mean training loss of each epoch."""
        return [epoch.train_loss for epoch in self.epochs]

    @property
    def validation_loss(self) -> list[float]:
        """Return the mean validation loss of each epoch."""
        return [epoch.validation_loss for epoch in self.epochs]

    @property
    def best_epoch(self) -> int:
        """Return the epoch, counted from 1, whose weights were kept: that of the smallest validation loss."""
        return self.validation_loss.index(min(self.validation_loss)) + 1

    def plot(self, axes: Axes | None = None) -> Axes:
        """Draw both losses over the epochs and mark the one that was kept."""
        axes = axes or plt.subplots(figsize=(5, 3), layout="constrained")[1]
        epochs = range(1, len(self.epochs) + 1)
        axes.plot(epochs, self.train_loss, "o-", label="training")
        axes.plot(epochs, self.validation_loss, "o-", label="validation")
        axes.axvline(self.best_epoch, color="grey", linestyle=":", label="kept")
        axes.set(xlabel="epoch", ylabel="mean loss")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend()
        return axes


def train(
    model: nn.Module,
    data: Data,
    loss_fn: Loss,
    *,
    validation: Data,
    epochs: int,
    learning_rate: float = 3e-3,
    weight_decay: float = 0.0,
    batch_size: int = 256,
    seed: int = 0,
    progress: bool = True,
    penalty: Penalty | None = None,
    schedule: str = "one_cycle",
    steps_per_epoch: int | None = None,
) -> tuple[nn.Module, History]:
    """Return a new, trained model in evaluation mode, and the history of its losses.

    `data` and `validation` are (x, *targets); `loss_fn(model(x), *targets)` gives the mean loss of a batch, and
    `penalty(model)` what is added to it while training. AdamW under a one-cycle learning rate (Smith & Topin 2018) that
    peaks at `learning_rate`, or a constant one; the epoch with the smallest validation loss is kept. An epoch is once
    through the data or `steps_per_epoch` batches. The same seed gives the same batches. An interrupt keeps what was
    learned; a loss of NaN ends the training with the best epoch so far and a warning, or raises a TrainingError where
    no epoch was finished.
    """
    check_settings(epochs, learning_rate, weight_decay, batch_size, seed, schedule, steps_per_epoch)
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they were
        _check_parts(model, data, validation, loss_fn, penalty)
    steps = steps_per_epoch or _count_batches(len(data[0]), batch_size)
    with torch.random.fork_rng(devices=[]), _progress_bar(epochs * steps, progress) as bar:
        torch.manual_seed(int(seed))  # for dropout; the batches have a generator of their own
        run = _Run(model, loss_fn, penalty, bar)
        run.set_optimizer(learning_rate, weight_decay, schedule, epochs * steps)
        for _ in run.fit(data, validation, epochs, steps, _batches(len(data[0]), batch_size, seed)):
            pass
    return run.finish(learning_rate)


def train_live(
    model: nn.Module,
    data: Data,
    loss_fn: Loss,
    *,
    validation: Data,
    epochs: int,
    steps_per_epoch: int,
    learning_rate: float = 3e-3,
    batch_size: int = 256,
    seed: int = 0,
) -> Iterator[tuple[nn.Module, History]]:
    """Yield the model and the history after each epoch of a training, for who wants to look on or to stop it.

    The arguments, the loop and the result, which is yielded last, are those of `train`; until then it is one model that
    changes. No global random numbers are used, so that it may run in the background: it is for networks without
    dropout.
    """
    check_settings(epochs, learning_rate, 0.0, batch_size, seed, "one_cycle", steps_per_epoch)
    _check_parts(model, data, validation, loss_fn, None)
    run = _Run(model, loss_fn, None, _progress_bar(0, False))
    run.set_optimizer(learning_rate, 0.0, "one_cycle", epochs * steps_per_epoch)
    yield from run.fit(data, validation, epochs, steps_per_epoch, _batches(len(data[0]), batch_size, seed))
    yield run.finish(learning_rate)


class _Run:
    """Hold what a training changes: the model, its optimizer, the history and the best weights so far."""

    def __init__(self, model: nn.Module, loss_fn: Loss, penalty: Penalty | None, bar: tqdm):
        self.model = copy.deepcopy(model).to(memory_format=torch.channels_last)  # for convolutions; others stay
        self.loss_fn, self.penalty, self.bar = loss_fn, penalty, bar
        self.history, self.kept = History(), None
        self.losses = []  # of the batches of the epoch that has begun
        self.start = time.perf_counter()

    def set_optimizer(self, learning_rate: float, weight_decay: float, schedule: str, steps: int) -> None:
        trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = AdamW(trainable, learning_rate, weight_decay=weight_decay, fused=True)
        self.schedule = (
            OneCycleLR(self.optimizer, learning_rate, total_steps=int(steps))
            if schedule == "one_cycle"
            else ConstantLR(self.optimizer, factor=1)
        )

    def fit(
        self, data: Data, validation: Data, epochs: int, steps: int, batches: Iterator[Tensor]
    ) -> Iterator[tuple[nn.Module, History]]:
        """Train, and yield the model as it is and the history so far after each epoch."""
        try:
            while self.history.stopped == FINISHED and len(self.history.epochs) < epochs:
                self.train_epoch(data, itertools.islice(batches, steps))
                self.end_epoch(validation)
                yield self.model, self.history
        except KeyboardInterrupt:
            self.end_early(validation)

    def end_early(self, validation: Data) -> None:
        """Judge the epoch that was begun like any other; a second interrupt leaves it out."""
        self.history.stopped = "interrupted"
        with suppress(KeyboardInterrupt):
            if self.losses:
                self.end_epoch(validation)
        if not self.history.epochs:
            raise KeyboardInterrupt  # nothing was learned, so there is nothing to return

    def train_epoch(self, data: Data, batches: Iterator[Tensor]) -> None:
        self.model.train()
        for index in batches:
            x, *targets = (part.index_select(0, index) for part in data)  # three times as fast as part[index]
            loss = self.loss_fn(self.model(x), *targets)
            self.losses.append(loss.item())  # without the penalty, so that it compares with that of validation
            if self.penalty:
                loss = loss + self.penalty(self.model)
            if not math.isfinite(loss.item()):
                self.losses[-1] = math.nan  # whichever of the two it was
                return  # before the step, so that the weights are still the last good ones
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            self.bar.update()

    def end_epoch(self, validation: Data) -> None:
        """Record both losses, and keep the weights if the validation loss is the smallest so far.

        An interrupt at any line leaves history and kept weights in step, so that this can be called again.
        """
        epoch = Epoch(mean(self.losses), _mean_loss(self.model, validation, self.loss_fn))
        if not math.isfinite(sum(epoch)):
            self.history.stopped = "diverged"
            return
        if epoch.validation_loss < min(self.history.validation_loss, default=math.inf):
            self.kept = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.history.epochs.append(epoch)
        self.losses = []
        self.bar.set_postfix_str(f"validation loss {epoch.validation_loss:.4f}")

    def finish(self, learning_rate: float) -> tuple[nn.Module, History]:
        if self.history.stopped == "diverged":
            self.report_divergence(learning_rate)
        self.model.load_state_dict(self.kept)
        self.history.seconds = time.perf_counter() - self.start
        return self.model.eval(), self.history

    def report_divergence(self, learning_rate: float) -> None:
        epoch = len(self.history.epochs) + 1
        error = TrainingError(
            f"the loss became NaN or infinite in epoch {epoch}. 'learning_rate' is {learning_rate:g}; try "
            f"{learning_rate / 10:g}."
        )
        if self.kept is None:
            raise error
        warnings.warn(f"{error} The weights of epoch {self.history.best_epoch} are kept.", stacklevel=4)


def _mean_loss(model: nn.Module, data: Data, loss_fn: Loss) -> float:
    """Return the mean of `loss_fn` over all of the data, in evaluation mode."""
    total = 0.0
    with evaluation_mode(model), torch.inference_mode():
        for x, *targets in zip(*(part.split(BATCH_SIZE) for part in data), strict=True):
            total += loss_fn(model(x), *targets).item() * len(x)
    return total / len(data[0])


def _batches(count: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Yield the indices of one batch after another, in a new order each time that all have been seen.

    A single image left over joins the last batch, since it has no spread.
    """
    generator = torch.Generator().manual_seed(int(seed))
    while True:
        order = torch.randperm(count, generator=generator)
        yield from order.tensor_split([batch_size * batch for batch in range(1, _count_batches(count, batch_size))])


def _count_batches(count: int, batch_size: int) -> int:
    return max(1, math.ceil((count - 1) / batch_size))  # as if the single image were not there


def _progress_bar(steps: int, progress: bool) -> tqdm:
    # plain text on standard output looks the same in Jupyter, in a terminal and in a saved notebook
    return tqdm(total=steps, desc="training", unit="batch", file=sys.stdout, disable=not progress, mininterval=0.5)


def check_settings(
    epochs: int = 1,
    learning_rate: float = 3e-3,
    weight_decay: float = 0.0,
    batch_size: int = 256,
    seed: int = 0,
    schedule: str = "one_cycle",
    steps_per_epoch: int | None = None,
    progress: bool = True,
) -> None:
    """Raise a ParameterError unless these are settings of `train`."""
    check_kind("progress", progress, bool, "True or False")
    check_whole_number("seed", seed, "[0, 1000000]")
    check_whole_number("epochs", epochs, "[1, 1000]")
    check_number("learning_rate", learning_rate, "(0, 10]")
    check_number("weight_decay", weight_decay, "[0, 100]")
    check_whole_number("batch_size", batch_size, "[1, 60000]")
    check_choice("schedule", schedule, list(SCHEDULES))
    if steps_per_epoch is not None:
        check_whole_number("steps_per_epoch", steps_per_epoch, "[1, 1000000]")


def _check_parts(model: nn.Module, data: Data, validation: Data, loss_fn: Loss, penalty: Penalty | None) -> None:
    for part in (data, validation):
        check_data(model, part)
        if part[1].dim() == 1 and not part[1].is_floating_point():
            check_labels(predict(model, part[0][:2]), part[1])
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ParameterError("'model' must have a weight to train. Got one whose weights are all frozen.")

    def loss_of(x: Tensor, *targets: Tensor) -> Tensor:
        return loss_fn(copy.deepcopy(model).train()(x), *targets)  # a copy, so that batch statistics stay as they were

    for part in (data, validation):
        _check_loss("loss_fn", "compare the answers with the targets", loss_of, *(each[:2] for each in part))
    if penalty is not None:
        _check_loss("penalty", "judge the model", penalty, model)


def _check_loss(argument: str, task: str, loss_of: Callable[..., Tensor], *arguments: object) -> None:
    try:
        loss = loss_of(*arguments)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise ParameterError(f"{argument!r} can't {task}: {reason(error)}") from error
    if not isinstance(loss, Tensor) or loss.dim() != 0:
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ParameterError(f"{argument!r} must return a tensor with one number. Got {got}.")
    if not loss.requires_grad:
        raise ParameterError(f"{argument!r} must return a loss that gradients flow through. Got a detached one.")
