"""Run one function with many settings, on all cores or on a cluster, and keep each result when it is there."""

import ast
import asyncio
import hashlib
import inspect
import itertools
import json
import os
import queue
import secrets
import signal
import socket
import sys
import textwrap
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import lru_cache, partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from joblib.externals.loky import cpu_count
from joblib.externals.loky.backend import get_context
from joblib.externals.loky.cloudpickle_wrapper import dumps, loads
from tqdm import tqdm

from kd_lab.environment import optional, use_one_thread
from kd_lab.errors import (
    DamagedFileError,
    ParameterError,
    SetupError,
    StorageError,
    SweepError,
    check_choice,
    check_kind,
    check_number,
    check_that,
    check_whole_number,
    described,
    reason,
)
from kd_lab.storage import cache_key, file_path, lock, read_file, set_aside, sweep_strays, write_safely

RERUNS = 3  # of a trial whose worker was lost
MAX_NAMED = 3  # trials in a message
MANIFEST, SCHEMA = "sweep.json", 1
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
GRACE = 2.0  # seconds that a process gets to end
LOOK = 1.0  # seconds between two looks at the machines of a cluster
ONE_TRIAL = threading.Lock()  # in a process: trials side by side would draw from the same source of random numbers

Settings = dict[str, dict[str, Any]]  # the trials by their keys


@dataclass(frozen=True)
class KeptTrial:
    """A trial that is done: its settings, and what it returned or the error that it raised."""

    trial: dict[str, Any]
    result: Any
    error: str  # "" where there was none
    traceback: str
    seconds: float
    host: str  # on which it ran


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
    the address of its scheduler, such as "tcp://10.0.0.1:8786", on that cluster, one trial at a time in a process;
    "sequential" in this process, to look for a mistake. A trial has one torch thread.

    A trial whose worker is lost runs again, three times at most. A machine of a cluster that is not heard of for
    `timeout` seconds is named, and what it ran runs elsewhere; a SetupError comes where none is left, or no scheduler
    answers. A trial that raises, or returns what JSON can't keep, is kept with its error. When the others are done, a
    SweepError names it and has their `results`. `retry_failed=True` runs it once more.

    Raises a ParameterError for the folder of another sweep: of other trials, of another function, or of one whose text
    has changed. What the function calls isn't looked at, nor are its data: where they change, give another `version`.
    """
    settings = _checked_trials(function, trials)
    seconds = check_number("timeout", timeout, "(0, 1e9)")
    count = cpu_count() if workers is None else check_whole_number("workers", workers, "[1, 1000]")
    start = partial(_backend(backend), backend=backend, function=function, payload=_packed(function), timeout=seconds)
    kept = _Folder(file_path(folder), {**_about(function), "version": version})
    with lock(kept.manifest):
        kept.read(settings)
        waiting = [key for key in settings if key not in kept.done or (retry_failed and kept.done[key]["error"])]
        lost = _run(start, count, settings, waiting, kept, progress) if waiting else {}
    return _results(settings, kept, lost)


def load_sweep(folder: str | os.PathLike) -> list[KeptTrial]:
    """Return the trials of a sweep that are done, in their order, also while it runs.

    Raises a StorageError where there is none, and a DamagedFileError for a file that is not as it was written.
    """
    kept = _Folder(file_path(folder), {})
    paths = [kept.path(cache_key(trial)) for trial in _read(kept.manifest)["trials"]]
    names = [field.name for field in fields(KeptTrial)]
    return [KeptTrial(**{name: done[name] for name in names}) for done in map(_read, filter(Path.exists, paths))]


def _run(
    start: Callable[..., Any], count: int, settings: Settings, waiting: list[str], kept: "_Folder", progress: bool
) -> dict[str, str]:
    """Run the trials that wait, keep each, and return how those ended whose worker was lost again and again."""
    lost = {}
    done, all_of_them = len(settings) - len(waiting), len(settings)
    with (
        start(count=min(count, len(waiting))) as pool,
        tqdm(None, "sweep", all_of_them, initial=done, unit="trial", file=sys.stdout, disable=not progress) as bar,
    ):
        kept.begin(settings)
        for key, answer in _answers(pool, settings, waiting):
            if isinstance(answer, _Lost):
                lost[key] = f"its worker was lost {RERUNS + 1} times; at last, {answer.how}"
            else:
                kept.keep(key, settings[key], answer)
            bar.update()
    return lost


def _answers(pool: Any, settings: Settings, keys: list[str]) -> Iterator[tuple[str, Any]]:
    """Yield each trial's answer when it is there; a trial whose worker is lost waits for another one."""
    waiting, running, losses = deque(keys), set[str](), Counter[str]()
    while waiting or running:
        while waiting and pool.free:
            running.add(key := waiting.popleft())
            pool.begin(key, settings[key])
        for key, answer in pool.answers():
            running.discard(key)
            if isinstance(answer, _Lost) and losses[key] < RERUNS:
                losses[key] += 1
                waiting.append(key)
                _say(f"{answer.how}; it runs again: {_short(settings[key])}")
            else:
                yield key, answer


