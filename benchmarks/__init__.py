"""Measure the kit beside what a user would write instead, and try its faults at length."""

import json
import platform

import torch

from kd_lab.results import RESULTS
from kd_lab.storage import write_safely


def read(name: str) -> dict:
    """Return the content of results/NAME.json, to write on, {} if there is none; raise an error if it is damaged."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def record(name: str, measured: dict) -> None:
    """Keep what a long campaign measured, with the versions it ran on, in results/NAME.json."""
    content = {"python": platform.python_version(), "torch": torch.__version__, **measured}
    write_safely(RESULTS / f"{name}.json", (json.dumps(content, indent=1) + "\n").encode())
