"""Code the tensors of a network whose values lie on grids: a step, and whole numbers that are seldom large.

How likely a number is follows from a prior that falls by the same ratio from each to the next, and from those that
came before. All is whole numbers, so that a file reads alike on every machine.
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kd_lab.errors import check_number
from kd_lab.formats.coding import PRIOR, Estimate, ShortRangeReader, ShortRangeWriter, code_choice, walk_matrix
from kd_lab.formats.tensors import MAX_TABLE, as_matrix, read_tensor, write_tensor

Stream = ShortRangeWriter | ShortRangeReader

EXPONENTS, EIGHTHS = 32, 8
MAX_BITS = 8  # of a number on a grid
MAX_WATCHED = 4096  # numbers of a tensor whose neighbours are looked at, one after another
PRIOR_TOTAL, SEEN = 8192, 64  # of the prior in all, and of each number that came: the prior counts as much as 128
DECAYS = 8  # ratios from a number to the next, in eighths
BLOCK_SHARE = 32  # the counts are brought up to date behind every 32nd of what was coded

WAYS = "grid", "values"
WAY_COUNTS = (12, 1)
STEP_KINDS = "byte", "half", "single"
STEP_KIND_COUNTS = (14, 1, 1)
EXPONENT_COUNTS = tuple(max(1, 16 - 2 * abs(exponent - 5)) for exponent in range(EXPONENTS))
BITS_COUNTS = (2, 2, 8, 8, 8, 6, 6, 2, 1)
MAX_SORTED = 64  # biases that are coded in rising order
ORDER_COUNTS = {"alone": 6, "neighbours": 4, "matrix": 1, "sorted": 6}
ODDS = 2**20  # in all, of how often a number comes among several
HABIT = 16  # what a choice adds to its own count, for the next tensor of its kind


def compact_step(scale: float) -> float:
    """Return the step of a grid that a packed file keeps in one byte, the one whose ratio to `scale` is nearest to 1.

    Steps are (8 + m)/8 · 2^-e, m from 0 to 7 and e from 0 to 31, so that no scale from 2^-31 to 1.875 is off by more
    than 7 %; for others it is the nearest end.
    """
    scale = check_number("scale", scale, "(0, 1e38]")
    return float(_STEPS[np.abs(np.log(_STEPS / scale)).argmin()])


def _byte_step(place: int) -> float:
    return (EIGHTHS + place % EIGHTHS) / EIGHTHS * 2.0 ** -(place // EIGHTHS)


_STEPS = np.array([_byte_step(place) for place in range(EXPONENTS * EIGHTHS)])


class Plan(NamedTuple):
    """A way to code a tensor: on a grid, by which step, bits, order and prior, or by its values, in a table or not."""

    way: str
    step: float = 1.0
    bits: int = 0
    order: str = "alone"
    decay: int = 0
    most: int = MAX_TABLE


class TensorCoder:
    """Write or read the tensors of one network in turn, each in the way that takes the fewest bits.

    What was chosen for one is more likely for the next, among the weights and among the biases.
    """

    def __init__(self, stream: Stream, habits: dict[tuple[str, bool], list[int]] | None = None):
        self._stream = stream
        self._habits = habits or {}

    def write(self, tensor: Tensor) -> None:
        """Write a tensor of finite numbers."""
        plans = [Plan("values")]
        if len(np.unique(as_matrix(tensor))) <= MAX_TABLE:
            plans.append(Plan("values", most=0))
        if found := find_grid_codes(as_matrix(tensor)):
            on_grid = Plan("grid", *found)
            alone = min((on_grid._replace(decay=decay) for decay in range(DECAYS)), key=self._bits_of(tensor))
            orders = [order for order in _orders(tensor) if order != "sorted" or bool((tensor.diff() >= 0).all())]
            plans = [*plans, *(alone._replace(order=order) for order in orders)]
        self._code(tensor, min(plans, key=self._bits_of(tensor)))

    def read(self, like: Tensor) -> Tensor:
        """Return a tensor of the shape of this one; raise a ValueError for what `write` doesn't write."""
        return self._code(torch.zeros_like(like), Plan("grid"))

    def _bits_of(self, tensor: Tensor) -> Callable[[Plan], float]:
        def bits(plan: Plan) -> float:
            estimate = Estimate()
            TensorCoder(estimate, copy.deepcopy(self._habits))._code(tensor, plan)
            return estimate.bits

        return bits

    def _code(self, tensor: Tensor, plan: Plan) -> Tensor:
        """Code a tensor; for a reader only its shape says something."""
        self._vector = tensor.dim() < 2
        if self._choose("way", WAYS.index(plan.way), WAY_COUNTS):
            if isinstance(self._stream, ShortRangeReader):
                return read_tensor(self._stream, tensor)
            write_tensor(self._stream, tensor, plan.most)
            return tensor
        bits = self._choose("bits", plan.bits, BITS_COUNTS)
        if bits == 0:
            return torch.zeros_like(tensor)
        step = self._code_step(plan.step)
        codes = np.rint(as_matrix(tensor) / step).astype(int)
        order = self._code_order(plan.order, _orders(tensor))
        if order == "matrix":
            codes = self._code_matrix(codes, bits)
        else:
            codes = self._code_row(codes, bits, plan.decay, order, tensor.shape[2:])
        if isinstance(self._stream, ShortRangeReader) and _bits_for(codes) != bits:
            raise ValueError("its numbers need fewer bits than it says.")
        return torch.from_numpy(codes.astype(np.float32) * np.float32(step)).view(tensor.shape)

    def _choose(self, name: str, place: int, counts: Sequence[int]) -> int:
        """Code a choice that is as likely as its count, and more so if it was made for tensors before."""
        habit = self._habits.setdefault((name, self._vector), [0] * len(counts))
        place = code_choice(self._stream, place, [a + b for a, b in zip(counts, habit, strict=True)])
        habit[place] += HABIT
        return place

    def _code_order(self, order: str, orders: list[str]) -> str:
        if len(orders) == 1:
            return order
        counts = [ORDER_COUNTS[each] for each in orders]
        return orders[self._choose(f"order of {len(orders)}", orders.index(order), counts)]

    def _code_step(self, step: float) -> float:
        kind = self._choose("step", STEP_KINDS.index(_step_kind(step)), STEP_KIND_COUNTS)
        if kind == 0:
            exponent, eighth = divmod(int(np.abs(_STEPS - step).argmin()), EIGHTHS)
            exponent = self._choose("exponent", exponent, EXPONENT_COUNTS)
            return float(_STEPS[EIGHTHS * exponent + self._stream.whole(eighth, EIGHTHS)])
        dtype = np.dtype(("<f2", "<f4")[kind - 1])
        raw = np.array(step, "<f4").astype(dtype).tobytes()
        found = float(np.frombuffer(bytes(self._stream.whole(each, 256) for each in raw), dtype)[0])
        if not 0 < found < np.inf or _step_kind(found) != STEP_KINDS[kind]:
            raise ValueError("a step is no number above 0, or is not written in the fewest bytes.")
        return found

    def _code_matrix(self, codes: np.ndarray, bits: int) -> np.ndarray:
        """Code which numbers are 0, by those around them, and then the others."""
        half = 2 ** (bits - 1)
        symbols = np.where(codes == 0, 0, codes + half + (codes < 0))
        walk_matrix(symbols, 2 * half, self._stream.code, ShortRangeWriter.block(symbols.size))
        return np.where(symbols == 0, 0, symbols - half - (symbols <= half))

    def _code_row(self, codes: np.ndarray, bits: int, decay: int, order: str, window: Sequence[int]) -> np.ndarray:
        """Code the numbers one behind another, each by a prior and those that came; in a window by neighbours, too."""
        decay = self._choose("decay", decay, [1] * DECAYS)
        half, counts = 2 ** (bits - 1), prior(bits, decay)
        symbols = codes.ravel() + half
        if order == "neighbours":
            _code_by_neighbours(self._stream, symbols, counts, window)
        elif order == "sorted":
            _code_sorted(self._stream, symbols, counts.tolist())
        else:
            _code_by_counts(self._stream, symbols, counts)
        return (symbols - half).reshape(codes.shape)


