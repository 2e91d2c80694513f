"""Find settings without a human, within a budget: temperature and alpha of a student; ratios and bits of a recipe."""

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from matplotlib.axes import Axes
from tabulate import tabulate
from torch import Tensor, nn
from tqdm import tqdm

from kd_lab.compression.frontiers import plot_frontier, trial_frontier
from kd_lab.compression.recipe import Teaching, check_recipe, run_stages
from kd_lab.compression.stages import Prune, Share
from kd_lab.cost import count_parameters
from kd_lab.data import Mnist
from kd_lab.environment import optional
from kd_lab.errors import ParameterError, TrainingError, check_fields, check_kind, check_number, check_whole_number
from kd_lab.evaluation import (
    Accuracy,
    PairedDifference,
    check_data,
    check_scorable,
    correct_answers,
    mean_cross_entropy,
)
from kd_lab.formats.kdz import FLOAT32_BYTES, pack, unpack
from kd_lab.formats.outlines import as_unpacked
from kd_lab.networks.layers import weights
from kd_lab.networks.permanent import make_permanent
from kd_lab.pruning.schedules import check_returned, keep_finished
from kd_lab.training import Data

HAND_SET = {"kept": 0.1, "num_bits": 4, "temperature": 4.0, "alpha": 0.1}  # for every layer alike
MAX_KEPT, MIN_KEPT, MIN_WEIGHTS = 0.5, 0.005, 20  # shares of a layer's weights, and as many at least
MIN_BITS, MAX_BITS = 2, 5
Ranges = dict[str, tuple[float, float]]
Fit = Callable[[float, float], nn.Module]  # of a temperature and an alpha
Stages = list[Prune | Share]
TEACHING: Ranges = {"temperature": (1.0, 20.0), "alpha": (0.0, 1.0)}  # temperatures evenly on a log scale
PRUNING_STEPS = 4  # of pruning
RANDOM_TRIALS = 4  # trials before the first guess
SAME_ACCURACY = 0.0025  # of accuracies that differ by less, the loss decides


class SettingTrial(NamedTuple):
    """One run: its setting, and the accuracy and cross-entropy of the student on the validation part."""

    temperature: float
    alpha: float
    accuracy: Accuracy
    loss: float


def try_setting(fit: Fit, temperature: float, alpha: float, validation: Data) -> SettingTrial:
    """Return the trial of the student that `fit(temperature, alpha)` trains."""
    check_kind("fit", fit, Callable, "a function of temperature and alpha")
    student = check_returned("fit", fit(temperature, alpha))
    validation = check_scorable(student, validation)
    right = correct_answers(student, validation)
    return SettingTrial(temperature, alpha, Accuracy.of(right), mean_cross_entropy(student, validation))


def search_settings(fit: Fit, validation: Data, *, runs: int, seed: int = 0) -> list[SettingTrial]:
    """Return the trials of `runs` settings; `best_trial` says which to take.

    After a few at random, each next one is where a Gaussian process, fitted to the runs so far, expects the largest
    improvement in accuracy (Jones et al. 1998; Optuna's GPSampler). An interrupt or an error keeps the trials that are
    done; an interrupt while `fit` is in `train` only ends that training. One that diverges is left out.
    """
    check_kind("fit", fit, Callable, "a function of temperature and alpha")
    runs = check_whole_number("runs", runs, "[1, 1000]")
    seed = check_whole_number("seed", seed, "[0, 1000000]")
    validation = check_data(validation)

    def attempt(asked) -> tuple[SettingTrial, float]:
        trial = try_setting(fit, validation=validation, **_suggest(asked, TEACHING))
        return trial, trial.accuracy.value

    return _search(attempt, runs, seed, "maximize")


class Judged(Protocol):
    """A trial that was judged on the validation part."""

    @property
    def accuracy(self) -> Accuracy:
        """Return how many images it reads correctly."""

    @property
    def loss(self) -> float:
        """Return its cross-entropy."""


Trial = TypeVar("Trial", bound=Judged)


