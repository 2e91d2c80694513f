"""The checks of lesson 09, beyond CNNs."""

from functools import cache
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from kd_lab.checkpoints import load_trained
from kd_lab.errors import described
from kd_lab.evaluation import PairedDifference, paired_difference
from kd_lab.exercises.judging import (
    close,
    exercise,
    expect_by_name,
    expect_number,
    expect_tensor,
    mnist,
    wrong_if,
    wrong_if_like,
)
from kd_lab.pruning import hard_prune, prune_channels

STEP = 4  # units between two networks that exercise 4 compares
AFTER = {"narrower": (-1.6, -0.3), "block less": (-2.5, -1.3)}  # points, wider than three seeds need


@exercise(
    "09.1",
    "How many rows has a unit, how far apart? And who reads it at the next step?",
    "`torch.arange(n) != unit` says which units stay. The rows want it four times: `.repeat(4)`.",
    "`W[rows]` and `U[rows][:, keep]`, where `rows = keep.repeat(4)`.",
)
def unit_removed(answer: Any, draw: Generator) -> None:
    """`my_removal(W, U, unit)` returns both weights of an LSTM without a unit."""
    n = 5
    w, u = torch.randn(4 * n, 3, generator=draw), torch.randn(4 * n, n, generator=draw)
    for unit in (2, 0, n - 1):
        given, keep = answer(w, u, unit), torch.arange(n) != unit
        both = isinstance(given, (tuple, list)) and [isinstance(each, Tensor) for each in given] == [True, True]
        pair = "Return both: `return W_left, U_left`."
        wrong_if(not both, f"two tensors are asked for, and {described(given)} came", pair)
        right = (w[keep.repeat(4)], u[keep.repeat(4)][:, keep])
        if not all(a.shape == b.shape and close(a, b) for a, b in zip(given, right, strict=True)):
            _misremoved(w, u, unit, *given)


def _misremoved(w: Tensor, u: Tensor, unit: int, w_left: Tensor, u_left: Tensor) -> None:
    """Raise Wrong: say which rows or columns of which weight are there that shouldn't be, or are not."""
    n = u.shape[1]
    wrong_if((w_left.shape, u_left.shape) == ((16, 4), (16, 3)), "U came first", "`return W_left, U_left`")
    said = f"for n = {n}, 3 inputs and unit {unit} came {tuple(w_left.shape)} and {tuple(u_left.shape)}"
    one = "One row went. The unit has a row in each of the four gates, n rows apart."
    wrong_if(len(w_left) == 4 * n - 1, said, one)
    zeros = "Nothing is smaller. Take the rows and the column away; zeros stay in the tensor."
    wrong_if((w_left.shape, u_left.shape) == (w.shape, u.shape), said, zeros)
    wrong_if(u_left.shape == (16, n), said, "U has lost its rows, but the other units still read the one that is gone.")
    wrong_if(u_left.shape == (4 * n, n - 1), said, "U has lost its column, but its rows still compute the unit.")
    wrong_if(w_left.shape == (4 * n, 3), said, "U is smaller, and W still computes the unit: four of its rows go.")
    wrong_if(w_left.shape[1:] != (3,), said, "W reads the inputs, and those all stay: none of its columns goes.")
    wrong_if((w_left.shape, u_left.shape) != ((16, 3), (16, 4)), said, "(16, 3) and (16, 4) should be left.")
    block = "These four rows are neighbours. Gate upon gate means n rows apart: unit, n + unit, 2n + unit, 3n + unit."
    neighbours = torch.cat([w[: 4 * unit], w[4 * unit + 4 :]])
    wrong_if(close(w_left, neighbours), "the shapes are right, the rows are not", block)
    before = torch.arange(n) != unit - 1
    number = "Unit 0 is the first: the row with the number `unit` goes, not the one before it."
    wrong_if(unit and close(w_left, w[before.repeat(4)]), "the unit before it went", number)
    wrong_if(True, f"for unit {unit} the wrong ones went", "Compare with `without_7` of section 1 of the lesson.")