def _orders(tensor: Tensor) -> list[str]:
    """Return in which orders a tensor may be coded: only windows have neighbours, and only a matrix has columns."""
    if tensor.dim() < 2:
        return ["alone", "sorted"] if 1 < tensor.numel() <= MAX_SORTED else ["alone"]
    watched = tensor.dim() == 4 and max(tensor.shape[2:]) > 1 and tensor.numel() <= MAX_WATCHED
    return ["alone", "neighbours", "matrix"] if watched else ["alone", "matrix"]


def prior(bits: int, decay: int) -> np.ndarray:
    """Return a count for each number of so many bits, the lowest first: they fall by (decay + 1) / 8 on either side."""
    half = 2 ** (bits - 1)
    sizes = [abs(number) for number in range(-half, half)]
    shares = [(decay + 1) ** size * DECAYS ** (half - size) for size in sizes]
    return np.array([1 + PRIOR_TOTAL * share // sum(shares) for share in shares])


def _code_by_counts(stream: Stream, symbols: np.ndarray, counts: np.ndarray) -> None:
    """Write symbols, or fill them in, each as likely as its count by now."""
    place = 0
    while place < len(symbols):
        block = symbols[place : place + 1 + place // BLOCK_SHARE]
        block[:] = stream.code(block, counts.astype(float))
        counts = counts + SEEN * np.bincount(block, minlength=len(counts))
        place += len(block)


def _code_by_neighbours(stream: Stream, symbols: np.ndarray, counts: np.ndarray, window: Sequence[int]) -> None:
    """Write symbols, or fill them in, each by those whose neighbours, left and above, have the same sign in sum."""
    rows, columns = window
    half = len(counts) // 2
    seen = np.zeros((3, len(counts)), dtype=int)
    for place in range(len(symbols)):
        left = symbols[place - 1] - half if place % columns else 0
        above = symbols[place - columns] - half if place % (rows * columns) >= columns else 0
        context = 1 + int(np.sign(left + above))
        likely = seen[context] * counts.sum() + PRIOR * counts
        symbol = code_choice(stream, symbols[place], likely)
        symbols[place] = symbol
        seen[context, symbol] += 1
        counts[symbol] += SEEN


def _code_sorted(stream: Stream, symbols: np.ndarray, counts: list[int]) -> None:
    """Write symbols that never fall, or fill them in: for each symbol how often it comes among those that are left.

    Each number of times is as likely as a binomial distribution has it, so that it takes as many bits less as would say
    in which of all orders they came.
    """
    place = 0
    for symbol, count in enumerate(counts):
        left, beyond = len(symbols) - place, sum(counts[symbol + 1 :])
        times = int((symbols[place:] == symbol).sum())
        if left and beyond:
            shares = [math.comb(left, each) * count**each * beyond ** (left - each) for each in range(left + 1)]
            times = code_choice(stream, times, [1 + ODDS * share // sum(shares) for share in shares])
        else:
            times = left
        symbols[place : place + times] = symbol
        place += times


def find_grid_codes(values: np.ndarray) -> tuple[float, int] | None:
    """Return the step and the bits of the grid on which all numbers lie, None where there is none of up to 8 bits.

    Of several steps that fit it is the largest of those that take one byte, then two, then four.
    """
    if values.dtype != np.float32:
        return None
    sizes = np.unique(np.abs(values[values != 0]))
    if len(sizes) == 0:
        return 1.0, 0
    if len(sizes) > 2 ** (MAX_BITS - 1):
        return None
    parts = sizes[-1] / np.arange(1, 2 ** (MAX_BITS - 1) + 1, dtype=np.float32)
    near = np.concatenate([parts, np.nextafter(parts, np.float32(0)), np.nextafter(parts, np.float32(np.inf))])
    with np.errstate(over="ignore"):
        halves = parts.astype(np.float16).astype(np.float32)
    for steps in (_STEPS.astype(np.float32), halves, near):
        for step in np.sort(steps[(steps >= 0.99 * parts[-1]) & (steps > 0) & np.isfinite(steps)])[::-1]:
            if np.array_equal(np.rint(sizes / step) * step, sizes):
                bits = _bits_for(np.rint(values / step))
                return (float(step), bits) if bits <= MAX_BITS else None
    return None


def _bits_for(codes: np.ndarray) -> int:
    """Return with how many bits, at least, whole numbers are written, negative ones included."""
    largest = int(max(-codes.min() - 1, codes.max()))
    return largest.bit_length() + 1 if codes.any() else 0


def _step_kind(step: float) -> str:
    if step in _STEPS:
        return "byte"
    with np.errstate(over="ignore"):
        return "half" if float(np.float16(step)) == step else "single"
