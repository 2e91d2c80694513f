"""The files known to read digits: those that campaigns recorded and those that were submitted here, by their bytes.

Which of them is best is said by their errors on the validation part alone: a campaign recorded those of five seeds, and
what was submitted is still to be measured.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

from kd_lab.compression.frontiers import frontier
from kd_lab.compression.leaderboard import submissions_by_label
from kd_lab.errors import KdLabError
from kd_lab.formats.kdz import check_packed, read_packed
from kd_lab.results import RESULTS, Record, load_results

CAMPAIGNS = "deep_compression", "frontier"


@dataclass(frozen=True)
class KnownFile:
    """The files of one recipe, of which the first one is read: that of seed 0, which need not be the best.

    `error` is the mean validation error of all `seeds` in percent, None for what was submitted and isn't measured yet.
    """

    name: str
    contents: tuple[bytes, ...] = field(repr=False)
    error: float | None
    seeds: int

    @property
    def content(self) -> bytes:
        """Return the bytes of the file that is read."""
        return self.contents[0]

    @property
    def bytes(self) -> int:
        """Return how many bytes that file has."""
        return len(self.content)


def recorded_files() -> list[KnownFile]:
    """Return the files that campaigns of the kit recorded; one that is damaged is named and left out."""
    return [*_readable(_recorded())]


def submitted_files() -> list[KnownFile]:
    """Return what was submitted on this machine; a file that is damaged is named and left out."""
    submitted = (Candidate(label, paths, None, len(paths)) for label, paths in submissions_by_label())
    return [*_readable(submitted)]


def best_within(files: Iterable[KnownFile], budget: float) -> KnownFile | None:
    """Return the file of at most so many bytes with the smallest mean validation error, None if there is none.

    Of two that are as good it is the smaller one; what isn't measured yet doesn't count.
    """
    fitting = [each for each in files if each.error is not None and each.bytes <= budget]
    return min(fitting, key=lambda each: (each.error, each.bytes), default=None)


def error_frontier(files: Iterable[KnownFile]) -> list[KnownFile]:
    """Return the files than which no other is as small and better, the smallest first."""
    measured = [(each.bytes, each.error, each) for each in files if each.error is not None]
    return [each for *_, each in frontier(measured, lambda found: found[:2])]


@dataclass(frozen=True)
class Candidate:
    """Where the files of a recipe lie, one a seed, before any of them is read."""

    name: str
    paths: list[Path]
    error: float | None
    seeds: int


def _readable(candidates: Iterable[Candidate]) -> Iterator[KnownFile]:
    for each in candidates:
        try:
            yield KnownFile(each.name, tuple(map(_content, each.paths)), each.error, each.seeds)
        except KdLabError as error:
            print(f"Left out: {error}")


def _content(path: Path) -> bytes:
    content = read_packed(path)
    check_packed(content, str(path))
    return content


def _recorded() -> Iterator[Candidate]:
    for campaign in CAMPAIGNS:
        if (RESULTS / f"{campaign}.json").is_file():
            for name, errors in _errors(load_results(campaign)).items():
                yield Candidate(name, [RESULTS / campaign / f"{name}_0.kdz"], mean(errors), len(errors))


def _errors(record: Record) -> dict[str, list[float]]:
    """Return the validation errors of all seeds behind the last stage of each recipe, by the name of its files."""
    if "files" in record:
        return {name: [*record.figures("files", name, "validation_error").values] for name in record.names("files")}
    found = {}
    for group, part in record.items():
        for place, recipe in part["recipes"].items() if isinstance(part, dict) and "recipes" in part else ():
            *_, last = recipe["stages"].values()
            found[f"{group}_{place}"] = last["validation_error"]
    return found
