"""The teacher of the frontier answers with the mean of its three members; the one that doesn't ship is trained once."""

import json

import pytest
import torch
from torch import nn

from benchmarks import _campaign, frontier
from benchmarks import _frontier_teacher as teacher
from benchmarks._frontier_teacher import Ensemble
from kd_lab.checkpoints import load_trained
from kd_lab.data import Mnist, Split
from kd_lab.networks.predictions import predict
from kd_lab.pretraining import RandomViews
from kd_lab.storage import load_tensors

SHORT = {"epochs": 1, "learning_rate": 3e-3, "batch_size": 32, "steps_per_epoch": 2, "seed": 0}


@pytest.fixture
def small(mnist):
    return Mnist(*(Split(part.images[:40], part.labels[:40]) for part in mnist))


@pytest.fixture
def results(small, tmp_path, monkeypatch, in_this_process):
    """Train for two steps, on few images, and record into an empty folder."""
    for module in ("kd_lab.results", "benchmarks", "benchmarks._frontier_teacher"):
        monkeypatch.setattr(f"{module}.RESULTS", tmp_path / "results")
    monkeypatch.setattr(_campaign, "mnist", lambda: small)
    monkeypatch.setattr(teacher, "TRAINING", SHORT)
    return tmp_path / "results" / "frontier.json"


def test_the_ensemble_answers_with_the_mean_of_the_logits():
    first, second = nn.Linear(3, 2), nn.Linear(3, 2)
    x = torch.rand(4, 3)
    assert torch.allclose(Ensemble(first, second)(x), (first(x) + second(x)) / 2)
    assert torch.equal(Ensemble(first)(x), first(x))


def test_the_kept_teacher_reads_the_validation_part_as_was_recorded(mnist):
    ensemble = teacher.load_ensemble()
    assert not ensemble.training and len(ensemble.members) == 3
    ships = [load_trained(name)(mnist.test.images[:9]) for name in teacher.SHIPPED]
    assert torch.equal(torch.stack(ships), torch.stack([each(mnist.test.images[:9]) for each in ensemble.members[:2]]))
    recorded = teacher.read(teacher.NAME)[teacher.PART]
    assert recorded["recipe"] == teacher.TRAINING
    assert _campaign.error(ensemble.members[2], mnist.validation) == recorded["validation_error"]
    assert _campaign.error(ensemble, mnist.validation) == pytest.approx(0.38)


def test_the_member_that_does_not_ship_is_trained_once(results, small, monkeypatch):
    begun = []
    train = teacher.train
    monkeypatch.setattr(teacher, "train", lambda *given, **how: begun.append(given) or train(*given, **how))
    for _time in range(2):
        with _campaign.campaign("frontier") as running:
            teacher.make_viewer(running)
    assert len(begun) == 1  # and then it is recorded
    views, before = begun[0][0]
    assert isinstance(views, RandomViews) and torch.equal(begun[0][1].images, small.train.images)
    recorded = json.loads(results.read_text())["teacher"]
    assert recorded["recipe"] == SHORT and set(recorded) == {"recipe", "validation_error", "cpu_minutes"}
    kept = teacher.load_ensemble().members[2]
    assert _campaign.error(kept, small.validation) == recorded["validation_error"]
    assert not torch.equal(predict(kept, small.validation.images), predict(before, small.validation.images))


def test_another_recipe_trains_it_anew(results, monkeypatch):
    kept = []
    for rate in (3e-3, 0.1):
        monkeypatch.setattr(teacher, "TRAINING", SHORT | {"learning_rate": rate})
        with _campaign.campaign("frontier") as running:
            teacher.make_viewer(running)
        kept.append(load_tensors(teacher.viewer_path())[0])
    assert any(not torch.equal(kept[0][name], kept[1][name]) for name in kept[0])


def test_it_is_made_before_the_files(results, monkeypatch):
    order = []
    monkeypatch.setattr(frontier, "load_mnist", lambda: None)
    monkeypatch.setattr(frontier, "enter_records", lambda _recorded, _data: None)
    for step in ("score_records", "score_search", "score_controls"):
        monkeypatch.setattr(frontier, step, lambda _given: {})
    for step in ("make_search", "make_viewer", "make_files", "measure_controls"):
        monkeypatch.setattr(frontier, step, lambda *_given, step=step: order.append(step))
    monkeypatch.setattr(frontier, "load_results", lambda _name: None)
    frontier.run(rerun=True)
    assert order.index("make_viewer") < order.index("make_files")