@exercise(
    "09.2",
    "First one head: shares of all tokens by softmax, then a mean of the values. Then do it block by block.",
    "`query.chunk(num_heads, dim=1)` gives the blocks of columns. What does a head divide by?",
    "Each head: `(q @ k.T / q.shape[1] ** 0.5).softmax(dim=1) @ v`; then `torch.cat(results, dim=1)`.",
)
def heads(answer: Any, draw: Generator) -> None:
    """`my_attention(query, key, value, num_heads)` computes each head on its own block of columns."""
    query, key, value = (torch.randn(5, 12, generator=draw) for _ in range(3))
    hint = "A row for each token, a column for each number of the width."
    result = expect_tensor(answer(query, key, value, 3), (5, 12), hint)
    if close(result, _attention(query, key, value)):
        alone = expect_tensor(answer(query, key, value, 1), (5, 12), hint)
        fixed = "With three heads it is right. Take the size of a head from the width and `num_heads`."
        return wrong_if(not close(alone, _attention(query, key, value, 1)), "with one head the result is wrong", fixed)
    unscaled, width = 4**0.5, (4 / 12) ** 0.5  # undone and replaced, by scaling the query
    order = torch.arange(12).view(4, 3).T.flatten()
    mixed = _attention(*(each[:, order] for each in (query, key, value)))[:, order.argsort()]
    columns = [each.view(5, 3, 4).transpose(0, 1) for each in (query, key, value)]
    other = ((columns[0] @ columns[1].transpose(1, 2)) / 2).softmax(1) @ columns[2]
    torn = [each.view(3, 5, 4).transpose(0, 1).reshape(5, 12) for each in (query, key, value)]
    mistakes = {
        "the tokens are torn apart": (
            _attention(*torn).view(5, 3, 4).transpose(0, 1).reshape(5, 12),
            "`.view(heads, tokens, size)` mixes tokens: `.view(tokens, heads, size).transpose(0, 1)`.",
        ),
        "this is one head of the whole width": (
            _attention(query, key, value, 1),
            "Each head sees its own block of columns only.",
        ),
        "the products are not scaled": (_attention(query * unscaled, key, value), "Divide by a square root first."),
        "they are divided by the root of the width": (
            _attention(query * width, key, value),
            "A head divides by the root of its own size, `width // num_heads`.",
        ),
        "they are divided by the head's size itself": (
            _attention(query / unscaled, key, value),
            "Divide by the square *root* of the size.",
        ),
        "the softmax goes over the wrong dimension": (
            other.transpose(0, 1).reshape(5, 12),
            "The shares of one token that asks, a row, must add up to 1.",
        ),
        "the columns of a head are not neighbours": (mixed, "The first head has columns 0 to 3, the next 4 to 7."),
        "query and key are swapped": (_attention(key, query, value), "The rows are the tokens that ask: `q @ k.T`."),
        "the values are left out": (_attention(query, key, key), "The result is a mean of the *values*."),
        "the heads' results stand in another order": (
            torch.stack(_attention(query, key, value).chunk(3, 1)).reshape(5, 12),
            "(heads, tokens, size) must become (tokens, heads, size) before it is flattened.",
        ),
    }
    wrong_if_like(result, mistakes)
    several = "Test each head alone: its columns against `scaled_dot_product_attention` of its blocks."
    wrong_if(True, "the result is not that of three heads", several)


def _attention(query: Tensor, key: Tensor, value: Tensor, num_heads: int = 3) -> Tensor:
    """Return PyTorch's attention of all heads, (tokens, width)."""
    split = (each.view(len(each), num_heads, -1).transpose(0, 1) for each in (query, key, value))
    return scaled_dot_product_attention(*split).transpose(0, 1).reshape(value.shape)


@exercise(
    "09.3",
    "One gate first: which row and which column goes, of which matrix, and which biases?",
    "A row of W (`inputs`), a row and a column of U, two biases. Row and column of U share one number.",
    "`gates * (inputs + 2 * units - 1 + 2)`",
)
def saved(answer: Any, draw: Generator) -> None:
    """`my_saved(gates, inputs, units)` is how many parameters go with a unit of a recurrent layer."""
    inputs, units = (int(torch.randint(6, 40, (), generator=draw)) for _ in range(2))
    for kind, gates in ((nn.RNN, 1), (nn.GRU, 3), (nn.LSTM, 4)):
        given = expect_number(answer(gates, inputs, units), "(-inf, inf)", "Return one number of parameters.")
        before, after = (sum(each.numel() for each in kind(inputs, n).parameters()) for n in (units, units - 1))
        said = f"{given:g} came for {kind.__name__}({inputs}, {units}), where {before} - {after} = {before - after} go"
        if given == before - after:
            continue
        twice = "The row and the column of U cross: the number at the crossing goes only once."
        wrong_if(given == before - after + gates, said, twice)
        wrong_if(given == before - after - 2 * gates, said, "The biases are missing: two for each gate.")
        wrong_if(given == before - after - gates, said, "In PyTorch each gate has two biases for a unit, not one.")
        column = "U loses a column, too: the other units no longer read this one."
        wrong_if(given == gates * (inputs + units + 2), said, column)
        wrong_if(
            given in (gates * (inputs + units), gates * (inputs + 1 + units)), said, f"Row of W, row of U. {column}"
        )
        wrong_if(given * gates == 4 * (before - after), said, "This is an LSTM's four gates, whatever `gates` says.")
        wrong_if(gates > 1 and given * gates == before - after, said, "This is one gate. The unit has rows in all.")
        wrong_if(given == before, said, "This is the whole layer. How many go with *one* unit?")
        wrong_if(given == after, said, "This is what is left. How many go?")
        wrong_if(True, said, "Write the shapes of W and U of one gate down, and strike the unit out.")


