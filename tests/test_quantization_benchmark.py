"""The quantization benchmark's record says what the README says, and its networks are what they are called."""

from pathlib import Path

import pytest
import torch

from benchmarks import _campaign
from benchmarks import quantization as benchmark
from kd_lab.networks.layers import weighted_layers
from kd_lab.quantization import quantize_weights
from kd_lab.results import load_results

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()
WAYS = {
    "weights and activations in 8 bits": "w8a8",
    "weights in 4 bits": "w4",
    "weights in 2 bits": "w2",
    "weights in 2 bits, trained": "w2_qat",
}


def test_the_readme_says_what_was_recorded():
    recorded = load_results("quantization")["networks"]
    for label, way in WAYS.items():
        cells = []
        for name in benchmark.NETWORKS:
            found, dense = ([seed[each] for seed in recorded[name]] for each in (way, "dense"))
            more, (low, high) = _campaign.gain(found, dense)
            cells.append(f"{0 - more:.2f} ({0 - high:.2f} to {0 - low:.2f})")
        assert f"| {label} | {' | '.join(cells)} |".replace("-0.00", "0.00") in README


def test_the_readme_says_what_binary_weights_reached():
    figures = benchmark.score_binary(load_results("quantization"))
    assert f"{figures['quantization.binary_error']:.2f} % test\nerror" in README


def test_the_recorded_errors_are_those_of_the_images_read_wrongly():
    recorded = load_results("quantization")
    found = [
        *recorded["binary"]["seeds"],
        *(each for name in benchmark.NETWORKS for seed in recorded["networks"][name] for each in seed.values()),
    ]
    assert len(found) == 5 + 2 * 5 * 5
    assert [each["test_error"] for each in found] == pytest.approx(_campaign.errors(found), abs=1e-6)


def test_the_binary_network_has_two_values_a_unit_and_depends_on_its_seed():
    network = quantize_weights(benchmark.binary_network(0), 1)
    for layer in weighted_layers(network).values():
        assert all(len(row.unique()) == 2 for row in layer.weight)
    first, other = (benchmark.binary_network(seed)[2].weight for seed in (0, 1))
    assert torch.equal(first, benchmark.binary_network(0)[2].weight) and not torch.equal(first, other)


def test_the_file_of_four_bits_is_about_an_eighth():
    assert 7.7 < benchmark.file_figures()["quantization.w4_file_ratio"] < 8
