"""Find what was handed in, and rebuild each notebook from its source with the student's answers in their places.

nbgrader trusts the cells' metadata. Students delete, double, split, merge and retype cells, and other programs drop
metadata and ids. So all that isn't an answer comes from the source; an answer is found by its grade_id, by its cell's
id, or by the names that it defines.
"""

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode

MAX_MEGABYTES = 20  # of a submitted file


class Unreadable(Exception):
    """A file that can't be graded; the message says why."""


@dataclass(frozen=True)
class Submission:
    """A file that was handed in: whose, and for which lesson (None: for none that is known)."""

    student: str
    path: Path
    lesson: str | None


@dataclass
class Cell:
    """A student's cell: its text, the ids that it claims, and the names that its code defines."""

    kind: str
    text: str
    claims: tuple[str | None, ...] = ()
    defined: set[str] = field(default_factory=set)

    def __post_init__(self):
        self.defined = names_defined(self.text)

    @property
    def blank(self) -> bool:
        """Whether nothing is answered: only comments, empty functions and values that are None."""
        tree = parsed(self.text)
        return tree is not None and all(map(_empty, tree.body))


@dataclass
class Rebuilt:
    """A notebook that can be graded, the exercise that each of its cells answers or checks, and what was odd."""

    notebook: NotebookNode
    exercise_of: list[str | None]
    students: list[bool]
    notes: list[str]


def find_submissions(folder: Path, lessons: list[str]) -> list[Submission]:
    """Return all notebooks in a folder: STUDENT/…/NN_lesson.ipynb, or STUDENT__NN_lesson.ipynb, sorted.

    A name with something added, such as `01_pruning (1).ipynb`, is recognized. Copies that Jupyter keeps for itself are
    left out.
    """
    found = []
    for path in sorted(folder.rglob("*.ipynb")):
        parts = path.relative_to(folder).parts
        if any(part.startswith(".") for part in parts):
            continue
        lesson = next((name for name in lessons if name.lower() in path.stem.lower()), None)
        found.append(Submission(_student(parts, path.stem, lesson), path, lesson))
    return found


def _student(parts: tuple[str, ...], stem: str, lesson: str | None) -> str:
    """Return whose file it is: the first folder's name, or what stands before the lesson's name."""
    if len(parts) > 1:
        return parts[0]
    before = stem.partition("__")[0] if "__" in stem else stem[: stem.lower().find(lesson.lower())] if lesson else stem
    return before.strip("_- ") or stem


def read_cells(path: Path) -> list[Cell]:
    """Return the cells of a submitted notebook of any format; raise Unreadable with the reason if there are none."""
    if not path.is_file():
        raise Unreadable("this is a folder, not a notebook")
    if path.stat().st_size > MAX_MEGABYTES * 1e6:
        raise Unreadable(f"the file is larger than {MAX_MEGABYTES} MB")
    try:
        raw = json.loads(path.read_bytes() or b"null")
    except (ValueError, RecursionError) as error:
        raise Unreadable("the file is damaged: it is no JSON") from error
    if raw is None:
        raise Unreadable("the file is empty")
    cells = [cell for each in _raw_cells(raw) if isinstance(each, dict) for cell in [_cell(each)] if cell.text.strip()]
    if not cells:
        raise Unreadable("this is not a notebook, or one without cells")
    return cells


def _raw_cells(raw: object) -> list:
    """Return the cells of a notebook as its JSON has them; formats before 4 keep them in worksheets."""
    if not isinstance(raw, dict):
        return []
    sheets = raw.get("worksheets") or [raw]
    found = [sheet.get("cells") for sheet in sheets if isinstance(sheet, dict)] if isinstance(sheets, list) else []
    return [cell for cells in found if isinstance(cells, list) for cell in cells]


def _cell(raw: dict) -> Cell:
    """Return a cell, whatever is missing in it."""
    text = raw.get("source", raw.get("input", ""))
    metadata = raw.get("metadata") if isinstance(raw.get("metadata"), dict) else {}
    grader = metadata.get("nbgrader") if isinstance(metadata.get("nbgrader"), dict) else {}
    text = "".join(map(str, text)) if isinstance(text, list) else str(text)
    return Cell(str(raw.get("cell_type")), text, (_text(grader.get("grade_id")), _text(raw.get("id"))))


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def parsed(text: str) -> ast.Module | None:
    """Return the syntax tree of a cell, magics among its lines or not; None if it is no code."""
    try:
        return ast.parse(TransformerManager().transform_cell(text))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def names_defined(text: str) -> set[str]:
    """Return the names that a cell's code defines or assigns at its outermost level, or in its ifs and loops."""
    tree = parsed(text)
    if tree is not None:
        return set(_names_in(tree.body))
    matches = re.finditer(
        r"^(?:(?:async +)?def|class) +(\w+)|^(\w+) *=[^=]", text, re.MULTILINE
    )  # a half of a function
    return {match[1] or match[2] for match in matches}


def _names_in(body: list[ast.stmt]) -> Iterator[str]:
    """Yield the names that statements bind, but for those inside of functions and classes."""
    for statement in body:
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield statement.name
            continue
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id


