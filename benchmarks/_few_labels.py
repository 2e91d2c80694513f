"""Learn digits from 100 and from 1,000 labels: alone, after pre-training without labels, distilled over the unlabelled.

Five draws of the labels, each with initial weights and batches of its own, and one pre-trained encoder, which ships.
Settings were chosen on the validation part; no training here has seen a label but those that were drawn.
"""

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor, nn

from benchmarks._campaign import Campaign, campaign, error
from kd_lab.checkpoints import load_pretrained
from kd_lab.cost import count_parameters
from kd_lab.data import Mnist, Split
from kd_lab.distillation import DistillationLoss, with_answers
from kd_lab.formats import network_file_bytes
from kd_lab.networks.copies import copied
from kd_lab.networks.zoo import build_model
from kd_lab.pretraining import RandomViews, few_labels
from kd_lab.pruning import hard_prune, prune_channels
from kd_lab.quantization import quantize_weights
from kd_lab.results import Record, load_results
from kd_lab.training import Data, train

NETWORK, LAST, COUNTS = "cnn", "fc2", (100, 1000)
WHOLE = {"epochs": 1, "steps_per_epoch": 100, "learning_rate": 3e-3, "weight_decay": 0.1, "batch_size": 50}
VIEWS = WHOLE | {"steps_per_epoch": 300}
ANSWERS = WHOLE | {"steps_per_epoch": 60, "learning_rate": 3e-2}  # of the last layer
TEACHERS = {100: "pretrained", 1000: "pretrained_views"}  # the better one on the validation part
NARROWER = {"conv1": 0.5, "conv2": 0.5, "fc1": 0.55}  # shares of the channels and units that the student is without
TEMPERATURE = 0.5  # below 1: the answers of a teacher that has seen few labels are too unsure of themselves
DISTILLING = {"epochs": 1, "learning_rate": 5e-3, "batch_size": 128}
NUM_BITS = 4


def few_label_figures(rerun: bool, workers: int | None = None, dask: str | None = None) -> dict[str, dict[str, float]]:
    """Print the table and return the figures; with `rerun`, make the record first, which takes about five minutes.

    Those of 100 labels are test errors in percent; of 1,000 labels the student's test accuracy and its parameters.
    """
    if rerun:
        with campaign("few_labels", workers, dask) as running:
            for count in COUNTS:
                running.keep(f"labels{count}", measure(count, running))
    return score(load_results("few_labels"))


def measure(count: int, running: Campaign) -> dict:
    """Return the settings, and for each seed the errors of every way with so many labels."""
    recipe = {"whole": WHOLE, "views": VIEWS, "answers": ANSWERS, "teacher": TEACHERS[count], "narrower": NARROWER}
    recipe |= {"temperature": TEMPERATURE, "distilling": DISTILLING}
    return {"recipe": recipe, "seeds": running.seeds(f"labels{count}", errors_of, count=count)}


def errors_of(count: int, seed: int, data: Mnist) -> dict[str, dict[str, float]]:
    """Return the errors of one seed's networks in percent, with parameters and bytes."""
    few, encoder = few_labels(data.train, count, seed), load_pretrained(NETWORK)
    models = {
        "scratch": fit(build_model(NETWORK, seed), few, seed, WHOLE),
        "scratch_views": fit(nn.Sequential(RandomViews(), build_model(NETWORK, seed)), few, seed, VIEWS)[1],
        "whole": fit(encoder, few, seed, WHOLE),
        "pretrained": fit_answers(encoder, few, seed),
    }
    models["pretrained_views"] = fit(nn.Sequential(RandomViews(), models["pretrained"]), few, seed, VIEWS)[1]
    teacher = models[TEACHERS[count]]
    pruned = hard_prune(prune_channels(teacher, NARROWER))
    models["pruned"] = fit(pruned, few, seed, WHOLE)
    models["distilled"] = distil_unlabelled(pruned, teacher, seed, data)
    models["quantized"] = quantize_weights(models["distilled"], NUM_BITS)
    found = {way: measured(model, data) for way, model in models.items()}
    print(f"{count} labels, seed {seed}: {[each['test_error'] for each in found.values()]} %", flush=True)
    return found


def measured(model: nn.Module, data: Mnist) -> dict[str, float]:
    """Return a network's test error in percent, its parameters and the bytes of its file."""
    sizes = {"parameters": count_parameters(model), "bytes": network_file_bytes(model)}
    return {"test_error": error(model, data.test), **sizes}


def fit(model: nn.Module, few: Split, seed: int, settings: dict) -> nn.Module:
    """Train on a few labels; they are the validation part as well, since no others may be seen."""
    return train(model, few, F.cross_entropy, validation=few, seed=seed, progress=False, **settings)[0]


def fit_answers(encoder: nn.Module, few: Split, seed: int) -> nn.Module:
    """Train the last layer alone: a few labels would change what the others have learned for the worse."""
    frozen = copied(encoder)
    for name, parameter in frozen.named_parameters():
        parameter.requires_grad_(name.startswith(LAST))
    return fit(frozen, few, seed, ANSWERS).requires_grad_(True)


def distil_unlabelled(student: nn.Module, teacher: nn.Module, seed: int, data: Mnist) -> nn.Module:
    """Train a student by what a teacher answers to all training images; it sees random views of them."""
    parts = [answered(teacher, part.images) for part in (data.train, data.validation)]
    seen, loss = nn.Sequential(RandomViews(), student), DistillationLoss(TEMPERATURE, alpha=0)
    return train(seen, parts[0], loss, validation=parts[1], seed=seed, progress=False, **DISTILLING)[0][1]


def answered(teacher: nn.Module, images: Tensor) -> Data:
    """Return images with a teacher's answers; zeros stand for the labels, which are not known."""
    return with_answers(teacher, (images, torch.zeros(len(images), dtype=torch.long)))


def score(recorded: Record) -> dict[str, dict[str, float]]:
    """Print the mean test errors in percent, and return the figures."""
    ways = [way for way in recorded.names("labels100") if way != "recipe"]
    errors = {count: {way: recorded.errors(f"labels{count}", way) for way in ways} for count in COUNTS}
    parameters = {way: recorded.figures("labels1000", way, "parameters").mean for way in ways}
    rows = [[way, *(f"{errors[count][way]:.2f}" for count in COUNTS), parameters[way]] for way in ways]
    print(tabulate(rows, ["test error, %", *(f"{count:,} labels" for count in COUNTS), "parameters"]))
    return {
        "labels100": {way: errors[100][way].mean for way in ways},
        "labels1000": {"student": 100 - errors[1000]["distilled"].mean, "parameters": parameters["distilled"]},
    }
