"""Choose temperature and alpha without a human, within a budget of runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from torch import Tensor, nn

from kd_lab.environment import optional
from kd_lab.errors import ParameterError, check_kind, check_whole_number
from kd_lab.evaluation import Accuracy, accuracy, mean_cross_entropy

HOTTEST = 20.0  # the temperatures tried are 1 to this, evenly on a log scale; alphas are 0 to 1
AT_RANDOM = 4  # runs before the first guess
ALIKE = 0.0025  # accuracies that differ by less are told apart by the loss


class Trial(NamedTuple):
    """Hold one run: its setting, and how the student did on the validation part, the loss being cross-entropy."""

    temperature: float
    alpha: float
    accuracy: Accuracy
    loss: float


def try_setting(
    fit: Callable[[float, float], nn.Module], temperature: float, alpha: float, validation: tuple[Tensor, Tensor]
) -> Trial:
    """Return the Trial of the student that `fit(temperature, alpha)` trains."""
    check_kind("fit", fit, Callable, "a function of temperature and alpha")
    student = fit(temperature, alpha)
    found = accuracy(student, validation)  # says what is wrong with either
    return Trial(temperature, alpha, found, mean_cross_entropy(student, validation))


def search_settings(
    fit: Callable[[float, float], nn.Module], validation: tuple[Tensor, Tensor], *, runs: int, seed: int = 0
) -> list[Trial]:
    """Return the Trials of `runs` settings; `best_trial` says which to take.

    After a few at random, each next one is where a Gaussian process, fitted to the runs so far, expects the largest
    improvement in accuracy (Jones et al. 1998; Optuna's GPSampler).
    """
    check_whole_number("runs", runs, "[1, 1000]")
    check_whole_number("seed", seed, "[0, 1000000]")
    optuna = optional("optuna", "optuna")  # which Colab has not
    trials = []

    def objective(trial) -> float:
        setting = trial.suggest_float("temperature", 1.0, HOTTEST, log=True), trial.suggest_float("alpha", 0.0, 1.0)
        trials.append(try_setting(fit, *setting, validation))
        return trials[-1].accuracy.value

    with quiet_optuna():
        sampler = optuna.samplers.GPSampler(seed=seed, n_startup_trials=AT_RANDOM)
        optuna.create_study(sampler=sampler, direction="maximize").optimize(objective, n_trials=runs)
    return trials


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Let Optuna say only what went wrong meanwhile, instead of a line on every trial."""
    logging = optional("optuna", "optuna").logging
    before = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def best_trial(trials: list[Trial]) -> Trial:
    """Return the one with the smallest loss among those whose accuracy is within 0.25 points of the best."""
    if not trials:
        raise ParameterError("'trials' must be one or more, as search_settings gives them. Got none.")
    best = max(trial.accuracy.value for trial in trials)
    return min((trial for trial in trials if trial.accuracy.value > best - ALIKE), key=lambda trial: trial.loss)
