"""Prune two networks from five seeds by each importance and scope, without any training after; recorded in results/.

Takes about ten minutes; networks that are not in the cache are trained first (another ten).
"""

from statistics import mean

from tabulate import tabulate

from benchmarks import record
from kd_lab.checkpoints import load_trained
from kd_lab.data import Mnist, load_mnist
from kd_lab.evaluation import accuracy, paired_difference
from kd_lab.networks.layers import weighted_layers
from kd_lab.pruning import IMPORTANCES, SCOPES, prune

NETWORKS = ("lenet300", "cnn")
SEEDS = range(5)
SPARSITIES = (0.5, 0.8, 0.9)
GRADIENT_IMAGES = 1000
SCANNED = 0.9  # the sparsity of the one layer that is pruned in the scan


def run() -> dict[str, float]:
    """Print the table, record everything, and return mean losses in points."""
    data = load_mnist()
    networks = {name: {"lost": measure(name, data), "scan": scan(name, data)} for name in NETWORKS}
    record(
        "importance",
        {
            "seeds": list(SEEDS),
            "test_images": len(data.test.labels),
            "sparsities": SPARSITIES,
            "gradient_images": GRADIENT_IMAGES,
            "scanned": SCANNED,
            "networks": networks,
        },
    )
    rows = [
        [name, importance, scope, sparsity, mean(lost), min(lost), max(lost)]
        for name in NETWORKS
        for (importance, scope, sparsity, lost) in lines(networks[name]["lost"])
    ]
    headers = ["network", "importance", "scope", "sparsity", "points lost", "least", "most"]
    print(tabulate(rows, headers, floatfmt=".2f"))
    return {
        f"importance.{name}.{importance}.{scope}.{sparsity}": lost
        for name, importance, scope, sparsity, lost, *_ in rows
    }


def measure(name: str, data: Mnist) -> dict:
    """Return the points of test accuracy that each importance, scope and sparsity loses, one for each seed."""
    lost = {
        importance: {scope: {str(sparsity): [] for sparsity in SPARSITIES} for scope in SCOPES}
        for importance in IMPORTANCES
    }
    for seed in SEEDS:
        model = load_trained(name, seed)
        baseline = accuracy(model, data.test).value
        for importance, scope, sparsity, found in lines(lost):
            pruned = prune(model, sparsity, importance, scope, data=data.train[:GRADIENT_IMAGES], seed=seed)
            found.append(round(100 * (baseline - accuracy(pruned, data.test).value), 2))
        print(f"{name}, seed {seed}: pruned", flush=True)
    return lost


def lines(lost: dict) -> list[tuple]:
    """Return importance, scope, sparsity and the figures of the seeds, for each combination."""
    return [
        (importance, scope, float(sparsity), found)
        for importance, scopes in lost.items()
        for scope, sparsities in scopes.items()
        for sparsity, found in sparsities.items()
    ]


def scan(name: str, data: Mnist) -> dict[str, list[float]]:
    """Return the points of validation accuracy lost where one layer alone is pruned by magnitude, for each seed."""
    models = [load_trained(name, seed) for seed in SEEDS]
    return {
        layer: [
            round(
                -100
                * paired_difference(prune(model, {layer: SCANNED}, scope="per_layer"), model, data.validation).value,
                2,
            )
            for model in models
        ]
        for layer in weighted_layers(models[0])
    }
