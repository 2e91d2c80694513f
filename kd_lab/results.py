"""Read what a long campaign measured: results/NAME.json, which its benchmark wrote."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import reduce
from operator import getitem
from pathlib import Path
from statistics import mean
from typing import Any

from kd_lab.errors import ParameterError, check_choice, described
from kd_lab.evaluation import mean_interval

_IN_PACKAGE = Path(__file__).parent / "recorded"  # where a wheel has them
RESULTS = _IN_PACKAGE if _IN_PACKAGE.is_dir() else Path(__file__).resolve().parents[1] / "results"
SETTINGS = ("sparsities", "temperatures")  # lists as long as that of the seeds, or nearly


@dataclass(frozen=True, repr=False)
class PerSeed:
    """One number for each seed, such as the test errors of five networks in percent.

    `a - b` gives the paired differences, seed by seed: their `mean` and `interval` compare two ways.
    f"{a:.2f}" writes the mean and its interval, "1.40 (1.24 to 1.56)"; so does f"{a}".
    """

    values: Sequence[float]

    @property
    def mean(self) -> float:
        """Return the mean over the seeds."""
        return mean(self.values)

    @property
    def low(self) -> float:
        """Return the lowest value of any seed."""
        return min(self.values)

    @property
    def high(self) -> float:
        """Return the highest value of any seed."""
        return max(self.values)

    @property
    def interval(self) -> tuple[float, float]:
        """Return the 95 % t interval of the mean, the paired one if these are differences; it takes two seeds."""
        return mean_interval(self.values)[1]

    def __sub__(self, other: "PerSeed") -> "PerSeed":
        if not isinstance(other, PerSeed) or len(self.values) != len(other.values):
            raise ParameterError(
                f"what is subtracted must have a value for each of the same seeds. Got {described(other)}."
            )
        pairs = zip(self.values, other.values, strict=True)
        return PerSeed([round(one - two, 10) for one, two in pairs])  # 1.5 - 1.4 is 0.1, not 0.10000000000000009

    def __format__(self, spec: str) -> str:
        spec = spec or ".2f"
        ends = " to ".join(f"{end:{spec}}" for end in self.interval) if len(self.values) > 1 else "once"
        return f"{self.mean:{spec}} ({ends})"

    def __repr__(self) -> str:
        return f"{self:.2f}; lowest {self.low:.2f}, highest {self.high:.2f}, seeds: {len(self.values)}"


class Record(dict[str, Any]):
    """The record of a campaign: settings and, for each seed, what was measured; its methods find either by keys.

    Give the keys from the outside in, `record.errors("students", "distilled")`; seeds are no keys. Leave out those that
    aren't needed to tell one place from all others: `record.errors("distilled")`. `names()` lists the keys. Every
    method raises a ParameterError for a key that is not there, naming the closest, and for keys that fit two places.
    It is a dict of dicts, too, with a list of one value for each seed at their ends.
    """

    def __init__(self, content: dict[str, Any]):
        self.seeds: list[int] = content.get("seeds", [])
        super().__init__(_tree(_grouped(content, self.seeds), len(self.seeds) or -1))

    def errors(self, *keys: str | float) -> PerSeed:
        """Return the test error of each seed in percent: `load_results("quantization").errors("cnn", "w4")`."""
        return self.figures(*keys, "test_error")

    def figures(self, *keys: str | float) -> PerSeed:
        """Return any number that each seed has; the last key names it: `figures("binary", "cpu_seconds")`."""
        values = self.runs(*keys)
        if not all(isinstance(value, (int, float)) for value in values):
            raise ParameterError(f"{_text(keys)} must lead to a number. There stands {values[0]!r:.80}.")
        return PerSeed(values)

    def runs(self, *keys: str | float) -> list[Any]:
        """Return what each seed has at these keys, such as a dict of its errors and the test images read wrongly.

        What was measured once, or holds for all seeds, is one run.
        """
        return _split(reduce(getitem, self._path(keys), self))

    def part(self, *keys: str | float) -> Any:
        """Return what all seeds share, such as a recipe; in the record of one seed, anything."""
        first, *others = self.runs(*keys)
        if any(other != first for other in others):
            raise ParameterError(f"{_text(keys)} differs from seed to seed: read seed(0).part(…), or runs(…).")
        return first

    def seed(self, number: int) -> "Record":
        """Return the record of one seed alone: `seed(0).part("students", "distilled")` is one run, as a dict."""
        if number not in self.seeds:
            raise ParameterError(f"'number' must be one of the seeds {self.seeds}. Got {described(number)}.")
        return Record(_split(self)[self.seeds.index(number)])

    def names(self, *keys: str | float) -> list[str]:
        """Return the keys that can come next, behind these: the parts of a campaign, its ways, its figures."""
        found = reduce(getitem, self._path(keys), self)
        return list(found) if isinstance(found, dict) else []

    def _path(self, keys: Sequence[str | float]) -> tuple[str, ...]:
        """Return the keys on the whole way to the one place that fits."""
        given = tuple(map(str, keys))
        rests = {path: path for path in _paths(self)}  # what of each path comes behind the keys so far
        for key in given:
            later = sorted({each for rest in rests.values() for each in rest})
            if key not in later:
                first = {rest[0] for rest in rests.values() if rest}
                check_choice("keys", key, sorted(first.union(get_close_matches(key, later, n=1, cutoff=0.4))))
            rests = {path: rest[rest.index(key) + 1 :] for path, rest in rests.items() if key in rest}
        ends = [path for path, rest in rests.items() if not rest]
        if given not in ends and len(ends) > 1:
            raise ParameterError(f"{_text(given)} fits {len(ends)} places, such as {', '.join(map(_text, ends[:3]))}.")
        return given if given in ends else ends[0]

    def __repr__(self) -> str:
        return f"Record of {', '.join(self.names())}"


def load_results(name: str) -> Record:
    """Return the record of a campaign by its name; `python -m benchmarks NAME` made it."""
    check_choice("name", name, sorted(path.stem for path in RESULTS.glob("*.json")))
    return Record(json.loads((RESULTS / f"{name}.json").read_text(), object_hook=_unpack))


class _Runs(list[Any]):
    """What each seed has at one place of a record."""


def _unpack(part: dict[str, Any]) -> dict[str, Any]:
    """Return a part of a file with its texts and rows taken apart."""
    if isinstance(wrong := part.get("wrong"), str):
        part["wrong"] = [int(image) for image in wrong.split()]
    if isinstance(ends := part.get("range"), str):
        part["range"] = [float(end) for end in ends.split(" to ")]
    if isinstance(rows := part.get("stages"), list):
        part["stages"] = {name: {"bytes": size, "validation_error": error} for name, size, error in rows}
    return part


def _grouped(content: dict[str, Any], seeds: list[int]) -> dict[str, Any]:
    """Return the parts of a record; those of each seed, "lenet5_plain_0" to "lenet5_plain_4", as one list."""
    parts = {key: part for key, part in content.items() if key != "seeds"}
    for key in content:
        for_each = [f"{key.removesuffix('_0')}_{seed}" for seed in seeds]
        if key in for_each and parts.keys() >= set(for_each):
            parts[key.removesuffix("_0")] = [parts.pop(each) for each in for_each]
    return parts


def _tree(part: Any, count: int) -> Any:
    """Return a part of a record with each list of one entry for each of `count` seeds taken down to its figures."""
    if isinstance(part, list) and len(part) == count:
        return _together(part)
    if not isinstance(part, dict):
        return part
    tree = {key: below if key in SETTINGS else _tree(below, count) for key, below in part.items()}
    runs = tree.pop("seeds", {})
    return tree | {key: {"settings": tree[key], **run} if key in tree else run for key, run in runs.items()}


def _together(runs: list[Any]) -> Any:
    """Return the runs of all seeds as one: a dict of figures, each with one entry a seed."""
    if isinstance(runs[0], list) and runs[0] and isinstance(runs[0][0], dict):
        runs = [{str(place): each for place, each in enumerate(run)} for run in runs]
    if isinstance(runs[0], dict):
        return {key: _together([run[key] for run in runs]) for key in runs[0]}
    return _Runs(runs)


def _split(part: Any) -> list[Any]:
    """Return what each seed has of a part of a record, beside what all share; one for all if they share everything."""
    if not isinstance(part, dict):
        return list(part) if isinstance(part, _Runs) else [part]
    columns = {key: _split(below) for key, below in part.items()}
    count = max(map(len, columns.values()), default=1)
    return [{key: column[place % len(column)] for key, column in columns.items()} for place in range(count)]


def _paths(part: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the keys on the way to each place of a record."""
    yield path
    if isinstance(part, dict):
        for key, below in part.items():
            yield from _paths(below, (*path, key))


def _text(keys: Sequence[str | float]) -> str:
    return " ".join(map(str, keys))
