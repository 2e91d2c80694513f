"""Take channels and layers out of a network for good: hard pruning, and a file for what is left."""

import copy
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kd_lab.cost import IMAGE
from kd_lab.errors import ParameterError, StorageError, check_choice, check_kind, check_whole_number, reason
from kd_lab.models import MODELS, build_model, check_model, predict
from kd_lab.parametrizations import make_permanent
from kd_lab.pruning.structure import Group, channel_groups, find_groups, spread
from kd_lab.storage import load_tensors, save_tensors


def remove_channels(model: nn.Module, kept: dict[str, Tensor]) -> nn.Module:
    """Return a new, ordinary model that has only these channels of each group; groups left out stay whole.

    `kept` holds by the name of a group a bool tensor (size,), True keeps, or the indices of the channels that stay.
    """
    check_kind("kept", kept, dict, "a dict of the channels that stay, by group")
    groups = find_groups(model, list(kept))
    masks = {name: _as_mask(name, group.size, kept[name]) for name, group in groups.items()}
    plain = make_permanent(model)
    _cut(plain, groups, masks)
    return plain


def hard_prune(model: nn.Module) -> nn.Module:
    """Return a new, ordinary model without the channels that no layer reads: all weights that read them are zero.

    Its answers in evaluation mode are those of `model`. A layer that would lose every channel is named in a
    ParameterError.
    """
    groups, plain = channel_groups(model), make_permanent(model)
    # without the readers, what only they read goes, too
    while masks := {name: mask for name, group in groups.items() if not (mask := _read(plain, group)).all()}:
        for name, mask in masks.items():
            if not mask.any():
                raise ParameterError(
                    f"no layer reads any channel of layer {name!r}, so nothing would be left of it. Prune less."
                )
        _cut(plain, groups, masks)
    return plain


def remove_layers(model: nn.Module, names: list[str]) -> nn.Module:
    """Return a new model in which these modules are nn.Identity (depth pruning).

    A module can go if its output has the shape of its input: a residual block, a square layer. Others are refused.
    """
    check_model(model)
    check_kind("names", names, (list, tuple), "a list of names, as in ['4']")
    plain, fewer = make_permanent(model), copy.deepcopy(model)
    for name in names:
        check_choice("name", name, [name for name, _ in plain.named_modules() if name])
        _check_removable(plain, name)
    for name in sorted(names, reverse=True):  # what lies inside another goes first
        fewer.set_submodule(name, nn.Identity())
    return fewer


class Form(NamedTuple):
    """Say what is left of a network of the kit: which layers are gone, and how many channels each group has."""

    removed: list[str]
    widths: dict[str, int]


def form_of(model: nn.Module, name: str) -> Form:
    """Return what is left of the network of this name in `model`, an ordinary one.

    Raises a ParameterError for a model that is no pruned version of that network.
    """
    check_choice("name", name, list(MODELS))
    check_model(model)
    whole, tensors = dict(build_model(name).named_modules()), model.state_dict()
    removed = [
        key
        for key, module in model.named_modules()
        if isinstance(module, nn.Identity) and not isinstance(whole.get(key), nn.Identity)
    ]
    try:
        form = Form(removed, _widths(name, removed, tensors))
        same = str(_filled(name, form, tensors)) == str(model)
    except ParameterError as error:
        raise ParameterError(f"'model' must be a pruned {name}. {reason(error)}") from error
    if not same:
        raise ParameterError(f"'model' must be a pruned {name}. Got one with other modules.")
    return form


def build_form(name: str, form: Form) -> nn.Module:
    """Build what is left of the network of this name, with initial weights."""
    model = remove_layers(build_model(name), form.removed)
    groups = channel_groups(model)
    check_kind("widths", form.widths, dict, "a dict of channels by group")
    for group, width in form.widths.items():
        check_choice("name of a group", group, list(groups))
        check_whole_number(f"width of {group!r}", width, f"[1, {groups[group].size}]")
    return remove_channels(model, {group: torch.arange(width) for group, width in form.widths.items()})


def save_pruned(path: Path, model: nn.Module, name: str) -> None:
    """Save a network of the kit from which channels or layers were removed; masks are made permanent.

    Raises a ParameterError for a model that is no pruned version of the network of this name.
    """
    check_model(model)
    plain = make_permanent(model)
    form = form_of(plain, name)
    save_tensors(Path(path), plain.state_dict(), {"model": name, "pruned": {"removed": form.removed}})


def load_pruned(path: Path) -> nn.Module:
    """Return the network that `save_pruned` saved, in evaluation mode; a StorageError says what does not fit."""
    tensors, metadata = load_tensors(Path(path))
    if "quantized" in metadata:
        raise StorageError(f"{path} holds a quantized network. Use load_quantized(path, model) of kd_lab.quantization.")
    if "pruned" not in metadata:
        raise StorageError(
            f"{path} was not saved by save_pruned(). Is it a checkpoint? load_checkpoint(path, name) of "
            "kd_lab.checkpoints reads those."
        )
    try:
        name, removed = metadata["model"], metadata["pruned"]["removed"]
        return _filled(name, Form(removed, _widths(name, removed, tensors)), tensors).eval()
    except ParameterError as error:
        raise StorageError(f"{path} holds no pruned {metadata['model']}. {reason(error)}") from error


