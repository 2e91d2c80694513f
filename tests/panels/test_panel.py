"""A panel shows the newest setting, whatever came before it, and nothing else; it keeps what is pinned."""

import signal
import sys
import threading
import time
from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from IPython.lib.pretty import pretty

from benchmarks.faults import count_widgets
from kd_lab.checkpoints import load_trained
from kd_lab.data import Mnist
from kd_lab.exercises import Question
from kd_lab.panels import PredictionPanel, PruningPanel
from kd_lab.panels.canvas import Canvas, new_figure
from kd_lab.panels.controls import WholeSlider
from kd_lab.panels.measurement import Cache, Comparison, in_words, points, scores
from kd_lab.panels.panel import VIEW, Panel, Shown

Setting = namedtuple("Setting", ["x"])
PNG = Canvas(new_figure(8, 8), []).png()
ASKED = Question("01.half", "How many points?", within=0.5)


@dataclass(frozen=True)
class Answer:
    """A part of what is known at x."""

    setting: Setting
    part: str


class Recorder(Panel):
    """Measure in two steps, each of which can be held up, and record what is drawn and shown."""

    def __init__(self):
        super().__init__({"x": WholeSlider(label="x", max=1000, value=0)}, (8, 8), 8)
        self.begun, self.gate = threading.Event(), threading.Event()
        self.gate.set()
        self.titles, self.failed, self.taken = [], [], 0

    def measure(self, x):
        self.begun.set()
        self.gate.wait(10)
        if x == 666:
            raise RuntimeError("no such x")
        for part in self.steps(("first", None, "all")):
            self.taken += 1
            if part:
                yield Answer(Setting(x), part)

    def draw(self, answer):
        return Shown(f"{answer.setting.x} {answer.part}", PNG, "")

    def _show(self, answer):
        before = self.shown
        super()._show(answer)
        if self.shown is not before:
            self.titles.append(self.shown.title)

    def _fail(self, error):
        super()._fail(error)
        if self.error is error:
            self.failed.append(error)

    def begin(self, x):
        """Set x and return once the worker is held up there."""
        self.begun.clear()
        self.gate.clear()
        self.set(x=x)
        self.refresh()
        assert self.begun.wait(10)


@pytest.fixture(params=[Recorder])
def recorder(request):
    recorder = request.param()
    yield recorder
    recorder.close()


def test_every_answer_of_a_setting_is_shown_in_turn(recorder):
    recorder.set(x=1)
    assert recorder.flush().title == "1 all" and recorder.titles == ["1 first", "1 all"]


def test_the_newest_wins_and_those_between_are_never_measured(recorder):
    recorder.begin(0)
    for x in range(1, 1000):
        recorder.set(x=x)
    recorder.gate.set()
    recorder.flush()
    assert recorder.titles == ["999 first", "999 all"] and recorder.taken == 3


class Moved(Recorder):
    """Move while a part is drawn."""

    part, x = "first", 1

    def draw(self, answer):
        if answer == Answer(Setting(self.x), self.part):
            self.set(x=2)
        return super().draw(answer)


@pytest.mark.parametrize("recorder", [Moved], indirect=True)
def test_what_was_drawn_while_a_newer_setting_came_is_not_shown(recorder):
    recorder.set(x=1)
    recorder.flush()
    assert recorder.titles == ["2 first", "2 all"]


@pytest.mark.parametrize("recorder", [Moved], indirect=True)
def test_a_newer_setting_stops_the_refinement(recorder):
    recorder.part = "all"
    recorder.set(x=1)
    recorder.flush()
    assert recorder.titles == ["1 first", "2 first", "2 all"]


def test_a_newer_setting_stops_even_between_two_answers(recorder):
    recorder.begin(1)
    steps = recorder.steps(range(3))
    assert next(steps) == 0  # nothing newer waits
    recorder.set(x=2)
    with pytest.raises(Exception, match=r"^$"):
        next(steps)
    recorder.gate.set()
    recorder.flush()
    assert recorder.taken == 3 and recorder.titles == ["2 first", "2 all"]


def test_an_error_is_reported_once_and_the_next_setting_is_measured(recorder):
    recorder.set(x=666)
    with pytest.raises(RuntimeError, match="no such x"):
        recorder.flush()
    assert recorder.failed == [recorder.error] and "RuntimeError: no such x" in recorder._message.value
    recorder.set(x=1)
    assert recorder.flush().title == "1 all" and recorder.error is None and recorder._message.value == ""


def test_an_error_of_an_older_setting_is_not_reported(recorder):
    recorder.begin(666)
    recorder.set(x=1)
    recorder.gate.set()
    assert recorder.flush().title == "1 all" and recorder.failed == []


