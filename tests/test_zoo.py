"""The networks have the sizes that the papers and articles give them, layers with names, and know what they are."""

import copy
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kd_lab.distillation import SoftTree, regressor
from kd_lab.errors import ParameterError
from kd_lab.formats import load_network, pack, save_network, unpack
from kd_lab.networks import make_permanent, weights
from kd_lab.networks.zoo import (
    MODELS,
    Residual,
    architecture_of,
    build_architecture,
    build_model,
    old_names,
    separable_convolutions,
    small_convolutions,
    small_student,
)
from kd_lab.pruning import hard_prune, prune, prune_channels, remove_layers
from kd_lab.quantization import (
    fold_batch_norm,
    quantize_activations,
    quantize_model,
    quantize_weights,
    share_weights,
    ternarize_weights,
)
from kd_lab.training import train

PARAMETERS = {"mlp128": 101_770, "lenet300": 266_610, "cnn": 206_922, "lenet5": 431_080, "lenet5_classic": 61_706}


@pytest.mark.parametrize("name", MODELS)
def test_every_network_reads_digits(name):
    model = build_model(name)
    assert model(torch.zeros(3, 1, 28, 28)).shape == (3, 10)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters == PARAMETERS.get(name, parameters) and (name != "resnet" or parameters < 60_000)


def test_the_seed_decides_the_weights_and_leaves_the_callers_numbers_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, same, other = (build_model("mlp128", seed)[1].weight for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(torch.rand(1), expected)


def test_the_same_seed_gives_the_same_small_convolutions_and_another_another():
    first, again, other = (small_convolutions((2, 3, 4), seed).state_dict() for seed in (0, 0, 1))
    assert all(map(torch.equal, first.values(), again.values()))
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("stride, pixels", [(2, 4), (3, 1)])
def test_small_convolutions_read_digits_by_any_first_window(kernel, stride, pixels):
    model = small_convolutions([2, 3, 4], kernel=kernel, stride=stride)
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10) and model.fc1.in_features == 4 * pixels
    assert model.conv1.kernel_size == (kernel, kernel)


@pytest.mark.parametrize("widths", [(2, 3), [4, 3, 2, 5, 6, 7], (1, 1, 1)])
def test_separable_convolutions_filter_each_channel_and_then_mix_them(widths):
    model = separable_convolutions(widths, 3)
    first, *pairs = (module for module in model if isinstance(module, nn.Conv2d))
    assert first.weight.shape == (widths[0], 1, 3, 3)
    for (before, after), alone, mixing in zip(itertools.pairwise(widths), pairs[::2], pairs[1::2], strict=True):
        assert alone.weight.shape == (before, 1, 3, 3) and alone.groups == before and alone.bias is None
        assert mixing.weight.shape == (after, before, 1, 1) and mixing.bias.shape == (after,)
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10) and model.fc1.in_features == widths[-1]


def test_a_separable_convolution_is_a_full_one_whose_windows_share_their_channels():
    model = separable_convolutions((3, 4)).double().eval()
    full = torch.einsum("oi,ixy->oixy", model.conv3.weight[:, :, 0, 0], model.conv2.weight[:, 0])
    images = torch.randn(2, 3, 14, 14, dtype=torch.float64)
    expected = F.conv2d(images, full, model.conv3.bias)
    torch.testing.assert_close(model.conv3(model.conv2(images)), expected)


def test_the_same_seed_gives_the_same_separable_convolutions_and_another_another():
    first, again, other = (separable_convolutions((2, 3), seed).state_dict() for seed in (0, 0, 1))
    assert all(map(torch.equal, first.values(), again.values()))
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


@pytest.mark.parametrize(
    "arguments, told",
    [
        (dict(widths=(2,)), "'widths' must be two to six whole numbers. Got (2,)."),
        (dict(widths=(2,) * 7), "'widths' must be two to six whole numbers. Got (2, 2, 2, 2, 2, 2, 2)."),
        (dict(widths=(2, 0)), "'widths[1]' must be a whole number in [1, 1000]. Got 0."),
        (dict(widths=(2, 2), seed=-1), "'seed' must be a whole number in [0, 1000000]. Got -1."),
    ],
)
def test_what_separable_convolutions_can_not_be_is_named(arguments, told):
    with pytest.raises(ParameterError) as error:
        separable_convolutions(**arguments)
    assert str(error.value) == f"separable_convolutions(): {told}"


