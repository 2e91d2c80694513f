"""The controls of a panel: the keyboard moves them, a screen reader names them, and nothing out of range is taken."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as widgets
import traitlets

from kd_lab.errors import check_choice, check_number, check_whole_number


def asset(name: str) -> str:
    """Return the text of a style or a script that lies beside the panels."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


class Value(traitlets.TraitType):
    """Check a value where it is set; a validator of the widget would be passed over by what the browser sends."""

    def validate(self, control: Any, value: Any) -> Any:
        control.check(value)
        return control.kind(value)


class Slider(anywidget.AnyWidget):
    """Choose a number from `min` to `max` in steps, shown times `factor` and with its `unit`.

    The browser's own range input: ipywidgets' slider has a handle without a name, and silently clamps what a program
    sets.
    """

    _esm, _css = asset("slider.js"), asset("slider.css")
    kind: type = float
    check_kind = staticmethod(check_number)
    label, unit = (traitlets.Unicode().tag(sync=True) for _ in range(2))
    min, max, step, factor = (traitlets.Float(number).tag(sync=True) for number in (0.0, 1.0, 0.01, 1.0))
    value = Value(0.0).tag(sync=True)

    def check(self, value: Any) -> None:
        """Raise a ParameterError for a value that the slider can't stand at."""
        self.check_kind(self.label, value, f"[{self.min:g}, {self.max:g}]")


class FractionSlider(Slider):
    """Choose a fraction from 0 to `max`, shown in percent."""

    factor = traitlets.Float(100.0).tag(sync=True)
    unit = traitlets.Unicode("%").tag(sync=True)


class WholeSlider(Slider):
    """Choose a whole number from `min` to `max`."""

    kind = int
    check_kind = staticmethod(check_whole_number)
    step = traitlets.Float(1.0).tag(sync=True)


class StopSlider(WholeSlider):
    """Choose a whole number; the handle goes from one of the `stops`, which rise, to the next, however far that is.

    A program may set a number between them: the handle stands at the last stop before it then.
    """

    stops = traitlets.List(traitlets.Float()).tag(sync=True)


class BitSlider(WholeSlider):
    """Choose a whole number of bits from 1 to 8."""

    min, max = (traitlets.Float(number).tag(sync=True) for number in (1.0, 8.0))
    unit = traitlets.Unicode("bit").tag(sync=True)
    value = Value(8).tag(sync=True)


def dropdown(name: str, options: Iterable[str], value: str | None = None) -> widgets.Dropdown:
    """Return a control of that name, as wide as its options are; it begins with the first of them."""
    options = list(options)
    return widgets.Dropdown(
        options=options,
        value=value or options[0],
        description=name,
        style={"description_width": "initial"},
        layout=widgets.Layout(width="auto", max_width="100%", margin="2px 9px 2px 2px"),
    )


def button(name: str, action: Callable[[], None]) -> widgets.Button:
    """Return a button of that name, which is its name for a screen reader, too."""
    made = widgets.Button(description=name, layout=widgets.Layout(width="110px"))
    made.on_click(lambda _button: action())
    return made


def check_values(controls: Mapping[str, widgets.Widget], values: Mapping[str, Any]) -> None:
    """Raise a ParameterError for a control that is not there, or a value that one can't have."""
    for name, value in values.items():
        check_choice("name of the control", name, list(controls))
        control = controls[name]
        if isinstance(control, anywidget.AnyWidget):  # the kit's own
            control.check(value)
        else:
            check_choice(name, value, list(control.options))
