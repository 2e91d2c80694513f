"""A sequence of plain layers is its numbers: what is built from them is the same, what they can't say is refused."""

import copy
import re
import time
import tracemalloc

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn

from kd_lab.errors import ParameterError
from kd_lab.networks.predictions import predict
from kd_lab.networks.sequences import (
    AGAIN,
    MAX_FEATURES,
    MAX_OUTPUTS,
    MAX_STEPS,
    LayerStep,
    build_sequence,
    flattened,
    input_shapes,
    steps_of,
)

IMAGES = torch.randn(5, 1, 28, 28, generator=torch.Generator().manual_seed(0))
CONV, LINEAR, FLATTEN = LayerStep("conv", 4, (3, 3)), LayerStep("linear", 10), LayerStep("flatten")


def rich():
    """Return a network with every kind of layer, one of them twice, some inside others, some that compute nothing."""
    twice = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False)
    return nn.Sequential(
        nn.Conv2d(1, 6, (3, 5), stride=(1, 2), padding=(0, 2)),
        nn.Identity(),
        nn.BatchNorm2d(6),
        nn.Sequential(nn.ReLU(inplace=True), twice, nn.Sequential(nn.MaxPool2d(3, 2, 1), twice), nn.Dropout2d(0.5)),
        nn.AvgPool2d((2, 1)),
        nn.Conv2d(6, 8, 1, groups=2),
        nn.AdaptiveAvgPool2d((1, 1)),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(8, 10, bias=False),
    )


def test_layers_get_the_names_of_the_kit_and_what_computes_nothing_goes():
    model = rich()
    flat = flattened(model)
    names = "conv1 norm1 relu1 conv2 pool1 conv3 pool2 conv4 mean flatten fc1"
    assert " ".join(flat._modules) == names and flat.conv3 is flat.conv2 is model[3][1]
    assert torch.equal(predict(flat, IMAGES), predict(model, IMAGES))


def test_a_second_flatten_has_a_name_of_its_own():
    flat = flattened(nn.Sequential(nn.Flatten(), nn.Linear(784, 10), nn.Flatten()))
    assert list(flat._modules) == ["flatten", "fc1", "flatten2"]


def test_what_is_built_from_the_steps_is_the_same_network():
    flat = flattened(rich())
    steps = steps_of(flat)
    assert [step.kind for step in steps].count(AGAIN) == 1 and steps[5] == LayerStep(AGAIN, place=3)
    built = build_sequence(steps)
    assert [type(each) for each in built] == [type(each) for each in flat]
    assert built.conv3 is built.conv2 and copy.deepcopy(built).conv3.weight is not built.conv2.weight
    built.load_state_dict(flat.state_dict())
    laid_out = flat.to(memory_format=torch.channels_last)
    assert torch.equal(predict(built, IMAGES), predict(laid_out, IMAGES)) and steps_of(built) == steps


WINDOWS = st.tuples(st.integers(1, 6), st.integers(1, 6))


@st.composite
def steps(draw):
    """Return steps with numbers that often fit."""
    kinds = draw(st.lists(st.sampled_from(["conv", "max_pool", "average_pool", "norm", "relu", AGAIN]), max_size=6))
    found = []
    for kind in kinds:
        window = draw(WINDOWS), draw(WINDOWS), draw(st.sampled_from([(0, 0), (1, 0), (1, 2)]))
        numbers = {"conv": (draw(st.integers(1, 6)), *window), "max_pool": (0, *window), "average_pool": (0, *window)}
        place = draw(st.integers(0, 5)) if kind == AGAIN else 0
        found.append(LayerStep(kind, *numbers.get(kind, ()), place=place))
    return [*found, *draw(st.sampled_from([[], [FLATTEN, LINEAR], [LayerStep("mean"), FLATTEN, LINEAR]]))]


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(steps())
def test_the_shapes_by_the_numbers_are_those_that_torch_computes(steps):
    try:
        shapes = input_shapes(steps)
    except ParameterError:
        assume(False)
    x = IMAGES[:2]
    for layer, shape in zip(build_sequence(steps).eval(), shapes, strict=True):
        assert tuple(x.shape[1:]) == shape
        x = layer(x)