def test_an_error_while_drawing_is_reported_too(recorder, monkeypatch):
    monkeypatch.setattr(Recorder, "draw", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        recorder.flush()
    assert recorder.titles == []


def test_closing_gives_up_and_a_closed_panel_says_so(recorder):
    recorder.set(x=1)
    recorder.flush()
    recorder.begin(2)
    titles = recorder.titles
    threading.Timer(0.1, recorder.gate.set).start()
    start = time.perf_counter()
    recorder.close()
    assert time.perf_counter() - start < 5
    assert titles == ["1 first", "1 all"]
    for use in (recorder.flush, recorder.refresh, recorder.pin, lambda: recorder.set(x=3)):
        with pytest.raises(AttributeError, match="This panel is closed"):
            use()


def test_waiting_can_be_interrupted_and_the_work_goes_on(recorder):
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    recorder.begin(1)
    with pytest.raises(KeyboardInterrupt):
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        recorder.flush()
    signal.signal(signal.SIGALRM, before)
    recorder.gate.set()
    assert recorder.flush().title == "1 all"


def test_no_thread_is_left_when_nothing_is_to_be_measured(recorder):
    for x in range(20):
        recorder.set(x=x)
        recorder.flush()
    time.sleep(0.1)
    assert [thread for thread in threading.enumerate() if thread.name == "kd_lab panel"] == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_breaks_down_keeps_nobody_waiting(recorder, monkeypatch):
    def fail(panel, error):
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "_fail", fail)
        recorder.begin(666)
        worker = recorder._worker
        recorder.gate.set()
        recorder.flush()
        worker.join()
    recorder.set(x=1)
    assert recorder.flush().title == "1 all"


class ClosesItself(Recorder):
    """Close the panel while it is measured."""

    def _show(self, answer):
        titles.append(self.draw(answer).title)
        self.close()


titles = []


@pytest.mark.parametrize("recorder", [ClosesItself], indirect=True)
def test_it_can_be_closed_from_what_it_calls(recorder):
    recorder.begin(1)
    worker, gate = recorder._worker, recorder.gate
    gate.set()
    worker.join(10)
    assert not worker.is_alive() and titles == ["1 first"] and "closed" in repr(recorder)


class Late(PruningPanel):
    """A learner's panel, which is whole only after the panel's own constructor, and moves a control in between."""

    def __init__(self, model, data):
        super().__init__(model, data)
        self.set(sparsity=0.25)
        time.sleep(0.2)  # time enough for a worker to fail, if there were one
        self.word = "late"

    def draw(self, answer):
        return super().draw(answer)._replace(title=f"{self.word}: {answer.setting.sparsity}")


def test_a_subclass_is_whole_before_it_is_measured(mnist):
    panel = Late(load_trained("mlp128"), Mnist(*(part[:100] for part in mnist)))
    assert panel.shown is None and panel.error is None and panel._worker is None
    assert panel.flush().title == "late: 0.25"
    panel.set(sparsity=0.5)  # from now on every move is followed, without a flush
    while panel.shown.title != "late: 0.5":
        time.sleep(0.01)
    panel.close()


def test_a_panel_that_is_displayed_is_measured(recorder):
    assert recorder._repr_mimebundle_()["text/plain"] == "Recorder: 0 all"


class Halting(Recorder):
    """Stop after each answer until it may go on."""

    def measure(self, x):
        for answer in super().measure(x):
            yield answer
            go_on.wait(10)


go_on = threading.Event()


@pytest.mark.parametrize("recorder", [Halting], indirect=True)
def test_whoever_looks_on_sees_the_first_answer_while_others_are_to_come(recorder, monkeypatch):
    monkeypatch.setattr("kd_lab.panels.panel._cell_id", lambda _shell: "a front end's name")
    assert recorder._repr_mimebundle_()["text/plain"] == "Halting: 0 first"
    go_on.set()
    assert recorder.flush().title == "0 all"
    go_on.clear()
    recorder.begin(7)
    recorder.gate.set()
    assert recorder._repr_mimebundle_()["text/plain"] == "Halting: 7 first"  # and no answer to an older setting
    go_on.set()
    recorder.flush()


@pytest.mark.parametrize("make", [Recorder, lambda: PredictionPanel(ASKED)])
def test_in_colab_a_panel_at_the_end_of_a_cell_names_the_manager_of_its_controls(make, monkeypatch):
    manager = SimpleNamespace(_installed_url="manager.js")
    colab = SimpleNamespace(enable_custom_widget_manager=lambda: None, _widgets=manager)
    monkeypatch.setitem(sys.modules, "google.colab.output", colab)
    panel = make()
    bundle, metadata = panel._repr_mimebundle_()
    assert VIEW in bundle and metadata == {VIEW: {"colab": {"custom_widget_manager": {"url": "manager.js"}}}}
    panel.close()


def test_what_is_shown_is_a_short_text():
    shown = Shown("50 % pruned", b"PNG" * 1000, "<table>")
    assert repr(shown) == pretty(shown) == "50 % pruned" and shown.png.startswith(b"PNG")


