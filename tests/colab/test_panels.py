"""Every panel in the classic notebook, the front end of ipywidgets 7, in Chromium: keys move it, pictures follow."""

import os
import re
from unittest.mock import patch

import pytest
from playwright.sync_api import expect

from benchmarks._lab import LOADED, browser, server, write_notebook
from benchmarks._reach_colab import COLAB, environment

pytestmark = pytest.mark.xdist_group("panels")
FIRST = LOADED + "\nfrom kd_lab.exercises import Question"
PANELS = {  # what the title begins with at both ends of the slider
    'PruningPanel(load_trained("lenet300"), few)': ("0 % pruned", "99 % pruned"),
    'StructuredPruningPanel(load_trained("cnn"), few)': ("0 % removed", "94.9 % removed"),
    'LeastSquaresPanel(load_trained("lenet300"), few, "fc2")': ("0 % of layer fc2", "99 % of layer fc2"),
    'LowRankPanel(load_trained("lenet300"), few, "fc1")': ("Rank 1 of fc1", "Rank 300 of fc1"),
    'QuantizationPanel(load_trained("cnn"), few)': ("1-bit weights", "8-bit weights"),
    'DistillationPanel(load_trained("lenet300"), few)': ("T = 0.5,", "T = 20,"),
    'RecipePanel(load_trained("mlp128"), load_trained("lenet300"), few)': ("50 % pruned", "99 % pruned"),
    "FrontierPanel(few)": ("open_|lenet5_", "open_|lenet5_"),
}
OTHERS = (
    'DrawingPanel({"mlp128": load_trained("mlp128"), "small": "lenet5_classic"})',
    'PredictionPanel(Question("01.half", "How many points are lost?", "points", within=0.5))',
    'PredictionPanel(Question("01.layer", "Which layer loses most?", choices=("conv1", "conv2", "fc1")))',
)
READY = "() => window.Jupyter?.notebook?.kernel?.widget_manager && Jupyter.notebook.kernel.is_connected()"
# The manager asks the kernel for widgets and then draws all outputs again, which would lose those that have come since.
ASKED = "() => new Promise((answered) => Jupyter.notebook.kernel.comm_info('jupyter.widget', answered))"
RAN = "() => !document.querySelector('.code_cell.running')"
expect.set_options(timeout=60_000)  # milliseconds; nothing here fails for being slow


@pytest.fixture(scope="module")
def page(folder):
    """Run every panel in one notebook of the classic front end; nothing comes from outside, and nothing fails there."""
    write_notebook(folder / "panels.ipynb", FIRST, *PANELS, *OTHERS)
    with browser() as page, patch.dict(os.environ, environment(folder), clear=True):
        asked_for, troubles = [], []
        page.on("request", lambda request: asked_for.append(request.url))
        page.on("pageerror", lambda error: troubles.append(error))
        with server(folder, folder / "jupyter", COLAB / "bin" / "python", "-m", "nbclassic") as (address, token):
            page.goto(f"{address}notebooks/panels.ipynb?token={token}", wait_until="domcontentloaded")
            page.wait_for_function(READY)
            for run in ("execute_cells([0])", "execute_all_cells()"):
                page.evaluate(f"Jupyter.notebook.{run}")
                page.wait_for_function(RAN)
                page.evaluate(ASKED)
            yield page
    assert all(url.startswith((address, f"blob:{address}", "data:")) for url in asked_for) and not troubles


@pytest.fixture
def show(page):
    """Return a function that selects the cell with a source and gives its output; no key may select another."""
    places = []

    def show(source):
        places.append([FIRST, *PANELS, *OTHERS].index(source))
        page.evaluate("(place) => Jupyter.notebook.select(place)", places[-1])
        return page.locator(".code_cell").nth(places[-1]).locator(".output")

    yield show
    assert page.evaluate("Jupyter.notebook.get_selected_index()") == places[-1]


@pytest.mark.parametrize("source", PANELS, ids=lambda source: source.split("(")[0])
def test_keys_move_the_slider_and_the_picture_follows(show, page, source):
    panel = show(source).locator(".kd-lab-panel")
    slider, picture = panel.get_by_role("slider").first, panel.locator("img")
    for key, said in zip(("Home", "End"), PANELS[source], strict=True):
        before = picture.get_attribute("src")
        slider.focus()
        page.keyboard.press(key)
        expect(panel.locator(".kd-lab-title")).to_have_text(re.compile(f"^{said}"))
        expect(picture).not_to_have_attribute("src", before)


def test_keys_draw_a_digit_that_is_read(show, page):
    panel = show(OTHERS[0]).locator(".kd-lab-panel")
    picture = panel.locator("img")
    before = picture.get_attribute("src")
    panel.locator("canvas").focus()
    for key in ["ArrowUp"] * 6 + ["Shift+ArrowDown"] * 12:
        page.keyboard.press(key)
    panel.get_by_text("Your digit is read as 1").wait_for()
    expect(picture).not_to_have_attribute("src", before)


def test_keys_keep_a_number_and_a_choice(show, page):
    form = show(OTHERS[1]).locator(".kd-lab-prediction")
    form.get_by_role("textbox").focus()
    for key in ["3", "Tab", *["ArrowRight"] * 6, "Tab", "Space"]:
        page.keyboard.press(key)
    form.get_by_text("Kept: 3 points, sure to 80 %.").wait_for()
    form = show(OTHERS[2]).locator(".kd-lab-prediction")
    form.get_by_role("radio").first.focus()
    for key in ("ArrowDown", "ArrowDown", "Tab", "End", "Tab", "Enter"):
        page.keyboard.press(key)
    form.get_by_text("Kept: fc1, sure to 95 %.").wait_for()
