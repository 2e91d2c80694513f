"""Judge an answer by what it does, on numbers that it has not seen, and name the mistake that it makes."""

import dis
import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

from kd_lab.data import load_mnist
from kd_lab.errors import check_number, described, reason
from kd_lab.networks.copies import copied

Check = Callable[[Any, Generator], None]
DOES_NOTHING = {"RESUME", "NOP", "LOAD_CONST", "RETURN_VALUE", "RETURN_CONST"}


class NotAttempted(Exception):
    """An answer that is still as empty as it was."""


class NotJudged(Exception):
    """An answer that can't be judged; the message says why."""


class Wrong(Exception):
    """A wrong answer: what is wrong with it, and a hint for this very mistake."""

    def __init__(self, what: str, hint: str):
        self.what, self.hint = what, hint
        super().__init__(what)


@dataclass(frozen=True)
class Exercise:
    """An exercise: its number, up to three hints, and the check that judges an answer."""

    number: str
    hints: tuple[str, ...]
    check: Check


@dataclass(frozen=True)
class Verdict:
    """What a check says about an answer: the outcome, what is wrong or why it can't be judged, and a hint."""

    number: str
    outcome: str
    what: str = ""
    hint: str = ""

    @property
    def passed(self) -> bool:
        """Whether all checks passed."""
        return self.outcome == "passed"

    def __str__(self) -> str:
        said = "public checks passed" if self.passed else self.outcome
        return "\n".join(
            [f"{self.number}: {said}{': ' * bool(self.what)}{self.what}"] + [f"Hint: {self.hint}"] * bool(self.hint)
        )


EXERCISES: dict[str, Exercise] = {}
mnist = cache(load_mnist)  # takes a second, and a check reads it often


def exercise(number: str, *hints: str) -> Callable[[Check], Check]:
    """Return the decorator that makes a function the check of an exercise, with its hints."""

    def enter(check: Check) -> Check:
        EXERCISES[number] = Exercise(number, hints, check)
        return check

    return enter


def judge(task: Exercise, answer: Any, seed: int) -> Verdict:
    """Return the verdict on an answer, on numbers drawn from the seed.

    The answer and the random state stay as they are. What a check raises beyond its own exceptions means that it can't
    judge this answer.
    """
    verdict = partial(Verdict, task.number)
    try:
        with _undisturbed():
            task.check(_taken(answer), Generator().manual_seed(seed))
    except NotAttempted:
        return verdict("not attempted")
    except Wrong as mistake:
        return verdict("wrong", mistake.what, mistake.hint)
    except Exception as error:  # noqa: BLE001 a learner's objects may do anything, and the next exercise must go on
        return verdict("can't be judged", reason(error))
    return verdict("passed")


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Judge in plain surroundings; random states, default dtype and gradient mode are then as they were."""
    states, dtype = (random.getstate(), np.random.get_state()), torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.set_default_dtype(dtype)
        random.setstate(states[0])
        np.random.set_state(states[1])


def _taken(answer: Any) -> Any:
    """Return what a check may use of an answer: a copy of a network, a function that reports its own errors."""
    if answer is None or answer is Ellipsis or (isinstance(answer, FunctionType) and _does_nothing(answer)):
        raise NotAttempted
    if isinstance(answer, nn.Module):
        return copied(answer)
    return partial(call, answer) if callable(answer) else answer


def _does_nothing(answer: FunctionType) -> bool:
    """Return whether the body of a function is empty: a docstring, `...` or `pass`."""
    steps = list(dis.get_instructions(answer))
    return {step.opname for step in steps} <= DOES_NOTHING and steps[-1].argval is None


def call(learners: Callable, *arguments: Any, **named: Any) -> Any:
    """Return what a learner's function gives for copies of the arguments; raise Wrong if it fails or changes them."""
    given = [each.clone() if isinstance(each, Tensor) and each.is_leaf else each for each in arguments]
    try:
        result = learners(*given, **named)
    except NotImplementedError as error:
        raise NotAttempted from error
    except (Exception, SystemExit) as error:
        said = reason(error) if isinstance(error, Exception) else error
        raise Wrong(
            f"your function stops with {type(error).__name__}: {said}",
            f"Call it yourself with {', '.join(map(described, arguments))}, and read the last lines of the error.",
        ) from error
    for before, after in zip(arguments, given, strict=True):
        changed = isinstance(before, Tensor) and not torch.equal(before, after)
        hint = "Work on a copy: `.clone()`, or no `_` at the end."
        wrong_if(changed, "your function changes its argument in place", hint)
    wrong_if(result is None, "your function returns nothing", "Does it end with `return`?")
    return result


def wrong_if(mistake: Any, what: str, hint: str) -> None:
    """Raise Wrong, with what is wrong and a hint, if the answer makes this mistake."""
    if mistake:
        raise Wrong(what, hint)


def expect_number(value: Any, interval: str, hint: str) -> float:
    """Return a number that an answer must give, in an interval as check_number reads it; raise Wrong if it is none.

    A tensor of one number counts as a number.
    """
    value = value.item() if isinstance(value, (Tensor, np.ndarray)) and math.prod(value.shape) == 1 else value
    try:
        return check_number("answer", value, interval)
    except ValueError as error:
        raise Wrong(f"{described(value)} is not a number in {interval}", hint) from error


def expect_numbers(value: Any, count: int, interval: str, hint: str) -> list[float]:
    """Return the numbers of a list, tuple or tensor that an answer must give; raise Wrong if they are others."""
    value = value.tolist() if isinstance(value, (Tensor, np.ndarray)) else value
    listed = isinstance(value, (list, tuple)) and len(value) == count
    wrong_if(not listed, f"{count} numbers are asked for, and {described(value)} came", hint)
    return [expect_number(each, interval, hint) for each in value]


def expect_tensor(value: Any, shape: tuple[int, ...], hint: str) -> Tensor:
    """Return a tensor of finite numbers that an answer must give; raise Wrong if it is none or has another shape.

    It comes back as a plain one: a subclass may answer what it likes when it is compared.
    """
    wrong_if(not isinstance(value, Tensor), f"a tensor is asked for, and {described(value)} came", hint)
    with torch._C.DisableTorchFunctionSubclass():
        value = Tensor.as_subclass(value, Tensor)
    wrong_if(value.shape != shape, f"the shape must be {shape}, and is {tuple(value.shape)}", hint)
    wrong_if(not torch.isfinite(value).all(), "there are NaN or infinite numbers in the result", hint)
    return value


def wrong_if_like(given: Tensor, mistakes: dict[str, tuple[Tensor, str]]) -> None:
    """Raise Wrong if a tensor is what one of these mistakes gives: what is wrong, the tensor and the hint for it."""
    for what, (mistaken, hint) in mistakes.items():
        wrong_if(close(given, mistaken), what, hint)


def close(given: Tensor, expected: Tensor) -> bool:
    """Return whether two tensors of one shape hold the same numbers, but for rounding."""
    return torch.allclose(given.float(), expected.float(), rtol=1e-4, atol=1e-5)
