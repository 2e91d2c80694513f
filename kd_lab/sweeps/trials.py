"""Run the trials of a sweep that aren't done yet, again where a worker is lost, and keep each."""

import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import partial
from typing import Any

from joblib.externals.loky import cpu_count
from tqdm import tqdm

from kd_lab.errors import SweepError, check_choice, check_number, check_that, check_whole_number
from kd_lab.storage import file_path, lock
from kd_lab.sweeps.cluster import Cluster
from kd_lab.sweeps.kept import Folder, name_and_digest
from kd_lab.sweeps.processes import Processes
from kd_lab.sweeps.settings import Settings, checked_trials, short
from kd_lab.sweeps.work import Lost, packed, say

RERUNS = 3  # of a trial whose worker was lost
MAX_NAMED = 3  # trials in a message


def sweep(
    function: Callable[..., Any],
    trials: Iterable[dict[str, Any]],
    folder: str | os.PathLike,
    backend: Any = "loky",
    *,
    workers: int | None = None,
    timeout: float = 60,
    version: str = "",
    retry_failed: bool = False,
    progress: bool = True,
) -> list[Any]:
    """Return what `function(**trial)` returns for each trial, in their order, and keep each in a file of `folder`.

    A trial is acknowledged when its file is there: from then on it is never lost and never begun again. The same call,
    made again, goes on where it was stopped, even by a kill. Only the process that called writes, and it locks the
    folder: another caller waits, and a worker that outlives its caller can't write.

    Trials are dicts of JSON values, no two alike. Results come back as JSON keeps them: a tuple as a list, NaN as NaN.
    "loky" runs trials in as many processes of this machine as it has cores, or `workers`; a Dask client or cluster, or
    the address of its scheduler, such as "tcp://10.0.0.1:8786", on that cluster, one trial at a time in a process: give
    each of its workers one thread. A trial has one torch thread.

    A trial whose worker is lost runs again, three times at most. A machine of a cluster that is not heard of for
    `timeout` seconds is named, and what it ran runs elsewhere; a SetupError comes where none is left, or no scheduler
    answers. A trial that raises, or returns what JSON can't keep, is kept with its error. When the others are done, a
    SweepError names it and has their `results`. `retry_failed=True` runs it once more.

    Raises a ParameterError for the folder of another sweep: of other trials, of another function, or of one whose text
    has changed. What the function calls isn't looked at, nor are its data: where they change, give another `version`.
    """
    settings = checked_trials(function, trials)
    seconds = check_number("timeout", timeout, "(0, 1e9)")
    count = cpu_count() if workers is None else check_whole_number("workers", workers, "[1, 1000]")
    start = partial(_kind_of_workers(backend), backend=backend, payload=packed(function), timeout=seconds)
    kept = Folder(file_path(folder), {**name_and_digest(function), "version": version})
    with lock(kept.manifest):
        kept.read(settings)
        waiting = [key for key in settings if key not in kept.done or (retry_failed and kept.done[key]["error"])]
        lost = {}
        if waiting:
            with closing(start(count=min(count, len(waiting)))) as pool:
                kept.begin(settings)
                lost = _run(pool, settings, waiting, kept, progress)
    return _results(settings, kept, lost)


def _kind_of_workers(backend: Any) -> type:
    if isinstance(backend, str) and ":" not in backend:
        check_choice("backend", backend, ["loky", "the address of a Dask scheduler"])
        return Processes
    is_dask = isinstance(backend, str) or hasattr(backend, "scheduler_info")
    check_that("backend", backend, is_dask, "'loky', a Dask client or cluster, or its address")
    return Cluster


def _run(pool: Any, settings: Settings, waiting: list[str], kept: Folder, progress: bool) -> dict[str, str]:
    """Run the trials that wait, keep each, and return how those ended whose worker was lost again and again."""
    lost, done, total = {}, len(settings) - len(waiting), len(settings)
    with tqdm(None, "sweep", total, initial=done, unit="trial", file=sys.stdout, disable=not progress) as bar:
        for key, answer in _answers(pool, settings, waiting):
            if isinstance(answer, Lost):
                lost[key] = f"its worker was lost {RERUNS + 1} times; at last, {answer}"
            else:
                kept.keep(key, settings[key], answer)
            bar.update()
    return lost


def _answers(pool: Any, settings: Settings, keys: list[str]) -> Iterator[tuple[str, str]]:
    """Yield each trial's answer when it is there; a trial whose worker is lost waits for another one."""
    waiting, running, losses = deque(keys), set[str](), Counter[str]()
    while waiting or running:
        while waiting and pool.idle:
            running.add(key := waiting.popleft())
            pool.begin(key, settings[key])
        for key, answer in pool.answers():
            running.discard(key)
            if isinstance(answer, Lost) and losses[key] < RERUNS:
                losses[key] += 1
                waiting.append(key)
                say(f"{answer}; it runs again: {short(settings[key])}")
            else:
                yield key, answer


def _results(settings: Settings, kept: Folder, lost: dict[str, str]) -> list[Any]:
    """Return the results in the order of the trials, or raise a SweepError that names those that gave none."""
    results = [kept.done[key]["result"] if key in kept.done else None for key in settings]
    errors = {key: done["error"] for key, done in kept.done.items()} | lost
    failed = [f"{short(trial)}: {errors[key]}" for key, trial in settings.items() if errors[key]]
    if failed:
        raise SweepError(
            f"{len(failed)} of {len(settings)} trials gave no result. {'; '.join(failed[:MAX_NAMED])}"
            f"{'; …' * (len(failed) > MAX_NAMED)}. The others are kept in {kept.folder}; load_sweep() reads all, and "
            "retry_failed=True runs these again.",
            results=results,
        )
    return results
