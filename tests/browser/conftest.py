"""What the browser's tests share: one JupyterLab for all files that a process runs, since its start takes long."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from benchmarks._lab import LOADED, lab, open_notebook, run_new_cell, write_notebook

LESSONS = Path(__file__).resolve().parents[2] / "notebooks"
expect.set_options(timeout=60_000)  # milliseconds; nothing here fails for being slow


@pytest.fixture(scope="session")
def page(tmp_path_factory) -> Iterator[Page]:
    """Open JupyterLab with an empty notebook for panels, and lesson 01 beside it."""
    panels = write_notebook(tmp_path_factory.mktemp("browser") / "panels.ipynb")
    with lab(panels, LESSONS / "01_magnitude_pruning.ipynb") as page:
        yield page


@pytest.fixture(scope="module")
def other_page(page) -> Iterator[Page]:
    """Give an empty page of the same browser, of which a process can run one only."""
    other = page.context.browser.new_page(viewport={"width": 1280, "height": 1100})
    yield other
    other.close()


@pytest.fixture(scope="module")
def add_panel(page) -> Callable[[str], int]:
    """Return a function that runs a new cell, whose source makes a panel, and gives its place."""
    open_notebook(page, "panels.ipynb")
    run_new_cell(page, LOADED)
    return lambda source: run_new_cell(page, source)
