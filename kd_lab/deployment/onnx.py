"""Write a network as an ONNX file, and run such a file in ONNX Runtime. Needs the extra `onnx`."""

import logging
import re
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kd_lab.deployment.parity import check_calibration, check_not_simulated, check_parity, real_images
from kd_lab.deployment.runtime import RuntimeModel
from kd_lab.environment import optional
from kd_lab.errors import DamagedFileError, ParameterError, StorageError, check_that
from kd_lab.networks.layers import sequential_steps
from kd_lab.networks.permanent import make_permanent
from kd_lab.networks.predictions import BATCH_SIZE, predict
from kd_lab.quantization.grids import integer_range
from kd_lab.quantization.integer import IntegerConv2d, IntegerLayer, QuantizeInput, Requantize
from kd_lab.storage import file_path, read_file, write_safely

OPSETS, IR_VERSION = {"": 17, "com.microsoft": 1}, 8  # of 2022, which every runtime of today reads
FLOAT = 1  # onnx.TensorProto.FLOAT
EXACT = "session.x64quantprecision"  # or sums of two products of bytes overflow 16 bits on processors without VNNI
TYPES = {  # of ONNX Runtime's inputs, as torch has them
    "tensor(float)": torch.float32,
    "tensor(double)": torch.float64,
    "tensor(float16)": torch.float16,
    "tensor(uint8)": torch.uint8,
    "tensor(int8)": torch.int8,
    "tensor(int32)": torch.int32,
    "tensor(int64)": torch.int64,
}
CODE = re.compile(r"^/\S+:\d+ .*?\) (?=[A-Z])")  # the place in the runtime's own code
PADDING = {"same": {"auto_pad": "SAME_UPPER"}, "valid": {}}  # where torch has a word for it


def export_onnx(model: nn.Module, path: Path, images: Tensor | None = None, calibration: Tensor | None = None) -> None:
    """Write an ONNX file, whole or not at all, that takes images and gives logits, of any number at a time.

    What `to_integer` gives is written with its own integers, scales and zero points; another model in fp32, or in int8
    where `calibration` has some hundred images, from which ONNX Runtime's own quantizer takes its grids (QDQ format).
    `images`, a few, are needed for a network that reads others than (N, 1, 28, 28). Before anything is written, the
    checker of ONNX must find nothing wrong, and ONNX Runtime must give the model's logits for real images. Raises a
    SetupError where the packages are missing, and a ParameterError for a model that ONNX can't hold.
    """
    path = file_path(path)
    _package("onnxruntime")
    graph, rounds = onnx_graph(model, images, calibration, _add_layer)
    content = graph.SerializeToString() if calibration is None else _quantized(graph, calibration)
    check_parity(_Session(content, "the file"), model, images, "ONNX Runtime", rounds)
    write_safely(path, content)


def onnx_graph(
    model: nn.Module, images: Tensor | None, calibration: Tensor | None, add_layer: Callable
) -> tuple[Any, str]:
    """Return what the ONNX checker passed, and how a runtime's answers may differ: see `rounds` of check_parity.

    `add_layer(graph, layer)` adds an integer layer, or says why it can't be written.
    """
    few = real_images(images, 2)
    predict(model, few)
    check_calibration(calibration, few)
    kinds = {type(module) for module in model.modules()}
    check_that("model", model, not any(issubclass(kind, RuntimeModel) for kind in kinds), "a network of torch")
    integer = any(issubclass(kind, IntegerLayer) for kind in kinds)
    check_that("model", model, not integer or calibration is None, "in fp32 where calibration images are given")
    checker = _package("onnx").checker
    with torch.inference_mode(False):  # torch.export can't follow what inference_mode made
        few = few.clone()
        graph = _integer_graph(model, few, add_layer) if integer else _float_graph(model, few)
    checker.check_model(graph)
    return graph, "same" if integer else "" if calibration is None else "other"


def _quantized(graph: Any, images: Tensor) -> bytes:
    """Return the file of a network whose weights and activations ONNX Runtime has quantized, static int8."""
    runtime = _package("onnxruntime.quantization")
    batches = iter([{"images": batch.numpy()} for batch in images.split(BATCH_SIZE)])
    with tempfile.TemporaryDirectory() as folder, quiet():
        path = Path(folder) / "int8.onnx"
        runtime.quantize_static(
            graph,
            path,
            SimpleNamespace(get_next=lambda: next(batches, None)),
            quant_format=runtime.QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,  # weights of 7 bits: of 8, sums of two products overflow 16 bits on older processors
        )
        return path.read_bytes()


