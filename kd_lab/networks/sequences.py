"""Take a sequence of plain layers apart into steps of numbers, and build it from them: what a packed file keeps of it.

It reads images (1, 28, 28), so what each layer reads follows from the layers before it.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from kd_lab.errors import ParameterError, check_that, check_whole_number
from kd_lab.networks.layers import sequential_steps
from kd_lab.networks.predictions import MNIST_IMAGE
from kd_lab.networks.tracing import is_plain
from kd_lab.networks.zoo import initial_weights, sequence

SEQUENCE = "sequence"  # the architecture of a network that is built from steps
KINDS: dict[str, type[nn.Module]] = {  # in the order of their numbers in a file, so new ones come last
    "conv": nn.Conv2d,
    "linear": nn.Linear,
    "max_pool": nn.MaxPool2d,
    "average_pool": nn.AvgPool2d,
    "mean": nn.AdaptiveAvgPool2d,
    "relu": nn.ReLU,
    "flatten": nn.Flatten,
    "norm": nn.BatchNorm2d,
}
AGAIN = "again"  # the kind of a step that runs the layer of an earlier one
POOLS = "max_pool", "average_pool"
WITH_TENSORS = "conv", "linear", "norm"
LEFT_OUT = nn.Identity, nn.Dropout, nn.Dropout2d  # they compute nothing when a network predicts
MAX_STEPS = 64
MAX_OUTPUTS = 10_000  # channels or features of a layer
MAX_WINDOW = MNIST_IMAGE[-1]  # of a kernel, a stride and a padding
MAX_FEATURES = 2**18  # numbers that a layer makes of one image: a megabyte
MAX_PARAMETERS = 10_000_000  # what the largest packed file holds in float32

Shape = tuple[int, ...]


class LayerStep(NamedTuple):
    """What is run at one place: a new layer and its numbers, or the layer of the step at `place` again."""

    kind: str
    outputs: int = 0
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    groups: int = 1
    bias: bool = True
    place: int = 0


def flattened(model: nn.Module) -> nn.Sequential:
    """Return an nn.Sequential of the same layers, those inside others in their place, named as the kit's are.

    Identity and Dropout are left out, since they compute nothing when a network predicts. Raises a ParameterError that
    names the first layer that is of no kind of the kit's.
    """
    containers = [each for each in model.modules() if type(each) is nn.Sequential]
    plain = type(model) is nn.Sequential and all(is_plain(each, nn.Sequential) for each in containers)
    allowed = "a network of the kit, or an nn.Sequential of plain layers without hooks"
    check_that("model", type(model).__name__, plain, allowed)
    names = ", ".join(each.__name__ for each in (*KINDS.values(), *LEFT_OUT))
    for name, layer in sequential_steps(model):
        plain = any(is_plain(layer, kind) for kind in (*KINDS.values(), *LEFT_OUT))
        check_that(f"layer {name}", type(layer).__name__, plain, f"one of torch's own {names}, without hooks")
    return sequence(*(layer for _, layer in sequential_steps(model) if type(layer) not in LEFT_OUT))


def steps_of(model: nn.Sequential) -> list[LayerStep]:
    """Return the steps of what `flattened` gives; raise a ParameterError that names a layer that none describes."""
    layers = [*model._modules.items()]  # named_children() would leave out a layer's second place
    first: dict[nn.Module, int] = {}
    steps = []
    for place, (name, layer) in enumerate(layers):
        step = _step(name, layer)
        again = step.kind in WITH_TENSORS and first.setdefault(layer, place) < place
        steps.append(LayerStep(AGAIN, place=first[layer]) if again else step)
    for step, shape, (name, layer) in zip(steps, input_shapes(steps), layers, strict=True):
        if step.kind != AGAIN:
            _check_alike(name, layer, _layer(step, shape))
    return steps


def build_sequence(steps: Sequence[LayerStep]) -> nn.Sequential:
    """Build a network from its steps, with initial weights, laid out and named as the kit's are.

    Raises a ParameterError, before any tensor is made, for steps that don't fit together or are beyond bounds.
    """
    layers: list[nn.Module] = []
    for step, shape in zip(steps, input_shapes(steps), strict=True):
        layers.append(layers[step.place] if step.kind == AGAIN else _layer(step, shape))
    model = sequence(*layers).to(memory_format=torch.channels_last)
    model.architecture = SEQUENCE
    return model


def input_shapes(steps: Sequence[LayerStep]) -> list[Shape]:
    """Return the shape of what each step reads of one image, by the numbers alone.

    Raises a ParameterError for the first step that doesn't fit, or whose numbers or answers are beyond bounds.
    """
    check_whole_number("number of layers", len(steps), f"[1, {MAX_STEPS}]")
    shape: Shape = MNIST_IMAGE
    shapes: list[Shape] = []
    parameters = 0
    for place, step in enumerate(steps):
        shapes.append(shape)
        named = f"layer {place + 1}, {step.kind},"
        if step.kind == AGAIN:
            fits = 0 <= step.place < place and steps[step.place].kind in WITH_TENSORS
            check_that(f"place of {named}", step.place, fits, "that of an earlier layer with weights")
            first = shapes[step.place]
            check_that(f"input of {named}", shape[0], len(first) == len(shape) and first[0] == shape[0], f"{first[0]}")
            step = steps[step.place]
        else:
            parameters += _check_numbers(named, step, shape)
        shape = _output(named, step, shape)
        check_whole_number("number of parameters", parameters, f"[0, {MAX_PARAMETERS}]")
        check_whole_number(f"features behind {named}", math.prod(shape), f"[1, {MAX_FEATURES}]")
    return shapes


def _check_numbers(named: str, step: LayerStep, shape: Shape) -> int:
    """Return how many parameters a new layer has; raise a ParameterError unless its numbers are in bounds."""
    for size in step.kernel + step.stride:
        check_whole_number(f"window of {named}", size, f"[1, {MAX_WINDOW}]")
    for size, kernel in zip(step.padding, step.kernel, strict=True):
        check_whole_number(f"padding of {named}", size, f"[0, {kernel // 2 if step.kind in POOLS else MAX_WINDOW}]")
    if step.kind in ("conv", "linear"):
        check_whole_number(f"outputs of {named}", step.outputs, f"[1, {MAX_OUTPUTS}]")
        check_whole_number(f"groups of {named}", step.groups, f"[1, {MAX_OUTPUTS}]")
        fits = shape[0] % step.groups == 0 and step.outputs % step.groups == 0
        check_that(f"groups of {named}", step.groups, fits, f"a divisor of {shape[0]} and of {step.outputs}")
        return step.outputs * (shape[0] // step.groups * math.prod(step.kernel) + step.bias)
    return 4 * shape[0] if step.kind == "norm" else 0


def _output(named: str, step: LayerStep, shape: Shape) -> Shape:
    """Return the shape of what a layer makes of one of this shape."""
    if step.kind == "relu":
        return shape
    if step.kind == "flatten":
        return (math.prod(shape),)
    if step.kind == "linear":
        check_that(f"input of {named}", shape, len(shape) == 1, "flat: put a Flatten before it")
        return (step.outputs,)
    check_that(f"input of {named}", shape, len(shape) == 3, "channels, rows and columns: no Flatten may be before it")
    channels, *sizes = shape
    if step.kind == "norm":
        return shape
    if step.kind == "mean":
        return channels, 1, 1
    window = zip(sizes, step.kernel, step.stride, step.padding, strict=True)
    left = [(size + 2 * padding - kernel) // stride + 1 for size, kernel, stride, padding in window]
    check_that(f"input of {named}", shape, min(left) > 0, "at least as large as its kernel")
    return step.outputs if step.kind == "conv" else channels, *left


def _step(name: str, layer: nn.Module) -> LayerStep:
    """Return what is run in a new layer."""
    kind = next(kind for kind, made in KINDS.items() if type(layer) is made)
    if kind not in ("conv", *POOLS):
        outputs = layer.out_features if kind == "linear" else 0
        return LayerStep(kind, outputs, bias=kind != "linear" or layer.bias is not None)
    kernel, stride, padding = (_whole_pair(name, each, layer) for each in ("kernel_size", "stride", "padding"))
    if kind in POOLS:
        return LayerStep(kind, 0, kernel, stride, padding)
    return LayerStep(kind, layer.out_channels, kernel, stride, padding, layer.groups, layer.bias is not None)


def _whole_pair(name: str, number: str, layer: nn.Module) -> tuple[int, int]:
    pair = getattr(layer, number)
    fits = isinstance(pair, int) or (isinstance(pair, tuple) and len(pair) == 2)
    check_that(f"{number} of layer {name}", pair, fits, "one whole number, or two")
    rows, columns = (check_whole_number(f"{number} of layer {name}", each, "[0, 1e9]") for each in _pair(pair))
    return rows, columns


def _layer(step: LayerStep, shape: Shape) -> nn.Module:
    """Build the layer of a step that reads this shape."""
    window = step.kernel, step.stride, step.padding
    with initial_weights(0):
        if step.kind == "conv":
            return nn.Conv2d(shape[0], step.outputs, *window, groups=step.groups, bias=step.bias)
        if step.kind == "linear":
            return nn.Linear(shape[0], step.outputs, step.bias)
        if step.kind == "norm":
            return nn.BatchNorm2d(shape[0])
        if step.kind in POOLS:
            return KINDS[step.kind](*(pair[0] if pair[0] == pair[1] else pair for pair in window))
        return nn.AdaptiveAvgPool2d(1) if step.kind == "mean" else KINDS[step.kind]()


def _check_alike(name: str, layer: nn.Module, built: nn.Module) -> None:
    """Raise a ParameterError that names the first setting, or tensor, in which a layer differs from what is built."""
    settings = [key for key in vars(built) if not key.startswith("_") and key not in ("training", "inplace")]
    for key, wanted in [*((key, getattr(built, key)) for key in settings), *_shapes(built).items()]:
        found = _shapes(layer).get(key) if key in _shapes(built) else getattr(layer, key, None)
        if _pair(found) != _pair(wanted):
            raise ParameterError(f"{key!r} of layer {name!r} must be {wanted}. Got {found}.")
    if len(_shapes(layer)) > len(_shapes(built)):
        raise ParameterError(f"layer {name!r} must have no other tensors than {', '.join(_shapes(built)) or 'none'}.")


def _shapes(layer: nn.Module) -> dict[str, Any]:
    return {name: _described(tensor) for name, tensor in layer.state_dict().items()}


def _described(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)}, {tensor.dtype}"
