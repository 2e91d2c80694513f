"""Run every lesson in Colab's environment, away from the repository, with the kit as the badge's cell installs it.

`make test-colab` builds the environment, .colab, and runs this as its tests. What differs from Colab: MNIST comes from
a mirror on this machine, and the kit from a copy of this repository.
"""

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook

from kd_lab.errors import SetupError
from notebooks.build import ROOT, VIEW, install, stamp
from notebooks.lab import LESSONS

COLAB, VERSIONS = ROOT / ".colab", ROOT / "tests" / "colab" / "versions.txt"
STARTUP = ROOT / "tests" / "colab" / "session.py", ROOT / "tests" / "strict_kernel.py"
COLOR = re.compile(r"\x1b\[[\d;]*m")  # of a terminal
TIMEOUT = 600  # seconds for a cell
TROUBLE = re.compile(r"^UsageError:|Traceback \(most recent call last\)|^Exception in thread|^ERROR:", re.MULTILINE)
FETCH = """import sys
from torchvision.datasets import MNIST
MNIST.mirrors = sys.argv[1:]
from kd_lab.data import mnist_folder
print(mnist_folder())"""


class Archives(SimpleHTTPRequestHandler):
    """Serve MNIST as it was published, without a line for each request."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments, directory=ROOT / "data" / "MNIST" / "raw")

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


def python(folder: Path, *arguments: str) -> str:
    """Run Colab's Python in a folder, with a home of its own there, and return what it prints; raise a SetupError."""
    command = [COLAB / "bin" / "python", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True)
    if done.returncode:
        raise SetupError(f"{' '.join(arguments)} failed in Colab's environment:\n{done.stdout}{done.stderr}")
    return done.stdout


def environment(folder: Path) -> dict[str, str]:
    """Return the variables of a session: nothing there leads to the repository, its environment or the user's files."""
    kept = {name: value for name, value in os.environ.items() if not re.match("PYTHON|KD_LAB|JUPYTER|VIRTUAL", name)}
    own = {"HOME": f"{folder}/home", "IPYTHONDIR": f"{folder}/ipython", "NO_PROXY": "127.0.0.1"}
    return kept | own | {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "PIP_CONSTRAINT": str(VERSIONS)}


@contextmanager
def session() -> Iterator[Path]:
    """Give an empty folder away from the repository, whose kernels start as Colab's do."""
    with tempfile.TemporaryDirectory(prefix="colab_", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        startup = folder / "ipython" / "profile_default" / "startup"
        for made in (folder / "home", startup):
            made.mkdir(parents=True)
        for script in STARTUP:
            shutil.copy(script, startup)
        yield folder


def run(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """Run every cell of a notebook in a session, errors or not, and return it with its outputs."""
    path = folder / "notebook.ipynb"
    nbformat.write(notebook, path)
    options = "--to=notebook", "--execute", "--allow-errors", "--inplace", f"--ExecutePreprocessor.timeout={TIMEOUT}"
    python(folder, "-m", "nbconvert", *options, path.name)
    return nbformat.read(path, as_version=4)


def install_kit() -> str:
    """Install the kit as it is here by the install cell alone, and return where it lies then."""
    with session() as folder:
        repository = folder / "kd_lab.git"
        author = "-c", "user.name=kd_lab", "-c", "user.email=kd_lab"
        git = "git", f"--git-dir={repository}", f"--work-tree={ROOT}", *author
        for command in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message=The kit"]):
            subprocess.run([*git, *command], cwd=ROOT, check=True)
        python(folder, "-m", "pip", "uninstall", "--quiet", "--yes", "kd_lab")
        cell = new_code_cell(install(f"file://{repository.with_suffix('')}"))
        if wrong := troubles(run(new_notebook(cells=[cell]), folder)):
            raise SetupError("\n".join(["The install cell failed in Colab's environment:", *wrong]))
        return python(folder, "-c", "import kd_lab; print(kd_lab.__file__)").strip()


def fetch_mnist(folder: Path) -> str:
    """Let a session fetch MNIST, from a mirror on this machine, and return where it lies then."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Archives) as mirror:
        Thread(target=mirror.serve_forever, daemon=True).start()
        found = python(folder, "-c", FETCH, f"http://127.0.0.1:{mirror.server_port}/").strip()
        mirror.shutdown()
    return found


def troubles(notebook: NotebookNode) -> list[str]:
    """Say what went wrong in a notebook that was run: errors, printed ones too, and panels that Colab couldn't show."""
    found = []
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        text = COLOR.sub("", "\n".join(output.get("traceback", [])) or output.get("text", ""))
        if output.output_type == "error" or TROUBLE.search(text):
            found.append(text)
        if VIEW in output.get("data", {}) and "colab" not in output.metadata.get(VIEW, {}):
            found.append(f"no manager of widgets is named: {output.data['text/plain']}")
    return found


def lesson_troubles(lesson: Path, folder: Path) -> list[str]:
    """Run a lesson in a session and say what went wrong, other text than it was saved with among it."""
    saved = nbformat.read(lesson, as_version=4)
    stamp(saved, "", lesson.name)  # the kit is installed already
    try:
        ran = run(saved, folder)
    except SetupError as error:  # a kernel died, or a cell took too long
        return [str(error)]
    compared = [
        (before, after)
        for before, after in zip(saved.cells, ran.cells, strict=True)
        if "nbval-check-output" in before.metadata.get("tags", [])
    ]
    changed = [(text_of(before), text_of(after)) for before, after in compared]
    return troubles(ran) + [f"{was}\nhas become\n{now}" for was, now in changed if was != now]


def text_of(cell: NotebookNode) -> str:
    """Return what a cell printed or showed as text."""
    return "".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs)


def colab_figures() -> dict[str, float]:
    """Run every lesson, print what each took, and return how many passed."""
    install_kit()
    passed = 0
    with session() as folder:
        fetch_mnist(folder)
        for lesson in LESSONS:
            begun = time.perf_counter()
            wrong = lesson_troubles(lesson, folder)
            passed += not wrong
            print(f"{lesson.stem:36}{time.perf_counter() - begun:6.1f} s   {'passed' if not wrong else wrong[0]}")
    return {"reach.colab.lessons_passed": passed, "reach.colab.lessons": len(LESSONS)}
