"""Train any network on tensors in memory: the one training loop of the kit."""

import copy
import inspect
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
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, OneCycleLR
from tqdm import tqdm

from kd_lab.errors import ParameterError, TrainingError, called_function, check_choice, check_fields, check_kind, saying
from kd_lab.evaluation import check_data, check_labels
from kd_lab.networks.copies import copied
from kd_lab.networks.modes import evaluation_mode
from kd_lab.networks.permanent import computed_once
from kd_lab.networks.predictions import BATCH_SIZE, predict
from kd_lab.penalties import Penalty

Data = tuple[Tensor, ...]
Loss = Callable[..., Tensor]
SCHEDULES = ("one_cycle", "constant")
FINISHED = "finished"


class Epoch(NamedTuple):
    """The mean training and validation loss of one epoch."""

    train_loss: float
    validation_loss: float


@dataclass
class History:
    """The losses of each epoch, how long the training took and why it ended."""

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


@dataclass(frozen=True)
class Settings:
    """How `train` trains; raises a ParameterError for what is not allowed."""

    epochs: int = 1
    learning_rate: float = 3e-3
    weight_decay: float = 0.0
    batch_size: int = 256
    seed: int = 0
    schedule: str = "one_cycle"
    steps_per_epoch: int | None = None
    progress: bool = True

    def __post_init__(self):
        check_kind("progress", self.progress, bool, "True or False")
        check_choice("schedule", self.schedule, list(SCHEDULES))
        check_fields(self, seed="[0, 1000000]", epochs="[1, 1000]", batch_size="[1, 60000]")
        check_fields(self, learning_rate="(0, 10]", weight_decay="[0, 100]")
        if self.steps_per_epoch is not None:
            check_fields(self, steps_per_epoch="[1, 1000000]")

    def optimizer(self, model: nn.Module, steps: int) -> tuple[AdamW, LRScheduler]:
        """Return the optimizer of a model's weights that aren't frozen, and the schedule of its learning rate."""
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = _AdamW(trainable, self.learning_rate, weight_decay=self.weight_decay, fused=True)
        if self.schedule == "constant":
            return optimizer, ConstantLR(optimizer, factor=1)
        return optimizer, OneCycleLR(optimizer, self.learning_rate, total_steps=steps)


class _AdamW(AdamW):
    """torch's AdamW without what it marks for torch.compile, which takes a second or two to import."""

    add_param_group = inspect.unwrap(AdamW.add_param_group)
    zero_grad = inspect.unwrap(AdamW.zero_grad)
    step = torch.no_grad()(inspect.unwrap(AdamW.step))


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
    settings = Settings(epochs, learning_rate, weight_decay, batch_size, seed, schedule, steps_per_epoch, progress)
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they were
        model, data, validation = _prepare(model, data, validation, loss_fn, penalty, settings)
        torch.manual_seed(settings.seed)  # for dropout; the batches have a generator of their own
        *_, trained = _fit(model, data, validation, loss_fn, penalty, settings)
    return trained


def train_live(
    model: nn.Module, data: Data, loss_fn: Loss, *, validation: Data, **settings
) -> Iterator[tuple[nn.Module, History]]:
    """Yield the model and the history after each epoch of a training, to look on or to stop it.

    The arguments, the loop and the result, which is yielded last, are those of `train`; until then it is one model that
    changes. No global random numbers are used, so that it may run in the background: it is for networks without
    dropout.
    """
    checked = Settings(progress=False, **settings)
    model, data, validation = _prepare(model, data, validation, loss_fn, None, checked)
    yield from _fit(model, data, validation, loss_fn, None, checked)


