"""Integer layers give exactly the sums of whole numbers, and what the simulated layers give to one step of a grid."""

import copy
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from kd_lab.checkpoints import load_trained
from kd_lab.cost import count_macs, count_nonzeros, count_parameters, file_bytes
from kd_lab.errors import ParameterError
from kd_lab.evaluation import accuracy
from kd_lab.networks.predictions import predict
from kd_lab.networks.zoo import build_model
from kd_lab.pruning import hard_prune, prune, prune_channels
from kd_lab.quantization import (
    FakeQuantizer,
    IntegerConv2d,
    IntegerLayer,
    IntegerLinear,
    IntegerMaxPool2d,
    QuantizeInput,
    Requantize,
    quantize_activations,
    quantize_model,
    quantize_weights,
    to_integer,
)
from kd_lab.quantization.activations import set_input_quantizer
from kd_lab.scorecard import scorecard

LAYERS = {
    "linear": lambda: nn.Linear(37, 5),
    "linear without bias": lambda: nn.Linear(37, 5, bias=False),
    "padded": lambda: nn.Conv2d(4, 6, 3, padding=1),
    "strided": lambda: nn.Conv2d(4, 6, (5, 3), stride=(2, 1), padding=(2, 1)),
    "grouped": lambda: nn.Conv2d(4, 8, 3, groups=2),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, groups=4, padding="same"),
    "even": lambda: nn.Conv2d(4, 6, (2, 4), padding="same"),
    "valid": lambda: nn.Conv2d(4, 6, 2, padding="valid", bias=False),
}
GRIDS = [
    ("per_channel", True),
    ("per_tensor", False),
    pytest.param("per_channel", False, marks=pytest.mark.slow),
    pytest.param("per_tensor", True, marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def quantized(mnist):
    """The quantized network of a name, made once."""

    class Quantized(dict):
        def __missing__(self, name):
            self[name] = quantize_model(load_trained(name), mnist.train.images[:256])
            return self[name]

    return Quantized()


def input_of(layer):
    torch.manual_seed(0)
    return torch.randn(6, 37) + 0.5 if isinstance(layer, nn.Linear) else torch.randn(6, 4, 9, 8) + 0.5


def simulated(name, x_bits=8, w_bits=8, granularity="per_channel", symmetric=True):
    """A layer with grids for weight and input, and inputs, some beyond the ends of the grid."""
    torch.manual_seed(1)
    layer = LAYERS[name]()
    x = input_of(layer)
    model = quantize_model(nn.Sequential(layer), x, w_bits, x_bits, granularity=granularity, symmetric=symmetric)
    return model[0], 1.5 * x


def oracle(layer, simple, x):
    """The sums in int64, from the definition, with padding by the zero point."""
    q, w = layer.input(x).numpy().astype(np.int64), layer.weight.numpy().astype(np.int64)
    zero_x, zero_w = int(layer.input_zero_point), layer.weight_zero_point.numpy().astype(np.int64)
    bias = np.zeros(len(w), np.int64) if layer.bias is None else layer.bias.numpy().astype(np.int64)
    if isinstance(simple, nn.Linear):
        return layer.spread * (q - zero_x) @ (w - zero_w).T + bias
    words = {"valid": (0, 0), "same": [(size - 1) / 2 for size in w.shape[2:]]}  # one more behind where it is odd
    padding = [(0, 0)] * 2 + [(math.floor(size), math.ceil(size)) for size in words.get(layer.padding, layer.padding)]
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(q, padding, constant_values=zero_x), w.shape[2:], (2, 3))
    windows = windows[:, :, :: simple.stride[0], :: simple.stride[1]] - zero_x
    groups = zip(np.split(windows, simple.groups, 1), np.split(w - zero_w, simple.groups), strict=True)
    sums = np.concatenate([np.einsum("nchwij,ocij->nohw", *group) for group in groups], 1)
    return layer.spread * sums + bias[:, None, None]


@pytest.mark.parametrize("granularity, symmetric", GRIDS)
@pytest.mark.parametrize("name", LAYERS)
def test_sums_are_exact_and_the_output_is_the_simulated_one(name, granularity, symmetric):
    between = 3 + list(LAYERS).index(name) % 5  # of 3 to 7 bits one for each layer
    for x_bits, w_bits in [(8, 8), (8, 2), (2, 8), (1, 3), (between, between)]:
        simple, x = simulated(name, x_bits, w_bits, granularity, symmetric)
        layer = to_integer(nn.Sequential(simple), x)[0]
        sums = layer.accumulate(layer.input(x))
        assert layer.weight.dtype == torch.int8 and sums.dtype == torch.int32
        assert np.array_equal(sums.numpy(), oracle(layer, simple, x))
        unit = layer.output.factor.float()  # the bias is rounded to units
        assert ((layer(x) - simple(x)).abs() <= 0.51 * unit + 1e-5).all()


POOL = [nn.MaxPool2d(2, padding=1), nn.ReLU(), nn.Dropout(), nn.Flatten()]


@pytest.mark.parametrize("granularity, symmetric", GRIDS)
@pytest.mark.parametrize("between", [[], [nn.ReLU()], POOL], ids=["nothing", "relu", "pool"])
def test_what_layers_hand_on_is_the_simulated_to_one_step(between, granularity, symmetric):
    torch.manual_seed(0)
    x = torch.randn(20, 4, 9, 8)
    following = nn.Linear(8 * 25, 7) if between is POOL else nn.Conv2d(8, 7, 3)
    for bits in range(2, 9):
        dense = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), *between, following)
        simple = quantize_model(dense, x, bits, bits, granularity=granularity, symmetric=symmetric)
        whole, grid = to_integer(simple), simple[-1].input_quantizer
        assert (steps_apart(simple, whole, x) <= 1).all()
        assert (steps_apart(simple, whole, x) > 0).float().mean() < 0.005  # where the rounded bias decides a tie
        assert whole[:-1](x).min() >= max(-(2 ** (bits - 1)), grid.zero_point.item() if between else -128)
        assert isinstance(whole[0].output, Requantize) and isinstance(whole[-1].input, nn.Identity)


