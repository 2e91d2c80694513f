"""Measure the newest setting in the background; never show what an older one gave."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

Setting = dict[str, Any]


class Engine:
    """Hold the newest setting and the one worker that measures it.

    `measure(setting)` yields answers, each better than the one before, or None where it may be stopped; `draw(answer)`
    turns one into what `show` takes. Both run in the worker; `fail` takes an exception of either.
    """

    def __init__(
        self,
        measure: Callable[[Setting], Iterator[Any]],
        draw: Callable[[Any], Any],
        show: Callable[[Any], None],
        fail: Callable[[Exception], None],
    ):
        self._measure, self._draw, self._show, self._fail = measure, draw, show, fail
        self._changed = threading.Condition()
        self._waiting: Setting | None = None  # the newest setting, until the worker takes it
        self._worker: threading.Thread | None = None  # lives only while there is something to measure
        self.error: Exception | None = None  # of the newest setting

    def submit(self, setting: Setting) -> None:
        """Measure this setting instead of whatever is waiting or being measured; returns at once."""
        with self._changed:
            self._waiting = setting
            if self._worker is None:
                worker = threading.Thread(target=self._work, name="kd_lab panel")
                worker.start()  # it waits for us before it takes anything
                self._worker = worker

    @property
    def stale(self) -> bool:
        """Return whether a newer setting waits, or nobody any more, so that what is being measured is of no use."""
        return self._waiting is not None or not threading.main_thread().is_alive()  # Python ends and waits for us

    def wait(self) -> None:
        """Return when the newest setting has been measured to the end, or has failed."""
        with self._changed:
            while self._worker is not None:
                self._changed.wait(0.1)  # a wait without an end could not be interrupted on Windows

    def stop(self) -> None:
        """Give up whatever is being measured; what was shown stays."""
        with self._changed:
            if self._worker is not None:
                self._waiting = {}
        if threading.current_thread() is not self._worker:
            self.wait()

    def _work(self) -> None:
        try:
            while setting := self._take():
                try:
                    self._follow(setting)
                except Exception as error:  # noqa: BLE001 whatever came, the learner must see it
                    self._report(error)
        finally:  # whoever waits must not wait for a worker that has ended, however it did
            self._end()

    def _take(self) -> Setting | None:
        with self._changed:
            setting, self._waiting = self._waiting, None
            if setting:
                self.error = None
            else:
                self._end()  # under the same lock, so that no setting can come between
            return setting

    def _end(self) -> None:
        with self._changed:
            if self._worker is threading.current_thread():
                self._worker = None
                self._changed.notify_all()

    def _follow(self, setting: Setting) -> None:
        for answer in self._measure(setting):
            if self.stale:
                return
            if answer is not None:
                drawn = self._draw(answer)
                with self._changed:  # so that no newer setting can come between the look and the showing
                    if self._waiting is None:
                        self._show(drawn)

    def _report(self, error: Exception) -> None:
        with self._changed:
            if self._waiting is None:
                self.error = error
                self._fail(error)
