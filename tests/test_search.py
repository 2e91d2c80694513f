"""A search finds what a grid would, keeps to its budget and its time, beats what is set by hand, and loses no trial."""

import math
import sys
import time

import numpy as np
import optuna
import pytest
import torch
from digits import MNIST
from torch import nn

from kd_lab.compression import search as search_module
from kd_lab.compression import search_recipe
from kd_lab.compression.search import (
    MAX_KEPT,
    MIN_KEPT,
    Budget,
    RecipeTrial,
    Search,
    SettingTrial,
    best_trial,
    search_settings,
    try_setting,
)
from kd_lab.cost import count_parameters
from kd_lab.data import Mnist
from kd_lab.errors import ParameterError, SetupError, StorageError, TrainingError
from kd_lab.evaluation import Accuracy, PairedDifference, accuracy, paired_difference
from kd_lab.formats.kdz import load_packed, pack
from kd_lab.networks.predictions import predict

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
        (lambda *_: (nn.ReLU(), 1), (IMAGES, LABELS), "'fit' must return a network .* Did you mean model, history"),
        (lambda *_: None, (IMAGES, LABELS), r"'fit' must return a network .* NoneType\. Is the line missing"),
        (lambda *_: Guess(9), IMAGES, "the data must be a tuple"),
        (lambda *_: Guess(9), (IMAGES, LABELS + 1), "the labels must be 0 to 9"),
    ):
        with pytest.raises(ParameterError, match=told):
            try_setting(fit, 4, 0.1, validation)
    with pytest.raises(ParameterError, match=r"search_settings\(\): 'fit' must be a function"):
        search_settings((IMAGES, LABELS), Guess, runs=3)
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


def fit_that_ends(after, error):
    """Return a fit that raises an error at its next trial after so many."""
    asked = []

    def fit(*setting):
        asked.append(setting)
        if len(asked) > after:
            raise error
        return Guess(900 + len(asked))

    return fit


ENDS = [
    (KeyboardInterrupt(), "Interrupted. 2 of 9 trials are done."),
    (StorageError("1 MB is needed."), "1 MB is needed. 2 of 9 trials are done."),
    (RuntimeError("size mismatch"), "RuntimeError: size mismatch. 2 of 9 trials are done."),
    (KeyError("fc9"), "KeyError: 'fc9'. 2 of 9 trials are done."),
    (ParameterError("'epochs' is missing.", "train"), "train(): 'epochs' is missing. 2 of 9 trials are done."),
]


@pytest.mark.parametrize("error, told", ENDS, ids=[told for _, told in ENDS])
def test_a_search_that_ends_early_keeps_its_trials(error, told, capsys, caplog):
    trials = search_settings(fit_that_ends(2, error), (IMAGES, LABELS), runs=9)
    assert [trial.accuracy.correct for trial in trials] == [901, 902]
    printed = capsys.readouterr()
    assert told in printed.out and not printed.err and not caplog.records
    with pytest.raises(type(error)):
        search_settings(fit_that_ends(0, error), (IMAGES, LABELS), runs=9)
    assert "Traceback" not in capsys.readouterr().err


def test_a_second_interrupt_loses_no_trial_either(monkeypatch):
    def interrupt(*_arguments, **_settings):
        raise KeyboardInterrupt

    for place in ("builtins.print", "kd_lab.compression.search.tqdm.__exit__", "optuna.study.Study.tell"):
        with monkeypatch.context() as patch:
            told = place.endswith("tell")  # of the first trial
            fit = fit_that_ends(9 if told else 2, KeyboardInterrupt())
            patch.setattr(place, interrupt)
            trials = search_settings(fit, (IMAGES, LABELS), runs=9)
        assert [trial.accuracy.correct for trial in trials] == [901] if told else [901, 902]


def test_a_student_that_diverges_is_left_out_and_the_search_goes_on(capsys):
    ends = iter([Guess(900), TrainingError("the loss became NaN"), Guess(800)])

    def fit(*_setting):
        student = next(ends)
        if isinstance(student, TrainingError):
            raise student
        return student

    assert len(search_settings(fit, (IMAGES, LABELS), runs=3)) == 2 and "became NaN" in capsys.readouterr().out


