"""The checks of lesson 08, deep compression."""

import copy
import itertools
import math
from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

from kd_lab.evaluation import accuracy
from kd_lab.exercises.judging import exercise, expect_by_name, expect_network, expect_number, mnist, wrong_if
from kd_lab.formats import huffman_lengths, load_packed, pack
from kd_lab.results import RESULTS

BITS = {"gaps": 21, "pairs": 24}  # of Huffman's words; by hand, too
Pairs = list[tuple[float, ...]]


@exercise(
    "08.1",
    "A number that is half of all costs one bit, each time that it occurs.",
    "Count how often each number occurs. Its share p is that count over the number of all; use `math.log2`.",
    "`sum(-count * math.log2(count / len(numbers)) for count in Counter(numbers).values())`",
)
def entropy(answer: Any, draw: Generator) -> None:
    """`my_entropy(numbers)` is the entropy of all numbers of a list, in bits."""
    shares, kinds = torch.tensor([0.6, 0.2, 0.15, 0.05]), [0, 2, 3, 9]
    drawn = torch.multinomial(shares, 60, replacement=True, generator=draw).tolist()
    numbers = [*kinds, *(kinds[each] for each in drawn)]
    given = expect_number(answer(numbers), "(-inf, inf)", "Return one number: the bits of all numbers together.")
    counts, size = Counter(numbers), len(numbers)
    right = sum(-count * math.log2(count / size) for count in counts.values())
    same = expect_number(answer([5, 5, 5]), "(-inf, inf)", "Try it on a list of equal numbers: it needs 0 bits.")
    if abs(given - right) < 0.06:  # one decimal will do
        return wrong_if(abs(same) > 0.01, f"three equal numbers get {same:g} bits", "They need none: log₂(1) is 0.")
    said = f"{given:.4g} came for {size} numbers, where {right:.4g} are right"
    wrong_if(abs(given + right) < 0.01, said, "The sign: a logarithm of a share is negative, bits are not.")
    per_number = "This is the mean for one number. All of them are asked for: times `len(numbers)`."
    wrong_if(abs(given - right / size) < 0.01, said, per_number)
    wrong_if(abs(given - right * math.log(2)) < 0.01, said, "This is in nats. Bits want the logarithm to the base 2.")
    once = "Each different number is counted once here. It costs its bits every time that it occurs."
    wrong_if(abs(given - sum(-math.log2(count / size) for count in counts.values())) < 0.01, said, once)
    fixed = "Here every number costs the same. A frequent number should cost less: use its share."
    wrong_if(given in (2 * size, size * math.log2(size)), said, fixed)
    lengths = huffman_lengths(np.array(list(counts.values()))).tolist()
    words = sum(count * length for count, length in zip(counts.values(), lengths, strict=True))
    wrong_if(given == words, said, "These are Huffman's words, of whole bits. The entropy is the limit below them.")
    some = sum(-n * math.log2(n / size) for number, n in counts.items() if number < 4)
    wrong_if(abs(given - some) < 0.06, said, "The numbers may be any: here 9 is one. `Counter` finds them all.")
    wrong_if(True, said, "Try `[0, 1, 2, 3]`: each has a share of 1/4 and costs 2 bits, 8 in all.")


@exercise(
    "08.2",
    "Walk through the numbers with a counter of zeros. What happens at a number that is not zero?",
    "Flatten the matrix first. At a zero the counter grows; else append `(counter, value)` and start again from 0.",
    "`for code in codes.flatten().tolist():`, with `gap += 1` at a zero, else `pairs.append((gap, code))`, `gap = 0`.",
)
def gaps(answer: Any, draw: Generator) -> None:
    """`my_gaps(codes)` returns (gap, value) of each number that is not zero, row after row."""
    codes = torch.randint(1, 4, (5, 7), generator=draw) * (torch.rand(5, 7, generator=draw) < 0.3)
    codes[2], codes[0, :2], codes[1, 3:5], codes[-1, -1] = 0, torch.tensor([0, 1]), 2, 0
    given, right = _pairs(answer(codes)), _gaps(codes)
    if given == right:
        return
    said = f"for {codes.flatten().tolist()} in rows of 7 came {given}"
    turned = "A gap comes first, then the value."
    wrong_if(given == [(value, gap) for gap, value in right], said, turned)
    after = "This is the distance to the weight before. The gap counts the zeros between them, one fewer."
    wrong_if(given == [(gap + 1, value) for gap, value in right], said, after)
    wrong_if(given == _gaps(codes.T), said, "This goes column after column. `codes.flatten()` goes row after row.")
    restarts = "The counter starts again in each row here. Let it run on: a row's end doesn't matter."
    wrong_if(given == [pair for row in codes for pair in _gaps(row)], said, restarts)
    wrong_if(
        len(given) > len(right), said, "There are more pairs than weights: no zero gets one, nor those at the end."
    )
    wrong_if(len(given) < len(right), said, "There are fewer pairs than numbers that are not zero.")
    total = "The counter never starts again: set it to 0 after each pair."
    wrong_if([gap for gap, _ in given] == sorted(gap for gap, _ in given), said, total)
    wrong_if(True, said, "Compare with the pairs of the matrix in the folded answer, one after another.")


