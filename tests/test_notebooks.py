"""Lessons give the same numbers when run twice; the notebook tests fail on what nbval alone lets pass."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from notebooks.build import LESSONS

ROOT = Path(__file__).resolve().parents[1]
TIMES = re.compile(r"[\d.]+ (seconds|ms)|training: .*|.* images?, ms .*")
SILENT = {  # what nbval alone passes
    "bad_magic": "%no_such_magic",
    "thread": "import threading\n\nthreading.Thread(target=lambda: 1 / 0).start()",
    "slow_thread": "import threading, time\n\nthreading.Thread(target=lambda: time.sleep(0.7) or 1 / 0).start()",
    "callback": "import traceback\n\ntry:\n    1 / 0\nexcept ZeroDivisionError:\n    traceback.print_exc()",
}
SOUND = {
    "printed": "print(1)",
    "caught": "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    print(error)",
}
SWALLOWED = {  # what no test of outputs can see, so the style check refuses it
    "bare": "try:\n    1 / 0\nexcept:\n    print()",
    "blind": "try:\n    1 / 0\nexcept Exception:\n    print()",
    "suppressed": "try:\n    1 / 0\nexcept ZeroDivisionError:\n    pass",
}


def write(folder, cells):
    for name, source in cells.items():
        nbformat.write(new_notebook(cells=[new_code_cell(source)]), folder / f"{name}.ipynb")


def test_errors_that_are_only_printed_fail(tmp_path):
    write(tmp_path, SILENT | SOUND)
    command = [sys.executable, "-m", "pytest", "-q", "-c", ROOT / "pyproject.toml", "--rootdir", ROOT,
               "-p", "no:cacheprovider", "--confcutdir", ROOT, "-p", "conftest", tmp_path]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert f"{len(SILENT)} failed, {len(SOUND)} passed" in result.stdout, result.stdout
    assert result.stdout.count("The cell printed an error and went on") >= len(SILENT)


def test_errors_that_are_swallowed_fail_the_style_check(tmp_path):
    write(tmp_path, SWALLOWED)
    command = [sys.executable, "-m", "ruff", "check", "--config", ROOT / "pyproject.toml", "--no-cache",
               "--output-format", "concise", tmp_path]
    result = subprocess.run(command, capture_output=True, text=True)
    for name in SWALLOWED:
        assert f"{name}.ipynb" in result.stdout, result.stdout


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_running_all_twice_gives_the_same_numbers(path):
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=120, resources={"metadata": {"path": path.parent}}, coalesce_streams=True)
    with client.setup_kernel():
        runs = [[text_of(client.execute_cell(cell, index)) for index, cell in enumerate(notebook.cells)
                 if cell.cell_type == "code"] for _ in range(2)]
    assert runs[0] == runs[1]


def text_of(cell):
    """Return what a cell printed or showed as text, but for times."""
    texts = [output.text if output.output_type == "stream" else output.data["text/plain"] for output in cell.outputs]
    return [TIMES.sub("", text) for text in texts]
