"""Draw two students that learn, taught and on labels alone, and the softened answer to one digit."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from torch import Tensor

from kd_lab.checkpoints import student_recipe
from kd_lab.distillation import soft_targets
from kd_lab.evaluation import Accuracy
from kd_lab.panels.canvas import Canvas, digit_picture, new_figure
from kd_lab.panels.measurement import Comparison, title_of

SIZE = (800, 380)  # pixels
TICKS = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)  # of accuracy
LOWEST, HIGHEST = 0.05, 0.992  # a student that knows more is drawn there
DIGIT_SIZE, DIGIT_LEFT, DIGIT_TOP = 4, 432, 120
COLOR, GREY, DARK = "#c2410c", "#9ca3af", "#1f2937"


class Distillation(NamedTuple):
    """Hold everything that a taught student depends on."""

    temperature: float
    alpha: float
    width: int
    images: int


@dataclass(frozen=True)
class Progress:
    """Hold how far a student has come: its accuracy at each point, and its logits (N, 10) on the validation images.

    `kept`, the point whose weights it has in the end, counted from 1, is None until then.
    """

    accuracies: tuple[float, ...] = ()
    logits: Tensor | None = None
    kept: int | None = None

    @property
    def finished(self) -> bool:
        """Return whether the training is over."""
        return self.kept is not None


@dataclass(frozen=True)
class DistillationAnswer:
    """Hold what was measured at one setting of the distillation panel; `test`, of all three, once it is read."""

    setting: Distillation
    digit: int
    taught: Progress
    labelled: Progress
    training: bool
    test: list[Accuracy] | None = None


class DistillationPicture:
    """Hold the figure and everything that moves on it; images, labels and the teacher's logits are of validation."""

    def __init__(self, images: Tensor, labels: Tensor, teacher_logits: Tensor):
        self._images, self._labels, self._teacher_logits = images, labels, teacher_logits
        figure = new_figure(*SIZE)
        teacher = Accuracy.of(teacher_logits.argmax(1) == labels)
        moving = [
            *self._add_curves(figure.add_axes((0.1, 0.135, 0.41, 0.76)), teacher.value),
            *self._add_answers(figure.add_axes((0.725, 0.135, 0.17, 0.76))),
        ]
        self._canvas = Canvas(figure, moving)

    def png(self, answer: DistillationAnswer) -> bytes:
        """Return the picture of an answer."""
        recipe = student_recipe(answer.setting.images)
        points, steps = recipe["epochs"], recipe["epochs"] * recipe["steps_per_epoch"]
        self._caption.set_text(
            f"training ({steps:,} steps of {recipe['batch_size']} images)"
            if answer.training
            else "this view trains nothing"
        )
        for progress, (line, point) in zip((answer.taught, answer.labelled), self._lines, strict=True):
            shares = np.arange(1, len(progress.accuracies) + 1) / points
            line.set_data(shares, progress.accuracies)
            kept = slice(progress.kept - 1, progress.kept) if progress.finished else slice(0)
            point.set_data(shares[kept], progress.accuracies[kept])
        place = self._place(answer)
        self._set_answers(answer, place)
        return self._canvas.png(digit_picture(self._images[place], DIGIT_SIZE), DIGIT_LEFT, DIGIT_TOP)

    def title(self, answer: DistillationAnswer) -> str:
        """Return the setting and its accuracy in a line; where nothing is trained, how unsure the teacher is."""
        temperature, alpha, *_ = answer.setting
        if not answer.training:
            others = soft_targets(self._teacher_logits[self._place(answer)], temperature)
            others[answer.digit] = 0  # 1 less this one would be 0 where it is nearly 1
            gives = f"gives {100 * others.sum():.2g} % to other digits than {answer.digit}"
            return f"T = {temperature:g}: the teacher {gives}"
        setting = f"T = {temperature:g}, alpha {alpha:g}"
        if answer.taught.logits is None:
            return f"{setting}: nothing is trained yet"
        done = len(answer.taught.accuracies) / student_recipe(answer.setting.images)["epochs"]
        setting += "" if answer.taught.finished else f", {100 * done:.0f} % trained"
        return title_of(
            setting, Comparison(answer.taught.logits.argmax(1), self._teacher_logits.argmax(1), self._labels)
        )

    def _place(self, answer: DistillationAnswer) -> int:
        """Return the place of the first image of a digit."""
        return self._labels.tolist().index(answer.digit)

    def _add_curves(self, axes: Axes, teacher: float) -> list[Artist]:
        def known(accuracy):  # the errors on a logarithmic scale, upside down: 70 % and 99 % can both be read
            return -np.log(1 - np.clip(accuracy, 0, HIGHEST))

        axes.set_yscale("function", functions=(known, lambda value: 1 - np.exp(-value)))
        axes.set(xlim=(0, 1.02), ylim=(LOWEST, HIGHEST), ylabel="accuracy on validation images")
        axes.set_yticks(TICKS, [f"{100 * tick:.0f} %" for tick in TICKS])
        axes.set_xticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
        axes.set_title(
            "student taught (orange) and on labels alone (grey);\na large dot: the weights that are kept", fontsize=9
        )
        axes.grid(alpha=0.3)
        axes.axhline(teacher, color=DARK, linestyle="--", linewidth=1)
        axes.text(0.02, teacher, f"teacher {100 * teacher:.2f} %", fontsize=8, color=DARK, va="bottom")
        self._lines = [
            (
                *axes.plot([0.1], [0.5], ".-", color=color, linewidth=1.2, markersize=4),
                *axes.plot([0.1], [0.5], "o", color=color, markersize=7),
            )
            for color in (COLOR, GREY)
        ]
        self._caption = axes.text(0.5, -0.145, "training", ha="center", transform=axes.transAxes)
        return [self._caption, *(artist for pair in reversed(self._lines) for artist in pair)]

    def _add_answers(self, axes: Axes) -> list[Artist]:
        axes.set(xlim=(0, 1), ylim=(9.6, -0.6))
        axes.set_yticks(range(10), range(10))
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        axes.tick_params(axis="y", length=0)
        axes.set_title("softened answer of the teacher (dark, in %)\nand of the student taught (orange)", fontsize=9)
        self._teacher = axes.barh(np.arange(10) - 0.15, np.ones(10), 0.4, color=DARK)
        self._student = axes.barh(np.arange(10) + 0.25, np.ones(10), 0.2, color=COLOR)
        self._numbers = [axes.text(1.06, place, "", fontsize=8, va="center") for place in range(10)]
        self._formula = axes.text(0.5, -0.145, "", ha="center", transform=axes.transAxes)
        self._label = axes.text(-0.68, 0.26, "", ha="center", transform=axes.transAxes)
        return [*self._teacher, *self._student, *self._numbers, self._formula, self._label]

    def _set_answers(self, answer: DistillationAnswer, place: int) -> None:
        """Show what teacher and student answer to one image, at the temperature."""
        temperature = answer.setting.temperature
        teacher = soft_targets(self._teacher_logits[place], temperature).tolist()
        self._formula.set_text(f"softmax(logits / {temperature:g})")
        self._label.set_text(f"label {answer.digit}")
        logits = answer.taught.logits
        student = [0] * 10 if logits is None else soft_targets(logits[place], temperature).tolist()
        for digit in range(10):
            self._teacher[digit].set_width(teacher[digit])
            self._student[digit].set_width(student[digit])
            share = 100 * teacher[digit]  # in percent
            self._numbers[digit].set_text(f"{share:.1f} %" if share >= 0.05 else f"{share:.0e} %")
            self._numbers[digit].set_fontweight("bold" if digit == answer.digit else "normal")