def _widths(name: str, removed: list[str], tensors: dict[str, Tensor]) -> dict[str, int]:
    """Return how many channels these tensors have in each group of the network of this name."""
    groups = channel_groups(remove_layers(build_model(name), removed))
    for group in groups:
        if f"{group}.weight" not in tensors:
            raise ParameterError(f"It has no layer {group!r}; a {name} has {', '.join(groups)}.")
    return {group: len(tensors[f"{group}.weight"]) for group in groups}


def _filled(name: str, form: Form, tensors: dict[str, Tensor]) -> nn.Module:
    """Return what is left of the network of this name, with the values of these tensors."""
    model = build_form(name, form)
    expected = model.state_dict()
    for key in expected | tensors:
        shapes = [tuple(state[key].shape) if key in state else "absent" for state in (expected, tensors)]
        if shapes[0] != shapes[1]:
            raise ParameterError(f"Its tensor {key!r} must be {shapes[0]} to fit the others. Got {shapes[1]}.")
        if tensors[key].dtype != expected[key].dtype:
            raise ParameterError(f"Its tensor {key!r} must be of {expected[key].dtype}. Got {tensors[key].dtype}.")
    model.load_state_dict(tensors)
    return model


def _as_mask(name: str, size: int, kept: Tensor) -> Tensor:
    """Return which channels stay, (size,) bool; `kept` says so or holds their indices."""
    if isinstance(kept, Tensor) and kept.dtype in (torch.int32, torch.int64) and kept.dim() == 1:
        indices = set(kept.tolist())
        if len(indices) == len(kept) and indices <= set(range(size)):
            kept = torch.zeros(size, dtype=torch.bool).index_fill(0, kept.long(), True)
    if not isinstance(kept, Tensor) or kept.dtype != torch.bool or kept.shape != (size,):
        raise ParameterError(
            f"'kept' of layer {name!r} must be a bool tensor of shape ({size},) or "
            f"a tensor of different indices from 0 to {size - 1}. Got {kept!r:.80}."
        )
    if not kept.any():
        raise ParameterError(f"'kept' leaves no channel in layer {name!r}. Keep at least one.")
    return kept


def _cut(model: nn.Module, groups: dict[str, Group], masks: dict[str, Tensor]) -> None:
    """Keep only the masks' channels, in place."""
    for name, mask in masks.items():
        for dim, layers in enumerate((groups[name].producers + groups[name].norms, groups[name].consumers)):
            for layer in layers:
                _select(model.get_submodule(layer), mask, dim)
    model.to(memory_format=torch.channels_last)  # for convolutions; others stay as they are


def _select(layer: nn.Module, mask: Tensor, dim: int) -> None:
    """Keep a part of a layer's tensors: their rows (dim 0), or the columns of the weight (dim 1)."""
    attributes = {nn.Linear: ("out_features", "in_features"), nn.Conv2d: ("out_channels", "in_channels")}
    attribute = attributes.get(type(layer), ("num_features",))[dim]
    stay = spread(mask, getattr(layer, attribute)).nonzero().flatten()
    for name, tensor in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
        if tensor.dim() > dim:
            part = tensor.detach().index_select(dim, stay)
            is_parameter = isinstance(tensor, nn.Parameter)
            setattr(layer, name, nn.Parameter(part, tensor.requires_grad) if is_parameter else part)
    setattr(layer, attribute, len(stay))


def _read(model: nn.Module, group: Group) -> Tensor:
    """Return which channels some layer reads, (size,) bool."""
    size = len(model.get_submodule(group.producers[0]).weight)
    columns = [model.get_submodule(key).weight.detach().transpose(0, 1) for key in group.consumers]
    # (inputs, outputs, …): the features of a flattened channel lie side by side
    return torch.cat([column.reshape(size, -1) for column in columns], 1).any(1)


def _check_removable(model: nn.Module, name: str) -> None:
    shapes = []

    def note(_module: nn.Module, inputs: tuple, output: object) -> None:
        shapes.append([tuple(getattr(each, "shape", ())) for each in (*inputs, output)])

    with model.get_submodule(name).register_forward_hook(note):
        predict(model, torch.zeros(1, *IMAGE))
    if not shapes or any(len(found) != 2 or found[0] != found[1] for found in shapes):
        came = f"makes {shapes[0][-1]} of {shapes[0][0]}" if shapes else "is never run"
        raise ParameterError(f"module {name!r} must give the shape that it takes. It {came}.")