def steps_apart(simple, whole, x):
    """By how many steps of its grid the input of the last layer differs."""
    grid, found = simple[-1].input_quantizer, whole[:-1](x)
    assert found.dtype == torch.int8
    expected = (grid(simple[:-1](x)) / grid.scale).round() + grid.zero_point
    return (found - expected).abs()


def test_a_factor_is_a_whole_number_and_a_shift():
    grid = FakeQuantizer(torch.tensor([1.0]), torch.tensor([3], dtype=torch.int32), 8)
    sums = torch.cat([torch.tensor([0, 1, -1, 2**31 - 1, -(2**31)]), torch.randint(-(2**31), 2**31, (500,))]).int()
    for factor in [2.0**-70, 2.0**-31, 1e-9, 3e-8, 0.9999999999, 1.0, 3.7, 2.0**29, 2.0**40]:
        found = Requantize(torch.tensor([factor], dtype=torch.float64), grid, relu=False)(sums)
        for whole, got in zip(sums.tolist(), found.tolist(), strict=True):
            exact = whole * Fraction(factor)
            near = min(max(math.floor(exact + Fraction(1, 2)) + 3, -128), 127)
            assert got == near or abs(exact % 1 - Fraction(1, 2)) < 1e-6
    assert 2**30 <= Requantize(torch.tensor([0.3]), grid, False).multiplier.item() < 2**31  # all of its bits are used
    assert Requantize(torch.tensor([0.5]), grid, False)(torch.tensor([-3, -1, 1, 3]).int()).tolist() == [2, 3, 4, 5]


def layer_of(weight_code, inputs, bias, weight_scale=0.01, zero_point=127):
    """A Linear layer all of whose weights are one integer."""
    layer = nn.Linear(inputs, 2)
    layer.weight.data.fill_(weight_code * weight_scale)
    layer.bias.data.copy_(torch.tensor(bias))
    grid = FakeQuantizer(torch.tensor([[weight_scale]]), torch.tensor([[0]], dtype=torch.int32), 8)
    parametrize.register_parametrization(layer, "weight", grid)
    layer.input_quantizer = FakeQuantizer(torch.tensor([0.02]), torch.tensor([zero_point], dtype=torch.int32), 8)
    return layer