@torch.inference_mode(False)
@torch.enable_grad()
def _fit(
    model: nn.Module, data: Data, validation: Data, loss_fn: Loss, penalty: Penalty | None, settings: Settings
) -> Iterator[tuple[nn.Module, History]]:
    """Run the training loop: yield the model as it is and the history after each epoch, and the trained model last."""
    steps = settings.steps_per_epoch or _count_batches(len(data[0]), settings.batch_size)
    total = settings.epochs * steps
    batches = _batches(len(data[0]), settings.batch_size, settings.seed)
    optimizer, schedule = settings.optimizer(model, total)
    history, start = History(), time.perf_counter()
    best: dict[str, dict] = {}  # the weights of the epoch with the smallest validation loss
    losses: list[float] = []  # of the batches of the epoch that has begun
    # plain text on standard output looks the same in Jupyter, in a terminal and in a saved notebook
    hidden = not settings.progress
    with tqdm(None, "training", total, file=sys.stdout, mininterval=0.5, unit="batch", disable=hidden) as bar:
        try:
            while history.stopped == FINISHED and len(history.epochs) < settings.epochs:
                model.train()
                for index in itertools.islice(batches, steps):
                    x, *targets = (part.index_select(0, index) for part in data)  # three times as fast as part[index]
                    loss = loss_fn(model(x), *targets)
                    losses.append(loss.item())  # without the penalty, so that it compares with that of validation
                    loss = loss + penalty(model) if penalty else loss
                    if not math.isfinite(loss.item()):
                        losses[-1] = math.nan  # whichever of the two it was
                        break  # before the step, so that the weights are still the last good ones
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
                    bar.update()
                _end_epoch(model, loss_fn, validation, losses, history, best)
                bar.set_postfix_str(f"validation loss {min(history.validation_loss, default=math.nan):.4f}")
                yield model, history
        except KeyboardInterrupt:
            history.stopped = "interrupted"
            with suppress(KeyboardInterrupt):  # a second one leaves out the epoch that was begun
                if losses:
                    _end_epoch(model, loss_fn, validation, losses, history, best)
            if not best:
                raise  # nothing was learned, so there is nothing to return
    _report(history, settings)
    model.load_state_dict(best["weights"])
    history.seconds = time.perf_counter() - start
    model.eval()
    yield model, history


def _end_epoch(
    model: nn.Module, loss_fn: Loss, validation: Data, losses: list[float], history: History, best: dict[str, dict]
) -> None:
    """Record both losses, and keep the weights in `best` if the validation loss is the smallest so far.

    An interrupt at any line leaves history and kept weights in step, so that this can be called again.
    """
    epoch = Epoch(mean(losses), _mean_loss(model, validation, loss_fn))
    if not math.isfinite(sum(epoch)):
        history.stopped = "diverged"
        return
    if epoch.validation_loss < min(history.validation_loss, default=math.inf):
        best["weights"] = copy.deepcopy(model.state_dict())  # and with it, what its modules know of their version
    history.epochs.append(epoch)
    losses.clear()


def _report(history: History, settings: Settings) -> None:
    """Report why a training ended early; raise a TrainingError where nothing was learned."""
    if history.stopped == "interrupted":
        print(
            f"{called_function()}(): interrupted in epoch {len(history.epochs)} of {settings.epochs}: the weights of "
            f"epoch {history.best_epoch} are returned, which may be worse than those of a whole training."
        )
    if history.stopped == "diverged":
        error = TrainingError(
            f"the loss became NaN or infinite in epoch {len(history.epochs) + 1}. 'learning_rate' is "
            f"{settings.learning_rate:g}; try {settings.learning_rate / 10:g}."
        )
        if not history.epochs:
            raise error
        warnings.warn(f"{error} The weights of epoch {history.best_epoch} are kept.", stacklevel=5)


def _mean_loss(model: nn.Module, data: Data, loss_fn: Loss) -> float:
    """Return the mean of `loss_fn` over all of the data, in evaluation mode."""
    with evaluation_mode(model), torch.inference_mode():
        model = computed_once(model)
        # clones: a network may change in place what it reads
        batches = zip(*((part.clone() for part in each.split(BATCH_SIZE)) for each in data), strict=True)
        return sum(loss_fn(model(x), *targets).item() * len(x) for x, *targets in batches) / len(data[0])


