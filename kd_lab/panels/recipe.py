"""Run a whole recipe live, prune, fine-tune with the teacher, share, pack; beside it the same without the teacher."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator
from torch import Tensor, nn

from kd_lab.compression import FineTune, Prune, Share
from kd_lab.compression.recipe import check_recipe
from kd_lab.compression.stages import Stage, with_masks
from kd_lab.cost import count_nonzeros, count_parameters
from kd_lab.data import Mnist
from kd_lab.distillation import DistillationLoss, with_answers
from kd_lab.evaluation import Accuracy
from kd_lab.formats.kdz import FLOAT32_BYTES, pack
from kd_lab.networks.permanent import make_permanent
from kd_lab.panels.canvas import COLOR, DARK, GREY, WIDTH, Canvas, Traces, new_figure
from kd_lab.panels.controls import BitSlider, FractionSlider, Slider
from kd_lab.panels.measurement import Comparison, Measurement, dense_network, percent
from kd_lab.panels.panel import Panel, Shown, side_by_side
from kd_lab.pruning import cubic_sparsities
from kd_lab.training import train_live

IMAGES = 10_000  # the recipe is to take seconds
TRAINING: dict[str, Any] = {"batch_size": 128, "learning_rate": 2e-3}
PARTS = 4  # of a time through the images: after each the training may be stopped, or be kept
CACHED_NETWORKS = 60  # after a stage; one of lenet300 takes a megabyte
PRUNINGS = 4
STAGES = ["start", *["prune"] * PRUNINGS, "fine-tune", "share"]
TAUGHT, LABELLED = "taught", "on labels"
HEIGHT, TABLES_HEIGHT = 330, 250  # in pixels
TICKS = (0.5, 1, 2, 5, 10, 20, 50)  # of the error, in %
MIN_ERROR = 0.3  # of the picture
SIDE = 0.07  # by so much the two stand apart


class Recipe(NamedTuple):
    """Everything that a taught network depends on."""

    ratio: float
    temperature: float
    alpha: float
    bits: int

    @property
    def losses(self) -> tuple[Callable[..., Tensor], ...]:
        """Return what the taught network makes small, and the one on labels alone."""
        return DistillationLoss(self.temperature, self.alpha), F.cross_entropy

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Return the stages; each goes through the images once."""
        prunings = (Prune(sparsity, 1, PARTS) for sparsity in cubic_sparsities(self.ratio, PRUNINGS))
        return (*prunings, FineTune(PARTS), Share(self.bits, PARTS))


@dataclass(frozen=True)
class Step:
    """A network after a stage, what it answers to the validation images, and what its file takes."""

    network: nn.Module
    comparison: Comparison
    bytes: int
    nonzeros: int


@dataclass(frozen=True)
class RecipeAnswer:
    """The steps that are done at one setting."""

    setting: Recipe
    taught: tuple[Step, ...]
    plain: tuple[Step, ...]

    @property
    def last(self) -> dict[str, Step]:
        """Return the step that both have behind them, since the taught one goes first, beside the dense network."""
        place = len(self.plain) - 1
        return {"dense": self.plain[0], TAUGHT: self.taught[place], LABELLED: self.plain[place]}

    @property
    def comparisons(self) -> dict[str, Comparison]:
        """Return what was measured of the dense network and of both others after the same stage."""
        return {name: step.comparison for name, step in self.last.items()}


