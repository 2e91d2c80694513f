"""The checks of lesson 05, knowledge distillation."""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from kd_lab.checkpoints import load_trained, student_recipe
from kd_lab.distillation import DistillationLoss, distil, distillation_loss, soft_loss, with_answers
from kd_lab.evaluation import PairedDifference, accuracy, paired_difference
from kd_lab.exercises.judging import (
    close,
    exercise,
    expect_keys,
    expect_number,
    expect_numbers,
    expect_tensor,
    mnist,
    wrong_if,
    wrong_if_like,
)
from kd_lab.networks import predict, small_student
from kd_lab.training import train

RECIPE = student_recipe(2000)
SLACK = 0.002  # of a bound on a measured difference: ten images, by which a student of another processor may differ
SEEDS = 5


@exercise(
    "05.1",
    "Two parts: the hard one needs no temperature, the soft one both softened answers. Which of them is the target?",
    'Softened: `(logits / temperature).log_softmax(dim=1)`. `F.kl_div(student, teacher, reduction="batchmean", ...)`.',
    "With `log_target=True` kl_div takes both as logarithms. Times T², times (1 - alpha), plus alpha · cross-entropy.",
)
def whole_loss(answer: Any, draw: Generator) -> None:
    """`my_loss(student_logits, teacher_logits, labels, temperature, alpha)` is the loss of distillation."""
    for temperature, alpha in ((4, 0.0), (4, 1.0), (2.5, 0.3), (8, 0.5)):
        student, teacher = (3 * torch.randn(6, 10, generator=draw) for _ in range(2))
        _loss_of(answer, student, teacher, torch.randint(10, (6,), generator=draw), temperature, alpha)
    far = 300 * torch.randn(6, 10, generator=draw)
    given = answer(far, far.flip(0), torch.arange(6), 1.0, 0.5)
    logarithm = "softmax(...).log() becomes -inf where logits lie far apart. `log_softmax` is exact."
    wrong_if(not torch.isfinite(torch.as_tensor(given)).all(), "logits that lie far apart give no number", logarithm)
    _loss_of(answer, far, far.flip(0), torch.arange(6), 1.0, 0.5)


def _loss_of(answer: Any, student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, alpha: float) -> None:
    """Check the loss of one batch, and that the student can learn from it."""
    student = student.clone().requires_grad_()
    one = "One number for the batch: the mean over the images. kl_div has `reduction` for that."
    given = expect_tensor(torch.as_tensor(answer(student, teacher, labels, temperature, alpha)), (), one)
    expected = distillation_loss(student, teacher, labels, temperature, alpha)
    if close(given.detach(), expected.detach()):
        cut = "Leave out `.detach()`, `.item()` and `no_grad` on the student's side."
        wrong_if(not given.requires_grad, "no gradient reaches the student", cut)
        return
    said = f"at T = {temperature} and alpha = {alpha} the loss is {given:.3f}, not {expected:.3f}"
    mistakes = _loss_mistakes(student.detach(), teacher, labels, temperature, alpha)
    wrong_if_like(given.detach(), {f"{said}: {what}": mistake for what, mistake in mistakes.items()})
    wrong_if(given < 0, f"{said}: it is below zero", "`kl_div` takes the student's *log*-probabilities first.")
    part = "the cross-entropy with the labels" if alpha == 1 else "T² · KL" if alpha == 0 else "a sum of both parts"
    wrong_if(True, said, f"With this alpha it should be {part}. Print both parts and compare with section 1 by hand.")


