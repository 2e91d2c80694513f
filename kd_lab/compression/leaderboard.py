"""A leaderboard of the smallest files that read digits, each scored on the test part.

There is one for each network of the kit, and the open one, on which any network stands. When a file counts as a record,
`rules.py` says; `submit` says which of these rules a file meets.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from kd_lab.compression.records import SizeRecord, load_records, read_again, record_frontier, standing_record
from kd_lab.compression.rules import (
    OPEN,
    Rule,
    Scores,
    board_rules,
    boards_of,
    check_told,
    general_rules,
    nearest_limit,
    score_files,
)
from kd_lab.cost import count_parameters
from kd_lab.data import Mnist
from kd_lab.errors import KdLabError, check_choice, check_kind, check_that
from kd_lab.evaluation import Accuracy
from kd_lab.formats.kdz import FLOAT32_BYTES, architecture_in, read_packed
from kd_lab.networks.zoo import MODELS, build_model
from kd_lab.plots import label_points, plain_log
from kd_lab.results import PerSeed
from kd_lab.scorecard import Table
from kd_lab.storage import cache_folder, file_path, write_safely

LABEL = r"[A-Za-z0-9][A-Za-z0-9 _-]{0,29}"
KEPT = re.compile(rf"(?P<submission>{LABEL}(\.[0-9a-f]{{8}})?)(\.\d\d)?\.kdz")  # label, digest, and seed if of several
MAX_SEEDS = 20
ANSWERS = {True: "yes", False: "no", None: "not said"}


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


class PublishedFile(NamedTuple):
    """What others report of a network of their own: bytes, test error in percent, and where it is stated."""

    label: str
    bytes: float
    error: float
    source: str


PUBLISHED_OPEN = [  # parameters count as float32; what others packed, by the bits of its weights; best results on test
    PublishedFile("697 parameters", FLOAT32_BYTES * 697, 0.97, "JoshWarn/Parameter-Efficient-MNIST, best of about 700"),
    PublishedFile("1,936 parameters", FLOAT32_BYTES * 1936, 0.90, "ruslangrimov/mnist-minimal-model"),
    PublishedFile("575 parameters", FLOAT32_BYTES * 575, 2.00, "hexhowells/NeuralGolfing, after pruning"),
    PublishedFile("BitNetMCU, 5.4 kB", 42_880 / 8, 0.94, "cpldcpu/BitNetMCU, documentation_cnn.md: 16 wide"),
    PublishedFile("BitNetMCU, 11.0 kB", 90_112 / 8, 0.45, "cpldcpu/BitNetMCU, documentation_cnn.md: 64 wide"),
]


@dataclass(frozen=True, repr=False)
class Entry:
    """One file as it was scored, or the files of several seeds: bytes, accuracy on the test part, and the rules met.

    For several seeds `bytes` is their mean, `accuracy` counts the answers of all, and `errors` has the test error of
    each in percent. `rules` are those of a record, for what was submitted.
    """

    label: str
    network: str
    bytes: int
    accuracy: Accuracy
    errors: tuple[float, ...] = ()
    rules: tuple[Rule, ...] = field(default=(), compare=False)

    @property
    def error(self) -> float:
        """Return the test error in percent, the mean of several seeds."""
        return 100 - 100 * self.accuracy.value

    @property
    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval of the test error, in percent; the t interval of the mean of several seeds."""
        low, high = self.accuracy.interval
        if self.errors:
            low, high = PerSeed(self.errors).interval
            return max(0.0, low), min(100.0, high)
        return 100 - 100 * high, 100 - 100 * low

    @property
    def record_of(self) -> list[str]:
        """Return the boards on which it is a record: all rules are met there."""
        boards = dict.fromkeys(rule.board for rule in self.rules if rule.board)
        return [board for board in boards if all(rule.met for rule in self.rules if rule.board in ("", board))]

    def __repr__(self) -> str:
        seeds = f", mean of {len(self.errors)} seeds" if self.errors else ""
        said = f"{self.label}: {self.network}, {self.bytes:,} bytes, test error {self.error:.2f} %{seeds}"
        lines = [f"{said} (95 % interval {self.interval[0]:.2f} to {self.interval[1]:.2f})"]
        if self.rules:
            lines.append(f"A record of {' and of '.join(self.record_of)}." if self.record_of else "Not a record:")
        return "\n".join(lines + [f"  {ANSWERS[rule.met]:8}  {rule.text} ({rule.why})" for rule in self.rules])


