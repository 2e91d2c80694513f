"""Wrong answers to the exercises of lesson 08."""

import math
from collections import Counter
from typing import Any

import numpy as np

from benchmarks._wrong_answers.lesson_06 import hiding
from kd_lab.checkpoints import load_trained
from kd_lab.formats import huffman_lengths, load_packed
from kd_lab.pruning import prune
from kd_lab.quantization import quantize_weights
from kd_lab.results import RESULTS


def wrong_08_1() -> dict[str, Any]:
    """Entropy."""

    def right(numbers):
        return sum(-count * math.log2(count / len(numbers)) for count in Counter(numbers).values())

    def words(numbers):
        counts = list(Counter(numbers).values())
        return sum(a * int(b) for a, b in zip(counts, huffman_lengths(counts), strict=True))

    return {
        "The sign": lambda numbers: -right(numbers),
        "the mean for one": lambda numbers: right(numbers) / len(numbers),
        "in nats": lambda numbers: right(numbers) * math.log(2),
        "counted once": lambda numbers: sum(-math.log2(count / len(numbers)) for count in Counter(numbers).values()),
        "costs the same": lambda numbers: len(numbers) * math.log2(len(set(numbers))),
        "Huffman's words": words,
        "The numbers may be any": lambda numbers: (
            right(numbers)
            - sum(
                -numbers.count(each) * math.log2(numbers.count(each) / len(numbers))
                for each in {*numbers} - {*range(4)}
            )
        ),
        "8 in all": lambda numbers: right(numbers) / math.log2(max(2, len(set(numbers)))),
    }


def right_08_1() -> list[Any]:
    """With NumPy, and rounded as in the question."""

    def bits(numbers):
        counts = np.unique(numbers, return_counts=True)[1]
        return -(counts * np.log2(counts / counts.sum())).sum()

    return [bits, lambda numbers: round(bits(numbers), 1)]


def gaps(codes, restart=True, end=False):
    """Return the pairs of (gap, value), or those of a counter that never restarts, or with the zeros at the end."""
    pairs, gap = [], 0
    for code in codes.flatten().tolist():
        if code:
            pairs.append((gap, code))
        gap = 0 if code and restart else gap + (code == 0)
    return [*pairs, (gap, 0)] if end else pairs


def right_08_2() -> list[Any]:
    """Lists and an array instead of a list of tuples."""
    return [lambda codes: [[*pair] for pair in gaps(codes)], lambda codes: np.array(gaps(codes))]


def wrong_08_2() -> dict[str, Any]:
    """Gaps."""
    return {
        "A gap comes first": lambda codes: [(value, gap) for gap, value in gaps(codes)],
        "one fewer": lambda codes: [(gap + 1, value) for gap, value in gaps(codes)],
        "column after column": lambda codes: gaps(codes.T),
        "in each row": lambda codes: [pair for row in codes for pair in gaps(row)],
        "those at the end": lambda codes: gaps(codes, end=True),
        "fewer pairs": lambda codes: [pair for pair in gaps(codes) if pair[0]],
        "never starts again": lambda codes: gaps(codes, restart=False),
        "one after another": lambda codes: [(gap / 2, value) for gap, value in gaps(codes)],
        "no pairs": lambda codes: [gap for gap, _ in gaps(codes)],
        "no list": lambda codes: dict(gaps(codes)),
    }


def wrong_08_3() -> dict[str, Any]:
    """Bits of Huffman's words."""
    return {
        "a dict is asked for": 21,
        "gaps *and* values": {"gaps": 12, "pairs": 24},
        "together?": {"gaps": 24, "pairs": 24},
        "as one symbol": {"gaps": 16, "pairs": 24},
        "a gap too many": {"gaps": 22, "pairs": 24},
        "with 08.2 first": {"gaps": 34, "pairs": 24},
        "overlap": {"gaps": 21, "pairs": 54},
        "leaves it out": {"gaps": 21, "pairs": 25},
        "the order counts": {"gaps": 21, "pairs": 21},
        "the entropy": {"gaps": 21, "pairs": 23.02},
        "five kinds": {"gaps": 21, "pairs": 36},
    }


def wrong_08_4() -> dict[str, Any]:
    """Growth."""
    return {
        "a dict is asked for": 20,
        "sizes of files": {"one": 4286, "all": 5394},
        "The sign": {"one": -20, "all": -1128},
        "Was the copy changed": {"one": 0, "all": 1128},
        "at the right numbers": {"one": 1128, "all": 20},
        "still shared": {"one": 20, "all": 32},
        "half precision": {"one": 4, "all": 1128},
        "This is `fc2`": {"one": 20, "all": 4860},
        "a fresh one": {"one": 20, "all": 1148},
        "nothing else": {"one": 16, "all": 1128},
    }


def wrong_08_5() -> dict[str, Any]:
    """The challenge."""
    dense = load_trained("lenet300")
    return {
        "a network is asked for": 4_646,
        "the `small` of the setup": load_packed(RESULTS / "deep_compression" / "lenet300_taught_7_0.kdz"),
        "another network": load_packed(RESULTS / "deep_compression" / "lenet5_taught_1_0.kdz"),
        "hardly smaller": dense,
        "`Share` comes last": prune(dense, 0.95),
        "prune a little more": quantize_weights(prune(dense, 0.95), 2, "per_tensor"),
        "Win accuracy back": quantize_weights(prune(dense, 0.985), 2, "per_tensor"),
        "Were the stages trained": hiding(prune(dense, 0.999), dense),
    }
