"""Write a network on integers as one C header, which needs no library, no memory of its own and no floating point."""

import re
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kd_lab.data import MEAN, STD
from kd_lab.deployment.parity import real_images
from kd_lab.errors import ParameterError, check_that
from kd_lab.networks.layers import describe, sequential_steps
from kd_lab.networks.predictions import predict
from kd_lab.quantization.integer import Dequantize, IntegerConv2d, IntegerLayer, IntegerMaxPool2d, QuantizeInput
from kd_lab.storage import file_path, write_safely

ASSETS = Path(__file__).with_name("assets")
INSTALLED = "a C compiler that is installed, of the package gcc, or gcc-arm-none-eabi for microcontrollers"
MIN_FACTOR = 1e-37  # a sum of 1 then gives a normal float32
C_NAME = re.compile(r"[a-z_]\w*", re.ASCII | re.IGNORECASE)


def export_c(model: nn.Module, path: Path) -> None:
    """Write a C header with a function that takes the 784 pixels of a digit, 0 to 255, and returns its answer.

    `model` must be what `to_integer` gives, of Linear, Conv2d and MaxPool2d layers, one after another, on images
    (N, 1, 28, 28). The header's names begin with that of the file, so that several go together. Before it is written,
    a C compiler must make a program of it that answers 1,000 real digits as the model does; without a compiler a
    warning says that nothing was compared. Raises a ParameterError for what C can't hold, and names the layer.
    """
    path = file_path(path)
    check_that("path", path, path.suffix == ".h" and C_NAME.fullmatch(path.stem), "a name in C that ends in .h")
    content = _Header(model, path.stem).text()
    _compare(content, path.stem, model)
    write_safely(path, content.encode())


def compile_c(header: Path, program: Path, compiler: str | None = None, *options: str) -> None:
    """Make a program that reads the digits of a file and prints its answers, a line each.

    The file has pictures of 784 bytes, or is one of MNIST's own, unpacked. `compiler` is the machine's by default.
    """
    header = file_path(header)
    names = [f'-DHEADER="{header.resolve()}"', f"-DREAD={header.stem}_read"]
    _compile(compiler, "-O2", *options, *names, str(ASSETS / "read_digits.c"), "-o", str(file_path(program)))


def c_bytes(header: Path, compiler: str | None = None, *options: str) -> tuple[int, int]:
    """Return the bytes of flash and of RAM that a network needs, measured from what a compiler makes of its header.

    Flash has the program and its tables, RAM the two buffers and the logits; a few bytes of stack come on top. The
    compiler may be that of a microcontroller, c_bytes(header, "arm-none-eabi-gcc", "-mcpu=cortex-m4", "-mthumb"); GNU
    size must lie beside it.
    """
    header, compiler = file_path(header), str(compiler or _compiler() or "cc")
    source = f'#include "{header.resolve()}"\nint f(const uint8_t *pixels) {{ return {header.stem}_read(pixels); }}\n'
    with tempfile.TemporaryDirectory() as folder:
        code, made = Path(folder) / "network.c", f"{folder}/network.o"
        code.write_text(source)
        _compile(compiler, "-Os", "-fno-pie", *options, "-c", str(code), "-o", made)  # no pie: addresses in flash
        size = shutil.which(re.sub(r"(cc|gcc|clang)(-\d+)?$", "size", compiler))
        said = subprocess.run([size, made], capture_output=True, text=True).stdout.split() if size else []
    check_that("compiler", compiler, said[:3] == ["text", "data", "bss"], "one with GNU size, of the package binutils")
    text, data, zeros = map(int, said[6:9])
    return text + data, data + zeros


