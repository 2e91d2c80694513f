"""Add to the loss what keeps weights small or near zero, so that pruning finds more to take: train(…, penalty=…).

None of them prunes: a weight near zero is still a weight.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from kd_lab.errors import check_choice, check_kind
from kd_lab.parametrizations import weighted_layers


def l1_penalty(model: nn.Module) -> Tensor:
    """Return Σ|w| of all Linear layers and convolutions; its pull is as strong on a small weight as on a large one."""
    return sum(layer.weight.abs().sum() for layer in weighted_layers(model).values())


def l2_penalty(model: nn.Module) -> Tensor:
    """Return Σw² of all Linear layers and convolutions; its pull, 2w, fades as a weight gets small."""
    return sum(layer.weight.square().sum() for layer in weighted_layers(model).values())


def group_lasso_penalty(model: nn.Module, layers: Sequence[str]) -> Tensor:
    """Return Σ√n·‖w‖₂ over the units or channels of the named layers, each with its n incoming weights.

    Like L1, but a whole unit at a time is drawn to zero: Yuan & Lin 2006; Wen et al. 2016, arXiv 1608.03665.
    """
    check_kind("layers", layers, (list, tuple), "a list of names, as in ['1']")
    present = weighted_layers(model)
    for name in layers:
        check_choice("layers", name, list(present))
    rows = [present[name].weight.flatten(1) for name in layers]
    return sum(row.shape[1] ** 0.5 * row.norm(dim=1).sum() for row in rows)
