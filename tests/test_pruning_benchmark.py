"""The pruning benchmark's arithmetic is right by hand, and a damaged record is never written over."""

import json

import pytest

from benchmarks import _campaign
from benchmarks import pruning as benchmark
from kd_lab.cost import count_nonzeros
from kd_lab.networks.zoo import build_model
from kd_lab.pruning import prune


def test_a_factor_counts_all_parameters_that_are_left():
    model = build_model("lenet300")
    smaller = prune(model, benchmark.sparsity_for(model, 12))
    assert count_nonzeros(smaller) == pytest.approx(266_610 / 12, abs=1)


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
