"""What the tests of panels share."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from ipywidgets import Button
from matplotlib.text import Text

from kd_lab.cost import count_parameters
from kd_lab.panels import panel as panel_module
from kd_lab.panels.panel import Panel


@pytest.fixture(scope="module")
def beginning(shared) -> dict[str, Any]:
    """Return what the controls of the shared panel say at first."""
    return {name: control.value for name, control in shared.controls.items()}


@pytest.fixture
def panel(shared, beginning) -> Panel:
    """Return the panel that the tests of a file share, as it was at first but for what it knows already."""
    shared.set(**beginning)
    shared.tests.clear()
    shared.flush()
    return shared


@pytest.fixture(scope="module")
def quick_latency():
    """Take a time from the parameters, so that the tests need not measure one."""
    latency = lambda network, batch_size, _images: 1e-8 * batch_size * count_parameters(network)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kd_lab.panels.measurement.latency", latency)
        yield


@pytest.fixture
def losses_in(monkeypatch) -> Callable[[ModuleType], list]:
    """Return a function that gives the losses of the trainings that a module begins from then on, in turn."""

    def listen(module: ModuleType) -> list:
        losses, begin = [], module.train_live
        monkeypatch.setattr(
            module,
            "train_live",
            lambda model, data, loss, **settings: losses.append(loss) or begin(model, data, loss, **settings),
        )
        return losses

    return listen


@pytest.fixture
def reads(monkeypatch) -> list:
    """Return a list of the data that a panel reveals an accuracy on, from then on."""
    reads, read = [], panel_module.accuracy
    monkeypatch.setattr(panel_module, "accuracy", lambda model, data: reads.append(data) or read(model, data))
    return reads


@pytest.fixture
def button() -> Callable[[Panel, str], Button]:
    """Return a function that gives a panel's button of a name."""
    return lambda panel, name: next(
        child for child in panel._box.children[1].children if isinstance(child, Button) and child.description == name
    )


@pytest.fixture
def outside(monkeypatch) -> list[str]:
    """Return the texts that were drawn, but not wholly inside their picture, from then on."""
    found, draw = [], Text.draw

    def look(text, renderer, *arguments, **options):
        draw(text, renderer, *arguments, **options)
        box, frame = text.get_window_extent(renderer), text.figure.bbox
        if text.get_text().strip() and (box.x0 < 0 or box.y0 < 0 or box.x1 > frame.x1 or box.y1 > frame.y1):
            found.append(text.get_text())

    monkeypatch.setattr(Text, "draw", look)
    return found
