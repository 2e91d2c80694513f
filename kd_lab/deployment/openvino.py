"""Write a network as a file of OpenVINO, and run such a file in OpenVINO. Needs the extra `openvino`."""

import hashlib
import platform
import re
import sys
import tempfile
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kd_lab.deployment.onnx import Graph, grid, onnx_graph, quiet, window
from kd_lab.deployment.parity import check_parity
from kd_lab.deployment.runtime import RuntimeModel
from kd_lab.environment import optional
from kd_lab.errors import DamagedFileError, ParameterError, StorageError, check_that
from kd_lab.quantization.grids import integer_range
from kd_lab.quantization.integer import IntegerConv2d, IntegerLayer, QuantizeInput, Requantize
from kd_lab.storage import file_path, read_file, write_safely

SETTINGS = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
VNNI = "avx512_vnni", "avx_vnni"  # without either, products of bytes are summed in 16 bits, which may overflow
TYPES = {"f16": "float16", "f32": "float32", "f64": "float64", "u8": "uint8", "i32": "int32", "i64": "int64"}
CODE = re.compile(r"(Exception from|Check '.*' failed at|FrontEnd API failed with) ?[^\n]*:?\n?")  # places in its code
MARK = b"\n<!-- SHA-256 of this file and of its weights: "


def export_openvino(
    model: nn.Module, path: Path, images: Tensor | None = None, calibration: Tensor | None = None
) -> None:
    """Write OpenVINO's two files, `path`, an .xml, and its weights beside it, a .bin; any number of images at a time.

    What `to_integer` gives is written with its own integers, scales and zero points; another model in fp32, or in int8
    where `calibration` has some hundred images, from which NNCF takes its grids. `images`, a few, are needed for a
    network that reads others than (N, 1, 28, 28). Before anything is written, OpenVINO must give the model's logits.
    Raises a SetupError where the packages are missing, and a ParameterError for a model that OpenVINO can't run.
    """
    path = file_path(path)
    check_that("path", path, path.suffix == ".xml", "the path of an .xml file")
    core = _package("openvino").Core()
    graph, rounds = onnx_graph(model, images, calibration, _add_layer)
    try:
        converted = core.read_model(graph.SerializeToString())
        converted = converted if calibration is None else _quantized(converted, calibration)
    except Exception as error:  # of OpenVINO's and NNCF's own kinds
        raise ParameterError(f"'model' must be one that OpenVINO can convert. Got: {_said(error)}") from error
    xml, weights = _files(converted)
    check_parity(_Compiled(xml, weights, "the file"), model, images, "OpenVINO", rounds)
    write_safely(path.with_suffix(".bin"), weights)
    write_safely(path, xml + MARK + _digest(xml, weights) + b" -->\n")


def _quantized(model: Any, images: Tensor) -> Any:
    rich = _package("rich")
    console, kept = rich.get_console(), vars(rich.get_console())
    rich.reconfigure(quiet=True, force_jupyter=False)  # NNCF draws a bar of progress, which a notebook would keep
    try:
        with quiet():
            nncf = _package("nncf")
            return nncf.quantize(model, nncf.Dataset([one.numpy() for one in images.split(1)]), subset_size=len(images))
    finally:
        console.__dict__ = kept


def _files(model: Any) -> tuple[bytes, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.xml"
        _package("openvino").save_model(model, path, compress_to_fp16=False)
        return path.read_bytes(), path.with_suffix(".bin").read_bytes()


def _digest(xml: bytes, weights: bytes) -> bytes:
    return hashlib.sha256(xml + weights).hexdigest().encode()


def _settings() -> dict[str, Any]:
    """Return the settings of a session: without VNNI, or where torch can't tell, bytes are multiplied as floats."""
    has: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    safe = platform.machine() not in ("x86_64", "AMD64") or any(has.get(each) for each in VNNI)
    return SETTINGS if safe else SETTINGS | {"LP_TRANSFORMS_MODE": "NO"}


class _Compiled(RuntimeModel):
    """Run the bytes of OpenVINO's two files; `name` is that of the first."""

    runtime = "OpenVINO"

    def __init__(self, xml: bytes, weights: bytes, name: str):
        super().__init__()
        openvino = _package("openvino")
        try:
            self.session = openvino.Core().compile_model(openvino.Core().read_model(xml, weights), "CPU", _settings())
        except Exception as error:  # of the runtime's own kinds, which share no parent
            raise StorageError(f"{name} can't be run by OpenVINO: {self.said(error)}") from error
        parts = self.session.inputs, self.session.outputs
        types = [part.element_type.get_type_name() for part in self.session.inputs]
        if list(map(len, parts)) != [1, 1] or types[0] not in TYPES:
            raise StorageError(f"{name} must take one tensor of numbers and give one. It takes {types}.")
        shape, self.dtype = parts[0][0].partial_shape, getattr(torch, TYPES[types[0]])
        sizes = [] if shape.rank.is_dynamic else shape
        self.shape = [size.get_length() if size.is_static else None for size in sizes]
        self._lock = Lock()  # a session computes for one thread at a time
        self.keep_file(xml + weights)

    def answers(self, images: np.ndarray) -> np.ndarray:
        with self._lock:
            return self.session(images, share_inputs=True)[0]

    def said(self, error: Exception) -> str:
        return _said(error)


def _said(error: Exception) -> str:
    return f"{' '.join(CODE.sub('', str(error)).split()):.200}"


class OpenvinoModel(_Compiled):
    """Run OpenVINO's two files, on one thread, as if they were a network: model(images) gives the logits.

    `path` is that of the .xml; the weights lie beside it. The bytes of both count.
    """

    def __init__(self, path: Path):
        path = file_path(path)
        _package("openvino")
        content = read_file(path)
        xml, mark, digest = content.partition(MARK)
        if not xml.startswith(b"<?xml"):
            raise DamagedFileError(f"{path} is damaged, or no .xml file of OpenVINO.")
        weights = read_file(path.with_suffix(".bin"))
        if mark and digest[:64] != _digest(xml, weights):
            raise DamagedFileError(f"{path} or its weights, the .bin beside it, are damaged: another SHA-256.")
        super().__init__(xml, weights, str(path))


def _package(name: str) -> ModuleType:
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # both would send statistics over the network
    return optional(name, "openvino", "nncf", "onnx", "onnxscript")


def _add_layer(graph: Graph, layer: IntegerLayer) -> str:
    """Add a layer in QDQ format: the numbers that the integers stand for, which OpenVINO itself computes on int8."""
    if isinstance(layer.input, QuantizeInput):
        _round(graph, layer.input, integer_range(layer.input.num_bits))
    taken, graph.flow = graph.flow, graph.constant(layer.weight)
    graph.node("DequantizeLinear", layer.weight_scale.squeeze(), layer.weight_zero_point.squeeze(), axis=0)
    weight, graph.flow = graph.flow, taken
    bias = [] if layer.bias is None else [layer.real_bias()]
    if isinstance(layer, IntegerConv2d):
        graph.node("Conv", weight, *bias, **window(layer))
    else:
        graph.node("Gemm", weight, *bias, transB=1)
    if isinstance(layer.output, Requantize):
        _round(graph, layer.output, layer.output.ends())
    return ""


def _round(graph: Graph, to: Any, ends: tuple[int, int]) -> None:
    """Round to the integers of a grid, between two of them."""
    if ends != integer_range(8):  # at which uint8 ends by itself
        graph.node("Clip", *(to.scale * (torch.tensor(ends) - to.zero_point)).flatten())
    for kind in ("QuantizeLinear", "DequantizeLinear"):
        graph.node(kind, *grid(to.scale, to.zero_point))
