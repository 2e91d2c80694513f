"""Weights that share a few values, found by k-means: each weight is then an index into a codebook."""

import numpy as np
import torch
from torch import Tensor, nn

from kd_lab.errors import check_whole_number
from kd_lab.networks.checks import check_finite
from kd_lab.networks.layers import Weight
from kd_lab.quantization.weights import Quantizer, bits_by_layer, set_quantizers

BORDERS = 1024  # places at which clusters may end; where there are no more values, at every one
ROWS = 32  # borders at a time, whose errors fit a processor's cache
REFINEMENTS = 3  # each puts the places where the clusters of the one before ended
MAX_ROUNDS = 10_000  # far more than it takes: rounding could let two equally good clusterings take turns for ever


def kmeans(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return centroids, ascending (float32), and for each of the values (n,) the place of the nearest one (uint8).

    On a line clusters are intervals, so nothing is left to chance: the best intervals between 1,024 possible borders,
    then Lloyd's rounds on all values, twice more with finer borders. `count` is from 1 to 256; of fewer different
    values each is a centroid.
    """
    check_finite(1, values=values)
    count = check_whole_number("count", count, "[1, 256]")
    points, places, counts = np.unique(values.detach(), return_inverse=True, return_counts=True)
    codebook = points if len(points) <= count else _cluster(points.astype(float), counts, count).astype(np.float32)
    codes = np.searchsorted(_midpoints(codebook.astype(float)), points)
    return torch.from_numpy(codebook), torch.from_numpy(codes.astype(np.uint8)[places])


def _cluster(points: np.ndarray, counts: np.ndarray, count: int) -> np.ndarray:
    """Return the centroids of ascending points; `counts` says how often each point comes."""
    moments = np.cumsum([counts, counts * points, counts * points**2], 1)
    sums = np.pad(moments, ((0, 0), (1, 0)))  # (3, points + 1): of all values before each point
    ends = np.array([0, len(points)])
    for _ in range(REFINEMENTS):
        borders = np.interp(np.linspace(0, len(ends) - 1, BORDERS), range(len(ends)), ends).astype(int)
        ends = _lloyd(points, sums, _best_ends(sums, np.union1d(ends, borders), count))
    return _centroids(sums, ends)


def _best_ends(sums: np.ndarray, borders: np.ndarray, count: int) -> np.ndarray:
    """Return the ends of the clusters that err least in squares, of all that end at borders (dynamic programming)."""
    rows = [slice(row, row + ROWS) for row in range(0, len(borders), ROWS)]
    errors = [_errors(sums, borders[row], borders[: row.stop]) for row in rows]  # a cluster begins before its end
    least, starts = np.concatenate([each[:, 0] for each in errors]), []
    for _ in range(min(count, len(borders) - 1) - 1):
        both = [each + least[: row.stop] for each, row in zip(errors, rows, strict=True)]  # with the clusters before it
        starts.append(np.concatenate([each.argmin(1) for each in both]))
        least = np.concatenate([each.min(1) for each in both])
    ends = [len(borders) - 1]
    for start in reversed(starts):
        ends.append(start[ends[-1]])
    return borders[[0, *reversed(ends)]]


def _errors(sums: np.ndarray, ends: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return the squared error (ends, starts) of the cluster between two borders, infinite where it has no points."""
    size, total, squares = sums[:, ends, None] - sums[:, None, starts]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(size > 0, squares - total**2 / size, np.inf)


def _lloyd(points: np.ndarray, sums: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return the ends once no point is nearer to the centroid of another cluster."""
    for _ in range(MAX_ROUNDS):
        inner = np.searchsorted(points, _midpoints(_centroids(sums, ends)))
        moved = np.unique([0, *inner, len(points)])  # where two meet, a cluster has lost its last point
        if np.array_equal(moved, ends):
            break
        ends = moved
    return ends


def _centroids(sums: np.ndarray, ends: np.ndarray) -> np.ndarray:
    size, total, _ = np.diff(sums[:, ends])
    return total / size


def _midpoints(centroids: np.ndarray) -> np.ndarray:
    return (centroids[1:] + centroids[:-1]) / 2


class CodebookQuantizer(Quantizer):
    """Replace every weight by its value in a codebook that training changes; a weight of 0 stays 0, so masks hold.

    The gradient of a value is the sum of those of the weights that share it (Han et al. 2016, arXiv 1510.00149).
    `trained` is False for a frozen weight.
    """

    def __init__(self, codebook: Tensor, codes: Tensor, trained: bool = True):
        super().__init__()
        self.codebook = nn.Parameter(codebook, trained)
        self.register_buffer("codes", codes)

    def forward(self, weight: Tensor) -> Tensor:
        # index_select, since the gradient of codebook[codes] takes a hundred times as long
        values = self.codebook.index_select(0, self.codes.flatten().int()).view(weight.shape)
        return torch.where(weight == 0, 0, values)

    def encode(self, weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        codes, codebook, zero = self.codes.int(), self.codebook.detach(), weight == 0
        if not zero.any():
            return codes, {"codebook": codebook}
        return codes.masked_fill(zero, len(codebook)), {"codebook": torch.cat([codebook, codebook.new_zeros(1)])}


def share_weights(model: nn.Module, num_bits: int | dict[str, int]) -> nn.Module:
    """Return a new model in which the weights of a layer share 2^num_bits values (1 to 8 bits), and 0 where pruned.

    `num_bits` is one number, or one for each layer by name; a layer left out stays whole. Quantizers that were there
    are replaced. What `train` then changes is the values.
    """
    wanted = bits_by_layer(model, num_bits)
    return set_quantizers(model, lambda name, weight: _share(weight, 2 ** wanted[name]), list(wanted), "per_tensor")


def _share(weight: Weight, count: int) -> CodebookQuantizer:
    value = weight.value
    kept = value != 0 if value.any() else torch.ones_like(value, dtype=torch.bool)
    codebook, found = kmeans(value[kept], count)
    smallest = int(codebook.abs().argmin())  # for those that are 0, should their mask be lifted later
    codes = torch.full_like(value, smallest, dtype=torch.uint8)
    codes[kept] = found
    return CodebookQuantizer(codebook, codes, weight.trained)
