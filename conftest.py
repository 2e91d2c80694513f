"""Make nbval strict: a cell also fails on what it would let pass (a bad magic, an error in a thread or a callback).

With `--again` the cells of a lesson run twice: the second time must give the same numbers. Then those that take no more
than a second run from the end, as a learner may go back.
"""

import os
import re
import shutil
import tempfile
import time
from pathlib import Path

import pytest
from nbval.plugin import IPyNbCell

collect_ignore = ["notebooks/mine"]  # a learner's copies
TROUBLE = re.compile(r"^UsageError:|Traceback \(most recent call last\)|^Exception in thread", re.MULTILINE)
TIMES = re.compile(r"[\d.]+ (seconds|ms)|training: .*|search: .*|.* images?, ms .*| at 0x\w+")  # and addresses
LONG = 1  # second
STRICT_KERNEL = Path(__file__).parent / "tests" / "strict_kernel.py"


def pytest_configure(config):
    """Start every notebook's kernel with strict_kernel.py, from an IPython folder and with a journal of its own."""
    folder = Path(tempfile.mkdtemp(prefix="kd_lab_ipython_"))
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    startup = folder / "profile_default" / "startup"
    startup.mkdir(parents=True)
    shutil.copy(STRICT_KERNEL, startup)
    os.environ["IPYTHONDIR"] = str(folder)
    os.environ["KD_LAB_JOURNAL"] = str(folder / "journal.jsonl")  # lessons that are tested measure, too


def pytest_addoption(parser):
    """Add the options that the Makefile and `.ci/run` give."""
    sizes = "quick: lessons, no slow test; slow: slow tests, exercises, solutions; all: both"
    parser.addoption("--run", choices=["quick", "slow", "all"], default="quick", help=sizes)
    parser.addoption("--again", action="store_true", help="run every lesson a second time, and then from its end")


class RunAgain(IPyNbCell):
    """Run a cell again after all cells of its lesson have run: it must not fail.

    From the end, a cell that takes long is left out: it has run twice.
    """

    compared = False

    def runtest(self):
        if getattr(self.first, "seconds", 0) > LONG and not self.compared:  # none where the first run failed
            return
        super().runtest()
        if self.compared and text_of(self.test_outputs) != text_of(self.first.test_outputs):
            self.raise_cell_error("The cell gave another result when all was run twice", text_of(self.test_outputs))


class SecondRun(RunAgain):
    """Run a cell as Run All does the second time: it must give the same text, times apart."""

    compared = True


def pytest_collection_modifyitems(config, items):
    """Leave out the tests of another size; if asked, run every lesson a second time and then from its end.

    The longest test comes first, so that both processes end together.
    """
    size = config.getoption("run")
    config.hook.pytest_deselected(items=[item for item in items if not belongs(item, size)])
    items[:] = [item for item in items if belongs(item, size)]
    items.sort(key=lambda item: "on_ipywidgets_7" not in item.nodeid)
    notebooks = {}
    for item in filter(is_lesson, items if config.getoption("again") else []):
        notebooks.setdefault(item.parent, []).append(item)
    for notebook, cells in notebooks.items():
        after = items.index(cells[-1]) + 1
        second = [run_again(SecondRun, notebook, cell, "again") for cell in cells]
        items[after:after] = second + [run_again(RunAgain, notebook, cell, "from the end") for cell in reversed(cells)]


def belongs(item, size):
    """Return whether a test is of this size; lessons are quick, exercises and solutions are slow."""
    slow = item.get_closest_marker("slow") is not None or (isinstance(item, IPyNbCell) and not is_lesson(item))
    return size == "all" or slow == (size == "slow")


def is_lesson(item):
    """Return whether this is a cell of a lesson."""
    return isinstance(item, IPyNbCell) and item.path.parent.name not in ("exercises", "solutions")


def run_again(kind, notebook, cell, when):
    """Return another run of a cell."""
    again = kind.from_parent(
        notebook, name=f"{cell.name} {when}", cell_num=cell.cell_num, cell=cell.cell, options=cell.options
    )
    again.first = cell
    return again


def text_of(outputs):
    """Return what a cell printed or showed as text, but for times."""
    texts = [output["text"] if "text" in output else output["data"].get("text/plain", "") for output in outputs]
    return "\n".join(TIMES.sub("", text) for text in texts)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Fail a notebook cell that printed an error, even if it went on."""
    start = time.perf_counter()
    result = yield
    if isinstance(item, IPyNbCell):
        item.seconds = time.perf_counter() - start
        printed = "".join(output.get("text", "") for output in item.test_outputs or [])
        if TROUBLE.search(printed):
            item.raise_cell_error("The cell printed an error and went on", printed)
    return result
