"""Write a network as one HTML file that reads digits drawn in it, in any browser and without a network connection."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lab.data import MEAN, STD
from kd_lab.deployment.parity import check_parity, real_images
from kd_lab.errors import ParameterError, check_that
from kd_lab.formats.coding import RangeReader, RangeWriter
from kd_lab.formats.tensors import read_tensor, write_tensor
from kd_lab.networks.permanent import make_permanent
from kd_lab.networks.predictions import predict
from kd_lab.networks.tracing import is_plain
from kd_lab.networks.zoo import Residual
from kd_lab.quantization.activations import computes_as
from kd_lab.quantization.grids import integer_range
from kd_lab.quantization.integer import (
    Dequantize,
    IntegerConv2d,
    IntegerLayer,
    IntegerLinear,
    IntegerMaxPool2d,
    QuantizeInput,
)
from kd_lab.storage import file_path, write_safely

ASSETS = Path(__file__).with_name("assets")
PARTS = "page.css", "pad.js", "network.js", "page.js"  # which the page holds, each in the place of its name
DATA = re.compile(r'<script id="data" type="application/json">(.*?)</script>', re.DOTALL)
MARGINS = re.compile(r"^\s+(//.*\n)?|^//.*\n", re.MULTILINE)  # indentation, and lines that are comments
DIGITS = 10  # that travel in the page, so that it can say whether its browser answers as torch does
KEPT = "weight", "bias", "factor", "added", "multiplier", "shift"  # of a step, the tensors


def export_page(models: nn.Module | dict[str, nn.Module], path: Path) -> None:
    """Write one HTML file in which one draws digits, and these networks, one or several by name, read them.

    It opens by double click and needs nothing else. Each network must take images (N, 1, 28, 28) and give logits
    (N, classes). It must be a Sequential of Linear, Conv2d, BatchNorm2d, MaxPool2d, ReLU, Flatten, AdaptiveAvgPool2d(1)
    and Residual, pruned, quantized or on integers. Before anything is written, what the page holds must give the
    network's logits. Raises a ParameterError, which names the layer, for a network that a page can't hold.
    """
    path = file_path(path)
    named = models if isinstance(models, dict) else {getattr(models, "architecture", "network"): models}
    check_that("models", models, named and all(isinstance(name, str) for name in named), "a network, or some by name")
    digits = real_images(None, DIGITS)
    networks = [{"name": name, **_packed(model, digits)} for name, model in named.items()]
    pixels = ((digits * STD + MEAN) * 255).round().to(torch.uint8).flatten(1)
    content = _html({"mean": MEAN, "std": STD, "digits": _coded([pixels]), "networks": networks})
    held = json.loads(DATA.search(content)[1])  # type: ignore[index]
    for network, model in zip(held["networks"], named.values(), strict=True):
        rounds = any(getattr(module, "input_quantizer", None) for module in model.modules())
        check_parity(_Held(network), model, None, "the page", "same" if rounds else "")
    write_safely(path, content.encode())


def _html(data: dict) -> str:
    """Return the page, whose data must not end the element in which they stand."""
    page = (ASSETS / "page.html").read_text(encoding="utf-8")
    for part in PARTS:
        page = page.replace(f"{{{{{part}}}}}", MARGINS.sub("", (ASSETS / part).read_text(encoding="utf-8")))
    return page.replace("{{data}}", json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"))


def _packed(model: nn.Module, digits: Tensor) -> dict:
    """Return the steps of a network, its tensors and its answers to some digits."""
    logits = predict(model, digits)
    check_that("models", logits, logits.dim() == 2, "networks whose logits are (N, classes)")
    packer = _Packer()
    with torch.no_grad():
        steps, _ = packer.steps(make_permanent(model).cpu().eval(), "", digits[:1])
    return {"steps": steps, **_coded(packer.tensors), "answers": logits.argmax(1).tolist()}


def _coded(tensors: list[Tensor]) -> dict:
    """Return dtypes and shapes of some tensors, and all their values, range coded, as text."""
    writer = RangeWriter()
    for tensor in tensors:
        write_tensor(writer, tensor)
    kinds = [[str(tensor.dtype).removeprefix("torch."), list(tensor.shape)] for tensor in tensors]
    return {"tensors": kinds, "coded": base64.b64encode(writer.content()).decode()}


def _decoded(coded: dict) -> list[Tensor]:
    """Return the tensors that `_coded` coded."""
    reader = RangeReader(base64.b64decode(coded["coded"]))
    likes = (torch.empty(shape, dtype=getattr(torch, dtype)) for dtype, shape in coded["tensors"])
    return [read_tensor(reader, like) for like in likes]


class _Packer:
    """Write down, as an image goes through a network, its steps and the tensors that these take."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []

    def steps(self, module: nn.Module, name: str, x: Tensor) -> tuple[list[dict], Tensor]:
        """Return the steps of a module, each with the shapes that it takes and gives, and what the last one gives."""
        if is_plain(module, nn.Sequential):
            steps, given = [], x
            for key, child in module._modules.items():  # named_children() would leave out a module's second place
                more, given = self.steps(child, f"{name}.{key}".lstrip("."), given)  # type: ignore[arg-type]
                steps += more
            return steps, given
        if is_plain(module, Residual):
            return self._shaped(
                [{"kind": "residual", "steps": self.steps(module.body, f"{name}.body", x)[0]}], module, x
            )
        found = self._layer(module) if _is_layer(module) else self._other(module)
        if found is None or (isinstance(module, (nn.Linear, IntegerLinear)) and x.dim() != 2):
            raise ParameterError(
                "'models' must be Sequentials of layers that a page can compute. Got one with "
                f"{name or 'model'} ({type(module).__name__})."
            )
        return self._shaped(found, module, x)

    def _shaped(self, steps: list[dict], module: nn.Module, x: Tensor) -> tuple[list[dict], Tensor]:
        given = module(x.clone())
        taken, made = ([*each.shape[1:], 1, 1][:3] for each in (x, given))
        for step in steps:
            behind = step["kind"] in ("scale", "requantize")  # the sums of a layer
            step |= {"in": made if behind else taken, "out": taken if step["kind"] == "round" else made}
        return steps, given

    def _keep(self, **tensors: Tensor | None) -> dict[str, int]:
        """Keep some tensors, and return their places by name."""
        found = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        self.tensors += [tensor.detach().contiguous() for tensor in found.values()]
        return dict(zip(found, range(len(self.tensors) - len(found), len(self.tensors)), strict=True))

    def _layer(self, layer: Any) -> list[dict] | None:
        """Return the steps of a Linear layer or a convolution, with those that round what it takes and gives."""
        window = _window(layer)
        if window is None:
            return None
        if not isinstance(layer, IntegerLayer):
            grid = getattr(layer, "input_quantizer", None)
            rounding = [_rounding(grid, grid.scale.item())] if grid else []
            return [*rounding, {"kind": "layer", **window, **self._keep(weight=layer.weight, bias=layer.bias)}]
        rounding = [_rounding(layer.input, 1)] if isinstance(layer.input, QuantizeInput) else []
        weight = (layer.weight.int() - layer.weight_zero_point.int()) * layer.spread
        sums = {"kind": "layer", **window, **self._keep(weight=weight, bias=layer.bias)}
        return [*rounding, sums, self._output(layer.output)]

    def _output(self, output: Any) -> dict:
        """Return the step that makes numbers of sums, or integers on the next layer's grid, counted from its 0."""
        if isinstance(output, Dequantize):
            return {"kind": "scale", **self._keep(factor=output.factor.view(-1))}
        low, high = (end - int(output.zero_point) for end in output.ends())
        factors = self._keep(multiplier=output.multiplier.view(-1), shift=output.shift.view(-1))
        return {"kind": "requantize", "low": low, "high": high, **factors}

    def _other(self, module: Any) -> list[dict] | None:
        """Return the steps of a module without weights, or of a BatchNorm; None for one that a page can't compute."""
        if any(is_plain(module, kind) for kind in (nn.Identity, nn.Dropout)):
            return []
        if is_plain(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1):
            return []
        if is_plain(module, nn.ReLU):
            return [{"kind": "relu"}]
        if (is_plain(module, nn.MaxPool2d) or is_plain(module, IntegerMaxPool2d)) and not module.return_indices:
            return [{"kind": "pool", **_sizes(module, size="kernel_size", stride="stride", pad="padding")}]
        if is_plain(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1)):
            return [{"kind": "mean"}]
        if is_plain(module, nn.BatchNorm2d) and module.running_var is not None:
            factor = (module.running_var.double() + module.eps).rsqrt()
            factor = factor if module.weight is None else factor * module.weight
            added = -module.running_mean * factor + (0 if module.bias is None else module.bias)
            return [{"kind": "scale", **self._keep(factor=factor.float(), added=added.float())}]
        return None


