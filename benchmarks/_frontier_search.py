"""Search the best network within a budget of bytes, for the benchmark `frontier`: each trial is a real training.

The search has one seed and chooses by validation errors. What it finds is trained anew over five seeds, by a recipe of
`_frontier_files`.
"""

from dataclasses import asdict
from typing import Any

from tabulate import tabulate

from benchmarks import read
from benchmarks._campaign import Campaign
from kd_lab.checkpoints import load_trained
from kd_lab.compression import search_architecture
from kd_lab.compression.architectures import ArchitectureTrial, Ended
from kd_lab.compression.frontiers import frontier
from kd_lab.data import Mnist
from kd_lab.results import Record

NAME, PART = "frontier", "search"
RECIPE = {"teacher": "resnet", "most_bytes": 450, "runs": 28, "epochs": 8, "batch_size": 128, "steps_per_epoch": 430}
MINUTES = 1000  # more than its runs take


def make_search(running: Campaign, data: Mnist) -> None:
    """Record the trials of a search, unless they are recorded; one that was stopped goes on."""
    if read(NAME).get(PART, {}).get("recipe") == RECIPE:
        return
    settings = {key: value for key, value in RECIPE.items() if key != "teacher"}
    where = {"folder": running.folder / PART, "workers": running.workers or 2}
    found = search_architecture(data, load_trained(RECIPE["teacher"]), minutes=MINUTES, **settings, **where)
    running.keep(
        PART,
        {
            "recipe": RECIPE,
            "trials": numbered(found.ended),
            "found": row(found.best),
            "stopped": len(found.stopped),
            "failed": len(found.failed),
            "refused": found.refused,
        },
    )


def numbered(ended: list[Ended]) -> dict[str, dict[str, Any]]:
    """Return the trials that have a file by their numbers among all: no list, which a record might take for seeds."""
    return {str(number): row(each) for number, each in enumerate(ended, 1) if isinstance(each, ArchitectureTrial)}


def row(trial: ArchitectureTrial) -> dict[str, Any]:
    """Return the design of a trial, the bytes of its file and the validation error."""
    error = round(100 - 100 * trial.accuracy.value, 2)
    return {**asdict(trial.design), "bytes": trial.bytes, "validation_error": error}


def score_search(recorded: Record) -> dict[str, float]:
    """Print the frontier of the search, if one was recorded, and return its trials and what it found."""
    search = recorded.get(PART)
    if search is None:
        return {}
    print(
        f"search: {len(search['trials'])} trials were trained to the end, {search['stopped']} stopped early, "
        f"{search['failed']} failed; {search['refused']:,} proposals cost no training. Its frontier, of one seed, on "
        "the validation part:"
    )
    print(tabulate([each.values() for each in best_trials(search)], search["found"].keys()))
    found = {key: search["found"][key] for key in ("bytes", "validation_error")}
    counts = {"trials": len(search["trials"]), "stopped": search["stopped"]}
    return {f"{NAME}.{PART}.{key}": value for key, value in (counts | found).items()}


def best_trials(search: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the trials of a recorded search that no other beats in bytes and error, the smallest first."""
    return frontier(search["trials"].values(), lambda trial: (trial["bytes"], trial["validation_error"]))
