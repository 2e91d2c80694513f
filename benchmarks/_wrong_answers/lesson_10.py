"""Wrong answers to the exercises of lesson 10."""

import math
from typing import Any

import torch
import torch.nn.functional as F


def wrong_10_1() -> dict[str, Any]:
    """The contrastive loss."""

    def loss(diagonal=-math.inf, reduction="mean", norm=F.normalize, heat=lambda cosines, t: cosines / t):
        def my_loss(first, second, temperature):
            views = norm(torch.cat([first, second]))
            logits = heat(views @ views.T, temperature)
            logits = logits if diagonal is None else logits.fill_diagonal_(diagonal)
            return F.cross_entropy(logits, torch.arange(len(views)).roll(len(first)), reduction=reduction)

        return my_loss

    def across(first, second, temperature):
        cosines = F.normalize(first, dim=1) @ F.normalize(second, dim=1).T
        return F.cross_entropy(cosines / temperature, torch.arange(len(first)))

    def both_ways(first, second, temperature):
        return (across(first, second, temperature) + across(second, first, temperature)) / 2

    def next_to_each_other(first, second, temperature):
        views = F.normalize(torch.cat([first, second]), dim=1)
        logits = (views @ views.T / temperature).fill_diagonal_(-math.inf)
        return F.cross_entropy(logits, torch.arange(len(views)) ^ 1)

    return {
        "compared with itself": loss(diagonal=None),
        "the diagonal is 0": loss(diagonal=0),
        "the sum over all views": loss(reduction="sum"),
        "one number": loss(reduction="none"),
        "not cosines": loss(norm=lambda views: views),
        "temperature multiplies": loss(heat=lambda cosines, t: cosines * t),
        "temperature is not used": loss(heat=lambda cosines, t: cosines * 1),
        "half of the views": across,
        "half of the choice": both_ways,
        "one of two views": lambda first, second, temperature: loss()(first, second.detach(), temperature),
        "Who is the partner": next_to_each_other,
        "no gradient flows": lambda first, second, temperature: loss()(first, second, temperature).detach(),
    }


def right_10_1() -> list[Any]:
    """The contrastive loss, by hand as in the lesson."""

    def by_hand(first, second, temperature):
        views = F.normalize(torch.cat([first, second]), dim=1)
        scores = (views @ views.T / temperature).exp().fill_diagonal_(0)
        partner = torch.arange(len(views)).roll(len(first))
        return -(scores[range(len(views)), partner] / scores.sum(1)).log().mean()

    return [by_hand]


def wrong_10_2() -> dict[str, Any]:
    """Like lies by like."""

    def share(norm=F.normalize, own=-2.0, factor=1.0):
        def my_share(features, labels):
            rows = norm(features)
            nearest = (rows @ rows.T).fill_diagonal_(own).argmax(dim=1)
            return factor * (labels[nearest] == labels).float().mean().item()

        return my_share

    def by_distance(features, labels):
        nearest = torch.cdist(features, features).fill_diagonal_(math.inf).argmin(dim=1)
        return (labels[nearest] == labels).float().mean()

    def farthest(features, labels):
        rows = F.normalize(features, dim=1)
        return (labels[(rows @ rows.T).argmin(dim=1)] == labels).float().mean()

    return {
        "has found itself": share(own=2.0),
        "not percent": share(factor=100),
        "counts rows": share(factor=300),
        "everybody's neighbours": share(norm=lambda rows: rows, own=-math.inf),
        "take the cosine": by_distance,
        "the largest cosine": farthest,
    }


def wrong_10_3() -> dict[str, Any]:
    """How few labels are enough."""
    right = {10: 10.1, 100: 3.7, 1000: 3.05}
    return {
        "Give {10": [10.1, 3.7, 3.05],
        "These are fractions": {count: error / 100 for count, error in right.items()},
        "read rightly": {count: 100 - error for count, error in right.items()},
        "Does `count` reach": dict.fromkeys(right, 3.7),
        "go on from the last": right | {10: 4.1},
        "Are all layers trained": {10: 45.2, 100: 9.6, 1000: 3.4},
        "seeds 0, 1 and 2": {10: 11.68, 100: 3.66, 1000: 2.98},  # of seed 0 alone
        "one by one": right | {1000: 5.5},
    }


def wrong_10_4() -> dict[str, Any]:
    """Which task for which network."""
    right = {"untrained": 87.1, "contrastive": 86.5, "masked": 90.7}
    return {
        "Give {": {"contrastive": 86.5, "masked": 90.7},
        "These are fractions": {way: share / 100 for way, share in right.items()},
        "look like errors": {way: 100 - share for way, share in right.items()},
        "has found itself": dict.fromkeys(right, 100.0),
        "Which network is this": {"untrained": 87.4, "contrastive": 91.0, "masked": 86.0},
        "a *new* network": dict.fromkeys(right, 87.1),
        "as it comes": right | {"untrained": 85.0, "masked": 92.0},
        "the first 2,000 validation images": right | {"masked": 97.0},
    }
