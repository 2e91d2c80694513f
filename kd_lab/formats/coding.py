"""Code matrices in few bytes: Huffman codewords for common symbols, and range coding by what came before.

Huffman 1952, in the canonical form that a table of lengths describes; Martin 1979, with probabilities from whole
counts, so that a file reads alike on every machine.
"""

import heapq
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np

from kd_lab.environment import optional
from kd_lab.errors import ParameterError, check_that, described

MAX_CODE_BITS = 31  # bits of a code; a longer one would need more counts than a network of the kit has weights
MAX_SYMBOLS = 2**24  # symbols in a row
SKIPPED_ZEROS = 63  # zeros that the symbol for a long gap stands for


def huffman_lengths(counts: np.ndarray) -> np.ndarray:
    """Return the bits of each symbol's code, 0 for a symbol that never comes, 1 for the only one.

    `counts` (symbols,) says how often each comes. No other code that gives each symbol whole bits is shorter in all;
    the mean is less than a bit above the entropy.
    """
    counts = _whole("counts", counts, "of 0 or more")
    lengths = np.zeros(len(counts), dtype=int)
    heap = [(count, symbol, [symbol]) for symbol, count in enumerate(counts.tolist()) if count]
    if len(heap) == 1:
        lengths[heap[0][1]] = 1
    heapq.heapify(heap)
    while len(heap) > 1:
        (few, place, left), (more, _, right) = heapq.heappop(heap), heapq.heappop(heap)
        lengths[left + right] += 1  # they are now one step further from the root
        heapq.heappush(heap, (few + more, place, left + right))
    return lengths


def canonical_codes(lengths: np.ndarray) -> dict[str, int]:
    """Return the symbol of each code, text of 0 and 1: counted up in the order of length, then of symbol.

    So the lengths alone say what the codes are, and no code begins like another. Raises a ParameterError where there
    are no such codes, that is where Σ 2^-length is above 1 (Kraft 1949).
    """
    lengths = _whole("lengths", lengths, f"from 0 to {MAX_CODE_BITS}")
    fits = lengths.max() <= MAX_CODE_BITS and (0.5 ** lengths[lengths > 0]).sum() <= 1
    check_that("lengths", lengths, fits, "those of codes of which none begins like another")
    used = sorted((length, symbol) for symbol, length in enumerate(lengths.tolist()) if length)
    symbols, share = {}, 0.0  # of all rows of bits, those that begin with the codes so far
    for length, symbol in used:
        symbols[f"{int(share * 2**length):0{length}b}"] = symbol
        share += 0.5**length
    return symbols


class HuffmanWriter:
    """Write whole numbers as bits, and matrices as Deep Compression does: the gaps between kept weights, and codes.

    Each of the two has a Huffman code of its own, whose lengths come first (Han et al. 2016, arXiv 1510.00149).
    """

    def __init__(self):
        self._bits = []

    def uniform(self, values: np.ndarray, size: int) -> None:
        """Write whole numbers from 0 to size - 1 in as many bits each as the largest needs."""
        width = _width(size)
        self._bits += [f"{value:0{width}b}" for value in values.tolist() if width]

    def matrix(self, codes: np.ndarray, size: int) -> None:
        """Write codes (rows, columns) from 0 to size - 1; 0 is a pruned weight."""
        if size == 1:
            return
        kept = codes[codes > 0]
        gaps = np.diff(codes.ravel().nonzero()[0], prepend=-1) - 1  # zeros before each kept weight
        self._symbols(_with_skips(gaps), SKIPPED_ZEROS + 1)
        self._symbols(kept - 1, size - 1)

    def _symbols(self, symbols: np.ndarray, size: int) -> None:
        lengths = huffman_lengths(np.bincount(symbols, minlength=size))
        codes = {symbol: code for code, symbol in canonical_codes(lengths).items()}
        self.uniform(np.array([len(symbols)]), MAX_SYMBOLS)
        self.uniform(lengths, MAX_CODE_BITS + 1)
        self._bits += [codes[symbol] for symbol in symbols.tolist()]

    def content(self) -> bytes:
        """Return all bits, zeros filling the last byte."""
        bits = "".join(self._bits)
        return np.packbits(np.frombuffer(bits.encode(), np.uint8) - ord("0")).tobytes()


