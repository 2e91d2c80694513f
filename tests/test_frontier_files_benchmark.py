"""The files of the frontier are made by their recipes, chosen by validation errors alone and scored by reading them."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch

from benchmarks import _campaign, deep_compression, frontier
from benchmarks import _frontier_files as files
from benchmarks._frontier_files import Recipe, Separable
from kd_lab.checkpoints import load_trained
from kd_lab.compression import FineTune, Grid, Prune, PruneUnits, records, rules
from kd_lab.compression.designs import Design
from kd_lab.compression.rules import Scores
from kd_lab.data import Mnist, Split
from kd_lab.distillation import with_answers
from kd_lab.errors import ParameterError
from kd_lab.formats.kdz import load_packed, unpack
from kd_lab.networks import weighted_layers
from kd_lab.pretraining import random_views
from kd_lab.results import Record, load_results

SHORT = {
    "tiny": files.designed(2.0, Design((4, 6, 9), 5, 2, (3, 3, 3, 3), 0.0), 1, 1, images="still"),
    "separable": files.designed(1.0, Separable((2, 3, 4), 3, 2, 5), 1, 1),
    "small": files.designed(0.45, Design((4, 8, 10), 7, 3, (3, 3, 3, 3), 0.2), 1, 1),
    "lenet5": Recipe("lenet5", 1.0, (PruneUnits(0.9, 0),), rounding=(Grid(3, 1),), learning_rate=5e-3),
    "lenet300": Recipe("lenet300", 1.9, (PruneUnits(0.9, 0), Grid(3, 1))),
}


@pytest.fixture
def small(mnist):
    return Mnist(*(Split(part.images[:150], part.labels[:150]) for part in mnist))


@pytest.fixture
def short(monkeypatch):
    """Have short recipes in place of those that were run."""
    monkeypatch.setattr(files, "RECIPES", SHORT)
    monkeypatch.setattr(files, "TRIALS", dict(zip(SHORT, (7, 6, 5, 3, 2), strict=True)))


@pytest.fixture
def quick(monkeypatch, small, short, in_this_process, tmp_path):
    """Let each recipe take a step or two, on few images, and record into an empty folder."""
    for module in ("kd_lab.results", "benchmarks", "benchmarks._frontier_files"):
        monkeypatch.setattr(f"{module}.RESULTS", tmp_path / "results")
    monkeypatch.setattr(_campaign, "mnist", lambda: small)
    monkeypatch.setattr(files, "START", files.START | {"steps_per_epoch": 2, "batch_size": 20})
    monkeypatch.setattr(files, "SETTINGS", files.SETTINGS | {"steps_per_epoch": 2, "batch_size": 20})
    return tmp_path / "results"


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("tiny", [(4, 1, 5, 5), (6, 4, 3, 3), (9, 6, 3, 3), (10, 36)]),  # no BatchNorm is left
        ("separable", [(2, 1, 3, 3), (2, 1, 3, 3), (3, 2, 1, 1), (3, 1, 3, 3), (4, 3, 1, 1), (10, 4)]),
        ("small", [(4, 1, 7, 7), (8, 4, 3, 3), (10, 8, 3, 3), (10, 10)]),
    ],
)
def test_a_file_of_any_network_holds_what_its_recipe_made(name, shapes, quick, small, monkeypatch):
    kept = []
    pack = files.pack
    monkeypatch.setattr(files, "pack", lambda model, coder: kept.append(pack(model, coder)) or kept[0])
    made = files.make(name, 0, small)
    assert made["bytes"] == len(kept[0]) and 0 < made["validation_error"] <= 100
    found = [tuple(layer.weight.shape) for layer in unpack(kept[0]).modules() if hasattr(layer, "weight")]
    assert found == shapes


def test_a_design_is_trained_and_then_pruned_and_rounded():
    recipe = files.designed(2.0, Design((4, 6, 9), 5, 2, (2, 3, 4, 5), 0.5), 30, 48)
    bits = {"conv1": 2, "conv2": 3, "conv3": 4, "fc1": 5}
    assert recipe.epochs == 30 and recipe.stages == (Prune(0.5, 4, 12), Grid(bits, 48))


def test_windows_of_one_channel_have_bits_of_their_own():
    design = Separable((2, 3, 4), bits=5, bits_alone=4, bias_bits=7)
    assert design.stages(9) == [Grid({"conv1": 5, "conv2": 4, "conv3": 5, "conv4": 4, "conv5": 5, "fc1": 5}, 9, 7)]
    alone = [name for name, layer in weighted_layers(design.build(0)).items() if getattr(layer, "groups", 1) > 1]
    assert alone == ["conv2", "conv4"]


@pytest.fixture
def steps(monkeypatch):
    """Let no stage be run, and return what each call was given."""
    calls = []

    def run_stages(model, teaching, stages, *how):
        calls.append((model, teaching, stages, {**teaching.settings}))
        yield from ((stage, f"behind {stage}") for stage in stages)

    monkeypatch.setattr(files, "run_stages", run_stages)
    files.taught.cache_clear()
    yield calls
    files.taught.cache_clear()


@pytest.mark.parametrize("group", ["lenet5", "lenet300"])
def test_a_network_of_the_kit_begins_trained_and_sees_moved_images(group, small, short, steps):
    *_, last = *SHORT[group].stages, *SHORT[group].rounding
    assert SHORT[group].compressed(0, small) == f"behind {last}"
    start, teaching, stages, settings = steps[0]
    assert torch.equal(start.fc1.bias, load_trained(group).state_dict()["fc1.bias"])
    assert teaching.teacher.architecture == files.TEACHERS[group]
    assert len(teaching.training[0]) == 9 * len(small.train.images)
    assert torch.equal(teaching.validation[0], small.validation.images)
    assert stages == SHORT[group].stages and settings["seed"] == 0
    assert settings["learning_rate"] == {"lenet5": 5e-3, "lenet300": 3e-3}[group]


def test_a_network_is_rounded_behind_the_other_stages_by_smaller_steps(small, short, steps):
    SHORT["lenet5"].compressed(0, small)
    (_, _, _, first), (before, _, stages, settings) = steps
    assert before == f"behind {SHORT['lenet5'].stages[0]}" and stages == (Grid(3, 1),)
    assert settings == first | {"learning_rate": files.SLOWER * 5e-3}


def test_views_stand_behind_the_images_with_their_labels_and_are_the_same_every_time(small):
    before = torch.random.get_rng_state()
    (images, labels), validation, _ = files.viewed(small)
    assert torch.equal(before, torch.random.get_rng_state()) and validation is small.validation
    images, labels = images.unflatten(0, (9, 150)), labels.unflatten(0, (9, 150))
    assert torch.equal(images[0], small.train.images) and (labels == small.train.labels).all()
    assert len(images.flatten(2)[:, 0].unique(dim=0)) == 9  # each view is another
    assert torch.equal(files.viewed(small).train.images, images.flatten(0, 1))
    torch.manual_seed(0)
    assert torch.equal(images[1], random_views(small.train.images, 0.5))


def test_a_recipe_names_what_is_seen(small, steps):
    for images in files.IMAGES:
        replace(SHORT["lenet5"], images=images).compressed(0, small)
    still, moved, viewed = (teaching.training[0] for _, teaching, _, _ in steps[::2])
    assert torch.equal(still, small.train.images)
    assert torch.equal(moved, deep_compression.moved(small).train.images)
    assert torch.equal(viewed, files.viewed(small).train.images)


def test_the_ensemble_teaches_what_is_to_have_the_smallest_errors(small, short, steps):
    for ensemble in (False, True):
        replace(SHORT["lenet5"], ensemble=ensemble).compressed(0, small)
    alone, together = (teaching.teacher for _, teaching, _, _ in steps[::2])
    assert alone.architecture == "resnet" and len(together.members) == 3


def test_the_teacher_answers_once_for_all_seeds_of_a_process(quick, small, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "kd_lab.compression.recipe.with_answers", lambda *given: asked.append(given) or with_answers(*given)
    )
    for _seed in range(2):
        SHORT["lenet5"].compressed(0, small)  # another seed's network would be trained first
    assert [len(part[0]) for _, part in asked] == [9 * len(small.train.images), len(small.validation.images)]


@pytest.mark.slow
def test_what_is_missing_is_made_once_and_scored_by_reading_it(quick, small, monkeypatch):
    recipes = {name: SHORT[name] for name in ("tiny", "lenet5")}
    monkeypatch.setattr(files, "load_trained", lambda name, seed=0: load_trained(name))  # others would be trained first
    monkeypatch.setattr(files, "RECIPES", recipes)
    monkeypatch.setattr(frontier, "load_mnist", lambda: small)
    monkeypatch.setattr(frontier, "make_search", lambda _running, _data: None)
    monkeypatch.setattr(frontier, "make_viewer", lambda _running: None)
    monkeypatch.setattr(frontier, "measure_controls", lambda _running: None)
    monkeypatch.setattr(frontier, "score_records", lambda _data: {"scored": 1})
    for module in (files, _campaign):
        monkeypatch.setattr(module, "SEEDS", range(2))
    figures = frontier.run(rerun=True)
    recorded = json.loads((quick / "frontier.json").read_text())["files"]
    for name, recipe in recipes.items():
        assert recorded[name]["recipe"] == repr(recipe) and "file" not in recorded[name]["seeds"][0]
        for seed, row in enumerate(recorded[name]["seeds"]):
            path = files.path_of(name, seed)
            assert path.stat().st_size == row["bytes"] and path.parent == quick / "frontier"
            assert _campaign.error(load_packed(path), small.validation) == row["validation_error"]
    before = [path.stat().st_mtime_ns for path in sorted(quick.rglob("*.kdz"))]
    monkeypatch.setattr(files, "make", None)
    assert frontier.run(rerun=True) == figures == frontier.run(rerun=False)
    assert before == [path.stat().st_mtime_ns for path in sorted(quick.rglob("*.kdz"))] and len(before) == 4
    monkeypatch.setitem(recipes, "lenet5", replace(recipes["lenet5"], stages=(FineTune(1),)))
    assert files.missing() == ["lenet5"]


def test_the_files_of_a_recipe_are_entered_within_its_limit_or_the_rule_is_named(short, monkeypatch, capsys):
    entered = []

    def enter_record(board, limit, paths, data, **told):
        if board == "lenet5":
            raise ParameterError("these files are no record.")
        said = (told["command"], told["chosen_on"], told["trials"], told["remarks"])
        entered.append((board, limit, [path.name for path in paths], told["recipe"], said))

    monkeypatch.setattr(files, "enter_record", enter_record)
    monkeypatch.setattr(files, "REMARKS", {"tiny": "small"})
    files.enter_records(Record({"seeds": [0], "files": {"tiny": {}, "lenet5": {}, "lenet300": {}}}), None)
    command = "python -m benchmarks frontier --rerun"
    made = ("open", 2.0, "tiny", 7, "small"), ("lenet300", 1.9, "lenet300", 2, "")
    assert entered == [
        (board, limit, [f"{name}_{seed}.kdz" for seed in range(5)], repr(SHORT[name]), (command, "validation", *told))
        for board, limit, name, *told in made
    ]
    assert "lenet5: these files are no record" in capsys.readouterr().out


@pytest.mark.slow
def test_the_same_commands_enter_the_standing_records_where_there_are_none_yet(mnist, monkeypatch, tmp_path):
    before = records.load_records()
    monkeypatch.setattr(records, "FILE", tmp_path / "records.json")
    deep_compression.enter_records(load_results("deep_compression").get("reached"), mnist)
    files.enter_records(load_results("frontier"), mnist)
    made = records.load_records()
    for board, limits in rules.LIMITS.items():
        for limit in limits:
            new, old = (records.standing_record(each, board, limit) for each in (made, before))
            assert (new and (new.files, new.scores, new.trials)) == (old and (old.files, old.scores, old.trials))


def test_the_figures_are_those_of_the_standing_records_that_score_again(monkeypatch, capsys):
    monkeypatch.setitem(files.TARGETS, "lenet5", files.TARGETS["lenet5"] | {"0_10": 0.1})
    faults = {"lenet300": ["another error"]}
    monkeypatch.setattr(files, "rescore", lambda record, _records, _data: faults.get(record.board, []))
    figures = files.score_records(None)
    assert figures["frontier.open.bytes_at_2_0"] < 500 and figures["frontier.open.bytes_at_2_0.error"] <= 2
    assert figures["frontier.lenet5.ratio_at_1_00"] > 1400
    assert figures["frontier.lenet5.ratio_at_0_69"] > 700 and figures["frontier.lenet5.ratio_at_0_69.error"] <= 0.69
    assert figures["frontier.lenet5.ratio_at_1_00.seeds"] == figures["frontier.lenet5.ratio_at_0_69.seeds"] == 5
    assert figures["frontier.open.bytes_at_0_45"] < 5000 and figures["frontier.open.bytes_at_0_45.error"] <= 0.45
    assert not [key for key in figures if "lenet300" in key or "0_10" in key]
    said = capsys.readouterr().out
    assert "another error" in said and "none yet" in said


def test_the_figures_have_the_names_of_their_classes():
    scores = Scores("lenet300", [2666, 2666], [[0], [0, 1, 2]], 100)
    assert files.named("open", "2_0", scores) == {
        "frontier.open.bytes_at_2_0": 2666,
        "frontier.open.bytes_at_2_0.error": 2.0,
        "frontier.open.bytes_at_2_0.seeds": 2,
    }
    assert files.named("lenet300", "1_90", scores)["frontier.lenet300.ratio_at_1_90"] == pytest.approx(400, abs=0.1)


def test_every_recorded_file_is_there_with_its_bytes(mnist):
    for name, row in files.recorded_files().items():
        assert row["recipe"] == repr(files.RECIPES[name])
        sizes = [files.path_of(name, seed).stat().st_size for seed in files.SEEDS]
        assert sizes == [each["bytes"] for each in row["seeds"]]
        error = partial(_campaign.error, data=mnist.validation)
        assert error(load_packed(files.path_of(name, 0))) == row["seeds"][0]["validation_error"]
