"""Search the best architecture for a budget of bytes: Optuna proposes designs, and each one is really trained."""

import base64
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from matplotlib.axes import Axes
from tabulate import tabulate
from torch import nn
from tqdm import tqdm

from kd_lab.compression.designs import (
    KERNELS,
    LAYERS,
    MAX_SPARSITY,
    MAX_WIDTH,
    MIN_WIDTH,
    SMALLEST,
    SPARSITY_STEP,
    STRIDES,
    Design,
    smallest_bytes,
    stop_limits,
    train_design,
)
from kd_lab.compression.frontiers import plot_frontier, trial_frontier
from kd_lab.compression.recipe import Teaching, check_recipe
from kd_lab.compression.search import MAX_BITS, MIN_BITS, best_trial, check_smallest, in_time, quiet_study
from kd_lab.data import Mnist
from kd_lab.environment import optional
from kd_lab.errors import TrainingError, check_fields, check_kind
from kd_lab.evaluation import Accuracy, Checked
from kd_lab.formats.kdz import unpack
from kd_lab.pruning.schedules import keep_finished
from kd_lab.storage import cache_key
from kd_lab.sweeps import sweep

START = {"batch_size": 128, "learning_rate": 1e-2}  # of the first training
FINER = 0.3  # of its learning rate is left for what is pruned or rounded
RANDOM_PROPOSALS = 8  # before the first guess
MAX_REFUSED = 2000  # proposals for one round


@dataclass(frozen=True)
class ArchitectureTrial:
    """A design that was trained to the end: its file, and how the network in it reads the validation part.

    `losses` are those of the first training on the validation part; `loss` is the cross-entropy of the file's network.
    """

    design: Design
    losses: list[float]
    file: bytes = field(repr=False)
    accuracy: Accuracy
    loss: float

    @property
    def model(self) -> nn.Module:
        """Return the network in the file, a new one at each call."""
        return unpack(self.file)

    @property
    def bytes(self) -> int:
        """Return the bytes of the file."""
        return len(self.file)


@dataclass(frozen=True)
class StoppedTrial:
    """A design whose first training was stopped, since its validation losses promised little; it has no file."""

    design: Design
    losses: list[float]


@dataclass(frozen=True)
class FailedTrial:
    """A design that has no file: its training diverged, or pruning would have emptied a layer; `problem` says so."""

    design: Design
    problem: str


Ended = ArchitectureTrial | StoppedTrial | FailedTrial


@dataclass(frozen=True, repr=False)
class ArchitectureSearch:
    """Every trial in the order of the proposals, however it ended; shown as a table.

    `refused` counts the proposals that could not fit into the budget and cost no training.
    """

    most_bytes: int
    ended: list[Ended]
    refused: int

    @property
    def trials(self) -> list[ArchitectureTrial]:
        """Return the trials that were trained to the end."""
        return [trial for trial in self.ended if isinstance(trial, ArchitectureTrial)]

    @property
    def stopped(self) -> list[StoppedTrial]:
        """Return the trials that were stopped early."""
        return [trial for trial in self.ended if isinstance(trial, StoppedTrial)]

    @property
    def failed(self) -> list[FailedTrial]:
        """Return the trials that failed."""
        return [trial for trial in self.ended if isinstance(trial, FailedTrial)]

    @property
    def met(self) -> bool:
        """Return whether a file is within the budget."""
        return bool(_fitting(self.ended, self.most_bytes))

    @property
    def best(self) -> ArchitectureTrial:
        """Return the trial of the lowest loss among those within the budget and 0.25 points of its smallest error.

        Where no file is within the budget it is the smallest one.
        """
        fitting = _fitting(self.ended, self.most_bytes)
        return best_trial(fitting) if fitting else min(self.trials, key=lambda trial: trial.bytes)

    @property
    def frontier(self) -> list[ArchitectureTrial]:
        """Return the trials, by bytes, that no other beats in both bytes and accuracy."""
        return trial_frontier(self.trials)

    def plot(self, axes: Axes | None = None) -> Axes:
        """Draw the error over the bytes of every trial, the frontier, the best and the budget.

        Axes that are given are emptied first, so that a search can be drawn on them as it grows.
        """
        groups = {"tried": self.trials, "frontier": self.frontier, "found": [self.best]}
        return plot_frontier(groups, self.most_bytes, axes)

    def __repr__(self) -> str:
        said = "met" if self.met else "met by none: found is the smallest"
        headers = ["", "bytes", "error, % (95 %)", "widths, first window", "bits", "sparsity"]
        rows = [["found", *_row(self.best)], *(["frontier", *_row(trial)] for trial in self.frontier)]
        return (
            f"{len(self.trials)} trials were trained to the end, {len(self.stopped)} stopped early, {len(self.failed)} "
            f"failed; {self.refused:,} proposals that could not fit cost no training.\n"
            f"The budget of {self.most_bytes:,} bytes was {said}. "
            f"On the {self.best.accuracy.count:,} validation images that chose it:\n"
            + tabulate(rows, headers, disable_numparse=True)
        )


