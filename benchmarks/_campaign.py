"""Run a long campaign as sweeps, and record it part by part, with the test images that each network read wrongly."""

import base64
import inspect
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, reduce, wraps
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor, nn

from benchmarks import read, record
from kd_lab.data import Mnist, Split, load_mnist
from kd_lab.evaluation import accuracy, correct_answers
from kd_lab.storage import cache_folder, cache_key, contiguous
from kd_lab.sweeps import sweep

SEEDS = range(5)
TEST_IMAGES = 10_000


@dataclass(frozen=True)
class Campaign:
    """A campaign that runs in so many processes of this machine, or on the Dask cluster of an address."""

    name: str
    workers: int | None = None
    dask: str | None = None

    @property
    def folder(self) -> Path:
        """Return where the trials that are done are kept until the whole campaign is."""
        return cache_folder() / "campaigns" / self.name

    def seeds(self, part: str, function: Callable[..., Any], **settings: object) -> list:
        """Return what function(seed, **settings, data) returns for each seed."""
        return self.trials(part, function, [{**settings, "seed": seed} for seed in SEEDS])

    def grid(self, part: str, function: Callable[..., Any], **choices: Iterable) -> dict:
        """Return what function(seed, **choice, data) returns: by the text of each choice, and then for each seed."""
        names = (*choices, "seed")
        trials = [dict(zip(names, each, strict=True)) for each in product(*choices.values(), SEEDS)]
        found: dict = {}
        for trial, result in zip(trials, self.trials(part, function, trials), strict=True):
            *outer, last = (str(trial[name]) for name in choices)
            reduce(lambda place, name: place.setdefault(name, {}), outer, found).setdefault(last, []).append(result)
        return found

    def trials(self, part: str, function: Callable[..., Any], trials: list[dict]) -> list:
        """Return what function(**trial, data) returns for each trial; those that are done already aren't run again.

        Where the file that has the function has changed since, the trials that are kept are refused.
        """
        text = inspect.getsource(sys.modules[function.__module__])
        made_by = cache_key({"kd_lab": version("kd_lab"), "file": text})
        where = self.dask or "loky"
        settings = {"workers": self.workers, "version": made_by, "retry_failed": True}
        return sweep(with_mnist(function), trials, self.folder / part, where, **settings)

    def keep(self, part: str, measured: dict) -> None:
        """Record one part as soon as it is done."""
        keep(self.name, part, measured)


@contextmanager
def campaign(name: str, workers: int | None = None, dask: str | None = None) -> Iterator[Campaign]:
    """Give a campaign, and forget its trials when all of it has been recorded: the next one measures again."""
    made = Campaign(name, workers, dask)
    yield made
    shutil.rmtree(made.folder, ignore_errors=True)


def with_mnist(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with MNIST as its `data`, which each process loads once."""

    @wraps(function)
    def run(**trial: object) -> Any:
        return function(**trial, data=mnist())

    signature = inspect.signature(function)
    taken = [each for name, each in signature.parameters.items() if name != "data"]
    run.__signature__ = signature.replace(parameters=taken)
    return run


@cache
def mnist() -> Mnist:
    """Return MNIST, always the same one."""
    return load_mnist()


def packed(tensors: dict[str, Tensor]) -> str:
    """Return tensors as text, to be the result of a trial: its worker may be on another machine."""
    return base64.b64encode(safetensors.torch.save(contiguous(tensors))).decode()


def unpacked(text: str) -> dict[str, Tensor]:
    """Return the tensors of such a text."""
    return safetensors.torch.load(base64.b64decode(text))


def keep(name: str, part: str, measured: dict) -> None:
    """Record one part of a campaign as soon as it is done, beside those that were there before."""
    record(name, {**read(name), "seeds": list(SEEDS), "test_images": TEST_IMAGES, part: measured})


def scores(model: nn.Module, data: Mnist) -> dict[str, float]:
    """Return the errors in percent on both parts."""
    return {"validation_error": error(model, data.validation), "test_error": error(model, data.test)}


def answers(model: nn.Module, data: Mnist) -> dict:
    """Return the errors in percent on both parts, and the test images that a model reads wrongly."""
    wrong = (~correct_answers(model, data.test)).nonzero().flatten().tolist()
    return {**scores(model, data), "wrong": " ".join(map(str, wrong))}


def error(model: nn.Module, data: Split) -> float:
    """Return the error in percent."""
    return round(100 - 100 * accuracy(model, data).value, 2)
