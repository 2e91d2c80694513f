"""The static site in Chromium, opened as files: search, narrow pages, recorded panels, and no JavaScript."""

import re

import nbformat
import pytest
from playwright.sync_api import expect

from notebooks.lab import LESSONS
from notebooks.site import links
from notebooks.site.__main__ import build_site

pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings("ignore:'myst_parser")]
PANEL, LESSON = "panels/own_pruning.html", "lessons/bring_your_own.html"
OTHERS = ("index.html", "panels.html", "results.html", "reference/kd_lab.pruning.html", "contributing.html")
WIDER = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
CUT_OFF = """() => [...document.querySelectorAll("main *, article *")].filter(part =>
  part.clientWidth && part.scrollWidth > part.clientWidth + 1 && getComputedStyle(part).overflowX === "hidden")
  .map(part => part.outerHTML.slice(0, 200))"""
UNNAMED = "() => [...document.images].filter(({ alt }) => alt.includes('_images/')).map(({ alt }) => alt)"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Build the site, with one panel recorded; a broken link ends this with its name."""
    folder = tmp_path_factory.mktemp("site")
    build_site(folder, ["own_pruning"])
    return folder / "html"


@pytest.fixture
def open_page(pages, other_page):
    """Return a function that opens a page as a file, wide or narrow; what it asks of a network fails the test."""
    asked = []
    other_page.on("request", lambda request: asked.append(request.url))

    def opened(name, width=1280):
        other_page.set_viewport_size({"width": width, "height": 900})
        other_page.goto((pages / name).as_uri())
        return other_page

    yield opened
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def test_every_lesson_has_its_pictures_and_formulas_and_no_page_is_heavy(pages):
    for path in LESSONS:
        outputs = [o for cell in nbformat.read(path, as_version=4).cells for o in cell.get("outputs", [])]
        pictures = [o for o in outputs if {"image/png", "image/svg+xml"} & o.get("data", {}).keys()]
        page = (pages / "lessons" / f"{path.stem}.html").read_text()
        assert len(re.findall(r"<img |<svg:?\w* xmlns", page)) >= len(pictures) > 0
        assert ("<math" in page) == ("$$" in path.read_text())
    assert max(map(links.weight, pages.rglob("*.html"))) < 1_500_000


@pytest.mark.parametrize("width", [1280, 375])
def test_nothing_scrolls_sideways_and_nothing_is_cut_off(pages, open_page, width):
    lessons = [f"lessons/{path.stem}.html" for path in LESSONS]
    for name in (*OTHERS, *lessons, "lessons/exercises/01_magnitude_pruning.html", PANEL):
        page = open_page(name, width)
        assert page.evaluate(WIDER) == 0, name
        assert page.evaluate(CUT_OFF) == [], name
        assert page.evaluate(UNNAMED) == [], name


def test_a_search_finds_lessons_and_functions(open_page):
    page = open_page("index.html")
    page.get_by_role("textbox", name="Search").fill("wilson interval")
    page.keyboard.press("Enter")
    results = page.locator("#search-results")
    expect(results.get_by_role("link", name="00 Start here")).to_be_visible()
    expect(results.get_by_text(re.compile(r"found \d+ pages matching"))).to_be_visible()
    results.get_by_role("link", name="kd_lab.evaluation").first.click()
    expect(page.get_by_role("heading", name="kd_lab.evaluation")).to_be_visible()


def test_a_recorded_panel_moves_in_its_lesson(open_page):
    page = open_page(LESSON)
    frame = page.locator(".recorded iframe")
    frame.scroll_into_view_if_needed()
    panel = frame.content_frame
    expect(panel.get_by_text("recorded", exact=True)).to_be_visible()
    title = panel.locator(".kd-lab-title")
    before = title.inner_text()
    panel.get_by_role("slider", name="sparsity").focus()
    page.keyboard.press("End")
    expect(title).not_to_have_text(before)
    inside = panel.locator("html").evaluate("html => [html.scrollHeight, innerHeight]")
    expect(frame).not_to_have_css("height", "800px")  # it is as high as its panel
    assert inside[0] > 300


def test_without_javascript_all_can_be_read(pages, other_page):
    context = other_page.context.browser.new_context(java_script_enabled=False, viewport={"width": 375, "height": 900})
    page = context.new_page()
    page.goto((pages / LESSON).as_uri())
    expect(page.get_by_role("img", name=re.compile("^PruningPanel: 50 % pruned"))).to_be_visible()
    expect(page.locator(".recorded iframe")).to_be_hidden()
    page.goto((pages / "lessons" / "05_knowledge_distillation.html").as_uri())
    expect(page.locator("math").first).to_be_visible()
    page.goto((pages / PANEL).as_uri())
    expect(page.get_by_role("table").first).to_be_visible()
    page.goto((pages / "index.html").as_uri())
    expect(page.get_by_role("link", name="12 Bug clinic").last).to_be_visible()
    context.close()
