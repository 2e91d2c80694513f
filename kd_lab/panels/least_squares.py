"""Prune one layer live by magnitude and by least squares, side by side."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter
from tabulate import tabulate
from torch import Tensor, nn

from kd_lab.data import Mnist
from kd_lab.evaluation import PairedDifference
from kd_lab.networks.layers import describe, weighted_layers
from kd_lab.panels.canvas import Canvas, new_figure
from kd_lab.panels.measurement import FIRST, Comparison, Measurement, dense_network, percent, points, quietly
from kd_lab.panels.panel import Panel, Shown
from kd_lab.panels.slider import FractionSlider
from kd_lab.pruning import compensated_weight, damped_hessian, layer_inputs, least_squares_importance, rank

MOST = 0.99  # the end of the slider
CURVE = (0.0, 0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99)
SIZE = (800, 460)  # in pixels
TABLE_HEIGHT = 170
CALIBRATION_IMAGES = 2000
ROWS = 20  # of the layer are ranked between two looks at the slider
STYLES = {"magnitude": ("s", "#d55e00"), "least squares": ("o", "#0072b2")}  # told apart by the colour-blind, too
POINTS, UNITS, BARS = 200, 10, 40  # inputs and outputs of the layer in the scatter plot; weights of one output


@dataclass(frozen=True)
class LeastSquaresAnswer:
    """Hold what was measured at one sparsity, each by method.

    `weights` are the layer's (rows, n) and `errors` how much of the squared output is wrong; `curves` hold accuracy by
    sparsity on the first images, as far as it has been measured.
    """

    sparsity: float
    comparisons: dict[str, Comparison]
    weights: dict[str, Tensor]
    errors: dict[str, float]
    curves: dict[str, dict[float, float]]


class LeastSquaresPanel(Panel):
    """Prune one layer of a network live, by magnitude and by least squares; the others stay dense.

    `data` is what load_mnist() gives, `layer` a layer's name. The outputs of the layer are compared on 2,000 training
    images; accuracy and output error are measured on the validation part.
    """

    def __init__(self, model: nn.Module, data: Mnist, layer: str):
        dense = dense_network(model, data)
        self._hessian = damped_hessian(layer_inputs(dense, layer, data.train.images[:CALIBRATION_IMAGES]))
        inputs = layer_inputs(dense, layer, data.validation.images[:FIRST]).double()
        self._moments = inputs.T @ inputs
        self._layer, self._kind = layer, describe(weighted_layers(dense)[layer])
        self._weight = dense.get_submodule(layer).weight.detach().flatten(1).double()
        self._validation = Measurement(dense, data.validation)
        self._pruned = {method: copy.deepcopy(dense) for method in STYLES}
        self._rankings = {"magnitude": rank({layer: self._weight.abs()}, "per_layer")}
        self._importance: list[Tensor] = []  # by least squares, as far as it is known
        self._curves = {method: {} for method in STYLES}
        self._drawing = LeastSquaresPicture(self._weight, inputs)
        super().__init__({"sparsity": FractionSlider(label="sparsity", max=MOST, value=0.95)}, SIZE, TABLE_HEIGHT)

    def measure(self, sparsity: float) -> Iterator[LeastSquaresAnswer | float | None]:
        """Yield how far the ranking is, then what this sparsity gives on 1,000 images, on all, and with the curves."""
        yield from self._rank()
        for answer in self._compare(sparsity):
            yield answer  # the last one is not None
        for place in CURVE:
            if place not in self._curves["magnitude"]:
                found = yield from quietly(self._compare(place, FIRST))
                for method, comparison in found.comparisons.items():
                    self._curves[method][place] = comparison.accuracy.value
                yield answer

    def _rank(self) -> Iterator[float]:
        """Rank the weights by least squares, once, and yield the fraction that is done."""
        if "least squares" in self._rankings:
            return
        for rows in self._weight.split(ROWS)[len(self._importance) :]:
            self._importance.append(least_squares_importance(rows, self._hessian))
            yield min(1.0, len(self._importance) * ROWS / len(self._weight))
        self._rankings["least squares"] = rank({self._layer: torch.cat(self._importance)}, "per_layer")

    def _compare(self, sparsity: float, count: int | None = None) -> Iterator[LeastSquaresAnswer | None]:
        """Yield both methods' answers on the first 1,000 images and on the first `count` (all), None after others."""
        masks = {method: self._rankings[method].masks(sparsity)[self._layer] for method in STYLES}
        weights = {
            "magnitude": self._weight * masks["magnitude"],
            "least squares": compensated_weight(self._weight, masks["least squares"], self._hessian),
        }
        errors = {
            method: self._size(self._weight - weight) / self._size(self._weight) for method, weight in weights.items()
        }
        with torch.no_grad():
            for method, model in self._pruned.items():
                weight = model.get_submodule(self._layer).weight
                weight.copy_(weights[method].view_as(weight))
        for pair in zip(*(self._validation.compare(self._pruned[method], count) for method in STYLES), strict=True):
            yield pair[0] and LeastSquaresAnswer(
                sparsity, dict(zip(STYLES, pair, strict=True)), weights, errors, self._curves
            )

    def _size(self, weight: Tensor) -> float:
        """Return the sum of the squared outputs that these weights give."""
        return ((weight @ self._moments) * weight).sum().item()

    def draw(self, answer: LeastSquaresAnswer | float) -> Shown:
        """Draw the picture and write the table; a number says how far the ranking is."""
        if isinstance(answer, float):
            return Shown(f"Ranking the weights of layer {self._layer}: {100 * answer:.0f} %", self._drawing.blank, "")
        one, other = (f"{100 * comparison.accuracy.value:.2f} %" for comparison in answer.comparisons.values())
        title = (
            f"{100 * answer.sparsity:.4g} % of layer {self._layer} pruned: magnitude {one}, least squares "
            f"{other} of {answer.comparisons['magnitude'].accuracy.count:,} validation images"
        )
        return Shown(title, self._drawing.png(answer), self._table(answer))

    def _table(self, answer: LeastSquaresAnswer) -> str:
        both = answer.comparisons.values()
        by_size, ours = (each.answers == each.labels for each in both)
        rows = [
            ["accuracy, 95 % interval", *(percent(each.accuracy) for each in both)],
            ["change against dense, points", *(points(each.difference) for each in both)],
            ["images lost, gained", *(f"{each.difference.lost:,}, {each.difference.gained:,}" for each in both)],
            ["wrong in the layer's output, squared", *(f"{100 * error:.2f} %" for error in answer.errors.values())],
            ["change against magnitude, points", "", points(PairedDifference.of(ours, by_size))],
        ]
        table = tabulate(rows, [f"layer {self._layer}, {self._kind}", *STYLES], "html", disable_numparse=True)
        # of a fixed width, so that nothing jumps when a number becomes longer
        return table.replace(
            "<table>", "<table style='width: 100%; table-layout: fixed; line-height: 1.4; text-align: left'>"
        )