def _loss_mistakes(
    s: Tensor, t: Tensor, labels: Tensor, temperature: float, alpha: float
) -> dict[str, tuple[Tensor, str]]:
    """Return the losses that common mistakes give, each with its hint, by what is wrong."""
    hard, square = F.cross_entropy(s, labels), temperature**2
    log_p, log_q = (t / temperature).log_softmax(1), (s / temperature).log_softmax(1)
    kl = F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    by_image = ((t / temperature).log_softmax(0), (s / temperature).log_softmax(0))
    over_images = F.kl_div(by_image[1], by_image[0], reduction="batchmean", log_target=True)
    other_way = F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)

    def total(soft: Tensor, hard: Tensor = hard) -> Tensor:
        return alpha * hard + (1 - alpha) * soft

    student_hard = F.kl_div(s.log_softmax(1), log_p, reduction="batchmean", log_target=True)
    teacher_hard = F.kl_div(log_q, t.softmax(1), reduction="batchmean")
    batchmean = '`reduction="batchmean"` divides by the images.'
    return {
        "T² is missing": (total(kl), "Hot answers have weak gradients: times T², the soft part alone (section 3)."),
        "T stands where T² should": (total(temperature * kl), "The gradients shrink as 1/T²."),
        "T² stands before both parts": (square * total(kl), "The cross-entropy isn't softened: T² is for KL alone."),
        "alpha is the wrong way round": (
            (1 - alpha) * hard + alpha * square * kl,
            "alpha = 1 listens to the labels alone.",
        ),
        "KL is the wrong way round": (total(square * other_way), "kl_div(student, teacher): the target comes second."),
        "the student isn't softened": (total(square * student_hard), "Both are divided by T before the softmax."),
        "the teacher isn't softened": (total(square * teacher_hard), "The soft targets are the teacher's at this T."),
        "the labels' part is softened, too": (
            total(square * kl, F.cross_entropy(s / temperature, labels)),
            "Cross-entropy gets the student's own logits, not divided by T.",
        ),
        "the softmax goes over the images": (total(square * over_images), "A row is an image: `dim=1`."),
        "KL is divided by the classes, too": (total(square * kl / s.shape[1]), batchmean),
        "KL is a sum over the images": (total(square * kl * len(s)), batchmean),
        "this is cross-entropy with the soft targets": (
            total(-square * (log_p.exp() * log_q).sum(1).mean()),
            "Its gradient is that of KL, but it isn't 0 where both agree: subtract the teacher's own entropy.",
        ),
        "kl_div has got raw logits": (
            total(square * F.kl_div(s / temperature, log_p.exp(), reduction="batchmean")),
            "Its first argument is log-probabilities: `log_softmax`.",
        ),
        "kl_div has got probabilities first": (
            total(square * F.kl_div(log_q.exp(), log_p.exp(), reduction="batchmean")),
            "The student's must be logarithms: `log_softmax` in place of `softmax`.",
        ),
    }


@exercise(
    "05.2",
    "Which layers behave otherwise in training mode? And which line of a lesson turns gradients off?",
    "Note `teacher.training` first, then `teacher.eval()`; call it under `with torch.no_grad():`.",
    "At the end `teacher.train(was_training)` brings back the mode that you noted.",
)
def frozen_answers(answer: Any, draw: Generator) -> None:
    """`my_answers(teacher, images)` gives logits in evaluation mode, without gradients; the teacher stays as it was."""
    for training in (True, False):
        layers = [nn.Flatten(), nn.Linear(4, 30), nn.BatchNorm1d(30), nn.ReLU(), nn.Dropout(0.5), nn.Linear(30, 3)]
        teacher, images = nn.Sequential(*layers), torch.randn(8, 1, 2, 2, generator=draw)
        for each in teacher.parameters():
            nn.init.normal_(each, generator=draw)
        teacher[2].running_mean.normal_(generator=draw)
        _answers_of(answer, teacher.train(training), images)