def test_a_pin_keeps_what_is_shown_until_it_is_moved_or_taken_off(recorder, monkeypatch, button):
    drawn = []
    draw = Recorder.draw
    monkeypatch.setattr(Recorder, "draw", lambda panel, each: drawn.append((each, panel.pinned)) or draw(panel, each))
    recorder.set(x=1)
    recorder.flush()
    button(recorder, "Pin").click()
    pinned = Answer(Setting(1), "all")
    assert drawn[-1] == (pinned, pinned) and recorder._message.value == "pinned, in faint grey: x 1"
    recorder.set(x=2)
    recorder.flush()
    assert drawn[-1] == (Answer(Setting(2), "all"), pinned) and recorder.taken == 6  # a pin measures nothing
    button(recorder, "Pin").click()  # which moves it
    assert recorder.pinned == Answer(Setting(2), "all")
    button(recorder, "Unpin").click()
    assert recorder.pinned is None and recorder._message.value == "" and button(recorder, "Pin")


class MovesItsPin(Recorder):
    """Move the pin while the last answer is drawn, or when nothing is left to be drawn but the worker still lives."""

    moves: tuple = ()

    def draw(self, answer):
        if answer.part in self.moves:
            self.moves = self.moves[1:]
            self._move_pin()
        return super().draw(answer)

    def measure(self, x):
        yield from super().measure(x)
        if "late" in self.moves:
            self._move_pin()


@pytest.mark.parametrize("recorder", [MovesItsPin], indirect=True)
@pytest.mark.parametrize("when", ["all", "late"])
def test_a_pin_that_is_moved_while_the_worker_ends_is_drawn(when, recorder, button):
    recorder.moves = (when,)
    recorder.set(x=1)
    recorder.flush()
    recorder.moves = ()
    assert recorder.pinned.setting == Setting(1) and recorder._message.value == "pinned, in faint grey: x 1"
    recorder.moves = (when,)
    recorder.refresh()
    recorder.flush()
    assert recorder.pinned is None and recorder._message.value == "" and button(recorder, "Pin")


def test_a_pin_follows_its_own_setting_to_the_end(recorder):
    recorder.set(x=1)
    recorder.flush()
    recorder.pinned = Answer(Setting(1), "first")  # as if the button had been pressed then
    recorder.set(x=2)
    recorder.flush()
    recorder.set(x=1)
    recorder.flush()
    assert recorder.pinned == Answer(Setting(1), "all")


def test_a_pin_can_be_set_from_a_script(recorder):
    recorder.set(x=3)
    assert recorder.pin().title == "3 all" and recorder.pinned.setting == Setting(3)
    recorder.pin()
    assert recorder.pinned is None


def test_closing_leaves_no_widget():
    before = count_widgets()
    recorder = Recorder()
    assert count_widgets() > before
    recorder.close()
    assert count_widgets() == before


def comparison(answers, dense=(1, 2, 3, 4), labels=(1, 2, 3, 5)):
    return Comparison(*map(torch.tensor, (answers, dense, labels)))


def test_networks_with_the_same_answers_say_so():
    one, other = comparison((1, 2, 3, 6)), comparison((1, 2, 3, 4))
    assert points(other, other.dense) == "the same answers"
    assert points(one, one.dense).startswith("+0.00 (")  # equally good, but not the same
    assert points(None, other) == points(one, None) == "…"
    assert points(comparison((9, 9, 3, 5)), comparison((9, 9), (9, 9), (1, 2))) == "the same answers"  # so far


def test_the_table_compares_with_the_dense_network_the_others_and_what_is_pinned():
    one, other = comparison((1, 9, 3, 5)), comparison((1, 2, 3, 5))
    networks = {"dense": one.dense, "taught": one, "on labels": other}
    pinned = SimpleNamespace(comparisons={"taught": other, "on labels": one, "dense": one.dense})
    answer = SimpleNamespace(comparisons=networks)
    html = scores(answer, pinned, None, reference="on labels")
    rows = dict(
        zip(("accuracy", "dense", "changes", "labels", "pin", "other pin"), html.split("<tr>")[2:], strict=True)
    )
    assert "against on labels, points" in rows["labels"] and rows["labels"].count(points(one, other)) == 1
    assert "against pinned taught, points" in rows["pin"]
    assert points(one, other) in rows["pin"] and "the same answers" in rows["pin"]
    assert points(other, one) in rows["other pin"] and "the same answers" in rows["other pin"]
    assert "pinned" not in scores(answer, None, None)


def test_a_cache_forgets_what_was_unused_for_longest():
    cache, made = Cache(2), []
    for key in "abacab":
        assert cache.fetch(key, lambda key=key: made.append(key) or key) == key
    assert "".join(made) == "abcb" and list(cache) == ["a", "b"]


def test_a_setting_in_words():
    assert in_words(namedtuple("Two", "ratios importance")({"fc1": 0.5, "fc2": 0}, "random")) == (
        "fc1 0.5, fc2 0, importance random"
    )
