"""Choose each layer's sparsity by itself: scan how sensitive every layer is, then spend one budget."""

import numpy as np
import torch.nn.functional as F
from scipy.optimize import LinearConstraint, milp
from torch import Tensor, nn

from kd_lab.errors import ParameterError, check_choice, check_kind, check_number, check_whole_number
from kd_lab.evaluation import check_data, check_labels
from kd_lab.models import predict
from kd_lab.parametrizations import weighted_layers
from kd_lab.pruning.masks import ALLOWED, lift_masks, prune

Scan = dict[str, dict[float, float]]


def sensitivity_scan(model: nn.Module, data: tuple[Tensor, Tensor], sparsities: list[float]) -> Scan:
    """Return by how much the mean cross-entropy rises where one layer alone is pruned: {layer: {sparsity: rise}}.

    `data`, (images, labels), is from the validation part; a sparsity of 0, which costs nothing, is always there. Masks
    are lifted first, as by prune.
    """
    check_data("sensitivity_scan", model, data)
    check_labels("sensitivity_scan", predict(model, data[0][:2]), data[1])
    check_kind("sensitivity_scan", "sparsities", sparsities, (list, tuple, np.ndarray),
               "a list of fractions, as in [0.5, 0.9]")
    for sparsity in sparsities:
        check_number("sensitivity_scan", "sparsities", sparsity, ALLOWED)
    model = lift_masks(model)
    dense = _loss(model, data)
    return {name: {0.0: 0.0} | {sparsity: _loss(prune(model, {name: sparsity}, scope="per_layer"), data) - dense
                                for sparsity in sparsities} for name in weighted_layers(model)}


def allocate(scan: Scan, counts: dict[str, int], sparsity: float) -> dict[str, float]:
    """Return a sparsity for each layer, so that the rises of the scan add up to as little as they can.

    `counts` are the weights of each layer; together at least the fraction `sparsity` of them goes. That rises add up is
    an assumption. One choice for each layer under one budget is a knapsack, which scipy solves exactly.
    """
    check_number("allocate", "sparsity", sparsity, ALLOWED)
    _check_scan(scan, counts)
    choices = [(name, pruned) for name, rises in scan.items() for pruned in rises]
    one_each = [[name == layer for name, _ in choices] for layer in scan]
    weights = np.array([counts[name] * pruned for name, pruned in choices])
    budget = sparsity * sum(counts.values())
    solved = milp([scan[name][pruned] for name, pruned in choices], integrality=np.ones(len(choices)), bounds=(0, 1),
                  constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(weights, budget - 1e-6)],
                  options={"mip_rel_gap": 0})  # else it may stop a little short of the best
    if solved.x is None:
        most = sum(max(rises) * counts[name] for name, rises in scan.items()) / sum(counts.values())
        raise ParameterError(f"allocate(): a sparsity of {sparsity} is out of reach: with the largest sparsity of "
                             f"every layer in the scan it is {most:.3f}. Scan higher ones.")
    return {name: pruned for (name, pruned), chosen in zip(choices, solved.x, strict=True) if chosen > 0.5}


def _check_scan(scan: Scan, counts: dict[str, int]) -> None:
    check_kind("allocate", "counts", counts, dict, "a dict of how many weights each layer has")
    for name, count in counts.items():
        check_whole_number("allocate", f"counts[{name!r}]", count, "[1, 1e12]")
    if not isinstance(scan, dict) or not scan or not all(isinstance(rises, dict) and rises for rises in scan.values()):
        raise ParameterError("allocate(): 'scan' must be {layer: {sparsity: rise}}, as sensitivity_scan() gives it. "
                             f"Got {scan!r:.80}.")
    for name, rises in scan.items():
        check_choice("allocate", "layer of the scan", name, list(counts))
        for pruned, rise in rises.items():
            check_number("allocate", "sparsity in the scan", pruned, ALLOWED)
            check_number("allocate", "rise in the scan", rise, "(-inf, inf)")


def _loss(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    return F.cross_entropy(predict(model, data[0]), data[1]).item()
