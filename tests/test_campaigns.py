"""Every campaign runs through sweeps, goes on where it was killed, and records what it always did."""

import base64
import json
from contextlib import suppress

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import (
    _campaign,
    _families,
    _features,
    _few_labels,
    _gains,
    _low_rank,
    _trees,
    baselines,
    beyond,
    deep_compression,
    distillation,
    hinton,
    importance,
    pruning,
    quantization,
    read,
)
from kd_lab.errors import ParameterError

NAMES = ("hinton", "pruning", "quantization", "distillation", "beyond", "few_labels", "baselines", "importance")
RECORDED = {name: read(name) for name in (*NAMES, "deep_compression")}


class Measured(Exception):
    """A campaign has been measured and would be scored now."""


def stop(*_):
    raise Measured


@pytest.fixture
def results(tmp_path, monkeypatch, in_this_process):
    """Let campaigns run in this process, without data, and record into an empty folder."""
    for module in ("kd_lab.results", "benchmarks", "benchmarks.deep_compression"):
        monkeypatch.setattr(f"{module}.RESULTS", tmp_path / "results")
    monkeypatch.setattr(_campaign, "mnist", lambda: None)
    monkeypatch.setattr(hinton, "save_tensors", lambda *_: None)
    for module in (beyond, _few_labels, distillation, hinton, pruning, quantization, deep_compression):
        monkeypatch.setattr(module, "load_results", stop)
    return tmp_path / "results"


def written(results, name):
    """Return a record without the versions it was made with."""
    content = json.loads((results / f"{name}.json").read_text())
    return {key: part for key, part in content.items() if key not in ("python", "torch")}


def was(name):
    return {key: part for key, part in RECORDED[name].items() if key not in ("python", "torch")}


def teacher_of(images, data):
    part = RECORDED["hinton"]["teacher"]
    if images == 55_000:
        return {"logits": _campaign.packed({}), "validation_errors": part["validation_errors_of_55000"]}
    kept = {name: part[name] for name in ("cpu_minutes", "validation_error", "test_error", "wrong")}
    return {"weights": _campaign.packed({}), **kept}


def width_scores(width, temperature, seed, data):
    return RECORDED["hinton"]["widths"][str(width)][str(temperature)][seed]


def of_seed(part):
    """Return the function that gives what a list has for a seed, or what those of the names have."""

    def measure(seed, data):
        return part[seed]

    return measure


def of_name(parts):
    def measure(name, seed, data):
        return parts[name][seed]

    return measure


def importance_of(name, seed, data):
    def one(part):
        return {key: one(below) for key, below in part.items()} if isinstance(part, dict) else part[seed]

    return one(RECORDED["importance"]["networks"][name])


def stub(monkeypatch):
    """Let every trial of every campaign give what was recorded of it."""
    put, of = monkeypatch.setattr, RECORDED
    put(hinton, "teacher_of", teacher_of)
    put(hinton, "choose_offset", lambda data: of["hinton"]["students"]["recipe"]["offset"])
    put(hinton, "student_answers", lambda seed, offset, data: of["hinton"]["students"]["seeds"][seed])
    put(hinton, "width_scores", width_scores)
    put(_trees, "tree_seed", of_seed(of["hinton"]["trees"]["seeds"]))
    compressed = {name: of["pruning"]["compress"][name]["seeds"] for name in pruning.RECIPES}
    put(pruning, "compress_seed", of_name(compressed))
    put(pruning, "at_once_seed", of_name(of["pruning"]["at_once"]))
    put(pruning, "half_cnn_seed", of_seed(of["pruning"]["half_cnn"]["seeds"]))
    lost = of["pruning"]["least_squares"]["lost"]
    put(pruning, "least_squares_seed", lambda seed, data: {method: lost[method][seed] for method in lost})
    put(pruning, "tickets_seed", of_seed(of["pruning"]["tickets"]["seeds"]))
    put(quantization, "quantized", of_name(of["quantization"]["networks"]))
    put(quantization, "binary_seed", of_seed(of["quantization"]["binary"]["seeds"]))
    put(_gains, "gains_of", lambda images, seed, data: of["distillation"]["gains"]["images"][str(images)][seed])
    put(_gains, "search_of", of_seed(of["distillation"]["search"]["seeds"]))
    put(_features, "features_seed", of_seed(of["distillation"]["insides"]["seeds"]))
    parts = {name: part for part, name in _families.FAMILIES.items()}
    put(_families, "family_run", lambda name, seed, data: of["beyond"][f"{parts[name]}_{seed}"])
    put(_low_rank, "low_rank_seed", of_seed(of["beyond"]["low_rank"]["seeds"]))
    put(_few_labels, "errors_of", lambda count, seed, data: of["few_labels"][f"labels{count}"]["seeds"][seed])
    put(baselines, "measure", lambda name, seed, data: of["baselines"]["networks"][name]["test_error"][seed])
    put(importance, "measure", importance_of)


RUNS = {
    "hinton": hinton.run,
    "pruning": pruning.run,
    "quantization": quantization.run,
    "distillation": distillation.run,
    "beyond": beyond.run,
    "few_labels": _few_labels.few_label_figures,
    "baselines": baselines.run,
    "importance": importance.run,
}


