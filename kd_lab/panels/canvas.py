"""Draw again only what moves, and give the picture as PNG: many times as fast as a new figure."""

import functools
import io
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter
from PIL import Image
from torch import Tensor

from kd_lab.panels.measurement import Comparison, CurveAnswer

WIDTH = 800  # of every picture; all sizes are in pixels
COLOR, GREY, FAINT, PALE, DARK = "#c2410c", "#9ca3af", "#c3c8d0", "#d1d5db", "#1f2937"
COLORS = 256
SIDE = 28  # pixels of a digit, in which others are drawn, too
SIX_BITS = 0b11111100
NO_INSET = np.empty((0, 0, 3))
DIGITS, CELL, CAPTION = 10, 64, 18  # of a strip: how many, how wide, and how high the line above each, in pixels
LINE_HEIGHT, LETTER_WIDTH, LINE_SIZE = 30, 8, 10  # of a title: in pixels, at most on average, and in points
STRIP_WIDTH, STRIP_HEIGHT = DIGITS * CELL, CAPTION + 2 * SIDE


def new_figure(height: int, width: int = WIDTH) -> Figure:
    """Return an empty figure of so many pixels."""
    return Figure(figsize=(width / 100, height / 100), dpi=100)


class Canvas:
    """A figure whose axes stay while the artists in `moving` change."""

    def __init__(self, figure: Figure, moving: Sequence[Artist]):
        self._moving = moving
        self._agg = FigureCanvasAgg(figure)
        for artist in moving:
            artist.set_animated(True)  # which leaves them out of the background
        self._agg.draw()
        self._background = self._agg.copy_from_bbox(figure.bbox)
        self._draw_moving()
        self._palette = _Palette(self._image())  # with everything on it, so that the palette has every colour

    def png(self, inset: np.ndarray = NO_INSET, left: int = 0, top: int = 0) -> bytes:
        """Return the picture with the moving artists as they are now and, pasted on it, an inset (height, width, 3)."""
        self._agg.restore_region(self._background)
        self._draw_moving()
        height, width, _ = inset.shape
        np.asarray(self._agg.buffer_rgba())[top : top + height, left : left + width, :3] = inset
        return _encode(self._palette.reduce(self._image()))

    def _draw_moving(self) -> None:
        for artist in self._moving:
            artist.axes.draw_artist(artist)

    def _image(self) -> Image.Image:
        return Image.fromarray(np.asarray(self._agg.buffer_rgba())).convert("RGB")


class Traces:
    """Lines that follow an answer, and below each the same line of the pinned answer, in faint grey.

    `points` returns the x and y of each line for an answer.
    """

    def __init__(self, points: Callable[[Any], Sequence[tuple]], *lines: Line2D):
        self._points, self.lines = points, lines
        self.pinned = [_faint_copy(line) for line in lines]
        self.moving = [*self.pinned, *lines]

    def show(self, answer: Any, pinned: Any) -> None:
        """Move the lines to an answer, and the faint ones to the pinned one, if there is one."""
        for lines, each in ((self.lines, answer), (self.pinned, pinned)):
            for line, points in zip(lines, self._points(each) if each else [((), ())] * len(lines), strict=True):
                line.set_data(*points)


def _faint_copy(line: Line2D) -> Line2D:
    copy = Line2D([], [])
    copy.update_from(line)
    copy.set(color=FAINT, label="")
    line.axes.add_line(copy)
    return copy


class AccuracyCurve(Traces):
    """Accuracy over a setting, on axes in percent: the measured points, and the present one with its interval."""

    def __init__(self, axes: Axes, curve_color: str = "grey", color: str = COLOR, marker: str = "o", label: str = ""):
        super().__init__(
            _curve_points,
            *axes.plot([], [], ".-", color=curve_color, linewidth=1),
            *axes.plot([0, 0], [0, 1], "_-", color=color, markersize=12),
            *axes.plot([], [], marker, color=color, markersize=5, label=label),
        )
        self.curve, self.bar, self.point = self.lines
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.title.set_fontsize(9)
        axes.grid(alpha=0.3)


def _curve_points(answer: CurveAnswer) -> list[tuple]:
    x, y = np.array(sorted(answer.curve.items())).reshape(-1, 2).T
    accuracy, place = answer.comparison.accuracy, [answer.place]
    return [(x, y), (2 * place, accuracy.interval), (place, [accuracy.value])]


def new_accuracy_curve(axes: Axes, by_chance: float, places: Sequence[int] = (), **texts: str) -> AccuracyCurve:
    """Return the accuracy over a fraction or, where `places` names them, over whole numbers.

    `by_chance` is the accuracy of guessing.
    """
    axes.set(xlim=(-0.02, 1.02), ylim=(0, 1.04), ylabel="accuracy", **texts)
    axes.axhline(by_chance, color="grey", linestyle=":", linewidth=1)
    axes.text(
        0.02, by_chance - 0.02, "guessing", fontsize=8, color="grey", va="top", transform=axes.get_yaxis_transform()
    )
    curve = AccuracyCurve(axes)
    if places:
        axes.set_xticks(places, places)
        axes.set_xlim(places[0] - 0.4, places[-1] + 0.4)
    return curve


