"""Lesson 11's pad in JupyterLab: drawn digits are read, nothing jumps, is cut off or comes from outside."""

import pytest
from playwright.sync_api import expect
from strokes import DRAWINGS, draw

from benchmarks._lab import show_cell
from benchmarks._reach_narrow import HEIGHTS, TOGGLE, misfits

pytestmark = pytest.mark.browser
PANEL = """from kd_lab.pruning import prune
from kd_lab.quantization import quantize_model, to_integer

cnn = load_trained("cnn")
integer = to_integer(quantize_model(cnn, data.train.images[:100]))
DrawingPanel({"cnn": cnn, "pruned": prune(cnn, 0.8), "int8": integer, "small": "lenet5_classic"})"""
CANVAS = ".kd-lab-drawing canvas"
CELL = "() => jupyterapp.shell.currentWidget.content.activeCellIndex"
CALM = 200  # milliseconds in which no other picture comes


@pytest.fixture(scope="module")
def pad(page, add_panel):
    """Show the panel, and note what is asked for from then on."""
    asked_for, troubles = [], []
    page.on("request", lambda request: asked_for.append(request.url))
    page.on("pageerror", lambda error: troubles.append(error))
    panel = show_cell(page, add_panel(PANEL)).locator(".kd-lab-panel")
    panel.locator("canvas").wait_for()
    yield panel
    server = page.url.partition("/lab")[0]
    assert all(url.startswith((server, f"blob:{server}", "data:")) for url in asked_for) and not troubles


def answers(pad):
    """Return what the networks say once the picture stays as it is."""
    picture = None
    while picture != (picture := pad.locator("img").get_attribute("src")):
        pad.page.wait_for_timeout(CALM)
    return [cell.split(",")[0] for cell in pad.locator("td:nth-child(2)").all_inner_texts()]


def clear(pad):
    pad.get_by_role("button", name="Clear").click()
    pad.get_by_text("This example is read as").wait_for()


def test_digits_drawn_by_two_hands_are_read_by_cnn(pad):
    right = 0
    for digit, strokes in DRAWINGS:
        clear(pad)
        draw(pad.page, strokes, CANVAS)
        pad.get_by_text("Your digit is read as").wait_for()
        right += answers(pad)[0] == str(digit)
    assert right >= 18


def test_all_networks_answer_with_bytes_and_milliseconds(pad):
    expect(pad.get_by_text("…", exact=True)).to_have_count(0)
    rows = [row.inner_text().split("\t") for row in pad.locator("tbody tr").all()]
    assert [row[0] for row in rows] == ["cnn", "pruned", "int8", "small"]
    assert all(int(row[2].replace(",", "")) > 1000 and float(row[3]) > 0 for row in rows)


def test_keys_draw_and_wipe_and_move_no_cell(pad):
    clear(pad)
    cell = pad.page.evaluate(CELL)
    pad.locator("canvas").focus()
    for _ in range(6):
        pad.page.keyboard.press("ArrowUp")
    for _ in range(12):
        pad.page.keyboard.press("Shift+ArrowDown")
    pad.get_by_text("Your digit is read as").wait_for()
    assert answers(pad)[0] == "1" and pad.page.evaluate(CELL) == cell
    pad.page.keyboard.press("Delete")
    pad.get_by_text("This example is read as").wait_for()


@pytest.fixture(params=[1280, 600, 375])
def width(pad, request):
    wide = pad.page.viewport_size
    pad.page.evaluate(TOGGLE)
    pad.page.set_viewport_size({"width": request.param, "height": 1100})
    yield request.param
    pad.page.set_viewport_size(wide)
    pad.page.evaluate(TOGGLE)


def test_all_fits_and_nothing_jumps(pad, width):
    pad.scroll_into_view_if_needed()
    clear(pad)
    before = pad.evaluate(HEIGHTS)
    box, canvas = pad.bounding_box(), pad.locator("canvas").bounding_box()
    assert canvas["width"] == pytest.approx(min(280, box["width"]), abs=1) and canvas["height"] == canvas["width"]
    draw(pad.page, DRAWINGS[4][1], CANVAS)
    expect(pad.get_by_text("Your digit is read as 2")).to_have_count(1)
    answers(pad)
    assert pad.evaluate(HEIGHTS) == before and misfits(pad) == []


def test_a_second_view_wipes_nothing(pad):
    page = pad.page
    draw(page, DRAWINGS[8][1], CANVAS)
    pad.get_by_text("Your digit is read as").wait_for()
    drawn = answers(pad)
    page.evaluate("() => jupyterapp.commands.execute('notebook:create-output-view')")
    expect(page.locator(CANVAS)).to_have_count(2)
    assert answers(pad) == drawn and pad.get_by_text("Your digit is read as").count() == 1
    page.evaluate("() => [...jupyterapp.shell.widgets('main')].find(view => !view.context).close()")
    expect(page.locator(CANVAS)).to_have_count(1)
