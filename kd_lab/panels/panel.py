"""Put controls, picture and tables on the page, and measure the newest setting in the background."""

import base64
import functools
import gc
import html
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import anywidget
import ipywidgets as widgets
import torch
from IPython import get_ipython

from kd_lab.data import Split
from kd_lab.errors import KdLabError, saying
from kd_lab.evaluation import accuracy
from kd_lab.panels.canvas import with_title
from kd_lab.panels.controls import asset, button, check_values
from kd_lab.panels.measurement import Tests, in_words, scores
from kd_lab.panels.recorded import RecordedAnswer, checked_settings, checked_target, named, recorded_page
from kd_lab.storage import write_safely

VIEW = "application/vnd.jupyter.widget-view+json"
STYLE = f"<style>{asset('panel.css')}</style>"
_open: dict[Any, tuple[int, list[Any]]] = {}  # the panels of each cell, and at which run it made them


class Stopped(Exception):
    """Tell that a measurement was given up for a newer setting."""


class Shown(NamedTuple):
    """What a panel shows: a line of text, the picture, and the HTML of the tables below it."""

    title: str
    png: bytes
    tables: str

    def __repr__(self) -> str:
        return self.title


def side_by_side(*parts: str) -> str:
    """Return HTML parts beside each other, or below each other where the page is too narrow for that."""
    return f"<div class='kd-lab-tables'>{''.join(f'<div>{part}</div>' for part in parts)}</div>"


