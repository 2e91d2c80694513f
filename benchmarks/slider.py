"""Time what a slider costs: prune, measure and draw, beside deepcopy, torch's own pruning and a DataLoader.

Both ways prune the same network globally by magnitude at the same sparsities and read the same 5,000 validation images,
on one thread, in turn. The first answer is the panel's own: 1,000 images measured and drawn, tables included.
"""

import copy
import time
from statistics import median

import torch
from tabulate import tabulate
from torch import nn
from torch.nn.utils import prune as torch_prune
from torch.utils.data import DataLoader, Subset

from benchmarks.train import usual_images
from kd_lab.checkpoints import load_trained
from kd_lab.data import Mnist, load_mnist
from kd_lab.networks.layers import weighted_layers
from kd_lab.panels import PruningPanel

SPARSITIES = (0.3, 0.5, 0.7, 0.8, 0.85, 0.9, 0.95)
STEPS = (0.0, 0.01, 0.02, 0.03)  # of the slider at each of these, as in a drag
BATCH_SIZE = 64  # of the DataLoader, as in PyTorch's quickstart
LARGE_BATCH = 1000  # as in PyTorch's MNIST example, where it only evaluates


def run() -> dict[str, float]:
    """Print the table and return the figures."""
    data, validation = load_mnist(), usual_images(part=1)
    figures = {name: compare(name, data, validation) for name in ("lenet300", "cnn")}
    print(
        tabulate([[name, *row.values()] for name, row in figures.items()], ["network", *figures["cnn"]], floatfmt=".1f")
    )
    flat = {f"slider.{name}.{figure}": value for name, row in figures.items() for figure, value in row.items()}
    return flat | {"slider.draw_ms": max(row["draw_ms"] for row in figures.values())}


def compare(name: str, data: Mnist, validation: Subset) -> dict[str, float]:
    """Return medians in milliseconds over the sparsities, and ratios, of both ways in turn."""
    model = load_trained(name)
    usual_model = copy.deepcopy(model).to(memory_format=torch.contiguous_format)  # torch's global pruning needs it
    panel = PruningPanel(model, data)
    panel.flush()  # ranks, curve and the dense network's answers are there, as when a learner moves the slider
    rounds = [one_round(panel, usual_model, sparsity, validation) for sparsity in SPARSITIES]
    panel.close()
    figures = {key: 1000 * median(times[key] for times in rounds) for key in rounds[0]}
    return figures | {
        "full_ratio": figures["usual_ms"] / figures["full_ms"],
        "large_batch_ratio": figures["usual_large_batch_ms"] / figures["full_ms"],
    }


def one_round(panel: PruningPanel, usual_model: nn.Module, sparsity: float, validation: Subset) -> dict[str, float]:
    """Time both ways at one sparsity, in seconds, and see that they answer alike."""
    start = time.perf_counter()
    usual = usual_accuracy(usual_model, sparsity, validation, BATCH_SIZE)
    middle = time.perf_counter()
    usual_accuracy(usual_model, sparsity, validation, LARGE_BATCH)
    times = {"usual_ms": middle - start, "usual_large_batch_ms": time.perf_counter() - middle}
    moves = [our_move(panel, sparsity + step) for step in STEPS]
    ours = moves[0].pop("accuracy")
    assert abs(ours - usual) < 0.005, (ours, usual)  # equal weights at the threshold may go in another order
    return times | {key: median(move[key] for move in moves) for key in moves[0]}


def our_move(panel: PruningPanel, sparsity: float) -> dict[str, float]:
    """Return the accuracy, and the seconds of the first answer, of its drawing and of all 5,000 images, undrawn."""
    start = time.perf_counter()
    answers = (answer for answer in panel.measure(sparsity, "magnitude", "global") if answer)
    first = next(answers)
    measured = time.perf_counter()
    panel.draw(first)
    drawn = time.perf_counter()
    everything = next(answers)
    seconds = time.perf_counter() - drawn
    return {
        "accuracy": everything.comparison.accuracy.value,
        "full_ms": measured - start + seconds,
        "first_ms": drawn - start,
        "draw_ms": drawn - measured,
    }


def usual_accuracy(model: nn.Module, sparsity: float, validation: Subset, batch_size: int) -> float:
    """Prune a copy and measure it as a user would write it."""
    pruned = copy.deepcopy(model)
    layers = [(layer, "weight") for layer in weighted_layers(pruned).values()]
    torch_prune.global_unstructured(layers, torch_prune.L1Unstructured, amount=sparsity)
    correct = 0
    with torch.no_grad():
        for images, labels in DataLoader(validation, batch_size=batch_size):
            correct += (pruned(images).argmax(dim=1) == labels).sum().item()
    return correct / len(validation)
