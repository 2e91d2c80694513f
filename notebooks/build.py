"""Run every lesson and every solution, and save it with its outputs; stamp the repository's address where it belongs.

`make notebooks` calls it. The address stands in pyproject.toml alone; while it is empty, no badge and no install cell
is there.
"""

import base64
import io
import os
import re
import sys
import tempfile
import tomllib
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell
from PIL import Image

from notebooks.lab import LESSONS, NOTEBOOKS, SOLUTIONS

VIEW = "application/vnd.jupyter.widget-view+json"
ROOT = Path(__file__).resolve().parents[1]
MAX_KILOBYTES = 300
WIDE_TABLE = re.compile(r"^[- ]{106,}$", re.MULTILINE)  # breaks in a window of 1280 pixels
EXERCISES = re.compile(r"^## Exercises\n(?:(?!## ).*\n)*?1\. \S", re.MULTILINE)  # the first, in its section
MISSING_IN_COLAB = (
    'ai-edge-litert constriction fastapi grpcio "nncf>=3" onnx onnxruntime onnxscript openvino optuna segno uvicorn'
)
README_BLOCK = re.compile(r"(?<=<!-- colab -->\n).*?(?=<!-- /colab -->)", re.DOTALL)


def repository() -> str:
    """Return the repository's address, such as https://github.com/OWNER/kd_lab; empty while it is unset."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["kd_lab"]["repository"].rstrip("/")


def badge(address: str, lesson: str) -> str:
    """Return the Markdown of the button that opens a lesson in Colab."""
    path = address.removeprefix("https://github.com/")
    return (
        f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
        f"(https://colab.research.google.com/github/{path}/blob/main/notebooks/{lesson})"
    )


def install(address: str) -> str:
    """Return the code that installs the kit in Colab and leaves Colab's own torch and ipywidgets alone."""
    return (
        'import sys\n\nif "google.colab" in sys.modules:  # elsewhere the kit is installed already\n'
        f"    %pip install --quiet --no-deps git+{address}.git\n    %pip install --quiet {MISSING_IN_COLAB}"
    )


def stamp(notebook: NotebookNode, address: str, lesson: str) -> None:
    """Put the badge and the install cell behind the title, or take them away where no address is set."""
    notebook.cells = [cell for cell in notebook.cells if not cell.id.startswith("colab-")]
    if address:
        notebook.cells[1:1] = [
            new_markdown_cell(badge(address, lesson), id="colab-badge"),
            new_code_cell(install(address), id="colab-install"),
        ]


def stamp_readme(text: str, address: str) -> str:
    """Return the README with the way into Colab that the address allows."""
    unset = (
        "Upload the folder to your Drive, as `kd_lab`. Open a lesson from its folder `notebooks`, mount the "
        "Drive, and run\n"
        "in a first cell: `%pip install --no-deps /content/drive/MyDrive/kd_lab`, which leaves Colab's "
        "packages alone.\n"
        f"Lessons 04 to 11 need `%pip install {MISSING_IN_COLAB}` as well.\n"
    )
    ways = [f"{badge(address, lesson.name)} {lesson.stem}\n" for lesson in LESSONS] if address else [unset]
    return README_BLOCK.sub(lambda _: "\n".join(ways), text)


def opened(path: Path) -> str:
    """Return what Colab opens: a lesson, or the exercise that is made of a solution."""
    return path.relative_to(NOTEBOOKS).as_posix().replace("solutions/", "exercises/")


def keep_pictures(notebook: NotebookNode) -> None:
    """Keep of a live panel only the picture or the sentence beside it: it can't be live before the cell is run."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if {"image/png", "text/html"} & output.get("data", {}).keys():
                output.data.pop(VIEW, None)


def pack_pictures(notebook: NotebookNode) -> None:
    """Write each picture in fewer bytes, with the same pixels; without an alpha channel if nothing shines through."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if picture := output.get("data", {}).get("image/png"):
                output.data["image/png"] = _packed(picture)


def _packed(picture: str) -> str:
    image, packed = Image.open(io.BytesIO(base64.b64decode(picture))), io.BytesIO()
    opaque = image.mode == "RGBA" and image.getextrema()[-1] == (255, 255)
    (image.convert("RGB") if opaque else image).save(packed, "PNG", optimize=True)
    return base64.b64encode(packed.getvalue()).decode()


def run(path: Path) -> None:
    """Run one notebook from top to bottom in a fresh kernel and save it."""
    notebook = nbformat.read(path, as_version=4)
    stamp(notebook, repository(), opened(path))
    client = NotebookClient(
        notebook,
        timeout=600,
        resources={"metadata": {"path": path.parent}},
        record_timing=False,
        coalesce_streams=True,
        store_widget_state=False,
    )
    with tempfile.TemporaryDirectory() as folder:  # nobody's own predictions are saved
        client.execute(env=os.environ | {"KD_LAB_JOURNAL": f"{folder}/journal.jsonl"})
    keep_pictures(notebook)
    pack_pictures(notebook)
    nbformat.write(notebook, path)


def faults(path: Path) -> list[str]:
    """Say what must not be committed of a lesson."""
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    prose = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    outputs = [output for cell in cells for output in cell.outputs]
    order = [cell.execution_count for cell in cells]
    found = {
        "its cells were not run once from top to bottom": order != list(range(1, len(cells) + 1)),
        "a cell fails": any(output.output_type == "error" for output in outputs),
        "a panel is live, and no picture": any(VIEW in output.get("data", {}) for output in outputs),
        "a printed table is wider than a page": any(WIDE_TABLE.search(output.get("text", "")) for output in outputs),
        f"it has more than {MAX_KILOBYTES} KB": path.stat().st_size > 1000 * MAX_KILOBYTES,
        "its Exercises section has no numbered exercise": not EXERCISES.search(prose),
    }
    return [f"{path.name}: {fault}. Mend it, then run: make notebooks" for fault, is_there in found.items() if is_there]


def main(arguments: list[str]) -> None:
    """Stamp the README, then run and save lessons and solutions; with --check, only look at those that are named."""
    if arguments[:1] == ["--check"]:
        sys.exit("\n".join(fault for name in arguments[1:] for fault in faults(Path(name))))
    readme = ROOT / "README.md"
    readme.write_text(stamp_readme(readme.read_text(), repository()))
    for path in (*LESSONS, *SOLUTIONS):
        print(path.relative_to(NOTEBOOKS), flush=True)
        run(path)


if __name__ == "__main__":
    main(sys.argv[1:])
