"""Prune whole channels and layers: masked (soft pruning), or taken out for good (hard pruning)."""

import copy
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kd_lab.errors import ParameterError, check_choice, check_kind, check_whole_number, described, reason
from kd_lab.evaluation import check_data
from kd_lab.networks.copies import copied
from kd_lab.networks.layers import weight_titles, weighted_layers, weights
from kd_lab.networks.permanent import make_permanent
from kd_lab.networks.predictions import check_same_answers, example_images, own_reason, predict, record
from kd_lab.networks.zoo import architecture_of, build_architecture
from kd_lab.pruning.groups import Group, Part, channel_groups, computed, fed_back, find_groups, read
from kd_lab.pruning.importance import importances
from kd_lab.pruning.masks import Sparsity, check_left, check_sparsity, lift_masks, rank, set_masks

# how many channels a layer computes, passes on or reads
OUTPUTS = {"out_features", "out_channels", "embedding_dim", "hidden_size"}
PASSED_ON = {"num_features", "num_channels", "num_groups", "num_heads", "in_channels", "out_channels", "groups"}
INPUTS = {"in_features", "in_channels", "input_size"}


def prune_channels(
    model: nn.Module,
    ratio: Sparsity,
    importance: str = "magnitude",
    scope: str = "per_layer",
    *,
    data: tuple[Tensor, Tensor] | None = None,
    seed: int = 0,
) -> nn.Module:
    """Return a new model in which the least important channels are masked (soft structured pruning).

    `ratio` is the fraction in [0, 1) of the channels that go or, with scope "per_layer", one for each group by name.
    What computes a channel and what reads it is masked, so that no bias or BatchNorm revives it. All are ranked again,
    as by prune. `data`, (images, labels) from the training part, is needed for importance by gradients, and for a
    network that reads other images than (N, 1, 28, 28).
    """
    data = None if data is None else check_data(data)
    groups = find_groups(model, list(ratio) if isinstance(ratio, dict) else None, data and data[0])
    check_sparsity("ratio", ratio, list(groups), scope, "group")
    pruned = lift_masks(model)
    kept = rank(channel_importances(pruned, groups, importance, data, seed), scope).masks(ratio)
    check_left(f"ratio {ratio} leaves no channel in group", kept, scope)
    set_masks(pruned, _weight_masks(pruned, groups, kept))
    return pruned


def channel_importances(
    model: nn.Module, groups: dict[str, Group], importance: str, data: tuple[Tensor, Tensor] | None, seed: int = 0
) -> dict[str, Tensor]:
    """Return the importance of every channel, (size,) by group: the mean over all weights that compute it.

    With "magnitude" that is the L1 norm of Li et al. 2017 up to the scale, which makes layers comparable.
    """
    found = importances(model, importance, data, seed)
    rows = {
        name: torch.cat([_by_channel(found[title], part, group.size) for title, _, part in _computing(model, group)], 1)
        for name, group in groups.items()
    }
    # one chance a channel: the mean of many is always near a half, and layers with few weights would go first
    return {name: values[:, 0] if importance == "random" else values.mean(1) for name, values in rows.items()}


def _computing(model: nn.Module, group: Group, grouped: bool = False) -> Iterator[tuple[str, nn.Module, Part]]:
    """Yield the weights that compute a group's channels, by name and with the layer; of `grouped` ones if asked for."""
    for name in group.producers:
        yield from _titled(model, name, computed(model.get_submodule(name)))
    for name in group.grouped if grouped else ():
        yield from _titled(model, name, [Part("weight", 0, group.turns[name])])


def _reading(model: nn.Module, group: Group) -> Iterator[tuple[str, nn.Module, Part]]:
    """Yield the weights that read a group's channels, by name and with the layer."""
    for name in group.consumers:
        yield from _titled(model, name, read(model.get_submodule(name), group.turns[name]))
    for name in group.producers:
        yield from _titled(model, name, fed_back(model.get_submodule(name)))


def _titled(model: nn.Module, name: str, parts: list[Part]) -> Iterator[tuple[str, nn.Module, Part]]:
    layer = model.get_submodule(name)
    titles = {tensor: title for title, tensor in weight_titles(name, layer).items()}
    yield from ((titles[part.tensor], layer, part) for part in parts if part.tensor in titles)  # a bias has none


def _by_channel(values: Tensor, part: Part, size: int) -> Tensor:
    """Return what belongs to each channel of a tensor, (size, …)."""
    apart = values.movedim(part.axis, 0).reshape(part.turns, size, -1)
    return apart.transpose(0, 1).flatten(1)


