"""Run trials in processes of this machine, each with a pipe of its own, which tells when the process has ended."""

import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from joblib.externals.loky.backend import get_context

from kd_lab.errors import SetupError
from kd_lab.sweeps.work import Lost, answer

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
GRACE = 2.0  # seconds that a process gets to end


class Processes:
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

    def close(self) -> None:
        """End the processes, also amid a trial."""
        for pipe, (_, process) in self.running.items():
            process.terminate()
            self.idle.append((pipe, process))
        for pipe, _ in self.idle:
            pipe.close()  # at which a process ends that has nothing to do
        for _, process in self.idle:
            process.join(GRACE)
            process.terminate()
            process.join()

    def begin(self, key: str, trial: dict[str, Any]) -> None:
        """Send a trial to a process that has nothing to do."""
        pipe, process = self.idle.pop()
        with suppress(OSError):  # it has ended meanwhile, which its pipe will tell
            pipe.send(trial)
        self.running[pipe] = key, process

    def answers(self) -> Iterator[tuple[str, str]]:
        """Wait for answers, and yield them; in place of a process that has ended another one starts."""
        pipe: Any
        for pipe in wait(list(self.running)):
            key, process = self.running.pop(pipe)
            try:
                found = pipe.recv()
            except (EOFError, OSError):
                process.join()
                self.idle.append(self._worker())
                yield key, Lost(f"The worker {process.pid} ended with exit code {process.exitcode}")
                continue
            self.idle.append((pipe, process))
            if isinstance(found, Exception):
                raise found
            yield key, found


def _work(pipe: Connection, payload: bytes) -> None:
    """Answer the trials that come through a pipe, in a process that ends with its caller."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the caller too, which ends this process
    trials = queue.SimpleQueue[dict[str, Any] | None]()
    threading.Thread(target=_listen, args=(pipe, trials), daemon=True).start()
    for trial in iter(trials.get, None):
        try:
            found: Any = answer(payload, trial)
        except SetupError as error:
            found = error
        sys.stdout.flush()
        try:
            pipe.send(found)
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
