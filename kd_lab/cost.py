"""Measure what a network costs: parameters, multiply-accumulates, bytes on disk and milliseconds."""

import io
import math
import zipfile
from collections.abc import Iterator
from statistics import median
from timeit import Timer

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from kd_lab.errors import check_whole_number
from kd_lab.networks.layers import check_model, evaluation_mode, example_images, make_permanent, predict

ZIP_STEP = 16_384  # bytes
SLOW = 0.05  # seconds


def count_parameters(model: nn.Module) -> int:
    """Return how many weights and biases the model has."""
    check_model(model)
    return sum(parameter.numel() for parameter in model.parameters())


def count_nonzeros(model: nn.Module) -> int:
    """Return how many of the weights and biases that the model computes with are not zero."""
    check_model(model)
    return sum(int(parameter.count_nonzero()) for parameter in make_permanent(model).parameters())


def count_macs(model: nn.Module, images: Tensor | None = None) -> int:
    """Return the multiply-accumulates of one image, in the Linear layers and convolutions.

    A zero weight is multiplied like any other, so pruning by a mask doesn't lower this. `images`, a few, are needed for
    a network that reads others than (N, 1, 28, 28).
    """
    with FlopCounterMode(display=False) as counter:
        predict(model, example_images(images, 1))
    return counter.get_total_flops() // 2  # it counts a multiplication and an addition as two


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

    It is that of five where a pass takes over 50 ms. `images`, a few, are needed for a network that reads others than
    (N, 1, 28, 28).
    """
    check_whole_number("batch_size", batch_size, "[1, 60000]")
    images = example_images(images)
    batch = images.new_zeros(batch_size, *images.shape[1:])  # of their kind: not all networks read float32
    predict(model, batch)  # warms up, and names a model that can't read them
    with evaluation_mode(model), torch.inference_mode():
        timer = Timer(lambda: model(batch))
        once = timer.timeit(1)
        number = math.ceil(0.001 / once)  # passes a time; of pieces of a millisecond, others' processes spoil few
        return median(timer.repeat(5 if once > SLOW else 15, number)) / number


def _serialise(model: nn.Module) -> bytes:
    check_model(model)
    return safetensors.torch.save(
        {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in model.state_dict().items()}
    )
