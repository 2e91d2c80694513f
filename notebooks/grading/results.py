"""Write what a class was given: grades.csv, and a page for each student with the reasons."""

import csv
import hashlib
import html
import itertools
import re
from pathlib import Path

from notebooks.grading.attempts import Graded

COLUMNS = ["student", "lesson", "exercise", "points", "of", "reason"]
STYLE = "body{font:16px sans-serif;max-width:60em;margin:2em auto}td,th{padding:.3em .8em;text-align:left}"


def write_results(graded: list[Graded], folder: Path) -> None:
    """Write grades.csv and STUDENT.html into a folder, and nbgrader's pages of feedback into its folder feedback."""
    graded = sorted(graded, key=lambda each: (each.submission.student, str(each.submission.path)))
    with (folder / "grades.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows([_harmless(value) for value in row] for each in graded for row in rows(each))
    for student, theirs in itertools.groupby(graded, key=lambda each: each.submission.student):
        (folder / f"{file_name(student)}.html").write_text(page(student, list(theirs), folder), encoding="utf-8")


def rows(graded: Graded) -> list[list[str | float]]:
    """Return a row for each exercise of a submission, in the order of COLUMNS."""
    submission = graded.submission
    lesson = submission.lesson or submission.path.name
    return [[submission.student, lesson, each.exercise, each.points, each.of, each.reason] for each in graded.items]


def file_name(student: str) -> str:
    """Return a student's name as that of a file; no two students share one."""
    plain = re.sub(r"[^\w.-]+", "_", student).lstrip(".")
    return plain if plain == student else f"{plain}-{hashlib.sha256(student.encode()).hexdigest()[:6]}"


def _harmless(value: str | float) -> str | float:
    """Return a value that no spreadsheet takes for a formula: names and reasons are a student's words."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def page(student: str, graded: list[Graded], folder: Path) -> str:
    """Return a student's page; nbgrader's feedback, which it links, is written beside it."""
    got, most = (sum(getattr(item, name) for each in graded for item in each.items) for name in ("points", "of"))
    title = f"{html.escape(student)}: {got:g} of {most:g} points"
    parts = "\n".join(_part(each, number, folder) for number, each in enumerate(graded))
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n<h1>{title}</h1>\n{parts}\n</body></html>\n'


def _part(graded: Graded, number: int, folder: Path) -> str:
    """Return what a page says about one notebook."""
    cells = [[item.exercise, f"{item.points:g} of {item.of:g}", item.reason] for item in graded.items]
    head = "".join(f"<th>{each}</th>" for each in ("exercise", "points", "reason"))
    lines = "\n".join("<tr>" + "".join(f"<td>{html.escape(each)}</td>" for each in row) + "</tr>" for row in cells)
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in graded.notes)
    name = html.escape(graded.submission.path.name)
    return f"<h2>{name}</h2>\n<table><tr>{head}</tr>\n{lines}</table>\n{notes}{_feedback(graded, number, folder)}"


def _feedback(graded: Graded, number: int, folder: Path) -> str:
    """Write nbgrader's page of feedback, and return a link to it; nothing in it may run, whatever a student printed."""
    if not graded.feedback:
        return ""
    target = folder / "feedback" / f"{file_name(graded.submission.student)}_{number}.html"
    target.parent.mkdir(exist_ok=True)
    target.write_text(graded.feedback, encoding="utf-8")
    return f'<p><a href="feedback/{target.name}">The notebook as it was graded</a></p>'