class RecipePanel(Panel):
    """Put a network that `pack` takes, live through a recipe, taught and on labels alone.

    It is pruned in four steps, fine-tuned after each and once more, and then its weights share 2^bits values. Both see
    the same 10,000 training images in the same batches. `data` is what load_mnist() gives; accuracy is measured on the
    validation part; only the button "Reveal test" reads the test part. What was made at a setting is kept: other bits
    share the weights of the same pruned network.
    """

    def __init__(self, model: nn.Module, teacher: nn.Module, data: Mnist):
        self._dense, data = dense_network(model, data)
        check_recipe(model, teacher, data, {})
        self._validation = Measurement(self._dense, data.validation, iter)  # too quick to be stopped
        self._taught = [with_answers(teacher, part) for part in (data.train[:IMAGES], data.validation)]
        self._start = self._step(self._dense)
        self._after = functools.lru_cache(CACHED_NETWORKS)(self._finish)
        _images, labels, logits = self._taught[1]
        self._drawing = RecipePicture(self._start, Accuracy.of(logits.argmax(1) == labels))
        small = {"layout": {"width": "240px"}}
        controls = {
            "ratio": FractionSlider(label="ratio", min=0.5, max=0.99, step=0.01, value=0.9),
            "temperature": Slider(label="temperature", min=1, max=20, step=0.5, value=4, **small),
            "alpha": Slider(label="alpha", step=0.05, value=0.1, **small),
            "bits": BitSlider(label="bits", value=3, **small),
        }
        super().__init__(controls, (WIDTH, HEIGHT), TABLES_HEIGHT, data.test)

    def measure(self, ratio: float, temperature: float, alpha: float, bits: int) -> Iterator[RecipeAnswer]:
        """Yield what is known after each stage of one network and then of the other."""
        setting = Recipe(ratio, temperature, alpha, bits)
        steps: dict[Callable[..., Tensor], tuple[Step, ...]] = {loss: (self._start,) for loss in setting.losses}
        yield RecipeAnswer(setting, *steps.values())
        for place in range(1, len(STAGES)):
            for loss in steps:
                steps[loss] += (self._after(loss, setting.stages[:place]),)
                yield RecipeAnswer(setting, *steps.values())

    def networks(self, answer: RecipeAnswer) -> list[nn.Module]:
        """Return the dense network, the taught one and the one on labels alone."""
        return [step.network for step in answer.last.values()]

    def _finish(self, loss: Callable[..., Tensor], stages: tuple[Stage, ...]) -> Step:
        """Return the step after the last of these stages; those before it are made first, unless they are kept."""
        *before, stage = stages
        step = self._after(loss, tuple(before)) if before else self._start
        return self._step(stage(with_masks(step.network), functools.partial(self._fine_tune, loss)))

    def _fine_tune(self, loss: Callable[..., Tensor], model: nn.Module, epochs: int) -> nn.Module:
        parts = slice(None) if isinstance(loss, DistillationLoss) else slice(2)  # labels alone: no answers
        training, validation = (part[parts] for part in self._taught)
        steps = max(1, len(training[0]) // TRAINING["batch_size"] // PARTS)
        settings = {"validation": validation, "epochs": epochs, "steps_per_epoch": steps, **TRAINING}
        *_, (tuned, _history) = self.steps(train_live(model, training, loss, **settings))
        return tuned

    def _step(self, model: nn.Module) -> Step:
        network = make_permanent(model).eval()
        *_, comparison = self._validation.compare(network)
        return Step(network, comparison, len(pack(network)), count_nonzeros(network))

    def draw(self, answer: RecipeAnswer) -> Shown:
        """Draw the picture and write the table."""
        whole = FLOAT32_BYTES * count_parameters(self._dense)
        steps = answer.last.values()
        costs = [
            ["numbers that are not 0", *(f"{step.nonzeros:,}" for step in steps)],
            ["bytes of the .kdz file", *(f"{step.bytes:,}" for step in steps)],
            ["compression ratio", *(f"{whole / step.bytes:.1f} ×" for step in steps)],
        ]
        table = self.scores(answer, reference=LABELLED, costs=costs)
        return Shown(self._drawing.title(answer), self._drawing.png(answer, self.pinned), side_by_side(table))


class RecipePicture:
    """The error of both networks after each stage, and the bytes of their files."""

    def __init__(self, dense: Step, teacher: Accuracy):
        figure = new_figure(HEIGHT)
        self._add_errors(figure.add_axes((0.08, 0.21, 0.5, 0.69)), 100 - 100 * teacher.value)
        self._add_bytes(figure.add_axes((0.685, 0.21, 0.3, 0.69)), dense.bytes)
        self._add_progress(figure.add_axes((0.08, 0.03, 0.905, 0.037)))
        moving = [*self._sparsities, *self._errors.moving, *self._bytes.moving, self._bar, self._said]
        self._canvas = Canvas(figure, moving)

    def png(self, answer: RecipeAnswer, pinned: RecipeAnswer | None) -> bytes:
        """Return the picture of an answer."""
        self._errors.show(answer, pinned)
        self._bytes.show(answer, pinned)
        for text, sparsity in zip(self._sparsities, cubic_sparsities(answer.setting.ratio, PRUNINGS), strict=True):
            text.set_text(f"{100 * sparsity:.0f} %")
        done = (len(answer.taught) + len(answer.plain) - 2) / (2 * len(STAGES) - 2)
        self._bar.set_width(done)
        self._said.set_text("done" if done == 1 else f"{100 * done:.0f} % done")
        return self._canvas.png()

    def title(self, answer: RecipeAnswer) -> str:
        """Return the setting and how the taught network does so far."""
        ratio, temperature, alpha, bits = answer.setting
        setting = f"{100 * ratio:.4g} % pruned, {bits} bit{'s' * (bits > 1)}, T = {temperature:g}, alpha {alpha:g}"
        if len(answer.taught) < len(STAGES):
            return f"{setting}: under way"
        last = answer.taught[-1]
        return f"{setting}: {percent(last.comparison.accuracy, ' right')}, {last.bytes:,} bytes"

    def _add_errors(self, axes: Axes, teacher: float) -> None:
        axes.set(yscale="log", ylim=(MIN_ERROR, 95), ylabel="validation error, %")
        axes.set_yticks(TICKS, [f"{error:g}" for error in TICKS])
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_title("after each stage: taught (orange), on labels alone (grey)", fontsize=9)
        axes.axhline(teacher, color=DARK, linestyle="--", linewidth=1)
        place = len(STAGES) - 0.65, max(teacher, 1.3 * MIN_ERROR) / 1.05  # below the line: the curves are above it
        axes.text(*place, f"teacher {teacher:.2f} %", fontsize=8, color=DARK, va="top", ha="right")
        _set_stages(axes)
        self._sparsities = [axes.text(place, 0.45, "95 %", fontsize=8, ha="center") for place in range(1, 1 + PRUNINGS)]
        self._errors = Traces(
            _errors,
            *(axes.plot([0, 1], [1, 2], form, color=color)[0] for color in (GREY, COLOR) for form in ("-", ".-")),
        )

    def _add_bytes(self, axes: Axes, dense: int) -> None:
        axes.set(yscale="log", ylim=(dense / 1000, 2 * dense))
        axes.set_title("bytes of the .kdz file", fontsize=9)
        _set_stages(axes)
        self._bytes = Traces(_bytes, *(axes.plot([0], [dense], ".-", color=color)[0] for color in (GREY, COLOR)))

    def _add_progress(self, axes: Axes) -> None:
        axes.set(xlim=(0, 1), ylim=(-0.5, 0.5), xticks=[], yticks=[])
        (self._bar,) = axes.barh([0], [1], 1, color=COLOR, alpha=0.4)
        self._said = axes.text(0.5, 0, "done", ha="center", va="center", fontsize=7)


def _errors(answer: RecipeAnswer) -> list[tuple]:
    """Return the x and y of the intervals and of the curve of each network, the taught one last; in %."""
    points: list[tuple] = []
    for steps, places in _both(answer):
        accuracies = [step.comparison.accuracy for step in steps]
        ends = [(*accuracy.interval, np.nan) for accuracy in accuracies]  # no line from one interval to the next
        points += [(places.repeat(3), 100 - 100 * np.ravel(ends))]
        points += [(places, [100 - 100 * accuracy.value for accuracy in accuracies])]
    return points


def _bytes(answer: RecipeAnswer) -> list[tuple]:
    return [(places, [step.bytes for step in steps]) for steps, places in _both(answer)]


def _both(answer: RecipeAnswer) -> list[tuple[tuple[Step, ...], np.ndarray]]:
    """Return the steps of each network and their places, a little apart, the taught one last."""
    return [(each, np.arange(len(each)) + side) for each, side in ((answer.plain, SIDE), (answer.taught, -SIDE))]


def _set_stages(axes: Axes) -> None:
    axes.set_xlim(-0.4, len(STAGES) - 0.6)
    axes.set_xticks(range(len(STAGES)), STAGES, rotation=30, ha="right", fontsize=8)
    axes.grid(alpha=0.3)
