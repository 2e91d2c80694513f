"""Write a network as a LiteRT file (once TensorFlow Lite), and run such a file. Needs the extra `litert`."""

import importlib
import re
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kd_lab.data import REPOSITORY_DATA
from kd_lab.deployment.parity import check_calibration, check_not_simulated, check_parity, real_images
from kd_lab.deployment.runtime import RuntimeModel
from kd_lab.environment import optional
from kd_lab.errors import DamagedFileError, ParameterError, SetupError, StorageError, check_choice, check_that, reason
from kd_lab.networks.layers import replace
from kd_lab.networks.permanent import make_permanent
from kd_lab.networks.predictions import predict
from kd_lab.quantization.grids import integer_range
from kd_lab.quantization.integer import IntegerLayer, IntegerMaxPool2d, QuantizeInput, Requantize
from kd_lab.storage import file_path, read_file, write_safely

ENVIRONMENT = REPOSITORY_DATA.parent / ".litert"  # of the converter, which needs an older torch than the kit
SCRIPT = Path(__file__).parent / "assets" / "litert_converter.py"
_IN_PACKAGE = Path(__file__).parent / "shipped"  # where a wheel has them
SHIPPED = _IN_PACKAGE if _IN_PACKAGE.is_dir() else REPOSITORY_DATA / "litert"
SAID = re.compile(r"^[\w.]*(?:Error|Exception): (.+)", re.MULTILINE)  # the last line of a traceback


def export_litert(
    model: nn.Module, path: Path, images: Tensor | None = None, calibration: Tensor | None = None, dynamic: bool = False
) -> None:
    """Write a LiteRT file, whole or not at all, that takes one image at a time and gives its logits.

    What `to_integer` gives is written with its own integers, scales and zero points. Another model is written in fp32;
    in static int8 where `calibration` has some hundred images, from which the grids of the activations are taken; or in
    dynamic int8, where each image gets its own grids while it is read. `images`, a few, are needed for a network that
    reads others than (N, 1, 28, 28). Before anything is written, LiteRT must give the model's logits for real images.
    It takes half a minute. Raises a SetupError without the converter, which `make litert` installs, and a
    ParameterError for a model that LiteRT can't hold.
    """
    path = file_path(path)
    check_that("calibration", calibration, calibration is None or not dynamic, "None for dynamic int8")
    few = real_images(images, 1)
    predict(model, few)
    check_calibration(calibration, few)
    recipe = "static_wi8_ai8" if calibration is not None else "dynamic_wi8_afp32" if dynamic else ""
    rounds = "other" if recipe else ""
    if any(isinstance(module, IntegerLayer) for module in model.modules()):
        check_that("model", model, not recipe, "in fp32 where calibration images or dynamic int8 are asked for")
        recipe, rounds = "integers", "same"
    program = exported_program(model, few)
    with tempfile.TemporaryDirectory() as folder:
        converted = _convert(program, few if calibration is None else calibration, recipe, Path(folder))
        try:
            deployed = LitertModel(converted)
        except StorageError as error:
            raise ParameterError(f"'model' must be one that LiteRT can run. Got: {error.__cause__!s:.200}") from error
        check_parity(deployed, model, images, "LiteRT", rounds)
        write_safely(path, read_file(converted))


@torch.inference_mode(False)  # torch.export can't follow what it made
def exported_program(model: nn.Module, image: Tensor) -> torch.export.ExportedProgram:
    """Return what the converter is given: the operations on one image, with permanent weights and in evaluation mode.

    Integers are there as the numbers that they stand for, each rounded to its grid. Raises a ParameterError for a model
    that rounds its activations in floating point, or that torch can't export.
    """
    holder = nn.Sequential(make_permanent(model).eval())  # in which the model itself can be replaced, too
    for name, module in list(holder[0].named_modules()):
        check_that("model", module, not isinstance(module, RuntimeModel), "a network of torch")
        if isinstance(module, IntegerLayer):
            replace(holder, module, _OnGrids(module, name or "model"))
        elif isinstance(module, IntegerMaxPool2d):  # pools int8 alone
            module.__class__ = nn.MaxPool2d
    check_not_simulated(holder)
    (plain,) = holder.to(memory_format=torch.contiguous_format)  # else the converter reads weights in another order
    try:
        return torch.export.export(plain, (image.clone(),))
    except Exception as error:  # whatever the model's code or torch raises
        said = reason(error).splitlines()[0]
        raise ParameterError(f"'model' must be one that torch can export. Got: {said:.200}") from error


class _Grid(nn.Module):
    """Round numbers to a grid, as the operations that the converter takes for int8."""

    def __init__(self, to: Any, ends: tuple[int, int]):
        super().__init__()
        self.grid = float(to.scale), int(to.zero_point), *integer_range(8), torch.int8
        self.ends = [float(to.scale) * (end - int(to.zero_point)) for end in ends if ends != integer_range(8)]

    def forward(self, x: Tensor) -> Tensor:
        x = x.clamp(*self.ends) if self.ends else x  # int8 ends by itself
        rounded = torch.ops.quantized_decomposed.quantize_per_tensor(x, *self.grid)
        return torch.ops.quantized_decomposed.dequantize_per_tensor(rounded, *self.grid)


