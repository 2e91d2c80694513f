"""On the served page one draws digits, and all networks that are served answer side by side."""

import pytest
from strokes import DRAWINGS, draw

from kd_lab.checkpoints import load_trained
from kd_lab.deployment import serve
from kd_lab.pruning import prune
from kd_lab.quantization import quantize_model, to_integer

pytestmark = pytest.mark.browser
READY = "() => !running && !changed"


@pytest.fixture(scope="module")
def served_page(mnist, other_page):
    """Open the page that serves the same network dense, pruned and on integers; nothing else may be asked for."""
    dense = load_trained("cnn")
    integer = to_integer(quantize_model(dense, mnist.train.images[:100]))
    models = {"cnn": dense, "cnn_pruned": prune(dense, 0.8), "cnn_integer": integer, "lenet300": "lenet300"}
    page = other_page
    with serve(models, http_port=0, grpc_port=0) as servers:
        troubles, asked_for = [], []
        page.on("pageerror", lambda error: troubles.append(error))
        page.on("request", lambda request: asked_for.append(request.url))
        page.goto(servers.page)
        page.wait_for_selector("#pad canvas")
        yield page
        assert not troubles and all(url.startswith((servers.http, "data:")) for url in asked_for)


def answers(page):
    page.wait_for_function(READY)
    return page.locator("#answers td b").all_inner_texts()


def test_digits_drawn_by_two_hands_are_read(served_page):
    right = 0
    for digit, strokes in DRAWINGS:
        served_page.click("#pad button")
        draw(served_page, strokes)
        right += answers(served_page)[0] == str(digit)
    assert right >= 18


def test_all_networks_answer_with_bytes_and_milliseconds(served_page):
    draw(served_page, DRAWINGS[0][1])
    assert len(answers(served_page)) == 4
    rows = [row.split("\t") for row in served_page.locator("#answers tr").all_inner_texts()]
    assert [row[0] for row in rows] == ["cnn", "cnn_pruned", "cnn_integer", "lenet300"]
    assert all(int(row[2].replace(",", "")) > 1000 and float(row[3]) > 0 for row in rows)
    served_page.click("#pad button")
    assert answers(served_page) == [] and served_page.inner_text("#said") == "Nothing is drawn yet."


def test_keys_draw_and_wipe(served_page):
    served_page.focus("#pad canvas")
    for _ in range(6):
        served_page.keyboard.press("ArrowUp")
    served_page.keyboard.down("Shift")
    for _ in range(12):
        served_page.keyboard.press("ArrowDown")
    served_page.keyboard.up("Shift")
    assert answers(served_page)[0] == "1"
    served_page.keyboard.press("Delete")
    assert answers(served_page) == []


@pytest.mark.parametrize("width", [300, 375, 1280])
def test_nothing_is_cut_off_or_jumps(width, served_page):
    served_page.set_viewport_size({"width": width, "height": 900})
    size = "[document.documentElement.scrollWidth, document.querySelector('table').getBoundingClientRect().height]"
    served_page.click("#pad button")
    empty = served_page.evaluate(size)
    draw(served_page, DRAWINGS[3][1])
    assert len(answers(served_page)) == 4
    assert served_page.evaluate(size) == empty and empty[0] <= width


def test_without_the_token_the_page_says_so(served_page):
    address = served_page.url
    served_page.goto(address.partition("?")[0])
    served_page.wait_for_function("() => document.getElementById('said').textContent.includes('Send the token')")
    served_page.goto(address)
