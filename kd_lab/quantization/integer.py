"""Run a quantized model on integers: int8 times int8 into int32, and back to int8.

On a grid the integer q stands for x = scale · (q - zero_point). So a layer's output, bias + Σ x·w, is scale_x · scale_w
times a sum of integers, and only the factors between the grids are no integers (Jacob et al. 2018, arXiv 1712.05877).
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from kd_lab.errors import ParameterError
from kd_lab.networks.checks import check_model
from kd_lab.networks.copies import copied
from kd_lab.networks.layers import WEIGHTED, Weight, describe, replace
from kd_lab.networks.predictions import example_images, own_reason, predict
from kd_lab.networks.tracing import is_plain, trace
from kd_lab.quantization.activations import EXAMPLES, called_once, computes_as
from kd_lab.quantization.grids import MIN_SCALE, integer_range, quantize
from kd_lab.quantization.weights import FakeQuantizer

MAX_INT32 = torch.iinfo(torch.int32).max
HANDED_ON = (nn.ReLU, nn.MaxPool2d, nn.Flatten, nn.Identity, nn.Dropout)  # mean for integers what they do for numbers
SHAPES = (torch.flatten, "flatten", "view", "reshape")  # as a function or a method, which computes nothing
WHOLE_BITS = 7  # of the integers of weights, 8 where they have 8: ONNX Runtime may add two products in 16 bits
MAX_ERROR = 0.02  # of the squared logits: what rounds to the other side, between two steps of a coarse grid
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class QuantizeInput(FakeQuantizer):
    """Round floating-point numbers to the integers (int8) of a grid."""

    def forward(self, x: Tensor) -> Tensor:
        return quantize(x, self.scale, self.zero_point, self.num_bits)


class Requantize(nn.Module):
    """Multiply int32 sums by `factor` and round them to int8 on the next layer's grid, all in integers.

    The factor, which broadcasts to the sums, is multiplier / 2^shift with a multiplier of 31 bits (section 2.2). A ReLU
    on the way to the next layer only raises the smallest integer to the one that stands for 0 (section 2.4).
    """

    def __init__(self, factor: Tensor, grid: FakeQuantizer, relu: bool):
        super().__init__()
        shift = (31 - torch.frexp(factor).exponent).clamp(1, 62)  # a sum times 31 bits has 62
        self.register_buffer("multiplier", torch.ldexp(factor, shift).round().clamp(max=MAX_INT32).int())
        self.register_buffer("shift", shift.to(torch.int8))
        self.register_buffer("scale", grid.scale.clone())
        self.register_buffer("zero_point", grid.zero_point.clone())
        self.num_bits, self.relu = grid.num_bits, relu

    def ends(self) -> tuple[int, int]:
        """Return the smallest and the largest integer that it gives."""
        smallest, largest = integer_range(self.num_bits)
        return max(smallest, int(self.zero_point)) if self.relu else smallest, largest

    def forward(self, sums: Tensor) -> Tensor:
        shift = self.shift.long()
        half = 1 << (shift - 1)  # a right shift alone would round down
        scaled = (sums.long() * self.multiplier + half) >> shift
        return (scaled + self.zero_point).clamp(*self.ends()).to(torch.int8)


class Dequantize(nn.Module):
    """Multiply int32 sums by `factor`: the numbers (float32) that they stand for."""

    def __init__(self, factor: Tensor):
        super().__init__()
        self.register_buffer("factor", factor)

    def forward(self, sums: Tensor) -> Tensor:
        return (sums * self.factor).float()


class IntegerMaxPool2d(nn.MaxPool2d):
    """Pool int8; in int32, since torch's own int8 pooling refuses planes of more than 127 numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.int()).to(torch.int8)


