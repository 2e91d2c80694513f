"""The panels of lessons 02 to 04, and of low rank, in JupyterLab and Chromium: hands move them, and all fits."""

import re
from contextlib import suppress

import pytest
from playwright.sync_api import TimeoutError, expect

from benchmarks._lab import cut_off, show_cell, top

pytestmark = pytest.mark.browser
PANELS = {
    "StructuredPruningPanel": 'StructuredPruningPanel(load_trained("lenet300"), data)',
    "LeastSquaresPanel": 'LeastSquaresPanel(load_trained("lenet300"), data, "fc2")',
    "LowRankPanel": 'LowRankPanel(load_trained("lenet300"), data, "fc1")',
    "QuantizationPanel": 'QuantizationPanel(load_trained("lenet300"), data)',
}
SLIDERS = {
    "StructuredPruningPanel": "ratio",
    "LeastSquaresPanel": "sparsity",
    "LowRankPanel": "rank",
    "QuantizationPanel": "weight_bits",
}
DONE = re.compile(r" of 5,000 validation images$")


@pytest.fixture(scope="module")
def show(page, add_panel):
    """Return a function that scrolls the panel of a kind into view and gives its output."""
    places = {kind: add_panel(source) for kind, source in PANELS.items()}
    return lambda kind: show_cell(page, places[kind]).locator(".jp-Cell-outputArea")


@pytest.fixture(params=PANELS)
def kind(request):
    return request.param


@pytest.fixture
def output(show, kind):
    return show(kind)


def test_the_keyboard_moves_the_slider_and_all_follows(page, output, kind):
    headline = output.get_by_text(DONE)
    headline.wait_for()
    before, picture = headline.inner_text(), output.locator("img").get_attribute("src")
    output.get_by_role("slider", name=SLIDERS[kind]).focus()
    for key in ("Home", "End"):
        page.keyboard.press(key)
        expect(headline).not_to_have_text(before)
        expect(output.locator("img")).not_to_have_attribute("src", picture)
        headline.wait_for()
        before, picture = headline.inner_text(), output.locator("img").get_attribute("src")
    assert re.match("9[59] % (of|removed)|8-bit weights|Rank 300 of fc1: by weight", before)


def all_fits(output):
    output.get_by_text(DONE).wait_for()
    expect(output.get_by_text("…", exact=True)).to_have_count(0)  # the latency comes last
    assert not cut_off(output)


def test_nothing_is_cut_off_or_scrolls(output):
    all_fits(output)
    sizes = output.locator("img").evaluate(
        "image => [image.naturalWidth, image.naturalHeight, image.clientWidth, image.clientHeight]"
    )
    assert sizes[:2] == sizes[2:]


def test_a_layer_has_a_ratio_of_its_own(page, show):
    output = show("StructuredPruningPanel")
    slider, layer = output.get_by_role("slider", name="ratio"), output.get_by_role("combobox", name="layer")
    pruned = output.get_by_role("row", name=re.compile("^fc1: Linear 784-300 95 % 15 of 300"))
    whole = output.get_by_role("row", name=re.compile("^fc2: Linear 300-100 0 % 100 of 100"))
    for _ in range(5):  # nothing on the page tells when the kernel has heard of the layer; until then all are pruned
        layer.select_option(index=0)
        page.wait_for_timeout(1000)
        slider.press("Home")
        expect(whole).to_be_visible()
        all_fits(output)  # so nothing is being measured
        layer.select_option(index=1)
        page.wait_for_timeout(1000)
        slider.press("End")
        with suppress(TimeoutError):
            pruned.wait_for(timeout=4000)
        if pruned.count() and whole.count():
            break
    expect(pruned).to_be_visible()
    expect(whole).to_be_visible()
    layer.select_option(index=2)
    expect(slider).to_have_value("0")


def test_every_number_of_bits_fits(page, show):
    output = show("QuantizationPanel")
    slider = output.get_by_role("slider", name="weight_bits")
    slider.focus()
    page.keyboard.press("End")
    for bits in range(8, 0, -1):
        expect(output.get_by_text(re.compile(f"^{bits}-bit weights"))).to_be_visible()
        expect(slider).to_have_attribute("aria-valuetext", f"{bits} bit{'s' * (bits > 1)}")
        all_fits(output)
        page.keyboard.press("ArrowLeft")
    expect(output.get_by_text("At 1 bit a weight keeps only its sign")).to_be_visible()


def test_the_choices_of_quantization_change_what_is_measured(page, show):
    output = show("QuantizationPanel")
    slider = output.get_by_role("slider", name="weight_bits")
    slider.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    for name, choice in {
        "granularity": "per_tensor",
        "grid": "affine",
        "calibration": "least_squares",
        "activation_bits": "2",
    }.items():
        output.get_by_text(DONE).and_(output.get_by_text(re.compile("^2-bit"))).wait_for()
        before = output.get_by_text(DONE).inner_text()
        output.get_by_role("combobox", name=name).select_option(choice)
        expect(output.get_by_text(DONE)).not_to_have_text(before)
        all_fits(output)
    all_fits(output)
    last = output.get_by_role("row", name="settings tested so far")
    before = top(last)
    output.get_by_role("button", name="Reveal test").click()
    expect(last).to_have_text(re.compile(r"1\s*$"))
    assert top(last) == before  # the accuracy on the test part has moved nothing
