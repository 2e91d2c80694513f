"""Train any network on tensors in memory: the one training loop of the kit."""

import copy
import math
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

from kd_lab.errors import ParameterError, TrainingError, check_number, check_whole_number
from kd_lab.evaluation import check_data
from kd_lab.models import BATCH_SIZE, evaluation_mode

Data = tuple[Tensor, ...]
Loss = Callable[..., Tensor]
FINISHED = "finished"


@dataclass
class History:
    """Hold the mean training and validation loss of each epoch, the epoch that was kept, and why training ended."""

    train_loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    seconds: float = 0.0
    stopped: str = FINISHED

    @property
    def best_epoch(self) -> int:
        """Return the epoch, counted from 1, whose weights were kept: that of the smallest validation loss."""
        return self.validation_loss.index(min(self.validation_loss)) + 1

    def plot(self, axes: Axes | None = None) -> Axes:
        """Draw both losses over the epochs and mark the one that was kept."""
        axes = axes or plt.subplots(figsize=(5, 3), layout="constrained")[1]
        epochs = range(1, len(self.train_loss) + 1)
        axes.plot(epochs, self.train_loss, "o-", label="training")
        axes.plot(epochs, self.validation_loss, "o-", label="validation")
        axes.axvline(self.best_epoch, color="grey", linestyle=":", label="kept")
        axes.set(xlabel="epoch", ylabel="mean loss", xticks=epochs)
        axes.legend()
        return axes


def train(model: nn.Module, data: Data, loss_fn: Loss, *, validation: Data, epochs: int, learning_rate: float = 3e-3,
          weight_decay: float = 0.0, batch_size: int = 256, seed: int = 0, progress: bool = True,
          ) -> tuple[nn.Module, History]:
    """Return a new, trained model in evaluation mode, and the history of its losses.

    `data` and `validation` are (x, *targets); `loss_fn(model(x), *targets)` gives the mean loss of a batch. AdamW under
    a one-cycle learning rate (Smith & Topin 2018) that peaks at `learning_rate`; the epoch with the smallest validation
    loss is kept. The same seed gives the same batches. An interrupt keeps what was learned; a loss of NaN ends the
    training with the best epoch so far and a warning, or raises a TrainingError where no epoch was finished.
    """
    _check_settings(epochs, learning_rate, weight_decay, batch_size)
    _check_parts(model, data, validation, loss_fn)
    steps = epochs * math.ceil(len(data[0]) / batch_size)
    with torch.random.fork_rng(devices=[]), _progress_bar(steps, progress) as bar:
        torch.manual_seed(seed)  # for the batches and for dropout; the caller's random numbers stay as they were
        run = _Run(copy.deepcopy(model), loss_fn, bar)
        run.set_optimizer(learning_rate, weight_decay, steps)
        run.fit(data, validation, epochs, batch_size)
    return run.finish(learning_rate)


class _Run:
    """Hold what a training changes: the model, its optimizer, the history and the best weights so far."""

    def __init__(self, model: nn.Module, loss_fn: Loss, bar: tqdm):
        self.model, self.loss_fn, self.bar = model, loss_fn, bar
        self.history, self.kept, self.losses = History(), None, []
        self.start = time.perf_counter()

    def set_optimizer(self, learning_rate: float, weight_decay: float, steps: int) -> None:
        trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = AdamW(trainable, learning_rate, weight_decay=weight_decay, fused=True)
        self.schedule = OneCycleLR(self.optimizer, learning_rate, total_steps=steps)

    def fit(self, data: Data, validation: Data, epochs: int, batch_size: int) -> None:
        try:
            while self.history.stopped == FINISHED and len(self.history.train_loss) < epochs:
                self.train_epoch(data, batch_size)
                self.end_epoch(validation)
        except KeyboardInterrupt:
            self.history.stopped = "interrupted"
            self.end_epoch(validation)

    def train_epoch(self, data: Data, batch_size: int) -> None:
        self.model.train()
        self.losses = []
        for index in torch.randperm(len(data[0])).split(batch_size):
            x, *targets = (part.index_select(0, index) for part in data)  # three times as fast as part[index]
            loss = self.loss_fn(self.model(x), *targets)
            self.losses.append(loss.item())
            if not math.isfinite(self.losses[-1]):
                return  # before the step, so that the weights are still the last good ones
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            self.bar.update()

    def end_epoch(self, validation: Data) -> None:
        """Record both losses, and keep the weights if the validation loss is the smallest so far."""
        train_loss = sum(self.losses) / max(len(self.losses), 1)
        validation_loss = _mean_loss(self.model, validation, self.loss_fn)
        if not math.isfinite(train_loss + validation_loss):
            self.history.stopped = "diverged"
            return
        self.history.train_loss.append(train_loss)
        self.history.validation_loss.append(validation_loss)
        self.bar.set_postfix_str(f"validation loss {validation_loss:.4f}")
        if self.history.best_epoch == len(self.history.validation_loss):
            self.kept = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def finish(self, learning_rate: float) -> tuple[nn.Module, History]:
        if self.history.stopped == "diverged":
            self.report_divergence(learning_rate)
        self.model.load_state_dict(self.kept)
        self.history.seconds = time.perf_counter() - self.start
        return self.model.eval(), self.history

    def report_divergence(self, learning_rate: float) -> None:
        epoch = len(self.history.train_loss) + 1
        message = (f"train(): the loss became NaN or infinite in epoch {epoch}. 'learning_rate' is {learning_rate:g}; "
                   f"try {learning_rate / 10:g}.")
        if self.kept is None:
            raise TrainingError(message)
        warnings.warn(f"{message} The weights of epoch {self.history.best_epoch} are kept.", stacklevel=4)


def _mean_loss(model: nn.Module, data: Data, loss_fn: Loss) -> float:
    """Return the mean of `loss_fn` over all of the data, in evaluation mode."""
    total = 0.0
    with evaluation_mode(model), torch.inference_mode():
        for x, *targets in zip(*(part.split(BATCH_SIZE) for part in data), strict=True):
            total += loss_fn(model(x), *targets).item() * len(x)
    return total / len(data[0])


def _progress_bar(steps: int, progress: bool) -> tqdm:
    # plain text on standard output looks the same in Jupyter, in a terminal and in a saved notebook
    return tqdm(total=steps, desc="training", unit="batch", file=sys.stdout, disable=not progress, mininterval=0.5)


def _check_settings(epochs: int, learning_rate: float, weight_decay: float, batch_size: int) -> None:
    check_whole_number("train", "epochs", epochs, "[1, 1000]")
    check_number("train", "learning_rate", learning_rate, "(0, 10]")
    check_number("train", "weight_decay", weight_decay, "[0, 100]")
    check_whole_number("train", "batch_size", batch_size, "[1, 60000]")


def _check_parts(model: nn.Module, data: Data, validation: Data, loss_fn: Loss) -> None:
    for part in (data, validation):
        check_data("train", model, part)
        try:
            _mean_loss(model, [tensor[:2] for tensor in part], loss_fn)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise ParameterError(f"train(): 'loss_fn' can't compare the answers with the targets: {error}") from error
