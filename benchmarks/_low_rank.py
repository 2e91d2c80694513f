"""Put two thin layers in place of one in lenet300, five seeds: nearest to the weight or the output, and fine-tuned.

Ranks, calibration images and the learning rate were chosen on the validation part; the test part is read once for each
network reported.
"""

import time
from collections.abc import Iterator

import torch.nn.functional as F
from tabulate import tabulate
from torch import nn

from benchmarks._campaign import SEEDS, Campaign, answers
from kd_lab.checkpoints import load_trained
from kd_lab.cost import count_macs, file_bytes, latency
from kd_lab.data import Mnist
from kd_lab.distillation import DistillationLoss, with_answers
from kd_lab.factorization import NEAREST, factorize
from kd_lab.results import PerSeed, Record
from kd_lab.training import train

NETWORK, RANKS = "lenet300", {"fc1": 40, "fc2": 20}  # choose_ranks gives these for a fifth of the weights
IMAGES = 2000  # of the training part, for which the output is to be near
TEMPERATURE, ALPHA = 2.0, 0.1
TRAINING = {"epochs": 1, "learning_rate": 3e-4}
BATCH_SIZES, TURNS = (1, 256), 3
LABELS, TAUGHT = "output, then labels", "output, then taught"  # for an epoch


def low_rank_campaign(running: Campaign) -> dict:
    """Return for each seed what each network reads wrongly, what it costs, and how long its epoch took.

    Seconds and milliseconds are measured in the worker, on one thread.
    """
    recipe = {"ranks": RANKS, "images": IMAGES, "temperature": TEMPERATURE, "alpha": ALPHA, "training": TRAINING}
    return {"recipe": {"network": NETWORK, **recipe}, "seeds": running.seeds("low_rank", low_rank_seed)}


def low_rank_seed(seed: int, data: Mnist) -> dict[str, dict]:
    """Return what the networks of one seed come to; the dense one is the teacher."""
    dense, found = load_trained(NETWORK, seed), {}
    for way, model, seconds in networks(dense, seed, data):
        costs = {"macs": count_macs(model), "bytes": file_bytes(model), "cpu_seconds": round(seconds, 2)}
        found[way] = {**costs, **milliseconds(dense, model), **answers(model, data)}
    print(f"low rank, seed {seed}: {[each['validation_error'] for each in found.values()]} %", flush=True)
    return found


def networks(dense: nn.Module, seed: int, data: Mnist) -> Iterator[tuple[str, nn.Module, float]]:
    """Yield each network with its name and the seconds of one core that its training took."""
    yield "dense", dense, 0.0
    for nearest in NEAREST:
        thin = factorize(dense, RANKS, data.train.images[:IMAGES], nearest)
        yield nearest, thin, 0.0
    taught = [with_answers(dense, part) for part in (data.train, data.validation)]
    ways = {
        LABELS: (data.train, data.validation, F.cross_entropy),
        TAUGHT: (*taught, DistillationLoss(TEMPERATURE, ALPHA)),
    }
    for way, (part, validation, loss) in ways.items():
        start = time.process_time()
        tuned, _ = train(thin, part, loss, validation=validation, seed=seed, progress=False, **TRAINING)
        yield way, tuned, time.process_time() - start


def milliseconds(dense: nn.Module, model: nn.Module) -> dict[str, list[float]]:
    """Return the milliseconds of the dense network and of this one by batch size, the best of turns side by side."""
    found = {}
    for size in BATCH_SIZES:
        turns = [[1000 * latency(each, size) for each in (dense, model)] for _ in range(TURNS)]
        found[f"ms_{size}"] = [round(min(times), 4) for times in zip(*turns, strict=True)]
    return found


def score_low_rank(recorded: Record) -> dict[str, float]:
    """Print what each network loses, and return the figures: points of test accuracy lost, and factors saved."""
    lost = {way: lost_points(recorded, way) for way in (*NEAREST, LABELS, TAUGHT)}
    rows = [[way, each.mean, *each.interval, each.low, each.high] for way, each in lost.items()]
    headers = ["lenet300, low rank", "lost, points", "from", "to (95 %)", "lowest", "highest"]
    print(tabulate(rows, headers, floatfmt=".2f"))
    delta, times = lost[TAUGHT], {size: speed(recorded, size) for size in BATCH_SIZES}
    return {
        "delta": delta.mean,
        "delta_low": delta.interval[0],
        "delta_high": delta.interval[1],
        "delta_on_labels": lost[LABELS].mean,
        "lost_by_weight": lost["weight"].mean,
        "lost_by_output": lost["output"].mean,
        "loss_ratio": lost["output"].mean / lost["weight"].mean,
        **{f"{cost}_ratio": saved(recorded, cost) for cost in ("macs", "bytes")},
        **{f"speed_{size}": found.mean for size, found in times.items()},
        "cpu_seconds": recorded.figures("low_rank", TAUGHT, "cpu_seconds").mean,
        "seeds": len(SEEDS),
    }


def lost_points(recorded: Record, way: str) -> PerSeed:
    """Return how many points of test accuracy each seed loses."""
    return recorded.errors("low_rank", way) - recorded.errors("low_rank", "dense")


def saved(recorded: Record, cost: str) -> float:
    """Return how many times smaller a cost is than the dense network's."""
    dense, thin = (recorded.figures("low_rank", way, cost).mean for way in ("dense", TAUGHT))
    return dense / thin


def speed(recorded: Record, size: int) -> PerSeed:
    """Return how many times faster the network of each seed reads a batch of this size."""
    return PerSeed([dense / thin for dense, thin in recorded.runs("low_rank", TAUGHT, f"ms_{size}")])