class _OnGrids(nn.Module):
    """Compute an integer layer in the numbers that its integers stand for."""

    def __init__(self, layer: IntegerLayer, name: str):
        super().__init__()
        if layer.weight_zero_point.any():
            raise ParameterError(
                f"'model' must be one that LiteRT can hold. Got one with {name}, whose weight has a zero point; "
                "quantize_model(…, symmetric=True) gives it none."
            )
        importlib.import_module("torch.ao.quantization.fx._decomposed")  # which defines the operations
        self.multiply, count = layer.multiply, len(layer.weight)
        scale = layer.weight_scale.detach()
        self.register_buffer("weight", scale * layer.weight.detach())
        self.register_buffer("scale", scale.flatten().expand(count).clone())
        self.register_buffer("zero_point", torch.zeros(count).long())
        bias = layer.real_bias()
        bias = torch.zeros(count) if bias is None else bias
        self.register_buffer("bias", bias.view(-1, *[1] * (layer.weight.dim() - 2)))
        self.input, self.output = nn.Identity(), nn.Identity()
        if isinstance(layer.input, QuantizeInput):
            self.input = _Grid(layer.input, integer_range(layer.input.num_bits))
        if isinstance(layer.output, Requantize):
            self.output = _Grid(layer.output, layer.output.ends())

    def forward(self, x: Tensor) -> Tensor:
        grid = self.scale, self.zero_point, 0, *integer_range(8), torch.int8
        integers = torch.ops.quantized_decomposed.quantize_per_channel(self.weight, *grid)
        weight = torch.ops.quantized_decomposed.dequantize_per_channel(integers, *grid)
        return self.output(self.multiply(self.input(x), weight) + self.bias)


def _convert(program: torch.export.ExportedProgram, images: Tensor, recipe: str, folder: Path) -> Path:
    """Return the file that the converter, in its own environment, makes of a network in this folder."""
    if not (ENVIRONMENT / "installed").exists():
        raise SetupError("The LiteRT converter is not installed. In a copy of the kit's repository, run: make litert")
    torch.export.save(program, folder / "network.pt2")
    np.save(folder / "images.npy", images.numpy())
    try:  # -I: neither the kit's packages nor the folder of the script, where files are named like modules of Python
        command = map(str, (ENVIRONMENT / "bin" / "python", "-I", SCRIPT, folder, recipe))
        subprocess.run([*command], check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        said = re.sub(r"/\S+ ", "", (SAID.findall(error.stderr) or [f"it ended with {error.returncode}"])[-1])
        where = _layer(program, said)
        raise ParameterError(f"'model' must be one that LiteRT can hold. Got one{where}: {said:.200}") from error
    return folder / "network.tflite"


def _layer(program: torch.export.ExportedProgram, said: str) -> str:
    """Return the layer whose operator an error names, where it does: "Lowering not found: aten.linalg_pinv…"."""
    for node in program.graph.nodes:
        if node.op == "call_function" and str(node.target) in said:
            name, _ = [*node.meta["nn_module_stack"].values()][-1]
            return f" with {name or 'an operation'}"
    return ""


class LitertModel(RuntimeModel):
    """Run a LiteRT file (.tflite), on one thread, as if it were a network: model(images) gives the logits.

    What is in the file shows only as its bytes: weights and MACs are not counted. Images of a file that takes int8 are
    rounded by its own scale and zero point, and the logits back. A file that takes one image at a time is given one.
    """

    runtime = "LiteRT"

    def __init__(self, path: Path):
        super().__init__()
        package = optional("ai_edge_litert.interpreter", "ai-edge-litert")
        content = read_file(path)
        try:
            self._interpreter = package.Interpreter(model_content=content, num_threads=1)
            self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise DamagedFileError(f"{path} is damaged, or LiteRT can't run it: {self.said(error)}") from error
        taken, given = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        if (len(taken), len(given)) != (1, 1) or not (taken[0]["dtype"] is np.float32 or taken[0]["quantization"][0]):
            types = " and ".join(each["dtype"].__name__ for each in taken)
            raise StorageError(f"{path} must take one tensor, fp32 or rounded from it, and give one. It takes {types}.")
        self._taken, self._given, self._lock = taken[0], given[0], threading.Lock()
        self.shape = [size if size > 0 else None for size in self._taken["shape_signature"].tolist()]
        self.dtype = torch.float32
        self.keep_file(content)

    def answers(self, images: np.ndarray) -> np.ndarray:
        with self._lock:  # servers ask from several threads
            if None in self.shape:
                self._interpreter.resize_tensor_input(self._taken["index"], images.shape)
                self._interpreter.allocate_tensors()
            self._interpreter.set_tensor(self._taken["index"], _rounded(images, self._taken))
            self._interpreter.invoke()
            logits = self._interpreter.get_tensor(self._given["index"])
        scale, zero_point = self._given["quantization"]
        return (logits.astype(np.float32) - zero_point) * np.float32(scale) if scale else logits

    def said(self, error: Exception) -> str:
        """Return the first line of what it says."""
        return f"{reason(error).strip().splitlines()[0]:.200}"


def _rounded(images: np.ndarray, tensor: dict) -> np.ndarray:
    """Return images as the file takes them: rounded to its grid, where it has one."""
    scale, zero_point = tensor["quantization"]
    if not scale:  # it has none
        return images
    ends = np.iinfo(tensor["dtype"])
    return np.clip(np.round(images / scale) + zero_point, ends.min, ends.max).astype(tensor["dtype"])


def load_litert(name: str) -> LitertModel:
    """Load a LiteRT file that ships with the kit, by its name, such as "cnn_static_int8"."""
    check_choice("name", name, sorted(path.stem for path in SHIPPED.glob("*.tflite")))
    return LitertModel(SHIPPED / f"{name}.tflite")