@pytest.mark.parametrize(
    "arguments, told",
    [
        (dict(widths=(2, 3)), "'widths' must be three whole numbers. Got (2, 3)."),
        (dict(widths=(2, 3, 0)), "'widths[2]' must be a whole number in [1, 1000]. Got 0."),
        (dict(widths=5), "'widths' must be three whole numbers. Got 5."),
        (dict(widths=(2, 2, 2), kernel=4), "'kernel' must be 1, 3, 5 or 7. Got 4."),
        (dict(widths=(2, 2, 2), stride=1), "'stride' must be 2 or 3. Got 1."),
        (dict(widths=(2, 2, 2), seed=-1), "'seed' must be a whole number in [0, 1000000]. Got -1."),
    ],
)
def test_what_small_convolutions_can_not_be_is_named(arguments, told):
    with pytest.raises(ParameterError) as error:
        small_convolutions(**arguments)
    assert str(error.value) == f"small_convolutions(): {told}"


def test_pooling_before_relu_changes_nothing():
    x = torch.randn(5, 1, 28, 28)
    convolution = build_model("cnn")[0]
    usual = nn.Sequential(convolution, nn.ReLU(), nn.MaxPool2d(2))(x)
    assert torch.equal(nn.Sequential(*build_model("cnn")[:3])(x), usual)


def test_a_residual_block_with_a_dead_body_passes_positive_inputs_on():
    block = Residual(4).eval()
    block.body[-1].weight.data.zero_()
    block.body[-1].bias.data.zero_()
    x = torch.rand(2, 4, 6, 6)
    assert torch.equal(block(x), x)


def test_an_unknown_network_gets_the_closest_name():
    with pytest.raises(ParameterError, match=r"build_model\(\): 'name' must be one of .* Did you mean 'lenet300'\?"):
        build_model("lenet-300")


@pytest.mark.parametrize("seed", ["a", -1, 1.5, None])
def test_bad_seeds_are_refused(seed):
    with pytest.raises(ParameterError, match=r"build_model\(\): 'seed' must be a whole number"):
        build_model("cnn", seed)


LAYERS = {
    "mlp128": "flatten fc1 relu1 fc2",
    "lenet300": "flatten fc1 relu1 fc2 relu2 fc3",
    "cnn": "conv1 pool1 relu1 conv2 pool2 relu2 flatten fc1 relu3 fc2",
    "lenet5": "conv1 pool1 relu1 conv2 pool2 relu2 flatten fc1 relu3 fc2",
    "lenet5_classic": "conv1 pool1 relu1 conv2 pool2 relu2 flatten fc1 relu3 fc2 relu4 fc3",
    "resnet": "conv1 norm1 relu1 pool1 block1 conv2 norm2 relu2 pool2 block2 mean flatten fc1",
    "784-30-10": "flatten fc1 relu1 fc2",
}


@pytest.mark.parametrize("architecture", LAYERS)
def test_layers_have_names_that_a_learner_understands(architecture):
    model = build_architecture(architecture)
    assert [name for name, _ in model.named_children()] == LAYERS[architecture].split()
    assert model.architecture == architecture_of(model) == architecture
    assert [old_names(model)[str(place)] for place in range(len(model))] == LAYERS[architecture].split()


def test_those_inside_a_block_have_them_too():
    body = build_model("resnet").block1.body
    assert [name for name, _ in body.named_children()] == ["conv1", "norm1", "relu1", "conv2", "norm2"]
    assert old_names(build_model("resnet"))["4.body.3"] == "block1.body.conv2"


