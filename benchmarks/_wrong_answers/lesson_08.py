"""Wrong answers to the exercises of lesson 08."""

import math
from collections import Counter
from typing import Any

from kd_lab.checkpoints import load_trained
from kd_lab.formats import huffman_lengths
from kd_lab.pruning import prune
from kd_lab.quantization import quantize_weights


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
        "8 in all": lambda numbers: right(numbers) / math.log2(max(2, len(set(numbers)))),
    }


def wrong_08_2() -> dict[str, Any]:
    """Gaps."""

    def gaps(codes, restart=True, end=False):
        pairs, gap = [], 0
        for code in codes.flatten().tolist():
            if code:
                pairs.append((gap, code))
            gap = 0 if code and restart else gap + (code == 0)
        return [*pairs, (gap, 0)] if end else pairs

    return {
        "A gap comes first": lambda codes: [(value, gap) for gap, value in gaps(codes)],
        "one fewer": lambda codes: [(gap + 1, value) for gap, value in gaps(codes)],
        "column after column": lambda codes: gaps(codes.T),
        "in each row": lambda codes: [pair for row in codes for pair in gaps(row)],
        "zeros at the end get none": lambda codes: gaps(codes, end=True),
        "fewer pairs": lambda codes: gaps(codes)[1:],
        "never starts again": lambda codes: gaps(codes, restart=False),
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
        "the entropy": {"gaps": 21, "pairs": 23.02},
        "five kinds": {"gaps": 21, "pairs": 36},
    }


def wrong_08_4() -> dict[str, Any]:
    """Growth."""
    return {
        "a dict is asked for": 20,
        "sizes of files": {"one": 4286, "all": 5394},
        "The sign": {"one": -20, "all": -1128},
        "Was the copy changed": {"one": 20, "all": 0},
        "still shared": {"one": 20, "all": 32},
        "half precision": {"one": 4, "all": 1128},
        "This is `fc2`": {"one": 20, "all": 4860},
        "a fresh one": {"one": 20, "all": 1300},
        "nothing else": {"one": 36, "all": 1128},
    }


def wrong_08_5() -> dict[str, Any]:
    """The challenge."""
    dense = load_trained("lenet300")
    return {
        "no network": 4_646,
        "hardly smaller": dense,
        "`Share` comes last": prune(dense, 0.95),
        "prune a little more": quantize_weights(prune(dense, 0.95), 2, "per_tensor"),
        "Win accuracy back": quantize_weights(prune(dense, 0.985), 2, "per_tensor"),
        "Were the stages trained": prune(dense, 0.999),
    }