def _empty(statement: ast.stmt) -> bool:
    """Return whether a statement is part of an answer that is still blank."""
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return all(map(_empty, statement.body))
    if isinstance(statement, ast.Raise):
        return "NotImplementedError" in ast.unparse(statement)
    if isinstance(statement, (ast.Expr, ast.Assign, ast.Return)):
        value = statement.value
        nothing = value is None or (isinstance(value, ast.Constant) and value.value in (None, ...))
        return nothing or (isinstance(statement, ast.Expr) and isinstance(value, ast.Constant))
    return isinstance(statement, (ast.Pass, ast.Import, ast.ImportFrom))


def rebuild(release: NotebookNode, cells: list[Cell]) -> Rebuilt:
    """Return the notebook of a lesson, as nbgrader released it, with the student's answers and helper cells in it.

    A helper cell, code that is no answer, runs where it stood: after the cell of the source that came before it, but
    not later than the answer that came after it.
    """
    wanted = {_grade_id(cell): names_defined(cell.source) for cell in release.cells if _is_answer(cell)}
    cells = _joined(cells)
    answers = {grade_id: _answers(grade_id, wanted, cells) for grade_id in wanted}
    roles = [_role(cell, answers, release) for cell in cells]
    helpers = _places(roles, cells, release)
    rebuilt = Rebuilt(nbformat.from_dict({**release, "cells": []}), [], [], [])
    for place, cell in enumerate(release.cells):
        grade_id = _grade_id(cell)
        exercise = grade_id.split("-", 1)[1] if grade_id and "-" in grade_id else None
        given = answers.get(grade_id, [])
        if sum(not each.blank for each in given) > 1:
            rebuilt.notes.append(f"{grade_id} is there {len(given)} times: what the last one defines counts.")
        *earlier, last = given or [Cell("code", cell.source)]
        for each in earlier:
            _append(rebuilt, nbformat.v4.new_code_cell(each.text), exercise, True)
        _append(rebuilt, {**cell, "source": last.text if given else cell.source}, exercise, bool(given))
        for each in helpers.get(place, []):
            _append(rebuilt, nbformat.v4.new_code_cell(each.text), None, True)
    return rebuilt


def _append(rebuilt: Rebuilt, cell: dict, exercise: str | None, students: bool) -> None:
    """Add a cell; all ids are given again, so that none is there twice."""
    cell = nbformat.from_dict(cell)
    cell.id = f"cell-{len(rebuilt.notebook.cells)}"
    rebuilt.notebook.cells.append(cell)
    rebuilt.exercise_of.append(exercise)
    rebuilt.students.append(students)


def _grade_id(cell: NotebookNode) -> str | None:
    return cell.metadata.get("nbgrader", {}).get("grade_id")


def _is_answer(cell: NotebookNode) -> bool:
    return cell.metadata.get("nbgrader", {}).get("solution", False)


def _joined(cells: list[Cell]) -> list[Cell]:
    """Put together what was split: a cell that starts indented goes on with the one before it."""
    joined: list[Cell] = []
    for cell in cells:
        goes_on = re.match(r"(\s*(#.*)?\n)*([ \t]+\S|(else|elif|except|finally)\b)", cell.text)
        both = f"{joined[-1].text}\n{cell.text}" if joined else ""
        if joined and goes_on and (parsed(joined[-1].text) is None or parsed(both) is not None):
            joined[-1] = Cell(joined[-1].kind, both, joined[-1].claims)
        else:
            joined.append(cell)
    return joined


def _answers(grade_id: str, wanted: dict[str, set[str]], cells: list[Cell]) -> list[Cell]:
    """Return the cells that answer an exercise, in their order: what the last one defines counts.

    Those that claim to be it, unless they only define what another exercise asks for; if these are blank, those that
    define its names.
    """
    mine = wanted[grade_id]
    others = set().union(*(names for other, names in wanted.items() if other != grade_id)) - mine
    claiming = [
        cell for cell in cells if grade_id in cell.claims and (mine & cell.defined or not others & cell.defined)
    ]
    code = [cell for cell in cells if mine & cell.defined and (cell.kind == "code" or parsed(cell.text) is not None)]
    named = claiming if any(mine & cell.defined for cell in claiming) else []
    for found in (named, code, claiming):
        answered = [cell for cell in found if not cell.blank]
        if answered:
            return answered
    return (claiming or code)[-1:]


def _role(cell: Cell, answers: dict[str, list[Cell]], release: NotebookNode) -> int | None:
    """Return the place in the source of the cell that a student's cell stands for; None for a helper cell."""
    for place, source in enumerate(release.cells):
        if any(cell is each for each in answers.get(_grade_id(source), [])):
            return place
    for place, source in enumerate(release.cells):
        same = cell.text.strip() == source.source.strip()
        known = {source.get("id"), _grade_id(source)} & {*cell.claims} - {None}
        if same or (known and (_grade_id(source) or cell.kind != "code")):
            return place
    return None


def _places(roles: list[int | None], cells: list[Cell], release: NotebookNode) -> dict[int, list[Cell]]:
    """Return the helper cells by the place in the source after which they run, never before the setup cell."""
    first = next(place for place, cell in enumerate(release.cells) if cell.cell_type == "code")
    places: dict[int, list[Cell]] = {}
    for index, (role, cell) in enumerate(zip(roles, cells, strict=True)):
        if role is not None or cell.kind != "code":
            continue
        before = next((place for place in reversed(roles[:index]) if place is not None), first)
        after = next((place for place in roles[index:] if place is not None and _is_answer(release.cells[place])), None)
        place = before if after is None else min(before, after - 1)
        places.setdefault(max(place, first), []).append(cell)
    return places
