"""Lesson 01 as a learner meets it, in JupyterLab and Chromium: it runs, and its panel does what hands tell it."""

import re

import pytest
from playwright.sync_api import expect

from benchmarks._lab import find_cell, is_blank, open_notebook, paint, run_all, show_cell

pytestmark = pytest.mark.browser
HEADLINE = re.compile(r"(\d+) % pruned by \w+, \w+: ([\d.]+) % right .* of 5,000 validation images")


class PanelOnPage:
    """Read and move the lesson's first panel."""

    def __init__(self, page, place):
        self.page, self.place = page, place
        self.cell = show_cell(page, place)
        self.output = self.cell.locator(".jp-Cell-outputArea")
        self.slider = self.output.get_by_role("slider", name="sparsity")
        self.picture = self.output.locator("img")

    def headline(self):
        """Return percent and accuracy once the panel has measured what the slider says."""
        percent = f"{100 * float(self.slider.input_value()):.0f} % pruned"
        line = self.output.get_by_text(re.compile(f"^{percent} by .* of 5,000 "))
        line.wait_for()
        return tuple(float(number) for number in HEADLINE.search(line.inner_text()).groups())

    def press(self, key, times=1):
        self.slider.focus()
        for _ in range(times):
            self.page.keyboard.press(key)

    def drag_to(self, fraction):
        """Take the slider's handle with the mouse and drag it there."""
        box = self.slider.bounding_box()
        start = float(self.slider.input_value()) / float(self.slider.get_attribute("max"))
        for move, x in ((self.page.mouse.down, start), (self.page.mouse.up, fraction)):
            self.page.mouse.move(box["x"] + x * box["width"], box["y"] + box["height"] / 2, steps=10)
            move()

    def look(self):
        """Return the pixels of the picture on the screen once they stay as they are; a curve grows point by point."""
        before = None
        while before != (now := self.picture.screenshot()):
            before = now
            self.page.wait_for_timeout(500)
        return now


@pytest.fixture(scope="module")
def lesson(page):
    """The lesson as it is after Run All."""
    open_notebook(page, "01_magnitude_pruning.ipynb")
    return run_all(page)


@pytest.fixture
def panel(page, lesson):
    panel = PanelOnPage(page, find_cell(lesson, "PruningPanel"))
    panel.headline()
    return panel


def test_no_cell_fails_and_every_cell_has_run(lesson):
    cells = [cell for cell in lesson["cells"] if cell["cell_type"] == "code" and cell["source"]]
    failed = [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]
    assert failed == [] and all(cell["execution_count"] for cell in cells)


def test_the_keyboard_moves_the_slider_and_the_headline_follows(panel):
    percent, accuracy = panel.headline()
    panel.press("End")
    panel.press("ArrowLeft", times=4)
    assert panel.headline()[0] == 95 != percent
    assert panel.headline()[1] < accuracy


def test_the_mouse_drags_the_slider_and_the_headline_follows(panel):
    panel.press("Home")
    accuracy = panel.headline()[1]
    panel.drag_to(0.98)
    assert panel.headline()[0] == pytest.approx(97, abs=2)
    assert panel.headline()[1] < accuracy


def test_every_control_has_a_name(panel):
    for role in ("slider", "combobox", "button"):
        lines = re.findall(rf"^\s*- {role}\b.*", panel.output.aria_snapshot(), re.MULTILINE)
        assert lines and all(re.match(rf'\s*- {role} "\w', line) for line in lines), lines


def test_a_dropdown_changes_the_picture(panel):
    before = panel.look()
    for name, value in (("importance", "random"), ("scope", "per_layer"), ("importance", "magnitude")):
        source = panel.picture.get_attribute("src")
        panel.output.get_by_role("combobox", name=name).select_option(value)
        expect(panel.picture).not_to_have_attribute("src", source)
        now = panel.look()
        assert now != before
        before = now


def test_only_the_button_shows_the_accuracy_on_the_test_part(panel):
    row = panel.output.get_by_role("row", name="test part").first
    panel.press("Home")
    panel.headline()
    assert "not read" in row.inner_text()
    panel.output.get_by_role("button", name="Reveal test").click()
    panel.output.get_by_role(
        "row", name=re.compile(r"^test part \(10,000\) 98\.\d\d % \(98\.[\d.]+ to 98\.[\d.]+\)$")
    ).wait_for()


def test_no_frame_shows_a_blank_picture_while_the_slider_moves(panel):
    frames = paint(panel.picture, lambda: [panel.press(key, times=30) for key in ("Home", "ArrowRight", "ArrowLeft")])
    assert len(frames) > 10 and not any(map(is_blank, frames))


def test_a_cell_that_runs_again_leaves_one_panel_and_its_slider_works(panel):
    old = panel.headline()
    panel.cell.locator(".jp-InputArea .cm-content").click()
    panel.page.keyboard.press("Shift+Enter")
    panel.picture.wait_for(state="detached")
    again = PanelOnPage(panel.page, panel.place)
    again.headline()
    assert again.slider.count() == again.picture.count() == 1
    again.press("End")
    assert again.headline()[0] == 99 != old[0]


def test_the_keyboard_reaches_the_pin(panel):
    panel.press("Home")
    panel.headline()
    panel.output.get_by_role("button", name="Pin", exact=True).focus()
    panel.page.keyboard.press("Space")
    pinned = panel.output.get_by_text("pinned, in faint grey: sparsity 0, importance magnitude, scope global")
    pinned.wait_for()
    row = panel.output.get_by_role("row", name="against pinned, points").first
    assert row.inner_text().endswith("the same answers")
    panel.press("End")
    panel.headline()
    assert re.search(r"-[\d.]+ \(-[\d.]+ to -[\d.]+\)$", row.inner_text())
    for name in ("Pin", "Unpin"):  # the first moves it here
        panel.output.get_by_role("button", name=name, exact=True).focus()
        panel.page.keyboard.press("Space")
    expect(pinned).to_have_count(0)
    expect(row).to_have_count(0)
