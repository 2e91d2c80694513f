"""Grade one submission, item by item: what stops the run costs its own exercise, and the others are run again.

Each run has a folder and processes of its own: the course with its gradebook, a copy of the package, an empty cache.
"""

import ast
import filecmp
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import nbformat
import psutil
from nbformat import NotebookNode

import kd_lab
from notebooks.grading.kernel import confirmation, startup_code
from notebooks.grading.nbgrader_run import STUDENT, configured
from notebooks.grading.submissions import Rebuilt, Submission, Unreadable, read_cells, rebuild

PACKAGE = Path(kd_lab.__file__).resolve().parent
ROOT = PACKAGE.parent


@dataclass(frozen=True)
class Limits:
    """What a student's code may take: seconds for a cell and for all of a notebook, memory, and output of a cell."""

    seconds: int = 60
    all_seconds: int = 1800
    gigabytes: float = 4
    output_megabytes: float = 1


@dataclass
class Item:
    """What an exercise is given: points of so many, and why."""

    exercise: str
    points: float
    of: float
    reason: str


@dataclass
class Graded:
    """A graded submission: its items, notes for the teacher, and nbgrader's page of feedback."""

    submission: Submission
    items: list[Item]
    notes: list[str] = field(default_factory=list)
    feedback: str = ""


class Lesson:
    """The source of a lesson, prepared by nbgrader's generate_assignment: its gradebook and what it hands out."""

    def __init__(self, source: Path, folder: Path):
        self.name, self.folder = source.stem, folder / source.stem
        target = self.folder / "source" / self.name / source.name
        target.parent.mkdir(parents=True)
        shutil.copy(source, target)
        said = configured(self.folder, self.folder / "gradebook.db").generate_assignment(self.name)
        if not said["success"]:
            raise ValueError(f"nbgrader can't use {source}: {said.get('log') or said.get('error')}")
        self.release = nbformat.read(self.folder / "release" / self.name / source.name, as_version=4)
        checks = [cell for cell in nbformat.read(source, as_version=4).cells if _grader(cell).get("grade")]
        self.points = {_grader(cell)["grade_id"]: float(_grader(cell)["points"]) for cell in checks}
        self.graded = {_grader(cell)["grade_id"]: _numbers(cell.source) for cell in checks}
        if not all(self.graded.values()):
            raise ValueError(f"{source}: each check needs a hidden test that calls grade(number, answer)")

    @cached_property
    def exercises(self) -> dict[str, str]:
        """The exercises by the grade_id of their checks."""
        return {grade_id: grade_id.split("-", 1)[1] for grade_id in self.points}


def _grader(cell: NotebookNode) -> dict:
    return cell.metadata.get("nbgrader", {})


