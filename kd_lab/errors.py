"""Errors in one sentence: the function, the argument, what is allowed and what came."""

import difflib
import itertools
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from numbers import Integral, Real
from types import FrameType
from typing import Any

# the learner's code may stand behind a few frames of these, which call the kit back or run it
MAX_DESCRIBED = 3  # parts of a tuple or a list; they are the parts of the data, most often
MAX_SHOWN = 20  # numbers or names of a list that is shown as it is
PASSED_THROUGH = {"anywidget", "contextlib", "copy", "dataclasses", "functools", "threading", "torch", "traitlets"}


class KdLabError(Exception):
    """Any error that kd_lab raises on purpose."""


class CallError(KdLabError):
    """A call that can't be carried out; the message begins with the function that the learner called, "prune(): …".

    The function is found on the stack; `problem` is the message without it.
    """

    def __init__(self, problem: str, function: str | None = None):
        self.problem = problem
        self.function = called_function() if function is None else function
        super().__init__(f"{self.function}(): {problem}" if self.function else problem)

    def __reduce__(self) -> tuple:
        return type(self), (self.problem, self.function)  # another process has another stack


class ParameterError(CallError, ValueError):
    """An argument that is not allowed; nothing has been changed."""


class EmptyLayerError(ParameterError):
    """A pruning that would leave nothing of a layer."""


class TrainingError(CallError):
    """A training that diverged before it learned anything."""


class SweepError(CallError):
    """Trials of a sweep that gave no result; `results` has those of the others, and None in the place of these."""

    def __init__(self, problem: str, function: str | None = None, results: Sequence[Any] = ()):
        super().__init__(problem, function)
        self.results = list(results)

    def __reduce__(self) -> tuple:
        return type(self), (self.problem, self.function, self.results)


class DataError(CallError):
    """MNIST is missing and can't be fetched."""


class SetupError(KdLabError):
    """A machine on which kd_lab can't run as it is."""


class StorageError(KdLabError):
    """A file that can't be written, or that must not be read."""


class DamagedFileError(StorageError):
    """A file whose bytes are not those that were saved."""


def called_function() -> str:
    """Return the name of the public function of kd_lab that was called from outside, such as "prune", or "".

    One public function may call others, and a learner's function may be called back by one and call another: it is the
    outermost one that lies before the learner's own code.
    """
    name, frame = "", sys._getframe().f_back
    while frame is not None:
        package, _, module = str(frame.f_globals.get("__name__")).partition(".")
        if package == "kd_lab":
            name = (module != "errors" and _public_name(frame)) or name
        elif package not in PASSED_THROUGH:
            break
        frame = frame.f_back
    return name


def reason(error: Exception) -> str:
    """Return what an error says, without the function that it names: for the message of another error."""
    said = str(getattr(error, "problem", error))
    whole = said and not isinstance(error, (KeyError, AssertionError))  # "'k'" alone says nothing
    return said if whole else f"{type(error).__name__}: {said}".removesuffix(": ")


@contextmanager
def saying(problem: str) -> Iterator[None]:
    """Raise a ParameterError that begins with the problem where what is inside fails, such as a learner's own code."""
    try:
        yield
    except Exception as error:
        raise ParameterError(f"{problem}: {reason(error)}") from error


def described(value: Any) -> str:
    """Return in words what came: shape and dtype of a tensor or an array, the first parts of a tuple or a list."""
    if _is_long(value):
        return f"{_size(value)}: {', '.join(map(_size, itertools.islice(value, MAX_DESCRIBED)))}"
    return _size(value)


def _size(value: Any) -> str:
    """Return in words what came, without its numbers and its parts."""
    if _is_array(value):
        return f"{type(value).__name__} of shape {tuple(value.shape)} and {value.dtype}"
    if _is_long(value):
        return f"{type(value).__name__} of {len(value)}"
    try:
        said = f"{value!r:.80}"
    except Exception:  # noqa: BLE001 a class of the caller's, and this is for a message about something else
        return type(value).__name__
    unreadable = any(mark in said for mark in ("\n", " at 0x", "tensor(", "array("))
    return type(value).__name__ if unreadable else said


def _is_long(value: Any) -> bool:
    """Return whether this is a tuple or a list that can't be shown as it is: of many parts, or of large ones."""
    plain = str, Real, type(None)
    if not isinstance(value, (tuple, list)):
        return False
    return len(value) > MAX_SHOWN or not all(isinstance(part, plain) for part in value)


