"""Prune a network live: what a sparsity costs in accuracy and saves in bytes."""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

from kd_lab.cost import file_bytes, zip_stepwise
from kd_lab.data import Mnist
from kd_lab.networks.copies import copied
from kd_lab.networks.layers import describe, weights
from kd_lab.panels.canvas import COLOR, PALE, WIDTH, Canvas, LostDigits, new_accuracy_curve, new_figure
from kd_lab.panels.controls import FractionSlider, dropdown
from kd_lab.panels.measurement import CurveAnswer, Measurement, dense_network, table, title_of
from kd_lab.panels.panel import Panel, Shown, side_by_side
from kd_lab.pruning import IMPORTANCES, SCOPES, Ranking, importances, rank

MAX_SPARSITY = 0.99
CURVE = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99)
GRADIENT_IMAGES = 1000
HEIGHT, TABLES_HEIGHT = 340, 210  # in pixels
BINS = 101  # of the histogram


class Pruning(NamedTuple):
    """Everything that a pruned network depends on."""

    sparsity: float
    importance: str
    scope: str


@dataclass(frozen=True)
class PruningAnswer(CurveAnswer):
    """What was measured at one setting of the pruning panel.

    `masks` (bool, True keeps) are in the order of the layers; `thresholds` are the smallest |w| kept, one for each
    group that was ranked together, none where weights aren't chosen by magnitude. `zipped` are the bytes zipped, None
    until they are there.
    """

    masks: dict[str, Tensor]
    thresholds: list[float]
    zipped: int | None = None


class PruningPanel(Panel):
    """Prune any network live by sparsity, importance and scope.

    `data` is what load_mnist() gives: gradients are averaged over the first 1,000 training images, accuracy is measured
    on the validation part, first on 1,000 images, then on all; only the button "Reveal test" reads the test part.
    """

    def __init__(self, model: nn.Module, data: Mnist):
        self._dense, data = dense_network(model, data)
        self._scratch = copied(self._dense)
        self._weights = weights(self._dense)
        self._data = data
        self._validation = Measurement(self._dense, data.validation, self.steps)
        self._bytes = file_bytes(self._dense)
        self._ranking = functools.cache(self._rank)
        self._curves: dict[tuple[str, str], dict[float, float]] = {}
        every = torch.cat([weight.value.detach().flatten() for weight in self._weights.values()])
        self._drawing = PruningPicture(every.float(), self._validation)
        controls = {
            "sparsity": FractionSlider(label="sparsity", max=MAX_SPARSITY, value=0.5),
            "importance": dropdown("importance", IMPORTANCES),
            "scope": dropdown("scope", SCOPES),
        }
        super().__init__(controls, (WIDTH, HEIGHT), TABLES_HEIGHT, data.test)

    def measure(self, sparsity: float, importance: str, scope: str) -> Iterator[PruningAnswer]:
        """Yield what this setting gives on 1,000 images, on all, and with bytes and curve."""
        setting, ranking = Pruning(sparsity, importance, scope), self._ranking(importance, scope)
        masks, curve = ranking.masks(sparsity), self._curves.setdefault((importance, scope), {})
        thresholds = self._thresholds(masks, scope) if importance == "magnitude" and sparsity > 0 else []
        for comparison in self._validation.compare(self._masked(masks)):
            answer = PruningAnswer(setting, comparison, curve, sparsity, masks, thresholds)
            yield answer
        *_, zipped = self.steps(zip_stepwise(self._masked(masks)))
        answer = replace(answer, zipped=zipped)
        yield answer
        for _ in self._validation.complete(curve, CURVE, lambda place: self._masked(ranking.masks(place))):
            yield answer

    def networks(self, answer: PruningAnswer) -> list[nn.Module]:
        """Return the pruned network."""
        return [self._masked(answer.masks)]

    def _rank(self, importance: str, scope: str) -> Ranking:
        return rank(importances(self._dense, importance, self._data.train[:GRADIENT_IMAGES]), scope)

    def _masked(self, masks: dict[str, Tensor]) -> nn.Module:
        """Return the dense network under these masks; the next call writes others into the same one."""
        pruned = weights(self._scratch)
        with torch.no_grad():
            for name, mask in masks.items():
                torch.mul(self._weights[name].value, mask, out=pruned[name].value)
        return self._scratch

    def _thresholds(self, masks: dict[str, Tensor], scope: str) -> list[float]:
        """Return the smallest |w| that is kept, of all layers or of each that keeps one."""
        sizes = {name: self._weights[name].value.abs().masked_fill(~mask, math.inf) for name, mask in masks.items()}
        kept = [size.min().item() for name, size in sizes.items() if masks[name].any()]
        return [min(kept)] if scope == "global" else kept

    def draw(self, answer: PruningAnswer) -> Shown:
        """Draw the picture and write the tables."""
        setting = answer.setting
        pruned = f"{100 * setting.sparsity:.4g} % pruned by {setting.importance}, {setting.scope}"
        costs = [
            ["file, dense", f"{self._bytes:,} bytes"],
            ["file, with zeros", f"{self._bytes:,} bytes"],  # as many numbers as before
            ["the same, zipped", "…" if answer.zipped is None else f"{answer.zipped:,} bytes"],
        ]
        tables = side_by_side(self.scores(answer, costs=costs), self._layer_table(answer))
        return Shown(title_of(pruned, answer.comparison), self._drawing.png(answer, self.pinned), tables)

    def _layer_table(self, answer: PruningAnswer) -> str:
        """Return how much of each layer is pruned; one that has nothing left is named so."""
        rows = []
        for name, mask in answer.masks.items():
            pruned = 1 - mask.float().mean().item()
            said = f"{100 * pruned:.1f} %" if pruned < 1 else "100 %: nothing left"
            rows.append([name, describe(self._weights[name].module), f"{mask.numel():,}", said])
        return table(rows, ["layer", "", "weights", "pruned"], left=2)