def set_root_scale(axes: Axes) -> None:
    """Draw accuracies by the root of the error, else what lies between 95 % and 99 % could not be told apart."""
    axes.set_yscale("function", functions=(lambda y: -np.sqrt(np.clip(1 - y, 0, 1)), lambda root: 1 - root**2))
    axes.set(ylim=(0, 1), ylabel="accuracy (root scale)")
    axes.set_yticks([0, 0.5, 0.8, 0.9, 0.95, 0.98, 1])


class _Palette:
    """The commonest colours of an image, which others are given in: a PNG is then written in a third of the time.

    Pillow finds a colour by its first six bits, so no two may agree in these; and it is looked up by these bits alone,
    since white would come back as its grey neighbour otherwise.
    """

    def __init__(self, image: Image.Image):
        colors: dict[tuple[int, ...], Any] = {}
        for _count, color in sorted(image.getcolors(image.width * image.height), reverse=True):
            colors.setdefault(tuple(level & SIX_BITS for level in color), color)
        self._lookup = Image.new("P", (1, 1))
        self._lookup.putpalette([level for bits in list(colors)[:COLORS] for level in bits])
        self._colors = [level for color in list(colors.values())[:COLORS] for level in color]

    def reduce(self, image: Image.Image) -> Image.Image:
        reduced = image.quantize(palette=self._lookup, dither=Image.Dither.NONE)
        reduced.putpalette(self._colors)
        return reduced


@functools.lru_cache(256)
def text_image(text: str, width: int, height: int, size: float) -> np.ndarray:
    """Return a line of text in the middle of a white image (height, width, 3) of uint8; `size` in points."""
    figure = new_figure(height, width)
    agg = FigureCanvasAgg(figure)
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=size)
    agg.draw()
    return np.asarray(agg.buffer_rgba())[..., :3].copy()


def digit_strip(images: Tensor, labels: Tensor, answers: Tensor, chosen: Tensor) -> np.ndarray:
    """Return the first ten of the chosen digits side by side, each under its label and its answer.

    `images` are (N, …), `chosen` indices of them; the strip is an image (height, width, 3) of uint8.
    """
    strip = np.full((STRIP_HEIGHT, STRIP_WIDTH, 3), 255, dtype=np.uint8)
    if not len(chosen):
        strip[:CAPTION] = text_image("none", STRIP_WIDTH, CAPTION, 9)
    for place, index in enumerate(chosen[:DIGITS].tolist()):
        cell = strip[:, place * CELL : (place + 1) * CELL]
        cell[:CAPTION] = text_image(f"{labels[index]} → {answers[index]}", CELL, CAPTION, 9)
        cell[CAPTION:, 4:60] = digit_picture(images[index], 2)
    return strip


class LostDigits:
    """A strip at the bottom of a figure: some digits that only the dense network reads."""

    def __init__(self, figure: Figure, images: Tensor, kind: str):
        self._images, height = images, round(figure.bbox.height)
        self._place = (WIDTH - STRIP_WIDTH) // 2, height - STRIP_HEIGHT - 4
        text = f"Some that only the dense network reads (label → answer of the {kind} one):"
        figure.text(0.5, (STRIP_HEIGHT + 11) / height, text, ha="center", fontsize=9)

    def inset(self, comparison: Comparison) -> tuple[np.ndarray, int, int]:
        """Return the strip, and its left and top in the picture."""
        digits = digit_strip(self._images, comparison.labels, comparison.answers, comparison.lost)
        return digits, *self._place


def digit_picture(image: Tensor, size: int) -> np.ndarray:
    """Return an image in black on white, each of 28×28 pixels so many wide: (28·size, 28·size, 3) of uint8.

    One of another size is stretched, several channels are averaged, and what is no image is drawn as a row. Its
    smallest number is white and its largest black, whatever the scale of the data.
    """
    rows = torch.atleast_2d(image.float())
    grey = rows.reshape(1, -1, *rows.shape[-2:]).mean(1, keepdim=True)
    stretched = F.interpolate(grey, (SIDE * size, SIDE * size))[0, 0]
    low, high = stretched.aminmax()
    black_on_white = 255 * (high - stretched) / (high - low) if high > low else torch.full_like(stretched, 255)
    return black_on_white.round().byte().numpy()[..., None].repeat(3, axis=2)


def with_title(png: bytes, title: str) -> bytes:
    """Return the picture under its title, in as many lines as that needs, for where it stands alone."""
    picture = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    width = picture.shape[1]
    wrapped = textwrap.wrap(title, max(1, width // LETTER_WIDTH))
    lines = [text_image(line, width, LINE_HEIGHT, LINE_SIZE) for line in wrapped]
    titled = Image.fromarray(np.concatenate([*lines, picture]))
    return _encode(_Palette(titled).reduce(titled))


def _encode(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()
