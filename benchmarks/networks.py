"""Put 2,000 random networks, and some that people know by name, through every public function beside plain torch.

A function either gives what plain torch gives, or refuses the network with a KdLabError; an error of another class is
raw, and another answer is silent. `--few` takes a hundred networks, to see that all is well.
"""

import os
import random
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

from tabulate import tabulate
from tqdm import tqdm

from benchmarks._judge import BROKEN, judge
from benchmarks._networks import NAMED, random_network
from benchmarks._promises import ALL, SLOW

COUNT, FEW = 2000, 100
SLOW_EVERY = 50  # of the random networks, one so often goes through what takes seconds


class Verdict(NamedTuple):
    """What became of one network in one function."""

    network: str
    function: str
    outcome: str
    said: str
    kinds: tuple[str, ...]


def run(few: bool = False) -> dict[str, float]:
    """Print both tables and what is broken, and return the figures."""
    count = FEW if few else COUNT
    with ProcessPoolExecutor(os.cpu_count()) as processes:
        known = {name: processes.submit(judge_named, name) for name in NAMED}  # first: a few of them take minutes
        verdicts = list(_progress(processes.map(judge_random, range(count), chunksize=5), count, "random"))
        results = _progress((each.result() for each in known.values()), len(known), "by name")
        named = dict(zip(known, results, strict=True))
    found = [verdict for each in verdicts for verdict in each]
    by_name = [verdict for each in named.values() for verdict in each]
    print_functions([*found, *by_name])
    print_broken([*found, *by_name])
    print_named(named)
    return {"networks.random": count, **figures("networks", [*found, *by_name])} | {
        key: value for name, each in named.items() for key, value in figures(f"networks.named.{name}", each).items()
    }


def judge_random(seed: int) -> list[Verdict]:
    """Put the random network of a seed through every function; through slow ones only one of fifty."""
    promises = ALL if seed % SLOW_EVERY else ALL | SLOW
    network = random_network(random.Random(seed).choice)
    return [Verdict(str(seed), name, *judge(network, promise), network.kinds) for name, promise in promises.items()]


def judge_named(name: str) -> list[Verdict]:
    """Put a network that people know through every function."""
    return [
        Verdict(name, function, *judge(NAMED[name], promise), NAMED[name].kinds)
        for function, promise in (ALL | SLOW).items()
    ]


def _progress(verdicts: Iterable[list[Verdict]], total: int, title: str) -> Iterator[list[Verdict]]:
    """Yield the verdicts, and say at once what is broken: there may be an hour to go."""
    for each in tqdm(verdicts, f"networks, {title}", total, mininterval=10):
        for verdict in each:
            if verdict.outcome in BROKEN:
                tqdm.write(f"{verdict.network} {verdict.function} {verdict.outcome}: {verdict.said}", sys.stderr)
        yield each


def figures(prefix: str, verdicts: list[Verdict]) -> dict[str, int]:
    """Count what became of networks in functions."""
    counts = Counter(verdict.outcome for verdict in verdicts)
    names = {"raw_errors": "raw", "silent": "silent", "worked": "worked", "refused": "refused"}
    return {f"{prefix}.{name}": counts[outcome] for name, outcome in names.items()}


def print_functions(verdicts: list[Verdict]) -> None:
    """Print for each function how many networks it worked on, refused, and broke on."""
    rows = [
        [name, *figures("", [each for each in verdicts if each.function == name]).values()]
        for name in dict.fromkeys(verdict.function for verdict in verdicts)
    ]
    print(tabulate(rows, ["function", "raw errors", "silent", "worked", "refused"]), flush=True)


def print_named(named: dict[str, list[Verdict]]) -> None:
    """Print for each network with a name how many functions worked, and those that refused it, with the reason."""
    rows = [[name, *figures("", verdicts).values()] for name, verdicts in named.items()]
    print(tabulate(rows, ["network", "raw errors", "silent", "worked", "refused"]))
    for verdict in (each for verdicts in named.values() for each in verdicts if each.outcome == "refused"):
        print(f"{verdict.network}: {verdict.said}")


def print_broken(verdicts: list[Verdict]) -> None:
    """Print each function's broken promises, alike ones once: how often, the first network, what was said."""
    broken: dict[tuple[str, str, str], list[Verdict]] = {}
    for verdict in verdicts:
        if verdict.outcome in BROKEN:
            key = verdict.function, verdict.outcome, re.sub(r"[\d.]+", "#", verdict.said)[:60]
            broken.setdefault(key, []).append(verdict)
    for (function, outcome, _), found in sorted(broken.items(), key=lambda item: -len(item[1])):
        first = found[0]
        print(
            f"{len(found):5} {outcome:6} {function}: network {first.network} ({', '.join(first.kinds)}): {first.said}"
        )