def _pairs(given: Any) -> Pairs:
    """Return the pairs that an answer gives, as plain numbers; raise Wrong if it gives something else."""
    hint = "Return a list of pairs of whole numbers, `[(2, 1), (3, 2), …]`."
    given = given.tolist() if isinstance(given, (Tensor, np.ndarray)) else given
    wrong_if(not isinstance(given, (list, tuple)), "this is no list of pairs", hint)
    pairs = [tuple(each) if isinstance(each, (list, tuple)) else () for each in given]
    wrong_if(any(len(pair) != 2 for pair in pairs), "some elements of the list are no pairs", hint)
    return [tuple(expect_number(each, "[0, 1000]", hint) for each in pair) for pair in pairs]


def _gaps(codes: Tensor) -> Pairs:
    """Return the gap before each number that is not zero, and the number."""
    row = codes.flatten().tolist()
    places = [-1, *(place for place, code in enumerate(row) if code)]
    return [(place - before - 1, row[place]) for before, place in itertools.pairwise(places)]


@exercise(
    "08.3",
    "Three Huffman codes: one for gaps, one for values, one for pairs. Count symbols with `Counter`.",
    "Bits are the sum of count times length: `huffman_lengths(list(Counter(symbols).values()))` has the lengths.",
    "The gaps 2, 3, 6, 1, 3, 2 take 12 bits, the values 1, 2, 1, 3, 1, 2 take 9. The pairs are of five kinds.",
)
def huffman(answer: Any, draw: Generator) -> None:
    """`my_bits` is a dict: the bits of Huffman's words for gaps and values, and for pairs of neighbours."""
    bits = expect_by_name(answer, BITS)
    if bits == BITS:
        return
    said = f"{bits['gaps']:g} bits for the gaps, {bits['pairs']:g} for the pairs"
    forgotten = "This is one of the two codes alone. A reader needs gaps *and* values: 12 and 9 bits."
    wrong_if(bits["gaps"] in (9, 12), said, forgotten)
    wrong_if(bits["gaps"] == 24, said, "One code for gaps and values together? Give each a code of its own.")
    wrong_if(bits["gaps"] == 16, said, "This codes each (gap, value) as one symbol. Code gaps and values apart.")
    wrong_if(bits["gaps"] in (22, 25), said, "Is there a gap too many? The zeros at the end get none.")
    wrong_if(bits["gaps"] != 21, said, "Check the gaps with 08.2 first, then count times length, for both codes.")
    wrong_if(bits["pairs"] > 50, said, "These pairs overlap. Numbers 1 and 2 make a pair, then 3 and 4, …")
    wrong_if(bits["pairs"] in (25, 29), said, "The 25th number has got a word, too. The question leaves it out.")
    wrong_if(bits["pairs"] == 21, said, "`(0, 1)` and `(1, 0)` are two symbols: the order counts.")
    wrong_if(bits["pairs"] < 24, said, "Less than Huffman's words can have: is it the entropy, or are pairs missing?")
    wrong_if(True, said, "Twelve pairs of five kinds; `(0, 0)` is the most frequent, and its word has one bit.")


