"""Draw what the lessons show: arrays in, Axes out."""

from collections.abc import Iterator, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter
from matplotlib.transforms import Bbox
from torch import Tensor

from kd_lab.errors import ParameterError, check_that, saying
from kd_lab.networks.checks import is_dense

POINT_RADIUS = 4  # of a marker, in points
BESIDE = [  # where a text may stand: so many points to the right of its point, and above it; its alignment
    (aside, up, side) for up in (-11, 4, -3, 14, -20) for aside, side in ((5, "left"), (-5, "right"), (0, "center"))
]


def plot_digits(images: Tensor, titles: Sequence[str]) -> np.ndarray:
    """Draw images (N, 1, 28, 28) or (N, 28, 28) in one row, each under its title; return the N Axes."""
    pictures = _pictures(images)
    _check_lengths(images=list(pictures), titles=titles)
    _figure, row = plt.subplots(1, len(images), figsize=(len(images), 1.4), layout="constrained", squeeze=False)
    for axes, picture, title in zip(row[0], pictures, titles, strict=True):
        axes.imshow(picture, cmap="gray_r")
        axes.set_title(title, fontsize=9)
        axes.axis("off")
    return row[0]


def _pictures(images: Tensor) -> np.ndarray:
    """Return images as an array (N, height, width), with or without a channel and gradients, from tensors or arrays."""
    fits = is_dense(images) or isinstance(images, np.ndarray)
    fits = fits and images.ndim in (3, 4) and (images.ndim == 3 or images.shape[1] == 1)
    check_that("images", images, fits, "a tensor (N, 1, height, width) or (N, height, width)")
    pictures = np.asarray(images.detach().float() if isinstance(images, Tensor) else images)
    return pictures.reshape(len(pictures), *pictures.shape[-2:])


def plot_intervals(names: Sequence[str], values: Sequence[float], intervals: Sequence[tuple[float, float]]) -> Axes:
    """Draw fractions as dots in percent, each with its interval as a bar and the first on top; return the Axes."""
    _check_lengths(names=names, values=values, intervals=intervals)
    low, middle, high = _ends(values, intervals)
    axes = plt.subplots(figsize=(6, 0.4 * len(names) + 0.8), layout="constrained")[1]
    axes.errorbar(middle, range(len(names)), xerr=(middle - low, high - middle), fmt="o", capsize=3)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g}")  # in percent
    axes.grid(axis="x", alpha=0.3)
    return axes


def _ends(values: Sequence[float], intervals: Sequence[tuple[float, float]]) -> Iterator[np.ndarray]:
    """Return lower ends, values and upper ends; raise a ParameterError unless each interval holds its value."""
    with saying("'values' must be numbers, and 'intervals' pairs of them"):
        rows = np.array([(float(low), float(x), float(high)) for x, (low, high) in zip(values, intervals, strict=True)])
    check_that("intervals", intervals, (np.diff(rows) >= 0).all(), "pairs (low, high) that hold their values")
    return iter(rows.T)


def plot_calibration(
    stated: Sequence[float], shares: Sequence[float], intervals: Sequence[tuple[float, float]], counts: Sequence[int]
) -> Axes:
    """Draw how sure one was against the share that was right, both 0 to 1, with intervals; return the Axes.

    Beside each dot stands of how many predictions it is; on the diagonal one is as sure as one may be.
    """
    _check_lengths(stated=stated, shares=shares, intervals=intervals, counts=counts)
    low, middle, high = _ends(shares, intervals)
    axes = plt.subplots(figsize=(4.6, 4), layout="constrained")[1]
    axes.plot([0.5, 1], [0.5, 1], ":", color="grey")
    axes.set_title("dotted: as often right as you were sure", fontsize=9)
    axes.errorbar(stated, middle, yerr=(middle - low, high - middle), fmt="o", capsize=3)
    for place, count in enumerate(counts):
        axes.annotate(f"{count}", (stated[place], middle[place]), (6, 4), textcoords="offset points", fontsize=9)
    axes.set(xlim=(0.47, 1.03), ylim=(-0.03, 1.03), xlabel="how sure you were", ylabel="share that was right")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(alpha=0.3)
    return axes


def plot_ratios(names: Sequence[str], ratios: Sequence[float]) -> Axes:
    """Draw what was predicted over what was measured, above 0, with the first on top; return the Axes."""
    _check_lengths(names=names, ratios=ratios)
    axes = plt.subplots(figsize=(4.6, max(4.0, 0.22 * len(names) + 1)), layout="constrained")[1]
    axes.axvline(1, color="grey", linestyle=":")
    axes.plot(ratios, range(len(names)), "o")
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="predicted / measured")
    low, high = min(*ratios, 0.5), max(*ratios, 2)
    axes.set_xlim(low / 1.3, high * 1.3)
    plain_log(axes.xaxis)
    axes.grid(axis="x", alpha=0.3)
    return axes


def plain_log(axis: Axis) -> None:
    """Write plain numbers on a logarithmic axis: 2,000 and not 2 × 10³; more of them where it is upright."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5) if axis.axis_name == "y" else (1, 2, 5)))
    axis.set_major_formatter(lambda value, _: f"{value:,.6g}")
    axis.set_minor_formatter(NullFormatter())


def label_points(
    axes: Axes, points: Sequence[tuple[str, float, float]], bars: Sequence[tuple[float, float, float]] = ()
) -> None:
    """Write the text of each point (text, x, y) beside it, inside the axes and where it covers nothing.

    That is: no other text, no point, no bar (x, low, high) and not the legend. A text for which there is no room is
    left out. Call it last, once the limits and the legend are set.
    """
    axes.figure.draw_without_rendering()  # which settles where everything is
    corners = [((x, y), (x, y)) for _, x, y in points], [((x, low), (x, high)) for x, low, high in bars]
    radii = POINT_RADIUS * axes.figure.dpi / 72, 1
    taken = [
        Bbox(axes.transData.transform(ends)).padded(radius)
        for radius, each in zip(radii, corners, strict=True)
        for ends in each
    ]
    taken += [legend.get_window_extent()] if (legend := axes.get_legend()) else []
    for text, *point in points:
        for aside, up, side in BESIDE:
            note = axes.annotate(text, point, (aside, up), textcoords="offset points", fontsize=8, ha=side)
            box = note.get_window_extent()
            if _inside(box, axes) and not box.count_overlaps(taken):
                taken.append(box)
                break
            note.remove()


def _inside(box: Bbox, axes: Axes) -> bool:
    """Return whether a box lies within the axes."""
    return all(axes.bbox.contains(x, y) for x, y in box.corners())


def _check_lengths(**arguments: Sequence) -> None:
    for name, values in arguments.items():
        check_that(name, values, hasattr(values, "__len__"), "a list")
    lengths = {name: len(values) for name, values in arguments.items()}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        raise ParameterError(f"{', '.join(lengths)} must be equally long, at least 1. Got {lengths}.")
