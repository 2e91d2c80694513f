"""A prediction in JupyterLab: kept by the keyboard alone, compared when it is measured, and nothing is cut off."""

import re

import pytest
from playwright.sync_api import expect
from test_pad import CELL

from benchmarks._lab import run_new_cell, show_cell
from benchmarks._reach_narrow import TOGGLE, misfits

pytestmark = pytest.mark.browser
ASK = """from kd_lab.exercises import Question, measured
from kd_lab.panels import PredictionPanel

half = Question("01.half", "How many points does lenet300 lose at 50 %?", unit="points", within=0.5)
layer = Question("01.layer", "Which layer of cnn loses most?", choices=("conv1", "conv2", "fc1", "fc2"))
PredictionPanel({question})"""


@pytest.fixture(scope="module")
def ask(page, add_panel):
    """Return a function that asks a question in a new cell and gives its form."""
    return lambda question: show_cell(page, add_panel(ASK.format(question=question))).locator(".kd-lab-prediction")


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)


def test_the_keyboard_alone_keeps_a_number_that_is_then_compared(page, ask):
    form = ask("half")
    form.get_by_role("textbox", name="your prediction: points").focus()
    cell = page.evaluate(CELL)
    page.keyboard.type("3")
    press(page, "Tab", *["ArrowRight"] * 6, "Tab", "Space")  # all at once: what is kept is what stands there
    form.get_by_text("Kept: 3 points, sure to 80 %.").wait_for()
    assert page.evaluate(CELL) == cell
    output = show_cell(page, run_new_cell(page, "measured(half, 0.22)")).locator(".jp-OutputArea")
    said = "You predicted 3 points, sure to 80 %. Measured: 0.22 points. Off by 2.78 points: not within 0.5 points."
    output.get_by_text(said).wait_for()
    again = ask("half")
    expect(again.get_by_role("textbox")).to_have_value("3")
    again.get_by_text("Kept: 3 points, sure to 80 %.").wait_for()
    again.get_by_role("textbox").fill("0.2")
    press(page, "Enter")
    again.get_by_text("Kept: 0.2 points, sure to 80 %, after it had been measured.").wait_for()


def test_the_keyboard_alone_keeps_a_choice(page, ask):
    form = ask("layer")
    form.get_by_role("button", name="Keep").focus()
    press(page, "Enter")
    form.get_by_text("Not kept. Nothing is predicted yet.").wait_for()
    form.get_by_role("radio").first.focus()
    cell = page.evaluate(CELL)
    press(page, "ArrowDown", "ArrowDown", "Tab", "End", "Tab", "Enter")
    form.get_by_text("Kept: fc1, sure to 95 %.").wait_for()
    assert page.evaluate(CELL) == cell


@pytest.mark.parametrize("width", [1280, 600])
def test_all_fits_and_every_control_has_a_name(page, ask, width):
    wide = page.viewport_size
    page.evaluate(TOGGLE)
    page.set_viewport_size({"width": width, "height": 1100})
    for question in ("half", "layer"):
        form = ask(question)
        form.get_by_role("button").wait_for()
        assert misfits(form) == []
        lines = re.findall(r"^\s*- '?(?:textbox|radio|slider|button)\b.*", form.aria_snapshot(), re.MULTILINE)
        assert len(lines) >= 3 and all(re.search(r' "\w', line) for line in lines), lines
    page.set_viewport_size(wide)
    page.evaluate(TOGGLE)
