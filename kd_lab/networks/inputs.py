"""Read what a layer takes while its network reads images: what its weight is multiplied by."""

import torch
from torch import Tensor, nn

from kd_lab.errors import ParameterError, check_choice
from kd_lab.networks.layers import Weight, describe, weights
from kd_lab.networks.predictions import TOLERANCE, record

KINDS = nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d  # that compute their weight times their inputs


def layer_inputs(model: nn.Module, layer: str, images: Tensor) -> Tensor:
    """Return what a layer reads when the model reads the images, in evaluation mode: (N, inputs) for a Linear layer.

    For a convolution they are its patches, (N · positions, channels · window), as its weight.flatten(1) is laid out.
    Raises a ParameterError for a grouped one, whose outputs read different patches, and for a layer that computes
    something else than its weight times its inputs.
    """
    present = weights(model)
    check_choice("layer", layer, list(present))
    groups = getattr(present[layer].module, "groups", 1)
    if groups > 1:
        raise ParameterError(f"a grouped convolution reads other inputs in each group. Layer {layer!r} has {groups}.")
    return grouped_inputs(model, layer, images)[0]


@torch.no_grad()
def grouped_inputs(model: nn.Module, name: str, images: Tensor) -> Tensor:
    """Return what a layer reads, (groups, N, n), where a layer that is no grouped convolution is one group."""
    weight = weights(model)[name]
    _check_kind(name, weight)
    found = record(model, [name], images, lambda inputs, output: _read(weight, inputs, output))
    if not found:
        raise ParameterError(f"the model never runs its layer {name!r}.")
    if any(each is None for each in found[name]):
        raise ParameterError(
            f"layer {name!r} must be left out: it computes something else than its weight times its inputs, by a "
            "forward or a hook of its own."
        )
    return torch.cat(found[name], 1)


def _check_kind(name: str, weight: Weight) -> None:
    """Raise a ParameterError for a layer whose output is not that of its own weight times its inputs."""
    problem = "other layers share its weight" if weight.tied else f"it is {describe(weight.module)}"
    if weight.tied or not isinstance(weight.module, KINDS):
        raise ParameterError(
            f"layer {name!r} must be left out: {problem}, and only Linear layers and convolutions with a weight of "
            "their own compute it times their inputs."
        )


def _read(weight: Weight, inputs: tuple, output: Tensor) -> Tensor | None:
    """Return what a layer reads in one call, (groups, N, n), None where that and its weight don't give the output."""
    layer, rows = weight.module, weight.value.flatten(1)
    if len(inputs) != 1 or not isinstance(output, Tensor):
        return None
    x = _patches(layer, inputs[0], rows.shape[1])
    expected = (x @ rows.unflatten(0, (len(x), -1)).mT).movedim(0, 1).flatten(1)  # (N, outputs)
    expected = expected if layer.bias is None else expected + layer.bias
    found = _flat(layer, output)
    largest = max(TOLERANCE, 4 * torch.finfo(found.dtype).eps) * float(found.abs().max())
    return x if found.shape == expected.shape and torch.allclose(found, expected, 0, largest) else None


def _patches(layer: nn.Module, x: Tensor, size: int) -> Tensor:
    if isinstance(layer, nn.Linear):
        return x.reshape(1, -1, size)
    # a convolution whose filters pick one input each: F.unfold knows no padding by "same" or by reflection
    picking = torch.eye(size, dtype=x.dtype).view(size, *layer.weight.shape[1:])
    kind = next(kind for kind in KINDS if isinstance(layer, kind))
    picked = kind._conv_forward(layer, x, picking.repeat(layer.groups, *[1] * (picking.dim() - 1)), None)
    return torch.stack([_flat(layer, each) for each in picked.chunk(layer.groups, -layer.weight.dim() + 1)])


def _flat(layer: nn.Module, outputs: Tensor) -> Tensor:
    """Return a layer's outputs for each row of its inputs, (N, outputs)."""
    if isinstance(layer, nn.Linear):
        return outputs.flatten(0, -2) if outputs.dim() > 1 else outputs[None]
    outputs = outputs if outputs.dim() == layer.weight.dim() else outputs[None]  # of one image
    return outputs.flatten(2).mT.flatten(0, 1)
