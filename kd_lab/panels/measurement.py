"""Compare changed networks with the dense one, on 1,000 images at once and then on all, and put it in a table."""

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from tabulate import tabulate
from torch import Tensor, nn

from kd_lab.cost import count_macs, count_parameters, file_bytes, latency
from kd_lab.data import Mnist, Split
from kd_lab.errors import ParameterError
from kd_lab.evaluation import Accuracy, PairedDifference, check_scorable, correct_answers, predict_classes_by_batch
from kd_lab.networks.layers import weighted_layers
from kd_lab.networks.permanent import make_permanent
from kd_lab.networks.predictions import BATCH_SIZE, predict
from kd_lab.pruning import importances

Tests = dict[tuple, list[Accuracy]]  # of the networks of a setting, on the test part
Rows = Iterable[list[str]]
Seconds = dict[int, tuple[float, float]]  # of the dense network and of another, by batch size
BATCH_SIZES = (1, 256)
FIRST = 1000  # images of the first answer; they are balanced, since the parts go through the digits in turn


def dense_network(model: nn.Module, data: Mnist) -> tuple[nn.Module, Mnist]:
    """Return an ordinary copy of a panel's network, and the data as the network can be scored on them.

    Raises a ParameterError for what can't be measured.
    """
    if isinstance(data, nn.Module):
        raise ParameterError("'data' must be what load_mnist() gives. Got a network. Did you swap 'model' and 'data'?")
    weighted_layers(model)
    _check_parts(data)
    dense = make_permanent(model)
    checked = [check_scorable(dense, part) for part in data]
    parts = Mnist(*(Split(_trainable(images), _trainable(labels.long())) for images, labels, *_ in checked))
    correct_answers(dense, parts.validation[:10])  # says so where answers are no numbers
    importances(dense, "magnitude")  # and where weights are none
    return dense, parts


def _trainable(tensor: Tensor) -> Tensor:
    """Return the tensor, or an ordinary copy of one that was made in inference_mode, with which nothing can learn."""
    return tensor.clone() if tensor.is_inference() else tensor


def _check_parts(data: object) -> None:
    """Raise a ParameterError, in which no tensor is printed, unless the data are three parts."""
    parts = list(data) if isinstance(data, (tuple, list)) else []
    if len(parts) == len(Mnist._fields) and not any(isinstance(part, Tensor) for part in parts):
        return
    got = f"{type(data).__name__} of {', '.join(type(part).__name__ for part in parts)}" if parts else f"{data!r:.80}"
    hint = " Is that one part of it?" if any(isinstance(part, Tensor) for part in parts) else ""
    raise ParameterError(
        "'data' must be what load_mnist() gives, or parts of your own to train, to validate and to test, each (images, "
        f"labels). Got {got}.{hint}"
    )


@dataclass(frozen=True)
class Comparison:
    """What a network and the dense one answered to the same images, and the labels, each (N,) digits."""

    answers: Tensor
    dense_answers: Tensor
    labels: Tensor

    @property
    def right(self) -> Tensor:
        """Return for each image whether the network reads it, (N,) bool."""
        return self.answers == self.labels

    @property
    def accuracy(self) -> Accuracy:
        """Return the accuracy of the network."""
        return Accuracy.of(self.right)

    @property
    def dense(self) -> "Comparison":
        """Return the dense network beside itself."""
        return Comparison(self.dense_answers, self.dense_answers, self.labels)

    @property
    def difference(self) -> PairedDifference:
        """Return how much better the network is than the dense one on these images."""
        return PairedDifference.of(self.right, self.dense.right)

    @property
    def lost(self) -> Tensor:
        """Return the indices of the images that only the dense network reads, (M,)."""
        return (~self.right & self.dense.right).nonzero().flatten()