@exercise(
    "08.4",
    "Change a copy, pack it, subtract `len(pack(small))`. Two changes, each from a fresh copy.",
    "`one.fc1.weight.nonzero()[0]` is the place of a weight that is not zero.",
    "`len(pack(one)) - len(pack(small))`, after `one.fc1.weight.data[row, column] = 0.0123456`.",
)
def growth(answer: Any, draw: Generator) -> None:
    """`my_growth` is a dict: by how many bytes the file grows for one and for 326 new values."""
    grown = expect_by_name(answer, ("one", "all"), "(-inf, inf)")
    right = _growth()
    said = f"one {grown['one']:g}, all {grown['all']:g} bytes"
    if abs(grown["one"] - right["one"]) <= 3 and abs(grown["all"] - right["all"]) <= 12:
        return
    whole = "These are the sizes of files. By how much do they grow? Subtract `len(pack(small))`."
    wrong_if(min(grown.values()) > 4_000, said, whole)
    wrong_if(min(grown.values()) < 0, said, "The sign: the file grows, so subtract the old size from the new one.")
    wrong_if(grown["all"] <= right["one"] + 20 < grown["one"], said, "Are the names at the right numbers?")
    same = "Was the copy changed? Write by `[row, column]`: `w[w != 0][0] = …` is another tensor."
    wrong_if(0 in grown.values(), said, same)
    shared = "For *all* the values are still shared: one number for the whole layer. Draw one for each weight."
    wrong_if(0 < grown["all"] < 100, said, shared)
    half = "For *one* the value is not 0.0123456: one that half precision holds costs less."
    wrong_if(grown["one"] < 8, said, half)
    wrong_if(abs(grown["all"] - 4_860) < 1_000, said, "This is `fc2` with its 1,333 weights. `fc3` is asked for.")
    kept = "Is the copy for *all* a fresh one, do zeros stay zero, and was `small` left alone? Load it again if not."
    wrong_if(abs(grown["one"] - right["one"]) <= 3, said, kept)
    wrong_if(True, said, "For *one*, change one weight of `fc1` that is not zero, in a fresh copy, and nothing else.")


@cache
def _small() -> nn.Module:
    """Return the lesson's network of 4,266 bytes, which the exercises are given."""
    return load_packed(RESULTS / "deep_compression" / "lenet300_taught_7_0.kdz")


@cache
def _growth() -> dict[str, int]:
    """Return by how many bytes the lesson's file grows: one weight of fc1, and all of fc3, with values of their own."""
    small = _small()
    one, every = copy.deepcopy(small), copy.deepcopy(small)
    one.fc1.weight.data[tuple(one.fc1.weight.nonzero()[0])] = 0.0123456
    every.fc3.weight.data *= 1 + 0.001 * torch.randn(10, 50)
    before = len(pack(small))
    return {"one": len(pack(one)) - before, "all": len(pack(every)) - before}


@exercise(
    "08.5",
    "Most bytes say where the weights of `fc1` are. What makes them fewer? Then: what wins accuracy back?",
    "Prune 96 %, and give `fc1` 2 bits. Then train longer: more steps an epoch, a larger learning rate.",
    '`Prune(0.96, …)`, `Share({"fc1": 2, "fc2": 3, "fc3": 3}, …)`, `steps_per_epoch=80, learning_rate=6e-3`',
)
def challenge(answer: Any, draw: Generator) -> None:
    """`my_network` packs into fewer than 5,000 bytes and reads 94.5 % of the validation images."""
    answer = expect_network(answer, "lenet300", "Give `compress(dense, …).model`, not the file or a size.", whole=False)
    theirs = torch.equal(answer.fc3.weight, _small().fc3.weight)
    wrong_if(theirs, "this is the `small` of the setup cell", "Make one of your own: `compress(dense, …).model`.")
    size, read = len(pack(answer)), accuracy(answer, mnist().validation).value
    said = f"{size:,} bytes, {read:.2%} right"
    wrong_if(size > 100_000, said, "This is hardly smaller than the dense one. Are all three stages in the recipe?")
    shared = "Pruned, but each weight still takes four bytes: `Share` comes last."
    wrong_if(size > 15_000, said, shared)
    wrong_if(size >= 5_000 and read < 0.945, said, "Both fail: train longer first, then prune a little more.")
    wrong_if(size >= 5_000, said, "Still too large: prune more, or give `fc1` fewer bits.")
    wrong_if(read < 0.2, said, "It hardly reads any more. Were the stages trained (`epochs`, `steps_per_epoch`)?")
    wrong_if(read < 0.945, said, "Small enough. Win accuracy back by more steps or another learning rate.")
