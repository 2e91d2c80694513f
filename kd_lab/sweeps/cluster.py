"""Run trials on the workers of a Dask cluster, and name a machine that is lost."""

import asyncio
import itertools
import queue
import secrets
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from kd_lab.environment import optional
from kd_lab.errors import SetupError, check_that, reason
from kd_lab.sweeps.work import Lost, answer, say

LOOK = 1.0  # seconds between two looks at the machines of a cluster
ONE_TRIAL = threading.Lock()  # in a process: trials side by side would draw from the same source of random numbers


class Cluster:
    """The workers of a Dask cluster, which may be on other machines."""

    idle = True  # the scheduler has a queue of its own

    def __init__(self, backend: Any, payload: bytes, timeout: float, **_: Any):
        self.dask, self.payload, self.timeout = optional("distributed", "dask", "distributed"), payload, timeout
        self.client, self.own = self._connected(backend)
        self.address = self.client.scheduler.address
        self.name, self.numbers = f"kd_lab-sweep-{secrets.token_hex(8)}", itertools.count()
        self.futures: dict[str, tuple[str, Any]] = {}
        self.done = queue.SimpleQueue[str]()
        self.heard: dict[str, tuple[float, float]] = {}
        self.looked, self.alive = 0.0, time.monotonic()
        self.gone: list[str] = []

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

    def close(self) -> None:
        """Give up the trials that still run, and the connection if it isn't the caller's."""
        with suppress(OSError, RuntimeError, SetupError):  # the scheduler may be gone
            self._workers()  # which waits for its answer no longer than timeout
            self.client.cancel([future for _, future in self.futures.values()])
            self.client.set_metadata([self.name], {})
        with suppress(OSError):
            if self.own:
                self.client.close()

    def begin(self, key: str, trial: dict[str, Any]) -> None:
        """Send a trial to the scheduler."""
        name = f"{self.name}-{next(self.numbers)}"
        arguments = self.payload, trial, self.name, name
        future = self.client.submit(work_in_cluster, *arguments, key=name, pure=False)
        self.futures[name] = key, future
        future.add_done_callback(lambda _: self.done.put(name))

    def answers(self) -> Iterator[tuple[str, str]]:
        """Look after the machines, so that one can be named that is lost, and yield the next answer, if one comes."""
        if time.monotonic() - self.looked > LOOK:
            self._look()
        with suppress(queue.Empty):
            name = self.done.get(timeout=LOOK)
            if (found := self._result(name)) is not None:
                yield self.futures.pop(name)[0], found

    def _result(self, name: str) -> str | None:
        """Return the answer of a trial, None if its worker was lost before it was fetched: Dask asks another one."""
        _, future = self.futures[name]
        try:
            found = future.result(timeout=self.timeout)
        except self.dask.KilledWorker as error:
            return Lost(f"The worker at {error.last_worker.address} was lost")
        except OSError as error:
            if future.done():
                return Lost(f"A worker lost its connection ({reason(error)})")
            future.add_done_callback(lambda _: self.done.put(name))
            return None
        except SetupError:
            raise
        except Exception as error:
            raise SetupError(f"The Dask cluster at {self.address} can't run trials: {reason(error)}") from error
        future.release()
        return found or Lost(f"The worker at {' or '.join(self._look()) or 'an unknown address'} was lost")

    def _look(self) -> list[str]:
        """Look after the workers, and return the addresses of those that have gone; raise an error if none is left."""
        now, was = time.monotonic(), self.heard
        self.looked = now
        seen = {address: worker["last_seen"] for address, worker in self._workers().items()}
        self.gone = [address for address in was if address not in seen] or self.gone
        self.heard = {
            address: was[address] if was.get(address, (None,))[0] == last else (last, now)
            for address, last in seen.items()
        }
        for address in [address for address, (_, since) in self.heard.items() if now - since > self.timeout]:
            say(f"The worker at {address} has not been heard of for {self.timeout:g} s; what it ran runs elsewhere.")
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


def work_in_cluster(payload: bytes, trial: dict[str, Any], sweep: str, name: str) -> str:
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
        return answer(payload, trial)