@dataclass(frozen=True, repr=False)
class Leaderboard(Table):
    """The entries for one network, or for any on the open board, the smallest file first; shown as a table.

    Beside them stands what others report: of a network of the kit a ratio, which gives its bytes; on the open board
    bytes, where a parameter counts as the 4 bytes of float32. Most of that is the best of many readings of the test
    part.
    """

    network: str
    entries: list[Entry]

    def plot(self) -> Axes:
        """Draw the test error over the bytes, with the intervals, beside what others report.

        A label that would cover another is left out; the table has them all.
        """
        axes = plt.subplots(figsize=(7, 4), layout="constrained")[1]
        published = f"published{'; bare parameters as float32' * (self.network == OPEN)}"
        axes.plot(
            [each.bytes for each in self._published], [each.error for each in self._published], "x", label=published
        )
        here = "files here, with 95 % interval"
        axes.plot([entry.bytes for entry in self.entries], [entry.error for entry in self.entries], "o", label=here)
        for entry in self.entries:
            axes.plot([entry.bytes] * 2, entry.interval, color="C1")
        axes.set(xscale="log", xlabel="bytes of the file", ylabel="test error, %", title=self.network)
        plain_log(axes.xaxis)
        if self.network == OPEN:  # where errors of 0.4 and 4 % stand side by side
            axes.set_yscale("log")
            plain_log(axes.yaxis)
        axes.margins(x=0.4, y=0.1)  # for the text beside each point
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        points: list[Entry | PublishedFile] = [*self.entries, *self._published]
        texts = [(point.label, point.bytes, point.error) for point in points]
        label_points(axes, texts, [(entry.bytes, *entry.interval) for entry in self.entries])
        return axes

    @property
    def _published(self) -> list[PublishedFile]:
        if self.network == OPEN:
            return PUBLISHED_OPEN
        papers = [paper for paper in PUBLISHED if paper.network == self.network]
        return [PublishedFile(paper.label, self._dense / paper.ratio, paper.error, paper.source) for paper in papers]

    @property
    def _dense(self) -> int:
        return FLOAT32_BYTES * count_parameters(build_model(self.network))

    def _rows(self) -> Iterator[list[str]]:
        """Yield the header and a row for each file: its ratio stands beside its bytes, or its network if any can."""
        of_any = self.network == OPEN
        yield [self.network, "bytes", "network" if of_any else "ratio", "test error, %", "95 % interval"]
        for entry in self.entries:
            beside = entry.network if of_any else f"{self._dense / entry.bytes:.0f}"
            interval = "{:.2f} to {:.2f}".format(*entry.interval)
            yield [entry.label, f"{entry.bytes:,}", beside, f"{entry.error:.2f}", interval]
        for each in self._published:
            beside = "" if of_any else f"{self._dense / each.bytes:g}"
            as_float32 = " as float32" * (of_any and "parameters" in each.label)
            yield [f"{each.label}{as_float32} ({each.source})", f"{each.bytes:,.0f}", beside, f"{each.error:.2f}", ""]


def submit(
    path: Path | Sequence[Path], label: str, data: Mnist, *, command: str | None = None, chosen_on: str | None = None
) -> Entry:
    """Score a `.kdz` file, or a list of them, one a seed; keep them in the cache folder; and return the entry.

    Whatever a file's name says, it is loaded and reads the test digits. A file that can't be loaded is refused and
    not kept; another one under the same label stays beside it.

    Printed, the entry says which rules of a record it meets: on the board of its network, and on the open one. What no
    file shows can be said: `command` makes the files again, and `chosen_on` is the part, "validation" for a record, on
    which their setting was chosen.
    """
    fits = isinstance(label, str) and re.fullmatch(LABEL, label)
    check_that("label", label, fits, "1 to 30 letters, digits, spaces, '-' or '_', as in 'Group 3'")
    check_kind("data", data, Mnist, "what load_mnist() returns")
    check_told(command, chosen_on)
    paths: Sequence[Any] = path if isinstance(path, (list, tuple)) else [path]
    check_that("path", path, 0 < len(paths) <= MAX_SEEDS, f"the path of a file, or a list of 1 to {MAX_SEEDS}")
    contents = [read_packed(file_path(each)) for each in paths]
    scores = score_files(list(zip(map(str, paths), contents, strict=True)), data)
    readings = _keep(label, contents)
    return _entry(label, scores, _rules(scores, command, chosen_on, readings))