class IntegerLayer(nn.Module):
    """Compute a layer whose weight and input lie on grids: int8 times int8 into int32.

    Takes and gives float32 until `to_integer` lets layers hand int8 to each other. The bias is int32, in units of
    scale_x · scale_w. Those of few bits are coarse, so that a rounded bias would change the answers. Therefore the
    integers of the weight and the sums are multiplied by powers of 2, and the unit is divided by them.
    """

    def __init__(self, layer: nn.Module):
        super().__init__()
        taken, weights, (power, self.spread) = layer.input_quantizer, _weight_grid(layer), _powers(layer)
        codes = power * quantize(layer.weight.detach(), weights.scale, weights.zero_point, weights.num_bits)
        unit = _unit(layer) / (power * self.spread)
        self.weight, self.bias = nn.Parameter(codes, requires_grad=False), None
        if layer.bias is not None:
            self.bias = nn.Parameter((layer.bias.detach() / unit).round().int(), requires_grad=False)
        for name, grid, factor in (("input", taken, 1), ("weight", weights, power)):
            self.register_buffer(f"{name}_scale", grid.scale / factor)
            self.register_buffer(f"{name}_zero_point", (factor * grid.zero_point).to(torch.int8))
        self.input = QuantizeInput(taken.scale, taken.zero_point, taken.num_bits)
        self.output = Dequantize(unit.view(-1, *[1] * (codes.dim() - 2)))  # broadcasts to the sums

    def accumulate(self, x: Tensor) -> Tensor:
        """Return the sums (int32), bias included, for x (int8)."""
        # both operands are 0 where they stand for 0, so that padding with 0 is right
        sums = self.multiply(x.int() - self.input_zero_point, self.weight.int() - self.weight_zero_point)
        sums = sums * self.spread
        return sums if self.bias is None else sums + self.bias.view(-1, *[1] * (self.weight.dim() - 2))

    def real_bias(self) -> Tensor | None:
        """Return the numbers that the integers of the bias stand for, (outputs,), None where there is no bias."""
        unit = self.input_scale / self.spread * self.weight_scale.flatten()
        return None if self.bias is None else self.bias.detach() * unit

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.accumulate(self.input(x)))


class IntegerLinear(IntegerLayer):
    """Compute a Linear layer on integers."""

    def multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight)


class IntegerConv2d(IntegerLayer):
    """Compute a convolution on integers."""

    def __init__(self, layer: nn.Conv2d):
        super().__init__(layer)
        self.stride, self.padding, self.groups = layer.stride, layer.padding, layer.groups

    def multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, None, self.stride, self.padding, groups=self.groups)


def to_integer(model: nn.Module, images: Tensor | None = None) -> nn.Module:
    """Return a new model, in evaluation mode, whose layers run on integers where quantize_model gave them grids.

    Layers hand int8 to each other where nothing but ReLU, MaxPool2d, Flatten, Identity and Dropout lies between; the
    last one gives float32. The attribute `left_in_float` of the new model, a dict, names what stays in fp32 and says
    why. Both models are compared on `images`, by default on some of those that gave the grids. Raises a ParameterError
    where their answers differ by more than rounding.
    """
    check_model(model)
    if any(isinstance(module, IntegerLayer) for module in model.modules()):
        raise ParameterError("'model' must be one that quantize_model() gave. Got one that runs on integers already.")
    left: dict[str, str] = {}
    integer = _with_own_steps(copied(model).eval())
    images = example_images(getattr(model, "calibration_images", None) if images is None else images, EXAMPLES)
    joints = _joints(integer, images)
    integer = _convert(integer, "", left, {})
    if not any(isinstance(module, IntegerLayer) for module in integer.modules()):
        why = "; ".join(f"{name}: {why}" for name, why in left.items()) or "no layers"
        raise ParameterError(
            "'model' must have a layer whose weight, of 2 to 8 bits, and input lie on grids; quantize_model(model, "
            f"images) gives them. Got {why}."
        )
    for giver, *between, taker in joints:
        _join(integer, giver, between, taker)
    _check_same_integers(integer, model, images)
    integer.left_in_float = left
    return integer


def _with_own_steps(model: nn.Module) -> nn.Module:
    """Give each place of a Sequential a step of its own where one, a ReLU perhaps, has several, in place."""
    seen = set()
    for block in model.modules():
        for place, step in enumerate(block if type(block) is nn.Sequential else []):
            if step in seen and type(step) in HANDED_ON:
                block[place] = copy.copy(step)
            seen.add(step)
    return model


def _joints(model: nn.Module, images: Tensor) -> list[list[str]]:
    """Return the names from a layer to the next, both on integers, that nothing else reads from; none if unknown."""
    try:
        graph = trace(model, images).graph
    except ParameterError:
        return []
    calls = called_once(graph)
    layers = {node for name, node in calls.items() if not _obstacle(model.get_submodule(name))}
    steps = {node for name, node in calls.items() if _is_handed_on(model.get_submodule(name))}
    steps |= {node for node in graph.nodes if node.target in SHAPES}
    paths = [_path(node, layers, steps) for node in graph.nodes if node in layers]
    return [[node.target for node in path if node.op == "call_module"] for path in paths if path]


def _is_handed_on(module: nn.Module) -> bool:
    return any(is_plain(module, kind) for kind in HANDED_ON)


def _path(giver: fx.Node, layers: set[fx.Node], steps: set[fx.Node]) -> list[fx.Node]:
    """Return the calls from one layer to the next, an empty list where something else reads on the way."""
    path = [giver]
    while len(path[-1].users) == 1:
        path.append(next(iter(path[-1].users)))
        if path[-1] in layers:
            return path
        if path[-1] not in steps:
            break
    return []


