"""Put what was predicted beside what was measured, over all lessons, and say how well one knew how sure to be."""

import base64
import html
import io
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from kd_lab.errors import ParameterError, check_kind, check_number, saying
from kd_lab.evaluation import Accuracy
from kd_lab.exercises.journal import entries
from kd_lab.exercises.questions import SURE, Prediction, predictions
from kd_lab.plots import plot_calibration, plot_ratios
from kd_lab.scorecard import Table
from kd_lab.storage import file_path, write_safely

NOTHING = "Nothing has been predicted yet. In each lesson some fields below a Predict take what you predict."
HEADERS = ["lesson and question", "predicted", "sure", "measured", "off by", "right"]
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
body {{ font: 15px/1.5 sans-serif; color: #1f2937; max-width: 980px; margin: 24px auto; padding: 0 16px; }}
img {{ max-width: 100%; vertical-align: top; margin: 0 12px 12px 0; }}
table {{ border-collapse: collapse; width: 100%; font-size: 14px; }}
th, td {{ padding: 4px 8px; border-bottom: 1px solid #d1d5db; vertical-align: top; overflow-wrap: break-word; }}
</style></head><body><h1>{title}</h1><p>{today}</p><p>{summary}</p><p>{pictures}</p>{table}</body></html>
"""


class Settled(NamedTuple):
    """A prediction, and what was measured, None if nothing was yet."""

    prediction: Prediction
    measured: Any

    @property
    def counts(self) -> bool:
        """Return whether it says anything of how sure one may be: predicted first, then measured."""
        return self.measured is not None and not self.prediction.late

    @property
    def right(self) -> bool:
        """Return whether the prediction was right."""
        return self.prediction.question.is_right(self.prediction.value, self.measured)

    def row(self) -> list[str]:
        """Return the cells of the ledger's row."""
        question, value, sure, late = self.prediction
        cells = [f"{question.name[:2]}  {question.text}", question.in_words(value), f"{100 * sure:.0f}\N{NBSP}%"]
        if self.measured is None:
            return [*cells, "not yet", "", ""]
        right = "late" if late else "yes" if self.right else "no"
        return [*cells, question.in_words(self.measured), question.off(value, self.measured), right]


@dataclass(frozen=True, repr=False)
class Ledger(Table):
    """All that was predicted, in the lessons' order. Shown as a table, or as text."""

    settled: tuple[Settled, ...]

    def _rows(self) -> Iterator[list[str]]:
        yield HEADERS
        yield from (each.row() for each in self.settled)

    def _table(self, style: str) -> str:
        left = ' style="text-align: left;"'  # a notebook sets cells to the right unless they say otherwise
        table = super()._table(style).replace("<td>", f"<td{left}>").replace("<th>", f"<th{left}>")
        return table if self.settled else NOTHING


def ledger() -> Ledger:
    """Return all that was predicted so far, of each question what counts, with what was measured last."""
    newest = {entry["of"]: entry["value"] for entry in entries("measured")}
    return Ledger(tuple(_settled(each, newest.get(name)) for name, each in sorted(predictions().items())))


def _settled(prediction: Prediction, measured: Any) -> Settled:
    with suppress(ParameterError):  # nothing yet, or the answer to a question of another version
        return Settled(prediction, prediction.question.checked("measured", measured))
    return Settled(prediction, None)


@dataclass(frozen=True)
class Calibration:
    """How sure one was, 0.5 to 1, in at most five groups, and how often right; see `calibration`."""

    stated: tuple[float, ...]
    right: tuple[Accuracy, ...]
    brier: float
    overconfidence: float

    def plot(self) -> Axes:
        """Draw how sure one was against the share that was right; return the Axes."""
        shares, intervals = [each.value for each in self.right], [each.interval for each in self.right]
        return plot_calibration(self.stated, shares, intervals, [each.count for each in self.right])

    def __str__(self) -> str:
        right, count = sum(each.correct for each in self.right), sum(each.count for each in self.right)
        points = 100 * self.overconfidence
        too = f"{abs(points):.0f} points {'too' if points > 0 else 'less'} sure{' than you could be' * (points <= 0)}"
        return (
            f"{right} of {count} predictions were right ({100 * right / count:.0f} %), and you were sure to "
            f"{100 * right / count + points:.0f} % on average: {too}. Brier score {self.brier:.2f} (0 is best; always "
            "saying 50 % gives 0.25)."
        )


def calibration(pairs: Iterable[tuple[float, bool]]) -> Calibration:
    """Return how sure one was of predictions, 0.5 to 1, beside whether they were right, in groups of ten points.

    `overconfidence` is the mean of how sure one was minus the share that was right; `brier` the mean squared difference
    of the two, with 1 for right and 0 for wrong (Brier 1950). Raises a ParameterError for no pairs or others.
    """
    with saying("'pairs' must be pairs (sure, right), one or more"):
        pairs = [(check_number("sure", sure, SURE), _truth(right)) for sure, right in pairs]
        mean = sum(sure for sure, _ in pairs) / len(pairs)
    groups: dict[int, list[tuple[float, bool]]] = {}
    for sure, right in sorted(pairs):
        groups.setdefault(min(int(10 * sure + 1e-9), 9), []).append((sure, right))
    stated = tuple(sum(sure for sure, _ in group) / len(group) for group in groups.values())
    shares = tuple(Accuracy(sum(right for _, right in group), len(group)) for group in groups.values())
    brier = sum((sure - right) ** 2 for sure, right in pairs) / len(pairs)
    return Calibration(stated, shares, brier, mean - sum(right for _, right in pairs) / len(pairs))


def _truth(right: bool) -> bool:
    check_kind("right", right, bool, "True or False")
    return right


def save_page(path: str | os.PathLike, student: str = "") -> Path | None:
    """Save all that was predicted, and how sure one was, as one HTML file, and return its path.

    It needs no network and no JavaScript. Where nothing has been predicted yet it says so and saves nothing. Raises a
    StorageError where the file can't be written.
    """
    check_kind("student", student, str, "text")
    path, found = file_path(path), ledger()
    if not found.settled:
        print(NOTHING)
        return None
    write_safely(path, _page(found, student).encode())
    return path


def _page(found: Ledger, student: str) -> str:
    counting = [each for each in found.settled if each.counts]
    summary, pictures = "None of the predictions below was kept before it was measured.", []
    if counting:
        calibrated = calibration((each.prediction.sure, each.right) for each in counting)
        summary = f"{calibrated} Late predictions, and what is not measured yet, don't count."
        pictures.append(_picture(calibrated.plot(), "How sure you were against the share that was right. " + summary))
    ratios = {
        each.prediction.question.name: each.prediction.value / each.measured
        for each in counting
        if not each.prediction.question.choices and each.measured and each.prediction.value / each.measured > 0
    }
    if ratios:
        pictures.append(_picture(plot_ratios(list(ratios), list(ratios.values())), "Predicted over measured."))
    return PAGE.format(
        title=html.escape(" ".join(["Predictions", *(["of"] * bool(student)), student]).strip()),
        today=date.today().isoformat(),
        summary=html.escape(summary),
        pictures="".join(pictures),
        table=found._repr_html_(),
    )


def _picture(axes: Axes, words: str) -> str:
    file = io.BytesIO()
    axes.figure.savefig(file, format="png", dpi=100)
    plt.close(axes.figure)
    return f'<img alt="{html.escape(words)}" src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}">'
