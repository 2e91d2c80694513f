"""A search of the frontier is recorded once, with every trial, and what it found is printed."""

from types import SimpleNamespace

import pytest
from digits import MNIST

from benchmarks import _frontier_search as searching
from kd_lab.compression.architectures import ArchitectureSearch, ArchitectureTrial, FailedTrial, StoppedTrial
from kd_lab.compression.designs import SMALLEST
from kd_lab.data import Mnist
from kd_lab.evaluation import Accuracy
from kd_lab.results import Record


def trial(size, correct):
    return ArchitectureTrial(SMALLEST, [], bytes(size), Accuracy(correct, 200), 0.0)


ENDED = [trial(440, 190), StoppedTrial(SMALLEST, [1.0]), trial(500, 180), trial(300, 188), FailedTrial(SMALLEST, "NaN")]


@pytest.fixture
def running(tmp_path, monkeypatch):
    """Return a campaign that keeps what it is told in a dict, which is also what was recorded."""
    kept = {}
    monkeypatch.setattr(searching, "read", lambda _: kept)
    return SimpleNamespace(folder=tmp_path, workers=None, kept=kept, keep=kept.__setitem__)


def test_every_trial_of_a_search_is_recorded_and_it_runs_once(running, mnist, monkeypatch):
    asked = []

    def search_architecture(data, teacher, **settings):
        asked.append((data, teacher.architecture, settings))
        return ArchitectureSearch(450, ENDED, 7)

    monkeypatch.setattr(searching, "search_architecture", search_architecture)
    for _ in range(2):
        searching.make_search(running, mnist)
    ((data, teacher, settings),) = asked
    assert data is mnist and teacher == "resnet" and settings["folder"] == running.folder / "search"
    assert settings["most_bytes"] == 450 and settings["workers"] == 2
    search = running.kept["search"]
    trials = {number: (each["bytes"], each["validation_error"]) for number, each in search["trials"].items()}
    assert trials == {"1": (440, 5), "3": (500, 10), "4": (300, 6)} and search["found"]["bytes"] == 440
    assert (search["stopped"], search["failed"], search["refused"]) == (1, 1, 7)


@pytest.mark.slow
def test_the_search_takes_the_settings_of_the_recipe(running, monkeypatch):
    few = Mnist(*(part[:60] for part in MNIST))
    short = {"runs": 1, "epochs": 1, "batch_size": 20, "steps_per_epoch": 1}
    monkeypatch.setattr(searching, "RECIPE", searching.RECIPE | short)
    searching.make_search(running, few)
    only = running.kept["search"]["trials"]["1"]
    assert only["bytes"] > 0 and only == running.kept["search"]["found"] and 0 < only["validation_error"] <= 100


def test_the_figures_are_those_of_what_was_found(running, mnist, monkeypatch, capsys):
    monkeypatch.setattr(searching, "search_architecture", lambda *_, **__: ArchitectureSearch(450, ENDED, 7))
    searching.make_search(running, mnist)
    found = {"trials": 3, "stopped": 1, "bytes": 440, "validation_error": 5}
    figures = searching.score_search(Record({"seeds": [0, 1, 2], **running.kept}))  # as many as there are trials
    assert figures == {f"frontier.search.{key}": value for key, value in found.items()}
    said = capsys.readouterr().out
    assert "3 trials were trained to the end, 1 stopped early, 1 failed; 7 proposals" in said
    assert "300" in said and "440" in said and "500" not in said  # the frontier


def test_what_was_not_searched_gives_no_figures():
    assert searching.score_search(Record({"seeds": [0]})) == {}
