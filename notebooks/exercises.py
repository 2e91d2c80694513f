"""Make the exercises from their solutions, by nbgrader's own steps: notebooks/solutions is the one source.

`make exercises` calls it. A solution keeps its lines between the marks BEGIN SOLUTION and END SOLUTION; its exercise is
the same notebook with a stub in their place, without hidden tests and outputs.
"""

import nbformat
from nbformat import NotebookNode
from nbgrader.preprocessors import ClearHiddenTests, ClearOutput, ClearSolutions, ComputeChecksums, LockCells
from traitlets.config import Config

from notebooks.lab import NOTEBOOKS, SOLUTIONS

STUB = Config({"ClearSolutions": {"code_stub": {"python": "pass  # your code here"}}})  # so that Run All goes through
STEPS = [LockCells, ClearSolutions, ClearOutput, ComputeChecksums, ClearHiddenTests, ComputeChecksums]


def exercise_of(source: NotebookNode) -> NotebookNode:
    """Return the exercise of a solution, as nbgrader would give it to students; the source stays as it is."""
    notebook = nbformat.from_dict(source)
    for step in STEPS:
        notebook, _ = step(config=STUB).preprocess(notebook, {})
    return notebook


def main() -> None:
    """Write notebooks/exercises."""
    for path in SOLUTIONS:
        nbformat.write(exercise_of(nbformat.read(path, as_version=4)), NOTEBOOKS / "exercises" / path.name)


if __name__ == "__main__":
    main()
