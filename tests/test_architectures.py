"""A search of architectures keeps to its budget, stops what is hopeless, loses no trial, and files read as it says."""

import base64
import math
import random
import sys
from dataclasses import replace

import optuna
import pytest
import torch
from digits import MNIST
from torch import nn

from kd_lab.compression import architectures, search_architecture, search_architecture_live
from kd_lab.compression.architectures import ArchitectureSearch, ArchitectureTrial, FailedTrial, Proposals, StoppedTrial
from kd_lab.compression.designs import (
    JUDGES,
    SMALLEST,
    Design,
    is_hopeless,
    smallest_bytes,
    stop_limits,
    train_design,
    untrained_file,
)
from kd_lab.compression.recipe import check_recipe
from kd_lab.data import Mnist
from kd_lab.distillation import DistillationLoss
from kd_lab.errors import ParameterError, SetupError, TrainingError
from kd_lab.evaluation import Accuracy, accuracy
from kd_lab.formats.kdz import pack
from kd_lab.networks import weights
from kd_lab.networks.zoo import small_student
from kd_lab.sweeps.work import packed
from kd_lab.training import train

SMALL = Mnist(MNIST.train[:300], MNIST.validation[:200], MNIST.test[:10])
MOST = 300  # bytes
FAST = {"minutes": 5, "epochs": 2, "steps_per_epoch": 3, "progress": False}
BEGUN: list[Design] = []  # by `pretended`
BROKEN: list[bool] = []


@pytest.fixture(scope="module")
def teacher():
    return small_student(8)


def in_turn(function, trials, _folder, **_settings):
    """Stand in for a sweep."""
    return [function(**trial) for trial in trials]