def _numbers(source: str) -> set[str]:
    """Return the numbers that a check grades, as in grade("01.2", my_mask)."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return {
        call.args[0].value
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id == "grade" and isinstance(call.args[0], ast.Constant)
    }


def grade_submission(submission: Submission, lessons: dict[str, Lesson], limits: Limits, package: Path) -> Graded:
    """Return what a submission is given; whatever it does, this returns."""
    lesson = lessons.get(submission.lesson or "")
    if lesson is None:
        known = ", ".join(lessons)
        return Graded(submission, [Item("", 0, 0, f"the name is none of a lesson with exercises ({known})")])
    try:
        rebuilt = rebuild(lesson.release, read_cells(submission.path))
        return _Grading(submission, lesson, rebuilt, limits, package).graded()
    except Unreadable as error:
        reason = str(error)
    except Exception as error:  # noqa: BLE001 the others must be graded
        reason = f"could not be graded: {type(error).__name__}: {error}"
    return Graded(submission, [_item(lesson, grade_id, 0, reason) for grade_id in lesson.points])


def _item(lesson: Lesson, grade_id: str, points: float, reason: str) -> Item:
    return Item(lesson.exercises[grade_id].replace("-", "."), points, lesson.points[grade_id], reason)


class _Grading:
    """The runs of one submission; `stopped` holds the cells that are left out, and why."""

    def __init__(self, submission: Submission, lesson: Lesson, rebuilt: Rebuilt, limits: Limits, package: Path):
        self.submission, self.lesson, self.rebuilt, self.limits = submission, lesson, rebuilt, limits
        self.package, self.stopped, self.feedback, self.key = package, {}, "", secrets.token_bytes(32)
        self.deadline = time.monotonic() + limits.all_seconds

    def graded(self) -> Graded:
        """Run, leave out what stopped the run, and run again, until all that is left has run to its end."""
        while True:
            report = self._run()
            if "all" in report:
                items = [_item(self.lesson, grade_id, 0, report["all"]) for grade_id in self.lesson.points]
                break
            found = self._trouble(report)
            if not found:
                items = [self._judged(grade_id, report) for grade_id in self.lesson.points]
                break
            self.stopped |= found
        return Graded(self.submission, items, self.rebuilt.notes + self._helper_notes(report), self.feedback)

    def _run(self) -> dict[str, Any]:
        """Return the report of one run, in a folder that is gone afterwards."""
        with tempfile.TemporaryDirectory(prefix="kd_lab_grading_", ignore_cleanup_errors=True) as name:
            folder = Path(name).resolve()
            self._prepare(folder)
            report = self._finish(folder)
            changed = _changed(folder / "package" / "kd_lab", self.package) or _changed(PACKAGE, self.package)
            if changed:
                report = {"all": f"a file of the package was changed: {changed}"}
            feedback = folder / "course" / "feedback" / STUDENT / self.lesson.name / f"{self.lesson.name}.html"
            self.feedback = feedback.read_text() if feedback.exists() else ""
            return report

    def _prepare(self, folder: Path) -> None:
        """Fill the folder of a run."""
        course, private, package = folder / "course", folder / "private", folder / "package"
        shutil.copytree(self.lesson.folder, course, ignore=shutil.ignore_patterns("gradebook.db"))
        private.mkdir()
        shutil.copy(self.lesson.folder / "gradebook.db", private)
        submitted = course / "submitted" / STUDENT / self.lesson.name / f"{self.lesson.name}.ipynb"
        submitted.parent.mkdir(parents=True)
        nbformat.write(self.rebuilt.notebook, submitted)
        shutil.copytree(self.package, package / "kd_lab")
        for shared in ("data", "results", "notebooks"):
            (package / shared).symlink_to(ROOT / shared)
        startup = folder / "ipython" / "profile_default" / "startup"
        startup.mkdir(parents=True)
        (startup / "00_grading.py").write_text(startup_code(private / "settings.json"))
        settings = {
            "key": self.key.hex(),
            "lessons": sorted({each.partition(".")[0] for all in self.lesson.graded.values() for each in all}),
            "events": str(folder / "events"),
            "bytes": int(self.limits.gigabytes * 2**30),
            "output": int(self.limits.output_megabytes * 1e6),
            "protected": [
                str(each) for each in (private, package, startup, ROOT, sys.prefix, self.submission.path.parent)
            ],
        }
        (private / "settings.json").write_text(json.dumps(settings))
        job = {"lesson": self.lesson.name, "seconds": self.limits.seconds, "stopped": self.stopped}
        (private / "job.json").write_text(json.dumps(job))

    def _finish(self, folder: Path) -> dict[str, Any]:
        """Run nbgrader in a folder and return its report; what failed names the cell that ran."""
        environment = os.environ | {
            "PYTHONPATH": str(folder / "package"),
            "IPYTHONDIR": str(folder / "ipython"),
            "KD_LAB_CACHE": str(folder / "cache"),
            "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
            "TMPDIR": str(folder),
            "OMP_NUM_THREADS": "1",
            "MPLBACKEND": "Agg",
        }
        command = [sys.executable, "-m", "notebooks.grading.nbgrader_run", str(folder)]
        log = folder / "private" / "log"
        with log.open("wb") as file:
            process = subprocess.Popen(  # in a session of its own: a teacher's Ctrl-C must not end it half done
                command, env=environment, cwd=folder, stdout=file, stderr=file, start_new_session=True
            )
            timed_out = _wait(process, self.deadline)
        if timed_out:
            return {"all": f"took more than {self.limits.all_seconds} s in all"}
        private = folder / "private"
        report = json.loads((private / "report.json").read_text()) if (private / "report.json").exists() else {}
        if "scores" in report:
            started = any(["started", ""] in events for events in report["events"].values())
            return report if started else {"all": "could not be graded: the kernel did not start as it should"}
        if not (private / "running").exists():
            return {"all": f"could not be run: {log.read_text(errors='replace')[-2000:]}"}
        failed = report.get("failed", "ended the process that grades")
        return {"running": int((private / "running").read_text()), "failed": failed}

    def _trouble(self, report: dict[str, Any]) -> dict[int, str]:
        """Return the cells to leave out of the next run, and why."""
        if "failed" in report:
            return {report["running"]: report["failed"]}
        flooded = [int(index) for index, error in report["errors"].items() if _of_memory(error)]
        if set(flooded) - set(self.stopped):  # what it took is still taken, so the others could fail
            return {min(set(flooded) - set(self.stopped)): f"took more than {self.limits.gigabytes:g} GB"}
        for grade_id, (score, most) in report["scores"].items():
            if score == most and not self._confirmed(grade_id, report):
                return self._bypassed(grade_id)
        return {}

    def _confirmed(self, grade_id: str, report: dict[str, Any]) -> bool:
        """Return whether the true checker has let this answer pass."""
        said = {what for events in report["events"].values() for kind, what in events if kind == "confirmed"}
        return {confirmation(number, self.key) for number in self.lesson.graded[grade_id]} <= said

    def _bypassed(self, grade_id: str) -> dict[int, str]:
        """Return the student's cells since the check before: one of them kept this check from running."""
        check = self._check(grade_id)
        before = max((self._check(other) for other in self.lesson.points if self._check(other) < check), default=0)
        cells = [index for index in range(before + 1, check) if self.rebuilt.students[index]]
        left = [index for index in cells if index not in self.stopped] or [check]
        return dict.fromkeys(left, "kept the checker from running")

    def _check(self, grade_id: str) -> int:
        """Return the number of the cell that checks an exercise."""
        cells = self.rebuilt.notebook.cells
        return next(index for index, cell in enumerate(cells) if _grader(cell).get("grade_id") == grade_id)

    def _judged(self, grade_id: str, report: dict[str, Any]) -> Item:
        """Return an item: full points only if nbgrader gives them and the true checker has confirmed them."""
        mine = [index for index, name in enumerate(self.rebuilt.exercise_of) if name == self.lesson.exercises[grade_id]]
        reasons = [self.stopped[index] for index in mine if index in self.stopped]
        reasons += [self._said(*event) for index in mine for event in report["events"].get(str(index), [])]
        errors = [report["errors"][str(index)] for index in mine if str(index) in report["errors"]]
        reason = next(filter(None, reasons), None)
        score, most = report["scores"][grade_id]
        if reason is None and score == most and self._confirmed(grade_id, report):
            return _item(self.lesson, grade_id, most, "passed")
        reason = reason or " Its cell: ".join(dict.fromkeys(reversed(errors))) or "not confirmed"
        return _item(self.lesson, grade_id, 0, reason)

    def _said(self, kind: str, what: str) -> str:
        """Return what an event says against an exercise."""
        words = {
            "changed": f"the checker's tools were changed: {what}",
            "refused": f"tried {what}",
            "flooded": f"printed more than {self.limits.output_megabytes:g} MB",
        }
        return words.get(kind, "")

    def _helper_notes(self, report: dict[str, Any]) -> list[str]:
        """Return what the teacher should know of cells that belong to no exercise."""
        helpers = [index for index, name in enumerate(self.rebuilt.exercise_of) if name is None]
        notes = [f"A cell of the student's own {self.stopped[index]}." for index in helpers if index in self.stopped]
        said = [self._said(*event) for index in helpers for event in report.get("events", {}).get(str(index), [])]
        return notes + [f"A cell of the student's own: {each}." for each in said if each]


def _of_memory(error: str) -> bool:
    """Return whether a cell failed because it wanted too much memory."""
    signs = (
        "MemoryError",
        "can't allocate memory",
        "not enough memory",
        "Cannot allocate memory",
        "Unable to allocate",
    )
    return any(sign in error for sign in signs)


def _wait(process: subprocess.Popen, deadline: float) -> bool:
    """Wait for a process until the deadline, end all that it has started, and return whether it took too long."""
    started: set[psutil.Process] = set()
    timed_out = False
    while process.poll() is None and not timed_out:
        time.sleep(0.2)
        started |= set(_children(process.pid))
        timed_out = time.monotonic() > deadline
    for each in started | ({psutil.Process(process.pid)} if process.poll() is None else set()):
        try:
            each.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()
    return timed_out


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _changed(folder: Path, original: Path) -> str | None:
    """Return a file of the package that isn't as it was, None if all are."""
    files = [path.relative_to(original) for path in sorted(original.rglob("*")) if path.is_file()]
    files = [str(path) for path in files if "__pycache__" not in path.parts]
    filecmp.clear_cache()
    _, differing, missing = filecmp.cmpfiles(folder, original, files, shallow=False)
    return next(iter(differing + missing), None)
