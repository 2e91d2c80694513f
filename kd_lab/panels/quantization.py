"""Quantize a network live: what few bits cost in accuracy and save in bytes."""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

from kd_lab.cost import file_bytes
from kd_lab.data import Mnist
from kd_lab.formats.network_file import network_file_bytes
from kd_lab.networks.layers import describe, weighted_layers, weights
from kd_lab.networks.permanent import make_permanent
from kd_lab.panels.canvas import COLOR, DARK, PALE, WIDTH, Canvas, LostDigits, new_accuracy_curve, new_figure
from kd_lab.panels.controls import BitSlider, dropdown
from kd_lab.panels.measurement import CurveAnswer, Measurement, dense_network, table, title_of
from kd_lab.panels.panel import Panel, Shown, side_by_side
from kd_lab.quantization import CALIBRATIONS, fold_batch_norm, output_errors, quantize_activations, quantize_model
from kd_lab.quantization.weights import GRANULARITIES, Quantizer, quantize_weights

BITS = range(1, 9)
CALIBRATION_IMAGES, ERROR_IMAGES = 1000, 250  # from the training and from the validation part
CACHED_NETWORKS = 24  # those of three curves; one of lenet5 takes 1.7 MB
HEIGHT = 350  # in pixels
BINS, MAX_GRIDS = 101, 16  # of the histogram; and the channels whose grids are drawn
MARGIN = 1.35  # a coarse grid reaches beyond the largest |w|
SIGN = "At 1 bit a weight keeps only its sign: its grid and calibration change nothing."


class Quantization(NamedTuple):
    """Everything that a quantized network depends on; `activation_bits` is "fp32" or a number as text."""

    weight_bits: int
    activation_bits: str
    granularity: str
    grid: str
    calibration: str


@dataclass(frozen=True)
class QuantizationAnswer(CurveAnswer):
    """What was measured at one setting of the quantization panel; its place is that of the bits of a weight.

    `quantizer` is that of the weights of `layer`, which is shown. `packed`, the bytes of the file, and `layers`, the
    number of different weights and the error of the output of each, are empty until they are there.
    """

    kind = "quantized"

    layer: str
    quantizer: Quantizer
    packed: int | None = None
    layers: dict[str, tuple[int, float]] = field(default_factory=dict)