def _say(text: str) -> None:
    tqdm.write(text, file=sys.stdout)  # above the bar


def _results(settings: Settings, kept: "_Folder", lost: dict[str, str]) -> list[Any]:
    """Return the results in the order of the trials, or raise a SweepError that names those that gave none."""
    results = [kept.done[key]["result"] if key in kept.done else None for key in settings]
    failed = {key: kept.done[key]["error"] for key in settings if key in kept.done and kept.done[key]["error"]} | lost
    if failed:
        named = "; ".join(f"{_short(settings[key])}: {failed[key]}" for key in list(failed)[:MAX_NAMED])
        raise SweepError(
            f"{len(failed)} of {len(settings)} trials gave no result. {named}{'; …' * (len(failed) > MAX_NAMED)}. The "
            f"others are kept in {kept.folder}; load_sweep() reads all, and retry_failed=True runs these again.",
            results=results,
        )
    return results


def _checked_trials(function: Callable[..., Any], trials: Iterable[dict[str, Any]]) -> Settings:
    """Return the trials by their keys; raise a ParameterError for one that can't run, or is the same as another."""
    allowed = "one or more dicts of the function's arguments by name"
    check_that("function", function, callable(function), "a function")
    check_kind("trials", trials, Iterable, allowed)
    settings, signature = Settings(), _signature(function)
    for number, trial in enumerate(trials):
        check_kind(f"trials[{number}]", trial, dict, "a dict of the function's arguments by name")
        try:
            signature.bind(**trial)
        except TypeError as error:
            raise ParameterError(f"trials[{number}], {_short(trial)}, does not fit: {reason(error)}.") from error
        if where := _not_json(trial):
            raise ParameterError(f"trials[{number}] must be of JSON values: {where}.")
        if (key := cache_key(trial)) in settings:
            first = list(settings).index(key)
            raise ParameterError(f"trials[{first}] and trials[{number}] are the same: {_short(trial)}.")
        settings[key] = dict(trial)
    check_that("trials", list(settings), settings, allowed)
    return settings


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(function)
    except ValueError:  # it is built in, and does not say what it takes
        return inspect.signature(lambda **_: None)


def _short(trial: dict[str, Any]) -> str:
    return f"{trial!r:.120}"


def _not_json(value: Any, place: str = "") -> str:
    """Return where a value has a part that JSON can't keep, and what it is; "" where it has none."""
    if isinstance(value, dict):
        if odd := [key for key in value if not isinstance(key, (str, int, float))]:
            return f"{place or 'it'} has the key {described(odd[0])}"
        return next(filter(None, (_not_json(each, f"{place}[{key!r}]") for key, each in value.items())), "")
    if isinstance(value, (list, tuple)):
        return next(filter(None, (_not_json(each, f"{place}[{index}]") for index, each in enumerate(value))), "")
    fits = value is None or isinstance(value, (str, int, float))
    return "" if fits else f"{place or 'it'} is {described(value)}"


def _packed(function: Callable[..., Any]) -> bytes:
    """Return a function as bytes that another process can load."""
    try:
        return dumps(function)
    except Exception as error:  # of any kind, since it comes from what the function holds
        raise ParameterError(
            f"'function' can't be sent to another process: {reason(error)}. Let the function itself load or open it."
        ) from error


@lru_cache(maxsize=1)
def _loaded(payload: bytes) -> Callable[..., Any]:
    try:
        return loads(payload)
    except Exception as error:
        raise SetupError(
            f"The function can't be loaded on {socket.gethostname()}: {reason(error)}. Install there what it uses."
        ) from error