def _search(
    attempt: Callable[[Any], tuple[Trial, float]],
    runs: int,
    seed: int,
    direction: str,
    *,
    first: dict[str, float] | None = None,
    seconds: float = math.inf,
    progress: bool = False,
) -> list[Trial]:
    """Return the trials that `attempt(asked)` makes; it gives each with the value that the sampler is told.

    Ends when there are enough, or the next would not end in time if it took as long as the longest so far. Whatever
    ends it earlier, even a second interrupt, keeps the trials that are done, and is raised where there are none.
    """
    trials: list[Trial] = []
    with (
        keep_finished(trials, "trials", runs),
        quiet_study("GPSampler", seed, RANDOM_TRIALS, direction) as study,
        tqdm(total=runs, desc="search", unit="trial", file=sys.stdout, disable=not progress) as bar,
    ):
        if first:
            study.enqueue_trial(first)
        for _ in in_time(runs, seconds):
            _attempt(study, attempt, trials)
            bar.update()
    if not trials:
        raise TrainingError("every trial diverged. Try a smaller 'learning_rate'.")
    return trials


def _attempt(study: Any, attempt: Callable[[Any], tuple[Trial, float]], trials: list[Trial]) -> None:
    """Add the next trial, if its training does not diverge, and tell the study of it.

    Optuna's own loop would lose an interrupt that comes while it books another one.
    """
    asked = study.ask()
    try:
        trial, value = attempt(asked)
    except TrainingError as error:
        print(error)
        study.tell(asked, state=optional("optuna", "optuna").trial.TrialState.FAIL)
    else:
        trials.append(trial)
        study.tell(asked, value)


def in_time(runs: int, seconds: float) -> Iterator[int]:
    """Yield the numbers of the runs until the next would not end in time."""
    ends, longest = [time.perf_counter()], 0.0
    for run in range(runs):
        if ends[-1] - ends[0] + longest > seconds and run:
            return
        yield run
        ends.append(time.perf_counter())
        longest = max(end - start for start, end in pairwise(ends))


@contextmanager
def quiet_study(sampler: str, seed: int, random_trials: int, direction: str) -> Iterator[Any]:
    """Yield a study of Optuna with the sampler of that name; its line on every trial, done or failed, is silenced."""
    optuna = optional("optuna", "optuna")  # an extra, which Colab does not have
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        chosen = getattr(optuna.samplers, sampler)(seed=seed, n_startup_trials=random_trials)
        yield optuna.create_study(sampler=chosen, direction=direction)
    finally:
        optuna.logging.set_verbosity(before)


def _suggest(asked, ranges: Ranges) -> dict[str, float]:
    return {name: asked.suggest_float(name, low, high, log=low > 0) for name, (low, high) in ranges.items()}


def best_trial(trials: list[Trial]) -> Trial:
    """Return the one with the smallest loss among those whose accuracy is within 0.25 points of the best."""
    if not trials:
        raise ParameterError("'trials' must be one or more, as search_settings gives them. Got none.")
    best = max(trial.accuracy.value for trial in trials)
    return min((trial for trial in trials if trial.accuracy.value > best - SAME_ACCURACY), key=lambda trial: trial.loss)


@dataclass(frozen=True)
class RecipeTrial:
    """One setting of a recipe, the file that it made, and how the network in it reads the validation part.

    `difference` is to the network that the recipe began with, `loss` is the cross-entropy. Without a teacher there is
    no temperature and no alpha.
    """

    stages: list[Any]  # Prune and Share
    teaching: dict[str, float]
    file: bytes
    accuracy: Accuracy
    difference: PairedDifference
    loss: float

    @property
    def model(self) -> nn.Module:
        """Return the network in the file, a new one at each call."""
        return unpack(self.file)

    @property
    def bytes(self) -> int:
        """Return the bytes of the file."""
        return len(self.file)

    @property
    def lost(self) -> float:
        """Return the points of accuracy lost; negative where some were gained."""
        return round(-100 * self.difference.value, 6) + 0.0  # as a learner would write it, and never -0


