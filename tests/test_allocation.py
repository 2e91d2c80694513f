"""The scan measures what its definition says, and the budget is spent as well as any search could."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from kd_lab.checkpoints import load_trained
from kd_lab.compression.allocation import allocate, sensitivity_scan
from kd_lab.errors import ParameterError
from kd_lab.networks.layers import predict, weighted_layers
from kd_lab.pruning import prune


def test_a_scan_is_the_rise_of_the_loss_with_one_layer_pruned(validation):
    model = load_trained("mlp128")
    scan = sensitivity_scan(model, validation, [0.5, 0.9])
    pruned = prune(model, {"fc2": 0.9}, scope="per_layer")
    loss = [F.cross_entropy(predict(each, validation.images), validation.labels).item() for each in (model, pruned)]
    assert scan["fc2"][0.9] == pytest.approx(loss[1] - loss[0])
    assert list(scan) == ["fc1", "fc2"] and all(
        list(rises) == [0.0, 0.5, 0.9] and rises[0.0] == 0 for rises in scan.values()
    )


def test_masks_are_lifted_before_a_scan_as_by_prune(validation):
    model = load_trained("mlp128")
    assert sensitivity_scan(prune(model, 0.9), validation[:200], [0.8]) == sensitivity_scan(
        model, validation[:200], [0.8]
    )


@pytest.mark.parametrize("sparsity", [0, 0.3, 0.55, 0.8, 0.9])
def test_no_other_choice_is_better(sparsity):
    generator = torch.Generator().manual_seed(int(100 * sparsity))
    grid = [0.0, 0.3, 0.6, 0.9]
    scan = {name: dict(zip(grid, [0.0, *torch.rand(3, generator=generator).tolist()], strict=True)) for name in "abcd"}
    counts = {"a": 1000, "b": 30, "c": 200, "d": 5}
    chosen = allocate(scan, counts, sparsity)

    def pruned(choice):
        return sum(counts[name] * choice[name] for name in counts)

    def rise(choice):
        return sum(scan[name][choice[name]] for name in counts)

    every = [dict(zip("abcd", choice, strict=True)) for choice in itertools.product(grid, repeat=4)]
    allowed = [choice for choice in every if pruned(choice) >= sparsity * 1235 - 1e-6]
    assert pruned(chosen) >= sparsity * 1235 - 1e-6
    assert rise(chosen) == pytest.approx(min(map(rise, allowed)))


def test_it_beats_one_sparsity_for_all(validation):
    model = load_trained("cnn")
    counts = {name: layer.weight.numel() for name, layer in weighted_layers(model).items()}
    few = validation[:500]
    scan = sensitivity_scan(model, few, [0.3, 0.5, 0.7, 0.8, 0.9, 0.95])
    sparsities = allocate(scan, counts, 0.8)
    assert sum(counts[name] * sparsity for name, sparsity in sparsities.items()) >= 0.8 * sum(counts.values())
    loss = [
        F.cross_entropy(predict(prune(model, choice, scope="per_layer"), few.images), few.labels).item()
        for choice in (sparsities, 0.8)
    ]
    assert loss[0] < 0.5 * loss[1]


def test_bad_input_is_named(validation):
    scan = {"1": {0.0: 0.0, 0.5: 0.1}}
    with pytest.raises(ParameterError, match=r"0\.8 is out of reach: .* it is 0\.500\. Scan higher ones"):
        allocate(scan, {"1": 10}, 0.8)
    with pytest.raises(ParameterError, match=r"Got 50\. Did you mean 0\.5\?"):
        allocate(scan, {"1": 10}, 50)
    with pytest.raises(ParameterError, match="'layer of the scan' must be one of 2"):
        allocate(scan, {"2": 10}, 0.5)
    for bad in (None, {}, {"1": {}}, {"1": 0.5}):
        with pytest.raises(ParameterError, match=r"^allocate\(\): 'scan' must be .* as sensitivity_scan\(\) gives"):
            allocate(bad, {"1": 10}, 0.5)
    for bad, message in (
        ({50: 0.1}, "sparsity in the scan.* Got 50"),
        ({0.5: float("nan")}, "rise.* Got nan"),
        ({0.5: "a"}, "rise.* Got 'a'"),
    ):
        with pytest.raises(ParameterError, match=rf"^allocate\(\): .*{message}"):
            allocate({"1": bad}, {"1": 10}, 0.5)
    for bad, message in ((None, "'counts' must be a dict"), ({"1": "a"}, "whole number"), ({"1": 0}, "Got 0")):
        with pytest.raises(ParameterError, match=rf"^allocate\(\): .*{message}"):
            allocate(scan, bad, 0.5)
    with pytest.raises(ParameterError, match=r"'sparsities' must be a list of fractions, as in .* Got 0\.5"):
        sensitivity_scan(load_trained("mlp128"), validation, 0.5)
    with pytest.raises(ParameterError, match=r"'sparsities' must be a number in \[0, 1\)\. Got 90"):
        sensitivity_scan(load_trained("mlp128"), validation, [0.5, 90])
    with pytest.raises(ParameterError, match=r"sensitivity_scan\(\): .*not empty"):
        sensitivity_scan(load_trained("mlp128"), validation[:0], [0.5])
