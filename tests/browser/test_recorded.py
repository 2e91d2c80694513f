"""A page of recorded answers is used by keys, from file://, wide or narrow, and with nothing else at hand."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from kd_lab.checkpoints import load_trained
from kd_lab.data import Mnist
from kd_lab.networks.zoo import small_student
from kd_lab.panels import (
    DistillationPanel,
    DrawingPanel,
    FrontierPanel,
    LeastSquaresPanel,
    LowRankPanel,
    PruningPanel,
    QuantizationPanel,
    RecipePanel,
    StructuredPruningPanel,
)
from kd_lab.panels.measurement import Measurement

pytestmark = pytest.mark.browser
SETTINGS = [
    *({"sparsity": sparsity} for sparsity in (0.5, 0.0, 0.8, 0.95)),
    *({"sparsity": sparsity, "scope": "per_layer"} for sparsity in (0.5, 0.95)),
    {"sparsity": 0.8, "importance": "random", "scope": "per_layer"},
]
CUT_OFF = """page => [...page.querySelectorAll("*")].filter(part => {
  const box = part.getBoundingClientRect(), hidden = getComputedStyle(part).overflowX !== "visible";
  return box.width && (box.left < 0 || box.right > innerWidth || (hidden && part.scrollWidth > part.clientWidth + 1));
}).map(part => part.outerHTML)"""
SCALES = "image => [image.clientWidth / image.width, image.clientHeight / image.height]"
PIXELS = "canvas => canvas.toDataURL().split(',')[1]"


@pytest.fixture(scope="module")
def part(mnist):
    return Mnist(mnist.train[:500], mnist.validation[:200], mnist.test[:10])


@pytest.fixture(scope="module")
def pruning(part):
    panel = PruningPanel(load_trained("mlp128"), part)
    yield panel
    panel.close()


@pytest.fixture(scope="module")
def written(pruning, tmp_path_factory):
    path = tmp_path_factory.mktemp("recorded") / "pruning.html"
    pruning.save_html(path, SETTINGS)
    return path


@pytest.fixture
def recorded(other_page, written):
    """Open the page as a double click does, and note what goes wrong in it and what it asks for."""
    troubles, asked_for = [], []
    hear = {
        "pageerror": lambda error: troubles.append(error),
        "console": lambda message: troubles.append(message.text),
        "request": lambda request: asked_for.append(request.url),
    }
    for event, listen in hear.items():
        other_page.on(event, listen)
    other_page.set_viewport_size({"width": 1280, "height": 900})
    other_page.goto(written.as_uri())
    yield other_page
    for event, listen in hear.items():
        other_page.remove_listener(event, listen)
    assert troubles == [] and {url for url in asked_for if not url.startswith("data:")} == {written.as_uri()}


def slider(page, name="sparsity"):
    return page.get_by_role("slider", name=name, exact=True)


def choices(page, name):
    return page.get_by_role("combobox", name=name, exact=True)


def expect_shown(page, panel, **setting):
    """Expect all that the live panel shows at a setting, the picture pixel by pixel."""
    panel.set(**setting)
    shown = panel.flush()
    expect(page.locator(".kd-lab-title")).to_have_text(shown.title)
    canvas = page.get_by_role("img", name=shown.title, exact=True)
    expect(canvas).to_have_count(1)
    seen, live = (
        np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))
        for png in (base64.b64decode(canvas.evaluate(PIXELS)), shown.png)
    )
    assert np.array_equal(seen, live)
    accuracy = re.search(r"accuracy.*?<td[^>]*> *(.*?)</td>", shown.tables)[1]
    expect(page.get_by_role("row", name=re.compile("^accuracy"))).to_contain_text(accuracy)


def test_keys_move_from_recorded_value_to_recorded_value(recorded, pruning):
    pruning.set(importance="magnitude", scope="global")
    expect_shown(recorded, pruning, sparsity=0.5)
    slider(recorded).focus()
    for key, sparsity, text in (
        ("ArrowRight", 0.8, "80 %"),
        ("ArrowRight", 0.95, "95 %"),
        ("ArrowRight", 0.95, "95 %"),
        ("Home", 0.0, "0 %"),
        ("ArrowUp", 0.5, "50 %"),
        ("End", 0.95, "95 %"),
        ("ArrowLeft", 0.8, "80 %"),
    ):
        recorded.keyboard.press(key)
        assert slider(recorded).get_attribute("aria-valuetext") == text
        expect(recorded.locator(".kd-lab-slider output")).to_have_text(text)
        expect_shown(recorded, pruning, sparsity=sparsity)
    expect(recorded.get_by_role("status").filter(has_text="nearest")).to_have_count(0)


def test_a_list_obeys_and_what_was_not_recorded_with_it_moves_and_says_so(recorded, pruning):
    slider(recorded).focus()
    recorded.keyboard.press("Home")
    moved = recorded.locator(".kd-lab-moved")
    choices(recorded, "scope").select_option("per_layer")
    expect(moved).to_have_text(re.compile("^Not recorded .* so the nearest: sparsity to 50 %.$"))
    expect_shown(recorded, pruning, sparsity=0.5, importance="magnitude", scope="per_layer")
    slider(recorded).focus()
    recorded.keyboard.press("ArrowRight")  # 80 % is recorded with global alone
    expect(moved).to_have_text("")
    expect_shown(recorded, pruning, sparsity=0.95)
    choices(recorded, "importance").select_option("random")
    expect(moved).to_have_text(re.compile("nearest: sparsity to 80 %.$"))
    expect_shown(recorded, pruning, sparsity=0.8, importance="random", scope="per_layer")
    assert slider(recorded).is_disabled()  # it is the only one
    choices(recorded, "scope").select_option("global")
    expect(moved).to_have_text(re.compile("nearest: importance to magnitude.$"))
    expect_shown(recorded, pruning, sparsity=0.8, importance="magnitude", scope="global")


def test_only_what_is_recorded_can_be_chosen(recorded):
    options = (
        choices(recorded, "importance")
        .locator("option")
        .evaluate_all("all => all.map(each => [each.value, each.disabled])")
    )
    assert [value for value, disabled in options if not disabled] == ["magnitude", "random"] and len(options) == 4


def test_keys_reach_every_control_in_order_and_the_focus_is_seen(recorded):
    reached = []
    for _ in range(3):
        recorded.keyboard.press("Tab")
        reached.append(recorded.evaluate("document.activeElement.closest('label').firstChild.data.trim()"))
        assert recorded.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert reached == ["sparsity", "importance", "scope"]


def test_it_says_that_it_is_recorded_and_what_changes_is_read_aloud(recorded):
    expect(recorded.get_by_role("main", name="PruningPanel, recorded")).to_contain_text(
        "recorded 7 settings, measured on"
    )
    assert recorded.locator(".kd-lab-title").get_attribute("aria-live") == "polite"
    assert recorded.title() == "PruningPanel, recorded"


def test_the_first_answer_is_there_without_javascript(recorded, written, pruning):
    context = recorded.context.browser.new_context(java_script_enabled=False, viewport={"width": 375, "height": 800})
    page = context.new_page()
    page.goto(written.as_uri())
    pruning.set(**SETTINGS[0], importance="magnitude", scope="global")
    shown = pruning.flush()
    assert page.get_by_role("img", name=shown.title, exact=True).is_visible()
    assert page.locator("noscript p").is_visible()
    assert (
        page.get_by_role("row").count() == len(re.findall("<tr>", shown.tables)) - 2
    )  # without those of the test part
    assert page.get_by_role("slider").count() == 0
    context.close()


SOFT = {"view": "soft targets only"}
PANELS = {
    "pruning": (PruningPanel, [{}, {"sparsity": 0.9}]),
    "structured": (StructuredPruningPanel, [{}, {"ratio": 0.9}]),
    "least squares": (lambda *given: LeastSquaresPanel(*given, "fc2"), [{}, {"sparsity": 0.9}]),
    "low rank": (lambda *given: LowRankPanel(*given, "fc2"), [{}, {"rank": 2}]),
    "quantization": (QuantizationPanel, [{}, {"weight_bits": 2}]),
    "distillation": (DistillationPanel, [SOFT, {"temperature": 8.0, **SOFT}]),
    "recipe": (lambda network, data: RecipePanel(small_student(5), network, data), [{}, {"bits": 1}]),
    "frontier": (lambda _network, data: FrontierPanel(data), [{}, {"budget": 500}]),
}


@pytest.fixture
def quick(monkeypatch):
    """Measure as little as can be: what the page does with it counts here."""
    monkeypatch.setattr("kd_lab.panels.measurement.latency", lambda *_: 1e-3)
    complete = Measurement.complete
    few = lambda measurement, curve, places, network_at: complete(measurement, curve, [*places][::7], network_at)
    monkeypatch.setattr(Measurement, "complete", few)


def check_all_fits(page, path):
    page.goto(path.as_uri())
    for width in (1280, 600, 375):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.get_by_role("main").evaluate(CUT_OFF) == []
        wide, high = page.get_by_role("img").evaluate(SCALES)
        assert wide == pytest.approx(high, rel=0.02) and 0.4 < wide <= 1


@pytest.mark.parametrize("name", PANELS)
def test_every_panel_fits_and_follows_its_slider(name, part, other_page, tmp_path, quick):
    make, settings = PANELS[name]
    panel = make(load_trained("mlp128"), part)
    panel.save_html(tmp_path / "page.html", settings)
    check_all_fits(other_page, tmp_path / "page.html")
    panel.set(**settings[1])
    title = panel.flush().title
    moving = slider(other_page, next(iter(settings[1])))
    expect(other_page.get_by_role("img", name=title, exact=True)).to_have_count(0)
    moving.focus()
    other_page.keyboard.press("ArrowLeft" if moving.input_value() == "1" else "ArrowRight")
    expect(other_page.get_by_role("img", name=title, exact=True)).to_have_count(1)
    panel.close()


def test_recorded_digits_take_the_place_of_the_pad(mnist, other_page, tmp_path):
    panel = DrawingPanel({"dense": load_trained("mlp128"), "larger": load_trained("lenet300")})
    panel.save_html(tmp_path / "page.html", mnist.validation[:4])
    panel.close()
    check_all_fits(other_page, tmp_path / "page.html")
    slider(other_page, "digit").focus()
    for label in range(4):
        expect(other_page.get_by_role("img", name=re.compile(f"^This {label} is read as"))).to_have_count(1)
        assert slider(other_page, "digit").get_attribute("aria-valuetext") == f"{label + 1} of 4"
        other_page.keyboard.press("ArrowRight")
