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


def write(path, *sources):
    """Write a notebook of these cells and return its path."""
    nbformat.write(new_notebook(cells=[new_code_cell(source) for source in sources]), path)
    return path


def run(options, *paths):
    """Return what pytest says of notebooks and tests: the last line, and what failed or passed."""
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
        "-rA",
        *options.split(),
        *paths,
    ]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout


@pytest.fixture
def sizes(tmp_path):
    """A file of a quick test and a slow one."""
    path = tmp_path / "test_some.py"
    path.write_text("import pytest\n\ndef test_quick(): pass\n\n@pytest.mark.slow\ndef test_slow(): pass\n")
    return path


@pytest.mark.slow
def test_errors_that_are_only_printed_fail_and_slow_tests_are_left_out(tmp_path, sizes):
    stdout = run("", write(tmp_path / "printed.ipynb", *SILENT.values(), *SOUND.values()), sizes)
    assert f"{len(SILENT)} failed, {len(SOUND) + 1} passed, 1 deselected" in stdout, stdout
    assert all(f"FAILED ::Cell {cell} " in stdout for cell in range(len(SILENT))), stdout
    assert stdout.count("The cell printed an error and went on") >= len(SILENT)
    assert "test_quick" in stdout and "test_slow" not in stdout


@pytest.mark.slow
def test_what_fails_only_when_run_twice_or_backwards(tmp_path, sizes):
    changing = write(tmp_path / "changing.ipynb", "total = globals().get('total', 0) + 1\nprint(total)", "print(1)")
    shadowed = write(tmp_path / "shadowed.ipynb", "mask = [1, 2]", "print(len(mask))", "mask = 3")
    stdout = run("--again", changing, shadowed, sizes)
    assert "2 failed, 14 passed, 1 deselected in" in stdout, stdout  # every cell three times
    assert "FAILED ::Cell 0 again" in stdout and "another result when all was run twice" in stdout, stdout
    assert "FAILED ::Cell 1 from the end" in stdout, stdout


@pytest.mark.slow
def test_slow_tests_alone_leave_the_lessons_out(tmp_path, sizes):
    stdout = run("--run slow", write(tmp_path / "lesson.ipynb", "1"), sizes)
    assert "1 passed, 2 deselected" in stdout and "test_slow" in stdout, stdout


def test_errors_that_are_swallowed_fail_the_style_check(tmp_path):
    for name, source in SWALLOWED.items():
        write(tmp_path / f"{name}.ipynb", source)
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
