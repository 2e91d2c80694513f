"""Give each layer its own setting: scan how much each costs in accuracy, then spend one budget on all."""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.optimize import LinearConstraint, milp
from torch import Tensor, nn

from kd_lab.errors import ParameterError, check_choice, check_kind, check_number, check_whole_number
from kd_lab.evaluation import check_data, check_labels, mean_cross_entropy
from kd_lab.models import predict
from kd_lab.parametrizations import weighted_layers

Scan = dict[str, dict[float, float]]
SMALLEST = np.finfo(float).tiny


def check_scannable(model: nn.Module, data: tuple[Tensor, Tensor], argument: str, settings: Any, example: str) -> None:
    """Raise a ParameterError unless the model reads the data, (images, labels), and the settings are a list."""
    weighted_layers(model)
    check_data(model, data)
    check_labels(predict(model, data[0][:2]), data[1])
    check_kind(argument, settings, (list, tuple, np.ndarray), example)


def scan_layers(
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    settings: list[float],
    change: Callable[[nn.Module, dict[str, float]], nn.Module],
) -> Scan:
    """Return by how much the mean cross-entropy rises where one layer alone is changed: {layer: {setting: rise}}.

    `change(model, {layer: setting})` returns a new model in which the layers that are not named are whole.
    """
    whole = mean_cross_entropy(change(model, {}), data)
    return {
        name: {setting: mean_cross_entropy(change(model, {name: setting}), data) - whole for setting in settings}
        for name in weighted_layers(model)
    }


def choose_settings(scan: Scan, sizes: Scan, budget: float) -> dict[str, float] | None:
    """Return one setting for each layer, so that the rises of the scan add up to as little as they can.

    `sizes`, {layer: {setting: size}}, add up to no more than the budget; None where they can't. That rises add up is an
    assumption. One choice for each layer under one budget is a knapsack, which scipy solves exactly.
    """
    choices = [(name, setting) for name, rises in scan.items() for setting in rises]
    rises, taken = (np.array([table[name][setting] for name, setting in choices]) for table in (scan, sizes))
    one_each = [[name == layer for name, _ in choices] for layer in scan]
    solved = milp(
        rises / max(np.abs(rises).max(), SMALLEST),
        integrality=np.ones(len(choices)),
        bounds=(0, 1),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(taken, ub=budget)],
        options={"mip_rel_gap": 0},
    )  # else it may stop a little short of the best
    if solved.x is None:
        return None
    return {name: setting for (name, setting), chosen in zip(choices, solved.x, strict=True) if chosen > 0.5}


def check_scan(scan: Scan, counts: dict[str, int], setting: str, scanner: str) -> None:
    """Raise a ParameterError unless `counts` holds the weights of each layer, and `scan` rises for the same layers."""
    check_kind("counts", counts, dict, "a dict of how many weights each layer has")
    for name, count in counts.items():
        check_whole_number(f"counts[{name!r}]", count, "[1, 1e12]")
    if not isinstance(scan, dict) or not scan or not all(isinstance(rises, dict) and rises for rises in scan.values()):
        raise ParameterError(
            f"'scan' must be {{layer: {{{setting}: rise}}}}, as {scanner}() gives it. Got {scan!r:.80}."
        )
    for name, rises in scan.items():
        check_choice("layer of the scan", name, list(counts))
        for rise in rises.values():
            check_number("rise in the scan", rise, "(-inf, inf)")
