"""Rank the weights by importance, cut at any sparsity, and apply the cut to a model as masks."""

from dataclasses import dataclass
from numbers import Real

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lab.errors import EmptyLayerError, ParameterError, check_choice, check_kind, check_number, check_whole_number
from kd_lab.networks.checks import check_mask, check_shapes, check_tensors
from kd_lab.networks.copies import copied
from kd_lab.networks.layers import Weight, warn_of_whole_weights, weights
from kd_lab.pruning.importance import IMPORTANCES, importances, layer_adaptive

SCOPES = ("global", "per_layer")
SPARSITY_RANGE = "[0, 1)"  # at 1 nothing would be left
Sparsity = float | dict[str, float]


def magnitude_mask(weight: Tensor, sparsity: float) -> Tensor:
    """Return the mask (bool, True keeps) that prunes the given fraction of the weights, the smallest |w| first.

    Exactly round(sparsity · count) are pruned; of equal ones the first. `sparsity` is in [0, 1). Han et al. 2015.
    """
    return _mask("magnitude", sparsity, weight=weight)


def gradient_mask(gradient: Tensor, sparsity: float) -> Tensor:
    """Return the mask that prunes the given fraction of the weights, the smallest |g| first."""
    return _mask("gradient", sparsity, gradient=gradient)


def weight_gradient_mask(weight: Tensor, gradient: Tensor, sparsity: float) -> Tensor:
    """Return the mask that prunes the given fraction of the weights, the smallest |w·g| first.

    |w·g| is how much the loss changes, to first order, when the weight becomes zero (Molchanov et al. 2017).
    """
    return _mask("weight_gradient", sparsity, weight=weight, gradient=gradient)


def random_mask(weight: Tensor, sparsity: float, seed: int = 0) -> Tensor:
    """Return the mask that prunes the given fraction of the weights by chance; the same seed gives the same mask."""
    seed = check_whole_number("seed", seed, "[0, 1000000]")
    return _mask("random", sparsity, torch.Generator().manual_seed(seed), weight=weight)


@dataclass(frozen=True)
class Ranking:
    """The place of every weight among those that it is compared with, 0 for the least important.

    `places` are whole numbers in the shape of each layer's weight; `counts` says among how many each was ranked.
    """

    places: dict[str, Tensor]
    counts: dict[str, int]

    def masks(self, sparsity: Sparsity) -> dict[str, Tensor]:
        """Return the mask (bool, True keeps) of every layer; a layer that `sparsity` leaves out stays whole."""
        cut = check_sparsity("sparsity", sparsity, list(self.places))
        return {name: places >= round(cut.get(name, 0) * self.counts[name]) for name, places in self.places.items()}


def rank(importances: dict[str, Tensor], scope: str = "global") -> Ranking:
    """Rank the weights by importance, among all layers ("global") or each layer's own ("per_layer")."""
    check_choice("scope", scope, list(SCOPES))
    check_kind("importances", importances, dict, "a dict of tensors")
    check_tensors(**importances)
    groups = [importances] if scope == "global" else [{name: values} for name, values in importances.items()]
    places: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    for group in groups:
        flat = torch.cat([values.flatten() for values in group.values()])
        order = torch.empty(len(flat), dtype=torch.int32)
        order[flat.argsort(stable=True)] = torch.arange(len(flat), dtype=torch.int32)
        pieces = order.split([values.numel() for values in group.values()])
        # laid out as the weight is, so that a masked convolution stays as fast
        places |= {
            name: torch.empty_like(values, dtype=torch.int32).copy_(piece.view(values.shape))
            for (name, values), piece in zip(group.items(), pieces, strict=True)
        }
        counts |= dict.fromkeys(group, len(flat))
    return Ranking(places, counts)


class Mask(nn.Module):
    """Multiply a weight by a mask: what was pruned stays zero, whatever the optimizer does to the original."""

    def __init__(self, mask: Tensor):
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        # weight * mask would forget that a convolution is laid out channels_last, and be half as fast
        return weight.clone().mul_(self.mask)


def set_masks(model: nn.Module, masks: dict[str, Tensor]) -> None:
    """Mask the weights of the named layers, in place; a layer that is masked already gets the new mask instead."""
    present = weights(model)
    check_kind("masks", masks, dict, "a dict of masks by layer")
    for name, mask in masks.items():
        check_choice("name of a layer", name, list(present))
        check_mask(f"the mask of layer {name!r}", mask, present[name].value)
    for name, mask in masks.items():
        _set_mask(present[name], mask)


def _set_mask(weight: Weight, mask: Tensor) -> None:
    with torch.inference_mode(False):  # in which nothing can be made that is trained later
        own = mask.clone()  # whatever the caller does with it
    if earlier := weight.parametrization(Mask):
        earlier.mask = own
    else:
        weight.parametrize(Mask(own))


@torch.inference_mode(False)  # in which no copy could be trained later
def lift_masks(model: nn.Module) -> nn.Module:
    """Return a new model whose masks, where it has any, let everything through; warn of weights that can have none."""
    weights(model)  # names a model that can't be copied
    warn_of_whole_weights(model)
    lifted = copied(model)
    for weight in weights(lifted).values():
        if mask := weight.parametrization(Mask):
            mask.mask = torch.ones_like(mask.mask)
    return lifted


def prune(
    model: nn.Module,
    sparsity: Sparsity,
    importance: str = "magnitude",
    scope: str = "global",
    *,
    data: tuple[Tensor, Tensor] | None = None,
    seed: int = 0,
) -> nn.Module:
    """Return a new model with masks that keep the most important weights (soft pruning); biases are never pruned.

    `sparsity` is the fraction in [0, 1) of the weights that become zero or, with scope "per_layer", one for each layer
    by name. `data`, (images, labels) from the training part, is needed for importance by gradients. All weights are
    ranked again: those that an earlier mask had pruned may come back (make_permanent keeps them out).
    """
    check_sparsity("sparsity", sparsity, list(weights(model)), scope)
    lifted = lift_masks(model)
    return _prune_by(importances(lifted, importance, data, seed), lifted, sparsity, scope)


