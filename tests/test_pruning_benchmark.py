"""The pruning benchmark's arithmetic is right by hand, and a damaged record is never written over."""

import json
from pathlib import Path

import pytest

from benchmarks import _campaign
from benchmarks import pruning as benchmark
from kd_lab.cost import count_nonzeros
from kd_lab.networks.zoo import build_model
from kd_lab.pruning import prune
from kd_lab.results import load_results


def test_a_factor_counts_all_parameters_that_are_left():
    model = build_model("lenet300")
    smaller = prune(model, benchmark.sparsity_for(model, 12))
    assert count_nonzeros(smaller) == pytest.approx(266_610 / 12, abs=1)


def test_gains_and_losses_have_their_signs():
    difference = _campaign.paired({"wrong": "3 5 9"}, {"wrong": "5 7"})
    assert (difference.gained, difference.lost, difference.count) == (1, 2, 10_000)
    assert _campaign.errors([{"wrong": "3 5 9"}, {"wrong": ""}]) == pytest.approx([0.03, 0])


def test_steps_are_counted_to_the_dense_networks_best_loss():
    losses = {"dense": [0.5, 0.2, 0.3], "ticket": [0.2, 0.1, 0.1], "control": [0.9, 0.5, 0.21]}
    assert benchmark.reached(losses) == {"dense": 200, "ticket": 100, "control": None}


def test_a_part_is_kept_beside_the_others_and_a_damaged_record_stays(tmp_path, monkeypatch):
    for module in ("kd_lab.results", "benchmarks"):
        monkeypatch.setattr(f"{module}.RESULTS", tmp_path)
    _campaign.keep("pruning", "first", {"a": 1})
    _campaign.keep("pruning", "second", {"b": 2})
    record = json.loads((tmp_path / "pruning.json").read_text())
    assert record["first"] == {"a": 1} and record["second"] == {"b": 2} and record["seeds"] == [0, 1, 2, 3, 4]
    (tmp_path / "pruning.json").write_text('{"first": ')
    with pytest.raises(json.JSONDecodeError):
        _campaign.keep("pruning", "third", {})
    assert (tmp_path / "pruning.json").read_text() == '{"first": '


def test_the_readme_says_what_was_recorded(capsys):
    figures = benchmark.score_compressed(load_results("pruning"))
    readme = (Path(__file__).resolve().parents[1] / "README.md").read_text()
    for name, recipe in benchmark.RECIPES.items():
        for factor in recipe["last_epochs"]:
            error, gain, low = (figures[f"pruning.{name}.x{factor}_{kind}"] for kind in ("error", "gain", "gain_low"))
            more = f"{0 - gain:.2f} ({low - 2 * gain:.2f} to {0 - low:.2f})"  # the interval is symmetric
            assert f"| `{name}` | {factor} times fewer | {error:.2f} | {more} |" in readme


def test_the_recorded_errors_are_those_of_the_images_read_wrongly():
    recorded = load_results("pruning")
    seeds = [
        *recorded["half_cnn"]["seeds"],
        *recorded["at_once"]["lenet300"],
        *(seed for network in recorded["compress"].values() for seed in network["seeds"]),
    ]
    found = [each for seed in seeds for each in seed.values()]
    assert len(found) == 5 * (2 + 3 + 4 + 4)
    assert [each["test_error"] for each in found] == pytest.approx(_campaign.errors(found), abs=1e-6)