def _about(function: Callable[..., Any]) -> dict[str, str]:
    """Return the name of a function and a digest of its text, which comments and line breaks don't change."""
    if isinstance(function, partial):
        about, given = _about(function.func), [list(function.args), function.keywords]
        if where := _not_json(given):
            raise ParameterError(f"what 'function' is given by partial must be JSON values: {where}.")
        return {**about, "function": f"{about['function']} with {json.dumps(given)}"}
    named = function if hasattr(function, "__qualname__") else type(function)
    source = ""
    with suppress(OSError, TypeError):  # typed into a terminal, or built in
        source = textwrap.dedent(inspect.getsource(named))
    with suppress(SyntaxError):  # a lambda amid a call
        source = ast.unparse(ast.parse(source))
    return {"function": f"{named.__module__}.{named.__qualname__}", "source": _digest(source)[:12]}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class _Folder:
    """The files of a sweep: a manifest that says of which, and one for each trial that is done."""

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
            _say(f"{error} It is set aside.")
            set_aside(path)
            return {}

    def _check_function(self, theirs: dict[str, Any]) -> None:
        for name in ("function", "version", "source"):
            if theirs[name] != self.about[name]:
                both = f"the {name} {theirs[name]!r}, and this is one of {self.about[name]!r}"
                changed = f"{theirs['function']} as it was before its text was changed"
                raise ParameterError(self._refusal(changed if name == "source" else both))

    def _check_trials(self, theirs: Settings, mine: Settings) -> None:
        if theirs.keys() != mine.keys():
            both = [f"only {whose} has {_short(first)}" for whose, first in self._differing(theirs, mine)]
            counts = f"{len(theirs)} trials, and this is one of {len(mine)}"
            raise ParameterError(self._refusal(f"{counts}: {'; '.join(both)}"))

    def _differing(self, theirs: Settings, mine: Settings) -> Iterator[tuple[str, dict[str, Any]]]:
        for whose, ones, others in (("that one", theirs, mine), ("this one", mine, theirs)):
            yield from [(whose, trial) for key, trial in ones.items() if key not in others][:1]

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


@dataclass(frozen=True)
class _Lost:
    """The answer of a trial whose worker was lost."""

    how: str


def _answer(function: Callable[..., Any], trial: dict[str, Any]) -> str:
    """Run one trial and return what is kept of it, as JSON."""
    threads, start = torch.get_num_threads(), time.perf_counter()
    use_one_thread()
    found = {"result": None, "error": "", "traceback": ""}
    try:
        found["result"] = function(**trial)
        if where := _not_json(found["result"]):
            found |= {"result": None, "error": f"What it returned can't be kept, since {where}: JSON has no such value"}
    except (Exception, SystemExit) as error:  # noqa: BLE001 of any kind: the other trials go on
        found |= {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    finally:
        torch.set_num_threads(threads)
    seconds = round(time.perf_counter() - start, 4)
    return json.dumps({**found, "seconds": seconds, "host": socket.gethostname()})


def _backend(backend: Any) -> type:
    """Return the kind of workers that a backend stands for."""
    kinds = {"loky": _Processes, "sequential": _Here}
    is_name = isinstance(backend, str) and ":" not in backend
    if is_name:
        check_choice("backend", backend, [*kinds, "the address of a Dask scheduler"])
    is_dask = isinstance(backend, str) or hasattr(backend, "scheduler_info")
    check_that("backend", backend, is_dask, "'loky', 'sequential', a Dask client or cluster, or its address")
    return kinds[backend] if is_name else _Cluster


class _Here:
    """This process, one trial after another."""

    def __init__(self, function: Callable[..., Any], **_: Any):
        self.function, self.begun = function, deque[tuple[str, dict[str, Any]]]()

    def __enter__(self) -> "_Here":
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    @property
    def free(self) -> bool:
        return not self.begun

    def begin(self, key: str, trial: dict[str, Any]) -> None:
        self.begun.append((key, trial))

    def answers(self) -> Iterator[tuple[str, str]]:
        key, trial = self.begun.popleft()
        yield key, _answer(self.function, trial)


class _Processes:
    """Processes of this machine, started as joblib's loky does: without a fork, and without running the script again.

    Each has a pipe of its own: the end of a process is the end of its pipe, whenever it comes, and it tells which trial
    was lost. In loky's own executor all processes end with one that is killed, and the trials of all are lost.
    """

    def __init__(self, payload: bytes, count: int, **_: Any):
        self.payload = payload
        self.idle = [self._worker() for _ in range(count)]
        self.running: dict[Any, tuple[str, BaseProcess]] = {}

    def _worker(self) -> tuple[Connection, BaseProcess]:
        context = get_context("loky")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, self.payload), env=ONE_THREAD)
        process.start()
        theirs.close()
        return ours, process

    def __enter__(self) -> "_Processes":
        return self

    def __exit__(self, *_error: object) -> None:
        for pipe, (_, process) in self.running.items():
            process.terminate()
            self.idle.append((pipe, process))
        for pipe, _ in self.idle:
            pipe.close()  # at which a process ends that has nothing to do
        for _, process in self.idle:
            process.join(GRACE)
            process.terminate()
            process.join()

    @property
    def free(self) -> bool:
        return bool(self.idle)

    def begin(self, key: str, trial: dict[str, Any]) -> None:
        pipe, process = self.idle.pop()
        with suppress(OSError):  # it has ended meanwhile, which its pipe will tell
            pipe.send(trial)
        self.running[pipe] = key, process

    def answers(self) -> Iterator[tuple[str, str | _Lost]]:
        pipe: Any
        for pipe in wait(list(self.running)):
            key, process = self.running.pop(pipe)
            try:
                answer = pipe.recv()
            except (EOFError, OSError):
                process.join()
                self.idle.append(self._worker())
                yield key, _Lost(f"The worker {process.pid} ended with exit code {process.exitcode}")
                continue
            self.idle.append((pipe, process))
            if isinstance(answer, Exception):
                raise answer
            yield key, answer


