"""Choose each layer's sparsity by itself: scan how sensitive every layer is, then spend one budget."""

from torch import Tensor, nn

from kd_lab.allocation import Scan, check_scan, check_scannable, choose_settings, scan_layers
from kd_lab.errors import ParameterError, check_number
from kd_lab.pruning.masks import ALLOWED, prune


def sensitivity_scan(model: nn.Module, data: tuple[Tensor, Tensor], sparsities: list[float]) -> Scan:
    """Return by how much the mean cross-entropy rises where one layer alone is pruned: {layer: {sparsity: rise}}.

    `data`, (images, labels), is from the validation part; a sparsity of 0, which costs nothing, is always there. Masks
    are lifted first, as by prune.
    """
    check_scannable(model, data, "sparsities", sparsities, "a list of fractions, as in [0.5, 0.9]")
    for sparsity in sparsities:
        check_number("sparsities", sparsity, ALLOWED)
    scan = scan_layers(model, data, sparsities, lambda model, chosen: prune(model, chosen, scope="per_layer"))
    return {name: {0.0: 0.0} | rises for name, rises in scan.items()}


def allocate(scan: Scan, counts: dict[str, int], sparsity: float) -> dict[str, float]:
    """Return a sparsity for each layer, so that the rises of the scan add up to as little as they can.

    `counts` are the weights of each layer; together at least the fraction `sparsity` of them goes (choose_settings).
    """
    check_number("sparsity", sparsity, ALLOWED)
    check_scan(scan, counts, "sparsity", "sensitivity_scan")
    for rises in scan.values():
        for pruned in rises:
            check_number("sparsity in the scan", pruned, ALLOWED)
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
