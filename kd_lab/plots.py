"""Draw what the lessons show: arrays in, Axes out."""

from collections.abc import Iterator, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import LogLocator, NullFormatter
from torch import Tensor

from kd_lab.errors import ParameterError, check_that, saying
from kd_lab.networks.checks import is_dense


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


def plain_log(axis: Axis) -> None:
    """Write plain numbers on a logarithmic axis: 2,000 and not 2 × 10³."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(lambda value, _: f"{value:,.6g}")
    axis.set_minor_formatter(NullFormatter())


def _check_lengths(**arguments: Sequence) -> None:
    for name, values in arguments.items():
        check_that(name, values, hasattr(values, "__len__"), "a list")
    lengths = {name: len(values) for name, values in arguments.items()}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        raise ParameterError(f"{', '.join(lengths)} must be equally long, at least 1. Got {lengths}.")
