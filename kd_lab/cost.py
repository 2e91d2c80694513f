"""Measure what a network costs: parameters, multiply-accumulates, bytes on disk and milliseconds."""

import io
import zipfile

import safetensors.torch
import torch
from torch import nn
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from kd_lab.models import evaluation_mode

IMAGE = (1, 28, 28)


def count_parameters(model: nn.Module) -> int:
    """Return how many weights and biases the model has."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_nonzeros(model: nn.Module) -> int:
    """Return how many weights and biases are not zero."""
    return sum(int(parameter.count_nonzero()) for parameter in model.parameters())


def count_macs(model: nn.Module) -> int:
    """Return the multiply-accumulates of one image, in the Linear layers and convolutions.

    A zero weight is multiplied like any other, so pruning by a mask doesn't lower this.
    """
    with evaluation_mode(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, *IMAGE))
    return counter.get_total_flops() // 2  # it counts a multiplication and an addition as two


def file_bytes(model: nn.Module) -> int:
    """Return the bytes of the safetensors file that holds all of the model's tensors."""
    return len(_serialise(model))


def zipped_bytes(model: nn.Module) -> int:
    """Return the bytes of a zip archive with that file in it."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as zipped:
        zipped.writestr("model.safetensors", _serialise(model))
    return len(archive.getvalue())


def latency(model: nn.Module, batch_size: int) -> float:
    """Return the seconds of one forward pass on this machine: the median of many, on one thread."""
    images = torch.zeros(batch_size, *IMAGE)
    with evaluation_mode(model), torch.inference_mode():
        timer = Timer("model(images)", globals={"model": model, "images": images}, num_threads=1)
        return timer.blocked_autorange(min_run_time=0.2).median


def _serialise(model: nn.Module) -> bytes:
    return safetensors.torch.save({name: tensor.contiguous() for name, tensor in model.state_dict().items()})
