"""Judge an answer by what it does, on numbers that it has not seen, and name the mistake that it makes."""

import dis
import inspect
import math
import random
import textwrap
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from numbers import Real
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

from kd_lab.checkpoints import load_trained
from kd_lab.data import load_mnist
from kd_lab.errors import check_number, described, reason
from kd_lab.formats import pack, unpack
from kd_lab.networks import weights
from kd_lab.networks.copies import copied
from kd_lab.networks.permanent import make_permanent
from kd_lab.networks.predictions import predict

Check = Callable[[Any, Generator], None]
DOES_NOTHING = {"RESUME", "NOP", "LOAD_CONST", "RETURN_VALUE", "RETURN_CONST"}
WIDTH = 88  # of what is printed, in characters
_BEING_JUDGED: set[str] = set()


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


def show(text: str) -> None:
    """Print text in lines that end between words: a notebook breaks longer ones anywhere."""
    for line in text.splitlines():
        print(textwrap.fill(line, WIDTH, break_long_words=False, break_on_hyphens=False))


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
    inside = f'Move the line check("{task.number}", ...) out of your function.'
    try:
        wrong_if(task.number in _BEING_JUDGED, "your answer calls check itself", inside)
        with _undisturbed(task.number):
            task.check(_taken(answer), Generator().manual_seed(seed))
    except NotAttempted:
        return verdict("not attempted")
    except Wrong as mistake:
        return verdict("wrong", mistake.what, mistake.hint)
    except Exception as error:  # noqa: BLE001 a learner's objects may do anything, and the next exercise must go on
        if isinstance(error, TypeError) and not callable(answer) and "not callable" in str(error):
            itself = "Hand over the function itself, its name without parentheses and arguments."
            return verdict("wrong", f"a function is asked for, and {described(answer)} came", itself)
        return verdict("can't be judged", reason(error))
    return verdict("passed")


@contextmanager
def _undisturbed(number: str) -> Iterator[None]:
    """Judge in plain surroundings; random states, torch's settings and gradient mode are then as they were."""
    before = [(put, get()) for get, put in _SETTINGS]
    torch.set_default_dtype(torch.float32)
    _set_device(torch.device("cpu"))
    _BEING_JUDGED.add(number)
    try:
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        _BEING_JUDGED.discard(number)
        for put, value in before:
            put(value)


def _set_device(device: torch.device) -> None:
    """Set torch's default device where it is another: setting it at all slows every call down."""
    if torch.get_default_device() != device:
        torch.set_default_device(device)


_SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (random.getstate, random.setstate),
    (np.random.get_state, np.random.set_state),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_default_device, _set_device),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
)


def _taken(answer: Any) -> Any:
    """Return what a check may use of an answer: a copy of a network, a function that reports its own errors."""
    if answer is None or answer is Ellipsis or (isinstance(answer, FunctionType) and _does_nothing(answer)):
        raise NotAttempted
    if isinstance(answer, nn.Module):
        return copied(answer)
    return (lambda *arguments, **named: call(answer, *arguments, **named)) if callable(answer) else answer


def _does_nothing(answer: FunctionType) -> bool:
    """Return whether the body of a function is empty: a docstring, `...` or `pass`."""
    steps = list(dis.get_instructions(answer))
    returned = [step.argval for step in steps if step.opname.endswith("CONST")]
    return {step.opname for step in steps} <= DOES_NOTHING and not any(each is not None for each in returned)


def call(learners: Callable, *arguments: Any, **named: Any) -> Any:
    """Return what a learner's function gives for copies of the arguments; raise Wrong if it fails or changes them."""
    given = [each.clone() if isinstance(each, Tensor) and each.is_leaf else each for each in arguments]
    _check_first_line(learners, arguments, named)
    try:
        result = learners(*given, **named)
    except NotImplementedError as error:
        raise NotAttempted from error
    except KeyboardInterrupt:  # it is the learner who stops
        raise
    except BaseException as error:
        said = reason(error) if isinstance(error, Exception) else error
        raise Wrong(
            f"your function stops with {type(error).__name__}: {said}",
            "Call it yourself and read the last lines of the error. "
            f"What it was given: {', '.join(map(described, arguments))}.",
        ) from error
    for before, after in zip(arguments, given, strict=True):
        changed = isinstance(before, Tensor) and not torch.equal(before, after)
        hint = "Work on a copy: `.clone()`, or no `_` at the end."
        wrong_if(changed, "your function changes its argument in place", hint)
    wrong_if(result is None, "your function returns nothing", "Does it end with `return`?")
    return result


