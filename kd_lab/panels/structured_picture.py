"""Draw a network whose channels were removed: its widths beside the dense ones, accuracy over the channels removed."""

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from torch import Tensor, nn

from kd_lab.networks.layers import weighted_layers
from kd_lab.panels.canvas import AccuracyCurve, Canvas, new_figure
from kd_lab.panels.measurement import FIRST, Comparison, title_of
from kd_lab.pruning import Group

SIZE = (800, 340)  # pixels
COLOR, PALE, GREY, TEXT = "#c2410c", "#fde3d3", "#9ca3af", "#4b5563"
HALF = 0.3  # of a column's width; the next stands 1 to the right
LEAST = 0.006  # of the height: one unit of many must be seen


@dataclass(frozen=True)
class StructuredAnswer:
    """Hold what was measured at one setting of the structured pruning panel.

    `masks` (bool, True keeps) are by group; `costs` the parameters, bytes and MACs that are left. `curve` is accuracy
    by the share of channels removed, as far as it has been measured; `seconds` the latency of the dense network and of
    this one by batch size, as far as they are there.
    """

    ratios: dict[str, float]
    importance: str
    comparison: Comparison
    masks: dict[str, Tensor]
    costs: tuple[int, ...]
    curve: dict[float, float]
    seconds: dict[int, tuple[float, float]] = field(default_factory=dict)


class StructuredPicture:
    """Hold the figure and everything that moves on it."""

    def __init__(self, dense: nn.Module, groups: dict[str, Group]):
        layers = weighted_layers(dense)
        first = next(iter(layers.values()))
        self._dense = [first.weight.shape[1], *(len(layer.weight) for layer in layers.values())]
        self._units = [
            "pixels" if isinstance(first, nn.Linear) else "channels",
            *("units" if isinstance(layer, nn.Linear) else "channels" for layer in layers.values()),
        ]
        self._groups = [
            None,
            *(next((name for name, group in groups.items() if layer in group.producers), None) for layer in layers),
        ]
        figure = new_figure(*SIZE)
        network = self._add_network(figure.add_axes((0.01, 0.02, 0.6, 0.9)), ["input", *layers])
        self._curve = AccuracyCurve(
            figure.add_axes((0.69, 0.15, 0.285, 0.73)),
            COLOR,
            xlabel="channels and units removed",
            title=f"here (orange); all layers alike,\non {FIRST:,} images (grey)",
        )
        self._canvas = Canvas(figure, [*network, *self._curve.moving])

    def png(self, answer: StructuredAnswer) -> bytes:
        """Return the picture of an answer."""
        self._set_widths(
            [
                int(answer.masks[group].sum()) if group else width
                for group, width in zip(self._groups, self._dense, strict=True)
            ]
        )
        accuracy = answer.comparison.accuracy
        self._curve.set(answer.curve, share_removed(answer.masks), accuracy.value, accuracy.interval)
        return self._canvas.png()

    def _add_network(self, axes: Axes, names: list[str]) -> list[Artist]:
        axes.set(xlim=(-0.6, len(names) - 0.4), ylim=(-0.88, 0.72))
        axes.axis("off")
        axes.set_title("kept (orange) of what the dense network has (outline); grey stays whole", fontsize=9)
        heights = self._heights(self._dense)
        axes.bar(range(len(names)), heights, 2 * HALF, -heights / 2, fill=False, edgecolor=GREY, linestyle="--")
        self._flow = axes.add_collection(PolyCollection([], facecolor=PALE))
        self._columns = axes.bar(
            range(len(names)),
            heights,
            2 * HALF,
            -heights / 2,
            color=[COLOR if group else GREY for group in self._groups],
        )
        self._labels = [
            axes.text(place, -0.64, "", ha="center", va="top", fontsize=8, linespacing=1.4)
            for place in range(len(names))
        ]
        for place, name in enumerate(names):
            axes.text(place, -0.54, name, ha="center", va="top", fontsize=8, color=TEXT)
        self._join(axes, heights)
        self._set_widths([max(1, width // 2) for width in self._dense])
        return [self._flow, *self._columns, *self._labels]

    def _join(self, axes: Axes, heights: np.ndarray) -> None:
        """Draw an arc between layers whose outputs are added."""
        for group in dict.fromkeys(filter(None, self._groups)):
            places = [place for place, each in enumerate(self._groups) if each == group]
            top = max(heights[places]) / 2 + 0.02
            for one, other in pairwise(places):
                axes.annotate(
                    "",
                    (other, top),
                    (one, top),
                    arrowprops=dict(arrowstyle="-", connectionstyle="arc3,rad=-0.25", color=TEXT, shrinkA=0, shrinkB=0),
                )
            if len(places) > 1:
                axes.text(np.mean(places), top + 0.12, "added, so pruned together", ha="center", fontsize=8, color=TEXT)

    def _heights(self, widths: list[int]) -> np.ndarray:
        return np.maximum(np.array(widths) / max(self._dense), LEAST)

    def _set_widths(self, widths: list[int]) -> None:
        heights = self._heights(widths)
        for column, height in zip(self._columns, heights, strict=True):
            column.set(y=-height / 2, height=height)
        self._flow.set_verts(
            [
                [
                    (place + HALF, -left / 2),
                    (place + HALF, left / 2),
                    (place + 1 - HALF, right / 2),
                    (place + 1 - HALF, -right / 2),
                ]
                for place, (left, right) in enumerate(pairwise(heights))
            ]
        )
        for label, dense, width, units in zip(self._labels, self._dense, widths, self._units, strict=True):
            count = f"{dense} → {width}" if width < dense else f"{dense}"
            label.set_text(f"{count}\n{units if dense > 1 else units[:-1]}")


def share_removed(masks: dict[str, Tensor]) -> float:
    """Return the share of all channels that the masks remove, 0 to 1."""
    return 1 - sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())


def title(answer: StructuredAnswer) -> str:
    """Return the setting and its accuracy in a line."""
    removed = f"{100 * share_removed(answer.masks):.3g} % removed by {answer.importance}"
    return title_of(removed, answer.comparison)
