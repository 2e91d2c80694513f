"""Wrong answers to the exercises of lesson 09."""

from typing import Any

import torch


def wrong_09_1() -> dict[str, Any]:
    """A unit of an LSTM."""

    def rows(u, unit):
        return (torch.arange(u.shape[1]) != unit).repeat(4)

    def columns(u, unit):
        return torch.arange(u.shape[1]) != unit

    def right(w, u, unit):
        return w[rows(u, unit)], u[rows(u, unit)][:, columns(u, unit)]

    def neighbours(w, u, unit):
        keep = torch.ones(len(w), dtype=torch.bool)
        keep[4 * unit : 4 * unit + 4] = False
        return w[keep], u[keep][:, columns(u, unit)]

    def one_row(w, u, unit):
        keep = torch.arange(len(w)) != unit
        return w[keep], u[keep][:, columns(u, unit)]

    def only_columns(w, u, unit):
        return w[rows(u, unit)], u[:, columns(u, unit)]

    return {
        "One row went": one_row,
        "zeros stay": lambda w, u, unit: (w * rows(u, unit)[:, None], u * columns(u, unit)),
        "still read the one": lambda w, u, unit: (w[rows(u, unit)], u[rows(u, unit)]),
        "still compute the unit": only_columns,
        "W still computes": lambda w, u, unit: (w, right(w, u, unit)[1]),
        "none of its columns": lambda w, u, unit: (w[rows(u, unit)][:, 1:], right(w, u, unit)[1]),
        "rows are neighbours": neighbours,
        "Unit 0 is the first": lambda w, u, unit: right(w, u, unit - 1),
        "Return both": lambda w, u, unit: w[rows(u, unit)],
        "and unit 0 came (20, 3)": lambda w, u, unit: right(w, u, unit) if unit else (w, u),
        "U came first": lambda w, u, unit: right(w, u, unit)[::-1],
        "without_7": lambda w, u, unit: (w[rows(u, unit)], u[rows(u, unit)][:, 1:]),
    }


def wrong_09_2() -> dict[str, Any]:
    """Attention with several heads."""

    def split(each, heads):
        return each.view(len(each), heads, -1).transpose(0, 1)

    def attention(query, key, value, heads, divide=lambda size, width: size**0.5, dim=2, cut=split, join=None):
        q, k, v = (cut(each, heads) for each in (query, key, value))
        result = (q @ k.transpose(1, 2) / divide(q.shape[2], query.shape[1])).softmax(dim) @ v
        return join(result) if join else result.transpose(0, 1).reshape(value.shape)

    def interleaved(query, key, value, heads):
        q, k, v = (each.view(len(each), -1, heads).permute(2, 0, 1) for each in (query, key, value))
        result = (q @ k.transpose(1, 2) / q.shape[2] ** 0.5).softmax(2) @ v
        return result.permute(1, 2, 0).reshape(value.shape)

    def torn(query, key, value, heads):
        q, k, v = (each.view(heads, len(each), -1) for each in (query, key, value))
        return ((q @ k.transpose(1, 2) / q.shape[2] ** 0.5).softmax(2) @ v).reshape(value.shape)

    return {
        "mixes tokens": torn,
        "its own block": lambda q, k, v, heads: attention(q, k, v, 1),
        "a square root first": lambda q, k, v, heads: attention(q, k, v, heads, lambda size, width: 1),
        "of its own size": lambda q, k, v, heads: attention(q, k, v, heads, lambda size, width: width**0.5),
        "square *root*": lambda q, k, v, heads: attention(q, k, v, heads, lambda size, width: size),
        "must add up to 1": lambda q, k, v, heads: attention(q, k, v, heads, dim=1),
        "columns 0 to 3": interleaved,
        "tokens that ask": lambda q, k, v, heads: attention(k, q, v, heads),
        "mean of the *values*": lambda q, k, v, heads: attention(q, k, k, heads),
        "before it is flattened": lambda q, k, v, heads: attention(q, k, v, heads, join=lambda r: r.reshape(v.shape)),
        "With three heads it is right": lambda q, k, v, heads: attention(q, k, v, 3),
        "A row for each token": lambda q, k, v, heads: attention(q, k, v, heads, join=lambda r: r),
        "Test each head alone": lambda q, k, v, heads: attention(q, k, v, 2),
    }


def wrong_09_3() -> dict[str, Any]:
    """Parameters of a unit."""

    def right(gates, inputs, units):
        return gates * (inputs + 2 * units + 1)

    return {
        "only once": lambda gates, inputs, units: gates * (inputs + 2 * units + 2),
        "biases are missing": lambda gates, inputs, units: gates * (inputs + 2 * units - 1),
        "not one": lambda gates, inputs, units: gates * (inputs + 2 * units),
        "U loses a column, too": lambda gates, inputs, units: gates * (inputs + units + 2),
        "Row of W, row of U": lambda gates, inputs, units: gates * (inputs + units),
        "four gates": lambda gates, inputs, units: right(4, inputs, units),
        "This is one gate": lambda gates, inputs, units: inputs + 2 * units + 1,
        "the whole layer": lambda gates, inputs, units: gates * units * (inputs + units + 2),
        "what is left": lambda gates, inputs, units: gates * (units - 1) * (inputs + units + 1),
        "strike the unit out": lambda gates, inputs, units: 2 * right(gates, inputs, units),
    }


def wrong_09_4() -> dict[str, Any]:
    """How many units can go."""
    return {
        "This is a share": 0.19,
        "Only 12, 16": 25,
        "what is left": 104,
        "asks for the bad end": 28,
        "more than a point": 40,
        "the largest number that passes": 12,
    }


def wrong_09_5() -> dict[str, Any]:
    """A block less, or each narrower."""
    return {
        "a dict is asked for": [-0.94, -1.96],
        "These are fractions": {"narrower": -0.0094, "block less": -0.0196},
        "The sign": {"narrower": 0.94, "block less": 1.96},
        "at the right numbers": {"narrower": -1.96, "block less": -0.94},
        "These are accuracies": {"narrower": 97.9, "block less": 96.9},
        "before training": {"narrower": -6.44, "block less": -7.16},
        "by 0.34": {"narrower": -3.46, "block less": -1.96},
        "better than one epoch": {"narrower": 0.1, "block less": -0.3},
        'and is "block2" gone': {"narrower": -0.94, "block less": -1.26},
        "for one epoch": {"narrower": -0.94, "block less": -7.16},
    }
