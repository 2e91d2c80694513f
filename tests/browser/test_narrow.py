"""All panels on a page 600 pixels wide, in JupyterLab and Chromium: all fits, and nothing scrolls sideways."""

import re

import pytest
from playwright.sync_api import expect

from benchmarks._lab import cut_off, find_cell, lab, run_all, show_cell, write_notebook

pytestmark = pytest.mark.browser
LOADED = """from kd_lab.checkpoints import load_trained
from kd_lab.data import Mnist, load_mnist
from kd_lab.panels import *
train, validation, test = load_mnist()
data = Mnist(train[:2000], validation, test)
"""
PANELS = {
    "PruningPanel": 'PruningPanel(load_trained("lenet300"), data)',
    "StructuredPruningPanel": 'StructuredPruningPanel(load_trained("cnn"), data)',
    "LeastSquaresPanel": 'LeastSquaresPanel(load_trained("lenet300"), data, "fc2")',
    "QuantizationPanel": 'QuantizationPanel(load_trained("cnn"), data)',
    "DistillationPanel": 'DistillationPanel(load_trained("lenet300"), data)',
    "RecipePanel": 'RecipePanel(load_trained("mlp128"), load_trained("lenet300"), data)',
}
SIZES = """panel => {
  const {left, right} = panel.getBoundingClientRect(), parts = [panel, ...panel.querySelectorAll("*")];
  const beyond = part => part.getBoundingClientRect().right > right + 1 || part.getBoundingClientRect().left < left - 1;
  const scrolls = part => part.scrollWidth > part.clientWidth + 1 && getComputedStyle(part).overflowX !== "visible";
  return parts.filter(part => part.clientWidth && (beyond(part) || scrolls(part))).map(part => part.outerHTML);
}"""
HEIGHTS = "panel => [...panel.children].map(part => part.getBoundingClientRect().height)"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = write_notebook(tmp_path_factory.mktemp("panels") / "panels.ipynb", *map(LOADED.__add__, PANELS.values()))
    with lab(path) as page:
        page.ran = run_all(page)
        page.evaluate("() => jupyterapp.commands.execute('application:toggle-left-area')")
        page.set_viewport_size({"width": 600, "height": 1100})
        yield page


@pytest.fixture(params=PANELS)
def panel(page, request):
    return show_cell(page, find_cell(page.ran, request.param)).locator(".kd-lab-panel")


def test_all_fits_and_nothing_jumps(page, panel):
    expect(panel.get_by_text("…", exact=True)).to_have_count(0, timeout=20_000)
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
        panel.get_by_text(re.compile(" right |least squares [0-9]| bytes$")).first.wait_for(timeout=100_000)
        assert panel.evaluate(HEIGHTS) == before and panel.evaluate(SIZES) == []
