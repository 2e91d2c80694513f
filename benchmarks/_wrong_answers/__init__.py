"""Wrong answers to every exercise, the mistakes that people really make, each with words that its verdict must hold."""

import importlib
from typing import Any

from kd_lab.exercises.feedback import find_exercise


def wrong_answers(number: str) -> dict[str, Any]:
    """Return the wrong answers to an exercise, by words of the verdict that must fit."""
    find_exercise(number)
    lesson = importlib.import_module(f"{__name__}.lesson_{number.partition('.')[0]}")
    return getattr(lesson, f"wrong_{number.replace('.', '_')}")()
