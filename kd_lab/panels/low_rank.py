"""Put two thin layers in place of one, live: nearest to its weight and nearest to its output, side by side."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter
from torch import Tensor, nn

from kd_lab.data import Mnist
from kd_lab.factorization import NEAREST, about_mean, factorize, low_rank, two_layers
from kd_lab.networks.copies import copied
from kd_lab.networks.inputs import layer_inputs
from kd_lab.networks.layers import replace as replace_layer
from kd_lab.panels.canvas import GREY, WIDTH, AccuracyCurve, Canvas, Traces, new_figure, set_root_scale
from kd_lab.panels.controls import WholeSlider
from kd_lab.panels.measurement import (
    FIRST,
    Comparison,
    CurveAnswer,
    Measurement,
    Seconds,
    cost_table,
    counted_costs,
    dense_network,
)
from kd_lab.panels.panel import Panel, Shown, side_by_side

RANKS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 40, 60, 80, 120, 160, 250, 400, 800)  # of the curves
TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
CALIBRATION_IMAGES = 2000
HEIGHT, TABLES_HEIGHT = 400, 310  # in pixels
SHARE = 5  # the slider begins at a fifth of the layer's weights
SMALLEST = 1e-3  # of the singular values, of the largest
STYLES = {"weight": ("s", "#d55e00"), "output": ("o", "#0072b2")}  # told apart by the colour-blind, too


class LowRank(NamedTuple):
    """Everything that both networks of two thin layers depend on."""

    rank: int


@dataclass(frozen=True)
class LowRankAnswer:
    """What was measured at one rank, by what the two layers are nearest to.

    `kept` is the share of the layer's squared output that is left, and `costs` and `seconds` are those of either.
    """

    setting: LowRank
    nearest: dict[str, CurveAnswer]
    kept: dict[str, float]
    costs: dict[str, int]
    seconds: Seconds = field(default_factory=dict)

    @property
    def comparisons(self) -> dict[str, Comparison]:
        """Return what was measured of the dense network and of both others."""
        found = {f"nearest {name}": answer.comparison for name, answer in self.nearest.items()}
        return {"dense": next(iter(found.values())).dense, **found}


class LowRankPanel(Panel):
    """Put two thin layers of a rank in place of one, live, nearest to its weight and nearest to its output.

    `data` is what load_mnist() gives, `layer` a layer's name. The outputs are those for 2,000 training images; accuracy
    and what is kept of the output are measured on the validation part; last comes the latency, on this machine.
    """

    def __init__(self, model: nn.Module, data: Mnist, layer: str):
        self._dense, data = dense_network(model, data)
        self._images = data.validation.images[:2]  # of the size that the network reads
        factorize(self._dense, {layer: 1}, self._images)  # says so where that can't be
        self._layer, whole = layer, self._dense.get_submodule(layer)
        matrix = whole.weight.detach().flatten(1)
        self._full = min(matrix.shape)
        inputs, mean = about_mean(whole, layer_inputs(self._dense, layer, data.train.images[:CALIBRATION_IMAGES]))
        self._factors = {
            "weight": (*low_rank(matrix, self._full), None),
            "output": (*low_rank(matrix, self._full, inputs), mean),
        }
        outputs = (layer_inputs(self._dense, layer, data.validation.images[:FIRST]) @ matrix.T).double()
        missing = {"weight": outputs, "output": outputs - (matrix @ mean).double()}  # without any rank
        moments = {name: each.T @ each for name, each in missing.items()}
        self._kept = {
            name: _kept(self._factors[name][0].double(), each, moments["weight"]) for name, each in moments.items()
        }
        self._validation = Measurement(self._dense, data.validation, self.steps)
        self._costs = counted_costs(self._dense, self._images)
        self._curves: dict[str, dict[int, float]] = {name: {} for name in NEAREST}
        squares = {
            "weight": self._factors["weight"][1].double().square().sum(1),  # `first` has a singular value in each row
            "output": torch.linalg.eigvalsh(moments["output"]).flip(0),
        }
        pays = matrix.numel() / sum(matrix.shape)
        self._drawing = LowRankPicture(layer, squares, self._kept, pays, self._validation.first)
        rank = WholeSlider(label="rank", min=1, max=self._full, value=max(1, int(pays / SHARE)))
        super().__init__({"rank": rank}, (WIDTH, HEIGHT), TABLES_HEIGHT)

    def measure(self, rank: int) -> Iterator[LowRankAnswer]:
        """Yield what this rank gives on 1,000 images, on all, with the curves, and with the latency."""
        setting, smaller = LowRank(rank), self._network(NEAREST[-1], rank)
        known = {name: kept[rank - 1] for name, kept in self._kept.items()}, counted_costs(smaller, self._images)
        for pair in zip(*(self._compare(name, setting) for name in NEAREST), strict=True):
            answer = LowRankAnswer(setting, dict(zip(NEAREST, pair, strict=True)), *known)
            yield answer
        for place in [*(each for each in RANKS if each < self._full), self._full]:
            for name, curve in self._curves.items():
                drawn = [*self._validation.complete(curve, [place], functools.partial(self._network, name))]
            if drawn:  # both curves have one point more
                yield answer
        for seconds in self._validation.seconds(smaller):
            yield replace(answer, seconds=seconds)

    def _compare(self, nearest: str, setting: LowRank) -> Iterator[CurveAnswer]:
        for comparison in self._validation.compare(self._network(nearest, setting.rank)):
            yield CurveAnswer(setting, comparison, self._curves[nearest], setting.rank)

    def _network(self, nearest: str, rank: int) -> nn.Module:
        """Return the network that `factorize` gives, whose factors are known for every rank at once."""
        second, first, mean = self._factors[nearest]
        thin = copied(self._dense)
        layer = thin.get_submodule(self._layer)
        replace_layer(thin, layer, two_layers(layer, second[:, :rank], first[:rank], mean))
        return thin

    def draw(self, answer: LowRankAnswer) -> Shown:
        """Draw the picture and write the tables."""
        found = {name: each.comparison.accuracy for name, each in answer.nearest.items()}
        accuracies = ", ".join(f"by {name} {100 * each.value:.2f} %" for name, each in found.items())
        count = f"{found['weight'].count:,} validation images"
        title = f"Rank {answer.setting.rank} of {self._layer}: {accuracies} of {count}"
        kept = ["", *(f"{100 * each:.2f} %" for each in answer.kept.values())]
        scores = self.scores(answer, reference="nearest weight", costs=[["kept of the layer's output, squared", *kept]])
        costs = cost_table(self._costs, answer.costs, answer.seconds, "low rank")
        return Shown(title, self._drawing.png(answer, self.pinned), side_by_side(scores + costs))


def _kept(second: Tensor, moments: Tensor, dense: Tensor) -> list[float]:
    """Return the share of the squared outputs that each rank keeps.

    What is missing, of these second moments (outputs, outputs), is projected on the columns of `second`, a rank each;
    the outputs of the dense layer have the moments `dense`.
    """
    along = ((second.T @ moments) * second.T).sum(1)
    return (1 - (along.sum() - along.cumsum(0)) / (dense.trace() or 1)).tolist()


class LowRankPicture:
    """Accuracy, singular values and what is kept of the output over the rank, by what the layers are nearest to.

    `squares` are those of the singular values of the layer's weight and of its outputs, and `kept` has a share for each
    rank. Below the rank `pays` two layers are smaller than one.
    """

    def __init__(self, layer: str, squares: dict[str, Tensor], kept: dict[str, list[float]], pays: float, first: int):
        self._full, self._pays = len(kept["weight"]), pays
        spectra = {name: (each / (each[0] or 1)).clamp(min=0).sqrt().tolist() for name, each in squares.items()}
        figure = new_figure(HEIGHT)
        self._add_curves(figure.add_axes((0.1, 0.13, 0.39, 0.79)), first)
        top, bottom = figure.add_axes((0.585, 0.57, 0.405, 0.35)), figure.add_axes((0.585, 0.13, 0.405, 0.35))
        top.set(yscale="log", ylim=(SMALLEST, 1.5), ylabel="singular values")
        top.set_title(f"{layer} (orange), its outputs (blue); largest: 1", fontsize=9)
        set_root_scale(bottom)
        bottom.set_ylabel("output kept")
        bottom.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        for axes, lines in ((top, spectra), (bottom, kept)):
            self._set_ranks(axes, axes is bottom)
            for key, values in lines.items():
                axes.plot(range(1, self._full + 1), values[: self._full], color=STYLES[key][1], linewidth=1.5)
        marks = [axes.axvline(1, color="black", linewidth=1) for axes in (top, bottom)]
        self._marks = Traces(lambda answer: [([answer.setting.rank] * 2, [0, 1])] * 2, *marks)
        moving = [line for traces in (self._marks, *self._curves.values()) for line in traces.moving]
        self._canvas = Canvas(figure, moving)

    def png(self, answer: LowRankAnswer, pinned: LowRankAnswer | None) -> bytes:
        """Return the picture of an answer."""
        self._marks.show(answer, pinned)
        for name, found in answer.nearest.items():
            self._curves[name].show(found, pinned and pinned.nearest[name])
        return self._canvas.png()

    def _add_curves(self, axes: Axes, first: int) -> None:
        set_root_scale(axes)
        axes.set_title(f"here with its interval, elsewhere on {first:,} images")
        self._curves = {
            name: AccuracyCurve(axes, color, color, marker, f"nearest {name}")
            for name, (marker, color) in STYLES.items()
        }
        self._set_ranks(axes, True)
        axes.legend(handles=[curve.point for curve in self._curves.values()], loc="lower right", fontsize=9)

    def _set_ranks(self, axes: Axes, labelled: bool) -> None:
        """Draw ranks by their logarithm, and on grey those at which two layers are no smaller than one."""
        axes.set_xscale("function", functions=(lambda rank: np.log(np.clip(rank, 0.5, None)), np.exp))
        axes.set_xlim(0.9, 1.1 * self._full)
        ticks = [rank for rank in TICKS if rank <= self._full]
        axes.set_xticks(ticks, ticks if labelled else [""] * len(ticks))
        if labelled:
            axes.set_xlabel("rank (log; on grey two layers are larger)")
        axes.axvspan(self._pays, 1.1 * self._full, color=GREY, alpha=0.25, linewidth=0)
        axes.grid(alpha=0.3)