def _answers_of(answer: Any, teacher: nn.Module, images: Tensor) -> None:
    """Check the answers of one teacher, and what becomes of it."""
    was, before = teacher.training, copy.deepcopy(teacher.state_dict())
    expected = predict(copy.deepcopy(teacher), images)
    given = expect_tensor(answer(teacher, images), expected.shape, "The logits, one row for each image.")
    modes = {True: "training", False: "evaluation"}
    if not close(given.detach(), expected):
        probabilities = "Hand on the logits: the loss divides them by T before its softmax."
        wrong_if_like(given.detach(), {"these are probabilities": (expected.softmax(1), probabilities)})
        moved = any(not torch.equal(before[name], value) for name, value in teacher.state_dict().items())
        noise = "Dropout and BatchNorm are at work: call `teacher.eval()` before you ask."
        wrong_if(moved or was, f"a teacher that comes in {modes[was]} mode answers in training mode", noise)
        wrong_if(True, "these are not the teacher's logits", "Nothing more than `teacher(images)`, in evaluation mode.")
    attached = (
        "A student would train its teacher, too: ask it under `with torch.no_grad():`, or `.detach()` the result."
    )
    wrong_if(given.requires_grad, "the answers have gradients", attached)
    mode = f"the teacher was in {modes[was]} mode and is in {modes[teacher.training]} mode now"
    wrong_if(
        teacher.training != was, mode, "Note `teacher.training` at the beginning; `teacher.train(noted)` at the end."
    )
    changed = [name for name, value in teacher.state_dict().items() if not torch.equal(before[name], value)]
    wrong_if(changed, f"the teacher's {', '.join(changed)} changed", "It was called in training mode: `.eval()` first.")
    learns = all(each.requires_grad for each in teacher.parameters())
    wrong_if(not learns, "the teacher can't be trained any more", "Leave its `requires_grad` alone: `torch.no_grad()`.")
    globally = "Use `with torch.no_grad():`, which turns them on again behind its last line."
    wrong_if(not torch.is_grad_enabled(), "gradients are turned off for whoever calls it", globally)


@exercise(
    "05.3",
    "A loop over the widths: the reference is trained once, each taught student from the start.",
    "`paired_difference(taught, reference, data.validation).interval[0] >= -0.005`, for the smallest width.",
    "25 units gain more than a point; 10 lose two. One of 15 and 20 passes.",
)
def smallest_student(answer: Any, draw: Generator) -> None:
    """`my_width` is the smallest width of a taught student that is as good as 30 units on labels."""
    width = expect_number(answer, "[1, 1e6]", "A width: 10, 15, 20 or 25.")
    wrong_if(width not in (10, 15, 20, 25), f"{width:g} is none of the widths", "Try 10, 15, 20 and 25 units.")
    here = _as_good(int(width))
    said = f"{width:g} units, taught: {here}"
    estimate = "The estimate may pass, but the bad end of the interval decides: `interval[0]`."
    wrong_if(here.interval[0] < -0.005 - SLACK and here.value > -0.01, said, estimate)
    wrong_if(here.interval[0] < -0.005 - SLACK, said, "That is worse. Which students did you compare, and on what?")
    if width > 10:
        smaller = _as_good(int(width) - 5).interval[0] > -0.005 + SLACK
        wrong_if(smaller, said, f"That is as good, but {width - 5:g} units are, too. Go on downwards.")


def _as_good(width: int) -> PairedDifference:
    """Return what a taught student of this width gains over 30 units on labels."""
    return paired_difference(_student(width, 0.1), _student(30, 1.0), mnist().validation)


@cache
def _student(width: int, alpha: float) -> nn.Module:
    data, teacher = mnist(), load_trained("lenet300")
    settings: dict[str, Any] = {"validation": data.validation[:1000], "progress": False, **RECIPE}
    return distil(small_student(width), teacher, data.train[:2000], temperature=8, alpha=alpha, **settings)[0]


@exercise(
    "05.4",
    "For each of the three names: load the teacher, train `five_students`, and take two means.",
    "`100 * accuracy(student, data.validation).value`, and `soft_loss(...)` of all validation images at T = 8.",
    "Each name has a pair: (mean of five percentages, mean of five losses). The losses lie between 2 and 7.",
)
def best_teacher(answer: Any, draw: Generator) -> None:
    """`my_measured` is a dict: for each teacher, what its students read in percent, and how far they stay from it."""
    names, shape = ["mlp128", "lenet300", "cnn"], 'Return {"mlp128": (percent, apart), "lenet300": …, "cnn": …}.'
    expect_keys(answer, {*names}, shape)
    pairs = {name: expect_numbers(answer[name], 2, "[0, 1e6]", shape) for name in names}
    reads, apart = zip(*pairs.values(), strict=True)
    first = "The percentage comes first, times 100, and then how far the students stay apart."
    wrong_if(max(reads) < 50, f"students that read at most {max(reads):.3g} %", first)
    own = "These are near the teachers' own accuracies. Measure their *students*."
    wrong_if(min(reads) > 95, f"students that read {min(reads):.1f} % and more", own)
    unsquared = "`soft_loss` has T² in it: 64 times as much. Don't divide it out, and don't change T."
    wrong_if(max(apart) < 0.5, f"the students stay {max(apart):.2g} apart at most", unsquared)
    same = "Does your loop hand each teacher to `five_students`, and load it by its name?"
    wrong_if(len({*reads}) < 3, "two teachers have the same students", same)
    turned = not apart[0] < apart[1] < apart[2] or reads[0] < reads[2]
    named = "One teacher's students come nearest to it and read most, another's do neither: are two names swapped?"
    wrong_if(turned, "the teachers come in another order", named)
    name = names[int(torch.randint(3, (), generator=draw))]
    expected = _taught_by(name, DistillationLoss(8, 0.1))
    given, place = pairs[name], ("reads", "stays apart")
    for number, here, far, what in zip(given, expected, (0.5, 0.5), place, strict=True):
        said = f"taught by {name}, a student {what}: {number:.2f}, and here {here:.2f}"
        wrong_if(abs(number - here) > far, said, "T = 8 and alpha = 0.1, all validation images, the mean of five.")