def _row(trial: ArchitectureTrial) -> list[str]:
    high, low = (100 - 100 * end for end in trial.accuracy.interval)
    error = f"{100 - 100 * trial.accuracy.value:.2f} ({low:.2f} to {high:.2f})"
    bits = ", ".join(map(str, trial.design.bits))
    return [f"{trial.bytes:,}", error, str(trial.design), bits, f"{trial.design.sparsity:g}"]


@dataclass(frozen=True)
class Effort:
    """How far a search goes, and for what; raises a ParameterError for what is not allowed."""

    most_bytes: int
    runs: int
    minutes: float
    epochs: int
    seed: int
    workers: int

    def __post_init__(self):
        check_fields(self, most_bytes="[1, 1000000000]", runs="[1, 10000]", minutes="(0, 100000]")
        check_fields(self, epochs="[1, 1000]", seed="[0, 1000000]", workers="[1, 1000]")


def search_architecture(
    data: Mnist,
    teacher: nn.Module,
    *,
    most_bytes: int,
    runs: int,
    minutes: float,
    epochs: int = 30,
    seed: int = 0,
    folder: Path | None = None,
    workers: int = 2,
    **settings,
) -> ArchitectureSearch:
    """Search the best network of three convolutions and a Linear layer whose file has at most `most_bytes` bytes.

    A trial is a training from initial weights, of `epochs`, by the teacher's answers, then gradual pruning where there
    is a sparsity, and rounding to grids, each about as long; `settings` are those of `train`, the learning rate being
    that of the first. The file is the compact one of `pack`. After a few at random Optuna's TPESampler proposes what is
    likelier among good trials than among others (Bergstra et al. 2011). A proposal whose file can't fit costs no
    training: `Design.least_bytes` says how that is known.

    A first training is stopped behind an epoch where its smallest validation loss is above the median of those that
    trials had there which were trained to the end and whose files are within the budget: a larger network learns more,
    and would stop those that fit. That is the rule of Optuna's MedianPruner (Golovin et al. 2017), which suits since
    all trainings have the same length. It begins with a third of the epochs, when there are four such trials.

    `workers` proposals make a round, trained in a process each; the same seed and workers propose the same. Ends after
    `runs` trials, stopped ones among them, or when the next round might not end within the minutes; an interrupt keeps
    the trials of the rounds before. With a `folder` a trial is kept as soon as it ends, and a call with the same
    arguments, or more runs or minutes, goes on where it was stopped. What is found was chosen on the validation part.
    """
    *_, found = _rounds(data, teacher, Effort(most_bytes, runs, minutes, epochs, seed, workers), folder, settings)
    return found


