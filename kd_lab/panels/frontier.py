"""Give a budget of bytes, and see the best file known within it: its layers, its filters, and what it reads wrongly."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from statistics import mean
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from torch import Tensor, nn

from kd_lab.compression.known import KnownFile, best_within, error_frontier, recorded_files, submitted_files
from kd_lab.cost import count_nonzeros
from kd_lab.data import Mnist
from kd_lab.errors import KdLabError, ParameterError, StorageError
from kd_lab.evaluation import accuracy
from kd_lab.formats.kdz import COMPACT, COMPACT_SCHEMA, SCHEMA_END, pack, unpack
from kd_lab.networks.copies import copied
from kd_lab.networks.layers import describe, weights
from kd_lab.panels.canvas import (
    COLOR,
    DARK,
    GREY,
    SIDE,
    STRIP_HEIGHT,
    STRIP_WIDTH,
    WIDTH,
    Canvas,
    Traces,
    digit_strip,
    new_figure,
)
from kd_lab.panels.controls import StopSlider
from kd_lab.panels.measurement import Cache, Comparison, Measurement, dense_network, table, title_of
from kd_lab.panels.panel import Panel, Shown, side_by_side
from kd_lab.plots import plain_log

CHOSEN, LARGER, SMALLER = "this file", "next larger", "next smaller"
KEPT = 12  # networks, of a few hundred kilobytes each
HEIGHT, TABLES_HEIGHT = 430, 370  # in pixels
FILTERS = 236, 288  # the height and width in which they are drawn, in pixels
MOST_FILTERS = 24
GAP = 8  # pixels between filters
LEVELS = 31  # of their colours
WORST = 10.0  # % of error that is drawn, where a learner's files are; worse ones lie on the edge
BIASES, REST = "biases", "header, layers"


class Choice(NamedTuple):
    """Everything that an answer depends on."""

    file: str
    bytes: int


@dataclass(frozen=True)
class FrontierAnswer:
    """What the best file within a budget reads, beside its neighbour among the best.

    `parts` are the bytes of each layer's weights, and of the rest, as far as they are known.
    """

    budget: int
    chosen: KnownFile
    other: KnownFile
    comparison: Comparison
    parts: dict[str, int] = field(default_factory=dict)

    @property
    def setting(self) -> Choice:
        """Return what the answer depends on: another budget with the same file gives no other answer."""
        return Choice(self.chosen.name, self.chosen.bytes)

    @property
    def files(self) -> dict[str, KnownFile]:
        """Return the file and the one that it is compared with, which is itself where no other one is known."""
        if self.other == self.chosen:
            return {CHOSEN: self.chosen}
        return {CHOSEN: self.chosen, LARGER if self.other.bytes > self.chosen.bytes else SMALLER: self.other}

    @property
    def comparisons(self) -> dict[str, Comparison]:
        """Return what was measured of both."""
        return dict(zip(self.files, (self.comparison, self.comparison.dense), strict=False))


class FrontierPanel(Panel):
    """Show the best file known within a budget of bytes: of those that the kit's campaigns made, or was submitted here.

    Which one is best is said by the mean validation error of its seeds, which the campaigns recorded; that of a
    submission is measured here. The file that is read, and whose filters are drawn, is that of seed 0. `data` is what
    load_mnist() gives; only the button "Reveal test" reads the test part.
    """

    def __init__(self, data: Mnist):
        self._files, self._submitted = recorded_files(), submitted_files()
        if not self._files:
            raise StorageError("none of the files that the kit's campaigns recorded is there.")
        self._models, self._against = Cache(KEPT), Cache(KEPT)
        self._parts: dict[KnownFile, dict[str, int]] = {}
        best = error_frontier(self._files)
        _, data = dense_network(self._model(best[-1]), data)
        self._data = data.validation
        sizes = [each.bytes for each in self._files + self._submitted]
        self._drawing = FrontierPicture(self._files, sizes, self._data.images)
        stops = sorted({each.bytes for each in best + self._submitted})
        ends = {"min": stops[0], "max": stops[-1], "value": best[(len(best) - 1) // 2].bytes}
        budget = StopSlider(label="budget", unit="bytes", stops=stops, **ends)
        super().__init__({"budget": budget}, (WIDTH, HEIGHT), TABLES_HEIGHT, data.test)

    def measure(self, budget: int) -> Iterator[FrontierAnswer]:
        """Yield what the best file reads of 1,000 images and of all, beside what was submitted, then its bytes."""
        answer = None
        for answer in self._answers(budget):
            yield answer
        if self._submitted:
            self._measure_submitted()
            for answer in self._answers(budget):
                yield answer
        if answer is None:
            least = min(each.bytes for each in self._files)
            raise ParameterError(
                f"'budget' must be {least:,} bytes or more, those of the smallest file. Got {budget:,}."
            )
        for parts in self._bytes_by_layer(answer.chosen):
            yield replace(answer, parts=parts)

    def networks(self, answer: FrontierAnswer) -> list[nn.Module]:
        """Return the network of the file."""
        return [self._model(answer.chosen)]

    def _answers(self, budget: int) -> Iterator[FrontierAnswer]:
        """Yield what the best of the measured files within a budget reads, if there is one."""
        chosen, best = best_within(self._files, budget), error_frontier(self._files)
        if chosen is None:
            return
        place = best.index(chosen)
        other = (best[place + 1 :] or best[:place][-1:] or best)[0]
        beside = self._against.fetch((other,), lambda: Measurement(self._model(other), self._data, self.steps))
        for comparison in beside.compare(self._model(chosen)):
            yield FrontierAnswer(budget, chosen, other, comparison, self._parts.get(chosen, {}))

    def _model(self, file: KnownFile) -> nn.Module:
        return self._models.fetch((file,), lambda: unpack(file.content, file.name))

    def _measure_submitted(self) -> None:
        """Measure the mean validation error of each submission; from then on it is one of the known files."""
        for file in self.steps([*self._submitted]):
            try:
                models = [unpack(content, file.name) for content in file.contents]
                error = 100 - 100 * mean(accuracy(model, self._data).value for model in self.steps(models))
            except KdLabError as reason:
                print(f"Left out: {reason}")
            else:
                self._files.append(replace(file, error=error))
            self._submitted.remove(file)

    def _bytes_by_layer(self, file: KnownFile) -> Iterator[dict[str, int]]:
        """Yield the bytes of each layer's weights, and of the rest, one more each time.

        They are what the file loses when the numbers become 0, those of one layer after another.
        """
        if file in self._parts:
            yield self._parts[file]
            return
        emptied = copied(self._model(file))
        parts: dict[str, int] = {}
        coder = COMPACT if file.content[:SCHEMA_END].endswith(COMPACT_SCHEMA) else "range"
        size = whole = len(pack(emptied, coder))
        layers = {name: [weight.value] for name, weight in weights(emptied).items()}
        for name, tensors in self.steps([*layers.items(), (BIASES, [*emptied.parameters()])]):
            for tensor in tensors:
                tensor.data.zero_()
            parts = parts | {name: size - (size := len(pack(emptied, coder)))}
            yield parts
        self._parts[file] = parts | {REST: file.bytes - (whole - size)}
        yield self._parts[file]

    def draw(self, answer: FrontierAnswer) -> Shown:
        """Draw the picture and write the tables."""
        both = answer.files
        costs = [
            ["mean error of its seeds", *(f"{each.error:.2f} % ({each.seeds})" for each in both.values())],
            ["bytes of the file", *(f"{each.bytes:,}" for each in both.values())],
            ["numbers that are not 0", *(f"{count_nonzeros(self._model(each)):,}" for each in both.values())],
        ]
        tables = side_by_side(self.scores(answer, baseline=[*both][-1], costs=costs), self._layer_table(answer))
        picture = self._drawing.png(answer, self.pinned, self._files, self._model(answer.chosen))
        name, size = answer.setting
        return Shown(title_of(f"{name}, {size:,} bytes", answer.comparison), picture, tables)

    def _layer_table(self, answer: FrontierAnswer) -> str:
        """Return the layers in order, each with its weights that are left, their different values and its bytes."""
        model, rows = self._model(answer.chosen), []
        for name, weight in weights(model).items():
            kept = weight.value[weight.value != 0]
            left = f"{len(kept):,} of {weight.value.numel():,}"
            rows.append([name, _in_words(weight.module), left, str(len(kept.unique())), _bytes(answer, name)])
        rows += [["", name, "", "", _bytes(answer, name)] for name in (BIASES, REST)]
        order = " → ".join(name for name, layer in model.named_modules() if not [*layer.children()])
        written = table(rows, ["layer", "", "weights", "values", "bytes"], left=2) + f"In order: {order}."
        return f"<div class='kd-lab-layers' tabindex='0' role='group' aria-label='layers'>{written}</div>"


def _in_words(layer: nn.Module) -> str:
    """Return a layer in words, with the stride of a convolution."""
    stride = max(getattr(layer, "stride", (1,)))
    return f"{describe(layer)}{f', stride {stride}' * (stride > 1)}"


def _bytes(answer: FrontierAnswer, name: str) -> str:
    return f"{answer.parts[name]:,}" if name in answer.parts else "…"


class FrontierPicture:
    """Validation error over bytes of the known files, the filters of the chosen one, and digits that it misreads.

    `files` are those known from the beginning, `sizes` the bytes of all that may come.
    """

    def __init__(self, files: list[KnownFile], sizes: list[int], images: Tensor):
        self._images, errors = images, [each.error for each in files if each.error is not None]
        self._ends = 0.3 * min(errors), max(2 * max(errors), WORST if len(sizes) > len(files) else 0.0)
        figure, (height, width) = new_figure(HEIGHT), FILTERS
        self._add_errors(figure.add_axes((0.085, 0.37, 0.47, 0.55)), sizes)
        self._add_filters(figure.add_axes((0.61, 0.37, width / WIDTH, height / HEIGHT)))
        text = "Some that it reads wrongly (label → its answer):"
        figure.text(0.5, (STRIP_HEIGHT + 11) / HEIGHT, text, ha="center", fontsize=9)
        self._canvas = Canvas(figure, [self._line, self._known, *self._traces.moving, self._filters])

    def png(
        self, answer: FrontierAnswer, pinned: FrontierAnswer | None, files: list[KnownFile], model: nn.Module
    ) -> bytes:
        """Return the picture of an answer; `files` are those that are measured by now."""
        self._traces.show(answer, pinned)
        for line, points in ((self._known, files), (self._line, error_frontier(files))):
            line.set_data([each.bytes for each in points], self._clipped([each.error for each in points]))
        self._filters.set_data(mosaic(filters(model), *FILTERS))
        right, answers, labels = answer.comparison.right, answer.comparison.answers, answer.comparison.labels
        strip = digit_strip(self._images, labels, answers, (~right).nonzero().flatten())
        return self._canvas.png(strip, (WIDTH - STRIP_WIDTH) // 2, HEIGHT - STRIP_HEIGHT - 4)

    def _points(self, answer: FrontierAnswer) -> list[tuple]:
        """Return the line of the budget, the interval and the error of the file that is read, and its seeds' mean."""
        right, place = answer.comparison.accuracy, [answer.chosen.bytes]
        ends, error, mean_error = (
            self._clipped(errors)
            for errors in (100 - 100 * np.array(right.interval), [100 - 100 * right.value], [answer.chosen.error])
        )
        return [([answer.budget] * 2, self._ends), (2 * place, ends), (place, error), (place, mean_error)]

    def _clipped(self, errors: Any) -> list[float]:
        return np.clip(errors, *self._ends).tolist()

    def _add_errors(self, axes: Axes, sizes: list[int]) -> None:
        axes.set(xscale="log", yscale="log", xlim=(0.85 * min(sizes), 1.18 * max(sizes)), ylim=self._ends)
        axes.set(xlabel="bytes of the file (log)", ylabel="validation error, % (log)")
        plain_log(axes.xaxis)
        plain_log(axes.yaxis)
        axes.grid(alpha=0.3)
        axes.set_title("recipes, means of seeds (grey), chosen (ring), its file (dot)", fontsize=9)
        (self._line,) = axes.step([1], [1], where="post", color=GREY, linewidth=1)
        (self._known,) = axes.plot([1], [1], "o", color=GREY, markersize=4)
        self._traces = Traces(
            self._points,
            *axes.plot([1], [1], "--", color=DARK, linewidth=1),
            *axes.plot([1], [1], "_-", color=COLOR, markersize=12),
            *axes.plot([1], [1], "o", color=COLOR, markersize=5),
            *axes.plot([1], [1], "o", color=COLOR, markersize=11, fillstyle="none"),
        )

    def _add_filters(self, axes: Axes) -> None:
        axes.set_axis_off()
        axes.set_title("first layer's weights (blue < 0 < red)", fontsize=9)
        colors = matplotlib.colormaps["RdBu_r"].resampled(LEVELS).with_extremes(bad="white")
        every = np.linspace(-1, 1, FILTERS[1]) * np.ones(FILTERS)  # so that the palette has every colour
        self._filters = axes.imshow(every, colors, vmin=-1, vmax=1, interpolation="nearest", aspect="auto")