def test_numbers_of_numpy_are_pythons_own():
    settings = []
    for number in (int, np.int64, np.uint8):
        fit, asked = student_best_at(5, 0.3)
        search_settings(fit, (IMAGES, LABELS), runs=number(3), seed=number(1))
        settings.append(asked)
    assert settings[0] == settings[1] == settings[2]
    assert repr(Budget(np.int64(1000), None)) == repr(Budget(1000, None))
    assert repr(Budget(None, np.float64(0.5))) == repr(Budget(None, 0.5))


SMALL = Mnist(MNIST.train[:1000], MNIST.validation[:500], MNIST.test[:10])
SETTINGS = dict(minutes=5, learning_rate=3e-3, batch_size=100)
MOST = 1000  # bytes


@pytest.fixture(scope="module")
def start(student):
    return student


@pytest.fixture(scope="module")
def search(start):
    return search_recipe(start, start, SMALL, most_bytes=MOST, runs=6, **SETTINGS)


def trial(size, correct, loss=0.0):
    """Return a trial beside a network that read 950 of 1,000."""
    difference = PairedDifference(max(0, correct - 950), max(0, 950 - correct), 1000)
    return RecipeTrial([], {}, bytes(size), Accuracy(correct, 1000), difference, loss)


def test_every_trial_is_a_file_that_reads_as_it_says(search, start):
    assert len(search.trials) == 6
    for each in (search.trials[0], search.best):
        model = each.model
        assert pack(model) == each.file and each.bytes == len(each.file)
        assert accuracy(model, SMALL.validation) == each.accuracy
        assert each.difference == paired_difference(model, start, SMALL.validation)
        assert each.lost == pytest.approx(-100 * each.difference.value)
        loss = torch.nn.functional.cross_entropy(predict(model, SMALL.validation.images), SMALL.validation.labels)
        assert each.loss == pytest.approx(loss.item())


def test_settings_stay_in_their_ranges_and_the_first_is_set_by_hand(search):
    first, *others = search.trials
    prune, share = first.stages
    assert set(prune.sparsity.values()) == {0.9} and set(share.num_bits.values()) == {4}
    assert first.teaching == {"temperature": 4.0, "alpha": 0.1}
    for each in others:
        prune, share = each.stages
        assert list(prune.sparsity) == list(share.num_bits) == ["fc1", "fc2"]
        assert all(1 - MAX_KEPT <= sparsity <= 1 - MIN_KEPT for sparsity in prune.sparsity.values())
        assert all(2 <= bits <= 5 for bits in share.num_bits.values())
        assert 1 <= each.teaching["temperature"] <= 20 and 0 <= each.teaching["alpha"] <= 1
    assert len({str(each.stages) for each in search.trials}) == 6


def test_the_budget_is_met_by_the_best_of_those_that_meet_it(search, start):
    assert search.met and search.best.bytes <= MOST < search.trials[0].bytes
    fitting = [each for each in search.trials if each.bytes <= MOST]
    assert search.best.accuracy.value > max(each.accuracy.value for each in fitting) - 0.0025
    assert "budget of 1,000 bytes was met" in repr(search) and f"{search.best.bytes:,}" in repr(search)
    assert search.dense_bytes == 4 * count_parameters(start)


@pytest.mark.parametrize("lost", [0.0, 0.7, 1.4, 2.5])
def test_a_trial_that_loses_just_the_budget_meets_it(lost):
    each = trial(500, 950 - round(10 * lost))
    assert each.lost == lost and str(each.lost) == str(lost)  # and not -0.0
    assert Budget(None, lost).over(each) == 0 < Budget(None, lost).over(trial(500, 949 - round(10 * lost)))


def test_of_points_lost_the_smallest_file_is_the_best():
    search = Search([trial(900, 940), trial(500, 930), trial(300, 900)], Budget(None, 2.5), 10_000)
    assert search.met and search.best.bytes == 500


def test_of_alike_accuracies_the_loss_decides():
    search = Search([trial(900, 950, 0.2), trial(800, 948, 0.1), trial(700, 940, 0.0)], Budget(1000, None), 10_000)
    assert search.best.bytes == 800


