"""Repeat the MNIST experiment of Hinton et al. 2015, and the soft tree of Frosst & Hinton 2017; recorded in results/.

Scores the record again; --rerun makes it anew, which takes about two hours. Recipes were settled on 55,000 training and
5,000 validation images; what is reported was then trained on all 60,000, as theirs was, and read the test part once.
The machines of a cluster need the cache folder and this repository in common: students read their teacher there.
"""

import copy
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor, nn

from benchmarks._campaign import Campaign, answers, campaign, packed, scores, unpacked
from benchmarks._trees import tree_campaign
from kd_lab.checkpoints import HINTON_LOGITS, load_hinton_logits
from kd_lab.data import MEAN, STD, Mnist, Split
from kd_lab.distillation import DistillationLoss, with_answers
from kd_lab.evaluation import accuracy, correct_answers
from kd_lab.networks.predictions import predict
from kd_lab.results import PerSeed, Record, load_results
from kd_lab.storage import cache_folder, load_tensors, save_tensors
from kd_lab.training import Data, train

TEACHER_WIDTH, DROPOUT, JITTER = 1200, 0.3, 2  # units; pixels
TEACHER_TRAINING = {"epochs": 100, "learning_rate": 5e-3, "weight_decay": 0.1, "batch_size": 256}
STUDENT_WIDTH = 800
STUDENT_TRAINING = {"learning_rate": 3e-3, "batch_size": 256}
EPOCHS = {"hard": 20, "distilled": 40, "no3": 20}  # on labels the validation loss is smallest after about twelve
TEMPERATURE, ALPHA = 20.0, 0.0
LEFT_OUT = 3
OFFSETS = [offset / 4 for offset in range(81)]  # that may be added to the bias of the 3
TEMPERATURES = (1, 2.5, 4, 8, 20)
WIDTHS = (30, 300)
WIDTH_TRAINING = {"epochs": 10, "learning_rate": 3e-3, "batch_size": 256}
PUBLISHED = {"teacher": 67, "hard": 146, "distilled": 74, "no3": 206, "no3_fixed": 109}  # of 10,000


class Jitter(nn.Module):
    """Shift each image by up to `reach` pixels either way while training, a shift of its own for each."""

    def __init__(self, reach: int):
        super().__init__()
        self.reach = reach

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        side = x.shape[-1] + 2 * self.reach
        padded = F.pad(x, [self.reach] * 4, value=-MEAN / STD).flatten(1)  # with black
        rows, columns = torch.randint(0, 2 * self.reach + 1, (2, len(x), 1))
        corner = torch.arange(x.shape[-1]).reshape(-1, 1) * side + torch.arange(x.shape[-1])
        return padded.gather(1, corner.flatten() + rows * side + columns).reshape(x.shape)


def network(seed: int, width: int, *between: nn.Module) -> nn.Module:
    """Build two hidden layers of `width` units and ten outputs; `between` are what a hidden layer has beside ReLU."""

    def hidden(inputs: int) -> list[nn.Module]:
        return [nn.Linear(inputs, width), *copy.deepcopy(between), nn.ReLU()]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), *hidden(784), *hidden(width), nn.Linear(width, 10))


def run(rerun: bool, workers: int | None = None, dask: str | None = None) -> dict[str, float]:
    """Print the tables and return the figures; with `rerun`, make the record first."""
    if rerun:
        parts = {"teacher": teacher, "students": students, "widths": widths, "trees": tree_campaign}
        with campaign("hinton", workers, dask) as running:
            for name, part in parts.items():
                running.keep(name, part(running))
    recorded = load_results("hinton")
    return {**score_experiment(recorded), **score_widths(recorded), **score_trees(recorded)}


def everything(data: Mnist) -> Split:
    """Return all 60,000 images: those to learn from and those to choose with."""
    return Split(
        torch.cat([data.train.images, data.validation.images]), torch.cat([data.train.labels, data.validation.labels])
    )


def teacher_network() -> nn.Module:
    """Build the teacher; BatchNorm is not in the paper, but halves the epochs that it takes."""
    return network(0, TEACHER_WIDTH, nn.BatchNorm1d(TEACHER_WIDTH), nn.Dropout(DROPOUT))