@contextmanager
def quiet():
    """Leave out the advice that a runtime's quantizer logs."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


class _Session(RuntimeModel):
    """Run the bytes of an ONNX file; `name` is that of the file."""

    runtime = "ONNX Runtime"

    def __init__(self, content: bytes, name: str):
        super().__init__()
        runtime = _package("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        options.add_session_config_entry(EXACT, "1")
        try:
            self.session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # of the runtime's own kinds, which share no parent
            said = self.said(error)
            raise StorageError(f"{name} can't be run by ONNX Runtime {runtime.__version__}: {said}") from error
        taken, given = self.session.get_inputs(), self.session.get_outputs()
        if (len(taken), len(given)) != (1, 1) or taken[0].type not in TYPES:
            raise StorageError(
                f"{name} must take one tensor of numbers and give one. It takes {_parts(taken)} and gives "
                f"{_parts(given)}."
            )
        self._name, self.shape, self.dtype = taken[0].name, taken[0].shape, TYPES[taken[0].type]
        self.keep_file(content)

    def answers(self, images: np.ndarray) -> np.ndarray:
        return self.session.run(None, {self._name: images})[0]

    def said(self, error: Exception) -> str:
        """Return the last part of what it says, "[ONNXRuntimeError] : 1 : FAIL : /model.cc:256 load(int) …"."""
        said = str(error).strip().rsplit(" : ", 1)[-1]
        return f"{re.sub(CODE, '', said):.200}"


def _parts(parts: list) -> str:
    return ", ".join(f"{part.name!r} ({part.type})" for part in parts) or "none"


class OnnxModel(_Session):
    """Run an ONNX file in ONNX Runtime, on one thread, as if it were a network: model(images) gives the logits.

    What is in the file shows only as its bytes: weights and MACs are not counted. Weights that lie in files beside it
    belong to it. A file that takes so many images at a time is given as many, filled up with zeros.
    """

    def __init__(self, path: Path):
        _package("onnxruntime")
        super().__init__(_whole(file_path(path)), str(path))


def _whole(path: Path) -> bytes:
    """Return the bytes of an ONNX file with the weights that lie in files beside it."""
    onnx, outside = _package("onnx"), _package("onnx.external_data_helper")
    content = read_file(path)
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # of protobuf, which need not be imported for its name
        raise DamagedFileError(f"{path} is damaged, or no ONNX file: {error}") from error
    if not model.graph.node:
        raise DamagedFileError(f"{path} is damaged, or no ONNX file: nothing is computed in it.")
    inside = model.SerializeToString()
    try:
        outside.load_external_data_for_model(model, str(path.parent))
        whole = model.SerializeToString()
        return content if whole == inside else whole
    except Exception as error:  # of onnx, protobuf or the system
        raise StorageError(f"{path} needs weights from a file beside it that can't be read: {error!s:.200}") from error


def _package(name: str) -> ModuleType:
    return optional(name, "onnx", "onnxruntime", "onnxscript")


def _float_graph(model: nn.Module, images: Tensor) -> Any:
    plain = make_permanent(model).eval().to(memory_format=torch.contiguous_format)
    check_not_simulated(plain)
    _package("onnxscript")
    settings = {"input_names": ["images"], "output_names": ["logits"], "dynamo": True, "verbose": False}
    shapes = ({0: torch.export.Dim("batch")},)
    try:
        graph = torch.onnx.export(plain, (images.clone(),), dynamic_shapes=shapes, **settings).model_proto
    except torch.onnx.OnnxExporterError as error:
        raise ParameterError(
            f"'model' must be one that torch can export. Got: {error.__cause__ or error!s:.200}"
        ) from error
    for part in (*graph.graph.node, *graph.graph.value_info, *graph.graph.initializer):
        del part.metadata_props[:]  # places in the files of the machine that made it
    return graph


def _integer_graph(model: nn.Module, images: Tensor, add_layer: Callable) -> Any:
    graph, steps = Graph(), sequential_steps(model)
    wrong = [f"{name} ({why})" for name, module in steps if (why := _add(graph, module, add_layer))]
    if wrong:
        raise ParameterError(
            "'model' must run on integers from its first layer to its last, as the "
            f"runtime can. Got one with {', '.join(wrong)}."
        )
    return graph.finish(images.shape[1:], predict(model, images).shape[1:])


class Graph:
    """Collect nodes, each of which takes what the one before it gives."""

    def __init__(self):
        self.helper, self.to_tensor = _package("onnx.helper"), _package("onnx.numpy_helper").from_array
        self.nodes, self.constants, self.flow = [], [], "images"

    def constant(self, tensor: Tensor) -> str:
        """Return the name of a constant."""
        self.constants.append(self.to_tensor(tensor.detach().numpy(), f"constant_{len(self.constants)}"))
        return self.constants[-1].name

    def node(self, kind: str, *others: Tensor | str, domain: str = "", **attributes: Any) -> None:
        """Add a node; `others` are what it takes, too: constants, or the names of what is there already."""
        given = f"{kind}_{len(self.nodes)}"
        names = [other if isinstance(other, str) else self.constant(other) for other in others]
        self.nodes.append(self.helper.make_node(kind, [self.flow, *names], [given], domain=domain, **attributes))
        self.flow = given

    def finish(self, taken: tuple[int, ...], given: tuple[int, ...]) -> Any:
        """Return the model that takes images of one shape and whose logits, of another, the last node gives."""
        self.nodes[-1].output[0] = "logits"
        images = self.helper.make_tensor_value_info("images", FLOAT, ["batch", *taken])
        logits = self.helper.make_tensor_value_info("logits", FLOAT, ["batch", *given])
        graph = self.helper.make_graph(self.nodes, "integer", [images], [logits], self.constants)
        opsets = [self.helper.make_opsetid(domain, version) for domain, version in OPSETS.items()]
        return self.helper.make_model(graph, ir_version=IR_VERSION, opset_imports=opsets)


def _add(graph: Graph, module: nn.Module, add_layer: Callable) -> str:
    """Add what a module computes; say why that can't be written, nothing where it can."""
    if isinstance(module, IntegerLayer):
        return add_layer(graph, module)
    if isinstance(module, nn.ReLU):
        graph.node("Relu")
    elif isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1):
        graph.node("Flatten")
    elif isinstance(module, nn.MaxPool2d):
        parts = module.kernel_size, module.stride, module.padding, module.dilation
        size, strides, padding, dilations = (np.broadcast_to(part, 2).tolist() for part in parts)
        sizes = {"kernel_shape": size, "strides": strides, "pads": padding * 2, "dilations": dilations}
        graph.node("MaxPool", **sizes, ceil_mode=int(module.ceil_mode))
    elif not isinstance(module, (nn.Identity, nn.Dropout)):  # which compute nothing
        return type(module).__name__
    return ""


