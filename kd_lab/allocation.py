"""Give each layer its own setting: scan how much each costs in accuracy, then spend one budget on all."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lab.errors import ParameterError, check_choice, check_kind, check_number, check_whole_number
from kd_lab.evaluation import check_data, check_labels
from kd_lab.models import predict
from kd_lab.parametrizations import weighted_layers

Scan = dict[str, dict[float, float]]


def check_scannable(function: str, model: nn.Module, data: tuple[Tensor, Tensor], argument: str, settings: Any,
                    example: str) -> None:
    """Raise a ParameterError unless the model reads the data, (images, labels), and the settings are a list."""
    check_data(function, model, data)
    check_labels(function, predict(model, data[0][:2]), data[1])
    check_kind(function, argument, settings, (list, tuple, np.ndarray), example)


def scan_layers(model: nn.Module, data: tuple[Tensor, Tensor], settings: list[float],
                change: Callable[[nn.Module, dict[str, float]], nn.Module]) -> Scan:
    """Return by how much the mean cross-entropy rises where one layer alone is changed: {layer: {setting: rise}}.

    `change(model, {layer: setting})` returns a new model in which the layers that are not named are whole.
    """
    whole = _loss(change(model, {}), data)
    return {name: {setting: _loss(change(model, {name: setting}), data) - whole for setting in settings}
            for name in weighted_layers(model)}


def choose_settings(scan: Scan, sizes: Scan, budget: float) -> dict[str, float] | None:
    """Return one setting for each layer, so that the rises of the scan add up to as little as they can.

    `sizes`, {layer: {setting: size}}, none below 0, add up to no more than the budget; None where they can't. That
    rises add up is an assumption. One choice for each layer under one budget is a knapsack, solved exactly layer by
    layer: of the choices so far only those stay that no other one beats in both size and rise.
    """
    front = [(0.0, 0.0, ())]  # size, rise, settings
    for name, rises in scan.items():
        grown = sorted((size + sizes[name][setting], total + rise, (*chosen, setting))
                       for size, total, chosen in front for setting, rise in rises.items()
                       if size + sizes[name][setting] <= budget)
        lowest = [np.inf, *itertools.accumulate((total for _, total, _ in grown), min)]
        front = [each for each, low in zip(grown, lowest, strict=False) if each[1] < low]
    return dict(zip(scan, front[-1][2], strict=True)) if front else None


def check_scan(function: str, scan: Scan, counts: dict[str, int], setting: str, scanner: str) -> None:
    """Raise a ParameterError unless `counts` holds the weights of each layer, and `scan` rises for the same layers."""
    check_kind(function, "counts", counts, dict, "a dict of how many weights each layer has")
    for name, count in counts.items():
        check_whole_number(function, f"counts[{name!r}]", count, "[1, 1e12]")
    if not isinstance(scan, dict) or not scan or not all(isinstance(rises, dict) and rises for rises in scan.values()):
        raise ParameterError(f"{function}(): 'scan' must be {{layer: {{{setting}: rise}}}}, as {scanner}() gives it. "
                             f"Got {scan!r:.80}.")
    for name, rises in scan.items():
        check_choice(function, "layer of the scan", name, list(counts))
        for rise in rises.values():
            check_number(function, "rise in the scan", rise, "(-inf, inf)")


def _loss(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    return F.cross_entropy(predict(model, data[0]), data[1]).item()
