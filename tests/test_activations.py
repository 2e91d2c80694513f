"""Folding changes nothing, inputs lie on their grids, and a whole model of few bits still reads digits."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kd_lab.checkpoints import load_trained
from kd_lab.cost import count_parameters, file_bytes
from kd_lab.errors import ParameterError
from kd_lab.evaluation import accuracy
from kd_lab.networks.layers import make_permanent, predict, weighted_layers
from kd_lab.networks.zoo import MODELS, build_model
from kd_lab.pruning import hard_prune, prune, prune_channels
from kd_lab.quantization import (
    CALIBRATIONS,
    fake_quantize,
    find_grid,
    fold_batch_norm,
    integer_range,
    output_errors,
    quantize_activations,
    quantize_model,
    quantize_weights,
    to_integer,
)
from kd_lab.training import train

QUICK = "lenet300", "resnet"
NAMES = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in MODELS]


@pytest.mark.parametrize("name", NAMES)
def test_a_folded_model_answers_as_before(name, validation):
    model = load_trained(name)
    folded = fold_batch_norm(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    torch.testing.assert_close(
        predict(folded, validation.images), predict(model, validation.images), atol=1e-3, rtol=1e-4
    )


def test_folding_a_linear_layer_and_a_masked_convolution(few):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 26 * 26, 5), nn.BatchNorm1d(5)
    )
    predict(model.train(), few.images[:100])
    for norm in (model[1], model[4]):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        nn.init.normal_(norm.weight)
    pruned = prune(model.eval(), 0.5)
    folded = fold_batch_norm(pruned)
    torch.testing.assert_close(predict(folded, few.images[:50]), predict(pruned, few.images[:50]), atol=1e-3, rtol=1e-4)
    assert count_parameters(folded) < count_parameters(model)
    assert (folded[3].weight == 0).sum() == (pruned[3].weight == 0).sum()


def test_a_norm_that_stands_alone_is_left():
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(784, 10))
    assert isinstance(fold_batch_norm(model)[0], nn.BatchNorm2d)


@pytest.mark.parametrize("calibration", CALIBRATIONS)
@pytest.mark.parametrize("num_bits", [1, 2, 4, 8])
def test_a_layer_takes_only_numbers_on_its_grid(num_bits, calibration, few):
    images = few.images[:200]
    quantized = quantize_activations(load_trained("lenet300"), images, num_bits, calibration)
    taken = []
    with quantized[3].register_forward_hook(lambda _layer, inputs, _output: taken.append(inputs[0])):
        predict(quantized, images)
    assert len(torch.cat(taken).unique()) <= 2**num_bits


def test_grids_that_were_there_have_no_part_in_the_new_ones(few):
    dense, images = load_trained("lenet300"), few.images[:50]
    direct, again = (
        quantize_activations(dense, images),
        quantize_activations(quantize_activations(dense, images, 1), images),
    )
    assert torch.equal(predict(again, images), predict(direct, images))


def test_least_squares_looks_at_every_image(few):
    images = few.images[:300].clone()  # more numbers than it takes in all
    scales = []
    for _ in range(2):
        scales.append(quantize_activations(load_trained("mlp128"), images)[1].input_quantizer.scale)
        images[-20:] *= 10
    assert scales[1] > 3 * scales[0]


@pytest.mark.parametrize("name", ["lenet300", "cnn"])
def test_grids_are_those_of_what_the_layer_took(name, few):
    dense, images = load_trained(name), few.images[:250]
    quantized = quantize_activations(dense, images, 5, "min_max")
    first, *_ = weighted_layers(quantized)
    scale, zero_point = find_grid(images.reshape(1, -1), 5)
    quantizer = quantized.get_submodule(first).input_quantizer
    assert torch.equal(quantizer.scale, scale) and torch.equal(quantizer.zero_point, zero_point)
    for layer in list(weighted_layers(quantized).values())[1:]:
        assert layer.input_quantizer.zero_point == integer_range(5)[0]  # behind a ReLU there is nothing below 0


def test_a_model_of_one_layer_by_hand(few):
    torch.manual_seed(0)
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), few.images[:100]
    quantized = quantize_model(model, images, 4, 3, granularity="per_tensor", symmetric=False, calibration="min_max")
    weight = model[1].weight.detach()
    rounded = fake_quantize(weight, *find_grid(weight.reshape(1, -1), 4), 4)
    taken = fake_quantize(images, *find_grid(images.reshape(1, -1), 3), 3).flatten(1)
    torch.testing.assert_close(predict(quantized, images), F.linear(taken, rounded, model[1].bias.detach()))


@pytest.mark.parametrize("name", NAMES)
def test_eight_bits_change_almost_nothing(name, few, validation):
    dense = load_trained(name)
    quantized = quantize_model(dense, few.images[:250])
    assert abs(accuracy(quantized, validation).value - accuracy(dense, validation).value) <= 0.002


def test_the_model_that_was_given_stays_as_it_was_and_twice_is_once(few, validation):
    dense, images, validation = load_trained("lenet5_classic"), few.images[:250], validation[:300]
    before, size = predict(dense, validation.images), file_bytes(dense)
    once = quantize_model(dense, images, 4, 4)
    assert torch.equal(predict(dense, validation.images), before) and file_bytes(dense) == size
    twice = quantize_activations(once, images, 4)
    assert torch.equal(predict(twice, validation.images), predict(once, validation.images))
    assert all(len(layer._forward_pre_hooks) == 1 for layer in weighted_layers(twice).values())
    assert torch.equal(predict(make_permanent(once), validation.images), predict(once, validation.images))


def test_pruned_models_are_quantized_as_any_other(few, validation):
    dense, images = load_trained("cnn"), few.images[:250]
    for model in (prune(dense, 0.5), hard_prune(prune_channels(dense, 0.25))):
        quantized = quantize_model(model, images)
        assert abs(accuracy(quantized, validation).value - accuracy(model, validation).value) <= 0.005


def test_training_with_quantized_activations_lowers_the_loss(few, validation):
    rough = quantize_model(load_trained("lenet300"), few.images[:250], 2, 2)
    before = F.cross_entropy(predict(rough, validation.images), validation.labels)
    model, _ = train(rough, few, F.cross_entropy, validation=validation, epochs=2, learning_rate=1e-3, progress=False)
    assert F.cross_entropy(predict(model, validation.images), validation.labels) < before


def test_errors_by_layer(validation):
    dense, images = load_trained("lenet300"), validation.images[:100]
    assert set(output_errors(dense, dense, images).values()) == {0.0}
    few_bits = {bits: output_errors(quantize_weights(dense, bits), dense, images) for bits in (8, 4, 2)}
    assert list(few_bits[4]) == ["fc1", "fc2", "fc3"]
    assert all(0 < few_bits[8][name] < few_bits[4][name] < few_bits[2][name] for name in dense_names(dense))
    only_last = output_errors(quantize_weights(dense, {"fc3": 2}), dense, images)
    assert only_last["fc1"] == only_last["fc2"] == 0 < only_last["fc3"]


def dense_names(model):
    return list(weighted_layers(model))


def test_an_error_by_hand(validation):
    dense, images = load_trained("mlp128"), validation.images[:100]
    quantized = quantize_weights(dense, 3)
    hidden = [
        torch.relu(F.linear(images.flatten(1), *(part.detach() for part in (model[1].weight, model[1].bias))))
        for model in (dense, quantized)
    ]
    outputs = [
        F.linear(each, model[3].weight, model[3].bias).detach()
        for each, model in zip(hidden, (dense, quantized), strict=True)
    ]
    expected = ((outputs[1] - outputs[0]) ** 2).sum() / (outputs[0] ** 2).sum()
    assert output_errors(quantized, dense, images)["fc2"] == pytest.approx(expected.item(), rel=1e-3)


def test_a_layer_that_gives_only_zeros_has_no_error(validation):
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10, bias=False))
    nn.init.zeros_(model[1].weight)
    assert output_errors(quantize_weights(model, 4), model, validation.images[:10]) == {"1": 0.0}


@pytest.mark.parametrize("images", [torch.ones(0, 1, 28, 28), None, [], 5])
def test_an_empty_calibration_set_is_refused(images):
    with pytest.raises(ParameterError, match=r"quantize_activations\(\): 'images' must be .* at least one"):
        quantize_activations(build_model("lenet300"), images)
    with pytest.raises(ParameterError, match=r"quantize_model\(\): 'images' must be a tensor of finite .*at least one"):
        quantize_model(build_model("lenet300"), images)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_images_that_are_no_numbers_are_refused(value):
    with pytest.raises(ParameterError, match=r"'images' must be .*finite"):
        quantize_activations(build_model("lenet300"), torch.full((3, 1, 28, 28), value))


@pytest.mark.parametrize("num_bits", [0, 33, 4.5, 9, True, "4", None])
def test_bits_that_are_none_are_refused(num_bits, few):
    with pytest.raises(ParameterError, match=r"'num_bits' must be a whole number in \[1, 8\]"):
        quantize_activations(build_model("lenet300"), few.images[:10], num_bits)
    with pytest.raises(ParameterError, match=r"^quantize_model\(\): 'activation_bits' must be a whole number in"):
        quantize_model(build_model("lenet300"), few.images[:10], 8, num_bits)
    for weight_bits in (num_bits, {"fc1": num_bits}):
        with pytest.raises(ParameterError, match=r"^quantize_model\(\): 'weight_bits' must be a whole number in"):
            quantize_model(build_model("lenet300"), few.images[:10], weight_bits)
    with pytest.raises(ParameterError, match=r"^quantize_model\(\): 'weight_bits' must be one of fc1, fc2, fc3"):
        quantize_model(build_model("lenet300"), few.images[:10], {"fc4": 8})


def test_images_of_another_shape_are_refused():
    with pytest.raises(ParameterError, match="can't read images of shape"):
        quantize_activations(build_model("lenet300"), torch.ones(3, 1, 20, 20))


def test_two_models_of_different_layers_are_not_compared(validation):
    cnn, images = build_model("cnn"), validation.images[:10]
    for other in (build_model("lenet300"), hard_prune(prune_channels(cnn, 0.5))):
        with pytest.raises(ParameterError, match="both models must have the same layers with outputs of the same"):
            output_errors(cnn, other, images)


def test_a_layer_that_takes_nothing_is_refused(few):
    empty = nn.Sequential(nn.Flatten(), nn.Linear(784, 0), nn.Linear(0, 10))
    with pytest.raises(
        ParameterError, match=r"'the input of layer 2' must .* at least one, .* Got torch\.float32, \(1, 0\)"
    ):
        quantize_activations(empty, few.images[:10])
    infinite = nn.Sequential(nn.Flatten(), nn.Threshold(0.5, torch.inf), nn.Linear(784, 10))
    with pytest.raises(ParameterError, match=r"^quantize_model\(\): 'the input of layer 2' must be .*finite"):
        quantize_model(infinite, few.images[:10])


def test_a_layer_that_is_never_run_rounds_nothing(few):
    class HalfRun(nn.ModuleList):
        def forward(self, x):
            return self[0](x.flatten(1))

    quantized = quantize_model(HalfRun([nn.Linear(784, 10), nn.Linear(3, 2)]), few.images[:10])
    assert quantized[1].input_quantizer is None
    assert to_integer(quantized).left_in_float["1"] == "Linear 3-2, whose input lies on no grid"
