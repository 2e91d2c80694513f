"""Huffman codes are as short as an independent implementation's, lie within the entropy bound, and read back."""

from itertools import pairwise

import constriction
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_lab.errors import ParameterError
from kd_lab.formats.coding import (
    MAX_CODE_BITS,
    SKIPPED_ZEROS,
    HuffmanReader,
    HuffmanWriter,
    canonical_codes,
    huffman_lengths,
)

COUNTS = st.lists(st.integers(0, 1000), min_size=1, max_size=60).filter(any).map(np.array)


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
