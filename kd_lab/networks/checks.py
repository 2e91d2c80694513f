"""Check what comes as a network or a tensor, and say how to turn other things into one."""

import itertools
from collections.abc import Callable
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from kd_lab.errors import ParameterError, described


def check_model(model: object) -> None:
    """Raise a ParameterError unless `model` is a network whose weights have values: lazy layers must have run once."""
    network = check_network(model)
    held = [part for each in network.modules() for part in (*each._parameters.values(), *each._buffers.values())]
    if any(is_lazy(each) or each.is_meta for each in held if each is not None):
        named = itertools.chain(network.named_parameters(), network.named_buffers())
        empty = [name for name, each in named if is_lazy(each) or each.is_meta]
        raise ParameterError(
            f"the weights of 'model' must have values. Got {', '.join(empty)} without. Lazy layers get theirs when the "
            "model runs once: call predict(model, images[:2])."
        )


def check_network(model: object) -> nn.Module:
    """Return the model; raise a ParameterError unless it is a network, whatever its weights are."""
    if isinstance(model, nn.Module):
        return model
    hints = {"str": " Did you mean load_trained(name)?", "tuple": " Did you mean model, history = train(…)?"}
    got = type(model).__name__
    swapped = " Did you swap two arguments?" if isinstance(model, (Tensor, Real, Path)) else ""
    raise ParameterError(f"'model' must be a network (an nn.Module). Got {got}.{hints.get(got, swapped)}")


def check_not_compiled(model: nn.Module) -> None:
    """Raise a ParameterError for a compiled network: it would run without the hooks that are added to it later."""
    if any("_orig_mod" in module._modules or module._compiled_call_impl for module in model.modules()):
        raise ParameterError(
            "'model' must be a network that is not compiled. Got one that is: give the network that torch.compile took "
            "(its _orig_mod), and compile what comes of it."
        )


def check_tensors(dimensions: int | None = None, dtype: torch.dtype | None = None, /, **tensors: Tensor) -> None:
    """Raise a ParameterError unless all are tensors of finite numbers, at least one, of these dimensions and dtype."""
    kind = (f"{dimensions} dimensions and of " if dimensions else "") + "finite numbers, at least one"
    kind += f", in {dtype}" if dtype else ""
    for name, tensor in tensors.items():
        fits = is_dense(tensor) and tensor.numel() and tensor.dtype != torch.bool
        fits = fits and tensor.dim() == (dimensions or tensor.dim()) and tensor.dtype == (dtype or tensor.dtype)
        if not fits or not torch.isfinite(tensor).all():
            got = f"{tensor.dtype}, {tuple(tensor.shape)}" if is_dense(tensor) else type(tensor).__name__
            got += ", with NaN or infinite ones" if fits else ""
            raise ParameterError(f"{name!r} must be a tensor of {kind}. Got {got}.{conversion_hint(tensor)}")


def check_finite(dimensions: int | None = None, /, **tensors: Tensor) -> None:
    """Raise a ParameterError unless all are tensors of finite numbers in float32, which the kit computes in."""
    check_tensors(dimensions, torch.float32, **tensors)


def check_mask(title: str, mask: object, weight: Tensor) -> None:
    """Raise a ParameterError unless this is a bool tensor in the weight's shape; `title` says what it is."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != weight.shape:
        got = f"{mask.dtype}, {tuple(mask.shape)}" if isinstance(mask, Tensor) else described(mask)
        raise ParameterError(f"{title} must be a bool tensor of shape {tuple(weight.shape)}. Got {got}.")


def check_shapes(rule: str, fits: Callable[..., bool], *tensors: Tensor) -> None:
    """Raise a ParameterError that begins with the rule unless their shapes fit it.

    Only shapes are looked at: where a student's outputs become NaN, `train` must see a loss of NaN.
    """
    shapes = [tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__ for tensor in tensors]
    if str in map(type, shapes) or not fits(*shapes):
        raise ParameterError(f"{rule}. Got {' and '.join(map(str, shapes))}.")


def is_dense(tensor: Any) -> bool:
    """Return whether this is a tensor that has its numbers in memory, one beside the other."""
    strided = isinstance(tensor, Tensor) and tensor.layout == torch.strided
    return strided and not (tensor.is_nested or tensor.is_quantized or tensor.is_meta)


def conversion_hint(images: object) -> str:
    """Return for the end of an error what makes a dense tensor of an array, a list or a DataLoader, "" of others."""
    if isinstance(images, Tensor) and not is_dense(images):
        if images.is_meta:
            return ' It lies on the device "meta", without numbers.'
        kinds = images.is_nested, images.is_quantized, True
        return f" Give its {('to_padded_tensor(0)', 'dequantize()', 'to_dense()')[kinds.index(True)]}."
    if isinstance(images, nn.Module):
        return " Did you swap two arguments?"
    calls = {
        "ndarray": "torch.as_tensor(images, dtype=torch.float32)",
        "list": "torch.as_tensor(images, dtype=torch.float32), or of tensors torch.stack(images)",
        "DataLoader": "torch.cat([images for images, *_ in loader])",
        "Split": "its .images",
        "tuple": "its first part, the images, alone",
    }
    call = calls.get(type(images).__name__)
    return f" Give {call}." if call else ""
