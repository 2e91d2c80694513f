"""The page that a learner takes home answers as torch does, and can be used by mouse and keys, wide or narrow."""

import base64

import pytest
import torch
from strokes import DRAWINGS, STROKES, draw

from kd_lab.checkpoints import load_trained
from kd_lab.data import MEAN, STD
from kd_lab.deployment import export_page
from kd_lab.evaluation import predict_classes
from kd_lab.formats import load_packed
from kd_lab.networks.zoo import build_model
from kd_lab.quantization import quantize_model, to_integer
from kd_lab.results import RESULTS

pytestmark = pytest.mark.browser
SELF_TEST = "text => selfTest(Uint8Array.from(atob(text), letter => letter.charCodeAt(0)))"
NAMES = {"lenet300": "lenet300_taught_7_0", "lenet5": "lenet5_taught_2_0"}


@pytest.fixture(scope="module")
def models(mnist):
    """Return two packed networks, and a small one, untrained, that runs on integers."""
    packed = {name: load_packed(RESULTS / "deep_compression" / f"{file}.kdz") for name, file in NAMES.items()}
    return {**packed, "integer": to_integer(quantize_model(build_model("lenet5_classic"), mnist.train.images[:100]))}


@pytest.fixture(scope="module")
def at_home(models, other_page, tmp_path_factory):
    """Open the page with all networks as a double click does, and note what goes wrong in it."""
    path = tmp_path_factory.mktemp("page") / "page.html"
    export_page(models, path)
    troubles, asked_for = [], []
    other_page.on("pageerror", lambda error: troubles.append(error))
    other_page.on("request", lambda request: asked_for.append(request.url))
    other_page.goto(path.as_uri())
    yield other_page
    assert not troubles and all(url.startswith("file:") for url in asked_for)


@pytest.mark.parametrize("name, count", [("lenet300", 10_000), ("lenet5", 10_000), ("integer", 200)])
def test_all_answers_to_the_test_digits_are_those_of_torch(name, count, at_home, models, mnist):
    at_home.select_option("#network", name)
    assert at_home.inner_text("#check") == "This browser answers 10 of 10 stored digits as torch did."
    images = mnist.test.images[:count]
    pixels = ((images * STD + MEAN) * 255).round().to(torch.uint8)
    found = at_home.evaluate(SELF_TEST, base64.b64encode(pixels.numpy().tobytes()).decode())
    assert len(found) == count and found == predict_classes(models[name], images).tolist()


def draw_one(page):
    page.select_option("#network", "lenet300")
    draw(page, STROKES[1][0])


def test_a_drawn_digit_is_read_and_cleared(at_home):
    draw_one(at_home)
    assert at_home.inner_text("#answer") == "It is a 1."
    assert at_home.locator("#bars li").count() == 10 and at_home.inner_text("#bars .best").startswith("1")
    at_home.click("#pad button")
    assert at_home.inner_text("#answer") == "Nothing is drawn yet."


def test_digits_drawn_by_two_hands_are_read_by_cnn(at_home, tmp_path):
    export_page(load_trained("cnn"), tmp_path / "cnn.html")
    back = at_home.url
    at_home.goto((tmp_path / "cnn.html").as_uri())
    right = 0
    for digit, strokes in DRAWINGS:
        at_home.click("#pad button")
        draw(at_home, strokes)
        right += at_home.inner_text("#answer") == f"It is a {digit}."
    at_home.goto(back)
    assert right >= 18


@pytest.mark.parametrize("digit, strokes", DRAWINGS[::5])
def test_a_drawing_is_scaled_and_centred_as_those_of_mnist(digit, strokes, at_home):
    at_home.click("#pad button")
    draw(at_home, strokes)
    image = torch.tensor(at_home.evaluate("Array.from(drawn)")).view(28, 28)
    rows, columns = (image.sum(axis) * (torch.arange(28) + 0.5) for axis in (1, 0))
    assert rows.sum() / image.sum() == pytest.approx(14, abs=0.3)  # the centre of mass
    assert columns.sum() / image.sum() == pytest.approx(14, abs=0.3)
    inked = image.nonzero()
    assert (inked.max(0).values - inked.min(0).values + 1).max() in (20, 21)  # the box may lie across pixels
    assert image.min() >= 0 and image.max() == pytest.approx(1)


def test_a_pen_that_comes_in_from_outside_draws_nothing(at_home):
    at_home.click("#pad button")
    box = at_home.locator("#pad canvas").bounding_box()
    at_home.mouse.move(box["x"] - 8, box["y"] + 100)
    at_home.mouse.down()
    at_home.mouse.move(box["x"] + 140, box["y"] + 140, steps=4)
    at_home.mouse.up()
    assert at_home.inner_text("#answer") == "Nothing is drawn yet."


def test_the_slider_breaks_the_network_and_mends_it_by_keys(at_home):
    draw_one(at_home)
    before = at_home.inner_text("#bars")
    at_home.focus("#amount")
    at_home.keyboard.press("End")
    assert at_home.inner_text("#broken").startswith("0 of ") and at_home.inner_text("#bars") != before
    at_home.keyboard.press("Home")
    assert at_home.inner_text("#broken").endswith("10 of 10 stored digits are answered as before.")
    assert at_home.inner_text("#bars") == before
    at_home.check("text=Add noise")
    at_home.fill("#amount", "100")
    assert at_home.inner_text("#broken").startswith("Noise of 200 % of the weights' size")
    at_home.fill("#amount", "0")
    at_home.check("text=Prune more")
    assert at_home.inner_text("#bars") == before


def test_keys_reach_everything(at_home):
    at_home.evaluate("document.activeElement.blur()")
    reached = []
    for _ in range(6):
        at_home.keyboard.press("Tab")
        reached.append(at_home.evaluate("document.activeElement.id || document.activeElement.localName"))
    assert {"network", "canvas", "button", "amount"} <= set(reached)


@pytest.mark.parametrize("width", [300, 375, 1280])
def test_nothing_is_cut_off(width, at_home):
    at_home.set_viewport_size({"width": width, "height": 800})
    assert at_home.evaluate("document.documentElement.scrollWidth") <= width
    assert all(
        box["x"] >= 0 and box["x"] + box["width"] <= width
        for box in map(lambda part: part.bounding_box(), at_home.locator("main *:visible").all())
        if box
    )
