"""A recurrent network and a transformer: dense, taught by the CNN, and compressed; five seeds each."""

import torch
from tabulate import tabulate
from torch import nn

from benchmarks._campaign import SEEDS, Campaign, scores
from kd_lab.checkpoints import RECIPES, load_trained
from kd_lab.compression import CompressionResult, Prune, PruneUnits, Quantize, compress
from kd_lab.cost import count_macs, count_nonzeros, count_parameters, latency
from kd_lab.data import Mnist
from kd_lab.distillation import DistillationLoss, with_answers
from kd_lab.networks import build_model
from kd_lab.results import PerSeed, Record
from kd_lab.training import train

FAMILIES = {"rnn": "lstm", "vit": "vit"}
TEACHER, TEMPERATURE, ALPHA = "cnn", 4.0, 0.1
STAGES = {
    "lstm": [PruneUnits(0.5, epochs=8), Prune(0.345, steps=1, epochs=4), Quantize(8, epochs=1)],
    "vit": [PruneUnits(0.5, epochs=6), Prune(0.635, steps=2, epochs=2), Quantize(8, epochs=1)],
}
FINE_TUNING = {"learning_rate": 3e-3, "batch_size": 128}
BATCH_SIZES, TURNS = (1, 256), 5
WAYS, COSTS = ("dense", "compressed"), ("nonzeros", "parameters", "macs")
HEADER = ["network", "dense", "taught by `cnn`, points", "compressed, points"]
HEADER += ["fewer non-zero, kept, MACs", "bytes of the file", "times as fast for 256 images"]


def family_campaign(running: Campaign) -> None:
    """Record what each seed of both families gives."""
    for part, name in FAMILIES.items():
        for seed, found in zip(SEEDS, running.seeds(part, family_run, name=name), strict=True):
            running.keep(f"{part}_{seed}", found)


def family_run(name: str, seed: int, data: Mnist) -> dict:
    """Return what one seed's network gives on labels alone, taught by the CNN, and compressed."""
    dense = load_trained(name, seed)
    teacher = load_trained(TEACHER)
    compressed = compress(dense, teacher, data, STAGES[name], alpha=ALPHA, seed=seed, progress=False, **FINE_TUNING)
    return {
        "dense": {**scores(dense, data), **costs(dense)},
        "distilled": scores(taught(name, seed, data), data),
        "compressed": {**scores(compressed.model, data), **costs(compressed.model), **packed(compressed)},
        "speedups": speedups(dense, compressed.model),
    }


def taught(name: str, seed: int, data: Mnist) -> nn.Module:
    """Return the network trained as on labels, from the same initial weights, but taught by the CNN as well."""
    teacher = load_trained(TEACHER)
    parts = with_answers(teacher, data.train), with_answers(teacher, data.validation)
    loss, student = DistillationLoss(TEMPERATURE, ALPHA), build_model(name, seed)
    return train(student, parts[0], loss, validation=parts[1], seed=seed, progress=False, **RECIPES[name])[0]


def costs(model: nn.Module) -> dict[str, int]:
    """Return what a network costs."""
    return {"parameters": count_parameters(model), "nonzeros": count_nonzeros(model), "macs": count_macs(model)}


def packed(compressed: CompressionResult) -> dict[str, int]:
    """Return the bytes of the file of what is left."""
    return {"bytes": list(compressed.bytes.values())[-1]}


def speedups(dense: nn.Module, compressed: nn.Module) -> dict[str, float]:
    """Return how many times faster what is left is, by batch size, on one thread of the worker; measured in turn."""
    torch.set_num_threads(1)
    found = {}
    for batch_size in BATCH_SIZES:
        turns = [[latency(model, batch_size) for model in (dense, compressed)] for _ in range(TURNS)]
        whole, left = (min(times) for times in zip(*turns, strict=True))
        found[str(batch_size)] = round(whole / left, 2)
    return found


def family_rows(recorded: Record) -> list[list[str]]:
    """Return for each family what its seeds give, as means with their intervals; points are of test accuracy."""
    rows = []
    for part, name in FAMILIES.items():
        dense, compressed = ({key: recorded.figures(part, way, key).mean for key in COSTS} for way in WAYS)
        fewer = ", ".join(f"{dense[key] / compressed[key]:.2f}" for key in COSTS)
        points = [f"{gain(recorded, part, way):+.2f}" for way in ("distilled", "compressed")]
        faster = f"{recorded.figures(part, 'speedups', '256').mean:.1f}"
        accuracy = f"{100 - recorded.errors(part, 'dense').mean:.2f} %"
        rows.append([f"`{name}`", accuracy, *points, fewer, f"{recorded.figures(part, 'bytes').mean:,.0f}", faster])
    return rows


def gain(recorded: Record, part: str, way: str) -> PerSeed:
    """Return by how many points a family's network is better than the dense one, seed by seed."""
    return recorded.errors(part, "dense") - recorded.errors(part, way)


def score_families(recorded: Record) -> dict[str, dict[str, float]]:
    """Print both families' figures, and return them by family; differences are in points."""
    print(tabulate(family_rows(recorded), HEADER))
    found = {}
    for part in FAMILIES:
        distilled, compressed = (gain(recorded, part, way) for way in ("distilled", "compressed"))
        found[part] = {
            "dense": 100 - recorded.errors(part, "dense").mean,
            "distilled_gain": distilled.mean,
            "distilled_gain_low": distilled.interval[0],
            "compressed_delta": compressed.mean,
            "compressed_delta_low": compressed.interval[0],
            "speedup": recorded.figures(part, "speedups", "256").mean,
        }
    return found