def _check_first_line(learners: Callable, arguments: tuple, named: dict[str, Any]) -> None:
    """Raise Wrong if a function takes other arguments than those that it will get."""
    with suppress(ValueError):  # one that is written in C, of which Python doesn't know
        signature = inspect.signature(learners)
        try:
            signature.bind(*arguments, **named)
        except TypeError as error:
            raise Wrong(
                f"your function takes {signature}, and gets {len(arguments)} arguments: {error}",
                "Leave the line that begins with `def` as the exercise has it.",
            ) from error


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


def expect_by_name(value: Any, names: Iterable[str], interval: str = "[0, inf)") -> dict[str, float]:
    """Return the numbers of a dict that an answer must give under these names; raise Wrong if they are others."""
    names = list(names)
    hint = f"Return a dict: {{{', '.join(f'{name!r}: …' for name in names)}}}, each a number in {interval}."
    expect_keys(value, {*names}, hint)
    return {name: expect_number(value[name], interval, hint) for name in names}


def expect_keys(value: Any, keys: set[Any], hint: str) -> None:
    """Raise Wrong unless an answer is a dict of exactly these keys."""
    wrong_if(not isinstance(value, dict), f"a dict is asked for, and {described(value)} came", hint)
    wrong_if({*value} != keys, "the dict has other keys", hint)


def expect_tensor(value: Any, shape: tuple[int, ...], hint: str) -> Tensor:
    """Return a plain tensor of finite numbers that an answer must give, float32 if it has fractions; else raise Wrong.

    A subclass may answer what it likes when it is compared.
    """
    if not isinstance(value, Tensor):
        listed = isinstance(value, (list, tuple, np.ndarray))
        itself = "Return the tensor itself: no function, generator or class."
        made = "`torch.as_tensor(...)` makes a tensor of it, `torch.cat(...)` one of several." if listed else itself
        raise Wrong(f"a tensor is asked for, and {described(value)} came", hint if isinstance(value, Real) else made)
    with torch._C.DisableTorchFunctionSubclass():
        odd = value.is_meta or value.layout != torch.strided or value.is_complex()
        wrong_if(odd, "the tensor is sparse, complex or on meta", "Return an ordinary tensor of real numbers.")
        value = Tensor.as_subclass(value, Tensor)
    wrong_if(value.shape != shape, f"the shape must be {tuple(shape)}, and is {tuple(value.shape)}", hint)
    wrong_if(not torch.isfinite(value).all(), "there are NaN or infinite numbers in the result", hint)
    return value.float() if value.is_floating_point() else value


def expect_network(value: Any, name: str, hint: str, whole: bool = True) -> nn.Module:
    """Return the network that an answer must give, as its file has it: with its own weights, and nothing hidden.

    Raise Wrong unless it has the layers of a trained network, each `whole` or with fewer units.
    """
    wrong_if(not isinstance(value, nn.Module), f"a network is asked for, and {described(value)} came", hint)
    here, there = (
        {layer: each.value.shape for layer, each in weights(model).items()} for model in (value, load_trained(name))
    )
    other = here != there if whole else here.keys() != there.keys()
    wrong_if(other, f"this is another network than {name}", hint)
    return unpack(pack(value))


def wrong_if_like(given: Tensor, mistakes: dict[str, tuple[Tensor, str]]) -> None:
    """Raise Wrong if a tensor is what one of these mistakes gives: what is wrong, the tensor and the hint for it."""
    for what, (mistaken, hint) in mistakes.items():
        wrong_if(close(given, mistaken), what, hint)


def close(given: Tensor, expected: Tensor) -> bool:
    """Return whether two tensors of one shape hold the same numbers, but for rounding."""
    return torch.allclose(given.float(), expected.float(), rtol=1e-4, atol=1e-5)


def hides_numbers(network: nn.Module, images: Tensor) -> bool:
    """Return whether a network still tells images apart when all of its parameters are zero."""
    empty = make_permanent(network)
    with torch.no_grad():
        for each in empty.parameters():
            each.zero_()
    answers = predict(empty, images)
    return not torch.equal(answers, answers[:1].expand_as(answers))