IMAGES = torch.randn(64, 1, 28, 28, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(64) % 10


def trained(model):
    data = IMAGES, LABELS
    return train(model, data, F.cross_entropy, validation=data, epochs=1, batch_size=32, progress=False)[0]


def from_file(model, tmp_path):
    save_network(tmp_path / "file", model)
    return load_network(tmp_path / "file")


CHANGES = {
    "copied": copy.deepcopy,
    "trained": trained,
    "masked": lambda model: prune(model, 0.5),
    "masked and trained": lambda model: trained(prune(model, 0.5)),
    "channels masked": lambda model: prune_channels(model, 0.5),
    "channels removed": lambda model: hard_prune(prune_channels(model, 0.5)),
    "a layer removed": lambda model: remove_layers(model, ["relu1"]),
    "folded": fold_batch_norm,
    "quantized": lambda model: quantize_weights(model, 4),
    "ternary": ternarize_weights,
    "shared": lambda model: share_weights(model, 2),
    "activations quantized": lambda model: quantize_activations(model, IMAGES, 4),
    "wholly quantized": lambda model: quantize_model(model, IMAGES, 4, 6),
    "made permanent": lambda model: make_permanent(share_weights(prune(model, 0.5), 2)),
    "packed": lambda model: unpack(pack(share_weights(prune(model, 0.9), 2))),
    "packed by huffman": lambda model: unpack(pack(hard_prune(prune_channels(model, 0.7)), "huffman")),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize(
    "architecture",
    [
        "784-5-10",
        "lenet5_classic",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("cnn", "lenet300", "resnet")),
    ],
)
def test_a_network_knows_what_it_is_whatever_is_done_to_it(architecture, change, tmp_path):
    changed = change(build_architecture(architecture))
    assert architecture_of(changed) == architecture
    assert from_file(changed, tmp_path).architecture == architecture


@pytest.mark.parametrize("architecture", LAYERS)
def test_the_attribute_is_no_tensor_and_no_module(architecture):
    model = build_architecture(architecture)
    assert not any("architecture" in key for key in [*model.state_dict(), *dict(model.named_modules())])


@pytest.mark.parametrize("model", [nn.Sequential(nn.Linear(3, 3)), nn.Linear(3, 3)])
def test_a_network_of_ones_own_has_none(model):
    with pytest.raises(ParameterError, match=r"architecture_of\(\): 'model' must be a network of the kit"):
        architecture_of(model)
    with pytest.raises(ParameterError, match="must be a network"):
        architecture_of("cnn")
    part = build_model("cnn")[:7]
    assert not hasattr(part, "architecture") and list(weights(part)) == ["conv1", "conv2"]  # a part is another network


@pytest.mark.parametrize(
    "architecture, part",
    [
        ("784-10001-10", "'width' must be a whole number in [1, 10000]. Got 10001."),
        ("784-0-10", "'architecture' must be one of"),
        ("784-030-10", "'architecture' must be one of"),
        ("784-30-10 ", "'architecture' must be one of"),
        ("lenet30", "Did you mean 'lenet300'?"),
        (None, "'architecture' must be one of"),
    ],
)
def test_an_unknown_architecture_is_named(architecture, part):
    with pytest.raises(ParameterError) as error:
        build_architecture(architecture)
    assert part in str(error.value) and str(error.value).startswith("build_architecture(): "), str(error.value)
    assert build_architecture("784-30-10").architecture == small_student(30).architecture


# ---- small students


@pytest.mark.parametrize("width, seed", [(1, 0), (30, 7), (300, 1)])
def test_it_starts_as_torch_would_start_it_and_leaves_the_random_numbers_alone(width, seed):
    before = torch.get_rng_state()
    student = small_student(width, seed)
    assert torch.equal(before, torch.get_rng_state())
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        expected = nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 10))
    assert [str(layer) for layer in student] == [str(layer) for layer in expected]
    assert all(torch.equal(*pair) for pair in zip(student.parameters(), expected.parameters(), strict=True))


@pytest.mark.parametrize(
    "arguments, part",
    [
        ((0, 0), "'width' must be a whole number in [1, 10000]. Got 0."),
        ((30.0, 0), "'width'"),
        ((True, 0), "'width'"),
        ((30, -1), "'seed'"),
    ],
)
def test_no_network_without_units(arguments, part):
    with pytest.raises(ParameterError) as error:
        small_student(*arguments)
    assert part in str(error.value) and str(error.value).startswith("small_student()")


@pytest.mark.parametrize("number", [np.uint8, np.int64])
def test_seeds_and_widths_as_numbers_of_numpy(number):
    for build in (lambda of: build_model("mlp128", of(7)), lambda of: small_student(of(30), of(7))):
        found, expected = build(number), build(int)
        assert found.architecture == expected.architecture
        assert all(torch.equal(*pair) for pair in zip(found.parameters(), expected.parameters(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@pytest.mark.parametrize(
    "build",
    [
        lambda: build_model("resnet"),
        lambda: small_student(7),
        lambda: SoftTree(2),
        lambda: regressor((4, 5, 5), (6, 5, 5)),
        lambda: regressor((4, 5, 5), (7,)),
    ],
    ids=["network", "student", "soft tree", "convolution", "linear"],
)
def test_initial_weights_are_the_same_whatever_surrounds_the_call(build, dtype):
    expected = build().state_dict()
    torch.set_default_dtype(dtype)
    try:
        with torch.inference_mode():
            found = build()
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(torch.float32)
    assert not any(parameter.is_inference() for parameter in found.parameters())
    for name, tensor in found.state_dict().items():
        assert tensor.dtype == expected[name].dtype and torch.equal(tensor, expected[name]), name
