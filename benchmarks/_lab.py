"""Open notebooks in JupyterLab and a headless Chromium, so that they are tried the way a learner meets them."""

import base64
import io
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import nbformat
import psutil
from jupyter_server.serverapp import list_running_servers
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image
from playwright.sync_api import Locator, Page, sync_playwright

from kd_lab.errors import SetupError
from kd_lab.panels.panel import VIEW

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
START, RUN = 120, 240  # seconds, at most: many times what a calm machine takes
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-proxy-server",
]
LAB = sys.executable, "-m", "jupyterlab", "--LabApp.expose_app_in_browser=True"
LOADED = """from kd_lab.checkpoints import load_trained
from kd_lab.data import Mnist, load_mnist
from kd_lab.panels import *

data = load_mnist()
few = Mnist(data.train[:1000], data.validation[:1000], data.test)"""
# Lab's own command and model, since cells out of view are not in the page, and so neither are their prompts.
RUN_CELLS = """([command, seconds]) => Promise.race([
  (async () => {
    const panel = jupyterapp.shell.currentWidget;
    await panel.sessionContext.ready;
    await jupyterapp.commands.execute(command);
    return panel.model.toJSON();
  })(),
  new Promise((_, fail) => setTimeout(() => fail(new Error(`cells still run after ${seconds} s`)), 1000 * seconds)),
])"""
ADD_CELL = """(source) => {
  const { model, content } = jupyterapp.shell.currentWidget;
  model.sharedModel.addCell({ cell_type: "code", source });
  return content.activeCellIndex = model.cells.length - 1;
}"""
OPEN = """async (path) => {
  const panel = await jupyterapp.commands.execute("docmanager:open", { path });
  await panel.context.ready;
}"""
# What scrolls up and down inside, the layers of a file say, must fit as a box; its texts need not.
CUT_OFF = """output => [...output.querySelectorAll(".widget-html-content")].filter(part => {
  const box = part.closest(".widget-html").getBoundingClientRect();
  const scrolling = [...part.querySelectorAll("[tabindex]")];
  const texts = document.createTreeWalker(part, NodeFilter.SHOW_TEXT), placed = [...scrolling];
  while (texts.nextNode()) {
    const text = document.createRange();
    text.selectNode(texts.currentNode);
    if (!scrolling.some(each => each.contains(texts.currentNode))) placed.push(text);
  }
  const sizes = placed.map(each => each.getBoundingClientRect()).filter(size => size.width);  // nothing is nowhere
  return sizes.some(size => size.bottom > box.bottom + 1 || size.right > box.right + 1);
}).map(part => part.innerText)"""
SHOW = "(index) => jupyterapp.shell.currentWidget.content.scrollToItem(index, 'start')"


@contextmanager
def lab(*notebooks: Path) -> Iterator[Page]:
    """Copy the notebooks and open the first; server, kernels and browser end with the block."""
    with tempfile.TemporaryDirectory(prefix="kd_lab_browser_", ignore_cleanup_errors=True) as folder:
        root = Path(folder) / "notebooks"
        root.mkdir()
        for notebook in notebooks:
            shutil.copy(notebook, root)
        with browser() as page, server(root, Path(folder) / "jupyter") as (address, token):
            page.goto(f"{address}lab/tree/{notebooks[0].name}?token={token}", wait_until="domcontentloaded")
            page.wait_for_selector(".jp-NotebookPanel .jp-Cell")
            yield page


@contextmanager
def server(root: Path, home: Path, *program: str | Path) -> Iterator[tuple[str, str]]:
    """Start JupyterLab, or another server of Jupyter's, on a free port and give its address and token.

    It runs away from the user's settings and layout.
    """
    token = secrets.token_hex()
    options = ["--no-browser", "--ip=127.0.0.1", "--port=0", "--allow-root", f"--ServerApp.root_dir={root}"]
    command = [*(program or LAB), *options]
    with started(command, environment(home, token), lambda process: wait_for_server(process, home)) as address:
        yield address, token


@contextmanager
def voila(notebook: Path, home: Path) -> Iterator[str]:
    """Start Voila with a notebook, away from the user's settings, and give the address of its page with the token."""
    token = secrets.token_hex()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    command = [
        *(sys.executable, "-m", "voila"),
        str(notebook),
        "--no-browser",
        "--Voila.ip=127.0.0.1",
        f"--port={port}",
        f"--token={token}",
        f"--Voila.config_file_paths={NOTEBOOKS}",  # as where a learner starts it beside the lessons
    ]
    with started(command, environment(home, token), lambda process: wait_for_port(process, port)):
        yield f"http://127.0.0.1:{port}/?token={token}"


