"""Wrong answers to every exercise, the mistakes that people really make, each with words that its verdict must hold.

And right ones that are easily refused: other ways to write them, rounded as the question rounds.
"""

import importlib
from typing import Any

from kd_lab.exercises.feedback import every_exercise, find_exercise
from kd_lab.exercises.judging import Verdict, judge


def wrong_answers(number: str) -> dict[str, Any]:
    """Return the wrong answers to an exercise, by words of the verdict that must fit."""
    return _of(number, "wrong")()


def right_answers(number: str) -> list[Any]:
    """Return other right answers to an exercise than that of its solution."""
    return _of(number, "right", list)()


def _of(number: str, kind: str, *default: Any) -> Any:
    """Return the function that makes the answers of a kind to an exercise, or the default where there is none."""
    find_exercise(number)
    lesson = importlib.import_module(f"{__name__}.lesson_{number.partition('.')[0]}")
    return getattr(lesson, f"{kind}_{number.replace('.', '_')}", *default)


def verdicts(number: str) -> dict[str, Verdict]:
    """Return the public verdict on each wrong answer to an exercise."""
    return {words: judge(find_exercise(number), answer, 0) for words, answer in wrong_answers(number).items()}


def judge_all() -> dict[str, int]:
    """Return how many wrong answers there are, how many are caught, and how many get a hint that no other gets.

    Caught means: judged wrong, with the words that fit. Hints are compared within an exercise.
    """
    judged = {number: verdicts(number) for number in every_exercise()}
    mutants = [(words, verdict) for given in judged.values() for words, verdict in given.items()]
    return {
        "course.exercises": len(judged),
        "course.mutants": len(mutants),
        "course.mutants_caught": sum(each.outcome == "wrong" and words in str(each) for words, each in mutants),
        "course.hints_distinct": len({(each.number, each.what, each.hint) for _, each in mutants}),
    }
