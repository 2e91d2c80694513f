"""The tables of results/README.md are those of the records, and the lists of modules those of the modules."""

import re
from pathlib import Path

import pytest

from benchmarks import _modules, _tables

ROOT = Path(__file__).resolve().parents[1]
MARK = re.compile(r"<!-- (\w+) -->")


@pytest.mark.parametrize("name", _tables.FILES)
def test_what_is_committed_is_what_the_command_makes(name):
    text = (ROOT / name).read_text()
    assert _tables.filled(text) == text, "run `make results`"


def test_every_table_stands_in_one_file():
    marks = [mark for name in _tables.FILES for mark in MARK.findall((ROOT / name).read_text())]
    assert sorted(marks) == sorted(["colab", *(make.__name__ for make in _tables.TABLES)])


def test_a_table_is_made_between_its_marks_and_nothing_else_changes():
    text = "before\n<!-- gains -->\nold\n<!-- /gains -->\nafter\n<!-- colab -->\nkept\n<!-- /colab -->\n"
    filled = _tables.filled(text)
    assert filled.startswith("before\n<!-- gains -->\n| 500 images | 2,000 images |") and "old" not in filled
    assert filled.endswith("\n<!-- /gains -->\nafter\n<!-- colab -->\nkept\n<!-- /colab -->\n")


def test_a_table_is_written_in_markdown():
    assert _tables.table(["a", "b"], [[1, "x"]]) == "| a | b |\n| --- | --- |\n| 1 | x |"


def test_every_module_has_its_place_and_its_first_line():
    paths = [path.relative_to(ROOT / "kd_lab") for path in (ROOT / "kd_lab").rglob("*.py")]
    files = [path.as_posix() for path in paths if "assets" not in path.parts]  # another environment runs those
    listed = [name for _, name, _ in _modules.list_modules(inside=True)]
    assert sorted(listed) == sorted(file for file in files if not file.endswith("__init__.py"))
    assert listed[0] == "errors.py" and listed.index("evaluation.py") < listed.index("results.py")
    shown = [name for _, name, _ in _modules.list_modules()]
    assert {name.partition("/")[0] for name in listed} == {name.rstrip("/") for name in shown}
    lines = {name: line for _, name, line in _modules.list_modules()}
    assert lines["results.py"] == "Read what a long campaign measured: results/NAME.json, which its benchmark wrote."