def train_teacher(part: Split, data: Mnist) -> nn.Module:
    """Return the trained teacher without its jitter; of all 60,000 the validation part is seen in training, too."""
    model = nn.Sequential(Jitter(JITTER), teacher_network())
    return train(model, part, F.cross_entropy, validation=data.validation, progress=False, **TEACHER_TRAINING)[0][1]


def teacher(running: Campaign) -> dict:
    """Train the teacher on 55,000, whose logits ship, and on all 60,000; return what it reads wrongly."""
    chosen, found = running.trials("teacher", teacher_of, [{"images": count} for count in (55_000, 60_000)])
    wrong = chosen["validation_errors"]
    save_tensors(HINTON_LOGITS, unpacked(chosen["logits"]), {"recipe": recipe(), "validation_errors": wrong})
    save_tensors(kept_teacher(), unpacked(found.pop("weights")), {})
    return {"recipe": recipe(), "cpu_minutes": found.pop("cpu_minutes"), "validation_errors_of_55000": wrong, **found}


def teacher_of(images: int, data: Mnist) -> dict:
    """Train the teacher; return its logits if it saw 55,000 images, else its weights, its answers and its minutes.

    These are of the worker's one core.
    """
    start = time.process_time()
    if images == len(data.train.labels):
        chosen = train_teacher(data.train, data)
        logits = {part: predict(chosen, getattr(data, part).images).half() for part in ("train", "validation")}
        wrong = int((predict(chosen, data.validation.images).argmax(1) != data.validation.labels).sum())
        return {"logits": packed(logits), "validation_errors": wrong}
    model = train_teacher(everything(data), data)
    minutes = round((time.process_time() - start) / 60, 1)
    return {"weights": packed(model.state_dict()), "cpu_minutes": minutes, **answers(model, data)}


def recipe() -> dict:
    """Return the settings of the teacher."""
    return {"width": TEACHER_WIDTH, "dropout": DROPOUT, "jitter": JITTER, "training": TEACHER_TRAINING}


def kept_teacher() -> Path:
    """Return where the teacher of the 60,000 is kept for the students that come after it; it does not ship."""
    return cache_folder() / "benchmarks" / "hinton_teacher.safetensors"


def load_teacher() -> nn.Module:
    """Return the teacher of the 60,000."""
    model = teacher_network()
    model.load_state_dict(load_tensors(kept_teacher())[0])
    return model.eval()


def students(running: Campaign) -> dict:
    """Return for each seed what the student reads wrongly: on labels, distilled, without 3s, with its bias mended."""
    (offset,) = running.trials("offset", choose_offset, [{}])
    return {
        "recipe": {
            "width": STUDENT_WIDTH,
            "training": STUDENT_TRAINING,
            "epochs": EPOCHS,
            "temperature": TEMPERATURE,
            "alpha": ALPHA,
            "left_out": LEFT_OUT,
            "offset": offset,
        },
        "seeds": running.seeds("students", student_answers, offset=offset),
    }


def student_answers(seed: int, offset: float, data: Mnist) -> dict:
    """Train the student of one seed in each of the ways, always from the same initial weights."""
    model = load_teacher()
    part, validation = with_answers(model, everything(data)), with_answers(model, data.validation)
    models = {
        "hard": distil_student(seed, "hard", part, validation),
        "distilled": distil_student(seed, "distilled", part, validation),
        "no3": distil_student(seed, "no3", without_digit(part), without_digit(validation)),
    }
    models["no3_fixed"] = mended(models["no3"], offset)
    found = {way: {**answers(model, data), "errors_on_3": missed(model, data.test)} for way, model in models.items()}
    print(f"seed {seed}: done", flush=True)  # these validation images were seen in training
    return found


def distil_student(seed: int, way: str, part: Data, validation: Data) -> nn.Module:
    """Return the student after training on images, labels and the teacher's logits."""
    loss = DistillationLoss(TEMPERATURE, 1.0 if way == "hard" else ALPHA)
    return train(
        network(seed, STUDENT_WIDTH),
        part,
        loss,
        validation=validation,
        seed=seed,
        progress=False,
        epochs=EPOCHS[way],
        **STUDENT_TRAINING,
    )[0]


def without_digit(part: Data) -> Data:
    """Return the images that are no 3, with their labels and logits."""
    kept = part[1] != LEFT_OUT
    return tuple(each[kept] for each in part)