@contextmanager
def started(
    command: list[str | Path], environment: dict[str, str], wait: Callable[[subprocess.Popen], Any]
) -> Iterator[Any]:
    """Run a server and give what `wait` returns once it answers."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            yield wait(process)
        except SetupError as error:
            log.seek(0)
            raise SetupError(f"{error}\n{log.read()}") from None
        finally:
            end(process)


def environment(home: Path, token: str) -> dict[str, str]:
    """Return the environment with the user's folders of Jupyter below `home`; the interpreter's own stay in use."""
    names = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
    }
    folders = {name: str(home / folder) for name, folder in names.items()}
    return {"IPYTHONDIR": str(home / "ipython"), **os.environ, **folders, "JUPYTER_TOKEN": token}


def wait_for_server(process: subprocess.Popen, home: Path) -> str:
    """Return JupyterLab's address as soon as it answers there."""

    def address() -> str | None:
        for running in list_running_servers(home / "runtime"):
            socket.create_connection((running["hostname"], running["port"])).close()
            return running["url"]
        return None

    return wait_until(process, address)


def wait_for_port(process: subprocess.Popen, port: int) -> bool:
    """Return as soon as a server answers at this port."""
    return wait_until(process, lambda: socket.create_connection(("127.0.0.1", port)).close() or True)


def wait_until(process: subprocess.Popen, look: Callable[[], Any]) -> Any:
    """Return what `look` returns, once it does."""
    end = time.monotonic() + START
    while process.poll() is None and time.monotonic() < end:
        with suppress(ValueError, OSError):  # the file of its address may be half written, and comes before it listens
            if found := look():
                return found
        time.sleep(0.1)
    raise SetupError(f"{process.args[2]} did not start. It says:")


def end(process: subprocess.Popen) -> None:
    """Ask the server to end, which ends its kernels too, and kill what is left of either."""
    family = [*psutil.Process(process.pid).children(recursive=True), process] if process.poll() is None else []
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=15)
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()


@contextmanager
def browser() -> Iterator[Page]:
    """Start a headless Chromium and give a page of it."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=find_browser(), args=OPTIONS)
        try:
            page = chromium.new_page(viewport={"width": 1280, "height": 1100})
            page.set_default_timeout(1000 * START)
            yield page
        finally:
            chromium.close()


def find_browser() -> str:
    """Return the path of the machine's Chromium."""
    for name in BROWSERS:
        if path := shutil.which(name):
            return path
    raise SetupError(
        f"No browser was found: none of {', '.join(BROWSERS)} is on the PATH. Install Chromium, on "
        "Debian and Ubuntu with: apt-get install chromium"
    )


def run_all(page: Page) -> dict:
    """Run every cell, wait for the last, and return the notebook as it is then."""
    return page.evaluate(RUN_CELLS, ["notebook:run-all-cells", RUN])


def open_notebook(page: Page, name: str) -> None:
    """Show another notebook of the same JupyterLab; those that are open stay so, and their kernels go on."""
    page.evaluate(OPEN, name)


def run_new_cell(page: Page, source: str) -> int:
    """Add a cell below all others, run it and return its place."""
    place = page.evaluate(ADD_CELL, source)
    page.evaluate(RUN_CELLS, ["notebook:run-cell", RUN])
    return place


def write_notebook(path: Path, *sources: str) -> Path:
    """Write a notebook of these cells that JupyterLab opens without asking for a kernel, and return its path."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    cells = [new_code_cell(source) for source in sources]
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


def find_cell(notebook: dict, kind: str) -> int:
    """Return the place of the first cell that shows a widget of this kind, as its text says."""
    return next(
        place
        for place, cell in enumerate(notebook["cells"])
        for data in (output.get("data", {}) for output in cell.get("outputs", []))
        if VIEW in data and "".join(data["text/plain"]).startswith(kind)
    )


def show_cell(page: Page, place: int) -> Locator:
    """Scroll a cell into view and return it."""
    page.evaluate(SHOW, place)
    return page.locator(f".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell[data-windowed-list-index='{place}']")


def paint(part: Locator, work: Callable[[], None]) -> list[Image.Image]:
    """Do some work and return how a part of the page looked in every frame that the browser painted, in grey."""
    session, frames = part.page.context.new_cdp_session(part.page), []

    def keep(event: dict) -> None:
        frames.append(event["data"])
        session.send("Page.screencastFrameAck", {"sessionId": event["sessionId"]})

    session.on("Page.screencastFrame", keep)
    session.send("Page.startScreencast", {"format": "png"})
    work()
    session.send("Page.stopScreencast")
    box = part.bounding_box()
    corners = box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"]
    return [Image.open(io.BytesIO(base64.b64decode(frame))).convert("L").crop(corners) for frame in frames]


def is_blank(picture: Image.Image) -> bool:
    """Tell whether nothing dark is on a picture."""
    return picture.getextrema()[0] > 127


def cut_off(output: Locator) -> list[str]:
    """Return the texts below an output that do not fit in their boxes."""
    return output.evaluate(CUT_OFF)


def top(row: Locator) -> float:
    """Return how far down the page a row is, in pixels; an answer that comes meanwhile writes the table anew."""
    box = None
    while box is None:
        row.wait_for()
        box = row.bounding_box()
    return box["y"]