class Measurement:
    """The images, and what the dense network answers to them, which is asked only once.

    `steps` is that of the panel, where a comparison can be stopped between any two batches, or iter.
    """

    def __init__(self, dense: nn.Module, data: Split, steps: Callable[[Iterable], Iterator]):
        self._dense, self._data, self._steps = dense, data, steps
        self.images, self.first = data.images, min(FIRST, len(data.images))  # and how many of them give a first answer
        self.by_chance = 1 / predict(dense, data.images[:1]).shape[1]  # the accuracy of guessing
        self._dense_answers: list[Tensor] = []  # batch by batch, as far as they were needed

    def compare(self, model: nn.Module, count: int | None = None) -> Iterator[Comparison]:
        """Yield the comparison on the first 1,000 images and on the first `count` (all)."""
        images, labels = self._data[:count]
        answers = []
        batches = zip(self._steps(images.split(BATCH_SIZE)), predict_classes_by_batch(model, images), strict=True)
        for batch, (x, answer) in enumerate(batches):
            if batch == len(self._dense_answers):
                self._dense_answers += predict_classes_by_batch(self._dense, x)
            answers.append(answer)
            seen = batch * BATCH_SIZE + len(x)
            if seen in (FIRST, len(images)):
                yield Comparison(torch.cat(answers), torch.cat(self._dense_answers[: batch + 1]), labels[:seen])

    def complete(
        self, curve: dict[Any, float], places: Iterable[Any], network_at: Callable[[Any], nn.Module]
    ) -> Iterator[None]:
        """Measure what is missing of a curve, accuracy by place, on the first 1,000 images; yields after each point."""
        for place in places:
            if place not in curve:
                *_, comparison = self.compare(network_at(place), FIRST)
                curve[place] = comparison.accuracy.value
                yield

    def seconds(self, model: nn.Module) -> Iterator[Seconds]:
        """Yield the latencies of the dense network and of this one, one batch size more each time."""
        found: Seconds = {}
        for batch_size in BATCH_SIZES:
            in_turn = self._steps((self._dense, model) * 2)  # so that a busy neighbour slows both
            turns = [latency(network, batch_size, self.images[:2]) for network in in_turn]
            found = found | {batch_size: (min(turns[::2]), min(turns[1::2]))}
            yield found


@dataclass(frozen=True)
class CurveAnswer:
    """What was measured of one network, and its place on a curve.

    `curve` is accuracy by place on the first images, as far as it has been measured.
    """

    kind: ClassVar[str] = "pruned"

    setting: Any  # a NamedTuple
    comparison: Comparison
    curve: dict[Any, float]
    place: float

    @property
    def comparisons(self) -> dict[str, Comparison]:
        """Return what was measured, by the name of the network."""
        return {self.kind: self.comparison}


