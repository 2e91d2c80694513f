"""Prune two networks from five seeds by each importance and scope, without any training after; recorded in results/.

Scores the record again; --rerun makes it anew, which takes about ten minutes; networks that are not in the cache are
trained first (another ten).
"""

from statistics import mean

from tabulate import tabulate
from torch import nn

from benchmarks import read, record
from benchmarks._campaign import SEEDS, TEST_IMAGES, Campaign, campaign
from kd_lab.checkpoints import load_trained
from kd_lab.data import Mnist
from kd_lab.evaluation import accuracy, paired_difference
from kd_lab.networks.layers import weighted_layers
from kd_lab.pruning import IMPORTANCES, SCOPES, prune

NETWORKS = ("lenet300", "cnn")
SPARSITIES = (0.5, 0.8, 0.9)
GRADIENT_IMAGES = 1000
SCANNED = 0.9  # the sparsity of the one layer that is pruned in the scan


def run(rerun: bool, workers: int | None = None, dask: str | None = None) -> dict[str, float]:
    """Print the table, and return mean losses in points; with `rerun`, make the record first."""
    if rerun:
        settings = {"sparsities": SPARSITIES, "gradient_images": GRADIENT_IMAGES, "scanned": SCANNED}
        with campaign("importance", workers, dask) as running:
            measured = {"seeds": list(SEEDS), "test_images": TEST_IMAGES, **settings, "networks": networks(running)}
            record("importance", measured)
    recorded = read("importance")["networks"]
    rows = [
        [name, importance, scope, sparsity, mean(lost), min(lost), max(lost)]
        for name in NETWORKS
        for (importance, scope, sparsity, lost) in lines(recorded[name]["lost"])
    ]
    headers = ["network", "importance", "scope", "sparsity", "points lost", "least", "most"]
    print(tabulate(rows, headers, floatfmt=".2f"))
    return {
        f"importance.{name}.{importance}.{scope}.{sparsity}": lost
        for name, importance, scope, sparsity, lost, *_ in rows
    }


def networks(running: Campaign) -> dict:
    """Return for each network what is lost by pruning all of it, and one layer alone; a list has one for each seed."""
    return {name: together(seeds) for name, seeds in running.grid("networks", measure, name=NETWORKS).items()}


def together(seeds: list) -> dict | list:
    """Return the dicts of all seeds as one, with a list of what each has in the place of every figure."""
    if not isinstance(seeds[0], dict):
        return seeds
    return {key: together([each[key] for each in seeds]) for key in seeds[0]}


def measure(name: str, seed: int, data: Mnist) -> dict[str, dict]:
    """Return the points of test accuracy lost by each importance, scope and sparsity, and those of the scan."""
    model = load_trained(name, seed)
    baseline = accuracy(model, data.test).value

    def lost(importance: str, scope: str, sparsity: float) -> float:
        pruned = prune(model, sparsity, importance, scope, data=data.train[:GRADIENT_IMAGES], seed=seed)
        return round(100 * (baseline - accuracy(pruned, data.test).value), 2)

    by_importance = {
        importance: {
            scope: {str(sparsity): lost(importance, scope, sparsity) for sparsity in SPARSITIES} for scope in SCOPES
        }
        for importance in IMPORTANCES
    }
    return {"lost": by_importance, "scan": scan(model, data)}


def scan(model: nn.Module, data: Mnist) -> dict[str, float]:
    """Return the points of validation accuracy lost where one layer alone is pruned by magnitude."""
    pruned = {layer: prune(model, {layer: SCANNED}, scope="per_layer") for layer in weighted_layers(model)}
    return {
        layer: round(-100 * paired_difference(each, model, data.validation).value, 2) for layer, each in pruned.items()
    }


def lines(lost: dict) -> list[tuple]:
    """Return importance, scope, sparsity and the figures of the seeds, for each combination."""
    return [
        (importance, scope, float(sparsity), found)
        for importance, scopes in lost.items()
        for scope, sparsities in scopes.items()
        for sparsity, found in sparsities.items()
    ]
