"""Put controls, picture and tables on the page, and keep them in step with what is measured."""

import base64
import gc
import html
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import ipywidgets as widgets
from IPython import get_ipython

from kd_lab.errors import KdLabError, check_choice
from kd_lab.panels.canvas import with_title
from kd_lab.panels.engine import Engine, Setting
from kd_lab.panels.slider import Slider

VIEW = "application/vnd.jupyter.widget-view+json"
_open: dict[Any, tuple[int, list["Panel"]]] = {}  # the panels of each cell, and at which run it made them


class Shown(NamedTuple):
    """Hold what a panel shows: a line of text, the picture, and the HTML of the tables below it."""

    title: str
    png: bytes
    tables: str


class Panel:
    """Show live what its controls do; a subclass measures and draws.

    `controls` are widgets by the name of the setting. `measure(**setting)` yields answers, each better than the one
    before, or None where it may be stopped; `draw(answer)` gives what is Shown. With `reveals` there is a button that
    measures with `reveal=True`, once. Run again, a cell closes the panels that it made before.
    """

    def __init__(
        self, controls: dict[str, widgets.Widget], size: tuple[int, int], tables_height: int, reveals: bool = False
    ):
        self.controls = controls
        self.shown: Shown | None = None
        self._engine = Engine(lambda setting: self.measure(**setting), self.draw, self._show, self._fail)
        self._title = widgets.HTML(layout=_fixed(size[0], 28))
        self._picture = widgets.Image(format="png", layout=_fixed(*size))
        self._message = widgets.HTML(layout=_fixed(size[0], 24))
        self._tables = widgets.HTML(layout=_fixed(size[0], tables_height))
        slider, *others = controls.values()
        slider.layout.width = f"{size[0]}px"
        if reveals:
            others.append(widgets.Button(description="Reveal test"))
            others[-1].on_click(lambda _button: self.refresh(reveal=True))
        row = widgets.HBox(others, layout=widgets.Layout(width=f"{size[0]}px", flex_flow="row wrap"))
        self._box = widgets.VBox([slider, row, self._title, self._picture, self._tables, self._message])
        _replace_earlier(self)
        for control in controls.values():
            control.observe(lambda _change: self.refresh(), names="value")
        self.refresh()

    def measure(self, **setting: Any) -> Iterator[Any]:
        """Yield the answers for a setting; runs in the background."""
        raise NotImplementedError

    def draw(self, answer: Any) -> Shown:
        """Draw an answer; runs in the background."""
        raise NotImplementedError

    @property
    def setting(self) -> Setting:
        """Return what the controls say now."""
        return {name: control.value for name, control in self.controls.items()}

    def set(self, **values: Any) -> None:
        """Set controls by name, as a learner would with the mouse; all are checked before any is changed."""
        for name, value in values.items():
            check_choice("name of the control", name, list(self.controls))
            _check_control(name, self.controls[name], value)
        for name, value in values.items():
            self.controls[name].value = value

    def refresh(self, **extra: Any) -> None:
        """Measure the present setting; a subclass may ask for something extra. Returns at once."""
        self._engine.submit(self.setting | extra)

    def flush(self) -> Shown:
        """Wait until the newest setting is measured to the end and drawn; raise the error if it failed."""
        self._engine.wait()
        if self._engine.error is not None:
            raise self._engine.error
        return self.shown

    def close(self) -> None:
        """Stop measuring, take the panel off the page, and let go of its networks and pictures."""
        if not vars(self):
            return
        self._engine.stop()
        for widget in (self._box, *self._box.children, *self._box.children[1].children):
            for part in (getattr(widget, "style", None), widget.layout, widget):
                if isinstance(part, widgets.Widget):
                    part.close()
        vars(self).clear()  # IPython's Out keeps the panel itself

    def __getattr__(self, name: str) -> Any:
        if not vars(self):
            raise AttributeError("This panel is closed: its cell was run again, or close() was called.")
        raise AttributeError(f"{type(self).__name__} has no {name!r}.")

    def _show(self, shown: Shown) -> None:
        self.shown = shown
        self._title.value = f"<b style='font-size: 15px'>{html.escape(shown.title)}</b>"
        self._picture.value, self._tables.value, self._message.value = shown.png, shown.tables, ""

    def _fail(self, error: Exception) -> None:
        kind = "" if isinstance(error, KdLabError) else f"{type(error).__name__}: "
        self._message.value = f"<b style='color: #b00020'>{html.escape(kind + str(error))}</b>"

    def __repr__(self) -> str:
        shown = vars(self).get("shown")
        return f"{type(self).__name__}: {shown.title if shown else 'closed, or nothing measured yet'}"

    def _repr_mimebundle_(self, **_options: Any) -> dict[str, Any]:
        """Give the live panel, and beside it a picture for where no widgets are: GitHub, nbconvert, PDF."""
        if not vars(self):
            return {"text/plain": repr(self)}
        self._engine.wait()
        view = {"version_major": 2, "version_minor": 0, "model_id": self._box.model_id}
        bundle = {VIEW: view, "text/plain": repr(self)}
        if self.shown:
            bundle["image/png"] = base64.b64encode(with_title(self.shown.png, self.shown.title)).decode()
        return bundle


def dropdown(name: str, options: Iterable[str], value: str) -> widgets.Dropdown:
    """Return a control of that name, as wide as its options are."""
    return widgets.Dropdown(
        options=list(options),
        value=value,
        description=name,
        style={"description_width": "initial"},
        layout=widgets.Layout(width="auto", margin="2px 9px 2px 2px"),
    )


def _fixed(width: int, height: int) -> widgets.Layout:
    return widgets.Layout(width=f"{width}px", height=f"{height}px", min_height=f"{height}px")


def _check_control(name: str, control: widgets.Widget, value: Any) -> None:
    if isinstance(control, Slider):
        control.check(value)
    else:
        check_choice(name, value, list(control.options))


def _replace_earlier(panel: Panel) -> None:
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
    parent = getattr(shell, "get_parent", dict)() or {}
    return parent.get("metadata", {}).get("cellId") or shell.user_ns["In"][-1]