def _is_layer(module: nn.Module) -> bool:
    float_layer = computes_as(module, nn.Linear) or computes_as(module, nn.Conv2d)
    return float_layer or is_plain(module, IntegerLinear) or is_plain(module, IntegerConv2d)


def _window(layer: Any) -> dict | None:
    """Return how a layer's weights move over what it takes, a Linear one's over one place; None for other padding."""
    if isinstance(layer, (nn.Linear, IntegerLinear)):
        return {"size": [1, 1], "stride": [1, 1], "pad": [0, 0], "dilation": [1, 1], "groups": 1}
    if getattr(layer, "padding_mode", "zeros") != "zeros":
        return None
    size, dilation = list(layer.weight.shape[2:]), list(getattr(layer, "dilation", (1, 1)))
    same = [step * (length - 1) // 2 for step, length in zip(dilation, size, strict=True)]  # on the left and above
    pad = {"same": same, "valid": [0, 0]}.get(layer.padding) or list(layer.padding)
    return {"size": size, "stride": list(layer.stride), "pad": pad, "dilation": dilation, "groups": layer.groups}


def _sizes(module: nn.Module, **names: str) -> dict[str, list[int]]:
    pairs = {key: getattr(module, name) for key, name in {**names, "dilation": "dilation"}.items()}
    return {key: [pair, pair] if isinstance(pair, int) else list(pair) for key, pair in pairs.items()}


def _rounding(grid: Any, unit: float) -> dict:
    """Return the step that rounds to the integers of a grid, counted from its 0, and multiplies them by `unit`."""
    low, high = (end - int(grid.zero_point) for end in integer_range(grid.num_bits))
    return {"kind": "round", "reciprocal": (1 / grid.scale).item(), "unit": unit, "low": low, "high": high}


class _Held(nn.Module):
    """Compute the network that a page holds as the page does, in float64."""

    def __init__(self, network: dict):
        super().__init__()
        self.network, self.tensors = network, _decoded(network)

    def forward(self, images: Tensor) -> Tensor:
        return self._run(self.network["steps"], images.double()).flatten(1).float()

    def _run(self, steps: list[dict], x: Tensor) -> Tensor:
        for step in steps:
            kept = {key: self.tensors[step[key]].double() for key in KEPT if key in step}
            x = getattr(self, f"_{step['kind']}")(x.reshape(-1, *step["in"]), step, **kept)
        return x

    def _layer(self, x: Tensor, step: dict, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        weight = weight.view(len(weight), -1, *step["size"])
        return F.conv2d(_padded(x, step, 0.0), weight, bias, step["stride"], 0, step["dilation"], step["groups"])

    def _pool(self, x: Tensor, step: dict) -> Tensor:
        return F.max_pool2d(_padded(x, step, -torch.inf), step["size"], step["stride"], 0, step["dilation"])

    def _relu(self, x: Tensor, _step: dict) -> Tensor:
        return x.relu()

    def _mean(self, x: Tensor, _step: dict) -> Tensor:
        return x.mean((2, 3))

    def _residual(self, x: Tensor, step: dict) -> Tensor:
        return (x + self._run(step["steps"], x)).relu()

    def _scale(self, x: Tensor, _step: dict, factor: Tensor, added: Tensor | None = None) -> Tensor:
        return x * factor.view(-1, 1, 1) + (0 if added is None else added.view(-1, 1, 1))

    def _round(self, x: Tensor, step: dict) -> Tensor:
        return (x.float() * step["reciprocal"]).round().clamp(step["low"], step["high"]).double() * step["unit"]

    def _requantize(self, x: Tensor, step: dict, multiplier: Tensor, shift: Tensor) -> Tensor:
        bits = shift.long().view(-1, 1, 1)
        scaled = (x.long() * multiplier.long().view(-1, 1, 1) + (1 << (bits - 1))) >> bits
        return scaled.clamp(step["low"], step["high"]).double()


def _padded(x: Tensor, step: dict, value: float) -> Tensor:
    """Return x with as much around it as the windows need that give this output, and cut off where they need less."""
    sides: list[int] = []
    for axis in (1, 0):  # columns first, as F.pad has them
        reach = (
            (step["out"][axis + 1] - 1) * step["stride"][axis] + step["dilation"][axis] * (step["size"][axis] - 1) + 1
        )
        sides += [step["pad"][axis], reach - step["pad"][axis] - step["in"][axis + 1]]
    return F.pad(x, sides, value=value)