def _keep(label: str, contents: list[bytes]) -> int:
    """Keep files in the cache folder, and return how many submissions there are under this label."""
    digest = hashlib.sha256(b"".join(contents)).hexdigest()[:8]
    for seed, content in enumerate(contents):
        several = f".{seed:02}" * (len(contents) > 1)
        write_safely(submissions() / f"{label}.{digest}{several}.kdz", content)
    return len({path.name.split(".")[1] for path in submissions().glob(f"{label}.*.kdz")})


def _rules(scores: Scores, command: str | None, chosen_on: str | None, readings: int) -> tuple[Rule, ...]:
    """Return the rules of a record: those of all boards, and those of the boards that take the network."""
    rules, records = general_rules(scores, command, chosen_on, readings), load_records()
    for board in boards_of(scores.network):
        limit = nearest_limit(board, scores.error)
        before = standing_record(records, board, limit)
        rules += board_rules(scores, board, limit, before.scores if before else None)
    return tuple(rules)


def score_leaderboard(network: str, data: Mnist) -> Leaderboard:
    """Score every file for a network of the kit, or for "open", whatever its network.

    That is, those that were submitted here, and each record of the kit, unless another one is both smaller and better:
    the means of its seeds as they were recorded, once its first file has been read again. A submission that can't be
    scored, or a record that is not what was recorded, is named and left out.
    """
    check_choice("network", network, [*MODELS, OPEN])
    check_kind("data", data, Mnist, "what load_mnist() returns")
    entries = [*_shipped(network, data), *_submitted(network, data)]
    return Leaderboard(network, sorted(entries, key=lambda entry: entry.bytes))


def _shipped(network: str, data: Mnist) -> Iterator[Entry]:
    """Score each record that no other surpasses."""
    records = load_records()
    for record in record_frontier(records, network):
        try:
            images = read_again(record, 0, data).images
            yield _entry(_label_of(record, network, records), record.scores.on_first(images))
        except KdLabError as error:
            print(f"Left out: {error}")


def _label_of(record: SizeRecord, network: str, records: list[SizeRecord]) -> str:
    same = [each for each in records if each.files == record.files]
    limits = dict.fromkeys(sorted(each.limit for each in same))
    whose = "kd_lab" if record.board == network else record.board
    stands = any(standing_record(records, each.board, each.limit) is each for each in same)
    return f"{whose}, within {' and '.join(f'{limit:g} %' for limit in limits)}{'' if stands else ', earlier'}"


def _submitted(network: str, data: Mnist) -> Iterator[Entry]:
    """Score what was submitted for a network; what can't be is named, so that the others still count."""
    for label, paths in submissions_by_label():
        try:
            files = [(str(path), read_packed(path)) for path in paths]
            if network in (OPEN, architecture_in(files[0][1], files[0][0])):
                yield _entry(label, score_files(files, data))
        except KdLabError as error:
            print(f"Left out: {error}")


def submissions_by_label() -> Iterator[tuple[str, list[Path]]]:
    """Yield the label and the files, one a seed, of each submission; what `submit` doesn't make is named."""
    found: dict[str, list[Path]] = {}
    for path in sorted(submissions().glob("*.kdz")):
        name = KEPT.fullmatch(path.name)
        if name and path.is_file():
            found.setdefault(name["submission"], []).append(path)
        else:
            print(f"Left out: {str(path)!r} is no file with a name as submit() gives it.")
    yield from ((name.partition(".")[0], paths) for name, paths in found.items())


def submissions() -> Path:
    """Return the folder of the files that were submitted on this machine."""
    return cache_folder() / "leaderboard"


def _entry(label: str, scores: Scores, rules: tuple[Rule, ...] = ()) -> Entry:
    seeds, wrong = len(scores.sizes), sum(map(len, scores.wrong))
    correct = Accuracy(seeds * scores.images - wrong, seeds * scores.images)
    errors = tuple(scores.errors.values) if seeds > 1 else ()
    return Entry(label, scores.network, round(scores.bytes), correct, errors, rules)
