"""The frontier of files, records or trials: those that no other beats in bytes and in error; and its picture."""

from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from kd_lab.evaluation import Accuracy
from kd_lab.plots import plain_log

FORMS = {"tried": ".", "frontier": "-", "hand-set": "s", "found": "*"}
SMALLEST_ERROR = 0.01  # %; a logarithmic axis has no zero


class Measured(Protocol):
    """A trial that made a file."""

    @property
    def bytes(self) -> int:
        """Return the bytes of the file."""

    @property
    def accuracy(self) -> Accuracy:
        """Return how many images of the validation part it reads correctly."""


Found = TypeVar("Found")
Made = TypeVar("Made", bound=Measured)


def frontier(found: Iterable[Found], size_and_error: Callable[[Found], tuple[float, float]]) -> list[Found]:
    """Return those that no other beats in size and in error, the smallest first; of two alike, the first."""
    kept: list[Found] = []
    for each in sorted(found, key=size_and_error):
        if not kept or size_and_error(each)[1] < size_and_error(kept[-1])[1]:
            kept.append(each)
    return kept


def trial_frontier(trials: Iterable[Made]) -> list[Made]:
    """Return the trials, by bytes, that no other beats in both bytes and accuracy."""
    return frontier(trials, lambda trial: (trial.bytes, -trial.accuracy.value))


def plot_frontier(groups: dict[str, list[Made]], most_bytes: int | None, axes: Axes | None = None) -> Axes:
    """Draw the error over the bytes of each group of trials, and the budget if it is one of bytes.

    The groups are those of `FORMS`. Axes that are given are emptied first, so that a search can be drawn as it grows.
    """
    axes = axes or plt.subplots(figsize=(6, 3.5), layout="constrained")[1]
    axes.clear()
    for label, trials in groups.items():
        errors = [max(SMALLEST_ERROR, 100 - 100 * trial.accuracy.value) for trial in trials]
        form = FORMS[label]
        axes.plot([trial.bytes for trial in trials], errors, form, label=label, markersize=12 if form == "*" else None)
    if most_bytes is not None:
        axes.axvline(most_bytes, linestyle=":", color="grey", label="budget")
    axes.set(xscale="log", yscale="log", xlabel="bytes of the file", ylabel="validation error, %")
    plain_log(axes.xaxis)
    plain_log(axes.yaxis)
    axes.legend(fontsize=8)
    return axes
