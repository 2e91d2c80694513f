"""The controls of the frontier learn from what they are said to, and what was recorded of them isn't run again."""

import json

import pytest
import torch
import torch.nn.functional as F

from benchmarks import _campaign, _trees, frontier, hinton
from benchmarks import _frontier_controls as controls
from benchmarks.deep_compression import SETTINGS, moved
from kd_lab import checkpoints
from kd_lab.checkpoints import load_trained
from kd_lab.data import Mnist, Split
from kd_lab.distillation import SingleLeaf, SoftTree, distillation_loss
from kd_lab.networks.predictions import predict
from kd_lab.results import Record
from kd_lab.storage import save_tensors

SHORT = {"epochs": 1, "learning_rate": 3e-3, "batch_size": 32, "steps_per_epoch": 2}
MEASURED = {"validation_error": 1.0, "test_error": 0.02, "wrong": "5 7", "cpu_minutes": 2.5}


@pytest.fixture
def small(mnist):
    return Mnist(*(Split(part.images[:40], part.labels[:40]) for part in mnist))


@pytest.fixture
def teacher():
    """Keep a teacher of initial weights where that of the benchmark `hinton` is kept."""
    save_tensors(hinton.kept_teacher(), hinton.teacher_network().state_dict(), {})


@pytest.fixture
def results(tmp_path, monkeypatch, in_this_process):
    """Let the campaign run in this process, without data and without training, and record into an empty folder."""
    for module in ("kd_lab.results", "benchmarks"):
        monkeypatch.setattr(f"{module}.RESULTS", tmp_path / "results")
    monkeypatch.setattr(_campaign, "mnist", lambda: None)
    monkeypatch.setattr(frontier, "load_mnist", lambda: None)
    monkeypatch.setattr(frontier, "make_search", lambda _running, _data: None)
    monkeypatch.setattr(frontier, "make_viewer", lambda _running: None)
    monkeypatch.setattr(frontier, "make_files", lambda _running: None)
    monkeypatch.setattr(frontier, "enter_records", lambda _recorded, _data: None)
    monkeypatch.setattr(frontier, "score_records", lambda _data: {})
    monkeypatch.setattr(controls, "before_moves", lambda _: controls.PerSeed([1.0, 1.1, 1.2, 1.3, 1.4]))
    return tmp_path / "results" / "frontier.json"


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """Give the same answers for every trial; return the function that lists those that were begun."""
    path = tmp_path / "begun"  # a list would travel with the function, as to another process
    path.touch()

    def control(name, settings, seed, data):
        with path.open("a") as file:
            print(name, seed, file=file)
        return MEASURED

    control.__module__ = controls.__name__
    monkeypatch.setattr(controls, "control", control)
    return lambda: path.read_text().splitlines()


@pytest.mark.parametrize("name", controls.TRAINING)
def test_each_trial_gives_what_its_network_reads_wrongly(name, small, teacher):
    found = controls.control(name, SHORT, 1, small)
    assert found.keys() == MEASURED.keys() and found["cpu_minutes"] >= 0
    assert found["test_error"] == round(100 * len(found["wrong"].split()) / 40, 2)
    assert controls.control(name, SHORT, 1, small)["wrong"] == found["wrong"]


def heard(name, data, monkeypatch):
    """Return what a control's training is given."""
    given = {}

    def listen(model, part, loss, **settings):
        given.update(model=model, part=part, loss=loss, settings=settings)
        return model, None

    monkeypatch.setattr(controls, "train", listen)
    given["trained"] = controls.trained(name, SHORT, 3, data)
    return given


@pytest.mark.parametrize("name", ["lenet300", "lenet5"])
def test_a_network_of_the_kit_learns_labels_of_images_moved_by_a_pixel(name, small, monkeypatch):
    given = heard(name, small, monkeypatch)
    images, labels = given["part"]
    assert len(images) == 9 * 40 and torch.equal(labels, small.train.labels.repeat(9))
    assert torch.equal(images[:40], small.train.images.roll((-1, -1), dims=(2, 3)))
    assert given["loss"] is F.cross_entropy and given["model"].architecture == name
    assert given["settings"]["validation"] is small.validation and given["settings"]["seed"] == 3


@pytest.mark.parametrize("name", ["student", "distilled"])
def test_a_student_learns_from_all_images_and_begins_as_that_of_unmoved_ones(name, small, teacher, monkeypatch):
    given = heard(name, small, monkeypatch)
    assert len(given["part"].images) == 80 and given["settings"]["seed"] == 3
    student = given["trained"].eval()
    torch.testing.assert_close(student(small.test.images), hinton.network(3, 800)(small.test.images))
    reaches = [module.reach for module in given["model"].modules() if isinstance(module, hinton.Jitter)]
    assert reaches == [2] and (given["loss"] is F.cross_entropy) == (name == "student")