def n_m_mask(weight: Tensor, n: int = 2, m: int = 4) -> Tensor:
    """Return the mask that keeps the n largest |w| of every m consecutive weights along the inputs of a row.

    A convolution's row is flattened; of an incomplete last group, at most n stay. Mishra et al. 2021, arXiv 2104.08378.
    """
    check_tensors(weight=weight)
    m = check_whole_number("m", m, "[2, 1000]")
    n = check_whole_number("n", n, f"[1, {m - 1}]")
    check_shapes("'weight' must be (outputs, inputs, …)", lambda shape: len(shape) > 1, weight)
    rows = weight.detach().abs().flatten(1)
    groups = F.pad(rows, (0, -rows.shape[1] % m), value=-1).unflatten(1, (-1, m))  # (outputs, groups, m)
    places = groups.argsort(dim=2, stable=True).argsort(dim=2)
    kept = (places >= m - n).flatten(1)[:, : rows.shape[1]].reshape(weight.shape)
    return torch.empty_like(weight, dtype=torch.bool).copy_(kept)  # laid out as the weight is


def prune_n_m(model: nn.Module, n: int = 2, m: int = 4) -> nn.Module:
    """Return a new model with masks that keep n of every m consecutive weights; earlier masks are lifted first."""
    pruned = lift_masks(model)
    sizes = importances(pruned, "magnitude")
    set_masks(pruned, {name: _n_m_mask(weight, sizes[name], n, m) for name, weight in weights(pruned).items()})
    return pruned


def _n_m_mask(weight: Weight, size: Tensor, n: int, m: int) -> Tensor:
    """Return the N:M mask for the sizes of a weight, along the inputs of each of its outputs."""
    if weight.output_axis == 0:
        return n_m_mask(size, n, m)
    return _swap(n_m_mask(_swap(size, weight.module.groups), n, m), weight.module.groups)


def _swap(weight: Tensor, groups: int) -> Tensor:
    """Return (outputs, inputs / groups, …) of a transposed convolution's (inputs, outputs / groups, …), or back."""
    return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)


def prune_layer_adaptive(model: nn.Module, sparsity: float) -> nn.Module:
    """Return a new model with masks that keep the weights of largest `layer_adaptive` magnitude, over all layers.

    Earlier masks are lifted first. Where much is pruned this spares the small layers that a global threshold empties.
    """
    check_fraction("sparsity", sparsity)
    lifted = lift_masks(model)
    sizes = importances(lifted, "magnitude")
    return _prune_by({name: layer_adaptive(size) for name, size in sizes.items()}, lifted, sparsity, "global")


def _prune_by(importances: dict[str, Tensor], lifted: nn.Module, sparsity: Sparsity, scope: str) -> nn.Module:
    """Mask the least important weights of a model whose masks are lifted, in place, and return it."""
    masks = rank(importances, scope).masks(sparsity)
    check_left(f"sparsity {sparsity} leaves no weight in layer", masks, scope)
    set_masks(lifted, masks)
    return lifted


def check_fraction(argument: str, sparsity: float) -> float:
    """Return a sparsity as Python's own number; raise a ParameterError unless it is in [0, 1)."""
    if isinstance(sparsity, Real) and not isinstance(sparsity, bool) and sparsity == 1:
        raise ParameterError(f"{argument!r} must be below 1, a number in {SPARSITY_RANGE}. Got {sparsity!r}.")
    return check_number(argument, sparsity, SPARSITY_RANGE)


def check_sparsity(
    argument: str, sparsity: Sparsity, names: list[str], scope: str = "per_layer", kind: str = "layer"
) -> dict[str, float]:
    """Return the sparsity of each; raise a ParameterError unless it is a fraction in [0, 1), or one for some by name.

    Only with `scope` "per_layer", one of SCOPES, may it be one for each; `kind` says what the names are of.
    """
    check_choice("scope", scope, list(SCOPES))
    if not isinstance(sparsity, dict):
        return dict.fromkeys(names, check_fraction(argument, sparsity))
    for name in sparsity:
        check_choice(argument, name, names)
    cut = {name: check_fraction(f"{argument}[{name!r}]", value) for name, value in sparsity.items()}
    if scope == "global":
        raise ParameterError(
            f"{argument!r} for each {kind} and 'scope' \"global\" exclude each other: "
            f'one threshold over all {kind}s leaves no choice for one. Use scope="per_layer".'
        )
    return cut


def check_left(problem: str, masks: dict[str, Tensor], scope: str) -> None:
    """Raise an EmptyLayerError that tells the problem, with the name behind it, where a mask keeps nothing."""
    advice = "Lower it, or use scope 'per_layer'." if scope == "global" else "Lower it."
    for name, mask in masks.items():
        if not mask.any():
            raise EmptyLayerError(f"{problem} {name!r}. {advice}")


def _mask(importance: str, sparsity: float, generator: torch.Generator | None = None, **tensors: Tensor) -> Tensor:
    check_tensors(**tensors)  # first: the two may be swapped
    sparsity = check_fraction("sparsity", sparsity)
    check_shapes(f"{' and '.join(tensors)} must have one shape", lambda *shapes: len({*shapes}) == 1, *tensors.values())
    values = IMPORTANCES[importance](tensors.get("weight"), tensors.get("gradient"), generator)
    return rank({"": values}).masks(sparsity)[""]