def filters(model: nn.Module) -> np.ndarray:
    """Return the windows (count, rows, columns) of the first layer with weights, from -1 to 1; at most 24.

    A Linear layer that reads images has one of their size for each unit, any other layer its matrix.
    """
    weight = next(iter(weights(model).values())).value.detach().float()
    if weight.dim() < 3:
        weight = weight.reshape(-1, SIDE, SIDE) if weight.shape[-1] == SIDE**2 else weight[None]
    windows = weight.reshape(-1, *weight.shape[-2:])[:MOST_FILTERS].numpy()
    return windows / (np.abs(windows).max() or 1)


def mosaic(windows: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the windows beside and below each other, as large as they fit, NaN around them: (height, width).

    Where not all fit, the beginning of the first one is shown.
    """
    count, rows, columns = windows.shape
    grids = [(-(-count // across), across) for across in range(1, count + 1)]
    fits = [min((height // down - GAP) // rows, (width // across - GAP) // columns) for down, across in grids]
    times, (_down, across) = max(zip(fits, grids, strict=True))
    large = windows.repeat(times, 1).repeat(times, 2) if times > 0 else windows[:1, :height, :width]
    picture = np.full((height, width), np.nan)
    for place, window in enumerate(large):
        top, left = (step * (size + GAP) for step, size in zip(divmod(place, across), window.shape, strict=True))
        picture[top : top + len(window), left : left + len(window[0])] = window
    return picture
