"""Prune with care over five seeds: sizes at no loss, least squares, half a CNN, lottery tickets; recorded in results/.

Scores the record again, and measures the halved CNN's speed here and now; --rerun makes the record anew, which takes
about two hours. Settings were chosen on the validation part, that of the tickets among several by how tickets fared;
the test part is read once for each network reported.
"""

import copy
import math
from collections.abc import Callable
from statistics import mean

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import nn

from benchmarks._campaign import SEEDS, Campaign, answers, campaign, error
from kd_lab.checkpoints import load_trained
from kd_lab.cost import count_nonzeros, count_parameters, latency
from kd_lab.data import Mnist
from kd_lab.networks.layers import weighted_layers
from kd_lab.networks.zoo import build_model
from kd_lab.pruning import cubic_sparsities, hard_prune, prune, prune_channels, prune_least_squares, rewind
from kd_lab.pruning.schedules import gradual_steps
from kd_lab.results import Record, load_results
from kd_lab.training import History, train

NO_LOSS = 0.3  # points: the most that the bad end of the interval may lie below the dense networks
RECIPES = {  # last_epochs are those at each factor, times fewer parameters
    "lenet300": {
        "steps": 6,
        "last_epochs": {"12": 6, "30": 20, "50": 20},
        "settings": {"learning_rate": 2e-3, "weight_decay": 0.2, "batch_size": 128},
    },
    "lenet5": {
        "steps": 4,
        "last_epochs": {"12": 4, "30": 4, "50": 4},
        "settings": {"learning_rate": 2e-3, "weight_decay": 0.1, "batch_size": 128},
    },
}
HALF_RECIPE = {"epochs": 1, "learning_rate": 2e-3, "weight_decay": 0.1, "batch_size": 128}
LAYOUTS, TURNS = ("channels_last", "contiguous_format"), 5
EVERY_LAYER = 0.8  # the sparsity at which least squares is set against magnitude
CALIBRATION = 2000  # training images
TICKET = {"epochs": 73, "steps_per_epoch": 100, "batch_size": 60, "learning_rate": 1.2e-3, "schedule": "constant"}
TICKET_SPARSITY = {"fc1": 0.79, "fc2": 0.79, "fc3": 0.54}  # the last layer half as hard, as in Frankle & Carbin 2019


def run(rerun: bool, workers: int | None = None, dask: str | None = None) -> dict[str, float]:
    """Print the tables and return the figures; with `rerun`, make the record first."""
    if rerun:
        with campaign("pruning", workers, dask) as running:
            for part in (compress, at_once, half_cnn, least_squares, tickets):
                running.keep(part.__name__, part(running))
    recorded = load_results("pruning")
    figures = {}
    for part in (score_compressed, score_at_once, score_half_cnn, score_least_squares, score_tickets):
        figures |= part(recorded)
    return figures


def compress(running: Campaign) -> dict:
    """Return for each network, seed and factor which test images are read wrongly, and how many parameters are left."""
    found = running.grid("compress", compress_seed, name=RECIPES)
    return {name: {"recipe": RECIPES[name], "seeds": seeds} for name, seeds in found.items()}


def compress_seed(name: str, seed: int, data: Mnist) -> dict[str, dict]:
    """Prune one network gradually from factor to factor, and fine-tune it longer at each."""
    recipe, dense, fine_tune = RECIPES[name], load_trained(name, seed), fine_tuning(name, seed, data)
    model, reached, found = dense, 0.0, {"1": score(dense, dense, data)}
    for factor, last_epochs in recipe["last_epochs"].items():
        sparsity = sparsity_for(dense, int(factor))
        *_, model = gradual_steps(model, cubic_sparsities(sparsity, recipe["steps"], reached), fine_tune, prune)
        model, reached = fine_tune(model, last_epochs), sparsity
        found[factor] = {"sparsity": sparsity, **score(model, dense, data)}
        print(f"{name}, seed {seed}, {factor}×: {found[factor]['validation_error']} % on validation", flush=True)
    return found


def fine_tuning(name: str, seed: int, data: Mnist) -> Callable[[nn.Module, int], nn.Module]:
    """Return the function that trains a pruned network of this name for some epochs, one if nothing is said."""

    def fine_tune(model: nn.Module, epochs: int = 1) -> nn.Module:
        return train(
            model,
            data.train,
            F.cross_entropy,
            validation=data.validation,
            epochs=epochs,
            seed=seed,
            progress=False,
            **RECIPES[name]["settings"],
        )[0]

    return fine_tune


def at_once(running: Campaign) -> dict:
    """Return for each seed what lenet300 comes to if it is pruned in one step and trained for as many epochs."""
    return {"lenet300": running.seeds("at_once", at_once_seed, name="lenet300")}


