"""Check what clients ask of the networks that are served, and compute the answers: what HTTP and gRPC share."""

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from kd_lab.checkpoints import RECIPES, load_trained
from kd_lab.cost import file_bytes
from kd_lab.deployment.batches import Batches, RequestError
from kd_lab.deployment.litert import LitertModel
from kd_lab.deployment.onnx import OnnxModel
from kd_lab.deployment.openvino import OpenvinoModel
from kd_lab.deployment.runtime import RuntimeModel
from kd_lab.errors import ParameterError, check_kind, check_that, reason
from kd_lab.formats import load_network, load_packed, network_file_bytes
from kd_lab.networks.checks import check_model
from kd_lab.networks.permanent import make_permanent
from kd_lab.networks.predictions import MNIST_IMAGE, example_images, predict
from kd_lab.quantization.integer import IntegerLayer
from kd_lab.storage import file_path

INPUT, OUTPUT = "images", "logits"  # the names of the tensors that clients send and get
MAX_BYTES = 8_000_000  # of a request: 2,500 digits in binary, 500 or more in JSON
# of the protocol, as NumPy has them
DATATYPES = {"FP16": "f2", "FP32": "f4", "FP64": "f8", "INT8": "i1", "INT32": "i4", "INT64": "i8", "UINT8": "u1"}
LOADERS: dict[str, Any] = {".kdz": load_packed, ".safetensors": load_network}
LOADERS |= {".onnx": OnnxModel, ".xml": OpenvinoModel, ".tflite": LitertModel}
KEY = re.compile(r"([\w.-]{1,64})(?::([1-9]\d{0,8}))?", re.ASCII)


class UnknownModelError(RequestError):
    """A request for a model or a version that is not served."""


class InputTensor(NamedTuple):
    """What a client sends: names and numbers as they came, not checked yet."""

    name: Any
    datatype: Any
    shape: Any
    data: Any  # bytes, little-endian, or numbers in a list, nested or flat


@dataclass(frozen=True)
class ServedModel:
    """A network under a name, and what its clients have to know of it."""

    name: str
    version: str
    batches: Batches  # of its network
    bytes: int  # of its file
    taken: dict[str, Any]  # the protocol's description of its input
    given: dict[str, Any]  # and of its output

    async def answer(self, inputs: list[InputTensor], outputs: list[Any]) -> np.ndarray:
        """Return the logits (N, …); raise a RequestError that says what is wrong with the request."""
        if len(inputs) != 1 or any(name != OUTPUT for name in outputs):
            raise RequestError(f"A request must have one input, {INPUT!r}, and may ask for one output, {OUTPUT!r}.")
        return await self.batches.logits(self._images(inputs[0]))

    def _images(self, given: InputTensor) -> np.ndarray:
        datatype, shape = self.taken["datatype"], given.shape
        if (given.name, given.datatype) != (INPUT, datatype):
            named = f"{given.name!r:.80} of {given.datatype!r:.80}"
            raise RequestError(f"The input must be {INPUT!r} of datatype {datatype!r}. Got {named}.")
        whole = isinstance(shape, list) and all(type(size) is int for size in shape)
        if not whole or shape[1:] != self.taken["shape"][1:] or not 1 <= shape[0] <= MAX_BYTES:
            wanted = ", ".join(map(str, self.taken["shape"][1:]))
            raise RequestError(f"The shape must be [N, {wanted}]. Got {shape!r:.80}.")
        numbers = _numbers(given.data, np.dtype(DATATYPES[datatype]))
        if numbers.shape != tuple(shape) and numbers.shape != (np.prod(shape, dtype=object),):
            raise RequestError(f"The data must be {np.prod(shape, dtype=object)} numbers. Got {numbers.size}.")
        if not np.isfinite(numbers).all():
            raise RequestError("The data must be finite numbers. Got NaN or infinite ones.")
        return numbers.reshape(shape)


def _numbers(data: Any, dtype: np.dtype) -> np.ndarray:
    """Return what a client sent as numbers in this dtype; raise a RequestError where they would change."""
    try:
        numbers = np.frombuffer(data, dtype.newbyteorder("<")) if isinstance(data, bytes) else np.asarray(data)
    except (ValueError, OverflowError, RecursionError) as error:
        raise RequestError(f"The data must be numbers of {dtype}, in equal rows. {reason(error):.80}") from error
    if numbers.dtype.kind not in ("iuf" if dtype.kind == "f" else "iu"):
        raise RequestError(f"The data must be numbers of {dtype}. Got others, or none.")
    with np.errstate(over="ignore"):  # what becomes infinite is refused later
        converted = numbers.astype(dtype)
    if dtype.kind != "f" and not np.array_equal(converted, numbers):
        raise RequestError(f"The data must be numbers of {dtype}. Got some out of its range.")
    return converted


