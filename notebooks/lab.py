"""Copy lessons and exercises without outputs to notebooks/mine, where learners work: outputs answer the predictions.

`make lab` calls it. A copy that its learner has changed is never touched; one as it was is renewed when the lesson is.
"""

import hashlib
from pathlib import Path

import nbformat
from nbformat import NotebookNode

NOTEBOOKS = Path(__file__).parent
LESSONS = sorted(NOTEBOOKS.glob("*.ipynb"))
EXERCISES = sorted(NOTEBOOKS.glob("exercises/*.ipynb"))
SOLUTIONS = sorted(NOTEBOOKS.glob("solutions/*.ipynb"))
MINE = NOTEBOOKS / "mine"
STAMP = "kd_lab_copied"  # in a copy's metadata: the digest of its cells as they were copied


def digest(notebook: NotebookNode) -> str:
    """Return a digest of the text of all cells."""
    return hashlib.sha256("\0".join(cell.source for cell in notebook.cells).encode()).hexdigest()


def without_outputs(notebook: NotebookNode) -> NotebookNode:
    """Return the notebook, changed in place, as if it had never been run."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.metadata[STAMP] = digest(notebook)
    return notebook


def copy_lessons(lessons: list[Path], folder: Path) -> None:
    """Put a copy of each lesson, or exercise, into the folder, unless its learner has changed the one that is there."""
    folder.mkdir(parents=True, exist_ok=True)
    for lesson in lessons:
        copy, fresh = folder / lesson.name, without_outputs(nbformat.read(lesson, as_version=4))
        if not copy.exists() or _is_outdated(nbformat.read(copy, as_version=4), fresh):
            nbformat.write(fresh, copy)


def _is_outdated(copy: NotebookNode, fresh: NotebookNode) -> bool:
    return digest(copy) == copy.metadata.get(STAMP) != fresh.metadata[STAMP]


if __name__ == "__main__":
    copy_lessons(LESSONS, MINE)
    copy_lessons(EXERCISES, MINE / "exercises")