@dataclass(frozen=True)
class Budget:
    """What a file may have at most: bytes, or points of accuracy lost; one of the two is None."""

    most_bytes: int | None
    most_lost: float | None

    def __post_init__(self):
        if (self.most_bytes is None) == (self.most_lost is None):
            raise ParameterError(
                "one of 'most_bytes' and 'most_lost' must be given, and they exclude "
                f"each other. Got {self.most_bytes!r} and {self.most_lost!r}."
            )
        if self.most_bytes is None:
            check_fields(self, most_lost="[0, 100]")
        else:
            check_fields(self, most_bytes="[1, 1000000000]")

    def over(self, trial: RecipeTrial) -> float:
        """Return by how much a trial is over the budget: 0 or less if it meets it."""
        if self.most_bytes is not None:
            return math.log(trial.bytes / self.most_bytes)
        return round(trial.lost - (self.most_lost or 0), 6)

    def value(self, trial: RecipeTrial) -> float:
        """Return what is to become small while the budget is met: the bytes, or the error."""
        return math.log(trial.bytes) if self.most_bytes is None else 1 - trial.accuracy.value

    def __str__(self) -> str:
        return f"{self.most_lost:g} points lost" if self.most_bytes is None else f"{self.most_bytes:,} bytes"


@dataclass(frozen=True, repr=False)
class Search:
    """Every trial, the hand-set one first, and the budget; shown as a table."""

    trials: list[RecipeTrial]
    budget: Budget
    dense_bytes: int

    @property
    def met(self) -> bool:
        """Return whether a trial met the budget."""
        return any(self.budget.over(trial) <= 0 for trial in self.trials)

    @property
    def best(self) -> RecipeTrial:
        """Return the best trial that meets the budget; where none does, the nearest to it.

        That is the smallest file or, for a budget of bytes, the lowest loss among those within 0.25 points of the
        smallest error.
        """
        fitting = [trial for trial in self.trials if self.budget.over(trial) <= 0]
        if not fitting:
            return min(self.trials, key=self.budget.over)
        return min(fitting, key=self.budget.value) if self.budget.most_bytes is None else best_trial(fitting)

    @property
    def frontier(self) -> list[RecipeTrial]:
        """Return the trials, by bytes, that no other beats in both bytes and accuracy."""
        return trial_frontier(self.trials)

    def plot(self) -> Axes:
        """Draw the error over the bytes of every trial, the frontier, the hand-set trial and the best."""
        groups = {"tried": self.trials, "frontier": self.frontier, "hand-set": self.trials[:1], "found": [self.best]}
        return plot_frontier(groups, self.budget.most_bytes)

    def __repr__(self) -> str:
        best = "found" if self.met else "nearest"
        rows = [["hand-set", *self._row(self.trials[0])], [best, *self._row(self.best)]]
        headers = ["", "bytes", "ratio", "points lost (95 %)", "kept, %", "bits", *self.trials[0].teaching]
        said = "met" if self.met else "met by none: below is the nearest"
        return (
            f"{len(self.trials)} trials; the budget of {self.budget} was {said}.\n"
            f"On the {self.best.accuracy.count:,} validation images that chose it:\n"
            + tabulate(rows, headers, disable_numparse=True)
        )

    def _row(self, trial: RecipeTrial) -> list[str]:
        low, high = sorted(-100 * end for end in trial.difference.interval)
        size = [f"{trial.bytes:,}", f"{self.dense_bytes / trial.bytes:.1f}"]
        kept = ", ".join(f"{100 * (1 - each):.2g}" for each in trial.stages[0].sparsity.values())
        bits = ", ".join(map(str, trial.stages[1].num_bits.values()))
        teaching = [f"{value:.2g}" for value in trial.teaching.values()]
        return [*size, f"{trial.lost:.2f} ({low:.2f} to {high:.2f})", kept, bits, *teaching]


