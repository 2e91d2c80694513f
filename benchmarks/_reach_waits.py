"""Time where a learner waits: from a panel's cell to its first answer in JupyterLab, and every cell of every lesson."""

import os
import tempfile
from datetime import datetime
from operator import itemgetter
from pathlib import Path
from statistics import median

import nbformat
from nbclient import NotebookClient
from playwright.sync_api import Page
from tabulate import tabulate

from benchmarks._lab import ADD_CELL, LOADED, RUN, lab, run_new_cell, write_notebook
from notebooks.lab import LESSONS

TIMES = 5  # each panel
LONG = 2  # seconds
MORE = """from kd_lab.exercises import Question
from kd_lab.pruning import prune
from kd_lab.quantization import quantize_model, to_integer

few = data._replace(train=data.train[:4_000])
cnn, lenet300, lstm, small = map(load_trained, ("cnn", "lenet300", "lstm", "mlp128"))
integer = to_integer(quantize_model(cnn, data.train.images[:100]))
half = Question("01.half", "How many points does lenet300 lose at 50 %?", unit="points", within=0.5)"""
PANELS = {  # as the lessons have them
    "01 PruningPanel": "PruningPanel(lenet300, data)",
    "02 StructuredPruningPanel": "StructuredPruningPanel(cnn, data)",
    "03 LeastSquaresPanel": 'LeastSquaresPanel(lenet300, data, "fc2")',
    "04 QuantizationPanel": "QuantizationPanel(lenet300, data)",
    "05 DistillationPanel": "DistillationPanel(lenet300, data)",
    "07 RecipePanel": "RecipePanel(small, small, few)",
    "08 FrontierPanel": "FrontierPanel(data)",
    "09 StructuredPruningPanel": "StructuredPruningPanel(lstm, data)",
    "09 LowRankPanel": 'LowRankPanel(lenet300, data, "fc1")',
    "11 DrawingPanel": 'DrawingPanel({"dense": cnn, "pruned": prune(cnn, 0.9), "int8": integer})',
    "PredictionPanel": "PredictionPanel(half)",
}
FIRST = """([place, seconds]) => new Promise((found, fail) => {
  const { content } = jupyterapp.shell.currentWidget;
  content.scrollToItem(place, "start");  // what is out of view is not in the page
  const begun = performance.now();
  const look = () => {
    const panel = content.widgets[place].node.querySelector(".kd-lab-panel, .kd-lab-prediction");
    const picture = panel?.querySelector("img"), title = panel?.querySelector("b")?.textContent;
    if (title && (!picture || picture.naturalWidth)) found((performance.now() - begun) / 1000);
    else if (performance.now() - begun > 1000 * seconds) fail(new Error("no answer came"));
    else requestAnimationFrame(look);
  };
  jupyterapp.commands.execute("notebook:run-cell");
  look();
})"""


def waits_figures() -> dict[str, float]:
    """Print the seconds to the first answer of each panel, and the cells of lessons that take longer than 2."""
    first = _first_answers()
    print(tabulate(first.items(), ["panel, as in its lesson", "seconds to its first answer"], floatfmt=".2f"))
    cells = [(lesson.stem, *cell) for lesson in LESSONS for cell in cell_seconds(lesson).items()]
    long = sorted((cell for cell in cells if cell[-1] > LONG), key=itemgetter(-1), reverse=True)
    print(tabulate(long, ["lesson", "cell", f"seconds, longer than {LONG}"], floatfmt=".1f"))
    return {
        "reach.waits.first_answer_s": round(max(first.values()), 2),
        "reach.waits.long_cells": len(long),
        "reach.waits.longest_cell_s": round(max(seconds for *_, seconds in cells), 1),
    }


def _first_answers() -> dict[str, float]:
    """Return the median of the seconds to the first answer of each panel, once all is imported and loaded."""
    with tempfile.TemporaryDirectory() as folder, lab(write_notebook(Path(folder) / "panels.ipynb")) as page:
        run_new_cell(page, f"{LOADED}\n{MORE}")
        return {name: median(_first_answer(page, source) for _ in range(TIMES)) for name, source in PANELS.items()}


def _first_answer(page: Page, source: str) -> float:
    seconds = page.evaluate(FIRST, [page.evaluate(ADD_CELL, f"panel = {source}\npanel"), RUN])
    run_new_cell(page, "getattr(panel, 'flush', int)()\npanel.close()")  # so that nothing is measured beside the next
    return seconds


def cell_seconds(lesson: Path) -> dict[str, float]:
    """Run a lesson in a fresh kernel, whose cells have names, as in JupyterLab, and return the seconds of each."""
    notebook = nbformat.read(lesson, as_version=4)
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": lesson.parent}})
    client.on_cell_start = lambda cell, **_: client.kc.session.metadata.update(cellId=cell.id)
    with tempfile.TemporaryDirectory() as folder:
        client.execute(env=os.environ | {"KD_LAB_JOURNAL": f"{folder}/journal.jsonl"})
    return {cell.id: _seconds(cell.metadata.execution) for cell in notebook.cells if "execution" in cell.metadata}


def _seconds(timing: dict[str, str]) -> float:
    begun, ended = (datetime.fromisoformat(timing[name]) for name in ("iopub.execute_input", "shell.execute_reply"))
    return (ended - begun).total_seconds()
