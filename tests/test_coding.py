"""Huffman codes are as short as an independent implementation's; the range coder takes hardly more than its model.

What either writes reads back.
"""

from contextlib import suppress
from itertools import pairwise

import constriction
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kd_lab.errors import ParameterError
from kd_lab.formats.coding import (
    BLOCK,
    MAX_CODE_BITS,
    SKIPPED_ZEROS,
    SPARED_BYTES,
    Counts,
    HuffmanReader,
    HuffmanWriter,
    RangeReader,
    RangeWriter,
    ShortRangeReader,
    ShortRangeWriter,
    canonical_codes,
    huffman_lengths,
)

COUNTS = st.lists(st.integers(0, 1000), min_size=1, max_size=60).filter(any).map(np.array)
CODERS = {"range": (RangeWriter, RangeReader), "huffman": (HuffmanWriter, HuffmanReader)}
SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 2 * BLOCK + 3))


# ---- Huffman codes


def test_the_code_of_a_small_example_is_the_one_by_hand():
    lengths = huffman_lengths(np.array([5, 1, 0, 2, 1]))
    assert lengths.tolist() == [1, 3, 0, 2, 3]
    assert canonical_codes(lengths) == {"0": 0, "10": 3, "110": 1, "111": 4}


@given(COUNTS)
def test_the_whole_is_as_short_as_constriction_makes_it(counts):
    used = counts[counts > 0]
    if len(used) == 1:
        assert huffman_lengths(counts).sum() == 1
        return
    tree = constriction.symbol.huffman.EncoderHuffmanTree(used.astype(float))
    coder = constriction.symbol.QueueEncoder()
    theirs = 0
    for symbol, count in enumerate(used.tolist()):
        coder = constriction.symbol.QueueEncoder()
        coder.encode_symbol(symbol, tree)
        theirs += count * coder.get_compressed()[1]
    assert (huffman_lengths(counts) * counts).sum() == theirs


@given(COUNTS)
def test_the_mean_lies_within_the_entropy_and_one_bit_more(counts):
    lengths, shares = huffman_lengths(counts), counts[counts > 0] / counts.sum()
    entropy = -(shares * np.log2(shares)).sum()
    mean = (lengths * counts).sum() / counts.sum()
    assert entropy - 1e-9 <= mean <= max(1, entropy + 1)


@given(COUNTS)
def test_no_code_begins_like_another(counts):
    codes = sorted(canonical_codes(huffman_lengths(counts)))
    assert len(codes) == (counts > 0).sum()
    assert not any(after.startswith(before) for before, after in pairwise(codes))


@pytest.mark.parametrize("lengths", [[1, 1, 1], [1, 2, 2, 5], [MAX_CODE_BITS + 1]])
def test_lengths_that_no_code_has_are_named(lengths):
    with pytest.raises(ParameterError, match="'lengths' must be those of codes of which none begins like another"):
        canonical_codes(lengths)


@pytest.mark.parametrize("lengths", [None, [-1, 2], [1.5], [1, "a"], [[1], [1, 2]], [True]])
def test_lengths_that_are_none_are_named(lengths):
    with pytest.raises(ParameterError, match="'lengths' must be whole numbers from 0 to 31"):
        canonical_codes(lengths)


@pytest.mark.parametrize("counts", [[], [[1, 2]], [[1], [1, 2]], [0.5, 1], [-1, 2], "ab"])
def test_counts_that_are_none_are_named(counts):
    with pytest.raises(ParameterError, match="'counts' must be whole numbers"):
        huffman_lengths(counts)


@pytest.mark.parametrize(
    "gap", [0, 1, SKIPPED_ZEROS - 1, SKIPPED_ZEROS, SKIPPED_ZEROS + 1, 2 * SKIPPED_ZEROS, 5 * SKIPPED_ZEROS + 3]
)
def test_long_gaps_are_read_back(gap):
    codes = np.array([[0] * gap + [2, 1] + [0] * gap])
    writer = HuffmanWriter()
    writer.matrix(codes, 3)
    assert np.array_equal(HuffmanReader(writer.content()).matrix(codes.shape, 3), codes)


# ---- both coders, and the range coder's model


@pytest.fixture(params=CODERS)
def coder(request):
    return CODERS[request.param]


@given(
    parts=st.lists(
        st.integers(1, 9).flatmap(
            lambda size: st.tuples(st.just(size), arrays(int, SHAPES, elements=st.integers(0, size - 1)))
        ),
        min_size=1,
        max_size=4,
    )
)
def test_matrices_and_numbers_in_a_row_read_back(parts):
    for write, read in CODERS.values():
        writer = write()
        for size, codes in parts:
            writer.uniform(codes[0], size)
            writer.matrix(codes, size)
        reader = read(writer.content())
        for size, codes in parts:
            assert np.array_equal(reader.uniform(codes.shape[1], size), codes[0])
            assert np.array_equal(reader.matrix(codes.shape, size), codes)


def sparse(rows=300, columns=784, size=5):
    generator = np.random.default_rng(0)
    likely = generator.beta(0.3, 10, (1, columns)) * generator.beta(2, 2, (rows, 1)) * 2
    return np.where(generator.random((rows, columns)) < likely, generator.integers(1, size, (rows, columns)), 0)