def _batches(count: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Yield the indices of one batch after another, in a new order each time that all have been seen.

    A single image left over joins the last batch, since it has no spread.
    """
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(count, generator=generator)
        yield from order.tensor_split([batch_size * batch for batch in range(1, _count_batches(count, batch_size))])


def _count_batches(count: int, batch_size: int) -> int:
    return max(1, math.ceil((count - 1) / batch_size))  # as if the single image were not there


@torch.inference_mode(False)
@torch.enable_grad()
def _prepare(
    model: nn.Module, data: Data, validation: Data, loss_fn: Loss, penalty: Penalty | None, settings: Settings
) -> tuple[nn.Module, Data, Data]:
    """Return a copy of the model to be trained, and both parts of the data.

    The copy has the memory layout in which convolutions are trained fastest, or the model's own where its code needs
    that. Raises a ParameterError unless the model can be trained.
    """
    data, validation = check_data(data), check_data(validation)
    _check_answers(model, data, validation)
    _check_trainable(model)
    count = min(2, settings.batch_size)  # a clone, since a tensor of inference mode has no gradients
    batches = [tuple(part[:count].clone() for part in parts) for parts in (data, validation)]
    if penalty is not None:
        _check_loss("penalty", "judge the model", penalty, model)
    with suppress(Exception):  # a learner's `view` can't read every layout, and a Conv3d has none
        fast = copied(model).to(memory_format=torch.channels_last)
        _check_step(fast, loss_fn, *batches)
        return fast, data, validation
    _check_step(model, loss_fn, *batches)
    return copied(model), data, validation


def _check_answers(model: nn.Module, *parts: Data) -> None:
    for images, targets, *_ in parts:
        answers = predict(model, images[:2])
        if targets.dim() == 1 and not targets.is_floating_point():
            check_labels(answers, targets)


def _check_trainable(model: nn.Module) -> None:
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise ParameterError(
            "'model' must be a network as its class builds it. Got one that torch.jit has compiled: train first."
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ParameterError("'model' must have a weight to train. Got one whose weights are all frozen.")


def _check_step(model: nn.Module, loss_fn: Loss, batch: Data, validation_batch: Data) -> None:
    """Raise a ParameterError unless a model can learn from a batch and be judged by another; it stays as it is."""
    probe = copied(model)  # so that batch statistics stay as they were
    with evaluation_mode(probe):
        _batch_loss(probe, loss_fn, *validation_batch)
    probe.train()
    loss = _batch_loss(probe, loss_fn, *batch)
    with saying("the loss can't be traced back to the weights"):
        loss.backward()
    if any(parameter.grad is not None and parameter.grad.is_sparse for parameter in probe.parameters()):
        raise ParameterError(
            "'model' must have dense gradients. Got sparse ones. Did you set nn.Embedding's sparse=True?"
        )


def _batch_loss(model: nn.Module, loss_fn: Loss, x: Tensor, *targets: Tensor) -> Tensor:
    mode = "trained on" if model.training else "judged by"
    with saying(f"the model can't be {mode} a batch of {len(x)}"):
        answers = model(x)
    return _check_loss("loss_fn", "compare the answers with the targets", loss_fn, answers, *targets)


def _check_loss(argument: str, task: str, loss_of: Callable[..., Tensor], *arguments: object) -> Tensor:
    with saying(f"{argument!r} can't {task}"):
        loss = loss_of(*arguments)
    if not isinstance(loss, Tensor) or loss.dim() != 0:
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ParameterError(f"{argument!r} must return a tensor with one number. Got {got}.")
    if not loss.requires_grad:
        raise ParameterError(f"{argument!r} must return a loss that gradients flow through. Got a detached one.")
    return loss
