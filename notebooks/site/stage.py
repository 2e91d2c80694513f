"""Write what Sphinx reads: the lessons as they were run, exercises, guides, results and the module reference."""

import base64
import html
import re
from itertools import groupby
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell

from benchmarks._modules import list_modules
from benchmarks._tables import table
from notebooks.build import ROOT
from notebooks.lab import EXERCISES, LESSONS, NOTEBOOKS
from notebooks.site.recordings import Recording
from notebooks.site.reference import module_pages

PAGES = ROOT / "site" / "pages"
RESULTS = ROOT / "results"
HERE = re.compile(r'<a href="http://127\.0\.0\.1[^"]*"[^>]*>(.*?)</a>')  # a server that ran while the lesson did
LEVEL = re.compile(r"difficulty:? (easy|medium|demanding)|· (easy|medium|demanding) ·", re.IGNORECASE)
AS_RUN = (
    "*This page shows the lesson as it was run, with its outputs and so with its answers. To predict, to move the "
    "controls and to change the code, [run it yourself](../index.md#run-it-yourself).*"
)
Files = dict[str, bytes]


def sources(recorded: list[Recording]) -> Files:
    """Return all that Sphinx reads, by path; these panels stand as recordings, others as pictures."""
    texts = {f"lessons/{path.name}": lesson_page(path, recorded) for path in LESSONS}
    texts |= {f"lessons/exercises/{path.name}": path.read_text() for path in EXERCISES}
    texts |= {f"reference/{name}.rst": page for name, page in module_pages().items()}
    lists = {
        "LESSONS": lesson_list(),
        "EXERCISES": exercise_list(),
        "PANELS": panel_list(recorded),
        "MODULES": module_list(),
    }
    texts |= {path.relative_to(PAGES).as_posix(): filled(path.read_text(), lists) for path in PAGES.rglob("*.md")}
    texts |= {"teaching.md": teaching_page(), "results.md": results_page()}
    texts |= {
        "contributing.md": (ROOT / "CONTRIBUTING.md").read_text(),
        "changes.md": (ROOT / "CHANGELOG.md").read_text(),
    }
    files = {name: text.encode() for name, text in texts.items()}
    records = (path for path in RESULTS.rglob("*") if path.suffix in (".json", ".kdz"))
    files |= {f"records/{path.relative_to(RESULTS).as_posix()}": path.read_bytes() for path in records}
    return files | {"images/panel.png": (NOTEBOOKS / "images" / "magnitude_pruning.png").read_bytes()}


def extras(recorded: list[Recording], folder: Path) -> Files:
    """Return what is copied beside the pages as it is: of every recorded panel its page and its lesson's picture."""
    files = {}
    for recording in recorded:
        files[f"panels/{recording.name}.html"] = (folder / f"{recording.name}.html").read_bytes()
        files[f"panels/{recording.name}.png"] = base64.b64decode(picture(recording))
    return files


def picture(recording: Recording) -> str:
    """Return the picture of a panel in its lesson, in base64."""
    cells = nbformat.read(NOTEBOOKS / f"{recording.lesson}.ipynb", as_version=4).cells
    outputs = next(cell for cell in cells if cell.id == recording.cell).outputs
    return next(output.data["image/png"] for output in outputs if "image/png" in output.get("data", {}))


def write(files: Files, folder: Path) -> None:
    """Make a folder hold these files and no others; what is as it was keeps its time, so that Sphinx passes it over."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        if path.relative_to(folder).as_posix() not in files:
            path.unlink()
    for name, content in files.items():
        path = folder / name
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def lesson_page(path: Path, recordings: list[Recording]) -> str:
    """Return a lesson as the site shows it: panels recorded, checks folded, and every picture with a name."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if cell.id != "colab-install"]
    panels = {recording.cell: recording for recording in recordings if recording.lesson == path.stem}
    heading = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = (re.findall(r"^#+ (.*)", cell.source, re.MULTILINE) or [heading])[-1]
            cell.source = re.sub(r"\[!\[(.*?)\]\(.*?\)\]", r"[\1]", cell.source)  # the badge would be fetched
        else:
            prepare(cell, heading, panels.get(cell.id))
    notebook.cells.insert(1, new_markdown_cell(AS_RUN, id="as-run"))
    return nbformat.writes(notebook)


