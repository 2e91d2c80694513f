"""Time the pruning panel as a learner sees it, in JupyterLab and Chromium: from a key press to the changed picture.

The page's own clock measures, in JavaScript; what a user would write instead stands in the same notebook.
"""

import tempfile
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles

import nbformat
from nbformat.v4 import new_code_cell, new_notebook
from playwright.sync_api import JSHandle, Locator
from tabulate import tabulate

from benchmarks._lab import find_cell, is_blank, lab, paint, run_all, show_cell

PRESSES, PAUSE = 30, 700  # the pauses are in milliseconds; after this one the panel is at rest …
USUAL_PRESSES, USUAL_PAUSE = 10, 4000  # … and after this one the usual way, too
BURST, BURST_PAUSE = 20, 30
ROUNDS = ("ArrowRight", "ArrowRight", "ArrowLeft", "ArrowLeft", "ArrowLeft")  # from 50 % to 70, 90, 70, 50 and 30
QUIET = 2000  # milliseconds without a change after which nothing more is coming
GOALS = {"browser.median_ms": 100, "browser.settle_s": 0.5, "browser.blank_frames": 0, "browser.wrong_answers": 0}

IMPORTS = """
import copy

import ipywidgets as widgets
import matplotlib.pyplot as plt
import torch
from torch.nn.utils import prune
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import MNIST

from kd_lab.checkpoints import load_trained
from kd_lab.data import MEAN, STD, load_mnist, mnist_folder, split_indices
from kd_lab.panels import PruningPanel
"""
OURS = """
panel = PruningPanel(load_trained("lenet300"), load_mnist())
panel
"""
USUAL = """
model = load_trained("lenet300").eval()
transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((MEAN,), (STD,))])
dataset = MNIST(mnist_folder().parents[1], train=True, transform=transform)
loader = DataLoader(Subset(dataset, split_indices(dataset.targets)[1]), batch_size=256)

@widgets.interact(sparsity=widgets.FloatSlider(0.5, min=0, max=0.99, step=0.01))
def show(sparsity):
    pruned = copy.deepcopy(model)
    layers = [(layer, "weight") for layer in pruned.modules() if isinstance(layer, torch.nn.Linear)]
    prune.global_unstructured(layers, prune.L1Unstructured, amount=sparsity)
    with torch.no_grad():
        right = sum((pruned(images).argmax(1) == labels).sum().item() for images, labels in loader)
    weights = torch.cat([layer.weight.detach().flatten() for layer, _ in layers])
    fig, (curve, histogram) = plt.subplots(1, 2, figsize=(8, 3.8))
    curve.plot(sparsity, right / 5000, "o")
    curve.set(xlim=(0, 1), ylim=(0, 1), xlabel="sparsity", ylabel="accuracy")
    histogram.hist(weights[weights != 0], bins=101)
    fig.suptitle(f"{sparsity:.0%} pruned: {right / 5000:.2%} right")
    plt.show()
"""
# `shown` gets an entry when a new headline or picture stands there, decoded. A picture that is
# still `loading` in an animation frame is not blank on the screen: until then Chromium paints the one before.
WATCH = """(output) => {
  const seen = { presses: [], shown: [], loading: 0, resized: 0, changed: performance.now() };
  const picture = () => output.querySelector("img");
  const size = () => JSON.stringify([picture()?.offsetWidth, picture()?.offsetHeight]);
  const first = size();
  const headline = () => output.querySelector(".widget-html b")?.textContent;
  const note = async () => {
    seen.changed = performance.now();
    const image = picture();
    if (!image) return;
    try { await image.decode(); } catch { return; }  // a newer one has come, which is noted itself
    const now = { time: performance.now(), headline: headline(), source: image.src };
    const last = seen.shown.at(-1);
    if (last?.headline !== now.headline || last?.source !== now.source) seen.shown.push(now);
  };
  new MutationObserver(note).observe(output, { subtree: true, childList: true, characterData: true, attributes: true,
                                               attributeFilter: ["src"] });
  output.addEventListener("keydown", (event) => seen.presses.push(event.timeStamp), true);
  const frame = () => {
    const image = picture();
    seen.loading += !image?.complete || image.naturalWidth === 0;
    seen.resized += size() !== first;
    requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
  note();
  return seen;
}"""
PIXELS = """(image) => {
  const canvas = Object.assign(document.createElement("canvas"),
                               { width: image.naturalWidth, height: image.naturalHeight });
  canvas.getContext("2d").drawImage(image, 0, 0);
  return canvas.toDataURL();
}"""