class PruningPicture:
    """Accuracy over sparsity, the weights (count,) that are left, in the order of the masks, and the lost digits."""

    def __init__(self, weights: Tensor, validation: Measurement):
        figure = new_figure(HEIGHT)
        self._digits = LostDigits(figure, validation.images, "pruned")
        title = f"here (orange), and elsewhere on {validation.first:,} images (grey)"
        axes = figure.add_axes((0.095, 0.425, 0.39, 0.5))
        self._curve = new_accuracy_curve(axes, validation.by_chance, xlabel="sparsity", title=title)
        self._add_weights(figure.add_axes((0.575, 0.425, 0.41, 0.5)), weights)
        self._canvas = Canvas(figure, [*self._curve.moving, self._kept, self._thresholds])

    def png(self, answer: PruningAnswer, pinned: PruningAnswer | None) -> bytes:
        """Return the picture of an answer."""
        self._curve.show(answer, pinned)
        kept = torch.cat([mask.flatten() for mask in answer.masks.values()]).numpy()
        self._kept.set_data(np.bincount(self._bins[kept], minlength=BINS))
        ends = [end for threshold in answer.thresholds for end in (-threshold, threshold)]
        self._thresholds.set_segments([[(end, 0), (end, 1)] for end in ends])
        return self._canvas.png(*self._digits.inset(answer.comparison))

    def _add_weights(self, axes: Axes, weights: Tensor) -> None:
        limit = float(np.quantile(weights.abs().numpy(), 0.9995)) or 1.0
        edges = np.linspace(-limit, limit, BINS + 1)
        self._bins = np.digitize(weights.numpy(), edges[1:-1])  # the outermost have what lies beyond, too
        counts = np.bincount(self._bins, minlength=BINS)
        axes.set_yscale("function", functions=(np.sqrt, np.square))  # else the few kept at 99 % could not be seen
        axes.set(xlim=(-limit, limit), ylim=(0, 1.1 * counts.max()), xlabel="weight", ylabel="how many (root scale)")
        ticks, most = (10, 100, 1000, 5000, 10_000, 30_000, 100_000), counts.max()
        axes.set_yticks([count for count in ticks if most / 400 < count < most])  # smaller ones would touch the axis
        axes.yaxis.set_major_formatter(lambda count, _place: f"{count / 1000:g}k" if count >= 1000 else f"{count:g}")
        axes.set_title("kept (orange), all (grey), threshold (dashed)", fontsize=9)
        axes.stairs(counts, edges, fill=True, color=PALE)
        self._kept = axes.stairs(counts, edges, fill=True, color=COLOR)
        where = {"transform": axes.get_xaxis_transform()}
        self._thresholds = axes.vlines([], 0, 1, colors="black", linestyles="--", linewidth=1, **where)
