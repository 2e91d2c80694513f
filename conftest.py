"""Make nbval strict: a cell also fails on what it would let pass (a bad magic, an error in a thread or a callback)."""

import os
import re
import shutil
import tempfile
from pathlib import Path

import pytest
from nbval.plugin import IPyNbCell
from xdist.scheduler import LoadFileScheduling

TROUBLE = re.compile(r"^UsageError:|Traceback \(most recent call last\)|^Exception in thread", re.MULTILINE)
STRICT_KERNEL = Path(__file__).parent / "tests" / "strict_kernel.py"


def pytest_configure(config):
    """Start every notebook's kernel with strict_kernel.py, from an IPython folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="kd_lab_ipython_"))
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    startup = folder / "profile_default" / "startup"
    startup.mkdir(parents=True)
    shutil.copy(STRICT_KERNEL, startup)
    os.environ["IPYTHONDIR"] = str(folder)


class LessonScheduling(LoadFileScheduling):
    """Keep a file's tests, or a lesson's cells, in one process and in order; a lesson that runs twice stands alone."""

    def _split_scope(self, nodeid):
        return nodeid if "::test_running_all_twice" in nodeid else super()._split_scope(nodeid)


def pytest_xdist_make_scheduler(config, log):
    """Spread the tests over the processes."""
    return LessonScheduling(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Fail a notebook cell that printed an error, even if it went on."""
    result = yield
    if isinstance(item, IPyNbCell):
        printed = "".join(output.get("text", "") for output in item.test_outputs)
        if TROUBLE.search(printed):
            item.raise_cell_error("The cell printed an error and went on", printed)
    return result
