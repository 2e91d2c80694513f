"""When files count as a record: the rules, each met, not met or not said, and the paired difference behind them.

A record is the smallest file whose mean test error is within a limit. It counts only if
1. its setting was chosen on the validation part,
2. it comes from five seeds, a file each,
3. the test part was read once, for these files and no others,
4. one command makes the files again,
5. the mean test error of the seeds is within the limit, and
6. it beats the record before it: either it reads better in no more bytes (the 95 % interval of the paired difference
   leaves out zero), or it is smaller and as good: the bad end of that interval lies within a margin, which is MARGIN
   and what the record before it had left below the limit.

What a file can't show, 1 and 4, must be said; what isn't counts as not said.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import NamedTuple

import numpy as np

from kd_lab.data import Mnist
from kd_lab.errors import ParameterError, StorageError, check_choice, check_that, reason
from kd_lab.evaluation import correct_answers, mean_interval
from kd_lab.formats.kdz import architecture_in, unpack
from kd_lab.results import PerSeed

OPEN = "open"  # the board of any network
LIMITS = {OPEN: (0.45, 1.0, 2.0), "lenet300": (1.64, 1.9), "lenet5": (0.69, 0.8, 1.0)}  # test errors, %
SEEDS = 5
MARGIN = 0.05  # points
PARTS = ["training", "validation", "test"]


@dataclass(frozen=True)
class Scores:
    """What the files of one recipe, one a seed, come to: their bytes, and the test images that each reads wrongly."""

    network: str
    sizes: Sequence[int]
    wrong: Sequence[Sequence[int]]
    images: int

    @property
    def bytes(self) -> float:
        """Return the mean bytes of the files."""
        return mean(self.sizes)

    @property
    def errors(self) -> PerSeed:
        """Return the test error of each seed in percent."""
        return PerSeed([100 * len(each) / self.images for each in self.wrong])

    @property
    def error(self) -> float:
        """Return the mean test error of the seeds in percent."""
        return 100 * sum(map(len, self.wrong)) / (len(self.wrong) * self.images)

    def on_first(self, images: int) -> "Scores":
        """Return what the files come to on so many images, the first ones."""
        wrong = [[image for image in each if image < images] for each in self.wrong]
        return replace(self, wrong=wrong, images=images)


class Rule(NamedTuple):
    """One rule: whether it is met, None where that is not said, why, and the board it is about ("": all)."""

    text: str
    met: bool | None
    why: str
    board: str = ""


class ErrorDifference(NamedTuple):
    """The mean test error of some files minus that of others, in points, and its 95 % interval."""

    value: float
    low: float
    high: float


def score_files(files: Sequence[tuple[str, bytes]], data: Mnist) -> Scores:
    """Let the networks in some files, one a seed, read the test part; a file is its name and its bytes.

    Raises a ParameterError where the files hold two networks, or two are the same, and a StorageError that names the
    file which holds no network or one that can't read the images.
    """
    _refuse_twins(files)
    networks = {architecture_in(content, where): where for where, content in files}
    if len(networks) > 1:
        found = ", ".join(f"{network} in {where}" for network, where in networks.items())
        raise ParameterError(f"the files of one recipe must hold one network. Got {found}.")
    wrong = [_wrong_images(where, content, data) for where, content in files]
    return Scores(next(iter(networks)), [len(content) for _, content in files], wrong, len(data.test.labels))


def _refuse_twins(files: Sequence[tuple[str, bytes]]) -> None:
    seen: dict[bytes, str] = {}
    for where, content in files:
        if content in seen:
            raise ParameterError(f"each seed must have a file of its own. {seen[content]} and {where} are the same.")
        seen[content] = where


def _wrong_images(where: str, content: bytes, data: Mnist) -> list[int]:
    model = unpack(content, where)
    try:
        return (~correct_answers(model, data.test)).nonzero().flatten().tolist()
    except ParameterError as error:
        raise StorageError(f"{where} can't be scored: {reason(error)}") from error


def error_difference(scores: Scores, other: Scores) -> ErrorDifference:
    """Return the paired difference of the errors of two recipes, in points; below zero, the first reads better.

    The pairs are the test images: of each the share of the seeds that read it wrongly. (The seeds are no pairs. Seed 3
    of one network has nothing in common with seed 3 of another, so the order of the files would decide.) As in
    `PairedDifference`, the interval has one image more of either kind, so that a few disagreements don't settle it
    (Bonett & Price 2012). It speaks of these files. That other seeds would be better or worse as a whole is not in it:
    for two kinds of networks that would have made it wider by about a fifth.
    """
    if scores.images != other.images:
        raise ParameterError(f"both must have read the same images. Got {scores.images:,} and {other.images:,}.")
    points = (_shares(scores) - _shares(other)).tolist()
    _, (low, high) = mean_interval([*points, 100.0, -100.0])
    return ErrorDifference(mean(points), low, high)


def _shares(scores: Scores) -> np.ndarray:
    """Return for each image the share of the seeds that read it wrongly, in percent."""
    images = np.array([image for each in scores.wrong for image in each], dtype=int)
    return 100 * np.bincount(images, minlength=scores.images) / len(scores.wrong)


def check_told(command: str | None, chosen_on: str | None) -> None:
    """Check what is said of files beside what they show; None is not said."""
    if command is not None:
        fits = isinstance(command, str) and command.strip()
        check_that("command", command, fits, "the command that makes the files again, as text")
    if chosen_on is not None:
        check_choice("chosen_on", chosen_on, PARTS)


def general_rules(scores: Scores, command: str | None, chosen_on: str | None, readings: int) -> list[Rule]:
    """Return the rules that are the same on every board; `readings` counts how often the test part was read."""
    chosen = f"on the {chosen_on} part" if chosen_on else 'chosen_on="validation" says so'
    seeds = len(scores.sizes)
    return [
        Rule("setting chosen on validation", None if chosen_on is None else chosen_on == "validation", chosen),
        Rule("five seeds", seeds >= SEEDS, f"{seeds} file{'s' * (seeds > 1)}"),
        Rule("test part read once", readings == 1, f"for {readings} submission{'s' * (readings > 1)} under this label"),
        Rule("one command makes it again", command is not None or None, command or 'command="…" says it'),
    ]


def board_rules(scores: Scores, board: str, limit: float, before: Scores | None) -> list[Rule]:
    """Return the rules of a record within a limit of a board; `before` is the record before it, None for the first."""
    within = Rule(f"{board}: within {limit:g} %", scores.error <= limit, f"mean test error {scores.error:.2f} %", board)
    return [within, Rule(f"{board}: beats the record before it", *_beats(scores, limit, before), board)]


def nearest_limit(board: str, error: float) -> float:
    """Return the lowest limit of a board that an error is within, or the highest where it is within none."""
    return min((limit for limit in LIMITS[board] if error <= limit), default=max(LIMITS[board]))


def boards_of(network: str) -> list[str]:
    """Return the boards on which a network can hold a record."""
    return [board for board in LIMITS if board in (network, OPEN)][::-1]


def _beats(scores: Scores, limit: float, before: Scores | None) -> tuple[bool, str]:
    """Return whether files beat the record before them, and why."""
    if before is None:
        return True, "there is none"
    sizes = f"{scores.bytes:,.0f} bytes against {before.bytes:,.0f}"
    if len(scores.sizes) < SEEDS or scores.images != before.images:
        return False, f"{sizes}; to compare errors takes five files and all {before.images:,} test images"
    found, margin = error_difference(scores, before), MARGIN + max(0.0, limit - before.error)
    difference = f"{found.value:+.2f} points of error ({found.low:+.2f} to {found.high:+.2f})"
    if scores.bytes <= before.bytes and found.high < 0:
        return True, f"{sizes}, {difference}: it reads better"
    if scores.bytes < before.bytes and found.high <= margin:
        return True, f"{sizes}, {difference}: smaller, and as good within {margin:.2f}"
    if scores.bytes > before.bytes:
        return False, f"{sizes}, {difference}: it is larger"
    return False, f"{sizes}, {difference}: the interval must end below 0, or below {margin:.2f} in fewer bytes"