def features_kept(kept: Tensor, features: int, turns: int = 1) -> Tensor:
    """Return for each feature whether its channel is kept: flattened, every channel has as many features."""
    return kept.repeat_interleave(features // (len(kept) * turns)).repeat(turns)


def _weight_masks(model: nn.Module, groups: dict[str, Group], kept: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the masks of the weights that compute or read these channels, by layer."""
    masks: dict[str, Tensor] = {}
    present = weights(model)
    for name, group in groups.items():
        for title, _, (_, axis, turns) in (*_computing(model, group, grouped=True), *_reading(model, group)):
            mask = masks.setdefault(title, torch.ones_like(present[title].value, dtype=torch.bool))
            mask.transpose(0, axis)[~features_kept(kept[name], mask.shape[axis], turns)] = False
    return masks


def remove_channels(model: nn.Module, kept: dict[str, Tensor], images: Tensor | None = None) -> nn.Module:
    """Return a new, ordinary model that has only these channels of each group; groups left out stay whole.

    `kept` holds by the name of a group a bool tensor (size,), True keeps, or the indices of the channels that stay.
    `images`, a few, are needed for a network that reads others than (N, 1, 28, 28): its answers to them are compared
    with those of the model where no layer reads the others, and a network that would answer otherwise is refused.
    """
    check_kind("kept", kept, dict, "a dict of the channels that stay, by group")
    groups = find_groups(model, list(kept), images)
    masks = {name: _as_mask(name, group.size, kept[name]) for name, group in groups.items()}
    return narrowed(model, groups, masks, images)


def narrowed(
    model: nn.Module, groups: dict[str, Group], masks: dict[str, Tensor], images: Tensor | None = None
) -> nn.Module:
    """Return a new, ordinary model without the channels that the masks leave out of these groups, found before."""
    whole = make_permanent(model)
    narrow = copied(whole)
    _cut(narrow, groups, masks)
    present = weights(whole)
    for title, kept in _weight_masks(whole, groups, masks).items():
        present[title].value.detach()[~kept] = 0
    _check_answers(narrow, whole, images)
    return narrow


def hard_prune(model: nn.Module, images: Tensor | None = None) -> nn.Module:
    """Return a new, ordinary model without the channels that no layer reads: all weights that read them are zero.

    Its answers in evaluation mode are those of `model`. A layer that would lose every channel is named in a
    ParameterError. `images`, a few, are needed for a network that reads others than (N, 1, 28, 28); a network that
    would answer them otherwise is refused.
    """
    groups, plain = channel_groups(model, images), make_permanent(model)
    # without the readers, what only they read goes, too
    while masks := {name: mask for name, group in groups.items() if not (mask := _read(plain, group)).all()}:
        for name, mask in masks.items():
            if not mask.any():
                raise ParameterError(
                    f"no layer reads any channel of layer {name!r}, so nothing would be left of it. Prune less."
                )
        _cut(plain, groups, masks)
        groups |= {name: replace(groups[name], size=int(mask.sum())) for name, mask in masks.items()}
    _check_answers(plain, model, images)
    return plain


def remove_layers(model: nn.Module, names: Sequence[str], images: Tensor | None = None) -> nn.Module:
    """Return a new model in which these modules are nn.Identity (depth pruning).

    A module can go if its output has the shape of its input: a residual block, a square layer. Others are refused.
    `images`, a few, are needed for a network that reads others than (N, 1, 28, 28).
    """
    check_kind("names", names, (list, tuple), "a list of names, as in ['block1']")
    plain, fewer = make_permanent(model), copied(model)
    for name in names:
        check_choice("name", name, [name for name, _ in plain.named_modules() if name])
        _check_removable(plain, name, images)
    for name in sorted(names, reverse=True):  # what lies inside another goes first
        fewer.set_submodule(name, nn.Identity())
    _check_runs(fewer, images)
    return fewer


class Form(NamedTuple):
    """What is left of a network of the kit: its layers that are gone, and how many channels the narrower groups have.

    `biased` are the layers that took over the bias of a folded BatchNorm.
    """

    architecture: str
    removed: Sequence[str]
    widths: Mapping[str, int]
    biased: Sequence[str]


def form_of(model: nn.Module) -> Form:
    """Return what is left of a network of the kit in `model`, an ordinary one.

    Raises a ParameterError for a network that is no pruned version of its architecture.
    """
    architecture = architecture_of(model)
    layers = dict(build_architecture(architecture).named_modules())
    removed = [name for name, module in model.named_modules() if _is_removed(module, layers.get(name))]
    try:
        form = form_of_tensors(architecture, removed, model.state_dict())
        _check_same(model, build_form(form))
    except ParameterError as error:
        raise ParameterError(f"'model' must be a pruned {architecture}. {reason(error)}") from error
    return form


def form_of_tensors(architecture: str, removed: Sequence[str], tensors: dict[str, Tensor]) -> Form:
    """Return the form of a network without these layers that has these tensors."""
    dense, groups = _dense(architecture, tuple(removed))
    first = {name: f"{name}.{computed(dense.get_submodule(name))[0].tensor}" for name in groups}
    for group, key in first.items():
        if key not in tensors:
            raise ParameterError(f"It has no layer {group!r}; a {architecture} has {', '.join(groups)}.")
    whole = dense.state_dict()
    widths = {name: len(tensors[key]) * groups[name].size // len(whole[key]) for name, key in first.items()}
    biased = [name for name in _biasless(dense) if f"{name}.bias" in tensors]
    return Form(architecture, removed, {name: n for name, n in widths.items() if n != groups[name].size}, biased)


def form_choices(architecture: str, removed: Sequence[str]) -> tuple[dict[str, int], list[str]]:
    """Return what a form without these layers can say: of each group the most channels, and who may get a bias."""
    dense, groups = _dense(architecture, tuple(removed))
    return {name: group.size for name, group in groups.items()}, _biasless(dense)


def _biasless(dense: nn.Module) -> list[str]:
    return [name for name, layer in weighted_layers(dense).items() if getattr(layer, "bias", layer) is None]


def build_form(form: Form) -> nn.Module:
    """Build what is left of a network, with initial weights; raise a ParameterError for what can't be."""
    dense, groups = _dense(form.architecture, tuple(form.removed))
    for name, width in form.widths.items():
        check_choice("name of a group", name, list(groups))
        check_whole_number(f"width of {name!r}", width, f"[1, {groups[name].size}]")
    narrow = copy.deepcopy(dense)
    for name in form.biased:
        check_choice("name of a layer", name, list(weighted_layers(dense)))
        layer = narrow.get_submodule(name)
        layer.bias = nn.Parameter(layer.weight.new_zeros(len(layer.weight)))
    _cut(narrow, groups, {name: torch.arange(groups[name].size) < width for name, width in form.widths.items()})
    return narrow


@functools.lru_cache(maxsize=8)  # a file, and a panel, ask again and again, and finding groups takes a network's run
def _dense(architecture: str, removed: tuple[str, ...]) -> tuple[nn.Module, dict[str, Group]]:
    """Return a network of the kit without these layers, which must not be changed, and its groups of channels."""
    dense = remove_layers(build_architecture(architecture), removed)
    return dense, channel_groups(dense)


def _is_removed(module: nn.Module, dense: nn.Module | None) -> bool:
    return isinstance(module, nn.Identity) and not isinstance(dense, nn.Identity)


def _check_same(model: nn.Module, expected: nn.Module) -> None:
    """Raise a ParameterError that names the first tensor which is not as expected, or says that modules differ."""
    found, wanted = _shapes(model), _shapes(expected)
    for name in wanted | found:
        if found.get(name) != wanted.get(name):
            raise ParameterError(
                f"Its tensor {name!r} must be {wanted.get(name, 'absent')} to fit the others. "
                f"Got {found.get(name, 'absent')}."
            )
    if str(model) != str(expected):
        raise ParameterError("Got one with other modules.")


def _shapes(model: nn.Module) -> dict[str, str]:
    return {name: f"{tuple(tensor.shape)}, {tensor.dtype}" for name, tensor in model.state_dict().items()}


def _as_mask(name: str, size: int, kept: Tensor) -> Tensor:
    """Return which channels stay, (size,) bool; `kept` says so or holds their indices."""
    if isinstance(kept, Tensor) and kept.dtype in (torch.int32, torch.int64) and kept.dim() == 1:
        mask = torch.isin(torch.arange(size), kept)
        kept = mask if mask.sum() == len(kept) else kept  # else one is there twice, or out of range
    if not isinstance(kept, Tensor) or kept.dtype != torch.bool or kept.shape != (size,):
        raise ParameterError(
            f"'kept' of layer {name!r} must be a bool tensor of shape ({size},) or "
            f"a tensor of different indices from 0 to {size - 1}. Got {described(kept)}."
        )
    if not kept.any():
        raise ParameterError(f"'kept' leaves no channel in layer {name!r}. Keep at least one.")
    return kept


def sort_channels(model: nn.Module, images: Tensor | None = None) -> nn.Module:
    """Return a new, ordinary model whose channels come in the order of their biases, group by group.

    Its answers stay, and a packed file takes fewer bits for biases in order. A group that no layer with biases computes
    stays as it is. `images`, a few, are needed for a network that reads others than (N, 1, 28, 28).
    """
    plain = make_permanent(model)
    groups, ordered = channel_groups(plain, images), copied(plain)
    biases = {name: _biases(plain, group) for name, group in groups.items()}
    _cut(ordered, groups, {name: bias.argsort(stable=True) for name, bias in biases.items() if bias is not None})
    _check_answers(ordered, plain, images)
    return ordered


def _biases(model: nn.Module, group: Group) -> Tensor | None:
    """Return a bias for each channel of a group, of the first of its layers that has one."""
    found = (getattr(model.get_submodule(name), "bias", None) for name in group.layers)
    return next((bias.detach() for bias in found if isinstance(bias, Tensor) and len(bias) == group.size), None)


def _cut(model: nn.Module, groups: dict[str, Group], kept: dict[str, Tensor]) -> None:
    """Keep only these channels of each group, in place: those that a mask keeps, or these places in this order."""
    for name, channels in kept.items():
        group = groups[name]
        order = channels.nonzero().flatten() if channels.dtype == torch.bool else channels
        for layer in map(model.get_submodule, group.producers):
            _select(layer, order, group.size, computed(layer), OUTPUTS)
            _select(layer, order, group.size, fed_back(layer), set())
        for passing in group.norms + group.grouped:
            layer, turns = model.get_submodule(passing), group.turns[passing]
            tensors = [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]
            parts = [Part(key, 0, turns) for key, tensor in tensors if tensor.dim()]
            _select(layer, order, group.size, parts, PASSED_ON)
        for consumer in group.consumers:
            layer = model.get_submodule(consumer)
            _select(layer, order, group.size, read(layer, group.turns[consumer]), INPUTS)


def _select(layer: nn.Module, order: Tensor, size: int, parts: list[Part], numbers: set[str]) -> None:
    """Select some of `size` channels of a layer's tensors, each along its axis, and lower the numbers that count them.

    `order` has their places, in the order in which they then come.
    """
    for key, axis, turns in parts:
        if (tensor := getattr(layer, key, None)) is not None:
            places = torch.arange(tensor.shape[axis]).view(turns, size, -1)  # flattened, a channel has several
            stay = places[:, order].flatten().to(tensor.device)
            tensor.data = _laid_out_as(tensor, tensor.detach().index_select(axis, stay))
    for number in numbers & {*vars(layer)}:
        setattr(layer, number, getattr(layer, number) * len(order) // size)


def _laid_out_as(tensor: Tensor, part: Tensor) -> Tensor:
    """Return a part of a tensor in its memory format: for another, a learner's `view` may be impossible."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.dim())
    if last is None or tensor.stride() != torch.empty_like(tensor, memory_format=last).stride():
        return part.contiguous()
    return torch.empty_like(part, memory_format=last).copy_(part)


def _read(model: nn.Module, group: Group) -> Tensor:
    """Return which channels some layer reads, (size,) bool."""
    present = weights(model)
    parts = ((present[title].value.detach(), part) for title, _, part in _reading(model, group))
    return torch.cat([_by_channel(weight, part, group.size) for weight, part in parts], 1).any(1)


def _check_answers(narrow: nn.Module, whole: nn.Module, images: Tensor | None) -> None:
    """Raise a ParameterError unless a narrower network runs and gives the answers of the whole one."""
    _check_runs(narrow, images)
    check_same_answers(narrow, whole, example_images(images), "made narrower")


def _check_runs(changed: nn.Module, images: Tensor | None) -> None:
    """Raise a ParameterError unless a network can still read the images."""
    try:
        predict(changed, example_images(images))
    except Exception as error:
        raise ParameterError(f"what is left of the network could not run: {own_reason(error)}") from error


def _check_removable(model: nn.Module, name: str, images: Tensor | None) -> None:
    calls = record(model, [name], example_images(images, 1), lambda inputs, output: (*inputs, output))
    shapes = [[tuple(getattr(each, "shape", ())) for each in call] for call in calls.get(name, [])]
    if not shapes or any(len(found) != 2 or found[0] != found[1] for found in shapes):
        came = f"makes {shapes[0][-1]} of {shapes[0][0]}" if shapes else "is never run"
        raise ParameterError(f"module {name!r} must give the shape that it takes. It {came}.")