def test_extremes_are_exact():
    layer = IntegerLinear(layer_of(-128, 65_000, [0.0, 1.0]))
    x = torch.full((1, 65_000), -128, dtype=torch.int8)
    assert layer.accumulate(x).tolist() == [[255 * 128 * 65_000, 255 * 128 * 65_000 + 5000]]
    assert layer.accumulate(torch.full_like(x, 127)).tolist() == [[0, 5000]]  # it stands for 0


class Both(nn.ModuleList):
    """Adds what two layers give, of which the first takes ten numbers."""

    def forward(self, x):
        return self[0](x[:, :10]) + self[1](x)


def test_what_could_leave_32_bits_stays_in_float():
    for too_much in (
        layer_of(-128, 66_000, [0.0, 0.0]),
        layer_of(1, 10, [0.0, 1e8]),
        layer_of(1, 10, [1.0, 1.0], weight_scale=1e-30),
    ):
        x = torch.rand(3, too_much.in_features)
        for layer in (small := layer_of(1, 10, [0.0, 0.0]), too_much):
            set_input_quantizer(layer, layer.input_quantizer)
        whole = to_integer(Both([small, too_much]), x)
        assert whole.left_in_float == {
            "model": "Both",
            "1": f"Linear {too_much.in_features}-2, whose numbers need more than 8 bits or sums more than 32",
        }


def test_channels_without_weights_and_inputs_without_light_give_the_bias():
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 3))
    dense[0].weight.data[0] = 0
    dense[0].weight.data[1] = 0.3
    images = torch.rand(10, 1, 8, 8)
    for symmetric in (True, False):
        simple = quantize_model(dense, images, symmetric=symmetric)
        whole = to_integer(simple)
        for x in (images, torch.zeros(2, 1, 8, 8)):
            assert torch.allclose(whole(x), simple(x), atol=0.02)
        assert whole[0].accumulate(whole[0].input(torch.zeros(1, 1, 8, 8))).unique(dim=2).shape[2] == 1


@pytest.mark.parametrize(
    "name",
    [
        "lenet300",
        "cnn",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("mlp128", "lenet5_classic", "resnet")),
    ],
)
def test_whole_models_answer_as_the_simulated_ones(name, quantized, validation):
    simple = quantized[name]
    before = {key: value.clone() for key, value in simple.state_dict().items()}
    whole = to_integer(simple)
    logits, expected = predict(whole, validation.images), predict(simple, validation.images)
    assert (logits.argmax(1) == expected.argmax(1)).sum() >= 995
    assert (logits - expected).abs().max() < 0.01 * expected.abs().max()
    assert abs(accuracy(whole, validation).value - accuracy(simple, validation).value) <= 0.001
    assert all(torch.equal(value, simple.state_dict()[key]) for key, value in before.items())
    assert not any(isinstance(module, IntegerLayer) for module in simple.modules())


QUICK_BITS = (2, 8), (2, 2), (8, 1)
SLOW_BITS = (2, 1), (8, 8), (3, 6), (4, 3), (5, 7), (6, 4), (7, 5)  # both ends; each number of bits at least once
BITS = [*QUICK_BITS, *(pytest.param(*bits, marks=pytest.mark.slow) for bits in SLOW_BITS)]


@pytest.mark.parametrize("weight_bits, activation_bits", BITS)
def test_few_bits_give_the_simulated_answers(weight_bits, activation_bits, mnist, validation):
    images = validation.images[:1000]
    simple = quantize_model(load_trained("cnn"), mnist.train.images[:256], weight_bits, activation_bits)
    logits, expected = predict(to_integer(simple), images), predict(simple, images)
    assert (logits.argmax(1) == expected.argmax(1)).sum() >= 998
    assert (logits - expected).abs().max() < 0.1 * expected.abs().max()  # a step of a grid of few bits
    assert (logits - expected).square().sum() < 1e-3 * expected.square().sum()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("num_bits", range(2, 9))
def test_a_weight_of_few_bits_leaves_its_bias_a_fine_unit(num_bits, symmetric):
    simple, _ = simulated("padded", 8, num_bits, symmetric=symmetric)
    layer = IntegerConv2d(simple)
    weight = (layer.weight.int() - layer.weight_zero_point) * layer.weight_scale
    torch.testing.assert_close(weight, simple.weight)
    fine = 2 ** max(7 - num_bits, 0)
    assert torch.equal(layer.weight_scale * fine, simple.parametrizations.weight[0].scale)
    unit = layer.output.factor.flatten()
    assert ((layer.bias * unit - simple.bias).abs() <= 0.51 * unit).all()


