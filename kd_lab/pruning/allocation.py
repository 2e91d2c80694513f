"""Choose each layer's sparsity by itself: scan how sensitive every layer is, then spend one budget."""

import numpy as np
import torch.nn.functional as F
from scipy.optimize import LinearConstraint, milp
from torch import Tensor, nn

from kd_lab.errors import ParameterError, check_choice, check_number
from kd_lab.evaluation import check_data, check_labels
from kd_lab.models import predict
from kd_lab.parametrizations import weighted_layers
from kd_lab.pruning.masks import ALLOWED, prune

Scan = dict[str, dict[float, float]]


def sensitivity_scan(model: nn.Module, data: tuple[Tensor, Tensor], sparsities: list[float]) -> Scan:
    """Return by how much the mean cross-entropy rises where one layer alone is pruned: {layer: {sparsity: rise}}.

    `data`, (images, labels), is from the validation part; a sparsity of 0, which costs nothing, is always there.
    """
    check_data("sensitivity_scan", model, data)
    check_labels("sensitivity_scan", predict(model, data[0][:2]), data[1])
    for sparsity in sparsities:
        check_number("sensitivity_scan", "sparsities", sparsity, ALLOWED)
    dense = _loss(model, data)
    return {name: {0.0: 0.0} | {sparsity: _loss(prune(model, {name: sparsity}, scope="per_layer"), data) - dense
                                for sparsity in sparsities} for name in weighted_layers(model)}


def allocate(scan: Scan, counts: dict[str, int], sparsity: float) -> dict[str, float]:
    """Return a sparsity for each layer, so that the rises of the scan add up to as little as they can.

    `counts` are the weights of each layer; together at least the fraction `sparsity` of them goes. That rises add up is
    an assumption. One choice for each layer under one budget is a knapsack, which scipy solves exactly.
    """
    check_number("allocate", "sparsity", sparsity, ALLOWED)
    for name in scan:
        check_choice("allocate", "layer of the scan", name, list(counts))
    choices = [(name, pruned) for name, rises in scan.items() for pruned in rises]
    one_each = [[name == layer for name, _ in choices] for layer in scan]
    weights = np.array([counts[name] * pruned for name, pruned in choices])
    budget = sparsity * sum(counts.values())
    solved = milp([scan[name][pruned] for name, pruned in choices], integrality=np.ones(len(choices)), bounds=(0, 1),
                  constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(weights, budget - 1e-6)])
    if solved.x is None:
        most = sum(max(rises) * counts[name] for name, rises in scan.items()) / sum(counts.values())
        raise ParameterError(f"allocate(): a sparsity of {sparsity} is out of reach: with the largest sparsity of "
                             f"every layer in the scan it is {most:.3f}. Scan higher ones.")
    return {name: pruned for (name, pruned), chosen in zip(choices, solved.x, strict=True) if chosen > 0.5}


def _loss(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    return F.cross_entropy(predict(model, data[0]), data[1]).item()
