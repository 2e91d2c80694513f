"""A sparsity, bits or a rank for each layer: scan what each costs in accuracy, then share one budget among all."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from kd_lab.errors import ParameterError, check_choice, check_kind, check_number, check_that, check_whole_number
from kd_lab.evaluation import check_scorable, mean_cross_entropy
from kd_lab.factorization import EXAMPLES, factorize
from kd_lab.networks.copies import copied
from kd_lab.networks.layers import weights
from kd_lab.pruning.masks import SPARSITY_RANGE, check_fraction, prune
from kd_lab.pruning.schedules import check_returned, keep_finished
from kd_lab.quantization.weights import WEIGHT_BITS_RANGE, quantize_weights
from kd_lab.training import Data

Scan = dict[str, dict[float, float]]
Check = Callable[[str, Any, str], Any]  # check_number or check_whole_number
LISTS = list, tuple, np.ndarray
RANK_RANGE = "[1, 1e6]"
MIN_RISE = np.finfo(float).tiny


def scan_layers(
    model: nn.Module,
    data: Data,
    settings: Sequence[float] | dict[str, Sequence[float]],
    change: Callable[[nn.Module, Any], nn.Module],
) -> Scan:
    """Return by how much the mean cross-entropy rises where one layer alone is changed: {layer: {setting: rise}}.

    `settings` are those of all layers, or of each by name. `change(model, {layer: setting})` returns a new model in
    which the layers that are not named are whole. Of layers whose weights are tied only the first is named. An
    interrupt, or an error in a later layer, ends the scan with the layers that are done.
    """
    check_kind("change", change, Callable, "a function of a model and {layer: setting}")
    data = check_scorable(model, data)

    def loss(chosen: dict[str, Any]) -> float:
        return mean_cross_entropy(check_returned("change", change(copied(model), chosen)), data)

    whole = loss({})
    of_layers = settings if isinstance(settings, dict) else dict.fromkeys(weights(model), settings)
    scan: Scan = {}
    with keep_finished(scan, "layers", len(of_layers)):
        for name, of_layer in of_layers.items():
            scan[name] = {setting: loss({name: setting}) - whole for setting in of_layer}
    return scan


def choose_settings(scan: Scan, sizes: Scan, budget: float) -> dict[str, Any] | None:
    """Return one setting for each layer, so that the rises of the scan add up to as little as they can.

    `sizes`, {layer: {setting: size}}, add up to no more than the budget; None where they can't. That rises add up is an
    assumption. One choice for each layer under one budget is a knapsack, which scipy solves exactly.
    """
    from scipy.optimize import LinearConstraint, milp  # takes a third of a second, and is needed only here

    choices = [(name, setting) for name, rises in scan.items() for setting in rises]
    rises, taken = (np.array([table[name][setting] for name, setting in choices]) for table in (scan, sizes))
    one_each = [[name == layer for name, _ in choices] for layer in scan]
    scaled, whole = rises / max(np.abs(rises).max(), MIN_RISE), np.ones(len(choices))
    constraints = [LinearConstraint(one_each, 1, 1), LinearConstraint(taken, ub=budget)]
    exact = {"mip_rel_gap": 0}  # else it may stop a little short of the best
    solved = milp(scaled, integrality=whole, bounds=(0, 1), constraints=constraints, options=exact)
    if solved.x is None:
        return None
    return {name: setting for (name, setting), chosen in zip(choices, solved.x, strict=True) if chosen > 0.5}


def check_scan(
    scan: Scan, counts: dict[str, int], setting: str, scanner: str, check: Check, allowed: str
) -> tuple[Scan, dict[str, int]]:
    """Return both in Python's own numbers.

    Raises a ParameterError unless `counts` has the weights of each layer, and `scan` rises for the same layers.
    """
    check_kind("counts", counts, dict, "a dict of how many weights each layer has")
    own = {name: check_whole_number(f"counts[{name!r}]", count, "[1, 1e12]") for name, count in counts.items()}
    fits = isinstance(scan, dict) and scan and all(isinstance(rises, dict) and rises for rises in scan.values())
    check_that("scan", scan, fits, f"{{layer: {{{setting}: rise}}}}, as {scanner}() gives it")
    for name in scan:
        check_choice("layer of the scan", name, list(counts))
    checked = {
        name: {
            check(f"{setting} in the scan", value, allowed): check_number("rise in the scan", rise, "(-inf, inf)")
            for value, rise in rises.items()
        }
        for name, rises in scan.items()
    }
    return checked, own


def sensitivity_scan(model: nn.Module, data: Data, sparsities: list[float]) -> Scan:
    """Return by how much the mean cross-entropy rises where one layer alone is pruned: {layer: {sparsity: rise}}.

    `data`, (images, labels), is from the validation part; a sparsity of 0, which costs nothing, is always there. Masks
    are lifted first, as by prune.
    """
    check_kind("sparsities", sparsities, LISTS, "a list of fractions, as in [0.5, 0.9]")
    sparsities = [check_fraction("sparsities", sparsity) for sparsity in sparsities]
    scan = scan_layers(model, data, sparsities, lambda model, chosen: prune(model, chosen, scope="per_layer"))
    return {name: {0.0: 0.0} | rises for name, rises in scan.items()}


def allocate(scan: Scan, counts: dict[str, int], sparsity: float) -> dict[str, float]:
    """Return a sparsity for each layer, so that the rises of the scan add up to as little as they can.

    `counts` are the weights of each layer; together at least the fraction `sparsity` of them goes (choose_settings).
    """
    sparsity = check_fraction("sparsity", sparsity)
    scan, counts = check_scan(scan, counts, "sparsity", "sensitivity_scan", check_number, SPARSITY_RANGE)
    stays = {name: {pruned: counts[name] * (1 - pruned) for pruned in rises} for name, rises in scan.items()}
    total = sum(counts.values())
    chosen = choose_settings(scan, stays, sum(counts[name] for name in scan) - sparsity * total + 1e-6)
    if chosen is None:
        most = sum(max(rises) * counts[name] for name, rises in scan.items()) / total
        raise ParameterError(
            f"a sparsity of {sparsity} is out of reach: with the largest sparsity of "
            f"every layer in the scan it is {most:.3f}. Scan higher ones."
        )
    return chosen


def bit_scan(model: nn.Module, data: Data, bits: list[int]) -> Scan:
    """Return by how much the mean cross-entropy rises where one layer alone is quantized: {layer: {bits: rise}}.

    `data`, (images, labels), is from the validation part. The layer's grids are those of quantize_weights, symmetric,
    one for each output; the other layers are whole.
    """
    fits = isinstance(bits, LISTS) and len(bits) > 0
    check_that("bits", bits, fits, "a list of whole numbers, at least one, as in [2, 4, 8]")
    bits = [check_whole_number("bits", num_bits, WEIGHT_BITS_RANGE) for num_bits in bits]
    return scan_layers(model, data, bits, quantize_weights)


def choose_bits(scan: Scan, counts: dict[str, int], budget: int) -> dict[str, int]:
    """Return bits for each layer of the scan, so that its rises add up to as little as they can (choose_settings).

    `counts` are the weights of each layer, and `budget` is how many bytes their packed codes may take together.
    """
    budget = check_whole_number("budget", budget, "[1, 1e12]")
    scan, counts = check_scan(scan, counts, "bits", "bit_scan", check_whole_number, WEIGHT_BITS_RANGE)
    taken = {name: {bits: -(-counts[name] * bits // 8) for bits in rises} for name, rises in scan.items()}
    chosen = choose_settings(scan, taken, budget)
    if chosen is None:
        least = sum(min(sizes.values()) for sizes in taken.values())
        raise ParameterError(
            f"a budget of {budget} bytes is out of reach: with the fewest bits of "
            f"every layer in the scan the codes take {least}. Scan fewer bits, or allow more bytes."
        )
    return chosen


def rank_scan(
    model: nn.Module, data: Data, ranks: list[int], images: Tensor | None = None, nearest: str = "weight"
) -> Scan:
    """Return by how much the mean cross-entropy rises where one layer alone is two thin ones: {layer: {rank: rise}}.

    `data`, (images, labels), is from the validation part; `images`, from the training part, and `nearest` are those of
    factorize. A layer has those of the ranks that make it smaller, and its full rank, at which it stays whole and costs
    nothing. One that can't be factorized has this alone.
    """
    fits = isinstance(ranks, LISTS) and len(ranks) > 0
    check_that("ranks", ranks, fits, "a list of whole numbers, at least one, as in [10, 20, 40]")
    ranks = sorted({check_whole_number("ranks", rank, RANK_RANGE) for rank in ranks})
    data = check_scorable(model, data)
    examples = data[0][:EXAMPLES]
    images = examples if images is None and nearest != "output" else images
    factorize(model, {}, images, nearest)  # says so where these don't fit
    matrices = {name: tuple(weight.value.flatten(1).shape) for name, weight in weights(model).items()}

    def smaller(name: str) -> list[int]:
        two = _can_be_two(model, name, examples, nearest)
        return [rank for rank in ranks if two and _is_smaller(rank, matrices[name])]

    settings: dict[str, Sequence[float]] = {name: smaller(name) for name in matrices}
    scan = scan_layers(model, data, settings, lambda model, chosen: factorize(model, chosen, images, nearest))
    return {name: rises | {min(matrices[name]): 0.0} for name, rises in scan.items()}


def choose_ranks(scan: Scan, shapes: dict[str, Sequence[int]], budget: int) -> dict[str, int]:
    """Return ranks for `factorize`, so that the rises of the scan add up to as little as they can (choose_settings).

    `shapes` are those of the layers' weights, and `budget` is how many weights the layers of the scan may have together
    (of Linear layers these are the MACs). Layers that stay whole are left out.
    """
    budget = check_whole_number("budget", budget, "[1, 1e12]")
    fits = isinstance(shapes, dict) and all(isinstance(shape, LISTS) and len(shape) > 1 for shape in shapes.values())
    check_that("shapes", shapes, fits, "a dict of the shapes of the layers' weights, as in {'fc1': (300, 784)}")
    sides = {
        name: [check_whole_number(f"shape of {name}", side, "[1, 1e6]") for side in shape]
        for name, shape in shapes.items()
    }
    matrices = {name: (outputs, math.prod(window)) for name, (outputs, *window) in sides.items()}
    counts = {name: math.prod(matrix) for name, matrix in matrices.items()}
    scan, counts = check_scan(scan, counts, "rank", "rank_scan", check_whole_number, RANK_RANGE)
    taken = {
        name: {rank: min(rank * sum(matrices[name]), counts[name]) for rank in rises} for name, rises in scan.items()
    }
    chosen = choose_settings(scan, taken, budget)
    if chosen is None:
        least = sum(min(sizes.values()) for sizes in taken.values())
        raise ParameterError(
            f"a budget of {budget} weights is out of reach: with the smallest rank of "
            f"every layer in the scan there are {least}. Scan smaller ranks, or allow more weights."
        )
    return {name: rank for name, rank in chosen.items() if _is_smaller(rank, matrices[name])}


def _is_smaller(rank: int, matrix: Sequence[int]) -> bool:
    """Return whether two thin layers of a rank have fewer weights than the matrix (outputs, n) of one."""
    return rank * sum(matrix) < math.prod(matrix)


def _can_be_two(model: nn.Module, name: str, images: Tensor, nearest: str) -> bool:
    try:
        factorize(model, {name: 1}, images, nearest)
    except ParameterError:
        return False
    return True