class LeastSquaresPicture:
    """Hold the figure and everything that moves on it; `weight` (rows, n) and `inputs` (N, n) of the dense layer."""

    def __init__(self, weight: Tensor, inputs: Tensor):
        self._inputs = inputs[_spread(len(inputs), POINTS)]
        self._units = _spread(len(weight), UNITS)
        self._outputs = self._inputs @ weight[self._units].T  # (points, units)
        self._row = int((inputs @ weight.T).var(dim=0).argmax())  # the liveliest output
        by_size = weight[self._row].abs().argsort(descending=True)
        self._bars = by_size[_spread(len(by_size), BARS)]
        figure = new_figure(*SIZE)
        self._add_curves(figure.add_axes((0.1, 0.5, 0.385, 0.44)))
        self._add_outputs(figure.add_axes((0.58, 0.5, 0.405, 0.44)))
        self._add_weights(figure.add_axes((0.1, 0.075, 0.885, 0.29)), weight[self._row, self._bars])
        moving = [
            artist
            for kind in (self._curves, self._lines, self._points, self._dots, self._marks)
            for artist in kind.values()
        ]
        self._canvas = Canvas(figure, moving)
        self.blank = self._canvas.png()

    def png(self, answer: LeastSquaresAnswer) -> bytes:
        """Return the picture of an answer."""
        for method, comparison in answer.comparisons.items():
            accuracy, weight = comparison.accuracy, answer.weights[method]
            self._curves[method].set_data(*np.array(sorted(answer.curves[method].items())).reshape(-1, 2).T)
            self._lines[method].set_data([answer.sparsity] * 2, accuracy.interval)
            self._points[method].set_data([answer.sparsity], [accuracy.value])
            self._dots[method].set_data(self._outputs.flatten(), (self._inputs @ weight[self._units].T).flatten())
            bars = weight[self._row, self._bars]
            self._marks[method].set_data(bars.nonzero(), bars[bars != 0])
        return self._canvas.png()

    def _add_curves(self, axes: Axes) -> None:
        # errors by their root, else what lies between 95 % and 99 % could not be told apart
        axes.set_yscale("function", functions=(lambda y: -np.sqrt(np.clip(1 - y, 0, 1)), lambda root: 1 - root**2))
        # and sparsities by the logarithm of what is kept, since it all happens where little is
        axes.set_xscale("function", functions=(lambda s: -np.log(np.clip(1 - s, 1e-3, None)), lambda y: 1 - np.exp(-y)))
        axes.set(
            xlim=(-0.05, 0.993),
            ylim=(0, 1),
            xlabel="sparsity of this layer (log of what is kept)",
            ylabel="accuracy (root scale)",
        )
        axes.set_xticks([0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99])
        axes.set_yticks([0, 0.5, 0.8, 0.9, 0.95, 0.98, 1])
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.grid(alpha=0.3)
        axes.set_title(f"here with its interval, elsewhere on {FIRST:,} images", fontsize=9)
        self._curves = _lines(axes, ".-", linewidth=1)
        self._lines = _lines(axes, "_-", markersize=12)
        self._points = _lines(axes, markersize=5)
        axes.legend(handles=list(self._points.values()), loc="lower left", fontsize=9)

    def _add_outputs(self, axes: Axes) -> None:
        limit = 1.2 * self._outputs.abs().max().item()
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit), xlabel="dense output", ylabel="pruned output")
        axes.set_title("outputs of the layer (on the line: unchanged)", fontsize=9)
        axes.grid(alpha=0.3)
        axes.plot([-limit, limit], [-limit, limit], color="black", linewidth=1)
        self._dots = _lines(axes, markersize=2)

    def _add_weights(self, axes: Axes, weights: Tensor) -> None:
        axes.set_yscale("function", functions=(lambda y: np.sign(y) * np.sqrt(np.abs(y)), lambda r: r * np.abs(r)))
        largest = weights.abs().max().item()
        limit = 4 * largest  # compensation can make a weight larger than any that was there
        axes.set(xlim=(-0.7, len(weights) - 0.3), ylim=(-limit, limit), ylabel="weight (root scale)")
        axes.set_xlabel(
            f"{len(weights)} weights of output {self._row}, from the largest to the smallest "
            "(bars: dense; without a mark: pruned)"
        )
        axes.set_xticks([])
        axes.set_yticks([part * float(f"{largest:.1g}") for part in (-2, -0.5, 0, 0.5, 2)])
        axes.bar(range(len(weights)), weights.numpy(), color="#d1d5db")
        axes.axhline(0, color="grey", linewidth=1)
        self._marks = _lines(axes, markersize=4)
        self._marks["magnitude"].set_markersize(7)  # seen where a circle lies on it, too


def _lines(axes: Axes, form: str = "", **style: float) -> dict[str, Artist]:
    """Return an empty line, or points where it has no form, for each method."""
    return {
        method: axes.plot([], [], form or marker, color=color, label=method, **style)[0]
        for method, (marker, color) in STYLES.items()
    }


def _spread(count: int, number: int) -> Tensor:
    """Return the indices of at most so many of `count` things, evenly spread from the first to the last."""
    return torch.linspace(0, count - 1, min(count, number)).long()