class HuffmanReader:
    """Read what a HuffmanWriter wrote, in the same order."""

    def __init__(self, content: bytes):
        self._bits = (np.unpackbits(np.frombuffer(content, np.uint8)) + ord("0")).tobytes().decode()
        self._place = 0

    def uniform(self, count: int, size: int) -> np.ndarray:
        """Return `count` whole numbers from 0 to size - 1."""
        width = _width(size)
        values = np.array([int(self._take(width) or "0", 2) for _ in range(count)], dtype=int)
        if (values >= size).any():
            raise ValueError("a number is too large.")
        return values

    def is_at_end(self) -> bool:
        """Return whether all has been read but for the zeros that fill the last byte."""
        return len(self._bits) - self._place < 8 and "1" not in self._bits[self._place :]

    def matrix(self, shape: tuple[int, int], size: int) -> np.ndarray:
        """Return codes of this shape from 0 to size - 1."""
        codes = np.zeros(shape, dtype=int)
        if size == 1:
            return codes
        gaps = self._symbols(SKIPPED_ZEROS + 1, codes.size)
        places = np.cumsum(np.where(gaps == SKIPPED_ZEROS, SKIPPED_ZEROS, gaps + 1)) - 1
        codes.ravel()[places[gaps < SKIPPED_ZEROS]] = self._symbols(size - 1, codes.size) + 1
        return codes

    def _symbols(self, size: int, most: int) -> np.ndarray:
        (count,) = self.uniform(1, MAX_SYMBOLS)
        if count > most:
            raise ValueError("there are more symbols than places.")
        symbols = canonical_codes(self.uniform(size, MAX_CODE_BITS + 1))
        return np.array([self._symbol(symbols) for _ in range(count)], dtype=int)

    def _symbol(self, symbols: dict[str, int]) -> int:
        code = self._take(1)
        while code not in symbols:
            if len(code) == MAX_CODE_BITS:
                raise ValueError("the bits are no code.")
            code += self._take(1)
        return symbols[code]

    def _take(self, width: int) -> str:
        bits = self._bits[self._place : self._place + width]
        if len(bits) < width:
            raise ValueError("the bits end too early.")
        self._place += width
        return bits


