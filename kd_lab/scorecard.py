"""Put accuracy beside cost for several models on the same images."""

from dataclasses import dataclass

from tabulate import tabulate
from torch import Tensor, nn

from kd_lab import cost
from kd_lab.errors import ParameterError
from kd_lab.evaluation import Accuracy, PairedDifference, correct_answers

HEADERS = ["model", "accuracy", "95 % interval", "points beside\nthe baseline", "their 95 %\ninterval", "parameters",
           "non-zero", "MACs", "file\nbytes", "zipped\nbytes", "ms, 1\nimage", "ms, 256\nimages"]


@dataclass(frozen=True)
class Row:
    """Hold what one model achieves and costs.

    `difference` is to the baseline, None for the baseline itself; `latency` in seconds for 1 and for 256 images.
    """

    name: str
    accuracy: Accuracy
    difference: PairedDifference | None
    parameters: int
    nonzeros: int
    macs: int
    file_bytes: int
    zipped_bytes: int
    latency: tuple[float, float]

    def cells(self) -> list[str]:
        """Return the row as text, in the order of HEADERS."""
        low, high = (f"{100 * end:.2f}" for end in self.accuracy.interval)
        counts = [self.parameters, self.nonzeros, self.macs, self.file_bytes, self.zipped_bytes]
        return [self.name, f"{100 * self.accuracy.value:.2f} %", f"{low} to {high}", *self._difference_cells(),
                *(f"{count:,}" for count in counts), *(f"{1000 * seconds:.2f}" for seconds in self.latency)]

    def _difference_cells(self) -> list[str]:
        if self.difference is None:
            return ["baseline", ""]
        low, high = (f"{100 * end:+.2f}" for end in self.difference.interval)
        return [f"{100 * self.difference.value:+.2f}", f"{low} to {high}"]


@dataclass(frozen=True, repr=False)
class Scorecard:
    """Hold a row for each model; the first is the baseline. Shows itself as a table in a notebook and as text."""

    rows: list[Row]

    def __getitem__(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name)

    def __repr__(self) -> str:
        return self._table("simple")

    def _repr_html_(self) -> str:
        return self._table("html")

    def _table(self, style: str) -> str:
        align = ["left", *["right"] * (len(HEADERS) - 1)]
        return tabulate([row.cells() for row in self.rows], HEADERS, style, colalign=align, disable_numparse=True)


def scorecard(models: dict[str, nn.Module], data: tuple[Tensor, Tensor]) -> Scorecard:
    """Measure every model on the same images; the first is the baseline that the others are compared with."""
    if not models:
        raise ParameterError("scorecard(): 'models' must hold at least one model, as {name: model}. Got {}.")
    right = {name: correct_answers(model, data) for name, model in models.items()}
    baseline = next(iter(models))
    differences = {name: PairedDifference.of(answers, right[baseline]) for name, answers in right.items()}
    differences[baseline] = None
    return Scorecard([_measure(name, model, Accuracy.of(right[name]), differences[name])
                      for name, model in models.items()])


def _measure(name: str, model: nn.Module, accuracy: Accuracy, difference: PairedDifference | None) -> Row:
    counts = [count(model) for count in (cost.count_parameters, cost.count_nonzeros, cost.count_macs,
                                         cost.file_bytes, cost.zipped_bytes)]
    return Row(name, accuracy, difference, *counts, latency=(cost.latency(model, 1), cost.latency(model, 256)))
