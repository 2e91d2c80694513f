"""Build the static site: python -m notebooks.site [FOLDER] [--panels NAME,…]; `make site` calls it.

The pages lie in FOLDER/html, by default site/_build/html. A lesson that was not run is named, and nothing is built.
"""

import argparse
import shutil
import sys
import time
from pathlib import Path

import nbformat
from sphinx.cmd.build import build_main

from kd_lab.errors import KdLabError, reason
from notebooks import build
from notebooks.lab import LESSONS
from notebooks.site import links, recordings, stage

SITE = build.ROOT / "site"


def lesson_faults(path: Path) -> list[str]:
    """Say why a lesson can't be shown: it was not run as it stands, or has no picture."""
    notebook = nbformat.read(path, as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = any({"image/png", "image/svg+xml"} & output.get("data", {}).keys() for output in outputs)
    return build.faults(path) + ([] if pictures else [f"{path.name}: it has no picture. Run: make notebooks"])


def build_site(folder: Path, panels: list[str] | None = None, check: bool = True) -> dict[str, float]:
    """Build the pages below a folder and return the seconds that each part took; `panels` are those to be recorded.

    Raises SystemExit, before anything is made, where a lesson was not run, and with `check` where a link is broken.
    """
    if said := [fault for path in LESSONS for fault in lesson_faults(path)]:
        sys.exit("\n".join(said))
    start = time.perf_counter()
    recorded = recordings.record_all(folder / "recorded", panels)
    middle = time.perf_counter()
    shutil.rmtree(folder / "html", ignore_errors=True)  # pages of what is no longer there
    stage.write(stage.sources(recorded), folder / "source")
    stage.write(stage.extras(recorded, folder / "recorded"), folder / "extra")
    run_sphinx(folder)
    if check and (said := links.faults(folder / "html")):
        sys.exit("\n".join(said))
    return {"recordings": middle - start, "pages": time.perf_counter() - middle}


def run_sphinx(folder: Path) -> None:
    """Write the pages; a warning of Sphinx is an error."""
    options = [
        "-b",
        "html",
        "-c",
        str(SITE),
        "-d",
        str(folder / "doctrees"),
        "-D",
        f"html_extra_path={folder / 'extra'}",
    ]
    if build_main([*options, "-q", "-W", "--keep-going", str(folder / "source"), str(folder / "html")]):
        sys.exit("Sphinx could not build the site: see above.")


def main(arguments: list[str]) -> None:
    """Build the site that the command line asks for, and say where it is."""
    parser = argparse.ArgumentParser("notebooks.site", description="Build the static site.")
    parser.add_argument("folder", nargs="?", type=Path, default=SITE / "_build")
    parser.add_argument("--panels", help="names of the panels to record, between commas; all, if this is left out")
    given = parser.parse_args(arguments)
    panels = None if given.panels is None else [name for name in given.panels.split(",") if name]
    try:
        seconds = build_site(given.folder.resolve(), panels)
    except KdLabError as error:
        sys.exit(reason(error))
    times = ", ".join(f"{part} {each:.0f} s" for part, each in seconds.items())
    print(f"{given.folder / 'html' / 'index.html'}: {times}")


if __name__ == "__main__":
    main(sys.argv[1:])
