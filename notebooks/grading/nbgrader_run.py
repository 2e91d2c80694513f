"""Run nbgrader on one rebuilt notebook, in a process of its own: python -m notebooks.grading.nbgrader_run FOLDER.

FOLDER/private holds job.json, and takes the gradebook, the cell that runs now, and report.json. What stops the run (a
cell that takes too long, a kernel that ends) is put in the report with the cell's number: grading.attempts then leaves
that cell out and runs the others again.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from nbgrader.api import Gradebook
from nbgrader.apps import NbGraderAPI
from nbgrader.converters import Autograde
from nbgrader.preprocessors import Execute
from traitlets import Dict, Integer
from traitlets.config import Config

STUDENT = "student"  # every submission has a course folder of its own
SHOWN = 2000  # characters of an error


class LimitedExecute(Execute):
    """nbgrader's own execution; it says which cell runs, leaves out those that were stopped, and limits the output."""

    stopped = Dict().tag(config=True)
    max_output = Integer(2_000_000).tag(config=True)

    def preprocess_cell(self, cell: NotebookNode, resources: dict, index: int) -> tuple[NotebookNode, dict]:
        """Run a cell; put what stops the run into the report, and raise it."""
        reason = self.stopped.get(str(index))
        if reason is not None and cell.cell_type == "code":
            cell.outputs = [nbformat.v4.new_output("error", ename="Stopped", evalue=reason, traceback=[reason])]
            return cell, resources
        self.printed = 0
        (REPORT.parent / "running").write_text(str(index))
        try:
            cell, resources = super().preprocess_cell(cell, resources, index)
        except Exception as error:
            said = {CellTimeoutError: f"stopped after {self.timeout} s", DeadKernelError: "ended the kernel"}
            REPORT.write_text(json.dumps({"failed": said.get(type(error), f"{type(error).__name__}: {error}")[:SHOWN]}))
            raise
        _happened(index)
        if cell.metadata.get("nbgrader", {}).get("grade"):
            _plain(cell)
        return cell, resources

    def output(self, outs: list, msg: dict, display_id: str | None, cell_index: int) -> NotebookNode | None:
        """Keep an output, up to a limit: a kernel may send more than the startup code counts."""
        self.printed += len(str(msg["content"].get("text", msg["content"].get("data"))))
        if self.printed > self.max_output:
            return None
        return super().output(outs, msg, display_id, cell_index)


REPORT = Path()
EVENTS: dict[int, list] = {}


def _happened(index: int) -> None:
    """Note what the kernel's startup code has said since the last cell."""
    path = REPORT.parent.parent / "events"
    if path.exists():
        EVENTS[index] = list(map(_event, path.read_bytes().splitlines()))
        path.write_bytes(b"")


def _event(line: bytes) -> list[str]:
    """Return what a line says; a student's code may have written anything there."""
    try:
        kind, what = json.loads(line)
    except (ValueError, TypeError):
        return ["changed", "the record of the checker"]
    return [str(kind), str(what)[:SHOWN]]


def _plain(cell: NotebookNode) -> None:
    """Leave of a check's outputs what nbgrader must judge: a warning is no failure, and a value is no score."""
    cell.outputs = [output for output in cell.outputs if output.output_type != "execute_result"]
    for output in cell.outputs:
        if output.output_type == "stream":
            output.name = "stdout"


def configured(root: Path, database: Path, execute: dict[str, Any] | None = None) -> NbGraderAPI:
    """Return nbgrader for a course folder, with LimitedExecute if its settings are given; it starts `alembic`."""
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    config = Config()
    config.CourseDirectory.root = str(root)
    config.CourseDirectory.db_url = f"sqlite:///{database}"
    config.HTMLExporter.sanitize_html = True  # a teacher opens what a student's code has printed
    if execute is not None:
        steps = Autograde().autograde_preprocessors
        config.Autograde.autograde_preprocessors = [LimitedExecute if each is Execute else each for each in steps]
        config.LimitedExecute.update(execute)
    config.Application.log_level = "CRITICAL"
    return NbGraderAPI(config=config)


def autograde(folder: Path) -> dict[str, Any]:
    """Grade the notebook of a folder and return the scores by grade_id, the errors and the events by cell."""
    job = json.loads((folder / "private" / "job.json").read_text())
    course, lesson = folder / "course", job["lesson"]
    limits = {"timeout": job["seconds"], "interrupt_on_timeout": False, "shutdown_kernel": "immediate"}
    api = configured(course, folder / "private" / "gradebook.db", limits | {"stopped": job["stopped"]})
    said = api.autograde(lesson, STUDENT)
    if not said["success"]:
        raise RuntimeError(said.get("log", said))
    api.generate_feedback(lesson, STUDENT)
    with Gradebook(f"sqlite:///{folder / 'private' / 'gradebook.db'}") as gradebook:
        notebook = gradebook.find_submission_notebook(lesson, lesson, STUDENT)
        scores = {grade.name: [grade.auto_score or 0.0, grade.max_score] for grade in notebook.grades}
    graded = nbformat.read(course / "autograded" / STUDENT / lesson / f"{lesson}.ipynb", as_version=4)
    errors = {index: text for index, cell in enumerate(graded.cells) for text in _errors(cell)}
    return {"scores": scores, "errors": errors, "events": EVENTS}


def _errors(cell: NotebookNode) -> list[str]:
    """Return the error of a cell in words, if there is one."""
    errors = [output for output in cell.get("outputs", []) if output.output_type == "error"]
    texts = [f"{error.ename}: {error.evalue}" if error.ename != "AssertionError" else error.evalue for error in errors]
    return [text[:SHOWN] for text in texts[-1:]]


if __name__ == "__main__":
    REPORT = Path(sys.argv[1]) / "private" / "report.json"
    REPORT.write_text(json.dumps(autograde(Path(sys.argv[1]))))
