"""Lessons open without their outputs, and what a learner wrote into one is never lost."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from notebooks.lab import LESSONS, copy_lessons


@pytest.fixture
def lesson(tmp_path):
    path = tmp_path / "00_start.ipynb"
    write(path, "print(1)")
    copy_lessons([path], tmp_path / "mine")
    return path


def write(path, source):
    cell = new_code_cell(source, outputs=[new_output("stream", text="1")], execution_count=1)
    nbformat.write(new_notebook(cells=[cell]), path)


def copied(lesson):
    return nbformat.read(lesson.parent / "mine" / lesson.name, as_version=4)


def test_a_copy_has_the_cells_and_no_outputs(lesson):
    (cell,) = copied(lesson).cells
    assert (cell.source, cell.outputs, cell.execution_count) == ("print(1)", [], None)


def test_a_copy_that_was_only_run_is_renewed_with_the_lesson(lesson):
    copy = copied(lesson)
    copy.cells[0].outputs = [new_output("stream", text="1")]
    nbformat.write(copy, lesson.parent / "mine" / lesson.name)
    copy_lessons([lesson], lesson.parent / "mine")
    assert copied(lesson).cells[0].outputs  # the lesson is as it was, so nothing is taken away
    write(lesson, "print(2)")
    copy_lessons([lesson], lesson.parent / "mine")
    assert copied(lesson).cells[0].source == "print(2)"


def test_a_copy_that_its_learner_changed_stays(lesson):
    copy = copied(lesson)
    copy.cells[0].source = "print(1)  # mine"
    nbformat.write(copy, lesson.parent / "mine" / lesson.name)
    write(lesson, "print(2)")
    copy_lessons([lesson], lesson.parent / "mine")
    assert copied(lesson).cells[0].source == "print(1)  # mine"


def test_every_lesson_can_be_copied(tmp_path):
    copy_lessons(LESSONS, tmp_path / "mine")
    assert [path.name for path in sorted((tmp_path / "mine").iterdir())] == [path.name for path in LESSONS]