def search_architecture_live(
    data: Mnist,
    teacher: nn.Module,
    *,
    most_bytes: int,
    runs: int,
    minutes: float,
    epochs: int = 30,
    seed: int = 0,
    folder: Path | None = None,
    workers: int = 2,
    **settings,
) -> Iterator[ArchitectureSearch]:
    """Yield what `search_architecture` has found after each round, to look on or to draw it as it grows.

    The arguments and the result, which is yielded last, are those of `search_architecture`.
    """
    yield from _rounds(data, teacher, Effort(most_bytes, runs, minutes, epochs, seed, workers), folder, settings)


def _rounds(
    data: Mnist, teacher: nn.Module, effort: Effort, folder: Path | None, settings: dict[str, Any]
) -> Iterator[ArchitectureSearch]:
    """Yield what is found after each round of as many trials as there are workers, and at the end."""
    check_kind("teacher", teacher, nn.Module, "a network")
    teaching = check_recipe(SMALLEST.build(0), teacher, data, {"seed": effort.seed, **START, **settings}, folder)
    check_smallest(effort.most_bytes, smallest_bytes())
    hidden = not teaching.settings.pop("progress", True)
    ended: list[Ended] = []
    with (
        TemporaryDirectory() as elsewhere,
        quiet_study("TPESampler", effort.seed, RANDOM_PROPOSALS, "minimize") as study,
        tqdm(None, "search", effort.runs, file=sys.stdout, unit="trial", disable=hidden) as bar,
        keep_finished(ended, "trials", effort.runs),
    ):
        home = _home(teaching, effort, Path(elsewhere))
        function, proposals = _training(teaching, effort.epochs), Proposals(study, effort.most_bytes)
        for place in in_time(math.ceil(effort.runs / effort.workers), 60 * effort.minutes):
            asked = proposals.take(min(effort.workers, effort.runs - place * effort.workers))
            if not asked:
                break
            for trial, one in zip(asked, _round(function, list(asked.values()), ended, effort, home), strict=True):
                ended.append(one)
                proposals.tell(trial, one)
                bar.update()
            if (found := ArchitectureSearch(effort.most_bytes, [*ended], proposals.refused)).trials:
                yield found
    if not any(isinstance(trial, ArchitectureTrial) for trial in ended):
        raise TrainingError(_why_there_is_none(ended))
    yield ArchitectureSearch(effort.most_bytes, ended, proposals.refused)


def _why_there_is_none(ended: list[Ended]) -> str:
    failed = [trial.problem for trial in ended if isinstance(trial, FailedTrial)]
    if failed:
        return f"every trial failed, the last one since {failed[-1]}"
    return f"none of {MAX_REFUSED:,} proposals can fit. Allow more 'most_bytes'."


def _home(teaching: Teaching, effort: Effort, elsewhere: Path) -> Path:
    """Return the folder of the trials, which changes with whatever they come from."""
    how = effort.most_bytes, effort.epochs, effort.workers
    return (teaching.folder or elsewhere) / cache_key(teaching.digests(SMALLEST.build(effort.seed), *how))


def _round(function: Callable, designs: list[Design], ended: list[Ended], effort: Effort, home: Path) -> list[Ended]:
    """Train the designs side by side, unless they are in the folder."""
    limits = stop_limits([trial.losses for trial in _fitting(ended, effort.most_bytes)], effort.epochs)
    trials = [{**asdict(design), "limits": limits} for design in designs]
    folder = home / f"{len(ended)}_{len(designs)}"
    results = sweep(function, trials, folder, workers=effort.workers, retry_failed=True, progress=False)
    return [_as_ended(design, result) for design, result in zip(designs, results, strict=True)]


def _fitting(ended: list[Ended], most_bytes: int) -> list[ArchitectureTrial]:
    """Return the trials that were trained to the end and whose files are within the budget."""
    return [trial for trial in ended if isinstance(trial, ArchitectureTrial) and trial.bytes <= most_bytes]


def _as_ended(design: Design, result: dict[str, Any]) -> Ended:
    """Return a trial as it was before JSON kept it."""
    if "problem" in result:
        return FailedTrial(design, result["problem"])
    if "file" not in result:
        return StoppedTrial(design, result["losses"])
    read = Accuracy(result["correct"], result["count"])
    return ArchitectureTrial(design, result["losses"], base64.b64decode(result["file"]), read, result["loss"])