def test_the_unit_is_no_finer_than_sums_of_32_bits_allow():
    wide = layer_of(1, 10, [1.0, 1.0])
    wide.parametrizations.weight[0].num_bits = 2
    sums = {bias: IntegerLinear(layer).bias for bias in (1.0, 1e5) for layer in [with_bias(wide, bias)]}
    assert sums[1.0].tolist() == [32 * 5000] * 2
    assert 5e8 < sums[1e5][0] < 2**31 - 1


def with_bias(layer, value):
    layer = copy.deepcopy(layer)
    layer.bias.data.fill_(value)
    return layer


@pytest.mark.parametrize("name", ["lenet300", "cnn"])
def test_an_integer_model_costs_what_it_says(name, quantized):
    whole, dense = to_integer(quantized[name]), load_trained(name)
    assert whole.left_in_float == {}
    assert count_parameters(whole) == count_parameters(dense) and count_macs(whole) == count_macs(dense)
    assert count_nonzeros(whole) == sum(int(part.count_nonzero()) for part in whole.parameters())
    assert 0.25 < file_bytes(whole) / file_bytes(dense) < 0.27
    assert {parameter.dtype for parameter in whole.parameters()} == {torch.int8, torch.int32}
    assert not any(parameter.requires_grad for parameter in whole.parameters())


def test_copies_and_saved_tensors_give_the_same_model(quantized, validation):
    whole = to_integer(quantized["cnn"])
    twin = to_integer(quantize_model(build_model("cnn", 3), -validation.images[:64]))
    twin.load_state_dict(whole.state_dict())
    expected = predict(whole, validation.images[:50])
    assert torch.equal(predict(copy.deepcopy(whole), validation.images[:50]), expected)
    assert torch.equal(predict(twin, validation.images[:50]), expected)
    assert torch.equal(predict(whole.train(), validation.images[:50]), expected)


def test_layers_keep_their_names_and_floats_come_in_once(quantized):
    whole = to_integer(quantized["cnn"])
    assert [name for name, layer in whole.named_modules() if isinstance(layer, IntegerLayer)] == [
        "conv1",
        "conv2",
        "fc1",
        "fc2",
    ]
    assert [name for name, part in whole.named_modules() if isinstance(part, QuantizeInput)] == ["conv1.input"]
    assert isinstance(whole[1], IntegerMaxPool2d) and isinstance(whole[2], nn.Identity)
    assert not to_integer(copy.deepcopy(quantized["cnn"]).train()).training
    assert whole(torch.rand(2, 1, 28, 28)).dtype == torch.float32


def test_what_has_no_integer_form_is_named_and_what_is_in_it_is_converted(quantized, validation):
    whole, images = to_integer(quantized["resnet"]), validation.images[:200]
    assert whole.left_in_float == {"block1": "Residual", "block2": "Residual", "mean": "AdaptiveAvgPool2d"}
    assert isinstance(whole[4].body[0].output, Requantize) and isinstance(whole[4].body[3], IntegerConv2d)
    mixed = quantize_activations(quantize_weights(load_trained("cnn"), {"conv1": 4, "conv2": 1, "fc1": 8}), images)
    left = to_integer(mixed).left_in_float
    assert left == {
        "conv2": "Conv2d 16-32, 3×3, whose weight lies on no grid",
        "fc2": "Linear 128-10, whose weight lies on no grid",
    }
    assert torch.allclose(*(predict(model, images) for model in (mixed, to_integer(mixed))), atol=0.2)


def test_of_a_layer_that_stays_in_float_its_parametrizations_are_not_named():
    words = torch.randint(12, (20, 6))
    model = nn.Sequential(nn.Embedding(12, 5), nn.Flatten(), nn.Linear(30, 4))
    assert to_integer(quantize_model(model, words, 4), words).left_in_float == {"0": "Embedding"}


