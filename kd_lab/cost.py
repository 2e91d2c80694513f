"""Measure what a network costs: parameters, multiply-accumulates, bytes on disk and milliseconds."""

import inspect
import io
import math
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from timeit import Timer
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from kd_lab.errors import ParameterError, called_function, check_whole_number
from kd_lab.networks.checks import check_model
from kd_lab.networks.layers import other_state, state_tensors
from kd_lab.networks.modes import evaluation_mode
from kd_lab.networks.permanent import make_permanent
from kd_lab.networks.predictions import example_images, predict
from kd_lab.storage import contiguous

ZIP_STEP = 16_384  # bytes
aten = torch.ops.aten
FLOPS: dict[Any, Callable[..., int]] = {  # of what torch's counter leaves out, by the shapes taken
    aten.mv: lambda matrix, _vector, **_: 2 * math.prod(matrix),
    aten.addmv: lambda _added, matrix, _vector, **_: 2 * math.prod(matrix),
    aten.dot: lambda left, _right, **_: 2 * math.prod(left),
    aten.vdot: lambda left, _right, **_: 2 * math.prod(left),
    aten.addbmm: lambda _added, left, right, **_: 2 * math.prod(left) * right[-1],
    # a layer of an LSTM, (steps, N, inputs), in one direction
    aten.mkldnn_rnn_layer: lambda x, inner, recurrent, *_, **__: (
        2 * math.prod(x[:2]) * (math.prod(inner) + math.prod(recurrent))
    ),
}
UNCOUNTED = re.compile("_?(trilinear|cdist|fft|linalg|sparse|int_mm|weight_int|conv_tbc|nested)")
SLOW = 0.01  # seconds
EXTRA_STATE = "_extra_state"  # what get_extra_state() gives has this name, and is no weight


def count_parameters(model: nn.Module) -> int:
    """Return how many weights and biases the model computes with, tied ones once.

    Raises a ParameterError where they are no tensors, as in a network that torch quantized.
    """
    _check_tensors(model)
    return sum(parameter.numel() for parameter in make_permanent(model).parameters())


def count_nonzeros(model: nn.Module) -> int:
    """Return how many of the weights and biases that the model computes with are not zero."""
    _check_tensors(model)
    return sum(int(parameter.count_nonzero()) for parameter in make_permanent(model).parameters())


def _check_tensors(model: nn.Module) -> None:
    """Raise a ParameterError where a model keeps weights that are no tensors."""
    check_model(model)
    packed = [name for name in other_state(model) if not name.endswith(EXTRA_STATE)]
    if packed:
        raise ParameterError(
            f"'model' must keep its weights in tensors. Got {', '.join(packed)}, as networks that torch quantized have."
        )


def count_macs(model: nn.Module, images: Tensor | None = None) -> int:
    """Return the multiply-accumulates of one image in all products of matrices: Linear layers, convolutions, attention.

    A zero weight is multiplied like any other, so pruning by a mask doesn't lower this. `images`, a few, are needed for
    a network that reads others than (N, 1, 28, 28). Warns of operations that can't be counted.
    """
    check_model(model)
    images = example_images(images, 1)
    parametrized = any(map(parametrize.is_parametrized, model.modules()))
    try:  # without what computes the weights, which is not done for an image
        counter, uncounted = _counted(make_permanent(model) if parametrized else model, images)
    except ParameterError:  # it can't be copied, or its hooks know its modules
        counter, uncounted = _counted(model, images)
    if uncounted.names:
        warnings.warn(
            f"{called_function()}(): the multiplications of {', '.join(sorted(uncounted.names))} can't be counted.",
            stacklevel=2,
        )
    return counter.get_total_flops() // 2  # it counts a multiplication and an addition as two


def _counted(model: nn.Module, images: Tensor) -> "tuple[FlopCounterMode, _Uncounted]":
    """Run a model once, and return what was counted, and what could not be."""
    counter = _Counter(display=False, custom_mapping=FLOPS)
    # the mode first: a class's own eval() may multiply, as where LoRA merges its matrices
    with evaluation_mode(model), _without_fast_path(), _plain(_Uncounted)() as uncounted, counter:
        predict(model, images)
    return counter, uncounted


@contextmanager
def _without_fast_path():
    """Compute attention by the operations that its fast path, one for all, stands for."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class _Uncounted(TorchDispatchMode):
    """Note operations that multiply, and have no formula here."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace not in ("aten", "prim", "prims") or UNCOUNTED.match(func.overloadpacket.__name__):
            self.names.add(str(func.overloadpacket))
        return func(*args, **(kwargs or {}))


class _Counter(FlopCounterMode):
    """torch's counter, in a plain mode."""

    def __enter__(self):
        super().__enter__()
        self.mode.__class__ = _plain(type(self.mode))
        return self


def _plain(mode: type) -> type:
    """Return a mode without what torch puts around it for torch.compile, which takes a second or two to import."""
    plain: Any = type(mode.__name__, (mode,), {})
    plain.__torch_dispatch__ = inspect.unwrap(plain.__torch_dispatch__)
    return plain


def file_bytes(model: nn.Module) -> int:
    """Return the bytes of the safetensors file that holds all of the model's tensors."""
    return len(_serialise(model))


def zipped_bytes(model: nn.Module) -> int:
    """Return the bytes of a zip archive with that file in it."""
    *_, size = zip_stepwise(model)
    return size or 0


def zip_stepwise(model: nn.Module) -> Iterator[int | None]:
    """Yield None after every few milliseconds of zipping, so that a caller may stop, and the archive's bytes last."""
    content, archive = _serialise(model), io.BytesIO()
    with (
        zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as zipped,
        zipped.open("model.safetensors", "w") as file,
    ):
        for start in range(0, len(content), ZIP_STEP):
            file.write(content[start : start + ZIP_STEP])
            yield None
    yield len(archive.getvalue())


def latency(model: nn.Module, batch_size: int, images: Tensor | None = None) -> float:
    """Return the seconds of one forward pass on this machine: the median of 15 times, on torch's present threads.

    It is that of five where a pass takes over 10 ms. `images`, a few, are needed for a network that reads others than
    (N, 1, 28, 28).
    """
    batch_size = check_whole_number("batch_size", batch_size, "[1, 60000]")
    images = example_images(images)
    batch = images[torch.arange(batch_size) % len(images)]  # of zeros, padding to some, a network may read none
    predict(model, batch)  # warms up, and names a model that can't read them
    with evaluation_mode(model), torch.inference_mode():
        timer = Timer(lambda: model(batch))
        once = timer.timeit(1)
        number = math.ceil(0.001 / once)  # passes a time; of pieces of a millisecond, others' processes spoil few
        return median(timer.repeat(5 if once > SLOW else 15, number)) / number


def _serialise(model: nn.Module) -> bytes:
    return safetensors.torch.save(contiguous(state_tensors(model)))