def at_once_seed(name: str, seed: int, data: Mnist) -> dict[str, dict]:
    """Prune the dense network to each factor in one step; the epochs are those that compress had spent by then."""
    dense, recipe, epochs, found = load_trained(name, seed), RECIPES[name], 0, {}
    for factor, last_epochs in recipe["last_epochs"].items():
        epochs += recipe["steps"] + last_epochs
        pruned = prune(dense, sparsity_for(dense, int(factor)))
        found[factor] = score(fine_tuning(name, seed, data)(pruned, epochs), dense, data)
        print(f"{name}, seed {seed}, {factor}× at once: {found[factor]['validation_error']} %", flush=True)
    return found


def sparsity_for(model: nn.Module, factor: float) -> float:
    """Return the sparsity of the weights that leaves one parameter of `factor`; the biases all stay."""
    weights = sum(layer.weight.numel() for layer in weighted_layers(model).values())
    return 1 - (count_parameters(model) / factor - (count_parameters(model) - weights)) / weights


def score(model: nn.Module, dense: nn.Module, data: Mnist) -> dict:
    """Return how much smaller a model is, its errors in percent, and the test images that it reads wrongly."""
    return {"factor": round(count_parameters(dense) / count_nonzeros(model), 2), **answers(model, data)}


def half_cnn(running: Campaign) -> dict:
    """Return for each seed the test answers of the CNN and of one with half its channels, fine-tuned for one epoch."""
    return {"recipe": HALF_RECIPE, "seeds": running.seeds("half_cnn", half_cnn_seed)}


def half_cnn_seed(seed: int, data: Mnist) -> dict:
    """Return the test answers of one seed's CNN and of half of it."""
    dense = load_trained("cnn", seed)
    model, _ = train(
        half_channels(dense),
        data.train,
        F.cross_entropy,
        validation=data.validation,
        seed=seed,
        progress=False,
        **HALF_RECIPE,
    )
    return {"dense": score(dense, dense, data), "half": score(model, dense, data)}


def half_channels(dense: nn.Module) -> nn.Module:
    """Return the CNN with half of the channels of both convolutions really removed, those of the smallest weights."""
    return hard_prune(prune_channels(dense, {"conv1": 0.5, "conv2": 0.5}))


def least_squares(running: Campaign) -> dict:
    """Return for each seed the points lost on the test part where every layer loses the same share, untrained after."""
    found = running.seeds("least_squares", least_squares_seed)
    lost = {method: [each[method] for each in found] for method in found[0]}
    return {"sparsity": EVERY_LAYER, "calibration_images": CALIBRATION, "lost": lost}


def least_squares_seed(seed: int, data: Mnist) -> dict[str, float]:
    """Return the points that one seed's network loses by each method."""
    dense = load_trained("lenet300", seed)
    pruned = {
        "magnitude": prune(dense, EVERY_LAYER, scope="per_layer"),
        "least_squares": prune_least_squares(dense, EVERY_LAYER, data.train.images[:CALIBRATION]),
    }
    return {method: round(error(model, data.test) - error(dense, data.test), 2) for method, model in pruned.items()}


def tickets(running: Campaign) -> dict:
    """Return for each seed the validation losses, every hundred steps, of dense network, ticket and control."""
    return {"recipe": TICKET, "sparsity": TICKET_SPARSITY, "seeds": running.seeds("tickets", tickets_seed)}


def tickets_seed(seed: int, data: Mnist) -> dict[str, list[float]]:
    """Return the validation losses of one seed's networks."""
    found = {
        name: [round(loss, 4) for loss in history.validation_loss]
        for name, history in ticket_histories(seed, data).items()
    }
    print(f"tickets, seed {seed}: {reached(found)}", flush=True)
    return found


def ticket_histories(seed: int, data: Mnist) -> dict[str, History]:
    """Train, prune and rewind; then train the ticket, and its masks on other initial weights."""

    def fit(model: nn.Module) -> tuple[nn.Module, History]:
        return train(
            model, data.train, F.cross_entropy, validation=data.validation, seed=seed, progress=False, **TICKET
        )

    initial, other = build_model("lenet300", seed), build_model("lenet300", seed + len(SEEDS))
    model, dense = fit(initial)
    pruned = prune(model, TICKET_SPARSITY, scope="per_layer")
    return {"dense": dense, "ticket": fit(rewind(pruned, initial))[1], "control": fit(rewind(pruned, other))[1]}


