"""Distil a network live: train a small student again whenever the temperature moves."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from torch import Tensor, nn

from kd_lab.checkpoints import student_recipe
from kd_lab.data import Mnist, Split
from kd_lab.distillation import DistillationLoss, soft_targets, with_answers
from kd_lab.distillation.answers import check_teacher
from kd_lab.errors import ParameterError
from kd_lab.networks.predictions import predict
from kd_lab.networks.zoo import small_student
from kd_lab.panels.canvas import COLOR, DARK, GREY, WIDTH, Canvas, Traces, digit_picture, new_figure
from kd_lab.panels.controls import Slider, WholeSlider, dropdown
from kd_lab.panels.measurement import Cache, Comparison, counted_costs, dense_network, title_of
from kd_lab.panels.panel import Panel, Shown, side_by_side
from kd_lab.training import train_live

IMAGES = (500, 1000, 2000, 5000, 10_000, 20_000)  # and all that there are
PIXELS, CLASSES = 784, 10  # of the students
CHUNK = 5000  # images that the teacher is asked about at a time, in a tenth of a second
CACHED_STUDENTS = 20  # one of 300 units takes up to 5 MB until it is trained
VIEWS = TRAIN, SOFT_TARGETS = "train a student", "soft targets only"
TAUGHT, LABELLED = "taught", "on labels"
HEIGHT, TABLES_HEIGHT = 360, 250  # in pixels
TICKS = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)  # of accuracy
MIN_ACCURACY, MAX_ACCURACY = 0.05, 0.992  # of the picture; a student that knows more is drawn there
DIGIT_SIZE, DIGIT_LEFT, DIGIT_TOP = 4, 432, 106


class Distillation(NamedTuple):
    """Everything that a taught student depends on."""

    temperature: float
    alpha: float
    width: int
    images: int

    @property
    def keys(self) -> list[tuple]:
        """Return the loss, the width and the number of images of each student."""
        return [(loss, self.width, self.images) for loss in (DistillationLoss(*self[:2]), F.cross_entropy)]


@dataclass(frozen=True)
class Progress:
    """How far a student has come: its accuracy at each point, and its logits (N, 10) on the validation images.

    `kept`, the point whose weights it has in the end, counted from 1, is None until then.
    """

    accuracies: tuple[float, ...] = ()
    kept: int | None = None
    network: nn.Module | None = None
    logits: Tensor | None = None
    comparison: Comparison | None = None  # with the teacher


@dataclass(frozen=True)
class DistillationAnswer:
    """What is known at one setting of the distillation panel."""

    setting: Distillation
    digit: int
    training: bool
    teacher: Comparison
    taught: Progress
    labelled: Progress

    @property
    def comparisons(self) -> dict[str, Comparison | None]:
        """Return what was measured of teacher and students."""
        return {"teacher": self.teacher, TAUGHT: self.taught.comparison, LABELLED: self.labelled.comparison}


class DistillationPanel(Panel):
    """Train a student 784-width-10 live on a teacher's softened answers, beside one that has only the labels.

    Both start with the same weights and see the same batches, by `student_recipe`. `data` is what load_mnist() gives:
    the students see the first training images, and are measured on the validation part; only the button "Reveal test"
    reads the test part. A training that was left goes on where it was when its setting comes back. The view "soft
    targets only" trains nothing: only the answers move with the temperature.
    """

    def __init__(self, teacher: nn.Module, data: Mnist):
        self._teacher, data = dense_network(teacher, data)
        _check_student_fits(self._teacher, data.validation)
        check_teacher(small_student(), self._teacher, data.validation)
        self._data, self._costs = data, counted_costs(self._teacher, data.validation.images)
        self._validation = with_answers(self._teacher, data.validation)
        answers = self._validation[2].argmax(1)
        self._measured = Comparison(answers, answers, data.validation.labels)
        self._train_logits = torch.empty(0, 10)  # the teacher's, as far as they were needed
        self._students = Cache(CACHED_STUDENTS)
        self._drawing = DistillationPicture(*self._validation, self._measured.accuracy.value)
        most = len(data.train.labels)
        counts = [f"{count:,}" for count in (*(count for count in IMAGES if count < most), most)]
        digits = [*map(str, data.validation.labels.unique().tolist())]  # those that there are
        small = {"layout": {"width": "240px"}}
        controls = {
            "temperature": Slider(label="temperature", min=0.5, max=20, step=0.5, value=4),
            "alpha": Slider(label="alpha", step=0.05, value=0.1, **small),
            "width": WholeSlider(label="width", min=5, max=300, value=30, **small),
            "images": dropdown("images", counts, counts[min(2, len(counts) - 1)]),
            "digit": dropdown("digit", digits, "4" if "4" in digits else None),
            "view": dropdown("view", VIEWS),
        }
        super().__init__(controls, (WIDTH, HEIGHT), TABLES_HEIGHT, data.test)

    def measure(
        self, temperature: float, alpha: float, width: int, images: str, digit: str, view: str
    ) -> Iterator[DistillationAnswer]:
        """Yield what is known, and then, as both students learn, what they know after every point of their curves."""
        setting = Distillation(temperature, alpha, width, int(images.replace(",", "")))
        known = [self._students[key].progress if key in self._students else Progress() for key in setting.keys]
        answer = DistillationAnswer(setting, int(digit), view == TRAIN, self._measured, *known)
        yield answer
        if view == SOFT_TARGETS:
            return
        self._ask_teacher(setting.images)
        starts = {key: functools.partial(Student, self._learn(*key)) for key in setting.keys}
        taught, labelled = (self._students.fetch(key, start) for key, start in starts.items())
        while learning := [student for student in (taught, labelled) if student.progress.kept is None]:
            self._teach(min(learning, key=lambda student: len(student.progress.accuracies)))  # the one behind
            answer = replace(answer, taught=taught.progress, labelled=labelled.progress)
            yield answer

    def networks(self, answer: DistillationAnswer) -> list[nn.Module]:
        """Return the teacher and both students, none in the view that trains nothing."""
        return [self._teacher, answer.taught.network, answer.labelled.network] if answer.training else []

    def _ask_teacher(self, count: int) -> None:
        """Ask the teacher about the training images, so many, that it was not asked about before."""
        images = self._data.train.images[len(self._train_logits) : count]
        for chunk in self.steps(images.split(CHUNK) if len(images) else ()):
            self._train_logits = torch.cat([self._train_logits, predict(self._teacher, chunk)])

    def _learn(self, loss: Callable[..., Tensor], width: int, count: int) -> Iterator[Progress]:
        """Yield how far a new student of this width has come with so many images, last with its best weights."""
        parts = slice(None) if isinstance(loss, DistillationLoss) else slice(2)  # labels alone: no teacher's logits
        data = tuple(part[:count] for part in (*self._data.train, self._train_logits))[parts]
        settings = {"validation": self._validation[parts], **student_recipe(count)}
        accuracies: tuple[float, ...] = ()
        for network, history in train_live(small_student(width), data, loss, **settings):
            logits = predict(network, self._data.validation.images)
            comparison = replace(self._measured, answers=logits.argmax(1))
            kept = history.best_epoch if history.seconds else None  # which it has when it is over
            accuracies += () if kept else (comparison.accuracy.value,)
            yield Progress(accuracies, kept, network, logits, comparison)

    def _teach(self, student: "Student") -> None:
        try:
            student.learn()
        except Exception:
            self._students.clear()  # it can't go on, so it must begin again when its setting comes back
            raise

    def draw(self, answer: DistillationAnswer) -> Shown:
        """Draw the picture and write the table."""
        student = _student_costs(answer.setting.width)
        rows = [[name, f"{self._costs[name]:,}", *2 * [f"{cost:,}"]] for name, cost in student.items()]
        table = self.scores(answer, baseline="teacher", reference=LABELLED, costs=rows)
        return Shown(self._drawing.title(answer), self._drawing.png(answer, self.pinned), side_by_side(table))


def _check_student_fits(teacher: nn.Module, validation: Split) -> None:
    """Raise a ParameterError unless a student 784-width-10 reads the same images and gives the same classes."""
    images, classes = validation.images[:1], predict(teacher, validation.images[:1]).shape[1]
    if images.numel() != PIXELS or images.dtype != torch.float32 or classes != CLASSES:
        raise ParameterError(
            f"the student of this panel reads {PIXELS} numbers of torch.float32 and gives {CLASSES} classes. The data "
            f"have images {tuple(images.shape[1:])} of {images.dtype}, and the teacher gives {classes} classes; "
            "distil() teaches a student of your own."
        )


class Student:
    """A training that goes on to the next point of its curve at each call, and how far it has come."""

    def __init__(self, training: Iterator[Progress]):
        self._training, self.progress = training, Progress()

    def learn(self) -> None:
        """Learn until the next point of the curve; after the last, take the weights of the best."""
        self.progress = next(self._training)
        if self.progress.kept:
            self._training = iter(())  # the other one holds the optimizer


@functools.cache
def _student_costs(width: int) -> dict[str, int]:
    return counted_costs(small_student(width))


class DistillationPicture:
    """Two students that learn, and the softened answer to one digit; all arguments are of the validation part."""

    def __init__(self, images: Tensor, labels: Tensor, teacher_logits: Tensor, teacher_accuracy: float):
        self._images, self._labels, self._teacher_logits = images, labels, teacher_logits
        figure = new_figure(HEIGHT)
        curves, answers = figure.add_axes((0.1, 0.14, 0.41, 0.75)), figure.add_axes((0.725, 0.14, 0.17, 0.75))
        self._add_curves(curves, teacher_accuracy)
        self._canvas = Canvas(figure, [self._caption, *self._traces.moving, *self._add_answers(answers)])

    def png(self, answer: DistillationAnswer, pinned: DistillationAnswer | None) -> bytes:
        """Return the picture of an answer."""
        recipe = student_recipe(answer.setting.images)
        steps = f"{recipe['epochs'] * recipe['steps_per_epoch']:,} steps of {recipe['batch_size']} images"
        self._caption.set_text(f"training ({steps})" if answer.training else "this view trains nothing")
        self._traces.show(answer, pinned)
        place = self._place(answer)
        self._set_answers(answer, place)
        return self._canvas.png(digit_picture(self._images[place], DIGIT_SIZE), DIGIT_LEFT, DIGIT_TOP)

    def title(self, answer: DistillationAnswer) -> str:
        """Return the setting and its accuracy in a line; where nothing is trained, how unsure the teacher is."""
        temperature, alpha, *_ = answer.setting
        if not answer.training:
            others = soft_targets(self._teacher_logits[self._place(answer)], temperature)
            others[answer.digit] = 0  # 1 minus this one would be 0 where it is nearly 1
            gives = f"gives {100 * others.sum():.2g} % to other digits than {answer.digit}"
            return f"T = {temperature:g}: the teacher {gives}"
        setting = f"T = {temperature:g}, alpha {alpha:g}"
        if answer.taught.comparison is None:
            return f"{setting}: nothing is trained yet"
        done = len(answer.taught.accuracies) / student_recipe(answer.setting.images)["epochs"]
        setting += "" if answer.taught.kept else f", {100 * done:.0f} % trained"
        return title_of(setting, answer.taught.comparison)

    def _place(self, answer: DistillationAnswer) -> int:
        """Return the place of the first image of a digit."""
        return self._labels.tolist().index(answer.digit)

    def _add_curves(self, axes: Axes, teacher: float) -> None:
        def known(accuracy):  # the errors on a logarithmic scale, upside down: 70 % and 99 % can both be read
            return -np.log(1 - np.clip(accuracy, 0, MAX_ACCURACY))

        axes.set_yscale("function", functions=(known, lambda value: 1 - np.exp(-value)))
        axes.set(xlim=(0, 1.02), ylim=(MIN_ACCURACY, MAX_ACCURACY), ylabel="accuracy on validation images")
        axes.set_yticks(TICKS, [f"{100 * tick:.0f} %" for tick in TICKS])
        axes.set_xticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
        title = "student taught (orange) and on labels alone (grey);\na large dot: the weights that are kept"
        axes.set_title(title, fontsize=9)
        axes.grid(alpha=0.3)
        axes.axhline(teacher, color=DARK, linestyle="--", linewidth=1)
        axes.text(0.02, teacher, f"teacher {100 * teacher:.2f} %", fontsize=8, color=DARK, va="bottom")
        lines = [
            axes.plot([0.1], [0.5], form, color=color, linewidth=1.2, markersize=size)[0]
            for color in (GREY, COLOR)
            for form, size in ((".-", 4), ("o", 7))
        ]
        self._traces = Traces(_curves, *lines)
        self._caption = axes.text(0.5, -0.145, "training", ha="center", transform=axes.transAxes)

    def _add_answers(self, axes: Axes) -> list[Artist]:
        axes.set(xlim=(0, 1), ylim=(9.6, -0.6))
        axes.set_yticks(range(10), range(10))
        axes.set_xticks([0, 0.5, 1], ["0", "50", "100"])
        axes.tick_params(axis="y", length=0)
        axes.set_title("softened answer of the teacher (dark, in %)\nand of the student taught (orange)", fontsize=9)
        self._teacher = axes.barh(np.arange(10) - 0.15, np.ones(10), 0.4, color=DARK)
        self._student = axes.barh(np.arange(10) + 0.25, np.ones(10), 0.2, color=COLOR)
        self._numbers = [axes.text(1.06, place, "", fontsize=8, va="center") for place in range(10)]
        beside = {"ha": "center", "transform": axes.transAxes}
        self._formula, self._label = axes.text(0.5, -0.145, "", **beside), axes.text(-0.68, 0.26, "", **beside)
        return [*self._teacher, *self._student, *self._numbers, self._formula, self._label]

    def _set_answers(self, answer: DistillationAnswer, place: int) -> None:
        """Show what teacher and student answer to one image, at the temperature."""
        temperature, logits = answer.setting.temperature, answer.taught.logits
        teacher = soft_targets(self._teacher_logits[place], temperature).tolist()
        student = [0] * 10 if logits is None else soft_targets(logits[place], temperature).tolist()
        self._formula.set_text(f"softmax(logits / {temperature:g}) (%)")
        self._label.set_text(f"label {answer.digit}")
        for digit in range(10):
            self._teacher[digit].set_width(teacher[digit])
            self._student[digit].set_width(student[digit])
            share = 100 * teacher[digit]  # in percent
            self._numbers[digit].set_text(f"{share:.1f} %" if share >= 0.05 else f"{share:.0e} %")
            self._numbers[digit].set_fontweight("bold" if digit == answer.digit else "normal")


def _curves(answer: DistillationAnswer) -> list[tuple]:
    """Return the x and y of the curve of each student, and of the point that it keeps, the taught one last."""
    points = student_recipe(answer.setting.images)["epochs"]
    curves = []
    for progress in (answer.labelled, answer.taught):
        shares = np.arange(1, len(progress.accuracies) + 1) / points
        kept = slice(0) if progress.kept is None else slice(progress.kept - 1, progress.kept)
        curves += [(shares, progress.accuracies), (shares[kept], progress.accuracies[kept])]
    return curves