def test_a_batch_norm_that_was_not_folded_stays_in_float(validation):
    images = validation.images[:100]
    simple = quantize_activations(quantize_weights(load_trained("resnet"), 8), images)
    whole = to_integer(simple)
    assert whole.left_in_float["norm1"] == whole.left_in_float["block2.body.norm2"] == "BatchNorm2d"
    assert torch.allclose(predict(whole, images), predict(simple, images), atol=0.1)


def test_layers_used_twice_and_outside_a_sequential():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 6)
            self.chain = nn.Sequential(self.layer, nn.ReLU(), self.layer)

        def forward(self, x):
            return self.chain(self.layer(x)) + x

    torch.manual_seed(0)
    x = torch.randn(30, 6)
    simple = quantize_model(Twice(), x)
    whole = to_integer(simple)
    assert whole.left_in_float == {"model": "Twice"}
    assert torch.allclose(whole(x), simple(x), atol=0.05)
    assert whole.chain[0] is whole.chain[2] is whole.layer and isinstance(whole.layer.input, QuantizeInput)
    alone = to_integer(quantize_model(nn.Linear(6, 2), x))
    assert isinstance(alone, IntegerLinear) and alone.left_in_float == {}


@pytest.mark.parametrize("options", [{"dilation": 2}, {"padding": 1, "padding_mode": "circular"}])
def test_other_convolutions_stay_in_float(options):
    dense = nn.Sequential(nn.Conv2d(1, 2, 3, **options), nn.Flatten(), nn.LazyLinear(3))
    x = torch.rand(5, 1, 9, 9)
    dense(x)
    simple = quantize_model(dense, x)
    whole = to_integer(simple)
    assert list(whole.left_in_float) == ["0"] and torch.allclose(whole(x), simple(x), atol=0.01)


class Looped(nn.Module):
    """A learner's network, which reads its Sequential as a list."""

    def __init__(self, activation):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 20), nn.Identity(), nn.Linear(20, 5))
        self.activation = activation

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)


class Scaled(nn.Linear):
    def forward(self, x):
        return 3 * super().forward(x)


class Standardised(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class LowRank(nn.Linear):
    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.down, self.up = nn.Linear(inputs, 2, bias=False), nn.Linear(2, outputs, bias=False)

    def forward(self, x):
        return super().forward(x) + self.up(self.down(x))


class ReadElsewhere(nn.Module):
    """Adds what its first layer gives before its ReLU, in place."""

    def __init__(self, last):
        super().__init__()
        self.block, self.last = nn.Sequential(nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 30)), last

    def forward(self, x):
        x = x * 1.0
        x += self.block(x)
        y = self.block[0](x)
        return self.last(self.block[1](y)) + y[:, :5]


def hooked():
    model = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 5))
    model[1].register_forward_hook(lambda _module, _taken, given: given + 1)
    model[2].register_forward_hook(lambda _module, _taken, given: -given)
    return model


def tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.encode, self.decode = nn.Linear(30, 5), nn.Linear(5, 30)

        def forward(self, x):
            return self.decode(self.encode(x)) @ self.decode.weight

    return Tied()


BROUGHT = {
    "a functional relu": lambda: Looped(F.relu),
    "a relu used thrice": lambda: Looped(nn.ReLU()),
    "an in-place relu": lambda: Looped(nn.ReLU(inplace=True)),
    "a negation": lambda: Looped(torch.neg),
    "a scaled subclass": lambda: nn.Sequential(
        nn.Linear(30, 20), nn.ReLU(), Scaled(20, 20), nn.ReLU(), nn.Linear(20, 5)
    ),
    "a standardised subclass": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 5, 6)), Standardised(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 5)
    ),
    "LoRA": lambda: nn.Sequential(nn.Linear(30, 20), nn.ReLU(), LowRank(20, 20), nn.ReLU(), nn.Linear(20, 5)),
    "hooks": hooked,
    "an output read twice": lambda: ReadElsewhere(nn.Linear(30, 5)),
    "a weight read elsewhere": tied,
    "a permutation": lambda: nn.Sequential(nn.Unflatten(1, (5, 6)), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 5)),
}


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", BROUGHT)
def test_a_network_that_a_learner_brings_gives_the_simulated_answers_or_is_refused(name, bits):
    torch.manual_seed(0)
    dense, images = BROUGHT[name](), torch.randn(200, 30)
    expected = predict(dense, images)
    simple = quantize_model(dense, images, bits, bits)
    assert torch.equal(predict(dense, images), expected)
    try:
        whole = to_integer(simple)
    except ParameterError as error:
        assert name == "a weight read elsewhere" and "its layers as modules" in str(error)
        return
    logits, expected = predict(whole, images), predict(simple, images)
    assert (logits - expected).square().mean() < (1e-4 if bits == 8 else 1e-2) * expected.square().mean()


