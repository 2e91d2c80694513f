"""Say in one sentence what was wrong: the function, the argument, what is allowed and what came."""

import difflib
import math
from numbers import Integral, Real


class KdLabError(Exception):
    """Stand for every error that kd_lab raises on purpose."""


class ParameterError(KdLabError, ValueError):
    """Report an argument that is not allowed; nothing has been changed."""


class EmptyLayerError(ParameterError):
    """Report a pruning that would leave nothing of a layer."""


class SetupError(KdLabError):
    """Report a machine on which kd_lab can't run as it is."""


class DataError(KdLabError):
    """Report that MNIST is missing and can't be fetched."""


class StorageError(KdLabError):
    """Report a file that can't be written, or that must not be read."""


class DamagedFileError(StorageError):
    """Report a file whose bytes are not those that were saved."""


class TrainingError(KdLabError):
    """Report a training that diverged before it learned anything."""


def check_number(function: str, argument: str, value: object, allowed: str) -> None:
    """Raise a ParameterError unless `value` is a number in `allowed`.

    `allowed` is an interval as it is written in mathematics, "(0, 1]", and stands as it is in the message.
    True, text and None are no numbers; NaN lies in no interval.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not _contains(allowed, value):
        raise ParameterError(_sentence(function, argument, f"a number in {allowed}", value) + _guess(value, allowed))


def check_whole_number(function: str, argument: str, value: object, allowed: str) -> None:
    """Raise a ParameterError unless `value` is a whole number in `allowed` (see `check_number`)."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not _contains(allowed, value):
        raise ParameterError(_sentence(function, argument, f"a whole number in {allowed}", value))


def check_choice(function: str, argument: str, value: object, choices: list[str]) -> None:
    """Raise a ParameterError, naming the closest choice, unless `value` is one of `choices`."""
    if isinstance(value, str) and value in choices:
        return
    close = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.4) if value is not None else []
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ParameterError(_sentence(function, argument, f"one of {', '.join(choices)}", value) + hint)


def check_kind(function: str, argument: str, value: object, kind: type | tuple[type, ...], allowed: str) -> None:
    """Raise a ParameterError unless `value` is of this kind; `allowed` says in words what is."""
    if not isinstance(value, kind):
        raise ParameterError(_sentence(function, argument, allowed, value))


def _sentence(function: str, argument: str, allowed: str, value: object) -> str:
    return f"{function}(): {argument!r} must be {allowed}. Got {value!r:.80}."


def _contains(interval: str, value: float) -> bool:
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    below = value <= high if interval[-1] == "]" else value < high
    return above and below


def _guess(value: object, allowed: str) -> str:
    """Guess the number behind text ("0.5") and behind a percentage (50), the two commonest slips."""
    if isinstance(value, bool) or not isinstance(value, (str, Real)):
        return ""
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return ""
    if not math.isfinite(number):
        return ""
    candidates = [number, number / 100] if isinstance(value, str) else [number / 100]
    fitting = [candidate for candidate in candidates if _contains(allowed, candidate)]
    return f" Did you mean {fitting[0]:g}?" if fitting and number > 0 else ""
