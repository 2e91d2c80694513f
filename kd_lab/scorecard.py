"""Put accuracy beside cost for several models on the same images."""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from tabulate import tabulate
from torch import Tensor, nn

from kd_lab import cost
from kd_lab.errors import check_choice, check_that
from kd_lab.evaluation import Accuracy, PairedDifference, check_data, correct_answers

INTERVAL = "{:.2f}\N{NBSP}to\N{NBSP}{:.2f}"  # a space where a browser breaks no line
SIGNED_INTERVAL = INTERVAL.replace("{:", "{:+")


@dataclass(frozen=True)
class Score:
    """What one model achieves and costs.

    `difference` is to the baseline, None for the baseline itself; `latency` in seconds for 1 and for 256 images;
    `left_in_float` names the modules that an integer model computes in fp32 all the same.
    """

    accuracy: Accuracy
    difference: PairedDifference | None
    parameters: int
    nonzeros: int
    macs: int
    file_bytes: int
    zipped_bytes: int
    latency: tuple[float, float]
    left_in_float: tuple[str, ...]

    def lines(self) -> dict[str, str]:
        """Return every figure as text under its label, in the order of the table; what is left in fp32, if it is."""
        gain, gain_interval = "baseline", ""
        if self.difference is not None:
            gain = f"{100 * self.difference.value:+.2f}"
            gain_interval = SIGNED_INTERVAL.format(*(100 * end for end in self.difference.interval))
        lines = {
            "accuracy": f"{100 * self.accuracy.value:.2f} %",
            "95 % interval": INTERVAL.format(*(100 * end for end in self.accuracy.interval)),
            "gain, points": gain,
            "gain, 95 % interval": gain_interval,
            "parameters": f"{self.parameters:,}",
            "non-zero": f"{self.nonzeros:,}",
            "MACs": f"{self.macs:,}",
            "file, bytes": f"{self.file_bytes:,}",
            "zipped, bytes": f"{self.zipped_bytes:,}",
            "1 image, ms": f"{1000 * self.latency[0]:.3f}",
            "256 images, ms": f"{1000 * self.latency[1]:.2f}",
        }
        return lines | ({"left in fp32": ", ".join(self.left_in_float)} if self.left_in_float else {})


class Table:
    """Show the rows of a class as a table, in HTML where that can be shown; the first row has the headers."""

    def _rows(self) -> Iterable[list[str]]:
        raise NotImplementedError

    def __repr__(self) -> str:
        text = self._table("simple").replace("\N{NBSP}", " ")
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"  # not all consoles show every name
        return text.encode(encoding, "replace").decode(encoding)

    def _repr_html_(self) -> str:
        return self._table("html")

    def _table(self, style: str) -> str:
        headers, *rows = self._rows()
        align = ["left", *["right"] * (len(headers) - 1)]
        return tabulate(rows, headers, style, colalign=align, disable_numparse=True)


@dataclass(frozen=True, repr=False)
class Scorecard(Table):
    """A score for each model by name; the first is the baseline. Shown as a table, or as text."""

    scores: dict[str, Score]
    threads: int

    def __getitem__(self, name: str) -> Score:
        check_choice("name", name, list(self.scores))
        return self.scores[name]

    def _rows(self) -> Iterator[list[str]]:
        yield [f"on {self.threads} thread" + "s" * (self.threads > 1), *self.scores]
        columns = [score.lines() for score in self.scores.values()]
        for label in max(columns, key=len):  # with what is left in fp32, where anything is
            yield [label, *(column.get(label, "") for column in columns)]


def scorecard(models: dict[str, nn.Module], data: tuple[Tensor, Tensor]) -> Scorecard:
    """Measure every model on the same images; the first is the baseline that the others are compared with."""
    fits = isinstance(models, dict) and models
    check_that("models", models, fits, "a dict with at least one model, as {'cnn': model}")
    data = check_data(data)
    right = {name: correct_answers(model, data) for name, model in models.items()}
    baseline = next(iter(right.values()))
    scores = {name: _measure(model, right[name], baseline, data[0]) for name, model in models.items()}
    return Scorecard(scores, torch.get_num_threads())


def _measure(model: nn.Module, right: Tensor, baseline: Tensor, images: Tensor) -> Score:
    return Score(
        Accuracy.of(right),
        None if right is baseline else PairedDifference.of(right, baseline),
        cost.count_parameters(model),
        cost.count_nonzeros(model),
        cost.count_macs(model, images),
        cost.file_bytes(model),
        cost.zipped_bytes(model),
        latency=(cost.latency(model, 1, images), cost.latency(model, 256, images)),
        left_in_float=tuple(getattr(model, "left_in_float", ())),  # to_integer says so on the model
    )
