"""Folding changes nothing, inputs lie on their grids, and a whole model of few bits still reads digits."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from kd_lab.checkpoints import load_trained
from kd_lab.cost import count_parameters, file_bytes
from kd_lab.errors import ParameterError
from kd_lab.evaluation import accuracy
from kd_lab.networks.layers import weighted_layers
from kd_lab.networks.permanent import make_permanent
from kd_lab.networks.predictions import predict
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


class Scaled(nn.Linear):
    def forward(self, x):
        return 3 * super().forward(x)


class Norms(nn.Module):
    """Layers and BatchNorm layers, which a function puts together."""

    def __init__(self, run, **modules):
        super().__init__()
        self.run = run
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.run(self, x)


def once(model, x):
    return model.norm(model.layer(x))


def listed(model, x):
    """The BatchNorm stands behind the layer in the list, but reads what a ReLU gave."""
    for layer in model.list:
        x = layer(x).relu()
    return x


def read_twice(model, x):
    y = model.layer(x)
    return model.norm(y) + y


def norm_twice(model, x):
    return model.norm(model.layer(x)) + model.norm(x)


def layer_twice(model, x):
    return model.norm(model.layer(model.layer(x)))


def in_place(model, x):
    x = x * 1.0
    x += model.norm(model.layer(x))
    return torch.relu_(x)


def tied(model, x):
    return model.norm(model.layer(x)) @ model.layer.weight


def hooked():
    layer = nn.Linear(6, 6)
    layer.register_forward_hook(lambda _layer, _taken, given: given.relu())
    return layer


FLAT, ROWS, PLANES, VOLUMES = (4, 6), (4, 6, 6), (4, 6, 5, 5), (4, 6, 3, 3, 3)
FOLDED = {  # the modules, how they are run, the shape of the input
    "a Linear layer": (once, {"layer": nn.Linear(6, 5), "norm": nn.BatchNorm1d(5)}, FLAT),
    "no affine part": (once, {"layer": nn.Linear(6, 5), "norm": nn.BatchNorm1d(5, affine=False)}, FLAT),
    "one dimension": (once, {"layer": nn.Conv1d(6, 8, 3), "norm": nn.BatchNorm1d(8)}, ROWS),
    "groups": (once, {"layer": nn.Conv2d(6, 8, 3, groups=2, bias=False), "norm": nn.BatchNorm2d(8)}, PLANES),
    "depthwise": (once, {"layer": nn.Conv2d(6, 6, 3, groups=6), "norm": nn.BatchNorm2d(6)}, PLANES),
    "three dimensions": (once, {"layer": nn.Conv3d(6, 4, 2), "norm": nn.BatchNorm3d(4)}, VOLUMES),
    "transposed": (once, {"layer": nn.ConvTranspose2d(6, 4, 3), "norm": nn.BatchNorm2d(4)}, PLANES),
    "transposed, square": (once, {"layer": nn.ConvTranspose1d(6, 6, 3), "norm": nn.BatchNorm1d(6)}, ROWS),
    "a sum in place": (in_place, {"layer": nn.Linear(6, 6), "norm": nn.BatchNorm1d(6)}, FLAT),
}
LEFT = {
    "behind a ReLU": (listed, {"list": nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))}, FLAT),
    "a subclass": (once, {"layer": Scaled(6, 6), "norm": nn.BatchNorm1d(6)}, FLAT),
    "a hook": (once, {"layer": hooked(), "norm": nn.BatchNorm1d(6)}, FLAT),
    "another axis": (once, {"layer": nn.Linear(6, 6), "norm": nn.BatchNorm1d(6)}, ROWS),
    "an output read twice": (read_twice, {"layer": nn.Linear(6, 6), "norm": nn.BatchNorm1d(6)}, FLAT),
    "a norm used twice": (norm_twice, {"layer": nn.Linear(6, 6), "norm": nn.BatchNorm1d(6)}, FLAT),
    "a layer used twice": (layer_twice, {"layer": nn.Linear(6, 6), "norm": nn.BatchNorm1d(6)}, FLAT),
    "a weight read elsewhere": (tied, {"layer": nn.Linear(6, 6), "norm": nn.BatchNorm1d(6)}, FLAT),
    "transposed groups": (once, {"layer": nn.ConvTranspose2d(6, 6, 3, groups=2), "norm": nn.BatchNorm2d(6)}, PLANES),
    "no statistics": (once, {"layer": nn.Linear(6, 6), "norm": nn.BatchNorm1d(6, track_running_stats=False)}, FLAT),
}


def with_norms(run, modules, shape):
    """The network, its BatchNorm layers trained, and images."""
    torch.manual_seed(0)
    model = Norms(run, **copy.deepcopy(modules))
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.track_running_stats:
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.affine:
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
    return model.eval(), torch.randn(shape)


@pytest.mark.parametrize("name", FOLDED)
def test_any_layer_is_folded_as_torch_folds_it(name, recwarn):
    model, images = with_norms(*FOLDED[name])
    folded = fold_batch_norm(model, images)
    assert isinstance(folded.norm, nn.Identity) and not recwarn
    torch.testing.assert_close(predict(folded, images), predict(model, images))
    if "Conv" in type(model.layer).__name__:
        expected = fuse_conv_bn_eval(model.layer, model.norm, model.layer.transposed)
    elif model.norm.affine:
        expected = fuse_linear_bn_eval(model.layer, model.norm)
    else:
        return
    torch.testing.assert_close(folded.layer.state_dict(), expected.state_dict())


@pytest.mark.parametrize("name", LEFT)
def test_a_norm_that_does_not_read_a_layer_alone_is_left_and_named(name):
    model, images = with_norms(*LEFT[name])
    with pytest.warns(UserWarning, match=r"^fold_batch_norm\(\): left '(norm|list\.1)' as before: it is not"):
        folded = fold_batch_norm(model, images)
    assert torch.equal(predict(folded, images), predict(model, images))


def test_a_network_that_torch_cannot_follow_is_left_as_it_is():
    def branches(model, x):
        return model.norm(model.layer(x)) if x.sum() > 0 else x

    model, images = with_norms(branches, *FOLDED["a sum in place"][1:])
    for wanted in (images.abs(), None):
        with pytest.warns(UserWarning, match=r"^fold_batch_norm\(\): left 'norm' as before: .*(follow|read)"):
            folded = fold_batch_norm(model, wanted)
        assert torch.equal(predict(folded, images.abs()), predict(model, images.abs()))
    with pytest.raises(ParameterError, match="can't read images"):
        fold_batch_norm(model, torch.ones(2, 3))


def test_norms_under_two_names_and_of_a_functional_forward():
    def functional(model, x):
        x = F.max_pool2d(F.relu(model.bn1(model.conv1(x))), 2)
        return model.fc(x.view(-1, 4 * 13 * 13))

    norm = nn.BatchNorm2d(4)
    modules = {"conv1": nn.Conv2d(1, 4, 3), "bn1": norm, "fc": nn.Linear(676, 10), "all": nn.ModuleList([norm])}
    model, images = with_norms(functional, modules, (8, 1, 28, 28))
    folded = fold_batch_norm(model)
    assert isinstance(folded.bn1, nn.Identity) and folded.all[0] is folded.bn1
    torch.testing.assert_close(predict(folded, images), predict(model, images))


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


def residual(model, x):
    x = x * 1.0
    x += model.first(x)
    return model.last(F.relu(model.second(x), inplace=True))


def test_what_changes_in_place_after_a_layer_changes_no_grid_and_no_error():
    torch.manual_seed(0)
    layers = {"first": nn.Linear(6, 6), "second": nn.Linear(6, 8), "last": nn.Linear(8, 3)}
    model, images = Norms(residual, **layers), torch.randn(40, 6)
    taken = {"first": images, "second": images + layers["first"](images)}
    given = {"first": layers["first"](images), "second": layers["second"](taken["second"])}
    quantized = quantize_activations(model, images, 5, "min_max")
    for name, values in taken.items():
        scale, zero_point = find_grid(values.reshape(1, -1), 5)
        torch.testing.assert_close(quantized.get_submodule(name).input_quantizer.scale, scale)
        assert torch.equal(quantized.get_submodule(name).input_quantizer.zero_point, zero_point)
    changed = copy.deepcopy(model)
    changed.second.bias.data -= 1
    error = output_errors(changed, model, images)
    assert error["first"] == 0
    assert error["second"] == pytest.approx(given["second"].numel() / given["second"].square().sum().item(), rel=1e-3)


def test_a_layer_that_reads_two_sizes_and_one_that_reads_words():
    def sizes(model, x):
        return model.conv(x).mean((2, 3)) + model.conv(x[:, :, :4]).mean((2, 3))

    def words(model, x):
        return model.fc(model.table(x).mean(1))

    torch.manual_seed(0)
    model, images = Norms(sizes, conv=nn.Conv2d(1, 3, 3)), torch.randn(5, 1, 8, 8)
    quantized = quantize_model(model, images)
    torch.testing.assert_close(predict(quantized, images), predict(model, images), atol=0.05, rtol=0.05)
    assert 0 < output_errors(quantized, model, images)["conv"] < 0.01
    text, codes = Norms(words, table=nn.Embedding(20, 6), fc=nn.Linear(6, 3)), torch.randint(0, 20, (30, 7))
    torch.testing.assert_close(predict(quantize_model(text, codes), codes), predict(text, codes), atol=0.05, rtol=0.05)


class Called(nn.Module):
    """Call each layer in this way."""

    def __init__(self, call):
        super().__init__()
        self.up, self.norm, self.last = nn.ConvTranspose2d(1, 3, 2, 2), nn.BatchNorm2d(3), nn.Linear(3 * 64, 5)
        self.call = call

    def forward(self, x):
        return self.call(self.last, self.call(self.norm, self.call(self.up, x, [8, 8])).flatten(1))


CALLS = {
    "by name": lambda layer, x, *size: layer(input=x, **({"output_size": size[0]} if size else {})),
    "with a size": lambda layer, x, *size: layer(x, *size),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_layers_may_be_called_by_name_and_with_more_than_one_argument(call):
    torch.manual_seed(0)
    images, model = torch.randn(20, 1, 4, 4), Called(call).eval()
    plain = Called(lambda layer, x, *_: layer(x)).eval()
    plain.load_state_dict(model.state_dict())
    found, expected = (quantize_model(each, images, 4, 4) for each in (model, plain))
    assert torch.equal(predict(found, images), predict(expected, images))
    assert isinstance(found.norm, nn.Identity) and found.up.input_quantizer.num_bits == 4
    errors = [output_errors(each, dense, images) for each, dense in ((found, model), (expected, plain))]
    assert errors[0] == errors[1]


def test_bits_as_a_number_of_numpy(few):
    dense, images = load_trained("lenet300"), few.images[:50]
    for found in (quantize_activations(dense, images, np.uint8(8)), quantize_activations(dense, images, np.int64(8))):
        assert torch.equal(predict(found, images), predict(quantize_activations(dense, images, 8), images))
        assert type(found[1].input_quantizer.num_bits) is int
    both = quantize_model(dense, images, 8, np.uint8(8))
    assert torch.equal(predict(both, images), predict(quantize_model(dense, images), images))


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