def test_a_tree_learns_the_answers_of_the_teacher_on_nine_moves_and_answers_by_a_single_leaf(small, monkeypatch):
    given, grown = [], SoftTree(2)
    monkeypatch.setattr(_trees, "grow", lambda *arguments: given.extend(arguments) or grown)
    tree = controls.trained("tree", SHORT, 3, small)
    seed, *parts, settings = given
    assert (seed, settings) == (3, SHORT) and isinstance(tree, SingleLeaf) and tree.tree is grown
    for (images, answers), expected in zip(parts, (moved(small).train, small.validation), strict=True):
        assert torch.equal(images, expected.images)
        torch.testing.assert_close(answers, (predict(load_trained("cnn"), images) / 2).softmax(dim=1))


def test_a_network_of_the_kit_learns_by_its_own_recipe_in_the_batches_of_compression():
    for name in ("lenet300", "lenet5"):
        given, own = controls.TRAINING[name], checkpoints.RECIPES[name]
        assert all(given[key] == own[key] for key in ("learning_rate", "weight_decay"))
        assert given["batch_size"] == SETTINGS["batch_size"] and given["steps_per_epoch"] == SETTINGS["steps_per_epoch"]
        assert given["epochs"] == controls.TRAINING["student"]["epochs"]


def test_student_and_teacher_see_the_same_moved_image(small):
    seen = {}
    both = controls.BothAnswers(hinton.network(0, 20), hinton.teacher_network(), 2).train()
    for part in ("student", "teacher"):
        both.get_submodule(part).register_forward_pre_hook(lambda _, x, part=part: seen.update({part: x[0]}))
    logits = both(small.train.images)
    assert torch.equal(seen["student"], seen["teacher"]) and not torch.equal(seen["student"], small.train.images)
    with torch.no_grad():
        torch.testing.assert_close(logits[:, :10], both.student(seen["student"]))
        torch.testing.assert_close(logits[:, 10:], hinton.teacher_network().eval()(seen["teacher"]))
        still = both.eval()(small.train.images)
    torch.testing.assert_close(still[:, :10], both.student(small.train.images))


def test_the_teacher_stays_as_it_was(small, teacher, monkeypatch):
    watched = []
    real = controls.train
    monkeypatch.setattr(
        controls, "train", lambda *given, **settings: watched.append(real(*given, **settings)) or watched[0]
    )
    student = controls.trained("distilled", SHORT, 0, small)
    both = watched[0][0]
    kept = hinton.load_teacher().state_dict()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in both.teacher.state_dict().items())
    assert student is both.student and not torch.equal(student[1].weight, hinton.network(0, 800)[1].weight)


def test_the_loss_takes_the_answers_apart():
    student, teacher, labels = torch.randn(6, 10), torch.randn(6, 10), torch.arange(6)
    expected = distillation_loss(student, teacher, labels, 20.0, 0.0)
    torch.testing.assert_close(controls.taught_loss(torch.cat([student, teacher], dim=1), labels), expected)


def test_what_is_missing_is_run_once_and_the_teacher_is_named(results, begun, capsys, empty_cache):
    figures = frontier.run(rerun=True)
    assert begun() == [f"{name} {seed}" for name in ("student", "lenet300", "lenet5", "tree") for seed in range(5)]
    assert f"{hinton.kept_teacher()} isn't there" in capsys.readouterr().out
    assert figures["frontier.hinton.moved_errors"] == 2 and "frontier.hinton.distilled_errors" not in figures
    assert not (empty_cache / "campaigns" / "frontier").exists()
    before = results.read_text()
    assert frontier.run(rerun=True) == figures == frontier.run(rerun=False)
    assert len(begun()) == 20 and results.read_text() == before


def test_with_the_teacher_the_distilled_students_are_added(results, begun, teacher):
    results.parent.mkdir()
    kept = {name: {"recipe": controls.TRAINING[name], "seeds": [MEASURED] * 5} for name in ("lenet300", "student")}
    kept["lenet5"] = {"recipe": {"epochs": 1}, "seeds": [MEASURED | {"test_error": 50.0}] * 5}
    results.write_text(json.dumps({"seeds": list(range(5)), "controls": kept}))
    figures = frontier.run(rerun=True)
    # one is of another recipe, the other is new
    assert begun() == [f"{name} {seed}" for name in ("lenet5", "distilled", "tree") for seed in range(5)]
    assert figures["frontier.hinton.distilled_errors"] == 2 and figures["frontier.lenet5.moved_errors.error"] == 0.02
    assert figures["frontier.tree.distilled_accuracy"] == pytest.approx(99.98)


def test_the_figures_are_means_over_the_seeds(monkeypatch, capsys):
    runs = [MEASURED | {"test_error": 0.01 * count, "wrong": list(range(count))} for count in (60, 70, 80)]
    recorded = Record({"seeds": [0, 1, 2], "controls": {"student": {"recipe": {}, "seeds": runs}}})
    monkeypatch.setattr(controls, "before_moves", lambda _: controls.PerSeed([1.6, 1.7, 1.8]))
    name = "frontier.hinton.moved_errors"
    assert controls.score_controls(recorded) == pytest.approx({name: 70, f"{name}.error": 0.7, f"{name}.seeds": 3})
    assert "+1.00" in capsys.readouterr().out


@pytest.mark.parametrize("name", controls.TRAINING)
def test_what_they_are_compared_with_is_recorded_for_each_seed(name):
    assert len(controls.before_moves(name).values) == 5
