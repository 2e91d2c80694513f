"""The low-rank benchmark's networks are what they are called, and its figures are those of the record."""

import torch

from benchmarks import _low_rank as benchmark
from kd_lab.checkpoints import load_trained
from kd_lab.compression import choose_ranks, rank_scan
from kd_lab.cost import count_macs
from kd_lab.data import Mnist
from kd_lab.networks.layers import weighted_layers
from kd_lab.networks.predictions import predict
from kd_lab.results import load_results


def test_the_networks_have_these_ranks_and_are_trained_from_the_same_one(mnist, monkeypatch):
    few, dense, heard = Mnist(*(part[:200] for part in mnist)), load_trained("lenet300"), []

    def listen(model, part, loss, **settings):
        heard.append((model, part, settings))
        return model, None

    monkeypatch.setattr(benchmark, "train", listen)
    found = {way: model for way, model, _ in benchmark.networks(dense, 3, few)}
    assert list(found) == ["dense", "weight", "output", benchmark.LABELS, benchmark.TAUGHT]
    assert found["dense"] is dense and not torch.equal(
        found["weight"].fc1.first.weight, found["output"].fc1.first.weight
    )
    for way in (benchmark.LABELS, benchmark.TAUGHT):
        assert found[way] is found["output"] and found[way].architecture == "lenet300/fc1=40/fc2=20"
    (_, labelled, settings), (_, taught, same) = heard
    assert settings["seed"] == 3 and settings["epochs"] == 1 and settings["validation"] is few.validation
    assert len(labelled) == 2 and torch.equal(taught[2], predict(dense, few.train.images)) and same["seed"] == 3


def test_the_ranks_are_those_that_a_scan_chooses_for_a_fifth_of_the_weights(mnist):
    dense = load_trained(benchmark.NETWORK)
    shapes = {name: layer.weight.shape for name, layer in weighted_layers(dense).items()}
    scan = rank_scan(dense, mnist.validation[:1000], [5, 10, 20, 40, 80], mnist.train.images[:300], "output")
    assert choose_ranks(scan, shapes, count_macs(dense) // 5) == benchmark.RANKS


def test_what_was_recorded_keeps_to_its_limits():
    recorded = load_results("beyond")
    found = benchmark.score_low_rank(recorded)
    assert recorded.part("low_rank", "recipe", "ranks") == benchmark.RANKS and found["seeds"] == 5
    assert found["macs_ratio"] >= 5 and found["delta"] <= 0.3 and found["loss_ratio"] <= 0.5
    assert found["delta_low"] <= found["delta"] <= found["delta_high"]
    assert found["loss_ratio"] == found["lost_by_output"] / found["lost_by_weight"]
