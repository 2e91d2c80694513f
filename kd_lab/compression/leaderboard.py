"""A leaderboard of the smallest files that read digits, each scored on the test part."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from kd_lab.cost import count_parameters
from kd_lab.data import Mnist
from kd_lab.errors import KdLabError, check_choice, check_kind, check_that
from kd_lab.evaluation import Accuracy, accuracy
from kd_lab.formats.kdz import FLOAT32_BYTES, architecture_in, read_packed, unpack
from kd_lab.networks.zoo import MODELS, build_model
from kd_lab.plots import plain_log
from kd_lab.results import RESULTS, load_results
from kd_lab.scorecard import Table
from kd_lab.storage import cache_folder, file_path, write_safely

CAMPAIGN = "deep_compression"  # whose files ship with the kit
LABEL = r"[A-Za-z0-9][A-Za-z0-9 _-]{0,29}"


class Published(NamedTuple):
    """What a paper reports: test error in percent, compression ratio, and where it is stated."""

    label: str
    network: str
    error: float
    ratio: float
    source: str


PUBLISHED = [
    Published("Deep Compression", "lenet300", 1.58, 40, "Han et al. 2016, arXiv 1510.00149, table 1"),
    Published("Soft weight-sharing", "lenet300", 1.94, 64, "Ullrich et al. 2017, arXiv 1702.04008"),
    Published("Entropy-penalised", "lenet300", 1.9, 124, "Oktay et al. 2019, arXiv 1906.06624"),
    Published("Deep Compression", "lenet5", 0.74, 39, "Han et al. 2016, arXiv 1510.00149, table 1"),
    Published("Soft weight-sharing", "lenet5", 0.97, 162, "Ullrich et al. 2017, arXiv 1702.04008"),
    Published("Entropy-penalised", "lenet5", 1.0, 606, "Oktay et al. 2019, arXiv 1906.06624"),
    Published("Bayesian Compression", "lenet5", 1.0, 771, "Louizos et al. 2017, arXiv 1705.08665"),
    Published("MIRACLE", "lenet5", 0.69, 555, "Havasi et al. 2019, arXiv 1810.00440"),
    Published("MIRACLE", "lenet5", 0.96, 1110, "Havasi et al. 2019, arXiv 1810.00440"),
]


@dataclass(frozen=True)
class Entry:
    """One file as it was scored: its bytes, and the accuracy on the test part."""

    label: str
    network: str
    bytes: int
    accuracy: Accuracy

    @property
    def error(self) -> float:
        """Return the test error in percent."""
        return 100 - 100 * self.accuracy.value

    @property
    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval of the test error, in percent."""
        low, high = self.accuracy.interval
        return 100 - 100 * high, 100 - 100 * low


@dataclass(frozen=True, repr=False)
class Leaderboard(Table):
    """The entries for one network, the smallest file first; shown as a table."""

    network: str
    entries: list[Entry]

    def plot(self) -> Axes:
        """Draw the test error over the bytes, with the intervals, beside what papers report."""
        axes = plt.subplots(figsize=(7, 4), layout="constrained")[1]
        papers = [(paper.label, self._dense / paper.ratio, paper.error) for paper in self._papers]
        entries = [(entry.label, float(entry.bytes), entry.error) for entry in self.entries]
        for points, form, label in ((papers, "x", "published"), (entries, "o", "files here, with 95 % interval")):
            axes.plot([size for _, size, _ in points], [error for *_, error in points], form, label=label)
        for place, (text, size, error) in enumerate(sorted(papers, key=lambda point: point[1]) + entries):
            up = 4 if place % 2 and place < len(papers) else -11  # so that neighbours don't cover each other
            aside, side = (-5, "right") if place == len(papers) else (5, "left")  # the smallest file's next has a bar
            axes.annotate(text, (size, error), xytext=(aside, up), textcoords="offset points", fontsize=8, ha=side)
        for entry in self.entries:
            axes.plot([entry.bytes] * 2, entry.interval, color="C1")
        axes.set(xscale="log", xlabel="bytes of the file", ylabel="test error, %", title=self.network)
        plain_log(axes.xaxis)
        axes.margins(x=0.4, y=0.1)  # for the text beside each point
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        return axes

    @property
    def _papers(self) -> list[Published]:
        return [paper for paper in PUBLISHED if paper.network == self.network]

    @property
    def _dense(self) -> int:
        return FLOAT32_BYTES * count_parameters(build_model(self.network))

    def _rows(self) -> Iterator[list[str]]:
        yield [self.network, "bytes", "ratio", "test error, %", "95 % interval"]
        for entry in self.entries:
            ratio, interval = f"{self._dense / entry.bytes:.0f}", "{:.2f} to {:.2f}".format(*entry.interval)
            yield [entry.label, f"{entry.bytes:,}", ratio, f"{entry.error:.2f}", interval]
        for paper in self._papers:
            label, size = f"{paper.label} ({paper.source})", f"{self._dense / paper.ratio:,.0f}"
            yield [label, size, f"{paper.ratio:g}", f"{paper.error:.2f}", ""]


def submit(path: Path, label: str, data: Mnist) -> Entry:
    """Score a `.kdz` file, keep it in the cache folder under a label, and return its entry.

    Whatever the file's name says, it is loaded and reads the test digits. A file that can't be loaded is refused and
    not kept; another one under the same label stays beside it.
    """
    fits = isinstance(label, str) and re.fullmatch(LABEL, label)
    check_that("label", label, fits, "1 to 30 letters, digits, spaces, '-' or '_', as in 'Group 3'")
    check_kind("data", data, Mnist, "what load_mnist() returns")
    content = read_packed(file_path(path))
    entry = _score(label, content, str(path), data)
    write_safely(submissions() / f"{label}.{hashlib.sha256(content).hexdigest()[:8]}.kdz", content)
    return entry


def score_leaderboard(network: str, data: Mnist) -> Leaderboard:
    """Score every file for a network of the kit: those that ship with it, and those that were submitted here."""
    check_choice("network", network, list(MODELS))
    check_kind("data", data, Mnist, "what load_mnist() returns")
    shipped = [_score(label, read_packed(path), str(path), data) for path, label in _shipped(network).items()]
    return Leaderboard(network, sorted([*shipped, *_submitted(network, data)], key=lambda entry: entry.bytes))


def _shipped(network: str) -> dict[Path, str]:
    """Return the file of seed 0, which need not be the best, of each taught recipe that was chosen, and its label."""
    labels: dict[Path, str] = {}
    for row in load_results(CAMPAIGN).get("reached", {}).values():
        if row["network"] == network and row["way"] == "taught":
            path = RESULTS / CAMPAIGN / f"{row['files']}_0.kdz"
            said = f"kd_lab, {'within' if row['met'] else 'misses'} {row['limit']} %"
            labels[path] = f"{labels[path]} and {row['limit']} %" if path in labels else said
    return labels


def _submitted(network: str, data: Mnist) -> Iterator[Entry]:
    """Score what was submitted for a network; a file that can't be is named, so that the others still count."""
    for path in sorted(submissions().glob("*.kdz")):
        try:
            content = read_packed(path)
            if architecture_in(content, str(path)) == network:
                yield _score(path.name.partition(".")[0], content, str(path), data)
        except KdLabError as error:
            print(f"Left out: {error}")


def submissions() -> Path:
    """Return the folder of the files that were submitted on this machine."""
    return cache_folder() / "leaderboard"


def _score(label: str, content: bytes, where: str, data: Mnist) -> Entry:
    return Entry(label, architecture_in(content, where), len(content), accuracy(unpack(content, where), data.test))