def _with_skips(gaps: np.ndarray) -> np.ndarray:
    """Return gaps of less than SKIPPED_ZEROS, each after as many skips as the long one had."""
    row = np.full(len(gaps) + (gaps // SKIPPED_ZEROS).sum(), SKIPPED_ZEROS)
    row[np.cumsum(gaps // SKIPPED_ZEROS + 1) - 1] = gaps % SKIPPED_ZEROS
    return row


def _width(size: int) -> int:
    return (size - 1).bit_length()


def _whole(argument: str, values: np.ndarray, allowed: str) -> np.ndarray:
    """Return whole numbers (symbols,) of 0 or more, or raise a ParameterError."""
    with suppress(ValueError):  # lists of several lengths
        found = np.asarray(values)
        if found.ndim == 1 and found.dtype.kind in "iu" and len(found) and found.min() >= 0:
            return found
    raise ParameterError(f"{argument!r} must be whole numbers {allowed}, one for each symbol. Got {described(values)}.")


BLOCK = 28  # neighbours in a row that are coded at a time: a row of pixels
MOST_BLOCKS = 2**15  # about, of the matrix of a short stream
# kept weights above, or to the left: as many contexts each, and one more
CONTEXT_LEVELS = np.array([1, 2, 3, 5, 9, 17, 33])
WORD_BYTES = 4  # of the range coder
SPARED_BYTES = 8  # at the end, at most, by bytes that are zeros anyway
PRIOR = 30  # symbols that a context seems to have seen at first, as common there as in all contexts

Code = Callable[[np.ndarray, np.ndarray], np.ndarray]


class RangeWriter:
    """Write whole numbers and matrices of codes, each adaptively by those before it."""

    def __init__(self):
        self.stream = optional("constriction", "constriction").stream
        self._encoder = self.stream.queue.RangeEncoder()
        self.categorical = self.stream.model.Categorical(perfect=False)

    def uniform(self, values: np.ndarray, size: int) -> None:
        """Write whole numbers from 0 to size - 1 that are all equally likely."""
        if size > 1:
            self._encoder.encode(values.astype(np.int32), self.stream.model.Uniform(size))

    def matrix(self, codes: np.ndarray, size: int) -> None:
        """Write codes (rows, columns) from 0 to size - 1; 0 is a pruned weight."""
        walk_matrix(codes.copy(), size, self.write, self.block(codes.size))

    @staticmethod
    def block(_count: int) -> int:
        """Return how many neighbours in a row of a matrix of so many codes are coded at a time."""
        return BLOCK

    def write(self, symbols: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Write symbols (n,) that are as likely as their counts (n, symbols), or (symbols,) for all; return them."""
        symbols = symbols.astype(np.int32)
        self._encoder.encode(symbols, *self.models(counts))
        return symbols

    def models(self, counts: np.ndarray) -> tuple:
        """Return what makes symbols as likely as their counts, in the words of constriction."""
        if counts.ndim == 1:
            return (self.stream.model.Categorical(counts, perfect=False),)
        return self.categorical, counts

    @property
    def words(self) -> int:
        """Return how many words lie behind the writer, and behind its reader."""
        return self._encoder.pos()[0]

    def content(self) -> bytes:
        """Return all that was written."""
        return self._encoder.get_compressed().astype("<u4").tobytes()


class RangeReader:
    """Read what a RangeWriter wrote, in the same order.

    A range coder doesn't see where its bits end, so what was read is written again, to be compared.
    """

    writer: type[RangeWriter] = RangeWriter

    def __init__(self, content: bytes):
        self._content, self._again = content, self.writer()
        self._decoder = self._again.stream.queue.RangeDecoder(self.words(content))

    @staticmethod
    def words(content: bytes) -> np.ndarray:
        """Return the content as the words of a range coder."""
        return np.frombuffer(content, "<u4").astype(np.uint32)

    def uniform(self, count: int, size: int) -> np.ndarray:
        """Return `count` whole numbers from 0 to size - 1."""
        if size == 1:
            return np.zeros(count, dtype=np.int32)
        values = self._decoder.decode(self._again.stream.model.Uniform(size), count)
        self._again.uniform(values, size)
        return values

    def matrix(self, shape: tuple[int, int], size: int) -> np.ndarray:
        """Return codes of this shape from 0 to size - 1."""
        codes = np.zeros(shape, dtype=int)
        walk_matrix(codes, size, self.read, self._again.block(codes.size))
        return codes

    def is_at_end(self) -> bool:
        """Return whether all has been read, and nothing that was not there."""
        return self.so_far() == self._content

    def so_far(self) -> bytes:
        """Return the bytes of what has been read."""
        return self._again.content()

    def read(self, symbols: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Return as many symbols as there are in `symbols`, that are as likely as their counts."""
        how_many = (len(symbols),) if counts.ndim == 1 else ()
        return self._again.write(self._decoder.decode(*self._again.models(counts), *how_many), counts)


class ShortRangeWriter(RangeWriter):
    """A RangeWriter whose bytes end as early as they can.

    It has the calls of its reader, so that one walk along the numbers writes them, or fills them in.
    """

    def code(self, symbols: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Write symbols, and return them."""
        return self.write(symbols, counts)

    def whole(self, value: int, size: int) -> int:
        """Write a whole number from 0 to size - 1, all equally likely, and return it."""
        self.uniform(np.array([value]), size)
        return value

    @staticmethod
    def block(count: int) -> int:
        """Return more neighbours for many codes, so that no file of a few bytes takes seconds."""
        return max(BLOCK, count // MOST_BLOCKS)

    def content(self) -> bytes:
        """Return the shortest bytes that, with zeros behind them, are read as what was written.

        They are at most SPARED_BYTES fewer than those of the words that a reader takes, so that it sees early on where
        it reads nothing but the zeros behind a file, which would go on for as long as the file claims.
        """
        words, (lower, length) = self._encoder.pos()
        size = WORD_BYTES * (words + 2)
        sealed = self._encoder.get_compressed().astype(">u4").tobytes()
        written = int.from_bytes(sealed.ljust(size, b"\0"), "big")  # it lies less than a word above the lower end
        lower = written - (written - lower) % 2 ** (16 * WORD_BYTES)
        count, least = size, max(0, WORD_BYTES * words - SPARED_BYTES)
        while (
            count > least and -lower % 2 ** (8 * (size - count + 1)) < length
        ):  # a number that ends in so many zeros fits
            count -= 1
        unit = 2 ** (8 * (size - count))
        return (-(-lower // unit)).to_bytes(count, "big")


class Estimate(ShortRangeWriter):
    """Write nothing, but add up the `bits` that it would take."""

    def __init__(self):
        super().__init__()
        self.bits = 0.0

    def uniform(self, values: np.ndarray, size: int) -> None:
        """Add the bits of whole numbers that are all equally likely."""
        self.bits += len(values) * float(np.log2(size))

    def write(self, symbols: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Add the bits of symbols that are as likely as their counts, and return them."""
        symbols = symbols.astype(int)
        chosen = counts[symbols] if counts.ndim == 1 else counts[np.arange(len(symbols)), symbols]
        self.bits += float(np.log2(counts.sum(-1) / chosen).sum())
        return symbols


class ShortRangeReader(RangeReader):
    """Read what a ShortRangeWriter wrote, in the same order; the numbers that its calls are given say nothing."""

    writer = ShortRangeWriter

    def code(self, symbols: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Return as many symbols as there are in `symbols`."""
        return self.read(symbols, counts)

    def read(self, symbols: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Return as many symbols as there are in `symbols`; raise a ValueError where the file has ended before."""
        found = super().read(symbols, counts)
        if WORD_BYTES * self._again.words > len(self._content) + SPARED_BYTES:
            raise ValueError("there are fewer bytes than it claims.")
        return found

    @staticmethod
    def words(content: bytes) -> np.ndarray:
        """Return the content, with zeros that fill the last word, as the words of a range coder."""
        return np.frombuffer(content + bytes(-len(content) % WORD_BYTES), ">u4").astype(np.uint32)

    def uniform(self, count: int, size: int) -> np.ndarray:
        """Return `count` whole numbers from 0 to size - 1; raise a ValueError where the file is too short for them."""
        if count * (size.bit_length() - 1) > 8 * (len(self._content) + 4 * SPARED_BYTES):  # before they take memory
            raise ValueError("there are fewer bytes than it claims.")
        return super().uniform(count, size)

    def whole(self, _value: int, size: int) -> int:
        """Return a whole number from 0 to size - 1."""
        return int(self.uniform(1, size)[0])


class Counts:
    """Count how often each symbol came in each context, which says how likely it is to come next."""

    def __init__(self, symbols: int, contexts: int = 1):
        self._counts = np.zeros((contexts, symbols))

    def code(self, code: Code, symbols: np.ndarray, context: np.ndarray | int = 0) -> np.ndarray:
        """Code symbols (n,) in their contexts (n,), or all in one, count them, and return them."""
        context = context + np.zeros(len(symbols), dtype=int)
        anywhere = 1 + self._counts.sum(0)
        found = code(symbols, self._counts[context] * anywhere.sum() + PRIOR * anywhere)  # whole numbers
        np.add.at(self._counts, (context, found), 1)
        return found


def walk_matrix(codes: np.ndarray, size: int, code: Code, length: int = BLOCK) -> None:
    """Write a matrix, or fill in one of zeros: for each block which weights are kept, and then which codes these have.

    How likely a weight is kept is judged by how many were in its column above it and in its row before its block.
    """
    if size == 1:
        return
    kept, values = Counts(2, (len(CONTEXT_LEVELS) + 1) ** 2), Counts(size - 1)
    above = np.zeros(codes.shape[1], dtype=int)
    for row in codes:
        before = 0
        for start in range(0, len(row), length):
            block, column = row[start : start + length], above[start : start + length]
            context = _level(column) * (len(CONTEXT_LEVELS) + 1) + _level(before)
            found = kept.code(code, block > 0, context).astype(bool)
            count = int(found.sum())
            if count:
                block[found] = 1 + values.code(code, block[found] - 1) if size > 2 else 1
            column += found
            before += count


def _level(count: np.ndarray | int) -> np.ndarray:
    return CONTEXT_LEVELS.searchsorted(count, "right")


def code_choice(stream: ShortRangeWriter | ShortRangeReader, value: int, counts: Sequence[int]) -> int:
    """Code one whole number that is as likely as its count."""
    return int(stream.code(np.array([value]), np.array(counts, dtype=float))[0])