@exercise(
    "09.4",
    "A loop over the units, and one comparison each. Keep the last that passes.",
    "`paired_difference(narrow, lstm, data.validation).interval[0] > -0.01` is the rule.",
    "The estimate may be -0.86 points and the rule still fail: the interval's lower end decides.",
)
def units_that_can_go(answer: Any, draw: Generator) -> None:
    """`my_units` is the largest number of units, in steps of 4, whose loss is surely under one point."""
    units = expect_number(answer, "[0, 128)", "How many units of 128 can go? A whole number.")
    share = "This is a share, or points. Units are asked for: 12, 16, …"
    wrong_if(units % 1, f"{units:g} is no number of units", share)
    wrong_if(units % STEP, f"{units:g} is not in steps of {STEP}", "Only 12, 16, 20, … 36 are asked for.")
    wrong_if(units > 84, f"{units:g} units gone", "Is this what is left? How many can *go* is asked for.")
    here, next_one = (_without(int(each)) for each in (units, units + STEP))
    said = f"{units:g} units gone: {here}"
    end = "The estimate alone passes. The rule asks for the bad end of the interval."
    wrong_if(here.interval[0] <= -0.01 < here.value, said, end)
    wrong_if(here.interval[0] <= -0.01, said, "That is more than a point. Take fewer units.")
    further = f"{said}. {units + STEP:g} pass, too"
    wrong_if(next_one.interval[0] > -0.01, further, "Go on: the largest number that passes is asked for.")


@cache
def _without(units: int) -> PairedDifference:
    """Return how far the LSTM without some units is from the whole one on the validation images."""
    lstm = load_trained("lstm")
    return paired_difference(hard_prune(prune_channels(lstm, units / 128)), lstm, mnist().validation)


@exercise(
    "09.5",
    "Two networks, one training each, the same images for both; then two paired differences.",
    "`tuned, _ = distil(network, vit, data.train[:4000], …)`; compare `tuned` with `vit`, on all of `data.validation`.",
    "`100 * paired_difference(tuned, vit, data.validation).value` is in points, below zero where `tuned` is worse.",
)
def narrower_or_shorter(answer: Any, draw: Generator) -> None:
    """`my_points` is a dict: the points after training of the narrower and of the shorter transformer."""
    points = expect_by_name(answer, AFTER, "[-100, 100]")
    said = ", ".join(f"{name} {each:.2f}" for name, each in points.items())

    def fits(found: dict[str, float]) -> bool:
        return all(low < found[name] < high for name, (low, high) in AFTER.items())

    narrower, shorter = points["narrower"], points["block less"]
    if fits(points) and narrower > shorter:
        return
    wrong_if(max(map(abs, points.values())) < 0.1, said, "These are fractions. Times 100 they are points.")
    wrong_if(fits({name: -each for name, each in points.items()}), said, "The sign: below zero where it is worse.")
    swapped = "Are the names at the right numbers? The network without a block is further behind."
    wrong_if(fits({"narrower": shorter, "block less": narrower}), said, swapped)
    wrong_if(min(points.values()) > 50, said, "These are accuracies. The difference to `vit` is asked for.")
    before = "Is this before training? `distil` returns a new network, and leaves the one that it got as it is."
    wrong_if(max(points.values()) < -5, said, before)
    half = "Is a third gone, by 0.34? Half of it costs more."
    wrong_if(narrower < AFTER["narrower"][0], said, half)
    longer = 'That is better than one epoch on 4,000 images makes it. Are the settings those, and is "block2" gone?'
    wrong_if(narrower > AFTER["narrower"][1] or shorter > AFTER["block less"][1], said, longer)
    wrong_if(True, said, 'Is it "block2" that is gone, and was it trained for one epoch on 4,000 images?')