def _is_array(value: Any) -> bool:
    numbers = isinstance(value, Real)  # those of NumPy have a shape, too
    with suppress(RuntimeError):  # nested tensors have none
        return hasattr(value, "shape") and hasattr(value, "dtype") and not numbers
    return False


def _public_name(frame: FrameType) -> str | None:
    """Return the name of a frame's function, the class's own for a constructor or a call; None for a private one."""
    owner, _, name = frame.f_code.co_qualname.partition(".<locals>")[0].rpartition(".")
    instance = frame.f_locals.get("self", frame.f_locals.get("cls"))
    if owner and instance is not None:
        owner = (instance if isinstance(instance, type) else type(instance)).__name__  # of the learner's own subclass
    parts = [part for part in (owner, name) if part and not (part.startswith("__") and part.endswith("__"))]
    return ".".join(parts) if parts and not any(part.startswith(("_", "<")) for part in parts) else None


def check_number(argument: str, value: object, allowed: str) -> Any:
    """Return `value` as Python's own int or float; raise a ParameterError unless it is a number in `allowed`.

    `allowed` is an interval as it is written in mathematics, "(0, 1]", and stands as it is in the message.
    True, text and None are no numbers; NaN lies in no interval. NumPy's numbers overflow, and JSON takes none.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not _contains(allowed, value):
        raise ParameterError(_sentence(argument, f"a number in {allowed}", value) + _guess(value, allowed))
    return int(value) if isinstance(value, Integral) else float(value)


def check_whole_number(argument: str, value: object, allowed: str) -> int:
    """Return `value` as Python's own int; raise a ParameterError unless it is a whole number in `allowed`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not _contains(allowed, value):
        raise ParameterError(_sentence(argument, f"a whole number in {allowed}", value))
    return int(value)


def check_fields(instance: Any, **allowed: str) -> None:
    """Check numbers of a frozen dataclass in turn, each in its interval, and keep them as Python's own.

    A field is of whole numbers unless its type has float in it; one that may be a dict has a number for each layer.
    """
    kinds = {field.name: str(field.type) for field in fields(instance)}
    for name, interval in allowed.items():
        check, value = check_number if "float" in kinds[name] else check_whole_number, getattr(instance, name)
        if "dict" in kinds[name] and isinstance(value, dict) and value:
            value = {layer: check(f"{name} of layer {layer}", each, interval) for layer, each in value.items()}
        else:
            value = check(name, value, interval)
        object.__setattr__(instance, name, value)


def check_choice(argument: str, value: object, choices: list[str]) -> None:
    """Raise a ParameterError, naming the closest choice, unless `value` is one of `choices`."""
    if isinstance(value, str) and value in choices:
        return
    close = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.4) if value is not None else []
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ParameterError(_sentence(argument, f"one of {', '.join(choices)}", value) + hint)


def check_kind(argument: str, value: object, kind: Any, allowed: str) -> None:
    """Raise a ParameterError unless `value` is of this class, or of one of these; `allowed` says in words what is."""
    check_that(argument, value, isinstance(value, kind), allowed)


def check_that(argument: str, value: object, fits: Any, allowed: str) -> None:
    """Raise a ParameterError unless `value` fits; `allowed` says in words what does."""
    if not fits:
        raise ParameterError(_sentence(argument, allowed, value))


def _sentence(argument: str, allowed: str, value: object) -> str:
    swapped = " Did you swap two arguments?" if hasattr(value, "forward") else ""  # a network, where none is taken
    return f"{argument!r} must be {allowed}. Got {described(value)}.{swapped}"


def _contains(interval: str, value: Any) -> bool:
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    below = value <= high if interval[-1] == "]" else value < high
    return above and below


def _guess(value: object, allowed: str) -> str:
    """Guess the number behind text ("0.5") and behind a percentage (50), the two commonest slips."""
    if isinstance(value, bool) or not isinstance(value, (str, Real)):
        return ""
    divisors = (1, 100) if isinstance(value, str) else (100,)
    with suppress(ValueError, OverflowError):
        for guess in (float(value) / divisor for divisor in divisors):
            if guess > 0 and _contains(allowed, guess):
                return f" Did you mean {guess:g}?"
    return ""
