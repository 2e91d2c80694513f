"""Check an answer, get a hint or the solution: what a learner calls in a notebook of exercises."""

import importlib.util
import inspect
import pkgutil
import secrets
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from IPython import get_ipython

import kd_lab.exercises
from kd_lab.errors import StorageError, check_choice, described
from kd_lab.exercises.journal import Entry, entries, keep
from kd_lab.exercises.judging import EXERCISES, Exercise, judge, show

_IN_PACKAGE = Path(__file__).parent / "solutions"  # where a wheel has them
SOLUTIONS = _IN_PACKAGE if _IN_PACKAGE.is_dir() else Path(__file__).resolve().parents[2] / "notebooks" / "solutions"
PUBLIC_SEED = 0  # a learner sees the same numbers at every check
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"


def check(number: str, answer: Any) -> None:
    """Print at once whether an answer is right: not attempted, wrong (with a hint), can't be judged, or passed.

    `number` is the exercise's, such as "01.2"; `answer` what it asks for: a function, a number, a network. It is kept
    in the journal first.
    """
    task = find_exercise(number)
    _keep("answer", number, _written(answer))
    show(str(judge(task, answer, PUBLIC_SEED)))


def grade(number: str, answer: Any) -> None:
    """Raise an AssertionError with the reason unless an answer passes the check on numbers that nobody has seen."""
    verdict = judge(find_exercise(number), answer, secrets.randbelow(2**31))
    if not verdict.passed:
        raise AssertionError(str(verdict))


def hint(number: str) -> None:
    """Print the next hint for an exercise; there are up to three."""
    hints, had = find_exercise(number).hints, len(_entries("hint", number))
    shown = min(had, len(hints) - 1)
    show(f"{number}, hint {shown + 1} of {len(hints)}: {hints[shown]}")
    if had < len(hints):
        _keep("hint", number, shown + 1)
    else:
        print(f'That was the last one. solution("{number}") shows the solution.')


def solution(number: str) -> None:
    """Print the solution of an exercise."""
    find_exercise(number)
    print(solution_code(number))
    _keep("solution", number, "shown")


def solution_code(number: str) -> str:
    """Return the code of a solution, as it stands in notebooks/solutions, without the marks of its region."""
    import nbformat  # comes with Jupyter, which the kit can do without elsewhere

    lesson, _, place = number.partition(".")
    path = next(SOLUTIONS.glob(f"{lesson}*.ipynb"), None)
    if path is None:
        raise StorageError(f"The solution of {number} is not on this machine: its folder of solutions is empty.")
    cells = {cell.get("id"): cell.source for cell in nbformat.read(path, as_version=4).cells}
    lines = cells[f"answer-{lesson}-{place}"].splitlines()
    return "\n".join(line for line in lines if line.strip() not in (BEGIN, END))


def find_exercise(number: str) -> Exercise:
    """Return an exercise by its number; raise a ParameterError that names the closest one if there is none."""
    lesson = f"{kd_lab.exercises.__name__}.lesson_{str(number).partition('.')[0]}"
    if importlib.util.find_spec(lesson):  # of one lesson: what all import takes seconds
        importlib.import_module(lesson)
    if not isinstance(number, str) or number not in EXERCISES:
        check_choice("number", number, every_exercise())
    return EXERCISES[number]


@cache
def every_exercise() -> list[str]:
    """Return the numbers of all exercises, in order."""
    for module in pkgutil.iter_modules(kd_lab.exercises.__path__):
        if module.name.startswith("lesson_"):
            importlib.import_module(f"kd_lab.exercises.{module.name}")
    return sorted(EXERCISES)


def _keep(kind: str, of: str, value: Any) -> None:
    """Keep something in the journal; where that fails, say so and go on: the notebook has it, too."""
    try:
        keep(kind, of, value)
    except StorageError as error:
        show(f"This is not kept in the journal: {error}")


def _entries(kind: str, of: str | None = None) -> list[Entry]:
    """Return what the journal has of a kind; nothing where it can't be read, of which `_keep` tells."""
    try:
        return entries(kind, of)
    except StorageError:
        return []


def _written(answer: Any) -> dict[str, Any]:
    """Return an answer as text, with the cells that were run and are not kept yet."""
    text = described(answer)
    with suppress(Exception):  # no function, or one that was written where Python keeps no text
        text = inspect.getsource(answer)
    shell, kept = get_ipython(), set()
    for entry in _entries("answer"):
        with suppress(TypeError, KeyError):  # one that something else has written
            kept.update(entry["value"]["cells"])
    cells = shell.history_manager.input_hist_parsed if shell else []  # `In`, which a learner may use for a name
    return {"answer": text, "cells": [cell for cell in cells if cell not in kept]}
