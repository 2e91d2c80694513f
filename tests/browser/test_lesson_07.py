"""The panel of lesson 07 in JupyterLab and Chromium: the recipe runs anew for every setting, and all of it fits."""

import re

import pytest
from playwright.sync_api import expect

from benchmarks._lab import cut_off, show_cell, top

pytestmark = pytest.mark.browser
PANEL = 'RecipePanel(load_trained("mlp128"), load_trained("lenet300"), few)'


@pytest.fixture(scope="module")
def output(page, add_panel):
    return show_cell(page, add_panel(PANEL)).locator(".jp-Cell-outputArea")


def wait_for(output, setting):
    output.get_by_text(re.compile(f"^{setting}: .* right .*, [0-9,]+ bytes$")).wait_for()


def test_the_keyboard_moves_every_slider_and_the_recipe_is_run_anew(output):
    wait_for(output, "90 % pruned, 3 bits, T = 4, alpha 0.1")
    picture = output.locator("img").get_attribute("src")
    for name, key in {"ratio": "End", "bits": "Home", "temperature": "End", "alpha": "Home"}.items():
        output.get_by_role("slider", name=name).focus()
        output.page.keyboard.press(key)
    wait_for(output, "99 % pruned, 1 bit, T = 20, alpha 0")
    expect(output.locator("img")).not_to_have_attribute("src", picture)


def test_nothing_is_cut_off_and_the_test_part_moves_nothing(output):
    assert not cut_off(output)
    sizes = output.locator("img").evaluate(
        "image => [image.naturalWidth, image.naturalHeight, image.clientWidth, image.clientHeight]"
    )
    assert sizes[:2] == sizes[2:]
    last = output.get_by_role("row", name="settings tested so far")
    before = top(last)
    output.get_by_role("button", name="Reveal test").click()
    expect(last).to_have_text(re.compile(r"1\s*$"))
    assert top(last) == before and not cut_off(output)
