"""The quantization benchmark's networks and files are what they are called."""

import torch

from benchmarks import quantization as benchmark
from kd_lab.networks.layers import weighted_layers
from kd_lab.quantization import quantize_weights


def test_the_binary_network_has_two_values_a_unit_and_depends_on_its_seed():
    network = quantize_weights(benchmark.binary_network(0), 1)
    for layer in weighted_layers(network).values():
        assert all(len(row.unique()) == 2 for row in layer.weight)
    first, other = (benchmark.binary_network(seed)[2].weight for seed in (0, 1))
    assert torch.equal(first, benchmark.binary_network(0)[2].weight) and not torch.equal(first, other)


def test_the_file_of_four_bits_is_about_an_eighth():
    assert 7.7 < benchmark.file_figures()["quantization.w4_file_ratio"] < 8