def prepare(cell: NotebookNode, heading: str, recording: Recording | None) -> None:
    """Fold a cell that only checks, name its pictures after the section, and put a recorded panel in its place."""
    if cell.metadata.get("jupyter", {}).get("source_hidden"):
        cell.metadata.tags = [*cell.metadata.get("tags", []), "hide-input"]
    cell.metadata["mystnb"] = {"image": {"alt": f"Picture in the section “{heading}”"}}
    for output in cell.outputs:
        data = output.get("data", {})
        if "text/html" in data:
            data["text/html"] = HERE.sub(r"\1 (while the lesson runs)", data["text/html"])
        if recording and "image/png" in data:
            said = str(data["text/plain"])
            cell.metadata["mystnb"]["image"]["alt"] = said
            data["text/html"] = frame(recording, said, data.pop("image/png"), "../")


def frame(recording: Recording, said: str, png: str, top: str) -> str:
    """Return the HTML of a recorded panel; where scripts are off the picture stands there, which needs none."""
    address, said = f"{top}panels/{recording.name}.html", html.escape(said)
    return (
        f'<div class="recorded"><iframe src="{address}" loading="lazy" title="Recorded panel. {said}"></iframe>'
        f'<noscript><img src="{top}panels/{recording.name}.png" alt="{said}"></noscript>'
        f'<p><a href="{address}">The panel on a page of its own</a></p></div>'
    )


def filled(text: str, lists: dict[str, str]) -> str:
    """Return a page with its lists put in where their names stand alone on a line."""
    return re.sub(r"^([A-Z]+)$", lambda name: lists.get(name[0], name[0]), text, flags=re.MULTILINE)


def title(path: Path) -> str:
    """Return the title of a lesson."""
    return re.findall(r"^# (.*)", nbformat.read(path, as_version=4).cells[0].source)[0]


def teaching_page() -> str:
    """Return the teacher's guide; where a row of its table begins with a lesson, its title leads there."""
    text = (NOTEBOOKS / "TEACHING.md").read_text()
    for path in LESSONS:
        named = re.sub(r"^(\d\d)_", r"\1 ", path.stem)
        text = text.replace(f"\n| {named} |", f"\n| [{title(path)}](lessons/{path.name}) |")
    return text


def lesson_list() -> str:
    """Return the lessons in order: title, question, and how difficult each is."""
    lines = []
    for path in LESSONS:
        first = nbformat.read(path, as_version=4).cells[0].source
        question = re.findall(r"^\*\*(.*)\*\*$", first, re.MULTILINE)[0]
        level = LEVEL.search(first)
        said = f"\\\n  *{(level[1] or level[2]).lower()}*" if level else ""
        lines.append(f"- [{title(path)}](lessons/{path.name})\\\n  {question}{said}")
    return "\n".join(lines)


def exercise_list() -> str:
    """Return the exercises in order, each with what it asks."""
    lines = []
    for path in EXERCISES:
        cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
        named, *questions = re.findall(r"^#+ (.*)", "\n".join(cells), re.MULTILINE)
        lines += [f"- [{named}]({path.name})", *(f"  - {question}" for question in questions)]
    return "\n".join(lines)


def panel_list(recordings: list[Recording]) -> str:
    """Return a picture of every recorded panel, which leads to it, and the lesson that it is from."""
    cards = []
    for recording in recordings:
        address = f"panels/{recording.name}"
        picture = f'<a href="{address}.html"><img src="{address}.png" alt="" loading="lazy">{recording.title}</a>'
        path = NOTEBOOKS / f"{recording.lesson}.ipynb"
        lesson = f"In [{title(path)}](lessons/{path.name})."
        cards.append(f"```{{container}} panel\n<p>{picture}</p>\n\n{lesson}\n```")
    return "\n\n".join(cards) or "None was recorded when these pages were built."


def module_list() -> str:
    """Return the modules, the most basic first, and what each is for."""
    rows = [
        [f"[kd_lab.{name}](kd_lab.{name}.rst)", said]
        for name, said in ((path.removesuffix("/").removesuffix(".py"), said) for _floor, path, said in list_modules())
    ]
    return table(["module", "what it is for"], rows)


def results_page() -> str:
    """Return the tables made from the records, then the records themselves and the files that were measured."""
    rows, files = [], sorted(RESULTS.glob("deep_compression/*.kdz"))
    for recipe, group in groupby(files, lambda path: path.stem.rsplit("_", 1)[0]):
        links = [f"{{download}}`{path.stat().st_size:,} <records/deep_compression/{path.name}>`" for path in group]
        rows.append([f"`{recipe}`", " · ".join(links)])
    records = ", ".join(f"{{download}}`{path.name} <records/{path.name}>`" for path in sorted(RESULTS.glob("*.json")))
    return (
        f"{(RESULTS / 'README.md').read_text()}\n## The records and the files\nThe records: {records}.\n\n"
        "The packed networks of `deep_compression.json`, a file for each seed; the numbers are their bytes.\n"
        f"`load_packed` from `kd_lab.formats` reads one.\n\n{table(['recipe', 'files'], rows)}\n"
    )