@pytest.mark.parametrize("budget, nearest", [(Budget(200, None), 300), (Budget(None, 0.5), 900)])
def test_a_budget_that_no_trial_met_names_the_nearest(budget, nearest):
    search = Search([trial(900, 940), trial(500, 930), trial(300, 900)], budget, 10_000)
    search.trials[0].stages.extend(search_module._stages({"fc1": 0.1}, {"fc1": 4}, 1))
    for other in search.trials[1:]:
        other.stages.extend(search.trials[0].stages)
    assert not search.met and search.best.bytes == nearest
    assert "met by none: below is the nearest" in repr(search) and "nearest " in repr(search)


def test_the_frontier_is_what_nothing_beats():
    trials = [trial(900, 940), trial(500, 930), trial(600, 920), trial(500, 925), trial(300, 900), trial(950, 940)]
    frontier = Search(trials, Budget(1000, None), 10_000).frontier
    assert [(each.bytes, each.accuracy.correct) for each in frontier] == [(300, 900), (500, 930), (900, 940)]


def test_the_picture_shows_every_trial_the_hand_set_one_the_best_and_the_budget(search):
    tried, _frontier, first, best, budget = search.plot().lines
    assert sorted(tried.get_xdata()) == sorted(each.bytes for each in search.trials)
    assert first.get_xdata() == [search.trials[0].bytes] and best.get_xdata() == [search.best.bytes]
    assert list(budget.get_xdata()) == [MOST, MOST]


def test_each_trial_is_taught_as_it_says(start, monkeypatch):
    asked, run_stages = [], search_module.run_stages

    def listened(*arguments):
        asked.append(dict(temperature=arguments[3], alpha=arguments[4]))
        return run_stages(*arguments)

    monkeypatch.setattr(search_module, "run_stages", listened)
    found = search_recipe(start, start, SMALL, most_bytes=MOST, runs=2, steps_per_epoch=1, **SETTINGS)
    assert [each.teaching for each in found.trials] == asked and asked[0] != asked[1]


def test_it_ends_in_time(start, monkeypatch):
    def slow(*_arguments):
        time.sleep(0.15)
        return trial(100, 900)

    monkeypatch.setattr(search_module, "_try", slow)
    found = search_recipe(start, None, SMALL, most_bytes=MOST, runs=100, **SETTINGS | {"minutes": 1 / 120})
    assert 1 <= len(found.trials) <= 3  # of 0.15 s and what the sampler takes, in half a second


def in_turn(*ends):
    """Return what stands for `_try`: it returns or raises one after another."""
    left = iter(ends)

    def try_next(*_arguments):
        found = next(left)
        if isinstance(found, BaseException):
            raise found
        return found

    return try_next


def test_an_interrupt_keeps_the_trials_that_are_done(start, monkeypatch, capsys):
    monkeypatch.setattr(search_module, "_try", in_turn(trial(100, 900), trial(90, 800), *[KeyboardInterrupt()] * 2))
    found = search_recipe(start, None, SMALL, most_bytes=MOST, runs=9, **SETTINGS)
    assert [each.bytes for each in found.trials] == [100, 90]
    assert "Interrupted. 2 of 9 trials are done." in capsys.readouterr().out
    with pytest.raises(KeyboardInterrupt):
        search_recipe(start, None, SMALL, most_bytes=MOST, runs=9, **SETTINGS)


def test_a_full_disk_ends_the_search_with_the_trials_that_are_done(start, monkeypatch, capsys):
    monkeypatch.setattr(search_module, "_try", in_turn(trial(100, 900), StorageError("1 MB is needed.")))
    found = search_recipe(start, None, SMALL, most_bytes=MOST, runs=9, **SETTINGS)
    assert [each.bytes for each in found.trials] == [100]
    assert "1 MB is needed. 1 of 9 trials are done." in capsys.readouterr().out


