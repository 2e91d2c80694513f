"""What the range coder writes reads back, and takes hardly more than the entropy of its model."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kd_lab.formats.coding import BLOCK, Counts, HuffmanReader, HuffmanWriter, RangeReader, RangeWriter

CODERS = {"range": (RangeWriter, RangeReader), "huffman": (HuffmanWriter, HuffmanReader)}
SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 2 * BLOCK + 3))


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
        def _write(self, symbols, counts):
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