def model_bits(codes, size):
    """Return the bits that the model's own probabilities say the codes take."""
    bits = 0.0

    class Listener(RangeWriter):
        def write(self, symbols, counts):
            nonlocal bits
            chosen = np.take_along_axis(counts, np.asarray(symbols, dtype=int)[:, None], 1)[:, 0]
            bits -= np.log2(chosen / counts.sum(1)).sum()
            return symbols.astype(np.int32)

    Listener().matrix(codes, size)
    return bits


def test_the_bytes_are_within_a_hundredth_of_the_entropy_of_the_model():
    codes = sparse()
    writer = RangeWriter()
    writer.matrix(codes, 5)
    assert model_bits(codes, 5) <= 8 * len(writer.content()) <= 1.01 * model_bits(codes, 5)


def test_what_lies_above_and_before_is_used():
    codes = sparse()
    kept = (codes > 0).mean()
    alone = -codes.size * (kept * np.log2(kept) + (1 - kept) * np.log2(1 - kept)) + (codes > 0).sum() * 2
    assert model_bits(codes, 5) < 0.9 * alone


def test_counts_are_whole_so_that_every_machine_has_the_same():
    seen = []

    def code(symbols, counts):
        seen.append(counts.copy())
        return symbols.astype(int)

    counts = Counts(2, 3)
    for _ in range(5):
        counts.code(code, np.array([0, 1, 1]), np.array([0, 1, 1]))
    assert all(np.array_equal(each, each.astype(int)) for each in seen)
    assert seen[1].tolist() == [[65, 90], [60, 100], [60, 100]]


def test_all_zero_and_all_kept_are_cheap(coder):
    write, read = coder
    for codes, size in ((np.zeros((50, 100), int), 3), (np.ones((50, 100), int), 2), (np.zeros((4, 4), int), 1)):
        writer = write()
        writer.matrix(codes, size)
        assert len(writer.content()) < codes.size / 4 + 100
        assert np.array_equal(read(writer.content()).matrix(codes.shape, size), codes)


def test_a_context_that_has_seen_nothing_is_judged_by_all():
    likely = []

    def code(symbols, counts):
        likely.append(counts[0] / counts[0].sum())
        return symbols

    counts = Counts(2, 2)
    counts.code(code, np.array([0] * 8 + [1] * 2), 0)
    counts.code(code, np.array([0]), 1)
    counts.code(code, np.array([0]), 0)
    assert likely[0] == pytest.approx([1 / 2, 1 / 2])
    assert likely[1] == pytest.approx([9 / 12, 3 / 12])
    assert likely[2] == pytest.approx([(8 + 30 * 10 / 13) / 40, (2 + 30 * 3 / 13) / 40])


# ---- the shortest bytes

ROWS = st.lists(
    st.lists(st.integers(0, 1000), min_size=2, max_size=9)
    .filter(any)
    .flatmap(lambda counts: st.tuples(st.just(counts), st.integers(0, len(counts) - 1))),
    max_size=60,
)


def read_short(content, rows):
    """Return the symbols in a content, and whether it holds nothing else."""
    reader, found = ShortRangeReader(content), []
    with suppress(AssertionError):  # as constriction says that no symbol is there
        for counts, _ in rows:
            found.append(int(reader.code(np.zeros(1), np.array(counts, float))[0]))
    return found, reader.is_at_end()


@settings(max_examples=40)
@given(ROWS)
def test_the_shortest_bytes_read_back_and_no_other_bytes_do(rows):
    writer, words = ShortRangeWriter(), RangeWriter()
    for counts, symbol in rows:
        for each in (writer, words):
            each.write(np.array([symbol]), np.array(counts, float))
    content, expected = writer.content(), [symbol for _, symbol in rows]
    assert len(content) <= len(words.content()) and read_short(content, rows) == (expected, True)
    for other in (content + b"\0", content + b"\x80", content[:-1], content[:-1] + b"\xff"):
        assert other == content or read_short(other, rows) != (expected, True)


@given(st.lists(st.tuples(st.integers(2, 2**20), st.floats(0, 0.999)), max_size=30))
def test_whole_numbers_take_hardly_more_than_their_bits(parts):
    writer, bits = ShortRangeWriter(), 0.0
    for size, share in parts:
        assert writer.whole(int(share * size), size) == int(share * size)
        bits += np.log2(size)
    assert len(writer.content()) <= bits / 8 + 1.01
    reader = ShortRangeReader(writer.content())
    assert [reader.whole(0, size) for size, _ in parts] == [int(share * size) for size, share in parts]
    assert reader.is_at_end()


def test_zeros_fill_up_so_that_a_reader_sees_where_a_file_ends():
    writer = ShortRangeWriter()
    for _ in range(100):
        writer.whole(0, 256)
    content = writer.content()
    assert content == bytes(len(content)) and 100 - SPARED_BYTES - 4 <= len(content) <= 100
    reader = ShortRangeReader(content)
    assert [reader.whole(1, 256) for _ in range(100)] == [0] * 100 and reader.is_at_end()


def test_what_is_read_far_behind_the_end_is_refused_before_it_takes_time():
    reader = ShortRangeReader(b"\x12\x34")
    counts = np.array([1.0, 1.0])
    with pytest.raises(ValueError, match="there are fewer bytes than it claims"):
        for _ in range(200):
            reader.code(np.zeros(1), counts)
    with pytest.raises(ValueError, match="there are fewer bytes than it claims"):
        ShortRangeReader(b"\x12\x34").uniform(10**12, 256)
