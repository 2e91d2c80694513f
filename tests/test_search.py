"""The search finds what a grid would, within its budget, and takes the better-judged of those that are alike."""

import math
import sys

import pytest
import torch
from torch import nn

from kd_lab.compression.search import SettingTrial, best_trial, search_settings, try_setting
from kd_lab.errors import ParameterError, SetupError
from kd_lab.evaluation import Accuracy

LABELS = torch.arange(1000) % 10
IMAGES = torch.rand(1000, 1, 28, 28, generator=torch.Generator().manual_seed(0))


class Guess(nn.Module):
    """Read the first `correct` of the images as they should be, the others as the next digit."""

    def __init__(self, correct):
        super().__init__()
        answers = torch.where(torch.arange(1000) < correct, LABELS, (LABELS + 1) % 10)
        self.answers = dict(zip(IMAGES[:, 0, 0, 0].tolist(), answers, strict=True))

    def forward(self, x):
        answers = torch.stack([self.answers[corner] for corner in x[:, 0, 0, 0].tolist()])
        return 5 * nn.functional.one_hot(answers, 10).float()


def student_best_at(temperature, alpha):
    """Return a fit whose student reads fewer images the further it is from this setting, and the settings asked for."""
    asked = []

    def fit(*setting):
        asked.append(setting)
        return Guess(round(950 - 200 * math.log(setting[0] / temperature) ** 2 - 400 * (setting[1] - alpha) ** 2))

    return fit, asked


def test_it_comes_near_the_best_setting_within_the_budget():
    fit, asked = student_best_at(temperature=5, alpha=0.3)
    trials = search_settings(fit, (IMAGES, LABELS), runs=12)
    assert [(trial.temperature, trial.alpha) for trial in trials] == asked and len(asked) == 12
    assert all(1 <= temperature <= 20 and 0 <= alpha <= 1 for temperature, alpha in asked)
    best = best_trial(trials)
    assert best.accuracy.correct >= 935 > max(trial.accuracy.correct for trial in trials[:4])  # those at random
    assert 3.5 < best.temperature < 7 and 0.1 < best.alpha < 0.5


def test_the_same_seed_tries_the_same_settings():
    settings = []
    for seed in (0, 0, 1):
        fit, asked = student_best_at(5, 0.3)
        search_settings(fit, (IMAGES, LABELS), runs=3, seed=seed)
        settings.append(asked)
    assert settings[0] == settings[1] != settings[2]


def test_a_trial_says_how_the_student_did():
    trial = try_setting(lambda temperature, alpha: Guess(900), 4, 0.1, (IMAGES, LABELS))
    wrong = math.log(math.exp(5) + 9)
    assert trial[:3] == (4, 0.1, Accuracy(900, 1000))
    assert trial.loss == pytest.approx(0.9 * (wrong - 5) + 0.1 * wrong)


def test_among_those_alike_the_smaller_loss_wins():
    alike = [
        SettingTrial(1, 0, Accuracy(9000, 10_000), 0.5),
        SettingTrial(2, 0, Accuracy(8980, 10_000), 0.3),
        SettingTrial(3, 0, Accuracy(8970, 10_000), 0.1),
    ]
    assert best_trial(alike).temperature == 2  # the third is 0.3 points behind


def test_what_gives_no_trial_is_named():
    for fit, validation, told in (
        ("fit", (IMAGES, LABELS), r"try_setting\(\): 'fit' must be a function"),
        (lambda *_: (nn.ReLU(), 1), (IMAGES, LABELS), "Did you mean model, history"),
        (lambda *_: Guess(9), IMAGES, "the data must be a tuple"),
        (lambda *_: Guess(9), (IMAGES, LABELS + 1), "the labels must be 0 to 9"),
    ):
        with pytest.raises(ParameterError, match=told):
            try_setting(fit, 4, 0.1, validation)
    with pytest.raises(ParameterError, match=r"best_trial\(\): 'trials' must be one or more"):
        best_trial([])


@pytest.mark.parametrize("runs", [0, -1, 2.5, True, None])
def test_a_budget_is_a_number_of_runs(runs):
    with pytest.raises(ParameterError, match=r"search_settings\(\): 'runs' must be a whole number in \[1, 1000\]"):
        search_settings(lambda *_: pytest.fail("no run was allowed"), (IMAGES, LABELS), runs=runs)


def test_where_optuna_is_missing_it_is_named_before_any_run(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SetupError, match=r"optuna is not installed\. Run: pip install optuna"):
        search_settings(lambda *_: pytest.fail("no run was allowed"), (IMAGES, LABELS), runs=3)