@pytest.mark.parametrize("name", RUNS)
def test_a_campaign_records_its_trials_as_ever_and_then_forgets_them(name, results, monkeypatch, empty_cache):
    stub(monkeypatch)
    with suppress(Measured):
        RUNS[name](rerun=True)
    assert written(results, name) == was(name)
    assert not (empty_cache / "campaigns" / name).exists()


def test_files_that_are_missing_are_made_and_recorded(results, monkeypatch):
    of, kept = RECORDED["deep_compression"], deep_compression.path_of

    def make(network, way, seed, first, data):
        made = of[f"{network}_{way}_{seed}"]
        return {
            **made,
            "recipes": [{**recipe, "file": files[network, way, seed]} for recipe in made["recipes"][first:]],
        }

    files = {(network, way, seed): base64.b64encode(f"{network} {way} {seed}".encode()).decode()
             for network, way in deep_compression.RECIPES for seed in range(5)}  # fmt: skip
    monkeypatch.setattr(deep_compression, "make", make)
    with _campaign.campaign("deep_compression") as running:
        deep_compression.make_missing(running)
    found = written(results, "deep_compression")
    assert found == {key: part for key, part in was("deep_compression").items() if key not in ("settings", "reached")}
    assert kept("lenet5", "plain", 2, 4).read_bytes() == b"lenet5 plain 4"
    found["lenet5_plain_4"]["recipes"].pop()
    (results / "deep_compression.json").write_text(json.dumps(found))
    assert deep_compression.missing() == [{"network": "lenet5", "way": "plain", "seed": 4, "first": 2}]


def test_a_campaign_that_was_interrupted_goes_on_and_a_changed_one_is_refused(results, monkeypatch, empty_cache):
    stub(monkeypatch)
    begun, recorded = empty_cache / "begun", RECORDED["few_labels"]

    def interrupted(count, seed, data):
        if count == 1000 and seed == 2 and not begun.exists():
            begun.touch()
            raise KeyboardInterrupt
        return recorded[f"labels{count}"]["seeds"][seed]

    interrupted.__module__ = "benchmarks._few_labels"
    monkeypatch.setattr(_few_labels, "errors_of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _few_labels.few_label_figures(rerun=True)
    assert written(results, "few_labels").keys() == {"seeds", "test_images", "labels100"}
    assert len(list((empty_cache / "campaigns" / "few_labels").rglob("trial_*.json"))) == 7
    with (
        pytest.raises(ParameterError, match=r"'folder' must be new.*holds a sweep of the version"),
        monkeypatch.context() as m,
    ):
        m.setattr(_campaign, "version", lambda _: "another")
        _few_labels.few_label_figures(rerun=True)
    with pytest.raises(Measured):
        _few_labels.few_label_figures(rerun=True)
    assert written(results, "few_labels") == was("few_labels")


def test_tensors_come_back_from_their_text():
    tensors = {"half": torch.rand(3, 4).half(), "count": torch.tensor(7)}
    found = _campaign.unpacked(_campaign.packed(tensors))
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in tensors.items()
    )


@pytest.mark.slow
def test_trials_run_in_processes_with_the_data_and_are_given_by_choice_and_seed(empty_cache):
    def double(seed, factor, data):  # in here it travels itself: a process need not import every campaign
        return [seed * factor, len(data.test.labels)]

    running = _campaign.Campaign("tiny", workers=1)
    found = running.grid("part", double, factor=(2, 3))
    assert found == {str(factor): [[seed * factor, 10_000] for seed in range(5)] for factor in (2, 3)}
    assert len(list((empty_cache / "campaigns" / "tiny" / "part").glob("trial_*.json"))) == 10


def given(rerun: bool, workers: int | None = None, dask: str | None = None) -> dict:
    return {"rerun": rerun, "workers": workers, "dask": dask}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], given(False)),
        (["--rerun"], given(True)),
        (["--rerun", "--workers", "3"], given(True, 3)),
        (["--workers=30", "--rerun"], given(True, 30)),
        (["--rerun", "--dask", "tcp://a:1"], given(True, None, "tcp://a:1")),
    ],
)
def test_options_with_values_reach_the_campaign(options, expected, monkeypatch, capsys):
    monkeypatch.setattr(pruning, "run", given)
    command.main(["pruning", *options])
    assert json.loads(capsys.readouterr().out) == expected


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rerun", "--workers"], "--workers needs a value"),
        (["--workers", "--rerun"], "--workers needs a value"),
        (["--rerun", "--workers", "two"], "'--workers' must be a whole number in"),
        (["--rerun", "--workers=0"], "'--workers' must be a whole number in"),
        (["--rerun=yes"], "--rerun=yes is not known to pruning"),
        (["--rerun", "--worker", "2"], "--worker is not known to pruning"),
        (["--workers", "2"], "say where --rerun runs"),
        (["--rerun", "--workers", "2", "--dask", "tcp://a:1"], "Give one of them"),
    ],
)
def test_bad_options_are_refused(options, said):
    with pytest.raises(ParameterError, match=said):
        command.main(["pruning", *options])
