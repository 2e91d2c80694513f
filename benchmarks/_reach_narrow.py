"""Count what is cut off, or needs a horizontal scroll bar, in all panels on narrow pages of JupyterLab and Voila."""

import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Locator, Page, expect
from tabulate import tabulate

from benchmarks._lab import LOADED, RUN, cut_off, lab, run_all, show_cell, voila, write_notebook

WIDTHS, HEIGHT = (600, 375), 1100  # of a split screen and of a phone; of the page, in pixels
MORE = """import base64
from pathlib import Path
from tempfile import TemporaryDirectory

from IPython.display import IFrame

from kd_lab.deployment import export_page
from kd_lab.exercises import Question
from kd_lab.pruning import prune
from kd_lab.quantization import quantize_model, to_integer

cnn = load_trained("cnn")
integer = to_integer(quantize_model(cnn, data.train.images[:100]))
half = Question("01.half", "How many points does lenet300 lose at 50 %?", unit="points", within=0.5)
layer = Question("01.layer", "Which layer of cnn loses most?", choices=("conv1", "conv2", "fc1", "fc2"))
with TemporaryDirectory() as folder:
    export_page(load_trained("lenet300"), path := Path(folder, "page.html"))
    content = base64.b64encode(path.read_bytes()).decode()"""
PANELS = {
    "PruningPanel": 'PruningPanel(load_trained("lenet300"), few)',
    "StructuredPruningPanel, CNN": 'StructuredPruningPanel(load_trained("cnn"), few)',
    "StructuredPruningPanel, LSTM": 'StructuredPruningPanel(load_trained("lstm"), few)',
    "LeastSquaresPanel": 'LeastSquaresPanel(load_trained("lenet300"), few, "fc2")',
    "LowRankPanel": 'LowRankPanel(load_trained("lenet300"), few, "fc1")',
    "QuantizationPanel": 'QuantizationPanel(load_trained("cnn"), few)',
    "DistillationPanel": 'DistillationPanel(load_trained("lenet300"), few)',
    "RecipePanel": 'RecipePanel(load_trained("mlp128"), load_trained("lenet300"), few)',
    "FrontierPanel": "FrontierPanel(few)",
    "DrawingPanel": 'DrawingPanel({"cnn": cnn, "pruned": prune(cnn, 0.8), "int8": integer, "small": "lenet5_classic"})',
    "PredictionPanel, number": "PredictionPanel(half)",
    "PredictionPanel, choice": "PredictionPanel(layer)",
    "page to take home": 'IFrame(f"data:text/html;base64,{content}", width="100%", height=880)',
}
PANEL = ".kd-lab-panel, .kd-lab-prediction, iframe"
TOGGLE = "() => jupyterapp.commands.execute('application:toggle-left-area')"
# What reaches out of its panel or scrolls in it, and what around it scrolls sideways or ends before it does.
SIZES = """panel => {
  const {left, right} = panel.getBoundingClientRect(), parts = [panel, ...panel.querySelectorAll("*")], around = [];
  const end = panel.closest(".jp-NotebookPanel")?.parentElement;  // the menus around it are JupyterLab's own affair
  for (let part = panel.parentElement; part !== (end ?? null); part = part.parentElement) around.push(part);
  const beyond = part => part.getBoundingClientRect().right > right + 1 || part.getBoundingClientRect().left < left - 1;
  const scrolls = part => part.scrollWidth > part.clientWidth + 1 && getComputedStyle(part).overflowX !== "visible";
  const wrong = parts.filter(part => part.clientWidth && (beyond(part) || scrolls(part)));
  const page = around.filter(scrolls).concat(left < 0 || right > innerWidth ? [document.body] : []);
  return [...wrong.map(part => part.outerHTML.slice(0, 200)), ...page.map(part => `around it: ${part.className}`)];
}"""
HEIGHTS = "panel => [...panel.children].map(part => part.getBoundingClientRect().height)"
MEASURED = re.compile(r" right |least squares \d|by output \d| bytes$|is read as")  # in the line above a picture
DRAWN = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done))))"


def misfits(panel: Locator) -> list[str]:
    """Return what of a panel is cut off, reaches beyond its place or scrolls sideways, and what does so around it."""
    if panel.evaluate("part => part.tagName") == "IFRAME":
        inside = panel.content_frame.locator("html")
        return panel.evaluate(SIZES) + inside.evaluate(SIZES)
    return panel.evaluate(SIZES) + cut_off(panel)


def wait_for(panel: Locator) -> None:
    """Wait until a panel has measured, last its milliseconds; a prediction or a page is there at once."""
    panel.wait_for()
    if panel.locator("img").count():
        panel.get_by_text(MEASURED).first.wait_for(timeout=1000 * RUN)
        expect(panel.get_by_text("…", exact=True)).to_have_count(0, timeout=1000 * RUN)


def press(panel: Locator, key: str) -> None:
    """Press a key on the first slider of a panel, and wait for another picture; what it shows may be under way."""
    picture = panel.locator("img").get_attribute("src")
    panel.get_by_role("slider").first.press(key)
    expect(panel.locator("img")).not_to_have_attribute("src", picture, timeout=1000 * RUN)


def resize(page: Page, width: int) -> None:
    """Make a page so wide, and wait until what JupyterLab and Voila lay out by a program has followed."""
    page.set_viewport_size({"width": width, "height": HEIGHT})
    page.wait_for_function(f"innerWidth === {width}")
    page.evaluate(DRAWN)


def in_lab(page: Page) -> Callable[[int], Locator]:
    """Return a function that shows the panel of a cell in the notebook that is open in JupyterLab."""
    return lambda place: show_cell(page, place).locator(PANEL)


def in_voila(page: Page) -> Callable[[int], Locator]:
    """Return a function that shows the panel of a cell on a page of Voila."""
    return lambda place: page.locator(f"[cell-index='{place + 1}']").locator(PANEL)


def narrow_figures() -> dict[str, float]:
    """Print how much of each panel does not fit, and return the sum at 600 pixels."""
    found: dict[str, list[str]] = {name: [] for name in PANELS}
    total = 0
    with tempfile.TemporaryDirectory() as folder:
        notebook = write_notebook(Path(folder) / "panels.ipynb", f"{LOADED}\n{MORE}", *PANELS.values())
        with lab(notebook) as page:
            run_all(page)
            page.evaluate(TOGGLE)
            total += _count(page, in_lab(page), found)
            with voila(notebook, Path(folder) / "home") as address:
                page.goto(address, timeout=0)
                total += _count(page, in_voila(page), found)
    columns = [f"{front}, {width}" for front in ("JupyterLab", "Voila") for width in WIDTHS]
    headers = ["cut off or scrolls (its width)", *columns]
    print(tabulate([[name, *cells] for name, cells in found.items()], headers))
    return {"reach.narrow.cut_off": total}


def _count(page: Page, show: Callable[[int], Locator], found: dict[str, list[str]]) -> int:
    """Note what does not fit of each panel, at both ends of its first slider, and return the sum at 600 pixels."""
    counts = {}
    for width in WIDTHS:
        resize(page, width)
        for place, (name, cells) in enumerate(found.items(), 1):
            panel = show(place)
            wait_for(panel)
            wrong = misfits(panel)
            for key in ("Home", "End") if panel.locator("img").count() and panel.get_by_role("slider").count() else ():
                press(panel, key)
                wait_for(panel)
                wrong += misfits(panel)
            counts[name, width] = len(wrong)
            cells.append(f"{len(wrong)} ({panel.bounding_box()['width']:.0f})")
    return sum(count for (_name, width), count in counts.items() if width == WIDTHS[0])
