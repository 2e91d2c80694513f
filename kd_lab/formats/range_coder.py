"""Code matrices in few bytes: the likelier a number is by what came before it, the less it takes (range coding).

Martin 1979. The probabilities come from whole counts, so that a file reads alike on every machine.
"""

from collections.abc import Callable

import numpy as np

from kd_lab.environment import optional

BLOCK = 28  # neighbours in a row that are coded at a time: a row of pixels
LEVELS = np.array([1, 2, 3, 5, 9, 17, 33])  # kept weights above, or to the left: as many contexts each, and one more
PRIOR = 30  # symbols that a context seems to have seen at first, as common there as in all contexts

Code = Callable[[np.ndarray, np.ndarray], np.ndarray]


class RangeWriter:
    """Write whole numbers and matrices of codes, each adaptively by those before it."""

    def __init__(self):
        self._stream = optional("constriction", "constriction").stream
        self._encoder = self._stream.queue.RangeEncoder()

    def uniform(self, values: np.ndarray, size: int) -> None:
        """Write whole numbers from 0 to size - 1 that are all equally likely."""
        if size > 1:
            self._encoder.encode(values.astype(np.int32), self._stream.model.Uniform(size))

    def matrix(self, codes: np.ndarray, size: int) -> None:
        """Write codes (rows, columns) from 0 to size - 1; 0 is a pruned weight."""
        _walk(codes.copy(), size, self._write)

    def _write(self, symbols: np.ndarray, counts: np.ndarray) -> np.ndarray:
        symbols = symbols.astype(np.int32)
        self._encoder.encode(symbols, self._stream.model.Categorical(perfect=False), counts)
        return symbols

    def content(self) -> bytes:
        """Return all that was written."""
        return self._encoder.get_compressed().astype("<u4").tobytes()


class RangeReader:
    """Read what a RangeWriter wrote, in the same order."""

    def __init__(self, content: bytes):
        self._stream = optional("constriction", "constriction").stream
        self._decoder = self._stream.queue.RangeDecoder(np.frombuffer(content, "<u4").astype(np.uint32))

    def uniform(self, count: int, size: int) -> np.ndarray:
        """Return `count` whole numbers from 0 to size - 1."""
        if size == 1:
            return np.zeros(count, dtype=np.int32)
        return self._decoder.decode(self._stream.model.Uniform(size), count)

    def matrix(self, shape: tuple[int, int], size: int) -> np.ndarray:
        """Return codes of this shape from 0 to size - 1."""
        codes = np.zeros(shape, dtype=int)
        _walk(codes, size, self._read)
        return codes

    def is_at_end(self) -> bool:
        """Return whether all has been read, but for a few bits that mean nothing."""
        return self._decoder.maybe_exhausted()

    def _read(self, _symbols: np.ndarray, counts: np.ndarray) -> np.ndarray:
        return self._decoder.decode(self._stream.model.Categorical(perfect=False), counts)


class Counts:
    """Count how often each symbol came in each context, which says how likely it is to come next."""

    def __init__(self, symbols: int, contexts: int = 1):
        self._counts, self._all = np.zeros((contexts, symbols)), np.ones(symbols)

    def code(self, code: Code, symbols: np.ndarray, context: np.ndarray | int = 0) -> np.ndarray:
        """Code symbols (n,) in their contexts (n,), or all in one, count them, and return them."""
        context = context + np.zeros(len(symbols), dtype=int)
        found = code(symbols, self._counts[context] * self._all.sum() + PRIOR * self._all)  # whole numbers
        np.add.at(self._counts, (context, found), 1)
        self._all += np.bincount(found, minlength=len(self._all))
        return found


def _walk(codes: np.ndarray, size: int, code: Code) -> None:
    """Write a matrix or fill one in: for each block which weights are kept, and then which codes these have.

    How likely a weight is kept is judged by how many were in its column above it and in its row before its block.
    """
    if size == 1:
        return
    kept, values = Counts(2, (len(LEVELS) + 1) ** 2), Counts(size - 1)
    above = np.zeros(codes.shape[1], dtype=int)
    for row in codes:
        before = 0
        for start in range(0, len(row), BLOCK):
            block, column = row[start : start + BLOCK], above[start : start + BLOCK]
            context = _level(column) * (len(LEVELS) + 1) + _level(before)
            found = kept.code(code, block > 0, context).astype(bool)
            block[found] = 1 + values.code(code, block[found] - 1) if size > 2 else 1
            column += found
            before += found.sum()


def _level(count: np.ndarray | int) -> np.ndarray:
    return LEVELS.searchsorted(count, "right")
