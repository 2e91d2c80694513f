"""Weights of few bits: as many values as allowed, masks kept, training that goes straight through."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from own_networks import NETWORKS, own_network
from torch import nn
from torch.nn.utils import parametrize

from kd_lab.checkpoints import load_trained
from kd_lab.errors import ParameterError
from kd_lab.evaluation import accuracy
from kd_lab.networks.layers import weighted_layers
from kd_lab.networks.permanent import make_permanent
from kd_lab.networks.predictions import predict
from kd_lab.networks.zoo import MODELS, build_model
from kd_lab.pruning import hard_prune, magnitude_mask, prune, prune_channels
from kd_lab.quantization import (
    GRANULARITIES,
    BinaryQuantizer,
    FakeQuantizer,
    Quantizer,
    TernaryQuantizer,
    quantize_weights,
    share_weights,
    ternarize_weights,
)
from kd_lab.training import train

ALL = {
    "binary": lambda model: quantize_weights(model, 1),
    "two bits": lambda model: quantize_weights(model, 2),
    "affine": lambda model: quantize_weights(model, 3, "per_tensor", False, "min_max"),
    "ternary": ternarize_weights,
}


def weights(model):
    return {name: layer.weight.detach() for name, layer in weighted_layers(model).items()}


def different(weight, granularity):
    rows = weight.flatten(1) if granularity == "per_channel" else weight.reshape(1, -1)
    return max(len(row.unique()) for row in rows)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("num_bits", range(1, 9))
def test_each_grid_has_no_more_values_than_its_bits_allow(num_bits, symmetric, granularity):
    dense = load_trained("cnn")
    quantized = quantize_weights(dense, num_bits, granularity, symmetric, "min_max")
    for name, weight in weights(quantized).items():
        assert different(weight, granularity) <= 2**num_bits - (symmetric and num_bits > 1)
        assert (weight - weights(dense)[name]).abs().max() > 0


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in ("lenet300", "resnet") else pytest.mark.slow) for name in MODELS]
)
def test_eight_bits_change_almost_nothing(name, validation):
    dense = load_trained(name)
    quantized = quantize_weights(dense, 8)
    assert abs(accuracy(quantized, validation).value - accuracy(dense, validation).value) <= 0.002


@pytest.mark.parametrize("change", ALL.values(), ids=ALL)
def test_the_model_that_was_given_stays_as_it_was_and_twice_is_once(change):
    dense = load_trained("lenet300")
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    once = change(dense)
    assert dense.state_dict().keys() == before.keys()
    assert all(torch.equal(dense.state_dict()[name], tensor) for name, tensor in before.items())
    for again in (change(once), change(quantize_weights(once, 7))):  # the whole weights are still there
        assert all(torch.equal(weight, weights(once)[name]) for name, weight in weights(again).items())
        assert all(len(layer.parametrizations.weight) == 1 for layer in weighted_layers(again).values())


def test_bits_by_layer_leave_the_others_whole():
    dense = load_trained("lenet300")
    quantized = quantize_weights(quantize_weights(dense, 8), {"fc1": 2, "fc3": 1})
    kinds = {
        name: type(layer.parametrizations.weight[0]) if parametrize.is_parametrized(layer) else None
        for name, layer in weighted_layers(quantized).items()
    }
    assert kinds == {"fc1": FakeQuantizer, "fc2": None, "fc3": BinaryQuantizer}
    assert torch.equal(quantized[3].weight, dense[3].weight)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_binary_weights_by_hand(granularity):
    layer = nn.Sequential(nn.Linear(3, 2, bias=False))
    layer[0].weight = nn.Parameter(torch.tensor([[0.5, -1.0, 1.5], [2.0, -2.0, 0.0]]))
    found = quantize_weights(layer, 1, granularity)[0].weight
    first, second = (1.0, 2.0) if granularity == "per_channel" else (1.4, 1.4)
    torch.testing.assert_close(found, torch.tensor([[first, -first, first], [second, -second, 0.0]]))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_ternary_weights_by_hand(granularity):
    layer = nn.Sequential(nn.Linear(4, 2, bias=False))
    layer[0].weight = nn.Parameter(torch.tensor([[0.1, -1.0, 2.0, -0.5], [0.0, 0.0, 0.0, 0.0]]))
    found = ternarize_weights(layer, granularity)[0].weight  # thresholds 0.63 and 0, or 0.315 over both rows
    row = [0.0, -1.5, 1.5, 0.0] if granularity == "per_channel" else [0.0, -3.5 / 3, 3.5 / 3, -3.5 / 3]
    torch.testing.assert_close(found, torch.tensor([row, [0.0] * 4]))


def test_ternary_weights_are_cut_at_seven_tenths_of_their_mean():
    weight = torch.tensor([[0.69, -0.71, 1.3, -1.3]])
    scale = (0.71 + 1.3 + 1.3) / 3
    torch.testing.assert_close(TernaryQuantizer("per_channel")(weight), torch.tensor([[0.0, -scale, scale, -scale]]))


@pytest.mark.parametrize("change", ALL.values(), ids=ALL)
def test_the_codes_decode_to_the_weight(change):
    for name in ("lenet300", "cnn"):
        for dense in (load_trained(name), prune(load_trained(name), 0.8)):
            for layer in weighted_layers(change(dense)).values():
                chain = layer.parametrizations.weight
                whole = chain[0](chain.original) if len(chain) > 1 else chain.original
                codes, tables = chain[-1].encode(whole)
                assert codes.min() >= 0 and codes.max() < max(3, 2 ** chain[-1].num_bits)
                assert torch.equal((codes - tables["zero_point"]) * tables["scale"], layer.weight)


@pytest.mark.parametrize("change", ALL.values(), ids=ALL)
def test_pruned_weights_stay_zero_whichever_comes_first(change):
    dense = load_trained("lenet300")
    for model in (change(prune(dense, 0.8)), prune(change(dense), 0.8)):
        zeros = sum(int((weight == 0).sum()) for weight in weights(model).values())
        assert zeros >= round(0.8 * sum(weight.numel() for weight in weights(dense).values()))


def test_a_mask_before_the_quantizer_holds_through_training(few, validation):
    pruned = prune(load_trained("lenet300"), 0.8)
    zeros = {name: weight == 0 for name, weight in weights(pruned).items()}
    model, _ = train(quantize_weights(pruned, 2), few, F.cross_entropy, validation=validation, epochs=1, progress=False)
    assert all((weight[zeros[name]] == 0).all() for name, weight in weights(model).items())
    assert all(different(weight, "per_channel") <= 4 for weight in weights(model).values())


def test_a_hard_pruned_model_is_quantized_as_any_other(validation):
    smaller = hard_prune(prune_channels(load_trained("cnn"), 0.25))
    quantized = quantize_weights(smaller, 4)
    assert abs(accuracy(quantized, validation).value - accuracy(smaller, validation).value) < 0.02


@pytest.mark.parametrize("change", ALL.values(), ids=ALL)
def test_training_goes_straight_through(change, few, validation):
    rough = change(load_trained("lenet300"))
    before = F.cross_entropy(predict(rough, validation.images), validation.labels)
    model, _ = train(rough, few, F.cross_entropy, validation=validation, epochs=2, learning_rate=1e-3, progress=False)
    assert F.cross_entropy(predict(model, validation.images), validation.labels) < before
    for name, layer in weighted_layers(model).items():
        assert not torch.equal(
            layer.parametrizations.weight.original, dict(weighted_layers(rough))[name].parametrizations.weight.original
        )
        assert different(layer.weight.detach(), "per_tensor") < layer.weight.numel() / 2


@pytest.mark.parametrize("quantizer", [BinaryQuantizer("per_channel"), TernaryQuantizer("per_tensor")])
def test_the_gradient_of_a_sign_is_that_of_the_weight(quantizer):
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    factors = torch.arange(24.0).view(4, 6)
    (quantizer(weight) * factors).sum().backward()
    assert torch.equal(weight.grad, factors)


def test_what_is_made_permanent_is_what_was_computed_with(validation):
    quantized = quantize_weights(load_trained("cnn"), 3)
    plain = make_permanent(quantized)
    assert not any(isinstance(module, Quantizer) for module in plain.modules())
    assert torch.equal(predict(plain, validation.images), predict(quantized, validation.images))


def test_a_convolution_keeps_its_layout():
    for change in ALL.values():
        weight = change(build_model("cnn"))[3].weight
        assert weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("num_bits", [0, 33, 4.5, 9, True, "4", None, {"fc1": 0}])
def test_bits_that_are_none_are_refused(num_bits):
    with pytest.raises(ParameterError, match=r"quantize_weights\(\): 'num_bits' must be a whole number in \[1, 8\]"):
        quantize_weights(build_model("lenet300"), num_bits)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_bits": {"relu1": 4}}, "'num_bits' must be one of fc1, fc2, fc3"),
        ({"num_bits": 4, "granularity": "channel"}, "Did you mean 'per_channel'"),
        ({"num_bits": 4, "calibration": "max"}, "Did you mean 'min_max'"),
        ({"num_bits": 1, "calibration": "max"}, r"quantize_weights\(\): 'calibration' must be one of min_max"),
        ({"num_bits": 4, "symmetric": "yes"}, "'symmetric' must be True or False"),
    ],
)
def test_arguments_that_are_not_allowed_are_named(arguments, message):
    with pytest.raises(ParameterError, match=message):
        quantize_weights(build_model("lenet300"), **arguments)


def test_weights_in_another_precision_are_refused():
    for model in (build_model("mlp128").half(), build_model("mlp128").double()):
        for change in (*ALL.values(), lambda model: share_weights(model, 2)):
            with pytest.raises(ParameterError, match=r"'the weight of fc1' must be .*, in torch.float32\. Got torch"):
                change(model)


def test_infinite_weights_name_their_layer():
    model = build_model("lenet300")
    with torch.no_grad():
        model[3].weight[0, 0] = torch.inf
    for change in ALL.values():
        with pytest.raises(ParameterError, match="the weight of fc2' must be a tensor of finite"):
            change(model)


def test_a_mask_of_all_but_one_weight_is_no_trouble():
    model = build_model("mlp128")
    mask = magnitude_mask(model[3].weight, 0.999)
    with torch.no_grad():
        model[3].weight.mul_(mask)  # most channels are all zero
    for change in ALL.values():
        weight = change(model)[3].weight
        assert torch.isfinite(weight).all() and (weight[~mask] == 0).all()


@pytest.mark.parametrize("num_bits", [1, 3])
@pytest.mark.parametrize("name", [name for name in NETWORKS if "Conv" in name or "Embedding" in name])
def test_each_output_has_a_grid_of_its_own_and_only_one(name, num_bits):
    model, _ = own_network(name)
    layer = quantize_weights(model, num_bits)[0]
    axis = int("Transpose" in name)
    assert all(len(output.unique()) <= 2**num_bits for output in layer.weight.unbind(axis))
    assert len(layer.weight.unique()) > 2**num_bits
    if num_bits == 3:  # the widest grid ends at the largest weight of its output
        scale = quantize_weights(model, 3, calibration="min_max")[0].parametrizations.weight[0].scale.flatten()
        largest = model[0].weight.movedim(axis, 0).flatten(1).abs().amax(1)
        torch.testing.assert_close(3 * scale * (largest > 0), largest)  # a row of zeros may have any scale


@pytest.mark.parametrize("number", [np.uint8, np.int8, np.int64])
def test_bits_as_numbers_of_numpy_are_those_of_python(number):
    model = build_model("mlp128")
    for bits in (8, 4, 1):
        taken, expected = quantize_weights(model, number(bits)), quantize_weights(model, bits)
        assert all(torch.equal(weight, weights(expected)[name]) for name, weight in weights(taken).items())
        assert type(taken.fc1.parametrizations.weight[0].num_bits) is int
    assert type(FakeQuantizer(torch.ones(1), torch.zeros(1), number(8)).num_bits) is int