def test_a_layer_that_is_a_subclass_or_has_a_hook_is_named():
    for name, layer in (("a scaled subclass", "2"), ("a standardised subclass", "1"), ("LoRA", "2"), ("hooks", "2")):
        whole = to_integer(quantize_model(BROUGHT[name](), torch.randn(50, 30)))
        assert whole.left_in_float[layer].endswith("with a forward or a hook of its own")


def test_a_forward_that_asks_for_the_class_of_its_layers_is_refused():
    class Asks(Looped):
        def forward(self, x):
            for layer in self.layers:
                x = layer(x).relu() - 1 if isinstance(layer, nn.Linear) else layer(x)
            return x

    simple = quantize_model(Asks(None), torch.randn(50, 30))
    with pytest.raises(ParameterError, match=r"^to_integer\(\): 'model' must be a network that runs"):
        to_integer(simple)


def test_pruned_models_convert(validation, mnist):
    images = mnist.train.images[:256]
    masked = to_integer(quantize_model(prune(load_trained("lenet300"), 0.9), images))
    assert count_nonzeros(masked) < 0.11 * count_parameters(masked)
    zeros = quantize_weights(prune(load_trained("lenet300"), 0.9), 8)  # the mask stays before the grid
    assert torch.equal(to_integer(quantize_activations(zeros, images))[1].weight == 0, masked[1].weight == 0)
    smaller = hard_prune(prune_channels(load_trained("cnn"), 0.5))
    assert smaller[0].out_channels == 8
    simple = quantize_model(smaller, images)
    assert torch.equal(*(predict(model, validation.images[:300]).argmax(1) for model in (simple, to_integer(simple))))


def test_a_weight_that_something_takes_off_its_grid_stays_in_float(validation):
    class Third(nn.Module):
        def forward(self, weight):
            return weight / 3

    simple = quantize_model(load_trained("mlp128"), validation.images[:64])
    parametrize.register_parametrization(simple[1], "weight", Third())
    assert to_integer(simple).left_in_float == {"fc1": "Linear 784-128, whose weight lies on no grid"}


def test_a_model_of_integers_is_refused(quantized):
    with pytest.raises(ParameterError, match=r"to_integer\(\): 'model' must be .* runs on integers already"):
        to_integer(to_integer(quantized["mlp128"]))


def test_a_model_without_grids_is_refused(validation):
    dense = build_model("mlp128")
    only_inputs = quantize_activations(dense, validation.images[:64])
    for model, why in (
        (dense, "1: Linear 784-128, whose weight"),
        (quantize_weights(dense, 8), "whose input lies on"),
        (only_inputs, "whose weight lies on"),
        (quantize_weights(dense, 1), "whose weight lies on"),
        (nn.Sequential(nn.ReLU()), "Got no layers"),
    ):
        with pytest.raises(ParameterError, match=r"to_integer\(\): 'model' must have a layer") as error:
            to_integer(model)
        assert "quantize_model(model, images)" in str(error.value) and why in str(error.value)
    with pytest.raises(ParameterError, match=r"to_integer\(\): 'model' must be a network"):
        to_integer("cnn")


@pytest.mark.slow
def test_a_scorecard_says_what_stays_in_float(quantized, validation, monkeypatch):
    monkeypatch.setattr("kd_lab.cost.latency", lambda *_arguments: 1e-3)
    few = validation[:100]
    models = {"dense": load_trained("resnet"), "integer": to_integer(quantized["resnet"])}
    text = repr(scorecard(models, few))
    assert text.splitlines()[-1].split() == ["left", "in", "fp32", "block1,", "block2,", "mean"]
    assert "left in fp32" not in repr(scorecard({"integer": to_integer(quantized["mlp128"])}, few))