def _work(pipe: Connection, payload: bytes) -> None:
    """Answer the trials that come through a pipe, in a process that ends with its caller."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the caller too, which ends this process
    trials = queue.SimpleQueue[dict[str, Any] | None]()
    threading.Thread(target=_listen, args=(pipe, trials), daemon=True).start()
    for trial in iter(trials.get, None):
        try:
            answer: Any = _answer(_loaded(payload), trial)
        except SetupError as error:
            answer = error
        sys.stdout.flush()
        try:
            pipe.send(answer)
        except OSError:  # the caller has ended
            return


def _listen(pipe: Connection, trials: queue.SimpleQueue) -> None:
    """Hand on the trials that come, and end the process with its caller, whose end is that of the pipe."""
    with suppress(EOFError, OSError):
        trial = pipe.recv()
        while not pipe.poll():  # else it is the end: nothing is sent before the trial is answered
            trials.put(trial)
            trial = pipe.recv()
    trials.put(None)
    time.sleep(1)
    os._exit(1)  # the caller has ended: nobody waits for the trial that still runs


class _Cluster:
    """The workers of a Dask cluster, which may be on other machines."""

    free = True  # the scheduler has a queue of its own

    def __init__(self, backend: Any, payload: bytes, timeout: float, **_: Any):
        self.dask, self.payload, self.timeout = optional("distributed", "dask", "distributed"), payload, timeout
        self.client, self.own = self._connected(backend)
        self.address = self.client.scheduler.address
        self.name, self.numbers = f"kd_lab-sweep-{secrets.token_hex(8)}", itertools.count()
        self.futures: dict[str, tuple[str, Any]] = {}
        self.done = queue.SimpleQueue[str]()
        self.heard: dict[str, tuple[float, float]] = {}
        self.looked = self.alive = time.monotonic()
        self.gone: list[str] = []
        self.most_threads = 1

    def _connected(self, backend: Any) -> tuple[Any, bool]:
        """Return a client, and whether it is to be closed at the end."""
        if isinstance(backend, self.dask.Client):
            check_that("backend", backend, not backend.asynchronous, "a client that isn't asynchronous")
            return backend, False
        try:
            if isinstance(backend, str):
                with ThreadPoolExecutor(1) as elsewhere:  # a notebook has a running loop of its own
                    elsewhere.submit(asyncio.run, self._greet(backend)).result()
            return self.dask.Client(backend, timeout=self.timeout, set_as_default=False), True
        except Exception as error:  # of many kinds, where what answers is no scheduler
            raise SetupError(
                f"No Dask scheduler answers at {backend} ({reason(error)}; waited {self.timeout:g} s at most). Look "
                "whether it runs, and whether this machine can reach it."
            ) from error

    async def _greet(self, address: str) -> None:
        """Raise an error where no scheduler answers; a client waits for ever if its connection is taken in silence."""
        security = self.dask.Security().get_connection_args("client")
        comm = await asyncio.wait_for(self.dask.connect(address, timeout=self.timeout, **security), self.timeout)
        comm.abort()

    def __enter__(self) -> "_Cluster":
        return self

    def __exit__(self, *_error: object) -> None:
        with suppress(OSError, RuntimeError, SetupError):  # the scheduler may be gone
            self._workers()  # which waits for its answer no longer than timeout
            self.client.cancel([future for _, future in self.futures.values()])
            self.client.set_metadata([self.name], {})
        with suppress(OSError):
            if self.own:
                self.client.close()

    def begin(self, key: str, trial: dict[str, Any]) -> None:
        name = f"{self.name}-{next(self.numbers)}"
        arguments = self.payload, trial, self.name, name
        future = self.client.submit(_work_in_cluster, *arguments, key=name, pure=False)
        self.futures[name] = key, future
        future.add_done_callback(lambda _: self.done.put(name))

    def answers(self) -> Iterator[tuple[str, str | _Lost]]:
        with suppress(queue.Empty):
            name = self.done.get(timeout=LOOK)
            answer = self._result(name)
            if answer is not None:
                yield self.futures.pop(name)[0], answer
        if time.monotonic() - self.looked > LOOK:
            self._look()

    def _result(self, name: str) -> str | _Lost | None:
        """Return the answer of a trial, None if its worker was lost before it was fetched: Dask asks another one."""
        _, future = self.futures[name]
        try:
            answer = future.result(timeout=self.timeout)
        except self.dask.KilledWorker as error:
            return _Lost(f"The worker at {error.last_worker.address} was lost")
        except OSError as error:
            if future.done():
                return _Lost(f"A worker lost its connection ({reason(error)})")
            future.add_done_callback(lambda _: self.done.put(name))
            return None
        except SetupError:
            raise
        except Exception as error:
            raise SetupError(f"The Dask cluster at {self.address} can't run trials: {reason(error)}") from error
        future.release()
        return answer or _Lost(f"The worker at {' or '.join(self._look()) or 'an unknown address'} was lost")

    def _look(self) -> list[str]:
        """Look after the workers, and return the addresses of those that have gone; raise an error if none is left."""
        now = self.looked = time.monotonic()
        workers = self._workers()
        self.gone = [address for address in self.heard if address not in workers] or self.gone
        if (most := max((worker["nthreads"] for worker in workers.values()), default=1)) > self.most_threads:
            self.most_threads = most
            _say(f"A worker has {most} threads and runs one trial at a time all the same: start more, with one each.")
        seen = {address: worker["last_seen"] for address, worker in workers.items()}
        for address, last in seen.items():
            if self.heard.get(address, (0, 0))[0] != last:
                self.heard[address] = last, now
        self.heard = {address: self.heard[address] for address in seen}
        for address in [address for address, (_, since) in self.heard.items() if now - since > self.timeout]:
            _say(f"The worker at {address} has not been heard of for {self.timeout:g} s; what it ran runs elsewhere.")
            self.client.retire_workers([address], close_workers=False, remove=True)
            self.gone = [address]
        self.alive = now if seen else self.alive
        if now - self.alive > self.timeout:
            lost = f" Lost: {', '.join(self.gone)}." if self.gone else ""
            raise SetupError(f"The Dask cluster at {self.address} has had no worker for {self.timeout:g} s.{lost}")
        return self.gone

    def _workers(self) -> dict[str, Any]:
        """Return what the scheduler knows of each worker, by its address."""
        ask = self.client.scheduler.identity
        try:
            return self.client.sync(ask, n_workers=-1, callback_timeout=self.timeout)["workers"]
        except (OSError, RuntimeError) as error:
            raise SetupError(f"The Dask scheduler at {self.address} does not answer: {reason(error)}") from error


def _work_in_cluster(payload: bytes, trial: dict[str, Any], sweep: str, name: str) -> str:
    """Answer a trial on a worker of a Dask cluster, "" if another worker has begun it.

    Dask runs a task again where its worker is lost, even after its result was fetched. Which trial runs again, and how
    often, is for the caller to say: it alone knows what is acknowledged.
    """
    from distributed import get_client  # here, since not every learner has it

    client = get_client()
    with ONE_TRIAL:
        if client.get_metadata([sweep, name], default=False):
            return ""
        client.set_metadata([sweep, name], True)
        return _answer(_loaded(payload), trial)
