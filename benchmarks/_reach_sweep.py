"""Kill workers and callers of a sweep at random, and time what a sweep adds to its trials."""

import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import torch
from tabulate import tabulate

from kd_lab.storage import append
from kd_lab.sweeps import load_sweep, sweep

TRIALS, WORKERS_KILLED, CALLERS_KILLED = 200, 20, 5
WORKERS = 2
PRODUCTS = 60  # of matrices, in a trial: a tenth of a second
WARM_UP, TRIVIAL, WAITING, COMPUTING = 10, 200, 40, 40  # trials
WAIT = 0.5  # seconds
DELAY, PAUSE = 0.3, 0.005  # seconds
WORKER = "popen_loky"  # stands in the command line of loky's workers


def sweep_figures() -> dict[str, float]:
    """Print what became of the trials amid kills, and what a sweep costs and gains; return the figures.

    The speed-up is that of trials that wait, as for another machine: it needs no second core. That of trials that
    compute stands beside it.
    """
    figures = {**kill_campaign(TRIALS, WORKERS_KILLED, CALLERS_KILLED), "overhead_ms": overhead_ms()}
    figures["dask_speedup"] = dask_speedup(wait, WAITING)
    figures["dask_speedup_computing"] = dask_speedup(compute, COMPUTING)
    print(tabulate(figures.items(), ["sweep", ""], floatfmt=".2f"))
    print(f"dask_speedup: trials that wait {WAIT} s; computing: on {psutil.cpu_count(logical=False)} physical core(s)")
    return {f"reach.sweep.{name}": value for name, value in figures.items()}


def marked(number: int, log: str) -> list[float]:
    """Leave a mark that this trial has begun, then compute for a while; the result is always the same."""
    append(Path(log), f"{number} {time.time_ns()}\n".encode())
    return compute(number)


def compute(number: int) -> list[float]:
    """Multiply matrices that depend on the number."""
    generator = torch.Generator().manual_seed(number)
    matrix = torch.rand(400, 400, generator=generator)
    product = matrix
    for _ in range(PRODUCTS):
        product = product @ matrix
        product /= product.norm()
    return product[0, :5].tolist()


def wait(number: int) -> int:
    """Wait, as for another machine."""
    time.sleep(WAIT)
    return number


def nothing(number: int) -> int:
    """Do nothing."""
    return number


def numbered(count: int, **settings: object) -> list[dict]:
    """Return as many trials."""
    return [{"number": number, **settings} for number in range(count)]


def kill_campaign(trials: int, workers: int, callers: int) -> dict[str, int]:
    """Kill so many workers and callers of a sweep, and count the trials that are lost or run twice.

    One is lost if it isn't kept, or not with the result of one that nobody disturbed; it ran twice if it was begun once
    more after it was acknowledged.
    """
    kills = ["worker"] * workers + ["caller"] * callers
    random.shuffle(kills)
    places = sorted(random.choices(range(trials - len(kills)), k=len(kills)))
    with tempfile.TemporaryDirectory() as name:
        folder, log = Path(name) / "sweep", Path(name) / "log"
        disturb(folder, log, trials, list(zip(places, kills, strict=True)))
        kept = {each.trial["number"]: each.result for each in load_sweep(folder)}
        runs, late = count_runs(folder, log, trials)
    print(f"{trials} trials ran {runs} times, while {workers} workers and {callers} callers were killed")
    lost = sum(kept.get(number) != compute(number) for number in range(trials))
    return {"trials": len(kept), "lost": lost, "twice": late}


def disturb(folder: Path, log: Path, trials: int, kills: list[tuple[int, str]]) -> None:
    """Run a sweep to its end; each kill comes when so many trials are acknowledged, and a caller is started again."""
    caller = start_caller(folder, log, trials)
    for place, victim in kills:
        while len(list(folder.glob("trial_*.json"))) < place and caller.poll() is None:
            time.sleep(PAUSE)
        time.sleep(random.uniform(0, DELAY))
        if victim == "caller":
            caller.kill()
            caller.wait()
            caller = start_caller(folder, log, trials)
        else:
            kill_worker(caller)
    assert caller.wait() == 0, "the caller failed"


def start_caller(folder: Path, log: Path, trials: int) -> subprocess.Popen:
    """Run the sweep in a process of its own."""
    call = f"from benchmarks._reach_sweep import run_marked; run_marked({str(folder)!r}, {str(log)!r}, {trials})"
    return subprocess.Popen([sys.executable, "-c", call])


def run_marked(folder: str, log: str, trials: int) -> None:
    """Run the sweep that is disturbed."""
    sweep(marked, numbered(trials, log=log), folder, workers=WORKERS, progress=False)


def kill_worker(caller: subprocess.Popen) -> None:
    """Kill one of the workers of a caller, as soon as there is one."""
    while not (workers := workers_of(psutil.Process(caller.pid))):
        time.sleep(PAUSE)
    with suppress(psutil.NoSuchProcess):
        random.choice(workers).kill()


def workers_of(caller: psutil.Process) -> list[psutil.Process]:
    """Return the processes in which a caller runs its trials."""
    return [each for each in caller.children() if WORKER in " ".join(each.cmdline())]


def count_runs(folder: Path, log: Path, trials: int) -> tuple[int, int]:
    """Return how often trials were begun, and how often after the file was there that acknowledges them."""
    runs = [tuple(map(int, line.split())) for line in log.read_text().splitlines()]
    paths = {json.loads(path.read_text())["trial"]["number"]: path for path in folder.glob("trial_*.json")}
    return len(runs), sum(number in paths and begun > paths[number].stat().st_mtime_ns for number, begun in runs)


def overhead_ms() -> float:
    """Return the milliseconds from one trial that does nothing to the next, by their files; the first are left out.

    Until then the workers start.
    """
    with tempfile.TemporaryDirectory() as folder:
        sweep(nothing, numbered(WARM_UP + TRIVIAL), folder, workers=WORKERS, progress=False)
        times = sorted(path.stat().st_mtime_ns for path in Path(folder).glob("trial_*.json"))[WARM_UP - 1 :]
    return (times[-1] - times[0]) / 1e6 / TRIVIAL


def dask_speedup(function: Callable[[int], object], count: int) -> float:
    """Return how many times as fast a local Dask cluster of two workers is as one of one, once both are warm."""
    from distributed import LocalCluster  # here: the processes that import this file to run a trial don't need it

    taken = []
    for workers in (1, 2):
        with LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0") as cluster:
            seconds(nothing, WARM_UP, cluster)
            taken.append(seconds(function, count, cluster))
    return taken[0] / taken[1]


def seconds(function: Callable[[int], object], count: int, backend: object) -> float:
    """Return how long a sweep of so many trials takes."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        sweep(function, numbered(count), Path(folder) / "sweep", backend, workers=WORKERS, progress=False)
        return time.perf_counter() - start
