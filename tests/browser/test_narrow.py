"""All panels in JupyterLab and in Voila, on narrow pages and on a wide one: all works, all fits, nothing jumps."""

import re
from types import SimpleNamespace

import pytest
from playwright.sync_api import expect
from strokes import DRAWINGS, draw

from benchmarks._lab import LOADED, voila, write_notebook
from benchmarks._reach_narrow import (
    HEIGHTS,
    MEASURED,
    MORE,
    PANELS,
    TOGGLE,
    WIDTHS,
    in_lab,
    in_voila,
    misfits,
    press,
    resize,
    wait_for,
)

pytestmark = pytest.mark.browser
SLIDING = [name for name, source in PANELS.items() if not source.startswith(("Drawing", "Prediction", "IFrame"))]
CLEAR = "() => jupyterapp.commands.execute('notebook:clear-all-cell-outputs')"
WIDE = 1280  # pixels, of a laptop's screen
STILL = [name for name in PANELS if name not in SLIDING]


@pytest.fixture(scope="module")
def in_jupyterlab(page, add_panel):
    """Make JupyterLab's page narrow, for the tests of this file, and return a function that adds a panel."""
    wide = page.viewport_size
    page.evaluate(TOGGLE)
    add_panel(MORE)
    yield SimpleNamespace(page=page, show=lambda name: in_lab(page)(add_panel(PANELS[name])))
    page.evaluate(CLEAR)  # other files look for the only pad on the page
    page.set_viewport_size(wide)
    page.evaluate(TOGGLE)


@pytest.fixture(scope="module")
def in_a_voila_page(other_page, tmp_path_factory):
    """Open all panels in Voila, and return a function that finds one; only its server may be asked for a thing."""
    folder, asked_for, troubles = tmp_path_factory.mktemp("voila"), [], []
    notebook = write_notebook(folder / "panels.ipynb", f"{LOADED}\n{MORE}", *PANELS.values())
    places = {name: place for place, name in enumerate(PANELS, 1)}
    patch = pytest.MonkeyPatch()
    patch.setenv("KD_LAB_JOURNAL", str(folder / "journal.jsonl"))
    with voila(notebook, folder / "home") as address:
        patch.undo()
        other_page.on("response", lambda response: asked_for.append(response.url))
        other_page.on("requestfailed", lambda request: request.failure == "csp" or asked_for.append(request.url))
        other_page.on("pageerror", lambda error: troubles.append(error))
        other_page.goto(address, timeout=0)
        yield SimpleNamespace(page=other_page, show=lambda name: in_voila(other_page)(places[name]), folder=folder)
        server = address.partition("?")[0]
        assert all(url.startswith((server, f"blob:{server}", "data:")) for url in asked_for) and not troubles


@pytest.fixture(params=["in_jupyterlab", "in_a_voila_page"])
def front_end(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("name", SLIDING)
def test_the_keyboard_moves_the_slider_and_all_fits_and_nothing_jumps(front_end, name):
    resize(front_end.page, WIDTHS[0])
    panel = front_end.show(name)
    wait_for(panel)
    assert 400 < panel.bounding_box()["width"] < 600 and misfits(panel) == []
    width, height = panel.locator("img").evaluate("image => [image.clientWidth, image.clientHeight]")
    natural = panel.locator("img").evaluate("image => image.naturalWidth / image.naturalHeight")
    assert width / height == pytest.approx(natural, rel=0.02)
    heights, table = panel.evaluate(HEIGHTS), panel.locator("table").first
    for key in ("Home", "End"):
        before = table.inner_text()
        press(panel, key)
        assert panel.evaluate(HEIGHTS) == heights
        panel.get_by_text(MEASURED).first.wait_for()
        expect(table).not_to_have_text(before, use_inner_text=True)
        assert panel.evaluate(HEIGHTS) == heights and misfits(panel) == []
    for other in (WIDTHS[1], WIDE):
        resize(front_end.page, other)
        assert misfits(panel) == []


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", STILL)
def test_what_has_no_slider_for_a_network_fits(front_end, name, width):
    resize(front_end.page, width)
    panel = front_end.show(name)
    wait_for(panel)
    assert misfits(panel) == []


def test_in_voila_a_prediction_is_kept(in_a_voila_page):
    form = in_a_voila_page.show("PredictionPanel, number")
    form.get_by_role("textbox").fill("3")
    form.get_by_role("slider").press("End")
    form.get_by_role("button", name="Keep").click()
    form.get_by_text("Kept: 3 points, sure to 95 %.").wait_for()
    assert '"of": "01.half"' in (in_a_voila_page.folder / "journal.jsonl").read_text()


def test_in_voila_a_drawn_digit_is_read(in_a_voila_page):
    pad = in_a_voila_page.show("DrawingPanel")
    pad.get_by_text("This example is read as").wait_for()
    digit, strokes = DRAWINGS[4]
    pad.locator("canvas").scroll_into_view_if_needed()
    draw(in_a_voila_page.page, strokes, ".kd-lab-drawing canvas")
    pad.get_by_text(re.compile(f"Your digit is read as .*{digit}")).wait_for()
