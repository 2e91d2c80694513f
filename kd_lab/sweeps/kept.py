"""The folder of a sweep: one file for each trial that is done, and one that says of which sweep they are."""

import ast
import hashlib
import inspect
import json
import os
import textwrap
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from kd_lab.errors import DamagedFileError, ParameterError, StorageError
from kd_lab.storage import cache_key, file_path, read_file, set_aside, sweep_strays, write_safely
from kd_lab.sweeps.settings import Settings, short

MANIFEST, SCHEMA = "sweep.json", 1


@dataclass(frozen=True)
class KeptTrial:
    """A trial that is done: its settings, and what it returned or the error that it raised."""

    trial: dict[str, Any]
    result: Any
    error: str  # "" where there was none
    traceback: str
    seconds: float
    host: str  # on which it ran


def load_sweep(folder: str | os.PathLike) -> list[KeptTrial]:
    """Return the trials of a sweep that are done, in their order, also while it runs.

    Raises a StorageError where there is none, and a DamagedFileError for a file that is not as it was written.
    """
    kept = Folder(file_path(folder), {})
    paths = [kept.path(cache_key(trial)) for trial in _read(kept.manifest)["trials"]]
    names = [field.name for field in fields(KeptTrial)]
    return [KeptTrial(**{name: done[name] for name in names}) for done in map(_read, filter(Path.exists, paths))]


def name_and_digest(function: Callable[..., Any]) -> dict[str, str]:
    """Return the name of a function and a digest of its text, which comments and line breaks don't change."""
    source = ""
    with suppress(OSError, TypeError):  # typed into a terminal, or built in
        source = textwrap.dedent(inspect.getsource(function))
    with suppress(SyntaxError):  # a lambda amid a call
        source = ast.unparse(ast.parse(source))
    return {"function": f"{function.__module__}.{function.__qualname__}", "source": _digest(source)[:12]}


class Folder:
    """The files of a sweep, which only the process writes that holds their lock."""

    def __init__(self, folder: Path, about: dict[str, str]):
        self.folder, self.about, self.manifest = folder, about, folder / MANIFEST
        self.done: dict[str, dict[str, Any]] = {}

    def path(self, key: str) -> Path:
        """Return the file of a trial."""
        return self.folder / f"trial_{key}.json"

    def read(self, settings: Settings) -> None:
        """Read the trials that are done; refuse the folder of another sweep."""
        theirs = self._sound(self.manifest)
        kept = {key: self._sound(self.path(key)) for key in settings}
        self.done = {key: done for key, done in kept.items() if done}
        for each in filter(None, (theirs, *self.done.values())):
            self._check_function(each)
        if theirs:
            self._check_trials({cache_key(trial): trial for trial in theirs["trials"]}, settings)
        sweep_strays(self.folder.glob(".trial_*.tmp"))

    def begin(self, settings: Settings) -> None:
        """Write what the folder is of, if it is new."""
        if not self.manifest.exists():
            self._write(self.manifest, {"trials": list(settings.values())})

    def keep(self, key: str, trial: dict[str, Any], answer: str) -> None:
        """Write the file of a trial that is done."""
        self.done[key] = self._write(self.path(key), {"trial": trial, **json.loads(answer)})

    def _write(self, path: Path, content: dict[str, Any]) -> dict[str, Any]:
        """Write a file with the digest of its content, and return what it holds."""
        text = json.dumps({"schema": SCHEMA, **self.about, **content})
        written = json.loads(text)
        write_safely(path, (json.dumps({**written, "sha256": _digest(text)}, indent=1) + "\n").encode())
        return written

    def _sound(self, path: Path) -> dict[str, Any]:
        """Return what a file holds, {} where there is none; a damaged one is set aside."""
        try:
            return _read(path) if path.exists() else {}
        except DamagedFileError as error:
            print(f"{error} It is set aside.")
            set_aside(path)
            return {}

    def _check_function(self, theirs: dict[str, Any]) -> None:
        for name in ("function", "version", "source"):
            if theirs[name] != self.about[name]:
                both = f"the {name} {theirs[name]!r}, and this is one of {self.about[name]!r}"
                changed = f"{theirs['function']} as it was before its text was changed"
                raise ParameterError(self._refusal(changed if name == "source" else both))

    def _check_trials(self, theirs: Settings, mine: Settings) -> None:
        for whose, ones, others in (("that", theirs, mine), ("this", mine, theirs)):
            if only := [short(trial) for key, trial in ones.items() if key not in others]:
                both = f"{len(theirs)} trials, and this is one of {len(mine)}"
                raise ParameterError(self._refusal(f"{both}: only {whose} one has {only[0]}"))

    def _refusal(self, what: str) -> str:
        must = "'folder' must be new, or that of this sweep"
        return f"{must}. {self.folder} holds a sweep of {what}. Name another folder, or delete that one."


def _read(path: Path) -> dict[str, Any]:
    """Return what a file of a sweep holds; raise a DamagedFileError if it is not as it was written."""
    try:
        content = json.loads(read_file(path))
        schema, digest = content["schema"], content.pop("sha256")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedFileError(f"{path} is damaged, or was not written by a sweep.") from error
    if digest != _digest(json.dumps(content)):
        raise DamagedFileError(f"{path} is damaged: its SHA-256 is not the one it was written with.")
    if schema != SCHEMA:
        raise StorageError(f"{path} has schema {schema!r}, and this kd_lab reads schema {SCHEMA}. Update kd_lab.")
    return content


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
