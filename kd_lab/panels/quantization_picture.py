"""Draw a quantized network: accuracy over bits, a layer's weights and the grids they are rounded to, lost digits."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from torch import Tensor

from kd_lab.evaluation import Accuracy
from kd_lab.panels.canvas import STRIP_HEIGHT, STRIP_WIDTH, AccuracyCurve, Canvas, digit_strip, new_figure
from kd_lab.panels.measurement import FIRST, Comparison, title_of
from kd_lab.quantization import Quantizer

SIZE = (800, 400)  # all sizes are in pixels
BITS = range(1, 9)
BINS, GRIDS = 101, 16  # of the histogram; and the channels whose grids are drawn
MARGIN = 1.35  # a coarse grid reaches beyond the largest |w|
LEFT, TOP = (SIZE[0] - STRIP_WIDTH) // 2, SIZE[1] - STRIP_HEIGHT - 4
COLOR, PALE, DARK = "#c2410c", "#d1d5db", "#1f2937"


class Quantization(NamedTuple):
    """Hold everything that the accuracy depends on; `activation_bits` is "fp32" or a number as text."""

    weight_bits: int
    activation_bits: str
    granularity: str
    grid: str
    calibration: str


@dataclass(frozen=True)
class QuantizationAnswer:
    """Hold what was measured at one setting of the quantization panel.

    `quantizer` is that of the weights of `layer`, which is shown. `curve` is accuracy by weight bits on the first
    images, as far as it has been measured. `packed`, the bytes of the file, `layers`, the number of different weights
    and the error of the output of each, and `test`, the accuracy on the test part, are empty until they are there.
    """

    setting: Quantization
    layer: str
    quantizer: Quantizer
    comparison: Comparison
    curve: dict[int, float]
    test: Accuracy | None
    packed: int | None = None
    layers: dict[str, tuple[int, float]] = field(default_factory=dict)


class QuantizationPicture:
    """Hold the figure for one layer and everything that moves on it; `name` says in words which layer it is."""

    def __init__(self, name: str, weight: Tensor, images: Tensor):
        self._weight, self._images = weight, images
        self._limit = MARGIN * (weight.abs().max().item() or 1.0)
        figure = new_figure(*SIZE)
        self._curve = AccuracyCurve(
            figure.add_axes((0.085, 0.41, 0.4, 0.52)),
            COLOR,
            BITS,
            xlabel="bits of a weight",
            title=f"here (orange), and at other bits on {FIRST:,} images (grey)",
        )
        moving = [
            *self._curve.moving,
            self._add_weights(figure.add_axes((0.575, 0.655, 0.395, 0.275)), name),
            *self._add_grids(figure.add_axes((0.575, 0.41, 0.395, 0.19))),
        ]
        figure.text(
            0.5,
            0.235,
            "Some that only the dense network reads (label → answer of the quantized one):",
            ha="center",
            fontsize=9,
        )
        self._canvas = Canvas(figure, moving)

    def png(self, answer: QuantizationAnswer) -> bytes:
        """Return the picture of an answer."""
        comparison, accuracy = answer.comparison, answer.comparison.accuracy
        self._curve.set(answer.curve, answer.setting.weight_bits, accuracy.value, accuracy.interval)
        self._quantized.set_data(self._count(answer.quantizer(self._weight)))
        self._set_grids(levels(answer.quantizer, self._weight), answer.setting.granularity)
        digits = digit_strip(self._images, comparison.labels, comparison.answers, comparison.lost)
        return self._canvas.png(digits, LEFT, TOP)

    def _count(self, weight: Tensor) -> np.ndarray:
        """Return how many weights lie in each bin, (BINS,)."""
        return torch.histc(weight, BINS, -self._limit, self._limit).numpy()

    def _add_weights(self, axes: Axes, name: str) -> Artist:
        edges, counts = np.linspace(-self._limit, self._limit, BINS + 1), self._count(self._weight)
        axes.set_yscale("log")  # else neither a few outliers nor half of all weights in one bin could be seen
        axes.set(xlim=(-self._limit, self._limit), ylim=(0.6, 1.5 * counts.sum()), ylabel="how many (log)")
        axes.tick_params(labelbottom=False)
        axes.set_title(f"layer {name} (orange: quantized)", fontsize=9, loc="right")
        axes.stairs(counts, edges, fill=True, color=PALE)
        self._quantized = axes.stairs(counts, edges, fill=True, color=COLOR)
        return self._quantized

    def _add_grids(self, axes: Axes) -> list[Artist]:
        axes.set(xlim=(-self._limit, self._limit), ylim=(1, 0), xlabel="weight", yticks=[])
        self._ticks = axes.vlines([], 0, 1, colors=DARK)
        self._caption = axes.text(0.5, 1.06, "", transform=axes.transAxes, ha="center", fontsize=9)
        return [self._ticks, self._caption]

    def _set_grids(self, grids: Tensor, granularity: str) -> None:
        """Draw each grid, of many some, as a row of ticks; `grids` (rows, levels)."""
        rows, count = grids.shape
        shown = grids[torch.linspace(0, rows - 1, min(rows, GRIDS)).long()]
        x, top = shown.flatten().numpy(), (np.arange(len(shown)).repeat(count) + 0.1) / len(shown)
        self._ticks.set_segments(np.stack([x, top, x, top + 0.8 / len(shown)], axis=1).reshape(-1, 2, 2))
        self._ticks.set_linewidth(1.5 if count <= 16 else 0.5)
        each = f"each channel ({len(shown)} of {rows})" if granularity == "per_channel" else "the whole layer"
        self._caption.set_text(f"a grid of {count} levels for {each}")


def levels(quantizer: Quantizer, weight: Tensor) -> Tensor:
    """Return the values that the quantizer has for a weight, a row for each grid, (rows, levels)."""
    codes, decode = quantizer.encode(weight)
    count = max(2**quantizer.num_bits, int(codes.max()) + 1)  # beside two signs, a pruned weight is 0
    return (torch.arange(count) - decode["zero_point"].reshape(-1, 1)) * decode["scale"].reshape(-1, 1)


def title(answer: QuantizationAnswer) -> str:
    """Return the bits and their accuracy in a line."""
    weights, activations, *_ = answer.setting
    activations = activations if activations == "fp32" else f"{activations}-bit"
    return title_of(f"{weights}-bit weights, {activations} activations", answer.comparison)
