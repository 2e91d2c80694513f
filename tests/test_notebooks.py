"""The notebook tests fail on what nbval alone lets pass."""

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

ROOT = Path(__file__).resolve().parents[1]
SILENT = {  # what nbval alone passes
    "bad_magic": "%no_such_magic",
    "thread": "import threading\n\nthreading.Thread(target=lambda: 1 / 0).start()",
    "slow_thread": "import threading, time\n\nthreading.Thread(target=lambda: time.sleep(0.7) or 1 / 0).start()",
    "callback": "import traceback\n\ntry:\n    1 / 0\nexcept ZeroDivisionError:\n    traceback.print_exc()",
}
SOUND = {
    "printed": "print(1)",
    "starting": "import threading\n\nlate = threading.Thread()\nthreading._limbo[late] = late",  # as if by another
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


def run(folder, *options):
    """Return what pytest says of the notebooks in this folder."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-c",
        ROOT / "pyproject.toml",
        "--rootdir",
        ROOT,
        "-p",
        "no:cacheprovider",
        "--confcutdir",
        ROOT,
        "-p",
        "conftest",
        *options,
        folder,
    ]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout


@pytest.mark.slow
def test_errors_that_are_only_printed_fail(tmp_path):
    write(tmp_path, SILENT | SOUND)
    stdout = run(tmp_path)
    assert f"{len(SILENT)} failed, {len(SOUND)} passed" in stdout, stdout
    assert stdout.count("The cell printed an error and went on") >= len(SILENT)


def test_errors_that_are_swallowed_fail_the_style_check(tmp_path):
    write(tmp_path, SWALLOWED)
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--config",
        ROOT / "pyproject.toml",
        "--no-cache",
        "--output-format",
        "concise",
        tmp_path,
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    for name in SWALLOWED:
        assert f"{name}.ipynb" in result.stdout, result.stdout


@pytest.mark.slow
def test_a_notebook_that_gives_other_numbers_when_run_twice_fails(tmp_path):
    write(tmp_path, {"first": "total = globals().get('total', 0) + 1\nprint(total)", "second": "print(1)"})
    stdout = run(tmp_path, "--run=all")
    assert "1 failed, 5 passed" in stdout, stdout  # each is run, again, and from the end
    assert "first.ipynb" in stdout and "another result when all was run twice" in stdout


@pytest.mark.slow
def test_a_cell_that_breaks_after_a_later_one_fails(tmp_path):
    sources = ["mask = [1, 2]", "print(len(mask))", "mask = 3"]
    cells = [new_code_cell(source) for source in sources]
    nbformat.write(new_notebook(cells=cells), tmp_path / "shadowed.ipynb")
    stdout = run(tmp_path, "--run=all")
    assert "1 failed, 8 passed" in stdout and "from the end" in stdout, stdout


@pytest.mark.slow
def test_what_one_size_leaves_out_the_other_runs(tmp_path):
    (tmp_path / "test_some.py").write_text(
        "import pytest\n\ndef test_quick(): pass\n\n@pytest.mark.slow\ndef test_slow(): pass\n"
    )
    write(tmp_path, {"lesson": "print(1)"})
    for size, passed in {"quick": 2, "slow": 4}.items():  # the slow ones run the cell again, and from the end
        stdout = run(tmp_path, f"--run={size}", "-rA")
        assert f"{passed} passed, 1 deselected" in stdout and f"test_{size}" in stdout, stdout
    assert "5 passed" in run(tmp_path, "--run=all")