def _check_same_integers(integer: nn.Module, model: nn.Module, images: Tensor) -> None:
    expected = predict(model, images)
    try:
        found = predict(integer, images)
    except ParameterError as problem:
        raise ParameterError(
            "'model' must be a network that runs its layers as modules, whatever their class. Got one that can't run "
            f"on integers: {own_reason(problem)}"
        ) from problem
    error = float((found - expected).square().sum() / expected.square().sum().clamp(min=MIN_SCALE))
    if not error <= MAX_ERROR:
        raise ParameterError(
            "'model' must be a network that runs its layers whatever their class. Got one whose answers on integers "
            f"err by {100 * error:.0f} %."
        )


def _convert(module: nn.Module, name: str, left: dict[str, str], done: dict[nn.Module, nn.Module]) -> nn.Module:
    """Convert each layer that can be, once, and enter under its name in `left` what stays in fp32."""
    why = _obstacle(module)
    if not why:
        kind = IntegerLinear if isinstance(module, nn.Linear) else IntegerConv2d
        return done.setdefault(module, done.get(module) or kind(module))
    if type(module) not in (*HANDED_ON, *CONTAINERS):
        left[name or "model"] = why
    if not isinstance(module, WEIGHTED):  # inside of those are their parametrizations
        for key, child in module._modules.items():  # named_children() would leave out a module's second place
            module._modules[key] = child and _convert(child, f"{name}.{key}".lstrip("."), left, done)
    return module


def _obstacle(module: Any) -> str:
    """Return why a module can't run on integers, an empty text where it can."""
    if not isinstance(module, (nn.Linear, nn.Conv2d)):
        return parametrize.type_before_parametrizations(module).__name__
    if not computes_as(module, nn.Linear) and not computes_as(module, nn.Conv2d):
        return f"{describe(module)}, with a forward or a hook of its own"
    weights, taken = _weight_grid(module), getattr(module, "input_quantizer", None)
    if weights is None or taken is None or not torch.equal(weights(module.weight), module.weight):
        return f"{describe(module)}, whose {'input' if weights and not taken else 'weight'} lies on no grid"
    if max(weights.num_bits, taken.num_bits) > 8 or _largest_sum(module) > MAX_INT32:
        return f"{describe(module)}, whose numbers need more than 8 bits or sums more than 32"
    if isinstance(module, nn.Conv2d) and (module.padding_mode != "zeros" or module.dilation != (1, 1)):
        return f"{describe(module)}, with dilation, or padded with other numbers than 0"
    return ""


def _powers(layer: nn.Module) -> tuple[int, int]:
    """Return the powers of 2 by which the integers of a weight of few bits, and the sums, can be multiplied."""
    largest, powers = _largest_sum(layer), []
    for spare_bits in (WHOLE_BITS - _weight_grid(layer).num_bits, 8 - layer.input_quantizer.num_bits):
        power = 2 ** max(spare_bits, 0)
        while power > 1 and power * largest > MAX_INT32:
            power //= 2
        largest *= power
        powers.append(power)
    return powers[0], powers[1]


def _largest_sum(layer: nn.Module) -> float:
    """Return what |sum| can reach, whatever the input."""
    unit, taken = _unit(layer), layer.input_quantizer
    farthest = max(abs(end - int(taken.zero_point)) for end in integer_range(taken.num_bits))
    products = layer.weight.detach().flatten(1).abs().sum(1) * taken.scale * farthest / unit
    return float((products + (0 if layer.bias is None else layer.bias.detach().abs() / unit)).max())


def _unit(layer: nn.Module) -> Tensor:
    """Return what a sum of 1 stands for, scale_x · scale_w, for each output or for all, as a row of float64."""
    return _weight_grid(layer).scale.double().flatten() * layer.input_quantizer.scale


def _weight_grid(layer: nn.Module) -> Any:
    return Weight(layer).parametrization(FakeQuantizer)


def _join(model: nn.Module, giver_name: str, between: list[str], taker_name: str) -> None:
    """Let a layer hand int8 to the next, in place."""
    giver, taker = (model.get_submodule(name) for name in (giver_name, taker_name))
    steps = [model.get_submodule(name) for name in between]
    relu = any(isinstance(step, nn.ReLU) for step in steps)
    giver.output = Requantize(giver.output.factor / taker.input.scale, taker.input, relu)
    taker.input = nn.Identity()
    for step in steps:
        if isinstance(step, nn.MaxPool2d):
            window = step.kernel_size, step.stride, step.padding, step.dilation
            replace(model, step, IntegerMaxPool2d(*window, ceil_mode=step.ceil_mode))
        elif isinstance(step, (nn.ReLU, nn.Dropout)):
            replace(model, step, nn.Identity())