@exercise(
    "05.5",
    "Your loss: `def without_square(logits, labels, answers)`, for `five_students(without_square, teacher)`.",
    "Half of `F.cross_entropy(logits, labels)` plus half of `soft_loss(logits, answers, 20) / 20**2`.",
    "Three means of five accuracies. One of the three is clearly above the other two.",
)
def without_square(answer: Any, draw: Generator) -> None:
    """`my_percent` is a dict of three mean accuracies: with T², without it, and on labels alone."""
    shape = 'Return {"with": percent, "without": percent, "labels": percent}, each one number, the mean of five.'
    expect_keys(answer, {*_losses()}, shape)
    percents = {name: expect_number(answer[name], "[0, 100]", shape) for name in _losses()}
    wrong_if(max(percents.values()) <= 1, "these are fractions", "In percent: times 100.")
    twice = percents["with"] == percents["without"]
    wrong_if(twice, "leaving out T² changes nothing", "`soft_loss` multiplies by T²: divide it by `20**2`.")
    ignored = percents["without"] == percents["labels"]
    wrong_if(ignored, "without T² the students are those on labels", "Both parts have their half: only T² goes.")
    swapped = percents["without"] > percents["with"] + 0.3
    wrong_if(swapped, "without T² they read more than with it", "Are the two swapped? `DistillationLoss` has T² in it.")
    settings = "T = 20, alpha = 0.5 (1 for labels), the lesson's teacher, the mean of five on validation images."
    for name in ("without", ("with", "labels")[int(torch.randint(2, (), generator=draw))]):
        here, _ = _taught_by("lenet300", _losses()[name])
        said = f"{name}: {percents[name]:.2f} %, and here {here:.2f} %"
        divided = f"`soft_loss` is T² · KL: divide it, and nothing else, by `20**2`. {settings}"
        wrong_if(abs(percents[name] - here) > 0.5, said, divided if name == "without" else settings)


def _losses() -> dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    return {"with": DistillationLoss(20, 0.5), "without": _no_square, "labels": DistillationLoss(20, 1.0)}


def _no_square(logits: Tensor, labels: Tensor, answers: Tensor) -> Tensor:
    """Return the loss at T = 20 and alpha 0.5 with T² left out."""
    return 0.5 * F.cross_entropy(logits, labels) + 0.5 * soft_loss(logits, answers, 20) / 20**2


@cache
def _taught_by(name: str, loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> tuple[float, float]:
    """Return how many percent five students read on average, and how far they stay from their teacher at T = 8."""
    data, teacher = mnist(), load_trained(name)
    answered, unseen = (with_answers(teacher, part) for part in (data.train[:2000], data.validation[:1000]))
    settings: dict[str, Any] = RECIPE | {"validation": unseen, "epochs": 10, "progress": False}
    students = [train(small_student(30, seed), answered, loss, **settings)[0] for seed in range(SEEDS)]
    images = data.validation.images
    answers = predict(teacher, images)
    apart = [soft_loss(predict(each, images), answers, 8).item() for each in students]
    return 100 * sum(accuracy(each, data.validation).value for each in students) / SEEDS, sum(apart) / SEEDS