class Panel:
    """Show live what its controls do; a subclass measures and draws.

    `controls` are widgets by the name of the setting. `measure(**setting)` yields answers, each better than the one
    before, or what is Shown at once; `draw(answer)` returns what is Shown; both run in the background. An answer has a
    `setting`, a named tuple of all that its networks depend on, and `comparisons`, what was measured of each. A button
    keeps an answer as `pinned`; with a `test` part another tests the `networks(answer)`, once for a setting, where
    there are any yet. Measuring begins when the panel is displayed or flushed, so that a subclass is whole by then. Run
    again, a cell closes the panels that it made before.
    """

    _changed = threading.Condition()  # one for all panels, since it is held for moments only
    _waiting: tuple | None = ()  # the newest setting, until the worker takes it; empty once the panel is closed
    _worker: threading.Thread | None = None  # lives only while there is something to measure

    def __init__(
        self, controls: dict[str, widgets.Widget], size: tuple[int, int], tables_height: int, test: Split | None = None
    ):
        self.controls = controls
        self.shown: Shown | None = None
        self.error: Exception | None = None  # of the newest setting
        self.pinned: Any = None  # the answer that others are compared with
        self._drawn_pin: Any = None  # the one that was pinned when the last answer was drawn
        self.tests: Tests = {}
        self._answer: Any = None  # the one that is shown
        self._test, self._waiting, self._begun = test, None, False
        self._answered = False  # whether what is shown is of the newest setting
        self._pin_button = button("Pin", self._move_pin)
        self._lay_out(size, tables_height)
        replace_earlier(self)
        for control in controls.values():
            control.observe(lambda _change: self.refresh() if self._begun else None, names="value")

    def __init_subclass__(cls, **settings: Any):
        """Make a panel outside of inference_mode: the worker could neither change nor train what that made."""
        super().__init_subclass__(**settings)
        cls.__init__ = torch.inference_mode(False)(cls.__init__)  # type: ignore[method-assign]

    def _lay_out(self, size: tuple[int, int], tables_height: int) -> None:
        width, height = map(str, size)
        self._title, self._tables, self._message = (
            widgets.HTML(layout=widgets.Layout(min_height=f"{least}px")) for least in (28, tables_height, 24)
        )
        # with both numbers the browser keeps the place of a picture that is still on its way
        self._picture = widgets.Image(format="png", width=width, height=height)
        slider, *others = self.controls.values()
        if self._test:
            others.append(button("Reveal test", lambda: self.refresh(reveal=True)))
        row = widgets.HBox([*others, self._pin_button], layout=widgets.Layout(flex_flow="row wrap"))
        style = widgets.HTML(STYLE, layout=widgets.Layout(display="none"))
        self._box = widgets.VBox([slider, row, self._title, self._picture, self._tables, self._message, style])
        self._box.add_class("kd-lab-panel")
        self._title.add_class("kd-lab-title")

    def scores(self, answer: Any, **rows: Any) -> str:
        """Return an HTML table of what was measured; `rows` are more arguments of `measurement.scores`."""
        return scores(answer, self.pinned, self.tests if self._test else None, **rows)

    def steps(self, steps: Iterable[Any]) -> Iterator[Any]:
        """Yield the steps of a measurement while its setting is the newest: the one way in which it can be stopped."""
        for step in steps:
            # without a main thread nobody waits for it any more, but Python itself, for us to end
            if self._waiting is not None or not threading.main_thread().is_alive():
                raise Stopped
            yield step

    @property
    def setting(self) -> dict[str, Any]:
        """Return what the controls say now."""
        return {name: control.value for name, control in self.controls.items()}

    def set(self, **values: Any) -> None:
        """Set controls by name, as a learner would with the mouse; all are checked before any is changed."""
        check_values(self.controls, values)
        for name, value in values.items():
            self.controls[name].value = value

    def refresh(self, reveal: bool = False) -> None:
        """Measure the present setting in place of any other, and with `reveal` the test part. Returns at once."""
        with self._changed:
            self._waiting, self._begun, self._answered = (self.setting, reveal), True, False
            if self._worker is None:
                worker = threading.Thread(target=self._work, name="kd_lab panel")
                worker.start()  # it waits for us before it takes anything
                self._worker = worker

    def flush(self) -> Shown | None:
        """Wait until the newest setting is measured to the end and drawn; raise the error if it failed."""
        self._settle()
        if self.error is not None:
            raise self.error
        return self.shown

    def pin(self) -> Shown | None:
        """Keep the present setting as the reference of what comes; where it is that already, take it away."""
        self.flush()
        self._move_pin()
        return self.shown

    def save_html(self, path: Path | str, settings: Sequence[Mapping[str, Any]]) -> None:
        """Measure the listed settings and write a page in which the panel's controls move through the answers.

        The page is one file that needs no kernel, no server and no network. It says that it is recorded, when and with
        which versions; the pin and the test part are not in it. A setting holds values by name of the control; what is
        left out is as it is now, and so is the panel afterwards. One that is given twice is recorded once; the page
        begins with the first.

        In the page nothing is interpolated. A list offers what is recorded, a slider goes from recorded value to
        recorded value of what the lists choose. The control that is moved always obeys: where the others were not
        recorded with it as they stand, they move to the nearest recorded setting, those that were moved last as little
        as possible, and the page says so.

        Raises a ParameterError for settings that the panel does not have, before anything is measured, and for one that
        can't be measured, and a StorageError where the file can't be written; no file is changed then.
        """
        path, settings = checked_target(path), checked_settings(self.controls, settings)
        write_safely(path, recorded_page(type(self).__name__, self.controls, self._record(settings)))

    def close(self) -> None:
        """Stop measuring, take the panel off the page, and let go of its networks and pictures."""
        if not vars(self):
            return
        with self._changed:
            self._waiting = ()
            while self._worker not in (None, threading.current_thread()):
                self._changed.wait(0.1)
        for widget in (self._box, *self._box.children, *self._box.children[1].children):
            for part in (getattr(widget, "style", None), widget.layout, widget):
                if isinstance(part, widgets.Widget):
                    part.close()
        vars(self).clear()  # IPython's Out keeps the panel itself

    def __getattr__(self, name: str) -> Any:
        if not vars(self):
            raise AttributeError("This panel is closed: its cell was run again, or close() was called.")
        raise AttributeError(f"{type(self).__name__} has no {name!r}.")

    def _settle(self, first: bool = False) -> None:
        """Return when the newest setting has been measured to the end, or has failed; with `first` once it answers."""
        if not self._begun:
            self.refresh()
        with self._changed:
            while self._worker is not None and not (first and self._answered):
                # a wait without an end could not be interrupted on Windows, and a join that is interrupted takes the
                # thread for ended (before Python 3.13)
                self._changed.wait(0.1)

    def _work(self) -> None:
        try:
            while task := self._take():
                try:
                    with suppress(Stopped):
                        task()
                except Exception as error:  # noqa: BLE001 whatever came, the learner must see it
                    self._fail(error)
        finally:  # whoever waits must not wait for a worker that has ended, however it did
            self._end()

    def _take(self) -> Callable[[], None] | None:
        """Return what to do next: follow the newest setting, or draw again an answer whose pin was moved since."""
        with self._changed:
            if waiting := self._waiting:
                self._waiting = self.error = None
                return lambda: self._follow(*waiting)
            moved = self._waiting is None and self._drawn_pin is not self.pinned
            if moved and (answer := self._answer) and not self.error:
                return lambda: self._show(answer)
            self._end()  # under the same lock, so that nothing can come between
            return None

    def _end(self) -> None:
        with self._changed:
            if self._worker is threading.current_thread():
                self._worker = None
                self._changed.notify_all()

    def _record(self, settings: Sequence[Mapping[str, Any]]) -> list[RecordedAnswer]:
        """Return what is shown at each setting, without pin and test part; then all is as it was before."""
        if begun := self._begun:
            self._settle()
        records: dict[tuple, RecordedAnswer] = {}
        kept, go_back = (self.pinned, self._test), self._remember()
        self.pinned = self._test = None
        try:
            for place, setting in enumerate(settings):
                self._begun = False  # until every control is moved, since what lies between is not asked for
                go_back()
                self.set(**setting)
                values = tuple(control.value for control in self.controls.values())
                if values not in records:
                    with saying(f"settings[{place}], {named(setting)}, can't be measured"):
                        shown: Any = self.flush()
                    records[values] = RecordedAnswer(
                        values, shown.title, shown.png, shown.tables, _images(self._answer)
                    )
        finally:
            self._begun, (self.pinned, self._test) = False, kept
            go_back()
            self.shown = self._answer = self.error = None
            if begun:
                self.refresh()
        return [*records.values()]

    def _remember(self) -> Callable[[], None]:
        """Return a function that moves the controls back to where they are now."""
        return functools.partial(self.set, **{name: control.value for name, control in self.controls.items()})

    def _follow(self, setting: dict[str, Any], reveal: bool) -> None:
        """Show what is measured at a setting, then what the test part says; an answer that is pinned is completed."""
        for answer in self.steps(self.measure(**setting)):
            self._show(answer)
        if reveal and self._test and answer.setting not in self.tests and (networks := self.networks(answer)):
            self.tests[answer.setting] = [accuracy(network, self._test) for network in self.steps(networks)]
            self._show(answer)
        if self._is_pinned(answer) and self.pinned is not answer:
            self.pinned = answer
            self._show(answer)

    def _show(self, answer: Any) -> None:
        pinned = self.pinned  # which may move while we draw
        shown = answer if isinstance(answer, Shown) else self.draw(answer)
        with self._changed:  # so that no newer setting can come between the look and the showing
            if self._waiting is not None:
                return
            self._drawn_pin, self.shown, self._answer = pinned, shown, None if answer is shown else answer
            self._answered = True
            self._title.value = f"<b>{html.escape(shown.title)}</b>"
            self._picture.value, self._tables.value = shown.png, shown.tables
            self._pin_button.description = "Unpin" if self._is_pinned(self._answer) else "Pin"
            words = f"pinned, in faint grey: {in_words(self.pinned.setting)}" if self.pinned else ""
            self._message.value = html.escape(words)
            self._changed.notify_all()

    def _fail(self, error: Exception) -> None:
        kind = "" if isinstance(error, KdLabError) else f"{type(error).__name__}: "
        with self._changed:
            if self._waiting is None:
                self.error = error
                self._message.value = f"<b style='color: #b00020'>{html.escape(kind + str(error))}</b>"

    def _is_pinned(self, answer: Any) -> bool:
        return bool(answer and self.pinned) and answer.setting == self.pinned.setting

    def _move_pin(self) -> None:
        with self._changed:
            self.pinned = None if self._is_pinned(self._answer) else self._answer
            if self._worker is None and self._answer:  # else the worker draws with it, at the latest before it ends
                self._show(self._answer)

    def __repr__(self) -> str:
        shown = vars(self).get("shown")
        return f"{type(self).__name__}: {shown.title if shown else 'closed, or nothing measured yet'}"

    def _repr_mimebundle_(self, **_options: Any) -> Any:
        """Give the live panel, and beside it a picture for where no widgets are: GitHub, nbconvert, PDF.

        Whoever looks on sees the first answer at once and the better ones as they come; what only runs a notebook, to
        save it, gets the last.
        """
        if not vars(self):
            return {"text/plain": repr(self)}
        self._settle(first=bool(_cell_id(get_ipython())))  # which only those that show it give to a cell
        view = {"version_major": 2, "version_minor": 0, "model_id": self._box.model_id}
        bundle = {VIEW: view, "text/plain": repr(self)}
        if self.shown:
            bundle["image/png"] = base64.b64encode(with_title(self.shown.png, self.shown.title)).decode()
        return for_colab(bundle, *self.controls.values())