def search_recipe(
    model: nn.Module,
    teacher: nn.Module | None,
    data: Mnist,
    *,
    runs: int,
    minutes: float,
    most_bytes: int | None = None,
    most_lost: float | None = None,
    epochs: int = 1,
    seed: int = 0,
    folder: Path | None = None,
    **settings,
) -> Search:
    """Search the smallest file that loses at most `most_lost` points, or the best of at most `most_bytes` bytes.

    A trial prunes each layer to a sparsity of its own in steps, shares its weights in bits of its own, and is taught
    at a temperature and an alpha, for `epochs` after each step; `settings` are those of `train`. The first is set by
    hand; after a few at random each next one is where a Gaussian process expects the most within the budget (Optuna's
    GPSampler). Ends after `runs` trials, or when the next might not end within the minutes; an interrupt keeps those
    that are done, and a training that diverges counts as a trial and is left out. With a `folder` a call with the same
    arguments goes on where it was stopped.
    """
    seed = check_whole_number("seed", seed, "[0, 1000000]")
    settings = {"seed": seed, **settings}
    teaching = check_recipe(model, teacher, data, settings, folder)
    model = as_unpacked(make_permanent(model))
    budget = Budget(most_bytes, most_lost)
    runs = check_whole_number("runs", runs, "[1, 1000]")
    minutes = check_number("minutes", minutes, "(0, 10000]")
    epochs = check_whole_number("epochs", epochs, "[1, 1000]")
    least = {layer: _least_kept(weight.value.numel()) for layer, weight in weights(model).items()}
    _check_least(model, least, budget)
    progress = teaching.settings.get("progress", True)
    teaching.settings = teaching.settings | {"progress": False}  # one bar is enough
    before = correct_answers(model, teaching.validation)
    ranges = {} if teacher is None else TEACHING

    def attempt(asked) -> tuple[RecipeTrial, float]:
        trial = _try(model, teaching, before, _suggest_stages(asked, least, epochs), _suggest(asked, ranges))
        asked.set_constraint("over", budget.over(trial))
        return trial, budget.value(trial)

    by_hand, seconds = _set_by_hand(least, ranges), 60 * minutes
    trials = _search(attempt, runs, seed, "minimize", first=by_hand, seconds=seconds, progress=progress)
    return Search(trials, budget, FLOAT32_BYTES * count_parameters(model))


def _check_least(model: nn.Module, least: dict[str, float], budget: Budget) -> None:
    """Raise a ParameterError that names the nearest budget where even the smallest file would be too large."""
    if budget.most_bytes is None:
        return
    smallest = make_permanent(model)
    for stage in _stages(least, dict.fromkeys(least, MIN_BITS), 0):
        smallest = make_permanent(stage(smallest, lambda pruned, _epochs: pruned))
    check_smallest(budget.most_bytes, len(pack(smallest)))


def check_smallest(most_bytes: int, size: int) -> None:
    """Raise a ParameterError where even the smallest file, of that size, is above the budget."""
    if most_bytes < size:
        raise ParameterError(
            f"'most_bytes' can't be met: the smallest file of this search has about {size:,} bytes. Got {most_bytes:,}."
        )


def _least_kept(weights: int) -> float:
    return min(MAX_KEPT, max(MIN_KEPT, MIN_WEIGHTS / weights))


def _stages(kept: dict[str, float], bits: dict[str, int], epochs: int) -> Stages:
    return [Prune({layer: 1 - share for layer, share in kept.items()}, PRUNING_STEPS, epochs), Share(bits, epochs)]


def _try(model: nn.Module, teaching: Teaching, before: Tensor, stages: Stages, taught: dict[str, float]) -> RecipeTrial:
    """Return what one setting makes; `before` says which validation images the model reads as it is."""
    how = taught or HAND_SET  # without a teacher neither of the two matters
    *_, (_last, made) = run_stages(model, teaching, stages, how["temperature"], how["alpha"], 0.0)
    right = correct_answers(made, teaching.validation)
    figures = Accuracy.of(right), PairedDifference.of(right, before), mean_cross_entropy(made, teaching.validation)
    return RecipeTrial(stages, taught, pack(made), *figures)


def _set_by_hand(least: dict[str, float], ranges: Ranges) -> dict[str, float]:
    """Return the first setting as Optuna names its parts."""
    kept = {f"kept {layer}": max(HAND_SET["kept"], share) for layer, share in least.items()}
    bits = {f"bits {layer}": HAND_SET["num_bits"] for layer in least}
    return {**kept, **bits, **{name: HAND_SET[name] for name in ranges}}


def _suggest_stages(asked, least: dict[str, float], epochs: int) -> Stages:
    kept = {layer: asked.suggest_float(f"kept {layer}", share, MAX_KEPT, log=True) for layer, share in least.items()}
    bits = {layer: asked.suggest_int(f"bits {layer}", MIN_BITS, MAX_BITS) for layer in least}
    return _stages(kept, bits, epochs)
