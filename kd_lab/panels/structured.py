"""Remove channels live: what a narrower network costs in accuracy and saves in bytes and milliseconds."""

from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import Any

import ipywidgets as widgets
import torch
from torch import Tensor, nn

from kd_lab.cost import count_macs, count_parameters, file_bytes, latency
from kd_lab.data import Mnist
from kd_lab.networks.layers import describe
from kd_lab.panels.measurement import Measurement, dense_network, side_by_side, table
from kd_lab.panels.panel import Panel, Shown
from kd_lab.panels.slider import FractionSlider
from kd_lab.panels.structured_picture import SIZE, StructuredAnswer, StructuredPicture, share_removed, title
from kd_lab.pruning import IMPORTANCES, Ranking, rank, remove_channels
from kd_lab.pruning.channels import channel_importances
from kd_lab.pruning.groups import find_groups

MOST = 0.95  # the end of the slider
CURVE = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
GRADIENT_IMAGES = 1000
BATCH_SIZES = (1, 256)
TABLES_HEIGHT = 250
ALL = "all layers"


class StructuredPruningPanel(Panel):
    """Remove channels and units of any network live, by one ratio or layer by layer, and measure what is left.

    The slider sets the ratio of the chosen layer, and of every one while "all layers" is chosen. `data` is what
    load_mnist() gives: gradients are averaged over the first 1,000 training images, accuracy is measured on the
    validation part, first on 1,000 images, then on all; then the curve, and last the latency, on this machine.
    """

    def __init__(self, model: nn.Module, data: Mnist):
        self._dense = dense_network(model, data)
        self._groups = find_groups(self._dense)
        self._data, self._validation = data, Measurement(self._dense, data.validation)
        self._costs = _costs(self._dense)
        self._rankings: dict[str, Ranking] = {}
        self._curves: dict[str, dict[float, float]] = {importance: {} for importance in IMPORTANCES}
        self._drawing = StructuredPicture(self._dense, self._groups)
        self._ratios = dict.fromkeys(self._groups, 0.5)
        self._names = {
            f"{' + '.join(group.producers)}: {describe(self._dense.get_submodule(name))}": name
            for name, group in self._groups.items()
        }
        controls = {
            "ratio": FractionSlider(label="ratio", max=MOST, value=0.5),
            "layer": widgets.Dropdown(options=[ALL, *self._names], description="layer"),
            "importance": widgets.Dropdown(options=list(IMPORTANCES), description="importance"),
        }
        controls["layer"].observe(self._choose, names="value")  # before the panel looks at its setting
        controls["ratio"].observe(self._set_ratio, names="value")
        super().__init__(controls, SIZE, TABLES_HEIGHT)

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

    def measure(self, ratios: dict[str, float], importance: str) -> Iterator[StructuredAnswer | None]:
        """Yield what this setting gives on 1,000 images, on all, with the curve, and with the latency."""
        masks, curve = self._masks(ratios, importance), self._curves[importance]
        smaller = remove_channels(self._dense, masks)
        costs = _costs(smaller)
        for comparison in self._validation.compare(smaller):
            answer = comparison and StructuredAnswer(ratios, importance, comparison, masks, costs, curve)
            yield answer
        alike = [self._masks(dict.fromkeys(self._groups, ratio), importance) for ratio in CURVE]
        alike = {share_removed(each): each for each in alike}
        yield from self._validation.complete(
            curve, alike, lambda place: remove_channels(self._dense, alike[place]), answer
        )
        for batch_size in BATCH_SIZES:
            seconds = yield from self._time(smaller, batch_size)
            answer = replace(answer, seconds=answer.seconds | {batch_size: seconds})
            yield answer

    def _time(self, smaller: nn.Module, batch_size: int) -> Generator[None, None, tuple[float, float]]:
        """Return the seconds of the dense and of the smaller network, the better of two turns."""
        turns = []
        for model in (self._dense, smaller) * 2:  # in turn, so that a busy neighbour slows both
            yield None
            turns.append(latency(model, batch_size))
        return min(turns[::2]), min(turns[1::2])

    def _masks(self, ratios: dict[str, float], importance: str) -> dict[str, Tensor]:
        """Return which channels stay, at least one of each group."""
        if importance not in self._rankings:
            data = self._data.train[:GRADIENT_IMAGES]
            self._rankings[importance] = rank(
                channel_importances(self._dense, self._groups, importance, data), "per_layer"
            )
        return self._rankings[importance].masks(
            {name: min(ratio, 1 - 1 / self._groups[name].size) for name, ratio in ratios.items()}
        )

    def draw(self, answer: StructuredAnswer) -> Shown:
        """Draw the picture and write the tables."""
        accuracy, difference = answer.comparison.accuracy, answer.comparison.difference
        return Shown(
            title(answer),
            self._drawing.png(answer),
            f"<div style='line-height: 1.4'>accuracy {accuracy}<br>change against dense {difference}</div>"
            + side_by_side(self._cost_table(answer), self._layer_table(answer)),
        )

    def _cost_table(self, answer: StructuredAnswer) -> str:
        rows = [
            [name, f"{dense:,}", f"{left:,}", f"{dense / left:.2f} ×"]
            for name, dense, left in zip(
                ("parameters", "bytes of the file", "MACs of an image"), self._costs, answer.costs, strict=True
            )
        ]
        for batch_size in BATCH_SIZES:
            dense, left = answer.seconds.get(batch_size, (None, None))
            rows.append(
                [
                    f"ms for {batch_size} image{'s' * (batch_size > 1)}",
                    *([f"{1000 * dense:.3g}", f"{1000 * left:.3g}", f"{dense / left:.2f} ×"] if dense else ["…"] * 3),
                ]
            )
        costs = table(rows, ["", "dense", "pruned", "factor"])
        threads = torch.get_num_threads()
        return f"{costs}measured here, on {threads} thread{'s' * (threads > 1)}"

    def _layer_table(self, answer: StructuredAnswer) -> str:
        """Return what is left of each group; where a ratio would leave nothing, that is said."""
        rows = []
        for label, name in self._names.items():
            ratio, size = answer.ratios[name], self._groups[name].size
            last = " (none would be left, so one stays)" if round(ratio * size) == size else ""
            rows.append([label + last, f"{100 * ratio:.4g} %", f"{int(answer.masks[name].sum())} of {size}"])
        return table(rows, ["layer", "ratio", "kept"])


def _costs(model: nn.Module) -> tuple[int, ...]:
    return count_parameters(model), file_bytes(model), count_macs(model)