@pytest.fixture(scope="module")
def search(teacher):
    """Return a search whose networks are really trained, for a moment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(architectures, "sweep", in_turn)
        return search_architecture(SMALL, teacher, most_bytes=MOST, runs=3, **FAST)


def pretended(design, teaching, first, limits):
    """Return what a trial would: the narrower the last convolution, the worse it is in every epoch."""
    BEGUN.append(design)
    losses = []
    for epoch in range(first["epochs"]):
        losses.append(1 / design.widths[2] + 1 / (1 + epoch))
        if is_hopeless(losses, limits):
            return {"losses": losses}
    size = math.ceil(design.least_bytes)
    file = base64.b64encode(bytes(size)).decode()
    return {"losses": losses, "file": file, "correct": 200 - round(400 * (losses[-1] - 0.5)), "loss": losses[-1]}


@pytest.fixture
def pretending(monkeypatch, in_this_process):
    """Let no network be trained, and return the designs that would be."""
    monkeypatch.setattr(architectures, "train_design", pretended)
    BEGUN.clear()
    BROKEN.clear()
    return BEGUN


def searched(teacher, **changed):
    return search_architecture(SMALL, teacher, **{"most_bytes": MOST, "runs": 6, **FAST, **changed})


def test_every_trial_is_a_file_that_reads_as_it_says(search):
    assert len(search.trials) + len(search.stopped) + len(search.failed) == 3
    for trial in search.trials:
        model = trial.model
        assert pack(model, "compact") == trial.file and trial.bytes == len(trial.file)
        assert accuracy(model, SMALL.validation) == trial.accuracy
        loss = nn.functional.cross_entropy(model(SMALL.validation.images), SMALL.validation.labels)
        assert trial.loss == pytest.approx(loss.item(), rel=1e-4)
        assert len(trial.losses) == FAST["epochs"]


def test_the_network_of_a_file_is_the_design(search):
    for trial in search.trials:
        layers = weights(trial.model)
        assert tuple(len(layers[name].value) for name in ("conv1", "conv2", "conv3")) == trial.design.widths
        for bits, layer in zip(trial.design.bits, layers.values(), strict=True):
            assert len(layer.value.unique()) <= 2**bits
        assert not any(isinstance(module, nn.BatchNorm2d) for module in trial.model.modules())
        zeros = sum(int((layer.value == 0).sum()) for layer in layers.values())
        assert zeros >= math.floor(trial.design.sparsity * sum(layer.value.numel() for layer in layers.values()))
    assert any(trial.design.sparsity for trial in search.trials)


def test_it_says_what_was_found_on_which_images(search):
    said = repr(search)
    assert "the 200 validation images that chose it" in said and f"budget of {MOST:,} bytes was met" in said
    assert f"{search.refused:,} proposals that could not fit cost no training" in said
    assert f"{search.best.bytes:,}" in said and str(search.best.design) in said


def test_what_a_file_takes_at_least_is_known_before_any_training(search):
    designs = [
        SMALLEST,
        Design((4, 6, 9), 5, 2, (4, 3, 3, 3), 0.0),
        Design((12, 3, 24), 7, 3, (2, 5, 2, 4), 0.0),
        Design((3, 20, 5), 3, 2, (5, 5, 5, 5), 0.5),
    ]
    found = [(len(untrained_file(design)), design.least_bytes) for design in designs]
    found += [(trial.bytes, trial.design.least_bytes) for trial in search.trials]
    assert all(least <= size <= 1.75 * least for size, least in found), found


def test_no_design_is_trained_that_can_not_fit(teacher, pretending):
    search = searched(teacher, most_bytes=100, runs=8)
    assert len(pretending) == len(set(pretending)) == 8 and search.refused > 0
    assert all(design.least_bytes <= 100 for design in pretending)


def test_no_design_is_trained_twice(monkeypatch):
    designs = iter([SMALLEST, SMALLEST, replace(SMALLEST, sparsity=0.5), SMALLEST, replace(SMALLEST, stride=2)])
    monkeypatch.setattr(Proposals, "_design", lambda *_: next(designs))
    proposals = Proposals(optuna.create_study(), MOST)
    taken = [design for count in (1, 2) for design in proposals.take(count).values()]
    assert taken == [SMALLEST, replace(SMALLEST, sparsity=0.5), replace(SMALLEST, stride=2)] and proposals.refused == 0


def test_the_best_is_within_the_budget():
    trials = [trial(90, 150, 0.3), trial(280, 180, 0.2), trial(320, 195, 0.1)]
    assert ArchitectureSearch(300, trials, 0).best.bytes == 280
    over = ArchitectureSearch(80, trials, 0)
    assert not over.met and over.best.bytes == 90 and "met by none: found is the smallest" in repr(over)


def trial(size, correct, loss=0.0, losses=()):
    return ArchitectureTrial(SMALLEST, list(losses), bytes(size), Accuracy(correct, 200), loss)


def test_the_frontier_is_what_nothing_beats():
    trials = [trial(300, 180), trial(200, 170), trial(250, 160), trial(200, 165), trial(100, 150), trial(350, 180)]
    search = ArchitectureSearch(300, [*trials, StoppedTrial(SMALLEST, [1.0]), FailedTrial(SMALLEST, "NaN")], 0)
    assert [(each.bytes, each.accuracy.correct) for each in search.frontier] == [(100, 150), (200, 170), (300, 180)]
    assert len(search.trials) == 6 and len(search.stopped) == len(search.failed) == 1


def test_the_picture_is_drawn_again_on_the_same_axes():
    trials = [trial(300, 180), trial(200, 170), trial(250, 160), trial(100, 200)]
    axes = ArchitectureSearch(300, trials[:1], 0).plot()
    assert ArchitectureSearch(300, trials, 0).plot(axes) is axes
    tried, frontier, found, budget = axes.lines
    assert list(tried.get_xdata()) == [300, 200, 250, 100] and list(frontier.get_xdata()) == [100]
    assert list(found.get_xdata()) == [100] and list(budget.get_xdata()) == [300, 300]
    assert found.get_ydata()[0] > 0  # of a logarithmic axis


def test_a_hopeless_training_is_stopped_counted_and_named(teacher, pretending):
    search = searched(teacher, runs=16, workers=2)
    assert len(pretending) == len(search.trials) + len(search.stopped) == 16 and search.stopped
    assert f"{len(search.stopped)} stopped early" in repr(search)
    assert all(isinstance(ended, ArchitectureTrial) for ended in search.ended[:JUDGES])
    for number, ended in enumerate(search.ended):
        before = [each for each in search.ended[: number - number % 2] if isinstance(each, ArchitectureTrial)]
        widths = sorted(each.design.widths[2] for each in before)
        if len(widths) >= JUDGES and ended.design.widths[2] < widths[len(widths) // 2 - (len(widths) % 2 == 0)]:
            assert isinstance(ended, StoppedTrial) and len(ended.losses) < FAST["epochs"] + 1


def test_what_is_over_the_budget_stops_nothing_that_fits(teacher, pretending, monkeypatch):
    monkeypatch.setattr(architectures, "train_design", oversized)
    search = searched(teacher, runs=16, workers=2)
    assert not search.met and not search.stopped and len(search.trials) == 16


def oversized(*arguments):
    return pretended(*arguments) | {"file": base64.b64encode(bytes(MOST + 1)).decode()}


@pytest.fixture
def teaching(teacher):
    return check_recipe(SMALLEST.build(0), teacher, SMALL, {"seed": 0, "learning_rate": 1e-2})


def test_a_training_that_is_above_the_limit_ends_there(teaching):
    first = {"epochs": 3, "steps_per_epoch": 1}
    stopped = [train_design(SMALLEST, teaching, first | {"seed": seed}, [None, 0.0, 0.0]) for seed in (0, 0, 1)]
    assert list(stopped[0]) == ["losses"] and len(stopped[0]["losses"]) == 2
    assert stopped[0] == stopped[1] != stopped[2]
    training, validation = teaching.parts
    settings = first | {"validation": validation, "seed": 1, "progress": False}
    _, history = train(SMALLEST.build(1), training, DistillationLoss(4.0, 0.1), **settings)
    assert stopped[2]["losses"] == history.validation_loss[:2]


def test_what_comes_behind_the_first_training_is_trained_more_finely(teaching):
    architectures._training(teaching, 2)
    assert teaching.settings["learning_rate"] == pytest.approx(3e-3)


def test_other_processes_get_the_data_and_not_all_that_they_were_cut_from(teaching):
    bytes_of_a_number, pixels = 4, 28 * 28 * (300 + 200)
    assert len(packed(architectures._training(teaching, 2))) < 2 * bytes_of_a_number * pixels


def test_what_is_stopped_is_what_optunas_pruner_stops():
    numbers = random.Random(0)
    for finished in range(8):
        earlier = [[numbers.random() for _ in range(6)] for _ in range(finished)]
        pruner = optuna.pruners.MedianPruner(n_startup_trials=JUDGES, n_warmup_steps=2)
        study = optuna.create_study(pruner=pruner)
        for losses in earlier:
            values = dict(enumerate(losses))
            study.add_trial(optuna.trial.create_trial(value=losses[-1], intermediate_values=values))
        limits, asked, losses = stop_limits(earlier, 6), study.ask(), []
        for epoch in range(6):
            losses.append(numbers.random())
            asked.report(losses[-1], epoch)
            assert is_hopeless(losses, limits) == asked.should_prune(), (finished, epoch)


def test_the_same_seed_finds_the_same(teacher, pretending):
    again = [searched(teacher, seed=seed, workers=2).ended for seed in (0, 0, 1)]
    assert again[0] == again[1] != again[2]


def test_a_search_that_was_stopped_goes_on_without_training_again(teacher, pretending, monkeypatch, tmp_path, capsys):
    whole = searched(teacher, runs=7, workers=2)
    pretending.clear()
    monkeypatch.setattr(architectures, "train_design", interrupted_at_the_fourth)
    first = searched(teacher, runs=7, workers=2, folder=tmp_path)
    assert first.ended == whole.ended[:2] and "Interrupted. 2 of 7 trials are done." in capsys.readouterr().out
    assert len(pretending) == 3  # and the third one is kept
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("trial_*.json")}
    pretending.clear()
    monkeypatch.setattr(architectures, "train_design", pretended)
    assert searched(teacher, runs=7, workers=2, folder=tmp_path).ended == whole.ended
    assert pretending == [ended.design for ended in whole.ended[3:]]
    assert len(files) == 3 and all(path.stat().st_mtime_ns == made for path, made in files.items())
    pretending.clear()
    searched(teacher, runs=7, workers=2, folder=tmp_path, most_bytes=MOST + 1)  # another one
    assert len(pretending) == 7


def interrupted_at_the_fourth(*arguments):
    if len(BEGUN) == 3:
        raise KeyboardInterrupt
    return pretended(*arguments)


def test_an_error_ends_it_and_the_same_call_tries_that_trial_again(teacher, pretending, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(architectures, "train_design", broken_at_the_third)
    assert len(searched(teacher, runs=4, folder=tmp_path).ended) == 2
    said = capsys.readouterr().out
    assert "search_architecture(): 1 of 2 trials gave no result" in said and "RuntimeError: no memory" in said
    assert len(searched(teacher, runs=4, folder=tmp_path).ended) == 4 and len(pretending) == 4


def broken_at_the_third(*arguments):
    if len(BEGUN) == 2 and not BROKEN:
        BROKEN.append(True)
        raise RuntimeError("no memory")
    return pretended(*arguments)


def test_it_can_be_looked_at_as_it_grows(teacher, pretending):
    rounds = search_architecture_live(SMALL, teacher, most_bytes=MOST, runs=5, workers=2, **FAST)
    assert [len(found.ended) for found in rounds] == [2, 4, 5, 5]


def test_it_ends_in_time(teacher, pretending, monkeypatch):
    monkeypatch.setattr(architectures, "in_time", lambda rounds, seconds: range(1) if seconds == 30 else range(rounds))
    assert len(searched(teacher, runs=8, workers=2, minutes=0.5).ended) == 2


def test_a_design_that_fails_is_counted_and_the_search_goes_on(teacher, pretending, monkeypatch):
    monkeypatch.setattr(architectures, "train_design", failing_if_it_begins_narrow)
    search = searched(teacher, runs=8)
    narrow = [ended for ended in search.ended if ended.design.widths[0] < 5]
    assert search.failed == narrow != [] and search.trials and f"{len(narrow)} failed" in repr(search)
    monkeypatch.setattr(architectures, "train_design", failing)
    with pytest.raises(TrainingError, match=r"search_architecture\(\): every trial failed, the last one since NaN"):
        searched(teacher, runs=2)


def failing_if_it_begins_narrow(design, *arguments):
    return {"problem": "the loss became NaN"} if design.widths[0] < 5 else pretended(design, *arguments)


def failing(*_arguments):
    return {"problem": "NaN"}


def test_the_study_is_told_the_error_and_by_how_much_the_budget_is_missed(teacher, pretending, monkeypatch):
    studies, create = [], optuna.create_study
    monkeypatch.setattr(optuna, "create_study", lambda **settings: studies.append(create(**settings)) or studies[-1])
    monkeypatch.setattr(architectures, "train_design", failing_if_it_begins_narrow)
    search = searched(teacher, runs=12)
    told = [each for each in studies[0].trials if each.state.name != "FAIL"]
    assert len(studies[0].trials) == 12 + search.refused and all(each.state.is_finished() for each in studies[0].trials)
    for each, ended in zip(told, [each for each in search.ended if each not in search.failed], strict=True):
        finished = isinstance(ended, ArchitectureTrial)
        assert each.state.name == ("COMPLETE" if finished else "PRUNED")
        assert list(each.intermediate_values.values()) == ended.losses
        if finished:
            assert each.value == pytest.approx(1 - ended.accuracy.value)
            assert each.constraints["over"] == pytest.approx(math.log(ended.bytes / MOST))


@pytest.mark.slow
def test_processes_find_what_one_finds(search, teacher, tmp_path):
    found = search_architecture(SMALL, teacher, most_bytes=MOST, runs=3, folder=tmp_path, **FAST)
    assert found.ended == search.ended


@pytest.mark.parametrize(
    "change, part",
    [
        (dict(most_bytes=20), f"the smallest file of this search has about {smallest_bytes()} bytes. Got 20."),
        (dict(most_bytes=0), "'most_bytes' must be a whole number in [1, 1000000000]"),
        (dict(teacher=None), "search_architecture(): 'teacher' must be a network. Got None."),
        (dict(teacher=nn.Sequential(nn.Flatten(), nn.Linear(784, 7))), "must have one shape"),
        (dict(data=None), "'data' must be what load_mnist() returns"),
        (dict(runs=0), "'runs' must be a whole number in [1, 10000]"),
        (dict(minutes=0), "'minutes' must be a number in (0, 100000]"),
        (dict(epochs=0), "'epochs' must be a whole number in [1, 1000]"),
        (dict(seed=-1), "'seed' must be a whole number in [0, 1000000]"),
        (dict(workers=0), "'workers' must be a whole number in [1, 1000]"),
        (dict(lr=3), "'setting' must be one of learning_rate,"),
        (dict(learning_rate=-1), "search_architecture(): 'learning_rate' must be a number"),
        (dict(folder=__file__), "'folder' must be one that can be written, or be made."),
    ],
)
def test_bad_arguments_are_named_before_anything_begins(teacher, pretending, change, part, tmp_path):
    arguments = {"data": SMALL, "teacher": teacher, "most_bytes": MOST, "runs": 2, "folder": tmp_path, **FAST, **change}
    with pytest.raises(ParameterError) as error:
        search_architecture(**arguments)
    assert part in str(error.value), str(error.value)
    assert not pretending and not list(tmp_path.iterdir())


def test_where_optuna_is_missing_it_is_named_before_any_training(teacher, pretending, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SetupError, match=r"optuna is not installed\. Run: pip install optuna"):
        searched(teacher)
    assert not pretending


def test_where_nothing_can_fit_after_all_it_says_so(teacher, pretending, monkeypatch):
    monkeypatch.setattr(architectures, "MAX_REFUSED", 2)
    monkeypatch.setattr(Design, "least_bytes", math.inf)
    with pytest.raises(TrainingError, match=r"none of 2 proposals can fit\. Allow more 'most_bytes'"):
        searched(teacher)


def test_the_answers_of_a_search_need_no_random_numbers_of_the_caller(teacher, pretending):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    searched(teacher, runs=1)
    assert torch.equal(torch.rand(1), expected)
