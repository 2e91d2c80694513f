"""Draw a network on its way through a recipe, taught and on labels alone: its error and the bytes of its file."""

from dataclasses import dataclass
from typing import NamedTuple

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator
from torch import Tensor

from kd_lab.evaluation import Accuracy
from kd_lab.panels.canvas import Canvas, new_figure
from kd_lab.panels.measurement import percent
from kd_lab.pruning import cubic_sparsities

SIZE = (800, 340)  # pixels
COLOR, GREY, DARK = "#c2410c", "#9ca3af", "#1f2937"
ERRORS = (0.5, 1, 2, 5, 10, 20, 50)  # %
SIDE = 0.07  # by so much the two stand apart
PRUNINGS = 4
STAGES = ["start", *["prune"] * PRUNINGS, "fine-tune", "share"]


class RecipeSetting(NamedTuple):
    """Hold everything that a taught network depends on."""

    ratio: float
    temperature: float
    alpha: float
    bits: int


@dataclass(frozen=True)
class Step:
    """Hold what is known of a network after a stage: its answers (N,) on the validation images, and its file."""

    answers: Tensor
    bytes: int
    nonzeros: int


@dataclass(frozen=True)
class RecipeAnswer:
    """Hold the steps that are done at one setting; `test`, of dense, taught and plain, once it is read."""

    setting: RecipeSetting
    taught: tuple[Step, ...]
    plain: tuple[Step, ...]
    test: tuple[Accuracy, ...] | None = None


class RecipePicture:
    """Hold the figure and what moves on it; the labels are those of the validation part."""

    def __init__(self, labels: Tensor, dense: Step, teacher: Accuracy):
        self._labels = labels
        figure = new_figure(*SIZE)
        left, right = figure.add_axes((0.08, 0.2, 0.5, 0.66)), figure.add_axes((0.685, 0.2, 0.3, 0.66))
        self._canvas = Canvas(
            figure,
            [
                *self._add_errors(left, teacher),
                *self._add_bytes(right, dense),
                *self._add_progress(figure.add_axes((0.08, 0.03, 0.905, 0.035))),
            ],
        )

    def png(self, answer: RecipeAnswer) -> bytes:
        """Return the picture of an answer."""
        both = answer.taught, answer.plain
        for steps, offset, (curve, ends), line in zip(both, (-SIDE, SIDE), self._errors, self._bytes, strict=True):
            accuracies = [Accuracy.of(step.answers == self._labels) for step in steps]
            places = [place + offset for place in range(len(steps))]
            curve.set_data(places, [100 - 100 * accuracy.value for accuracy in accuracies])
            ends.set_segments(
                [
                    [(place, 100 - 100 * end) for end in accuracy.interval]
                    for place, accuracy in zip(places, accuracies, strict=True)
                ]
            )
            line.set_data(places, [step.bytes for step in steps])
        for text, sparsity in zip(self._sparsities, cubic_sparsities(answer.setting.ratio, PRUNINGS), strict=True):
            text.set_text(f"{100 * sparsity:.0f} %")
        done = (sum(map(len, both)) - 2) / (2 * len(STAGES) - 2)
        self._bar.set_width(done)
        self._said.set_text("done" if done == 1 else f"{100 * done:.0f} % done")
        return self._canvas.png()

    def title(self, answer: RecipeAnswer) -> str:
        """Return the setting and how the taught network does so far."""
        ratio, temperature, alpha, bits = answer.setting
        setting = f"{100 * ratio:.4g} % pruned, {bits} bit{'s' * (bits > 1)}, T = {temperature:g}, alpha {alpha:g}"
        if len(answer.taught) < len(STAGES):
            return f"{setting}: under way"
        accuracy = Accuracy.of(answer.taught[-1].answers == self._labels)
        return f"{setting}: {percent(accuracy, ' right')} in {answer.taught[-1].bytes:,} bytes"

    def _add_errors(self, axes: Axes, teacher: Accuracy) -> list[Artist]:
        axes.set(yscale="log", ylim=(0.3, 95), ylabel="validation error, %")
        axes.set_yticks(ERRORS, [f"{error:g}" for error in ERRORS])
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_title("after each stage: taught (orange), on labels alone (grey)", fontsize=9)
        axes.axhline(100 - 100 * teacher.value, color=DARK, linestyle="--", linewidth=1)
        axes.text(
            len(STAGES) - 0.6,
            105 - 105 * teacher.value,
            f"teacher {100 - 100 * teacher.value:.2f}",
            fontsize=8,
            color=DARK,
            va="bottom",
            ha="right",
        )
        _set_stages(axes)
        self._sparsities = [axes.text(place, 0.45, "95 %", fontsize=8, ha="center") for place in range(1, 1 + PRUNINGS)]
        self._errors = [
            (axes.plot([place, place], [1, 2], ".-", color=color)[0], axes.vlines([place], 1, 2, color=color))
            for place, color in enumerate((COLOR, GREY))
        ]
        return [*self._sparsities, *(artist for pair in reversed(self._errors) for artist in pair)]

    def _add_bytes(self, axes: Axes, dense: Step) -> list[Artist]:
        axes.set(yscale="log", ylim=(dense.bytes / 1000, 2 * dense.bytes))
        axes.set_title("bytes of the .kdz file", fontsize=9)
        _set_stages(axes)
        self._bytes = [
            axes.plot([place], [dense.bytes], ".-", color=color)[0] for place, color in enumerate((COLOR, GREY))
        ]
        return self._bytes[::-1]

    def _add_progress(self, axes: Axes) -> list[Artist]:
        axes.set(xlim=(0, 1), xticks=[], yticks=[])
        (self._bar,) = axes.barh([0], [1], 1, color=COLOR, alpha=0.4)
        axes.set_ylim(-0.5, 0.5)
        self._said = axes.text(0.5, 0, "done", ha="center", va="center", fontsize=7)
        return [self._bar, self._said]


def _set_stages(axes: Axes) -> None:
    axes.set_xlim(-0.4, len(STAGES) - 0.6)
    axes.set_xticks(range(len(STAGES)), STAGES, rotation=30, ha="right", fontsize=8)
    axes.grid(alpha=0.3)