def for_colab(bundle: dict[str, Any], *controls: widgets.Widget) -> Any:
    """Return a bundle, in Colab with the metadata that let its front end load the kit's own controls.

    Colab itself adds them only to what display() shows, not to what stands at a cell's end.
    """
    own = [control for control in controls if isinstance(control, anywidget.AnyWidget)]
    _, metadata = own[0]._repr_mimebundle_() if own else ({}, {})
    return (bundle, metadata) if metadata else bundle


def _images(answer: Any) -> int:
    """Return how many images an answer was measured on, 0 for what has no comparisons."""
    compared = [each for each in getattr(answer, "comparisons", {}).values() if each]
    return len(compared[0].labels) if compared else 0


def replace_earlier(panel: Any) -> None:
    """Close the panels that an earlier run of the same cell made; several made in one run stay."""
    shell = get_ipython()
    if shell is None:
        return
    run, panels = _open.get(cell := _cell(shell), (shell.execution_count, []))
    if run != shell.execution_count:
        for earlier in panels:
            earlier.close()
        panels = []
        gc.collect()  # a figure is a ring of references, which may otherwise stay for many runs
    _open[cell] = shell.execution_count, [*panels, panel]


def _cell(shell: Any) -> str:
    """Return what tells this cell from others: the front end's name for it, else its text."""
    return _cell_id(shell) or shell.user_ns["In"][-1]


def _cell_id(shell: Any) -> str | None:
    """Return the front end's name for this cell, where it has one."""
    parent: dict = getattr(shell, "get_parent", dict)() or {}
    return parent.get("metadata", {}).get("cellId")
