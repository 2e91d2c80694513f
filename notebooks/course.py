"""Run the whole course, every lesson in order, each in a fresh kernel, and print what each takes.

`make course` calls it. It starts from nothing: from an empty cache, with what ships. Let nothing else run beside it.
"""

import os
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from notebooks.lab import LESSONS


def lesson_seconds(lesson: Path) -> float:
    """Return the seconds that a lesson takes in a fresh kernel, the kernel's start among them."""
    client = NotebookClient(
        nbformat.read(lesson, as_version=4), timeout=600, resources={"metadata": {"path": lesson.parent}}
    )
    begun = time.perf_counter()
    client.execute()
    return time.perf_counter() - begun


def main() -> None:
    """Print the minutes of each lesson, and of all."""
    total = 0.0
    with tempfile.TemporaryDirectory() as empty:
        os.environ["KD_LAB_CACHE"] = empty
        for lesson in LESSONS:
            seconds = lesson_seconds(lesson)
            total += seconds
            print(f"{lesson.stem:36}{seconds / 60:5.2f} minutes", flush=True)
    print(f"{'the whole course':36}{total / 60:5.2f} minutes")


if __name__ == "__main__":
    main()