def reached(losses: dict[str, list[float]]) -> dict[str, int | None]:
    """Return after how many steps each came down to the dense network's best validation loss, None if it never did."""
    return {
        name: next(
            (TICKET["steps_per_epoch"] * (epoch + 1) for epoch, loss in enumerate(row) if loss <= min(losses["dense"])),
            None,
        )
        for name, row in losses.items()
    }


def score_compressed(recorded: Record) -> dict[str, float]:
    """Print error and interval for each network and factor; the largest factor at no loss is that of any network."""
    rows, figures, best = [], {}, {}
    for name in RECIPES:
        dense = recorded.errors("compress", name, 1)
        figures[f"pruning.{name}.dense_error"] = dense.mean
        for factor in recorded.part("compress", name, "recipe", "last_epochs"):
            pruned = recorded.errors("compress", name, factor)
            gain = dense - pruned
            low, high = gain.interval
            rows.append([name, f"{factor}×", dense.mean, pruned.mean, pruned.low, pruned.high, gain.mean, low, high])
            figures |= {
                f"pruning.{name}.x{factor}_error": pruned.mean,
                f"pruning.{name}.x{factor}_gain": gain.mean,
                f"pruning.{name}.x{factor}_gain_low": low,
            }
            if low >= -NO_LOSS:
                best[name] = int(factor)
    headers = ["network", "smaller", "dense error, %", "mean", "lowest", "highest", "gain, points", "from", "to (95 %)"]
    print(tabulate(rows, headers, floatfmt=".2f"))
    return (
        figures
        | {f"pruning.{name}.max_ratio_at_no_loss": factor for name, factor in best.items()}
        | {"pruning.max_ratio_at_no_loss": max(best.values(), default=1)}
    )


def score_at_once(recorded: Record) -> dict[str, float]:
    """Print what pruning in steps gains over pruning at once, with as much training."""
    figures = {}
    for factor in recorded.names("at_once", "lenet300"):
        more = recorded.errors("at_once", "lenet300", factor) - recorded.errors("compress", "lenet300", factor)
        print(f"lenet300, {factor}×: in steps rather than at once gains {more:+.2f} points")
        figures[f"pruning.lenet300.x{factor}_gain_of_steps"] = more.mean
    return figures


def score_half_cnn(recorded: Record) -> dict[str, float]:
    """Print what half of the channels save now, on this machine, and what they cost in the record."""
    speedups = {}
    for batch_size in (1, 256):
        dense, half = halved_times(batch_size)
        print(f"cnn, {batch_size} images, ms by layout: {dense} dense, {half} with half its channels")
        speedups |= {
            f"speedup_b{batch_size}": min(dense.values()) / min(half.values()),
            f"speedup_b{batch_size}_channels_last": dense["channels_last"] / half["channels_last"],
        }
    more = recorded.errors("half_cnn", "half") - recorded.errors("half_cnn", "dense")
    print(f"after one epoch it makes {more:+.2f} points more errors")
    figures = {**speedups, "error_delta": more.mean, "error_delta_high": more.interval[1]}
    return {f"pruning.cnn_half.{key}": value for key, value in figures.items()}


def halved_times(batch_size: int) -> list[dict[str, float]]:
    """Return the milliseconds of the CNN and of half of it by memory layout, the best of turns that they take.

    Which layout is faster depends on the widths and the batch: a user would take the faster one for either network.
    """
    dense = load_trained("cnn")
    times = [{}, {}]
    for _ in range(TURNS):
        for network, found in zip((dense, half_channels(dense)), times, strict=True):
            for layout in LAYOUTS:
                model = copy.deepcopy(network).to(memory_format=getattr(torch, layout))
                found[layout] = min(found.get(layout, math.inf), round(1000 * latency(model, batch_size), 4))
    return times


def score_least_squares(recorded: Record) -> dict[str, float]:
    """Print what both methods lose, and return the ratio of the means."""
    lost = {method: recorded.figures("lost", method) for method in recorded.names("least_squares", "lost")}
    for method, points in lost.items():
        print(f"{recorded.part('least_squares', 'sparsity'):.0%} of every layer by {method}: {points:.2f} points lost")
    return {"pruning.obs_loss_ratio": lost["least_squares"].mean / lost["magnitude"].mean}


def score_tickets(recorded: Record) -> dict[str, float]:
    """Print the steps that each needed for the dense network's best validation loss, and return ticket over dense."""
    losses = [{name: run[name] for name in ("dense", "ticket", "control")} for run in recorded.runs("tickets")]
    steps = [reached(each) for each in losses]
    print(tabulate(steps, "keys", missingval="never"))
    return {"pruning.ticket_iterations_ratio": mean(row["ticket"] / row["dense"] for row in steps)}