class QuantizationPanel(Panel):
    """Quantize any network live, by bits of weights and activations, granularity, grid and calibration.

    `data` is what load_mnist() gives: activations are calibrated on the first 1,000 training images, accuracy is
    measured on the validation part, first on 1,000 images, then on all; only the button "Reveal test" reads the test
    part. BatchNorm is folded in both networks; `grid` is that of the weights, since activations have affine ones.
    """

    def __init__(self, model: nn.Module, data: Mnist):
        dense, data = dense_network(model, data)
        self._dense = fold_batch_norm(dense, data.validation.images)
        quantize_model(self._dense, data.train.images[:2])  # says so where that can't be
        self._weights = weights(self._dense)
        self._layers = {name: weight.module for name, weight in self._weights.items()}  # of tied ones the first
        self._data, self._validation = data, Measurement(self._dense, data.validation, self.steps)
        self._bytes = file_bytes(self._dense)
        self._network = functools.lru_cache(CACHED_NETWORKS)(self._quantize)
        self._reports: dict[Quantization, dict[str, Any]] = {}
        self._curves: dict[tuple[str, ...], dict[int, float]] = {}
        self._pictures: dict[str, QuantizationPicture] = {}
        largest = max(self._layers, key=lambda name: self._weights[name].value.numel())
        controls = {
            "weight_bits": BitSlider(label="weight_bits", value=4),
            "activation_bits": dropdown("activation_bits", ["fp32", *map(str, reversed(BITS))]),
            "granularity": dropdown("granularity", GRANULARITIES, "per_channel"),
            "grid": dropdown("grid", ["symmetric", "affine"]),
            "calibration": dropdown("calibration", CALIBRATIONS, "min_max"),
            "layer": dropdown("layer", self._layers, largest),
        }
        tables_height = max(190, 84 + 20 * len(self._layers))  # a row for each layer
        super().__init__(controls, (WIDTH, HEIGHT), tables_height, data.test)

    def measure(
        self, weight_bits: int, activation_bits: str, granularity: str, grid: str, calibration: str, layer: str
    ) -> Iterator[QuantizationAnswer]:
        """Yield what this setting gives on 1,000 images, on all, and with bytes, errors and curve."""
        setting = Quantization(weight_bits, activation_bits, granularity, grid, calibration)
        curve, network = self._curves.setdefault(setting[1:], {}), self._network(*setting)
        quantizer: Any = weights(network)[layer].parametrization(Quantizer)
        report = self._reports.get(setting, {})
        for comparison in self._validation.compare(make_permanent(network)):
            answer = QuantizationAnswer(setting, comparison, curve, weight_bits, layer, quantizer, **report)
            yield answer
        self._reports[setting] = report or self._report(network)
        answer = replace(answer, **self._reports[setting])
        yield answer
        others = {bits: setting._replace(weight_bits=bits) for bits in BITS}
        for _ in self._validation.complete(curve, BITS, lambda bits: make_permanent(self._network(*others[bits]))):
            yield answer

    def networks(self, answer: QuantizationAnswer) -> list[nn.Module]:
        """Return the quantized network."""
        return [self._network(*answer.setting)]

    def _quantize(self, bits: int, activation_bits: str, granularity: str, grid: str, calibration: str) -> nn.Module:
        model = quantize_weights(self._dense, bits, granularity, grid == "symmetric", calibration)
        if activation_bits == "fp32":
            return model
        images = self._data.train.images[:CALIBRATION_IMAGES]
        return quantize_activations(model, images, int(activation_bits), calibration)

    def _report(self, network: nn.Module) -> dict[str, Any]:
        """Return the bytes of the file, and the different weights and the error of each layer."""
        errors = output_errors(network, self._dense, self._data.validation.images[:ERROR_IMAGES])
        layer_of = {layer: name for name, layer in weighted_layers(network).items()}
        found = {
            name: (len(weight.value.unique()), errors.get(layer_of[weight.module], math.nan))
            for name, weight in weights(network).items()
        }
        return {"packed": network_file_bytes(network), "layers": found}

    def draw(self, answer: QuantizationAnswer) -> Shown:
        """Draw the picture and write the tables."""
        bits, activations, *_ = answer.setting
        activations = activations if activations == "fp32" else f"{activations}-bit"
        name = answer.layer
        if name not in self._pictures:
            what, weight = f"{name}, {describe(self._layers[name])}", self._weights[name].value.detach()
            self._pictures[name] = QuantizationPicture(what, weight, self._validation)
        packed = f"{answer.packed:,} bytes, {self._bytes / answer.packed:.1f} ×" if answer.packed else "…"
        costs = [["file, dense", f"{self._bytes:,} bytes"], ["file, quantized, factor", packed]]
        title = title_of(f"{bits}-bit weights, {activations} activations", answer.comparison)
        tables = side_by_side(self.scores(answer, costs=costs), self._layer_table(answer))
        return Shown(title, self._pictures[name].png(answer, self.pinned), tables)

    def _layer_table(self, answer: QuantizationAnswer) -> str:
        """Return how many values each layer's weights have, and how wrong its output is."""
        rows = []
        for name, layer in self._layers.items():
            values, error = answer.layers.get(name, (0, 0.0))
            wrong = "never\u00a0run" if math.isnan(error) else f"{100 * error:.1f}\u00a0%"
            measured = [f"{values:,}", wrong] if values else ["…", "…"]
            kind = describe(layer).replace(" ", "\u00a0")  # a line for each layer
            rows.append([name, kind, answer.setting.weight_bits, *measured])
        note = f"<div class='kd-lab-note'>{SIGN if answer.setting.weight_bits == 1 else ''}</div>"
        return table(rows, ["layer", "", "bits", "values in use", "output error"], left=2) + note


