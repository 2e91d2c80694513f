"""Distil live: from a moved temperature to a trained student, beside the loop that asks the teacher at every batch.

Both train the same student on the same 55,000 images for five epochs, on one thread: a user as PyTorch's quickstart
does, with its batch size, the panel by its recipe. Accuracies are of the validation part.

And what a teacher gains over five seeds, recorded in results/ and scored again; --rerun makes the record anew, which
takes about half an hour.
"""

import re
import time
from statistics import median

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import nn
from torch.utils.data import DataLoader

from benchmarks._campaign import campaign
from benchmarks._features import features_campaign
from benchmarks._gains import gains, score_gains, score_search, search
from benchmarks.train import seconds, usual_loader
from kd_lab.checkpoints import load_trained
from kd_lab.data import Mnist, load_mnist
from kd_lab.evaluation import accuracy
from kd_lab.networks.zoo import small_student
from kd_lab.panels import DistillationPanel
from kd_lab.results import load_results

WIDTH, EPOCHS, ALPHA = 30, 5, 0.1
TEMPERATURES = (2.0, 3.0, 6.0)  # one round for each; the panel begins with 4
USUAL_BATCH_SIZE = 64
POLL = 0.001  # seconds


def run(rerun: bool, workers: int | None = None, dask: str | None = None) -> dict[str, float]:
    """Print the tables and return the figures; with `rerun`, make the record first."""
    if rerun:
        with campaign("distillation", workers, dask) as running:
            for part, measure_part in {"gains": gains, "search": search, "insides": features_campaign}.items():
                running.keep(part, measure_part(running))
    recorded = load_results("distillation")
    return {**score_gains(recorded), **score_search(recorded), **live_figures(load_mnist())}


def live_figures(data: Mnist) -> dict[str, float]:
    """Time both ways in turn, a round for each temperature, and return medians, their ratio and the accuracies."""
    teacher, usual = load_trained("lenet300"), usual_loader(USUAL_BATCH_SIZE)
    panel = DistillationPanel(teacher, data)
    panel.set(width=WIDTH, images=f"{len(data.train.labels):,}", alpha=ALPHA)
    panel.flush()  # which trains the student on labels alone, once for all temperatures
    rounds = [measure(panel, teacher, usual, data, temperature) for temperature in TEMPERATURES]
    panel.close()
    figures = {name: median(each[name] for each in rounds) for name in rounds[0]}
    figures["live_ratio"] = figures["usual_s"] / figures["full_s"]
    print(tabulate([figures.values()], list(figures), floatfmt=".4g"), flush=True)
    return {f"distillation.{name}": value for name, value in figures.items()}


def measure(
    panel: DistillationPanel, teacher: nn.Module, usual: DataLoader, data: Mnist, temperature: float
) -> dict[str, float]:
    """Return the seconds and the validation accuracies of both ways at one temperature."""
    student = small_student(WIDTH)
    usual_s = seconds(lambda: usual_distillation(student, teacher, usual, temperature))
    first_point_s, full_s, percent = move(panel, temperature)
    return {
        "first_point_s": first_point_s,
        "full_s": full_s,
        "usual_s": usual_s,
        "accuracy": percent,
        "usual_accuracy": 100 * accuracy(student, data.validation).value,
    }


def move(panel: DistillationPanel, temperature: float) -> tuple[float, float, float]:
    """Move the temperature; return the seconds to the first point and to the end, and the accuracy shown, in %."""
    start = time.perf_counter()
    panel.set(temperature=temperature)
    while not panel.shown.title.startswith(f"T = {temperature:g}, alpha {ALPHA:g}, "):  # "…, 5 % trained: "
        time.sleep(POLL)
    first_point_s = time.perf_counter() - start
    shown = panel.flush()
    return first_point_s, time.perf_counter() - start, float(re.search(r"([\d.]+) % right", shown.title)[1])


def usual_distillation(student: nn.Module, teacher: nn.Module, loader: DataLoader, temperature: float) -> None:
    """Train with the loop of PyTorch's tutorial on distillation: the teacher answers every batch anew."""
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)
    student.train()
    for _ in range(EPOCHS):
        for images, labels in loader:
            optimizer.zero_grad()
            with torch.no_grad():
                targets = F.softmax(teacher(images) / temperature, dim=-1)
            logits = student(images)
            soft = F.kl_div(F.log_softmax(logits / temperature, dim=-1), targets, reduction="batchmean")
            loss = ALPHA * F.cross_entropy(logits, labels) + (1 - ALPHA) * temperature**2 * soft
            loss.backward()
            optimizer.step()