class Watched:
    """Hold a slider and what the page saw of the picture that it moves."""

    def __init__(self, cell: Locator, slider: Locator):
        self.page, self.slider = cell.page, slider
        self._output = cell.locator(".jp-Cell-outputArea")
        self.picture = self._output.locator("img")
        self.picture.wait_for()
        self._watch: JSHandle = self._output.evaluate_handle(WATCH)
        self.rest()

    @property
    def log(self) -> dict:
        """Return all that was seen so far; times are in milliseconds, on the page's clock."""
        return self._watch.json_value()

    @property
    def now(self) -> tuple[str, str]:
        """Return the headline and the pixels of the picture."""
        return self.log["shown"][-1]["headline"], self.picture.evaluate(PIXELS)

    def press(self, key: str, times: int, pause: int) -> None:
        """Press a key again and again on the slider, with a pause in milliseconds after each."""
        self.slider.focus()
        for _ in range(times):
            self.page.keyboard.press(key)
            self.page.wait_for_timeout(pause)

    def rest(self) -> None:
        """Wait until nothing changes any more."""
        self.page.wait_for_function(f"(seen) => performance.now() - seen.changed > {QUIET}", arg=self._watch)


def run() -> dict[str, float]:
    """Print the panel's figures beside their goals, then the usual way's, and return both."""
    with tempfile.TemporaryDirectory() as folder, lab(write_notebook(Path(folder))) as page:
        notebook = run_all(page)
        cell = show_cell(page, find_cell(notebook, "PruningPanel"))
        figures = measure(Watched(cell, cell.get_by_role("slider", name="sparsity")))
        cell = show_cell(page, find_cell(notebook, "interactive"))
        times = reaction_times(Watched(cell, cell.get_by_role("slider")), USUAL_PRESSES, USUAL_PAUSE)
    figures |= {"browser.usual_median_ms": median(times)}
    figures |= {"browser.ratio": figures["browser.usual_median_ms"] / figures["browser.median_ms"]}
    rows = [[name, value, GOALS.get(name)] for name, value in figures.items()]
    print(tabulate(rows, ["figure", "measured", "goal, at most"], floatfmt=".4g"), flush=True)
    return figures


def write_notebook(folder: Path) -> Path:
    """Write the notebook that holds both ways."""
    path = folder / "browser.ipynb"
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    cells = [new_code_cell(source.strip()) for source in (IMPORTS, OURS, USUAL)]
    nbformat.write(new_notebook(cells=cells, metadata=kernel), path)
    return path


def measure(panel: Watched) -> dict[str, float]:
    """Press keys slowly, then fast, and return what the learner waits for."""
    times = reaction_times(panel, PRESSES, PAUSE)
    seconds, right = zip(*(settle(panel, key) for key in ROUNDS), strict=True)
    frames = paint(panel.picture, lambda: dance(panel))  # apart, since looking at every frame takes time
    log = panel.log
    return {
        "browser.median_ms": median(times),
        "browser.p95_ms": quantiles(times, n=20)[-1],
        "browser.settle_s": median(seconds),
        "browser.longest_settle_s": max(seconds),
        "browser.wrong_answers": right.count(False),
        "browser.painted_frames": len(frames),
        "browser.blank_frames": sum(map(is_blank, frames)) + log["resized"],
        "browser.loading_frames": log["loading"],
    }


def dance(panel: Watched) -> None:
    """Press keys fast and slowly."""
    for pause in (BURST_PAUSE, PAUSE // 2):
        for key in ("ArrowRight", "ArrowLeft"):
            panel.press(key, BURST, pause)
    panel.rest()


def reaction_times(panel: Watched, presses: int, pause: int) -> list[float]:
    """Press a key again and again, half of the times back, and return the milliseconds until each changed picture."""
    for key in ("ArrowRight", "ArrowLeft"):
        panel.press(key, presses // 2, pause)
    panel.rest()
    log = panel.log
    changes = [after["time"] for before, after in pairwise(log["shown"]) if after["source"] != before["source"]]
    return [next(time for time in changes if time > press) - press for press in log["presses"]]


def settle(panel: Watched, key: str) -> tuple[float, bool]:
    """Press a key fast; return the seconds until the last change, and whether that was the right answer."""
    panel.press(key, BURST, BURST_PAUSE)
    panel.rest()
    log, settled = panel.log, panel.now
    percent = f"{100 * float(panel.slider.input_value()):.0f} % pruned"
    for back_and_forth in ("ArrowLeft", "ArrowRight"):
        panel.press(back_and_forth, 1, PAUSE)
        panel.rest()
    right = settled == panel.now and settled[0].startswith(percent) and "of 5,000" in settled[0]
    return (log["shown"][-1]["time"] - log["presses"][-1]) / 1000, right
