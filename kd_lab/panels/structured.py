"""Remove channels live: what a narrower network costs in accuracy and saves in bytes and milliseconds."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from torch import Tensor, nn

from kd_lab.data import Mnist
from kd_lab.networks.layers import CONVOLUTIONS, describe, weighted_layers
from kd_lab.panels.canvas import COLOR, GREY, WIDTH, Canvas, new_accuracy_curve, new_figure
from kd_lab.panels.controls import FractionSlider, dropdown
from kd_lab.panels.measurement import (
    CurveAnswer,
    Measurement,
    cost_table,
    counted_costs,
    dense_network,
    table,
    title_of,
)
from kd_lab.panels.panel import Panel, Shown, side_by_side
from kd_lab.pruning import IMPORTANCES, Group, Ranking, rank
from kd_lab.pruning.channels import channel_importances, narrowed
from kd_lab.pruning.groups import find_groups

MAX_RATIO = 0.95
CURVE = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
GRADIENT_IMAGES = 1000
HEIGHT, TABLES_HEIGHT = 300, 230  # in pixels
ALL = "all layers"
READ = "in_features", "in_channels", "embedding_dim", "input_size", "embed_dim"
GIVEN = "out_features", "out_channels", "embedding_dim", "hidden_size", "embed_dim"
MAX_COLUMNS = 10  # of more layers only those are drawn whose channels can go
LIGHT, TEXT = "#fde3d3", "#4b5563"
LINE = 0.1  # the height of a line of text, in that of the tallest column
HALF_WIDTH = 0.3  # of a column; the next stands 1 to the right
MIN_HEIGHT = 0.006  # of a column, in that of the tallest: one unit of many must be seen


class Structured(NamedTuple):
    """Everything that a narrower network depends on; the ratios are by group."""

    ratios: dict[str, float]
    importance: str


@dataclass(frozen=True)
class StructuredAnswer(CurveAnswer):
    """What was measured at one setting of the structured pruning panel; its place is the share of channels removed.

    `masks` (bool, True keeps) are by group; `costs` those of the narrower network. `seconds` are the latencies of the
    dense network and of this one by batch size, as far as they are there.
    """

    masks: dict[str, Tensor]
    costs: dict[str, int]
    seconds: dict[int, tuple[float, float]] = field(default_factory=dict)


class StructuredPruningPanel(Panel):
    """Remove channels and units of any network live, by one ratio or layer by layer, and measure what is left.

    The slider sets the ratio of the chosen layer, and of every one while "all layers" is chosen. `data` is what
    load_mnist() gives: gradients are averaged over the first 1,000 training images, accuracy is measured on the
    validation part, first on 1,000 images, then on all; then the curve, and last the latency, on this machine.
    """

    def __init__(self, model: nn.Module, data: Mnist):
        self._dense, data = dense_network(model, data)
        self._images = data.validation.images[:2]  # of the size that the network reads
        self._groups = find_groups(self._dense, images=self._images)
        self._data, self._validation = data, Measurement(self._dense, data.validation, self.steps)
        self._costs = counted_costs(self._dense, self._images)
        self._ranking = functools.cache(self._rank)
        self._curves: dict[str, dict[float, float]] = {importance: {} for importance in IMPORTANCES}
        self._drawing = StructuredPicture(self._dense, self._groups, self._validation)
        self._ratios = dict.fromkeys(self._groups, 0.5)
        self._names = {
            f"{' + '.join(group.producers)}: {describe(self._dense.get_submodule(name))}": name
            for name, group in self._groups.items()
        }
        controls = {
            "ratio": FractionSlider(label="ratio", max=MAX_RATIO, value=0.5),
            "layer": dropdown("layer", [ALL, *self._names]),
            "importance": dropdown("importance", IMPORTANCES),
        }
        controls["layer"].observe(self._choose, names="value")  # before the panel looks at its setting
        controls["ratio"].observe(self._set_ratio, names="value")
        super().__init__(controls, (WIDTH, HEIGHT), TABLES_HEIGHT)

    @property
    def setting(self) -> dict[str, Any]:
        """Return the ratio of every group, and the importance."""
        return {"ratios": dict(self._ratios), "importance": self.controls["importance"].value}

    def set(self, **values: Any) -> None:
        """Set controls by name, the layer before its ratio; all are checked before any is changed."""
        super().set(**dict(sorted(values.items())))

    def _choose(self, change: dict) -> None:
        """Move the slider to the ratio of the layer that was chosen; all layers keep theirs until it moves."""
        if change["new"] != ALL:
            self.controls["ratio"].value = self._ratios[self._names[change["new"]]]

    def _set_ratio(self, change: dict) -> None:
        layer = self.controls["layer"].value
        self._ratios |= dict.fromkeys(self._groups if layer == ALL else [self._names[layer]], change["new"])

    def _remember(self) -> Callable[[], None]:
        """Return a function that moves the controls back, and gives every group the ratio that it has now."""
        move_controls, ratios = super()._remember(), dict(self._ratios)

        def go_back() -> None:
            move_controls()
            self._ratios = dict(ratios)

        return go_back

    def measure(self, ratios: dict[str, float], importance: str) -> Iterator[StructuredAnswer]:
        """Yield what this setting gives on 1,000 images, on all, with the curve, and with the latency."""
        masks, curve = self._masks(ratios, importance), self._curves[importance]
        smaller = self._narrowed(masks)
        known = masks, counted_costs(smaller, self._images)
        for comparison in self._validation.compare(smaller):
            answer = StructuredAnswer(Structured(ratios, importance), comparison, curve, share_removed(masks), *known)
            yield answer
        masked = [self._masks(dict.fromkeys(self._groups, ratio), importance) for ratio in CURVE]
        alike = {share_removed(each): each for each in masked}
        for _ in self._validation.complete(curve, alike, lambda place: self._narrowed(alike[place])):
            yield answer
        for seconds in self._validation.seconds(smaller):
            yield replace(answer, seconds=seconds)

    def _narrowed(self, masks: dict[str, Tensor]) -> nn.Module:
        return narrowed(self._dense, self._groups, masks, self._images)

    def _masks(self, ratios: dict[str, float], importance: str) -> dict[str, Tensor]:
        """Return which channels stay, at least one of each group."""
        most = {name: 1 - 1 / group.size for name, group in self._groups.items()}
        return self._ranking(importance).masks({name: min(ratio, most[name]) for name, ratio in ratios.items()})

    def _rank(self, importance: str) -> Ranking:
        data = self._data.train[:GRADIENT_IMAGES]
        return rank(channel_importances(self._dense, self._groups, importance, data), "per_layer")

    def draw(self, answer: StructuredAnswer) -> Shown:
        """Draw the picture and write the tables."""
        removed = f"{100 * answer.place:.3g} % removed by {answer.setting.importance}"
        costs = cost_table(self._costs, answer.costs, answer.seconds, answer.kind)
        tables = side_by_side(self.scores(answer) + costs, self._layer_table(answer))
        return Shown(title_of(removed, answer.comparison), self._drawing.png(answer, self.pinned), tables)

    def _layer_table(self, answer: StructuredAnswer) -> str:
        """Return what is left of each group; where a ratio would leave nothing, that is said."""
        rows = []
        for label, name in self._names.items():
            ratio, size = answer.setting.ratios[name], self._groups[name].size
            last = " (none would be left, so one stays)" if round(ratio * size) == size else ""
            rows.append([label + last, f"{100 * ratio:.4g} %", f"{int(answer.masks[name].sum())} of {size}"])
        return table(rows, ["layer", "ratio", "kept"])


def share_removed(masks: dict[str, Tensor]) -> float:
    """Return the share of all channels that the masks remove, 0 to 1."""
    return 1 - sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())


class StructuredPicture:
    """The widths of a network beside the dense ones, and accuracy over the channels removed."""

    def __init__(self, dense: nn.Module, groups: dict[str, Group], validation: Measurement):
        layers = _drawn(weighted_layers(dense), groups)
        first = next(iter(layers.values()))
        self._dense = [_size(first, READ), *(_size(layer, GIVEN) for layer in layers.values())]
        self._units = ["channels" if isinstance(layer, CONVOLUTIONS) else "units" for layer in layers.values()]
        self._units.insert(0, "channels" if isinstance(first, CONVOLUTIONS) else "pixels")
        group_of = {layer: name for name, group in groups.items() for layer in group.layers}
        self._groups = [None, *map(group_of.get, layers)]
        self._passed_on = {1 + place for place, layer in enumerate(layers) if layer in _passed_on(groups)}
        figure = new_figure(HEIGHT)
        names = ["input", *(name.replace(".", "\n") for name in layers)]
        network = self._add_network(figure.add_axes((0.01, 0.02, 0.6, 0.89)), names)
        title = f"here (orange); all layers alike,\non {validation.first:,} images (grey)"
        axes = figure.add_axes((0.69, 0.16, 0.285, 0.71))
        self._curve = new_accuracy_curve(axes, validation.by_chance, xlabel="channels and units removed", title=title)
        self._canvas = Canvas(figure, [*network, *self._curve.moving])

    def png(self, answer: StructuredAnswer, pinned: StructuredAnswer | None) -> bytes:
        """Return the picture of an answer."""
        left = {group: mask.float().mean().item() for group, mask in answer.masks.items()}  # the share
        widths = zip(self._groups, self._dense, strict=True)
        self._set_widths([round(left.get(group or "", 1) * width) for group, width in widths])
        self._curve.show(answer, pinned)
        return self._canvas.png()

    def _add_network(self, axes: Axes, names: list[str]) -> list[Artist]:
        lines = LINE * max(name.count("\n") for name in names)
        axes.set(xlim=(-0.6, len(names) - 0.4), ylim=(-0.88 - lines, 0.72))
        axes.axis("off")
        axes.set_title("kept (orange) of what the dense network has (outline); grey stays whole", fontsize=9)
        heights, places = self._heights(self._dense), range(len(names))
        axes.bar(places, heights, 2 * HALF_WIDTH, -heights / 2, fill=False, edgecolor=GREY, linestyle="--")
        self._flow = axes.add_collection(PolyCollection([], facecolor=LIGHT))
        colors = [COLOR if group else GREY for group in self._groups]
        self._columns = axes.bar(places, heights, 2 * HALF_WIDTH, -heights / 2, color=colors)
        below = {"ha": "center", "va": "top", "fontsize": 8}
        self._labels = [axes.text(place, -0.65 - lines, "", linespacing=1.4, **below) for place in places]
        for place, name in enumerate(names):
            axes.text(place, -0.54, name, color=TEXT, **below)
        self._join(axes, heights)
        self._set_widths([max(1, width // 2) for width in self._dense])
        return [self._flow, *self._columns, *self._labels]

    def _join(self, axes: Axes, heights: np.ndarray) -> None:
        """Draw an arc between layers whose outputs are added."""
        style = dict(arrowstyle="-", connectionstyle="arc3,rad=-0.25", color=TEXT, shrinkA=0, shrinkB=0)
        for group in dict.fromkeys(filter(None, self._groups)):
            places = [
                place for place, each in enumerate(self._groups) if each == group and place not in self._passed_on
            ]
            top = max(heights[places]) / 2 + 0.02
            for one, other in pairwise(places):
                axes.annotate("", (other, top), (one, top), arrowprops=style)
            if len(places) > 1:
                axes.text(np.mean(places), top + 0.12, "added, so pruned together", ha="center", fontsize=8, color=TEXT)

    def _heights(self, widths: list[int]) -> np.ndarray:
        return np.maximum(np.array(widths) / max(self._dense), MIN_HEIGHT)

    def _set_widths(self, widths: list[int]) -> None:
        heights = self._heights(widths)
        for column, height in zip(self._columns, heights, strict=True):
            column.set(y=-height / 2, height=height)
        self._flow.set_verts([_flow(place, *ends) for place, ends in enumerate(pairwise(heights / 2))])
        for label, dense, width, units in zip(self._labels, self._dense, widths, self._units, strict=True):
            count = f"{dense} → {width}" if width < dense else f"{dense}"
            label.set_text(f"{count}\n{units if dense > 1 else units[:-1]}")


def _drawn(layers: dict[str, nn.Module], groups: dict[str, Group]) -> dict[str, nn.Module]:
    """Return the layers that have a column: all or, of many, the first of each group and the last of the network."""
    shown = [*groups, *list(layers)[-1:]]
    return {name: layer for name, layer in layers.items() if name in shown or len(layers) < MAX_COLUMNS}


def _size(layer: nn.Module, numbers: tuple[str, ...]) -> int:
    """Return the one of these numbers that a layer has; the weight of a grouped one has others."""
    return next(vars(layer)[number] for number in numbers if number in vars(layer))


def _passed_on(groups: dict[str, Group]) -> set[str]:
    return {layer for group in groups.values() for layer in group.grouped}


def _flow(place: int, left: float, right: float) -> list[tuple[float, float]]:
    """Return the corners of what joins the column at a place to the next; they reach from -left and -right upwards."""
    start, end = place + HALF_WIDTH, place + 1 - HALF_WIDTH
    return [(start, -left), (start, left), (end, right), (end, -right)]