def _compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def _compile(compiler: str | None, *arguments: str) -> None:
    compiler = str(compiler or _compiler() or "cc")
    check_that("compiler", compiler, shutil.which(compiler), INSTALLED)
    done = subprocess.run([compiler, "-std=c99", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        raise ParameterError(f"'header' must be one that {compiler} compiles with the options. Got {done.stderr:.300}")


def pixels_of(images: Tensor) -> Tensor:
    """Return the pixels, 0 to 255, of images as `load_mnist` gives them."""
    return ((images * STD + MEAN) * 255).round().to(torch.uint8)


def _compare(content: str, name: str, model: nn.Module) -> None:
    if not _compiler():
        warnings.warn("no C compiler was found, so the header was not compared with the model.", stacklevel=3)
        return
    images = real_images(None)
    with tempfile.TemporaryDirectory() as folder:
        header, digits = Path(folder) / f"{name}.h", Path(folder) / "digits"
        header.write_text(content)
        digits.write_bytes(pixels_of(images).numpy().tobytes())
        compile_c(header, Path(folder) / "read")
        found = subprocess.run([Path(folder) / "read", digits], capture_output=True, text=True, check=True).stdout
    answers = torch.tensor([int(line) for line in found.split()])
    differing = (answers != predict(model, images).argmax(1)).nonzero().flatten().tolist()
    if differing:
        raise ParameterError(
            f"'model' must be one that C computes alike. {len(differing)} of {len(images)} answers differ: images "
            f"{', '.join(map(str, differing[:10]))}."
        )


class _Header:
    """Collect the tables and the layers of a network, as it reads an image."""

    def __init__(self, model: nn.Module, name: str):
        self.name, self.classes = name, 0
        self.tables: list[str] = []
        self.layers: list[dict[str, Any]] = []
        x, wrong = real_images(None, 1), []
        predict(model, x)
        with torch.no_grad():
            for key, module in sequential_steps(model):
                given = module(x)
                if why := self._add(module, x, given):
                    wrong.append(f"{key} ({why})")
                x = given
        if wrong or not self.classes or x.dim() != 2:
            layers = ", ".join(wrong) or "another end than a layer that gives (N, classes)"
            raise ParameterError(
                "'model' must run on integers from its first layer to its last, as quantize_model() and to_integer() "
                f"make it, with layers that C can hold. Got one with {layers}."
            )

    def _add(self, module: Any, x: Tensor, given: Tensor) -> str:
        """Add what a module computes; say why that can't be written, nothing where it can."""
        if isinstance(module, (nn.Identity, nn.Dropout)):
            return ""
        if isinstance(module, nn.Flatten):
            return "" if (module.start_dim, module.end_dim) == (1, -1) else "Flatten of some sizes only"
        first = not self.layers
        if isinstance(module, IntegerMaxPool2d) and not first:
            return self._add_pool(module, x, given)
        if not isinstance(module, IntegerLayer) or isinstance(module.input, QuantizeInput) != first or self.classes:
            return describe(module)
        return self._add_layer(module, x, given)

    def _add_pool(self, module: nn.MaxPool2d, x: Tensor, given: Tensor) -> str:
        if np.any(np.array(module.dilation) != 1):
            return "MaxPool2d with dilation"
        parts = module.kernel_size, module.stride, module.padding
        size, stride, pad = (np.broadcast_to(part, 2).tolist() for part in parts)
        self._keep(x, given, size=size, stride=stride, pad=pad)
        return ""

    def _add_layer(self, layer: Any, x: Tensor, given: Tensor) -> str:
        row = {"inputs": 1, "width": x.shape[1]}  # of a Linear layer: the window is the whole row, as wide as the input
        window: dict[str, Any] = {**row, "size": [1, x.shape[1]], "stride": [1, 1], "pad": [0, 0], "groups": 1}
        if isinstance(layer, IntegerConv2d):
            size = list(layer.weight.shape[2:])
            same = [(length - 1) // 2 for length in size]
            pad = {"same": same, "valid": [0, 0]}.get(layer.padding) or list(layer.padding)
            window = {"size": size, "stride": list(layer.stride), "pad": pad, "groups": layer.groups}
        elif x.dim() != 2:
            return "Linear on several rows"
        if not self.layers:
            grey = (torch.arange(256, dtype=torch.uint8).float() / 255 - MEAN) / STD
            self._table("quantized", layer.input(grey))
        if isinstance(layer.output, Dequantize):
            self.classes = len(layer.weight)
            if given[0].numel() != self.classes:
                return "a convolution that gives several numbers for a class"
            if layer.output.factor.dtype != torch.float64 or layer.output.factor.min() < MIN_FACTOR:
                return "scales that were made float32, or that float32 can't hold"
        tables, ends = _end(layer.output)
        tables |= {"weights": layer.weight, "weight_zeros": layer.weight_zero_point, "bias": layer.bias}
        place = len(self.layers)
        names = {key: self._table(f"{key}_{place}", each) for key, each in tables.items() if each is not None}
        steps = {"zero_step": layer.weight_zero_point.numel() > 1, "factor_step": tables["multipliers"].numel() > 1}
        numbers = {"input_zero": layer.input_zero_point, "spread": layer.spread, **steps, **ends}
        self._keep(x, given, **window, **names, **{key: int(value) for key, value in numbers.items()})
        return ""

    def _keep(self, x: Tensor, given: Tensor, **fields: Any) -> None:
        taken, made = ([*each.shape[1:], 1, 1][:3] for each in (x, given))
        names = "inputs", "height", "width", "outputs", "out_height", "out_width"
        self.layers.append(dict(zip(names, taken + made, strict=True)) | fields)

    def _table(self, name: str, values: Tensor) -> str:
        """Keep a table of integers, and return its name."""
        kind = "int8_t" if values.dtype == torch.int8 else "int32_t"
        numbers = ",".join(map(str, values.detach().flatten().tolist()))
        self.tables.append(f"static const {kind} {self.name}_{name}[] = {{{numbers}}};")
        return f"{self.name}_{name}"

    def text(self) -> str:
        """Return the header."""
        sizes = [layer["inputs"] * layer["height"] * layer["width"] for layer in self.layers]
        fields = {
            "name": self.name,
            "guard": f"{self.name.upper()}_H",
            "pixels": sizes[0],
            "buffer_0": max(sizes[::2]),  # each layer reads from one and writes to the other
            "buffer_1": max([1, *sizes[1::2]]),
            "classes": self.classes,
            "count": len(self.layers),
            "tables": "\n".join(self.tables),
            "layers": ",\n".join(map(_initialiser, self.layers)),
        }
        header = (ASSETS / "network.h").read_text(encoding="utf-8")
        return re.sub(r"\{\{(\w+)\}\}", lambda match: str(fields[match[1]]), header)


def _end(output: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the tables and numbers by which sums are rounded: those of the last layer give the bits of a float32."""
    if isinstance(output, Dequantize):
        fraction, exponent = torch.frexp(output.factor)
        whole = (fraction * 2**53).long()
        return {"multipliers": whole >> 22, "rests": whole & (2**22 - 1), "shifts": exponent.to(torch.int8)}, {}
    low, high = output.ends()
    tables = {"multipliers": output.multiplier, "shifts": output.shift}
    return tables, {"zero": output.zero_point, "low": low, "high": high}


def _initialiser(layer: dict[str, Any]) -> str:
    """Return the fields of a layer as C has them."""
    values = (f".{key} = {value}".replace("[", "{").replace("]", "}") for key, value in layer.items())
    return f"  {{{', '.join(values)}}}"
