"""All panels on a page 600 pixels wide, in JupyterLab and Chromium: all fits, and nothing scrolls sideways."""

import re

import pytest
from playwright.sync_api import expect

from benchmarks._lab import cut_off, show_cell

pytestmark = pytest.mark.browser
PANELS = (
    'PruningPanel(load_trained("lenet300"), few)',
    'StructuredPruningPanel(load_trained("cnn"), few)',
    'LeastSquaresPanel(load_trained("lenet300"), few, "fc2")',
    'LowRankPanel(load_trained("lenet300"), few, "fc1")',
    'QuantizationPanel(load_trained("cnn"), few)',
    'DistillationPanel(load_trained("lenet300"), few)',
    'RecipePanel(load_trained("mlp128"), load_trained("lenet300"), few)',
)
TOGGLE = "() => jupyterapp.commands.execute('application:toggle-left-area')"
SIZES = """panel => {
  const {left, right} = panel.getBoundingClientRect(), parts = [panel, ...panel.querySelectorAll("*")];
  const beyond = part => part.getBoundingClientRect().right > right + 1 || part.getBoundingClientRect().left < left - 1;
  const scrolls = part => part.scrollWidth > part.clientWidth + 1 && getComputedStyle(part).overflowX !== "visible";
  return parts.filter(part => part.clientWidth && (beyond(part) || scrolls(part))).map(part => part.outerHTML);
}"""
HEIGHTS = "panel => [...panel.children].map(part => part.getBoundingClientRect().height)"


@pytest.fixture(scope="module")
def narrow(page, add_panel):
    """Make the page narrow, for the tests of this file, and return the function that adds a panel."""
    wide = page.viewport_size
    page.evaluate(TOGGLE)
    page.set_viewport_size({"width": 600, "height": 1100})
    yield add_panel
    page.set_viewport_size(wide)
    page.evaluate(TOGGLE)


@pytest.fixture(params=PANELS, ids=lambda source: source.split("(")[0])
def panel(page, narrow, request):
    return show_cell(page, narrow(request.param)).locator(".kd-lab-panel")


def test_all_fits_and_nothing_jumps(page, panel):
    expect(panel.get_by_text("…", exact=True)).to_have_count(0)
    assert 400 < panel.bounding_box()["width"] < 600
    assert panel.evaluate(SIZES) == [] and cut_off(panel) == []
    width, height = panel.locator("img").evaluate("image => [image.clientWidth, image.clientHeight]")
    natural = panel.locator("img").evaluate("image => image.naturalWidth / image.naturalHeight")
    assert width / height == pytest.approx(natural, rel=0.02)
    before = panel.evaluate(HEIGHTS)
    slider = panel.get_by_role("slider").first
    for key in ("Home", "End"):
        picture = panel.locator("img").get_attribute("src")
        slider.focus()
        page.keyboard.press(key)
        expect(panel.locator("img")).not_to_have_attribute("src", picture)
        panel.get_by_text(re.compile(" right |least squares [0-9]|by output [0-9]| bytes$")).first.wait_for()
        assert panel.evaluate(HEIGHTS) == before and panel.evaluate(SIZES) == []