class Cache(dict):
    """The results that were used last, at most `size` of them."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def fetch(self, key: tuple, make: Callable[[], Any]) -> Any:
        """Return what is kept under a key, or make it; the one unused for longest is forgotten."""
        self[key] = self.pop(key) if key in self else make()
        if len(self) > self.size:
            del self[next(iter(self))]
        return self[key]


def scores(
    answer: Any, pinned: Any, tests: Tests | None, baseline: str = "dense", reference: str = "", costs: Rows = ()
) -> str:
    """Return an HTML table: how good each network is, against the others on the same images, and what it costs.

    `answer` and `pinned` have `comparisons`, by the name of the network, None for one that is not there yet. `baseline`
    names the dense one, whether it has a column or not, and `reference` one that the others are compared with, too.
    `tests` are what was read of the test part, by setting; None for a panel that never reads it.
    """
    networks: dict[str, Comparison | None] = answer.comparisons
    changed = [name for name in networks if name != baseline]

    def row(name: str, cell: Callable[[Comparison | None], str], *without: str) -> list[str]:
        cells = ("" if each in (baseline, *without) else cell(comparison) for each, comparison in networks.items())
        return [name, *cells]

    def changes(each: Comparison | None) -> str:
        return f"{each.difference.lost:,}, {each.difference.gained:,}" if each else "…"

    rows = [
        ["accuracy", *(percent(each.accuracy) if each else "…" for each in networks.values())],
        row(f"against {baseline}, points", lambda each: points(each, each and each.dense)),
        row("images lost, gained", changes),
    ]
    if reference:
        rows.append(row(f"against {reference}, points", lambda each: points(each, networks[reference]), reference))
    for name in changed if pinned else ():
        label = f"against pinned{' ' + name if len(changed) > 1 else ''}, points"
        rows.append(row(label, functools.partial(points, other=pinned.comparisons.get(name))))
    rows += costs
    if tests is not None:
        test = tests.get(answer.setting)
        unread = row("test part", lambda _each: "not read for this setting", *changed[1:])
        rows.append([f"test part ({test[0].count:,})", *map(percent, test)] if test else unread)
        rows.append(row("settings tested so far", lambda _each: str(len(tests)), *changed[1:]))
    count = next(filter(None, networks.values())).accuracy.count
    return table(rows, [f"{count:,} validation images", *networks])


def counted_costs(model: nn.Module, images: Tensor | None = None) -> dict[str, int]:
    """Return what a network that reads such images costs, by the name of the cost."""
    return {
        "parameters": count_parameters(model),
        "bytes of the file": file_bytes(model),
        "MACs of an image": count_macs(model, images),
    }


def cost_table(dense: dict[str, int], changed: dict[str, int], seconds: Seconds, kind: str) -> str:
    """Return an HTML table of what the dense network costs, and another of this kind; "…" for what is not measured."""
    rows = [[name, *_beside(",", dense[name], cost)] for name, cost in changed.items()]
    for batch_size in BATCH_SIZES:
        pair = seconds.get(batch_size)
        times = _beside(".3g", *(1000 * each for each in pair)) if pair else ["…"] * 3
        rows.append([f"ms for {batch_size} image{'s' * (batch_size > 1)}", *times])
    threads = torch.get_num_threads()
    note = f"measured on {threads} thread{'s' * (threads > 1)}"
    return table(rows, ["", "dense", kind, "factor"]) + note


def _beside(form: str, dense: float, left: float) -> list[str]:
    return [f"{dense:{form}}", f"{left:{form}}", f"{dense / left:.2f} ×"]


def table(rows: list[list[str]], headers: list[str], left: int = 1) -> str:
    """Return an HTML table whose first columns, so many, are set to the left and the others to the right."""
    columns = ["left"] * left + ["right"] * (len(headers) - left)
    html = tabulate(rows, headers, "html", colalign=columns, disable_numparse=True)
    return html.replace('style="', 'style="padding-left: 14px; ')  # of the right ones, which would touch the left


def title_of(setting: str, comparison: Comparison) -> str:
    """Return a setting and the accuracy that it gives in a line."""
    accuracy = comparison.accuracy
    return f"{setting}: {percent(accuracy, ' right')} of {accuracy.count:,} validation images"


def in_words(setting: NamedTuple) -> str:
    """Return a setting with the names of its values, as short text."""
    named: dict[str, Any] = {}
    for name, value in setting._asdict().items():
        named |= value if isinstance(value, dict) else {name: value}
    return ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in named.items()
    )


def percent(accuracy: Accuracy, word: str = "") -> str:
    """Return an accuracy with its interval, in percent, as short text; `word` stands between the two."""
    low, high = accuracy.interval
    return f"{100 * accuracy.value:.2f} %{word} ({100 * low:.2f} to {100 * high:.2f})"


def points(one: Comparison | None, other: Comparison | None) -> str:
    """Return how much better a network is than another one, with its interval, in points, as short text.

    It is measured on the images that both were asked about; "…" where one is not there yet.
    """
    if one is None or other is None:
        return "…"
    count = min(len(one.labels), len(other.labels))
    if torch.equal(one.answers[:count], other.answers[:count]):
        return "the same answers"
    difference = PairedDifference.of(one.right[:count], other.right[:count])
    low, high = difference.interval
    return f"{100 * difference.value:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"
