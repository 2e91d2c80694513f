"""The engine shows the newest setting, whatever came before it, and nothing else."""

import signal
import threading
import time

import pytest

from kd_lab.panels.engine import Engine


class Recorder:
    """Measure in two steps, each of which can be held up, and record what is shown."""

    def __init__(self):
        self.begun, self.gate = threading.Event(), threading.Event()
        self.gate.set()
        self.shown, self.failed, self.steps = [], [], 0
        self.engine = Engine(self.measure, lambda answer: answer, self.shown.append, self.failed.append)

    def measure(self, setting):
        self.begun.set()
        self.gate.wait(10)
        if setting.get("fails"):
            raise RuntimeError(setting["fails"])
        for part in ("first", None, "all"):
            self.steps += 1
            yield part and (setting["x"], part)

    def begin(self, **setting):
        """Submit a setting and return once the worker is held up in it."""
        self.begun.clear()
        self.gate.clear()
        self.engine.submit(setting)
        assert self.begun.wait(10)


@pytest.fixture
def recorder():
    return Recorder()


def test_every_answer_of_a_setting_is_shown_in_turn(recorder):
    recorder.engine.submit({"x": 1})
    recorder.engine.wait()
    assert recorder.shown == [(1, "first"), (1, "all")]


def test_the_newest_wins_and_those_between_are_never_measured(recorder):
    recorder.begin(x=0)
    for x in range(1, 1000):
        recorder.engine.submit({"x": x})
    recorder.gate.set()
    recorder.engine.wait()
    assert recorder.shown == [(999, "first"), (999, "all")] and recorder.steps == 4


def test_a_newer_setting_stops_the_refinement(recorder):
    def measure(setting):
        for answer in recorder.measure(setting):
            yield answer
            if answer == (1, "first"):
                engine.submit({"x": 2})

    engine = Engine(measure, lambda answer: answer, recorder.shown.append, recorder.failed.append)
    engine.submit({"x": 1})
    engine.wait()
    assert recorder.shown == [(1, "first"), (2, "first"), (2, "all")]


def test_what_was_drawn_while_a_newer_setting_came_is_not_shown(recorder):
    engine = Engine(
        recorder.measure,
        lambda answer: engine.submit({"x": 2}) if answer == (1, "first") else answer,
        recorder.shown.append,
        recorder.failed.append,
    )
    engine.submit({"x": 1})
    engine.wait()
    assert recorder.shown == [(2, "first"), (2, "all")]


def test_an_error_is_reported_once_and_the_next_setting_is_measured(recorder):
    recorder.engine.submit({"fails": "no such layer"})
    recorder.engine.wait()
    assert [str(error) for error in recorder.failed] == ["no such layer"]
    assert recorder.engine.error is recorder.failed[0]
    recorder.engine.submit({"x": 1})
    recorder.engine.wait()
    assert recorder.shown[-1] == (1, "all") and recorder.engine.error is None


def test_an_error_of_an_older_setting_is_not_reported(recorder):
    recorder.begin(fails="old")
    recorder.engine.submit({"x": 1})
    recorder.gate.set()
    recorder.engine.wait()
    assert recorder.failed == [] and recorder.shown[-1] == (1, "all")


def test_an_error_while_drawing_is_reported_too(recorder):
    engine = Engine(recorder.measure, lambda answer: 1 / 0, recorder.shown.append, recorder.failed.append)
    engine.submit({"x": 1})
    engine.wait()
    assert isinstance(engine.error, ZeroDivisionError) and recorder.shown == []


def test_stop_gives_up_and_keeps_what_was_shown(recorder):
    recorder.engine.submit({"x": 1})
    recorder.engine.wait()
    recorder.begin(x=2)
    threading.Timer(0.1, recorder.gate.set).start()
    start = time.perf_counter()
    recorder.engine.stop()
    assert time.perf_counter() - start < 2
    assert recorder.shown == [(1, "first"), (1, "all")]
    recorder.engine.submit({"x": 3})
    recorder.engine.wait()
    assert recorder.shown[-1] == (3, "all")


def test_waiting_can_be_interrupted_and_the_work_goes_on(recorder):
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    recorder.begin(x=1)
    with pytest.raises(KeyboardInterrupt):
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        recorder.engine.wait()
    signal.signal(signal.SIGALRM, before)
    recorder.gate.set()
    recorder.engine.wait()
    assert recorder.shown[-1] == (1, "all")


def test_no_thread_is_left_when_nothing_is_to_be_measured(recorder):
    for x in range(20):
        recorder.engine.submit({"x": x})
        recorder.engine.wait()
    time.sleep(0.1)
    assert [thread for thread in threading.enumerate() if thread.name == "kd_lab panel"] == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_breaks_down_keeps_nobody_waiting(recorder):
    def fail(error):
        raise SystemExit

    engine = Engine(recorder.measure, lambda answer: answer, recorder.shown.append, fail)
    recorder.gate.clear()
    engine.submit({"fails": "once"})
    worker = engine._worker
    recorder.gate.set()
    engine.wait()
    worker.join()
    engine.submit({"x": 1})
    engine.wait()
    assert recorder.shown[-1] == (1, "all")


def test_it_can_be_stopped_from_what_it_calls(recorder):
    def show(answer):
        recorder.shown.append(answer)
        engine.stop()

    engine = Engine(recorder.measure, lambda answer: answer, show, recorder.failed.append)
    engine.submit({"x": 1})
    engine.wait()
    assert recorder.shown == [(1, "first")]
