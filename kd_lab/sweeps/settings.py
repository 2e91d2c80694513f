"""Check the settings of each trial: the function takes them, JSON can keep them, and no two are alike."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from kd_lab.errors import ParameterError, check_kind, check_that, described, reason
from kd_lab.storage import cache_key

Settings = dict[str, dict[str, Any]]  # the trials by their keys


def checked_trials(function: Callable[..., Any], trials: Iterable[dict[str, Any]]) -> Settings:
    """Return the trials by their keys; raise a ParameterError for one that can't run, or is the same as another."""
    allowed = "one or more dicts of the function's arguments by name"
    check_that("function", function, inspect.isroutine(function), "a function; what else it needs goes into the trials")
    check_kind("trials", trials, Iterable, allowed)
    settings = Settings()
    for number, trial in enumerate(trials):
        check_kind(f"trials[{number}]", trial, dict, "a dict of the function's arguments by name")
        try:
            inspect.signature(function).bind(**trial)
        except (TypeError, ValueError) as error:
            raise ParameterError(f"trials[{number}], {short(trial)}, does not fit: {reason(error)}.") from error
        if where := not_json(trial):
            raise ParameterError(f"trials[{number}] must be of JSON values: {where}.")
        if (key := cache_key(trial)) in settings:
            first = list(settings).index(key)
            raise ParameterError(f"trials[{first}] and trials[{number}] are the same: {short(trial)}.")
        settings[key] = dict(trial)
    check_that("trials", list(settings), settings, allowed)
    return settings


def short(trial: dict[str, Any]) -> str:
    """Return a trial as it stands in a message."""
    return f"{trial!r:.120}"


def not_json(value: Any, place: str = "") -> str:
    """Return where a value has a part that JSON can't keep, and what it is; "" where it has none."""
    if isinstance(value, dict):
        if odd := [key for key in value if not isinstance(key, (str, int, float))]:
            return f"{place or 'it'} has the key {described(odd[0])}"
        return next(filter(None, (not_json(each, f"{place}[{key!r}]") for key, each in value.items())), "")
    if isinstance(value, (list, tuple)):
        return next(filter(None, (not_json(each, f"{place}[{index}]") for index, each in enumerate(value))), "")
    fits = value is None or isinstance(value, (str, int, float))
    return "" if fits else f"{place or 'it'} is {described(value)}"