def little_endian(logits: np.ndarray) -> bytes:
    """Return numbers as the protocol sends them in binary."""
    return logits.astype(logits.dtype.newbyteorder("<")).tobytes()


class ServedModels:
    """The networks that the servers know, by name and version."""

    def __init__(self, models: Mapping[str, nn.Module | Path | str], images: Tensor | None = None):
        check_kind("models", models, Mapping, "a dict from names to networks or their files")
        check_that("models", models, len(models), "one network or more")
        self._found: dict[str, dict[int, ServedModel]] = {}
        for key, model in models.items():
            match = KEY.fullmatch(str(key))
            check_that("models", key, match, "by names such as 'cnn' or, with a version, 'cnn:2'")
            name, version = match[1], int(match[2] or 1)  # type: ignore[index]
            check_that("models", key, version not in self._found.get(name, {}), "of one network for each version")
            self._found.setdefault(name, {})[version] = prepared(name, str(version), model, images)

    def find(self, name: str, version: str = "") -> ServedModel:
        """Return the model of this version or of the newest one; raise an UnknownModelError where there is none."""
        versions = {str(number): model for number, model in sorted(self._found.get(name, {}).items())}
        found = versions.get(version or next(reversed(versions), ""))
        if found is None:
            wanted = f"{name[:80]!r}" + f" of version {version[:80]!r}" * bool(version)
            raise UnknownModelError(f"No model {wanted} is served.")
        return found

    def metadata(self, name: str, version: str = "") -> dict[str, Any]:
        """Return the protocol's description of a model; raise as `find` does."""
        found = self.find(name, version)
        versions = [str(number) for number in sorted(self._found[name])]
        tensors = {"inputs": [found.taken], "outputs": [found.given]}
        return {"name": name, "versions": versions, "platform": "kd_lab", **tensors}

    def server_metadata(self) -> dict[str, Any]:
        """Return the protocol's description of the server."""
        return {"name": "kd_lab", "version": version_of("kd_lab"), "extensions": ["binary_tensor_data"]}

    def listing(self) -> list[dict[str, Any]]:
        """Return the name, the version and the bytes of all models."""
        every = (model for versions in self._found.values() for model in versions.values())
        return [{"name": model.name, "version": model.version, "bytes": model.bytes} for model in every]


def is_allowed(token: str, sent: str) -> bool:
    """Return whether an Authorization header has the token, in a time that does not tell how much of it is right."""
    return not token or secrets.compare_digest(sent.encode(errors="replace"), f"Bearer {token}".encode())


def prepared(name: str, version: str, model: nn.Module | Path | str, images: Tensor | None) -> ServedModel:
    """Return a model ready to serve: a copy in evaluation mode whose weights are plain, tried on an image."""
    network, size = _loaded(model) if isinstance(model, (str, Path)) else (model, _size(model))
    plain = network if isinstance(network, RuntimeModel) else make_permanent(network).eval()
    example = _example(plain, images)
    taken, given = _described(INPUT, example), _described(OUTPUT, predict(plain, example))
    return ServedModel(name, version, Batches(plain), size, taken, given)


def _described(name: str, tensor: Tensor) -> dict[str, Any]:
    """Return the protocol's description of a tensor, for any number of images."""
    names = {f"torch.{np.dtype(kind)}": datatype for datatype, kind in DATATYPES.items()}
    kind = str(tensor.dtype)
    check_that("models", kind, kind in names, f"networks that take and give {', '.join(DATATYPES)}")
    return {"name": name, "datatype": names[kind], "shape": [-1, *tensor.shape[1:]]}


def _size(network: nn.Module) -> int:
    """Return the bytes of the file that holds a network: on integers as they are, else as `save_network` writes it."""
    check_model(network)
    integer = any(isinstance(module, IntegerLayer) for module in network.modules())
    return file_bytes(network) if integer else network_file_bytes(network)


def _loaded(where: Path | str) -> tuple[nn.Module, int]:
    """Return the network of a file, or the shipped one of this name, with the bytes of its file."""
    if str(where) in RECIPES:
        network = load_trained(str(where))
        return network, network_file_bytes(network)
    path = file_path(where)
    if path.suffix not in LOADERS:
        allowed = f"a network, its file or the name of one that ships ({', '.join([*LOADERS, *RECIPES])})"
        raise ParameterError(f"a model must be {allowed}. Got {where}.")
    network = LOADERS[path.suffix](path)
    return network, len(network.file) if isinstance(network, RuntimeModel) else path.stat().st_size


def _example(network: nn.Module, images: Tensor | None) -> Tensor:
    """Return an image to try a network on: one of these or, without any, noise of the shape that its file says."""
    if images is None and isinstance(network, RuntimeModel):
        shape = [size for size in network.shape[1:] if isinstance(size, int)]
        known = shape if len(shape) == len(network.shape) - 1 else MNIST_IMAGE
        return torch.ones(1, *known, dtype=network.dtype)
    return example_images(images, 1)