class Proposals:
    """The designs that a study proposes, each a new one that can fit; `refused` counts those that can't."""

    def __init__(self, study: Any, most_bytes: int):
        self.study, self.most_bytes, self.refused = study, most_bytes, 0
        self.states = optional("optuna", "optuna").trial.TrialState
        self.seen: set[Design] = set()
        self.widest = [self._widest(place) for place in range(len(SMALLEST.widths))]

    def _widest(self, place: int) -> int:
        """Return how many channels a convolution can have in the smallest design, so that more needn't be proposed."""
        before, behind = SMALLEST.widths[:place], SMALLEST.widths[place + 1 :]
        widths = range(MIN_WIDTH, MAX_WIDTH + 1)
        fits = [self._fits(replace(SMALLEST, widths=(*before, width, *behind))) for width in widths]
        return max((width for width, each in zip(widths, fits, strict=True) if each), default=MIN_WIDTH)

    def _fits(self, design: Design) -> bool:
        return design.least_bytes <= self.most_bytes

    def take(self, count: int) -> dict[Any, Design]:
        """Return so many designs by their trials in the study; fewer where one proposal after another can't fit."""
        taken: dict[Any, Design] = {}
        for _ in range(MAX_REFUSED):
            if len(taken) == count:
                break
            trial = self.study.ask()
            design = self._design(trial)
            if self._fits(design) and design not in self.seen:
                taken[trial] = design
                self.seen.add(design)
            else:
                self.refused += not self._fits(design)
                self.study.tell(trial, state=self.states.FAIL)
        return taken

    def _design(self, trial: Any) -> Design:
        most = enumerate(self.widest)
        widths = (trial.suggest_int(f"width {place}", MIN_WIDTH, widest, log=True) for place, widest in most)
        kernel, stride = trial.suggest_categorical("kernel", KERNELS), trial.suggest_categorical("stride", STRIDES)
        bits = (trial.suggest_int(f"bits {layer}", MIN_BITS, MAX_BITS) for layer in LAYERS)
        sparsity = trial.suggest_float("sparsity", 0, MAX_SPARSITY, step=SPARSITY_STEP)
        return Design(tuple(widths), kernel, stride, tuple(bits), round(sparsity, 2))

    def tell(self, trial: Any, ended: Ended) -> None:
        """Let the study know how a design did."""
        if isinstance(ended, FailedTrial):
            self.study.tell(trial, state=self.states.FAIL)
            return
        size = ended.bytes if isinstance(ended, ArchitectureTrial) else ended.design.least_bytes
        trial.set_constraint("over", math.log(size / self.most_bytes))
        for epoch, loss in enumerate(ended.losses):
            trial.report(loss, epoch)
        if isinstance(ended, ArchitectureTrial):
            self.study.tell(trial, 1 - ended.accuracy.value)
        else:
            self.study.tell(trial, state=self.states.PRUNED)


def _alone(part: Checked) -> Checked:
    """Return data that don't travel with all that they were cut from."""
    whole = (each if each.untyped_storage().nbytes() == each.nbytes else each.clone() for each in part)
    return Checked(whole)


def _training(teaching: Teaching, epochs: int) -> Callable[..., dict[str, Any]]:
    """Return the function of a sweep: it carries the data and the teacher's answers to other processes."""
    first = teaching.settings
    teaching.settings = first | {"learning_rate": FINER * first["learning_rate"], "progress": False}
    teaching.folder = None  # a trial is kept as a whole
    teaching.training, teaching.validation = _alone(teaching.training), _alone(teaching.validation)
    count = len(teaching.parts[1][0])  # the teacher answers here, once for all

    def train_one(limits: list[float | None], **design: Any) -> dict[str, Any]:
        return train_design(Design(**design), teaching, first | {"epochs": epochs}, limits) | {"count": count}

    return train_one
