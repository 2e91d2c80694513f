"""Prune one layer live by magnitude and by least squares, side by side."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from torch import Tensor, nn

from kd_lab.data import Mnist
from kd_lab.networks.copies import copied
from kd_lab.networks.inputs import layer_inputs
from kd_lab.networks.layers import describe, weighted_layers
from kd_lab.panels.canvas import PALE, WIDTH, AccuracyCurve, Canvas, new_figure, set_root_scale
from kd_lab.panels.controls import FractionSlider
from kd_lab.panels.measurement import FIRST, Comparison, CurveAnswer, Measurement, dense_network
from kd_lab.panels.panel import Panel, Shown, side_by_side
from kd_lab.pruning import compensated_weight, damped_hessian, least_squares_importance, rank

MAX_SPARSITY = 0.99
CURVE = (0.0, 0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99)
HEIGHT, TABLES_HEIGHT = 430, 180  # in pixels
CALIBRATION_IMAGES = 2000
ROWS = 20  # of the layer are ranked between two looks at the slider
STYLES = {"magnitude": ("s", "#d55e00"), "least squares": ("o", "#0072b2")}  # told apart by the colour-blind, too
METHODS = MAGNITUDE, LEAST_SQUARES = tuple(STYLES)
POINTS, UNITS, BARS = 200, 10, 40  # inputs and outputs of the layer in the scatter plot; weights of one output


class OneLayer(NamedTuple):
    """Everything that both pruned networks depend on."""

    sparsity: float


@dataclass(frozen=True)
class MethodAnswer(CurveAnswer):
    """What one method gives: the layer's `weight` (rows, n), and how much of the squared output is wrong."""

    weight: Tensor
    error: float


@dataclass(frozen=True)
class LeastSquaresAnswer:
    """What was measured at one sparsity, by method."""

    setting: OneLayer
    methods: dict[str, MethodAnswer]

    @property
    def comparisons(self) -> dict[str, Comparison]:
        """Return what was measured of the network that each method gives."""
        return {method: answer.comparison for method, answer in self.methods.items()}


class LeastSquaresPanel(Panel):
    """Prune one layer of a network live, by magnitude and by least squares; the others stay dense.

    `data` is what load_mnist() gives, `layer` a layer's name. The outputs of the layer are compared on 2,000 training
    images; accuracy and output error are measured on the validation part.
    """

    def __init__(self, model: nn.Module, data: Mnist, layer: str):
        dense, data = dense_network(model, data)
        self._dense = dense
        calibration = layer_inputs(dense, layer, data.train.images[:CALIBRATION_IMAGES])
        self._hessian = damped_hessian(calibration)
        inputs = layer_inputs(dense, layer, data.validation.images[:FIRST]).double()
        self._moments = inputs.T @ inputs
        self._layer, kind = layer, describe(weighted_layers(dense)[layer])
        self._weight = dense.get_submodule(layer).weight.detach().flatten(1).double()
        self._validation = Measurement(dense, data.validation, self.steps)
        self._rankings = {MAGNITUDE: rank({layer: self._weight.abs()}, "per_layer")}
        self._importance: list[Tensor] = []  # by least squares, as far as it is known
        self._curves: dict[str, dict[float, float]] = {method: {} for method in METHODS}
        self._drawing = LeastSquaresPicture(f"{layer}, {kind}", self._weight, inputs, self._validation.first)
        sparsity = FractionSlider(label="sparsity", max=MAX_SPARSITY, value=0.95)
        super().__init__({"sparsity": sparsity}, (WIDTH, HEIGHT), TABLES_HEIGHT)

    def measure(self, sparsity: float) -> Iterator[LeastSquaresAnswer | Shown]:
        """Yield how far the ranking is, then what this sparsity gives on 1,000 images, on all, and with the curves."""
        for done in self._rank():
            title = f"Ranking the weights of layer {self._layer}: {100 * done:.0f} %"
            yield Shown(title, self._drawing.blank, "")
        setting = OneLayer(sparsity)
        for pair in zip(*(self._compare(method, setting) for method in METHODS), strict=True):
            answer = LeastSquaresAnswer(setting, dict(zip(METHODS, pair, strict=True)))
            yield answer
        for place in CURVE:
            for method, curve in self._curves.items():
                drawn = [*self._validation.complete(curve, [place], functools.partial(self._pruned, method))]
            if drawn:  # both curves have one point more
                yield answer

    def _rank(self) -> Iterator[float]:
        """Rank the weights by least squares, once, and yield the fraction that is done."""
        if LEAST_SQUARES in self._rankings:
            return
        for rows in self._weight.split(ROWS)[len(self._importance) :]:
            self._importance.append(least_squares_importance(rows, self._hessian))
            yield min(1.0, len(self._importance) * ROWS / len(self._weight))
        self._rankings[LEAST_SQUARES] = rank({self._layer: torch.cat(self._importance)}, "per_layer")

    def _compare(self, method: str, setting: OneLayer) -> Iterator[MethodAnswer]:
        """Yield what a method gives on the first 1,000 images and on all."""
        pruned = self._pruned(method, setting.sparsity)
        weight = pruned.get_submodule(self._layer).weight.detach().flatten(1).double()
        error = self._size(self._weight - weight) / (self._size(self._weight) or 1.0)
        for comparison in self._validation.compare(pruned):
            yield MethodAnswer(setting, comparison, self._curves[method], setting.sparsity, weight, error)

    def _pruned(self, method: str, sparsity: float) -> nn.Module:
        """Return the network in which a method has pruned the layer."""
        mask = self._rankings[method].masks(sparsity)[self._layer]
        weight = self._weight * mask
        if method == LEAST_SQUARES:
            weight = compensated_weight(self._weight, mask, self._hessian)
        pruned = copied(self._dense)
        with torch.no_grad():
            place = pruned.get_submodule(self._layer).weight
            place.copy_(weight.view_as(place))
        return pruned

    def _size(self, weight: Tensor) -> float:
        """Return the sum of the squared outputs that these weights give."""
        return ((weight @ self._moments) * weight).sum().item()

    def draw(self, answer: LeastSquaresAnswer) -> Shown:
        """Draw the picture and write the table."""
        one, other = (f"{100 * comparison.accuracy.value:.2f} %" for comparison in answer.comparisons.values())
        title = (
            f"{100 * answer.setting.sparsity:.4g} % of layer {self._layer} pruned: magnitude {one}, least squares "
            f"{other} of {answer.comparisons[MAGNITUDE].accuracy.count:,} validation images"
        )
        errors = [f"{100 * method.error:.2f} %" for method in answer.methods.values()]
        table = self.scores(answer, reference=MAGNITUDE, costs=[["wrong in the layer's output, squared", *errors]])
        return Shown(title, self._drawing.png(answer, self.pinned), side_by_side(table))