def test_a_trial_that_diverges_is_left_out_and_the_search_goes_on(start, monkeypatch, capsys):
    monkeypatch.setattr(
        search_module, "_try", in_turn(trial(100, 900), TrainingError("the loss became NaN"), trial(90, 800))
    )
    found = search_recipe(start, None, SMALL, most_bytes=MOST, runs=3, **SETTINGS)
    assert [each.bytes for each in found.trials] == [100, 90] and "the loss became NaN" in capsys.readouterr().out
    monkeypatch.setattr(search_module, "_try", in_turn(*[TrainingError("NaN")] * 2))
    with pytest.raises(TrainingError, match="every trial diverged"):
        search_recipe(start, None, SMALL, most_bytes=MOST, runs=2, **SETTINGS)


def test_the_sampler_is_told_the_error_and_by_how_much_the_budget_is_missed(start, monkeypatch):
    studies, create = [], optuna.create_study
    monkeypatch.setattr(optuna, "create_study", lambda **settings: studies.append(create(**settings)) or studies[-1])
    monkeypatch.setattr(search_module, "_try", in_turn(trial(100, 900), trial(300, 800)))
    search_recipe(start, None, SMALL, most_bytes=2000, runs=2, **SETTINGS)
    told = [(each.constraints["over"], each.value) for each in studies[0].trials]
    assert told == [pytest.approx((math.log(0.05), 0.1)), pytest.approx((math.log(0.15), 0.2))]


def test_without_a_teacher_there_is_nothing_to_ask_of_it(start):
    found = search_recipe(start, None, SMALL, most_bytes=MOST, runs=2, steps_per_epoch=1, **SETTINGS)
    assert [each.teaching for each in found.trials] == [{}, {}] and "temperature" not in repr(found)


@pytest.mark.slow
def test_a_search_goes_on_where_it_was_stopped(start, tmp_path, monkeypatch):
    arguments = dict(most_bytes=MOST, folder=tmp_path, steps_per_epoch=1, **SETTINGS)
    first = search_recipe(start, start, SMALL, runs=2, **arguments)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    second = search_recipe(start, start, SMALL, runs=3, **arguments)
    assert [each.file for each in first.trials] == [each.file for each in second.trials[:2]]
    assert all(path.stat().st_mtime_ns == made for path, made in files.items())
    assert len(list(tmp_path.iterdir())) == 6 and all(load_packed(path) for path in tmp_path.iterdir())


@pytest.mark.parametrize(
    "change, part",
    [
        (dict(most_bytes=None), "one of 'most_bytes' and 'most_lost' must be given"),
        (dict(most_lost=0.2), "they exclude each other. Got 1000 and 0.2"),
        (dict(most_bytes=0), "'most_bytes' must be a whole number in [1, 1000000000]"),
        (dict(most_bytes=100), "'most_bytes' can't be met: the smallest file of this search has about"),
        (dict(most_bytes=None, most_lost=-1), "'most_lost' must be a number in [0, 100]"),
        (dict(seed=-1), "'seed' must be a whole number in [0, 1000000]"),
        (dict(lr=3), "'setting' must be one of learning_rate,"),
        (dict(learning_rate=-1), "search_recipe(): 'learning_rate' must be a number"),
        (dict(runs=0), "'runs' must be a whole number in [1, 1000]"),
        (dict(minutes=0), "'minutes' must be a number in (0, 10000]"),
        (dict(epochs=0), "'epochs' must be a whole number in [1, 1000]"),
        (dict(teacher=torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 7))), "must have one shape"),
        (
            dict(model=torch.nn.Linear(784, 10)),
            "search_recipe(): 'model' must be a network of the kit, or an nn.Sequential of plain layers",
        ),
        (dict(folder=__file__), "search_recipe(): 'folder' must be one that can be written, or be made."),
        (dict(data=None), "search_recipe(): 'data' must be what load_mnist() returns"),
    ],
)
def test_bad_arguments_are_named_before_anything_begins(start, change, part, tmp_path):
    arguments = (
        dict(model=start, teacher=start, data=SMALL, most_bytes=MOST, runs=2, folder=tmp_path, **SETTINGS) | change
    )
    with pytest.raises(ParameterError) as error:
        search_recipe(**arguments)
    assert part in str(error.value), str(error.value)
    assert not list(tmp_path.iterdir())
