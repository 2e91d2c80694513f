"""The panel of lesson 05 in JupyterLab and Chromium: moved while a student learns, it ends on the last setting."""

import re

import pytest
from playwright.sync_api import expect

from benchmarks._lab import cut_off, is_blank, paint, show_cell

pytestmark = pytest.mark.browser
PANEL = 'DistillationPanel(load_trained("lenet300"), data)'
WATCH = """output => {
  const seen = [];
  const note = () => {
    const headline = output.querySelector(".widget-html b")?.textContent;
    if (headline !== seen.at(-1)) seen.push(headline);
  };
  new MutationObserver(note).observe(output, { subtree: true, childList: true, characterData: true });
  return seen;
}"""


@pytest.fixture(scope="module")
def output(page, add_panel):
    return show_cell(page, add_panel(PANEL)).locator(".jp-Cell-outputArea")


@pytest.fixture
def slider(output):
    return output.get_by_role("slider", name="temperature")


def headline(output, start):
    return output.get_by_text(re.compile(f"^{start}.* of 5,000 validation images$"))


def press(slider, *keys):
    slider.focus()
    for key in keys:
        slider.page.keyboard.press(key)


def test_moved_from_1_to_20_while_a_student_learns_it_shows_20_and_nothing_else(output, slider):
    picture = output.locator("img")
    output.get_by_role("combobox", name="images").select_option("20,000")  # which takes a second or more
    seen = output.evaluate_handle(WATCH)

    def move():
        press(slider, "Home", "ArrowRight")
        headline(output, "T = 1, alpha [0-9.]+, [0-9]+ % trained").wait_for()
        press(slider, "End")
        headline(output, "T = 20, alpha [0-9.]+:").wait_for()

    frames = paint(picture, move)
    headlines = seen.json_value()
    first = next(place for place, line in enumerate(headlines) if line.startswith("T = 20,"))
    assert all(line.startswith("T = 20,") for line in headlines[first:])
    assert not any(line.startswith("T = 1, ") and "trained" not in line for line in headlines)  # it was stopped
    assert len(frames) > 3 and not any(map(is_blank, frames))
    assert output.get_by_text("Error").count() == 0

    shown = picture.screenshot()
    press(slider, "Home")
    headline(output, "T = 0.5,").wait_for()
    press(slider, "End")  # its student is kept, so this draws it once more
    headline(output, "T = 20, alpha [0-9.]+:").wait_for()
    slider.page.wait_for_timeout(500)
    assert picture.screenshot() == shown


def test_the_second_view_follows_at_once_and_trains_nothing(output, slider):
    output.get_by_role("combobox", name="view").select_option("soft targets only")
    press(slider, "Home", "ArrowRight")
    line = output.get_by_text(re.compile("^T = 1: the teacher gives 0.00[0-9]+ % to other digits than 4"))
    line.wait_for()
    press(slider, "End")
    expect(line).to_have_count(0)
    output.get_by_text(re.compile("^T = 20: the teacher gives 80 % to other digits than 4")).wait_for()
    output.get_by_role("combobox", name="view").select_option("train a student")
    headline(output, "T = 20, alpha [0-9.]+:").wait_for()  # known from before


@pytest.mark.parametrize(
    ("images", "width", "key", "temperature"), [("500", "End", "Home", "0.5"), ("55,000", "Home", "End", "20")]
)
def test_nothing_is_cut_off(output, slider, images, width, key, temperature):
    output.get_by_role("combobox", name="images").select_option(images)
    press(output.get_by_role("slider", name="width"), width)
    press(slider, key)
    headline(output, f"T = {temperature}, alpha [0-9.]+:").wait_for()
    expect(output.get_by_text("…", exact=True)).to_have_count(0)
    assert not cut_off(output)
    last = output.get_by_role("row", name="settings tested so far")
    tested = last.inner_text()
    output.get_by_role("button", name="Reveal test").click()
    expect(last).not_to_have_text(tested)
    assert not cut_off(output)
    output.get_by_role("combobox", name="view").select_option("soft targets only")
    output.get_by_text(re.compile("^T = [0-9.]+: the teacher gives")).wait_for()
    assert not cut_off(output)
    output.get_by_role("combobox", name="view").select_option("train a student")
