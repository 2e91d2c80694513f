"""Draw a pruned network: accuracy over sparsity, the weights that are left, the digits that were lost."""

from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from torch import Tensor

from kd_lab.evaluation import Accuracy
from kd_lab.panels.canvas import STRIP_HEIGHT, STRIP_WIDTH, AccuracyCurve, Canvas, digit_strip, new_figure
from kd_lab.panels.measurement import FIRST, Comparison, title_of

SIZE = (800, 380)  # all sizes are in pixels
BINS = 101
LEFT, TOP = (SIZE[0] - STRIP_WIDTH) // 2, SIZE[1] - STRIP_HEIGHT - 4
COLOR, PALE = "#c2410c", "#d1d5db"


@dataclass(frozen=True)
class PruningAnswer:
    """Hold what was measured at one setting of the pruning panel.

    `masks` (bool, True keeps) are in the order of the layers; `thresholds` are the smallest |w| kept, one for each
    group that was ranked together, none where weights aren't chosen by magnitude. `curve` is accuracy by sparsity on
    the first images, as far as it has been measured; `zipped` the bytes zipped and `test` the accuracy on the test
    part, None until they are there.
    """

    sparsity: float
    importance: str
    scope: str
    comparison: Comparison
    masks: dict[str, Tensor]
    thresholds: list[float]
    curve: dict[float, float]
    zipped: int | None = None
    test: Accuracy | None = None


class PruningPicture:
    """Hold the figure and everything that moves on it; `weights` (count,) in the order of the masks."""

    def __init__(self, weights: Tensor, images: Tensor):
        self._images = images
        figure = new_figure(*SIZE)
        self._curve = AccuracyCurve(
            figure.add_axes((0.085, 0.39, 0.4, 0.54)),
            COLOR,
            xlabel="sparsity",
            title=f"here (orange), and elsewhere on {FIRST:,} images (grey)",
        )
        moving = [*self._curve.moving, *self._add_weights(figure.add_axes((0.575, 0.39, 0.41, 0.54)), weights)]
        figure.text(
            0.5,
            0.225,
            "Some that only the dense network reads (label → answer of the pruned one):",
            ha="center",
            fontsize=9,
        )
        self._canvas = Canvas(figure, moving)

    def png(self, answer: PruningAnswer) -> bytes:
        """Return the picture of an answer."""
        comparison, accuracy = answer.comparison, answer.comparison.accuracy
        self._curve.set(answer.curve, answer.sparsity, accuracy.value, accuracy.interval)
        kept = torch.cat([mask.flatten() for mask in answer.masks.values()]).numpy()
        self._kept.set_data(np.bincount(self._bins[kept], minlength=BINS))
        self._thresholds.set_segments(
            [[(end, 0), (end, 1)] for threshold in answer.thresholds for end in (-threshold, threshold)]
        )
        digits = digit_strip(self._images, comparison.labels, comparison.answers, comparison.lost)
        return self._canvas.png(digits, LEFT, TOP)

    def _add_weights(self, axes: Axes, weights: Tensor) -> list[Artist]:
        limit = float(np.quantile(weights.abs().numpy(), 0.9995))
        edges = np.linspace(-limit, limit, BINS + 1)
        # the outermost bins hold what lies beyond, too
        self._bins = np.digitize(weights.numpy(), edges[1:-1])
        counts = np.bincount(self._bins, minlength=BINS)
        axes.set_yscale("function", functions=(np.sqrt, np.square))  # else the few kept at 99 % could not be seen
        axes.set(xlim=(-limit, limit), ylim=(0, 1.1 * counts.max()), xlabel="weight", ylabel="how many (root scale)")
        axes.set_yticks([count for count in (100, 1000, 5000, 10_000, 30_000, 100_000) if count < counts.max()])
        axes.yaxis.set_major_formatter(lambda count, _place: f"{count / 1000:g}k")
        axes.set_title("kept (orange), all (grey), threshold (dashed)", fontsize=9)
        axes.stairs(counts, edges, fill=True, color=PALE)
        self._kept = axes.stairs(counts, edges, fill=True, color=COLOR)
        self._thresholds = axes.vlines(
            [], 0, 1, colors="black", linestyles="--", linewidth=1, transform=axes.get_xaxis_transform()
        )
        return [self._kept, self._thresholds]


def title(answer: PruningAnswer) -> str:
    """Return the setting and its accuracy in a line."""
    return title_of(f"{100 * answer.sparsity:.4g} % pruned by {answer.importance}, {answer.scope}", answer.comparison)