def mended(model: nn.Module, offset: float) -> nn.Module:
    """Return the model with the bias of the 3 raised: it has learned that a 3 never comes."""
    repaired = copy.deepcopy(model)
    with torch.no_grad():
        repaired[-1].bias[LEFT_OUT] += offset
    return repaired


def missed(model: nn.Module, data: Split) -> int:
    """Return how many of the images of the digit that was left out are read wrongly."""
    return int((~correct_answers(model, data))[data.labels == LEFT_OUT].sum())


def choose_offset(data: Mnist) -> float:
    """Return the offset that reads most validation images, for a student of the 55,000 that saw no 3."""
    kept = load_hinton_logits()
    part, validation = (*data.train, kept.train), (*data.validation, kept.validation)
    student = distil_student(0, "no3", without_digit(part), without_digit(validation))
    return max(OFFSETS, key=lambda offset: accuracy(mended(student, offset), data.validation).correct)


def widths(running: Campaign) -> dict:
    """Return for each width, temperature and seed what a student of the 55,000 reads wrongly."""
    found = running.grid("widths", width_scores, width=WIDTHS, temperature=TEMPERATURES)
    return {"recipe": WIDTH_TRAINING, "temperatures": TEMPERATURES, **found}


def width_scores(width: int, temperature: float, seed: int, data: Mnist) -> dict:
    """Return the errors of a student of one width, taught at one temperature."""
    kept = load_hinton_logits()
    part, validation = (*data.train, kept.train), (*data.validation, kept.validation)
    student, _ = train(
        network(seed, width),
        part,
        DistillationLoss(temperature, 0.0),
        validation=validation,
        seed=seed,
        progress=False,
        **WIDTH_TRAINING,
    )
    return scores(student, data)


def score_experiment(recorded: Record) -> dict[str, float]:
    """Print and return the test errors of 10,000, means over the seeds, beside those that were published."""
    wrong = {way: counted(recorded, way) for way in PUBLISHED}
    on_3 = {way: recorded.figures("students", way, "errors_on_3").mean for way in PUBLISHED if way != "teacher"}
    print(f"recipes: {recorded.part('teacher', 'recipe')}\n{recorded.part('students', 'recipe')}")
    print(f"the teacher took {recorded.part('teacher', 'cpu_minutes')} minutes of one core")
    rows = [
        [way, found.mean, found.low, found.high, on_3.get(way, math.nan), PUBLISHED[way]]
        for way, found in wrong.items()
    ]
    headers = ["test errors of 10,000", "mean", "lowest", "highest", "on 1,010 threes", "published"]
    print(tabulate(rows, headers, floatfmt=".1f"))
    return {f"hinton.{way}_errors": found.mean for way, found in wrong.items()}


def counted(recorded: Record, way: str) -> PerSeed:
    """Return how many test images each network read wrongly: the teacher, or the students taught in one way."""
    keys = (way,) if way == "teacher" else ("students", way)
    return PerSeed([len(wrong) for wrong in recorded.runs(*keys, "wrong")])


def score_widths(recorded: Record) -> dict[str, float]:
    """Print and return the mean test errors in percent by width and temperature."""
    found = {width: {t: recorded.errors("widths", width, t).mean for t in TEMPERATURES} for width in WIDTHS}
    rows = [[f"twice {width} units", *row.values()] for width, row in found.items()]
    print(tabulate(rows, ["test error, %, at T =", *TEMPERATURES], floatfmt=".2f"))
    return {
        f"hinton.width_{width}_t_{temperature}_error": value
        for width, row in found.items()
        for temperature, value in row.items()
    }


def score_trees(recorded: Record) -> dict[str, float]:
    """Print and return the test accuracies in percent of the soft trees, by the single leaf, as the paper predicts."""
    ways = [way for way in recorded.names("trees") if way != "recipe"]
    right = {way: PerSeed([100 - error for error in recorded.errors("trees", way).values]) for way in ways}
    rows = [[way, found.mean, found.low, found.high] for way, found in right.items()]
    print(tabulate(rows, ["soft tree, test accuracy, %", "mean", "lowest", "highest"], floatfmt=".2f"))
    print("published (Frosst & Hinton 2017): 94.45 on labels, 96.76 distilled")
    return {
        "hinton.tree_hard_accuracy": right["labels_single_leaf"].mean,
        "hinton.tree_distilled_accuracy": right["distilled_single_leaf"].mean,
        **{f"hinton.tree_{way}": found.mean for way, found in right.items()},
    }