@pytest.mark.parametrize(
    ("steps", "part"),
    [
        ([], "number of layers' must be a whole number in [1, 64]. Got 0"),
        ([LayerStep("relu")] * (MAX_STEPS + 1), "Got 65"),
        ([LayerStep("conv", MAX_OUTPUTS + 1)], "[1, 10000]. Got 10001"),
        ([LayerStep("conv", 0)], "[1, 10000]. Got 0"),
        ([LayerStep("conv", 4, (0, 3))], "window of layer 1, conv,' must be a whole number in [1, 28]. Got 0"),
        ([LayerStep("conv", 4, (3, 29))], "Got 29"),
        ([LayerStep("conv", 4, stride=(1, 0))], "window of layer 1, conv,' must be a whole number in [1, 28]. Got 0"),
        (
            [LayerStep("conv", 4, padding=(0, 29))],
            "padding of layer 1, conv,' must be a whole number in [0, 28]. Got 29",
        ),
        ([LayerStep("max_pool", 0, (3, 3), padding=(2, 0))], "in [0, 1]. Got 2"),
        ([LayerStep("conv", 4, groups=0)], "groups of layer 1, conv,' must be a whole number in [1, 10000]. Got 0"),
        ([CONV, LayerStep("conv", 4, groups=3)], "a divisor of 4 and of 4. Got 3"),
        (
            [LayerStep("conv", MAX_FEATURES // 784 + 1)],
            "features behind layer 1, conv,' must be a whole number in [1, 262144]",
        ),
        (
            [FLATTEN, *[LayerStep("linear", MAX_OUTPUTS)] * 2],
            "number of parameters' must be a whole number in [0, 10000000]",
        ),
        ([CONV, LINEAR], "must be flat: put a Flatten before it"),
        ([FLATTEN, CONV], "no Flatten may be before it"),
        ([LayerStep("conv", 4, (28, 28)), CONV], "at least as large as its kernel. Got (4, 1, 1)"),
        ([CONV, LayerStep(AGAIN, place=1)], "must be that of an earlier layer with weights. Got 1"),
        ([CONV, LayerStep(AGAIN, place=-1)], "Got -1"),
        ([CONV, LayerStep("relu"), LayerStep(AGAIN, place=1)], "that of an earlier layer with weights. Got 1"),
        ([CONV, LayerStep(AGAIN, place=0)], "input of layer 2, again,' must be 1. Got 4"),
        (
            [FLATTEN, LayerStep("linear", 784), LayerStep("relu"), LayerStep(AGAIN, place=1), CONV],
            "no Flatten may be before it",
        ),
    ],
)
def test_numbers_beyond_bounds_are_refused_before_a_tensor_is_made(steps, part):
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(ParameterError, match=re.escape(part)):
        build_sequence(steps)
    assert time.process_time() - start < 2 and tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


class Own(nn.Conv2d):
    """A layer of one's own."""


def hooked(layer):
    layer.register_forward_hook(lambda *_parts: None)
    return layer


def overridden(layer):
    layer.forward = lambda x: x
    return layer


def with_buffer(layer):
    layer.register_buffer("more", torch.zeros(3))
    return layer


@pytest.mark.parametrize(
    ("layer", "part"),
    [
        (nn.Conv2d(1, 4, 3, padding="same"), "padding of layer conv1' must be one whole number, or two. Got 'same'"),
        (nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular"), "'padding_mode' of layer 'conv1' must be zeros"),
        (nn.Conv2d(1, 4, 3, dilation=2), "'dilation' of layer 'conv1' must be (1, 1). Got (2, 2)"),
        (nn.Conv2d(3, 4, 3), "'in_channels' of layer 'conv1' must be 1. Got 3"),
        (nn.Conv2d(1, 4, 3).double(), "torch.float32. Got (4, 1, 3, 3), torch.float64"),
        (nn.MaxPool2d(2, dilation=2), "'dilation' of layer 'pool1' must be 1. Got 2"),
        (nn.MaxPool2d(3, ceil_mode=True), "'ceil_mode' of layer 'pool1' must be False. Got True"),
        (nn.MaxPool2d(3, return_indices=True), "'return_indices' of layer 'pool1' must be False"),
        (nn.AvgPool2d(3, padding=1, count_include_pad=False), "'count_include_pad' of layer 'pool1' must be True"),
        (nn.AvgPool2d(3, divisor_override=2), "'divisor_override' of layer 'pool1' must be None. Got 2"),
        (nn.AdaptiveAvgPool2d(2), "'output_size' of layer 'mean' must be 1. Got 2"),
        (nn.Flatten(2), "'start_dim' of layer 'flatten' must be 1. Got 2"),
        (nn.BatchNorm2d(1, eps=1e-3), "'eps' of layer 'norm1' must be 1e-05. Got 0.001"),
        (nn.BatchNorm2d(1, momentum=None), "'momentum' of layer 'norm1' must be 0.1. Got None"),
        (nn.BatchNorm2d(1, affine=False), "'affine' of layer 'norm1' must be True"),
        (nn.BatchNorm2d(1, track_running_stats=False), "'track_running_stats' of layer 'norm1' must be True"),
        (nn.Linear(28, 10), "must be flat: put a Flatten before it"),
        (nn.GELU(), "'layer 0' must be one of torch's own Conv2d, Linear,"),
        (Own(1, 4, 3), "'layer 0' must be one of torch's own Conv2d, Linear,"),
        (hooked(nn.ReLU()), "without hooks. Got 'ReLU'"),
        (hooked(nn.Dropout()), "without hooks. Got 'Dropout'"),
        (overridden(nn.Flatten()), "without hooks. Got 'Flatten'"),
        (with_buffer(nn.ReLU()), "layer 'relu1' must have no other tensors than none"),
        (hooked(nn.Sequential(nn.ReLU())), "an nn.Sequential of plain layers without hooks. Got 'Sequential'"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_no_number_says_is_refused_in_words(layer, part):
    with pytest.raises(ParameterError, match=re.escape(part)):
        steps_of(flattened(nn.Sequential(layer)))


@pytest.mark.parametrize("model", [nn.ReLU(), nn.ModuleList([nn.ReLU()]), hooked(nn.Sequential(nn.ReLU()))])
def test_what_is_no_plain_sequence_is_refused(model):
    with pytest.raises(ParameterError, match=r"or an nn\.Sequential of plain layers without hooks\. Got"):
        flattened(model)