class QuantizationPicture:
    """Accuracy over bits, a layer's weights and their grids, and the lost digits; `name` says which layer it is."""

    def __init__(self, name: str, weight: Tensor, validation: Measurement):
        self._weight = weight
        self._limit = MARGIN * (weight.abs().max().item() or 1.0)
        figure = new_figure(HEIGHT)
        self._digits = LostDigits(figure, validation.images, "quantized")
        title = f"here (orange); other bits on {validation.first:,} images (grey)"
        axes = figure.add_axes((0.095, 0.44, 0.38, 0.48))
        self._curve = new_accuracy_curve(axes, validation.by_chance, BITS, xlabel="bits of a weight", title=title)
        self._add_weights(figure.add_axes((0.575, 0.67, 0.395, 0.25)), name)
        self._add_grids(figure.add_axes((0.575, 0.44, 0.395, 0.165)))
        self._canvas = Canvas(figure, [*self._curve.moving, self._quantized, self._ticks, self._caption])

    def png(self, answer: QuantizationAnswer, pinned: QuantizationAnswer | None) -> bytes:
        """Return the picture of an answer."""
        self._curve.show(answer, pinned)
        self._quantized.set_data(self._count(answer.quantizer(self._weight)))
        self._set_grids(levels(answer.quantizer, self._weight), answer.setting.granularity)
        return self._canvas.png(*self._digits.inset(answer.comparison))

    def _count(self, weight: Tensor) -> np.ndarray:
        """Return how many weights lie in each bin, (BINS,)."""
        return torch.histc(weight.float(), BINS, -self._limit, self._limit).numpy()

    def _add_weights(self, axes: Axes, name: str) -> None:
        edges, counts = np.linspace(-self._limit, self._limit, BINS + 1), self._count(self._weight)
        axes.set_yscale("log")  # else neither a few outliers nor half of all weights in one bin could be seen
        axes.set(xlim=(-self._limit, self._limit), ylim=(0.6, 1.5 * counts.sum()), ylabel="how many (log)")
        axes.tick_params(labelbottom=False)
        axes.set_title(f"layer {name} (orange: quantized)", fontsize=9, loc="right")
        axes.stairs(counts, edges, fill=True, color=PALE)
        self._quantized = axes.stairs(counts, edges, fill=True, color=COLOR)

    def _add_grids(self, axes: Axes) -> None:
        axes.set(xlim=(-self._limit, self._limit), ylim=(1, 0), xlabel="weight", yticks=[])
        self._ticks = axes.vlines([], 0, 1, colors=DARK)
        self._caption = axes.text(0.5, 1.06, "", transform=axes.transAxes, ha="center", fontsize=9)

    def _set_grids(self, grids: Tensor, granularity: str) -> None:
        """Draw each grid, of many some, as a row of ticks; `grids` (rows, levels)."""
        rows, count = grids.shape
        shown = grids[torch.linspace(0, rows - 1, min(rows, MAX_GRIDS)).long()]
        x, top = shown.flatten().float().numpy(), (np.arange(len(shown)).repeat(count) + 0.1) / len(shown)
        self._ticks.set_segments(np.stack([x, top, x, top + 0.8 / len(shown)], axis=1).reshape(-1, 2, 2))
        self._ticks.set_linewidth(1.5 if count <= 16 else 0.5)
        each = f"each channel ({len(shown)} of {rows})" if granularity == "per_channel" else "the whole layer"
        self._caption.set_text(f"a grid of {count} levels for {each}")


def levels(quantizer: Quantizer, weight: Tensor) -> Tensor:
    """Return the values that the quantizer has for a weight, a row for each grid, (rows, levels)."""
    codes, decode = quantizer.encode(weight)
    count = max(2**quantizer.num_bits, int(codes.max()) + 1)  # beside two signs, a pruned weight is 0
    return (torch.arange(count) - decode["zero_point"].reshape(-1, 1)) * decode["scale"].reshape(-1, 1)
