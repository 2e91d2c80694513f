"""Measure a changed network against the dense one: on 1,000 images at once, then on all while nothing changes."""

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn

from kd_lab.data import Mnist, Split
from kd_lab.errors import check_kind
from kd_lab.evaluation import Accuracy, PairedDifference, correct_answers, predict_classes
from kd_lab.networks.layers import BATCH_SIZE, make_permanent, weighted_layers
from kd_lab.pruning import importances

FIRST = 1000  # images of the first answer; they are balanced, since the parts go through the digits in turn


def dense_network(model: nn.Module, data: Mnist) -> nn.Module:
    """Return an ordinary copy of a panel's network; refuse  what can't be measured."""
    weighted_layers(model)
    check_kind("data", data, Mnist, "what load_mnist() gives")
    dense = make_permanent(model)
    correct_answers(dense, data.validation[:10])  # which hold every label
    importances(dense, "magnitude")  # says so where weights are no numbers
    return dense


@dataclass(frozen=True)
class Comparison:
    """Hold the digits that both networks answered on the same images, and the labels, each (N,)."""

    answers: Tensor
    dense_answers: Tensor
    labels: Tensor

    @property
    def accuracy(self) -> Accuracy:
        """Return the accuracy of the changed network."""
        return Accuracy.of(self.answers == self.labels)

    @property
    def difference(self) -> PairedDifference:
        """Return how much the changed network is better than the dense one on these images."""
        return PairedDifference.of(self.answers == self.labels, self.dense_answers == self.labels)

    @property
    def lost(self) -> Tensor:
        """Return the indices of the images that only the dense network reads, (M,)."""
        return ((self.answers != self.labels) & (self.dense_answers == self.labels)).nonzero().flatten()


class Measurement:
    """Hold the images and what the dense network answers, so that it is asked only once."""

    def __init__(self, dense: nn.Module, data: Split):
        self._dense, self._data = dense, data
        self._dense_answers: list[Tensor] = []  # batch by batch, as far as they were needed

    def compare(self, model: nn.Module, count: int | None = None) -> Iterator[Comparison | None]:
        """Yield the comparison on the first 1,000 images and on the first `count` (all), None after the others."""
        images, labels = self._data[:count]
        answers = []
        for batch, x in enumerate(images.split(BATCH_SIZE)):
            if batch == len(self._dense_answers):
                self._dense_answers.append(predict_classes(self._dense, x))
            answers.append(predict_classes(model, x))
            seen = batch * BATCH_SIZE + len(x)
            done = seen in (FIRST, len(images))
            yield self._comparison(answers, labels[:seen]) if done else None

    def complete(
        self, curve: dict[float, float], places: Iterable[float], prune: Callable[[float], nn.Module], answer: object
    ) -> Iterator[object]:
        """Measure what is missing of a curve on the first 1,000 images, and yield the answer after each."""
        for place in places:
            if place not in curve:
                comparison = yield from quietly(self.compare(prune(place), FIRST))
                curve[place] = comparison.accuracy.value
                yield answer

    def _comparison(self, answers: list[Tensor], labels: Tensor) -> Comparison:
        return Comparison(torch.cat(answers), torch.cat(self._dense_answers[: len(answers)]), labels)


def quietly(steps: Iterator[Any]) -> Generator[None, None, Any]:
    """Go through the steps without showing any, where a newer setting may stop it, and return the last."""
    last = None
    for last in steps:  # noqa: B007 the last one is what it is all for
        yield None
    return last


def table(rows: list[list[str]], headers: list[str], left: int = 1) -> str:
    """Return an HTML table whose first columns, so many, are set to the left and the others to the right."""
    columns = ["left"] * left + ["right"] * (len(headers) - left)
    html = tabulate(rows, headers, "html", colalign=columns, disable_numparse=True)
    html = html.replace('style="', 'style="padding-left: 14px; ')  # of the right ones, which would touch the left
    return html.replace("<th>", "<th style='text-align: left'>")


def side_by_side(*tables: str) -> str:
    """Return tables in columns of a fixed width, so that nothing jumps when a line becomes longer."""
    columns = "".join(f"<div style='width: 50%'>{each}</div>" for each in tables)
    return f"<div style='display: flex; gap: 24px; line-height: 1.4; text-align: left'>{columns}</div>"


def scores(comparison: Comparison, costs: dict[str, str], test: Accuracy | None, tested: int) -> str:
    """Return an HTML table: how good the changed network is, what it costs, and what the test part says, if asked."""
    rows = {
        "images": f"{comparison.accuracy.count:,}",
        "accuracy": percent(comparison.accuracy),
        "against dense, points": points(comparison.difference),
        "images lost, gained": f"{comparison.difference.lost:,}, {comparison.difference.gained:,}",
        **costs,
        "test part": f"{percent(test)} of {test.count:,}" if test else "not read for this setting",
        "settings tested so far": tested,
    }
    return tabulate(rows.items(), tablefmt="html")


def title_of(setting: str, comparison: Comparison) -> str:
    """Return a setting and the accuracy that it gives in a line."""
    accuracy = comparison.accuracy
    return f"{setting}: {percent(accuracy, ' right')} of {accuracy.count:,} validation images"


def percent(accuracy: Accuracy, word: str = "") -> str:
    """Return an accuracy with its interval, in percent, as short text; `word` stands between the two."""
    low, high = accuracy.interval
    return f"{100 * accuracy.value:.2f} %{word} ({100 * low:.2f} to {100 * high:.2f})"


def points(difference: PairedDifference) -> str:
    """Return a difference with its interval, in points, as short text."""
    low, high = difference.interval
    return f"{100 * difference.value:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"