class LeastSquaresPicture:
    """What both methods make of a dense layer's `weight` (rows, n), and of its outputs from `inputs` (N, n).

    `name` says in words which layer it is, `first` how many images give a first answer.
    """

    def __init__(self, name: str, weight: Tensor, inputs: Tensor, first: int):
        self._inputs = inputs[_evenly(len(inputs), POINTS)]
        self._units = _evenly(len(weight), UNITS)
        self._outputs = self._inputs @ weight[self._units].T  # (points, units)
        self._row = int((inputs @ weight.T).var(dim=0).argmax())  # the liveliest output
        by_size = weight[self._row].abs().argsort(descending=True)
        self._bars = by_size[_evenly(len(by_size), BARS)]
        figure = new_figure(HEIGHT)
        self._add_curves(figure.add_axes((0.1, 0.51, 0.385, 0.425)), first)
        self._add_outputs(figure.add_axes((0.58, 0.51, 0.405, 0.425)), name)
        self._add_weights(figure.add_axes((0.1, 0.08, 0.885, 0.285)), weight[self._row, self._bars])
        curves = [line for curve in self._curves.values() for line in curve.moving]
        self._canvas = Canvas(figure, [*curves, *self._dots.values(), *self._marks.values()])
        self.blank = self._canvas.png()

    def png(self, answer: LeastSquaresAnswer, pinned: LeastSquaresAnswer | None) -> bytes:
        """Return the picture of an answer."""
        for method, found in answer.methods.items():
            self._curves[method].show(found, pinned and pinned.methods[method])
            outputs = self._inputs @ found.weight[self._units].T
            # as arrays: Matplotlib would go through a tensor number by number
            self._dots[method].set_data(self._outputs.flatten().numpy(), outputs.flatten().numpy())
            bars = found.weight[self._row, self._bars].numpy()
            self._marks[method].set_data(bars.nonzero()[0], bars[bars != 0])
        return self._canvas.png()

    def _add_curves(self, axes: Axes, first: int) -> None:
        # sparsities by the logarithm of what is kept, since it all happens where little is
        axes.set_xscale("function", functions=(lambda s: -np.log(np.clip(1 - s, 1e-3, None)), lambda y: 1 - np.exp(-y)))
        axes.set(xlim=(-0.05, 0.993), xlabel="sparsity of this layer (log of what is kept)")
        axes.set_xticks([0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99])
        set_root_scale(axes)
        axes.set_title(f"here with its interval, elsewhere on {first:,} images")
        self._curves = {
            method: AccuracyCurve(axes, color, color, marker, method) for method, (marker, color) in STYLES.items()
        }
        axes.legend(handles=[curve.point for curve in self._curves.values()], loc="lower left", fontsize=9)

    def _add_outputs(self, axes: Axes, name: str) -> None:
        limit = 1.2 * self._outputs.abs().max().item() or 1.0
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit), xlabel="dense output", ylabel="pruned output")
        axes.set_title(f"outputs of {name} (line: unchanged)", fontsize=9)
        axes.grid(alpha=0.3)
        axes.plot([-limit, limit], [-limit, limit], color="black", linewidth=1)
        self._dots = _points(axes, 2)

    def _add_weights(self, axes: Axes, weights: Tensor) -> None:
        axes.set_yscale("function", functions=(lambda y: np.sign(y) * np.sqrt(np.abs(y)), lambda r: r * np.abs(r)))
        largest = weights.abs().max().item() or 1.0
        limit = 4 * largest  # compensation can make a weight larger than any that was there
        axes.set(xlim=(-0.7, len(weights) - 0.3), ylim=(-limit, limit), ylabel="weight (root scale)")
        ordered = f"{len(weights)} weights of output {self._row}, from the largest to the smallest"
        axes.set_xlabel(f"{ordered} (bars: dense; without a mark: pruned)")
        axes.set_xticks([])
        axes.set_yticks([part * float(f"{largest:.1g}") for part in (-2, -0.5, 0, 0.5, 2)])
        axes.bar(range(len(weights)), weights.numpy(), color=PALE)
        axes.axhline(0, color="grey", linewidth=1)
        self._marks = _points(axes, 4)
        self._marks[MAGNITUDE].set_markersize(7)  # seen where a circle lies on it, too


def _points(axes: Axes, size: float) -> dict[str, Line2D]:
    """Return no points yet for each method, so large."""
    return {
        method: axes.plot([], [], marker, color=color, markersize=size)[0] for method, (marker, color) in STYLES.items()
    }


def _evenly(count: int, number: int) -> Tensor:
    """Return the indices of at most so many of `count` things, evenly spread from the first to the last."""
    return torch.linspace(0, count - 1, min(count, number)).long()