def _add_layer(graph: Graph, layer: IntegerLayer) -> str:
    """Add QGemm, a Linear layer on integers that is Microsoft's, or QLinearConv, and the rounding before it."""
    given = grid(layer.output.scale, layer.output.zero_point) if isinstance(layer.output, Requantize) else []
    if isinstance(layer, IntegerConv2d):
        if not given:
            return "a convolution that gives float32"
        if len(layer.weight_zero_point.unique()) > 1:
            return "a weight with several zero points"
    taken = grid(layer.input_scale, layer.input_zero_point)
    if isinstance(layer.input, QuantizeInput):
        graph.node("QuantizeLinear", *taken)
        _clip(graph, *integer_range(layer.input.num_bits))
    if layer.spread > 1:  # the same numbers on a finer grid, whose unit rounds the bias less
        graph.node("DequantizeLinear", *taken)
        taken = grid(layer.input_scale / layer.spread, layer.input_zero_point.int() * layer.spread)
        graph.node("QuantizeLinear", *taken)
    weight = [layer.weight, layer.weight_scale.squeeze(), layer.weight_zero_point.squeeze()]
    bias = torch.zeros(len(layer.weight)).int() if layer.bias is None else layer.bias
    if isinstance(layer, IntegerConv2d):
        graph.node("QLinearConv", *taken, *weight, *given, bias, **window(layer))
    else:
        graph.node("QGemm", *taken, *weight, bias, *given, domain="com.microsoft", transB=1)
    if given:
        _clip(graph, *layer.output.ends())
    return ""


def window(layer: IntegerConv2d) -> dict[str, Any]:
    """Return how a convolution is laid over an image, in ONNX's words."""
    return {"strides": layer.stride, "group": layer.groups, **PADDING.get(layer.padding, {"pads": layer.padding * 2})}


def grid(scale: Tensor, zero_point: Tensor) -> list[Tensor]:
    """Return the grid of activations, raised by 128: uint8 times int8 is what ONNX Runtime computes fastest."""
    return [scale.squeeze(), (zero_point.int() + 128).to(torch.uint8).squeeze()]


def _clip(graph: Graph, smallest: int, largest: int) -> None:
    if (smallest, largest) != integer_range(8):  # at which uint8 ends by itself
        graph.node("Clip", *torch.tensor([smallest + 128, largest + 128], dtype=torch.uint8))
