"""Grading a class: every good item is graded rightly, whatever happened to its notebook, and nothing wrong passes."""

import csv
import json
import subprocess
import sys
import threading
from pathlib import Path

import nbformat
import pytest

from benchmarks import _submissions
from benchmarks._submissions import AT_ONCE, IN_A_MASK, RIGHT, WRONG, Handed, notebook
from kd_lab.exercises import feedback
from notebooks.exercises import exercise_of
from notebooks.grading.__main__ import grade_class
from notebooks.grading.attempts import Graded, Item
from notebooks.grading.kernel import confirmation
from notebooks.grading.nbgrader_run import configured
from notebooks.grading.results import file_name, write_results
from notebooks.grading.submissions import Submission, Unreadable, find_submissions, read_cells, rebuild

LESSON = "01_magnitude_pruning"
SOURCE = feedback.SOLUTIONS / f"{LESSON}.ipynb"
RELEASE = exercise_of(nbformat.read(SOURCE, as_version=4))


def cells_of(content, folder):
    path = folder / "handed.ipynb"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return read_cells(path)


def answers(rebuilt):
    """The text of each answer, as it is graded."""
    found = {}
    for cell in rebuilt.notebook.cells:
        grade_id = cell.metadata.get("nbgrader", {}).get("grade_id", "")
        if grade_id.startswith("answer-"):
            found[grade_id.removeprefix("answer-").replace("-", ".")] = cell.source
    return found


MANGLED = _submissions.mangled(60)


@pytest.mark.parametrize("number", range(len(MANGLED)))
def test_a_mangled_notebook_gets_its_answers_back(number, tmp_path):
    handed = MANGLED[number]
    found = answers(rebuild(RELEASE, cells_of(handed.content, tmp_path)))
    assert {each for each, text in RIGHT.items() if text in found[each]} == handed.passes


def test_locked_cells_come_from_the_source_and_are_in_its_order(tmp_path):
    made = notebook(RIGHT)
    made.cells.reverse()
    for cell in made.cells:
        if cell.id.startswith("check-"):
            cell.source = "print('passed')"
    rebuilt = rebuild(RELEASE, cells_of(made, tmp_path))
    kept = [cell.source for cell in rebuilt.notebook.cells if cell.metadata.get("nbgrader", {}).get("locked")]
    assert kept == [cell.source for cell in RELEASE.cells if cell.metadata.get("nbgrader", {}).get("locked")]
    assert len({cell.id for cell in rebuilt.notebook.cells}) == len(rebuilt.notebook.cells)


def test_helper_cells_run_before_the_answer_that_they_stood_before(tmp_path):
    made = notebook(RIGHT)
    place = next(place for place, cell in enumerate(made.cells) if cell.id == "answer-01-2")
    made.cells.insert(place, nbformat.v4.new_code_cell("import math"))
    made.cells.append(nbformat.v4.new_code_cell("after = 1"))
    texts = [cell.source for cell in rebuild(RELEASE, cells_of(made, tmp_path)).notebook.cells]
    assert texts.index("import math") + 1 == texts.index(RIGHT["01.2"]) and texts[-1] == "after = 1"


def test_of_a_doubled_answer_the_last_that_is_not_blank_counts_and_the_page_says_so(tmp_path):
    made = notebook(RIGHT)
    place = next(place for place, cell in enumerate(made.cells) if cell.id == "answer-01-2")
    blank = nbformat.from_dict(next(cell for cell in RELEASE.cells if cell.id == "answer-01-2"))
    made.cells.insert(place + 1, blank)
    assert answers(rebuild(RELEASE, cells_of(made, tmp_path)))["01.2"] == RIGHT["01.2"]
    made.cells[place + 1].source = WRONG["01.2"]
    rebuilt = rebuild(RELEASE, cells_of(made, tmp_path))
    assert answers(rebuilt)["01.2"] == WRONG["01.2"] and "what the last one defines counts" in rebuilt.notes[0]


def test_an_answer_in_a_cell_of_the_students_own_counts_where_the_given_cell_holds_something_else(tmp_path):
    made = notebook({**RIGHT, "01.2": "print(1)"})
    made.cells.append(nbformat.v4.new_code_cell(RIGHT["01.2"]))
    assert answers(rebuild(RELEASE, cells_of(made, tmp_path)))["01.2"] == RIGHT["01.2"]


def test_a_notebook_of_format_3_is_read(tmp_path):
    cells = [{"cell_type": "code", "input": RIGHT["01.2"].splitlines(keepends=True), "language": "python"}]
    old = {"nbformat": 3, "nbformat_minor": 0, "metadata": {}, "worksheets": [{"cells": cells}]}
    assert answers(rebuild(RELEASE, cells_of(old, tmp_path)))["01.2"] == RIGHT["01.2"]


def test_odd_cells_are_read(tmp_path):
    assert len(cells_of({"cells": [7, {"source": 1, "metadata": 3, "id": []}]}, tmp_path)) == 1


HUGE = b" " * 21_000_000
DAMAGED = {
    "empty": b"",
    "JSON": b"{",
    "is no JSON": b"\xff",
    "not a notebook": b"[1]",
    "without": b"{}",
    "larger": HUGE,
}


@pytest.mark.parametrize("why", DAMAGED)
def test_a_file_that_is_no_notebook_says_why(why, tmp_path):
    with pytest.raises(Unreadable, match=why):
        cells_of(DAMAGED[why], tmp_path)


def test_submissions_are_found_in_folders_and_as_files(tmp_path):
    for name in (f"ann/{LESSON}.ipynb", f"bob/week 1/{LESSON} (1).ipynb", f"cy__{LESSON}.ipynb", "dee/other.ipynb",
                 f"ann/.ipynb_checkpoints/{LESSON}-checkpoint.ipynb"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [(each.student, each.lesson) for each in find_submissions(tmp_path, [LESSON])]
    assert found == [("ann", LESSON), ("bob", LESSON), ("cy", LESSON), ("dee", None)]


def test_results_run_nothing_that_a_student_wrote(tmp_path):
    submission = Submission("=cmd|<script>", Path("x.ipynb"), LESSON)
    write_results([Graded(submission, [Item("01.1", 0, 1, "<b>no</b>")], ["<i>"], "page")], tmp_path)
    (row,) = csv.DictReader((tmp_path / "grades.csv").open())
    assert row["student"] == "'=cmd|<script>" and row["reason"] == "<b>no</b>"
    page = (tmp_path / f"{file_name('=cmd|<script>')}.html").read_text()
    assert "0 of 1 points" in page and not any(tag in page for tag in ("<script>", "<b>", "<i>"))


def test_two_students_never_share_a_page():
    assert len({file_name(name) for name in ("a b", "a_b", "a/b", "..", "")}) == 5


def test_nobody_without_the_key_can_confirm():
    assert confirmation("01.2", b"a" * 32) != confirmation("01.2", b"b" * 32) != confirmation("01.1", b"b" * 32)


@pytest.mark.slow
@pytest.mark.parametrize("folder, why", [("none", "there is no folder"), ("", "there is no notebook")])
def test_one_error_before_anything_starts(folder, why, tmp_path):
    given = [sys.executable, "-m", "notebooks.grading", str(tmp_path / folder), str(tmp_path / "results")]
    done = subprocess.run(given, capture_output=True, text=True, cwd=SOURCE.parents[2])
    assert done.returncode == 1 and done.stderr.startswith("grading: ") and why in done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "results").exists()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "ann").mkdir()
    (tmp_path / "ann" / f"{LESSON}.ipynb").touch()
    (tmp_path / "results").touch()
    with pytest.raises(ValueError, match="can't be written"):
        grade_class(tmp_path, tmp_path / "results")


def test_grades_that_are_there_are_not_overwritten(tmp_path):
    (tmp_path / "ann").mkdir()
    (tmp_path / "ann" / f"{LESSON}.ipynb").touch()
    (tmp_path / "grades.csv").write_text("ann,with a teacher's own points")
    with pytest.raises(ValueError, match="has grades already: name another folder"):
        grade_class(tmp_path, tmp_path)
    assert (tmp_path / "grades.csv").read_text() == "ann,with a teacher's own points"


def test_an_interrupt_keeps_what_was_graded(tmp_path, monkeypatch):
    for student in ("ann", "bob"):
        (tmp_path / student).mkdir()
        (tmp_path / student / f"{LESSON}.ipynb").touch()
    given = [Item("01.1", 1, 1, "passed")]
    monkeypatch.setattr("notebooks.grading.attempts.Lesson", lambda *_: None)
    wait = threading.Event()

    def grade(each, *_):
        assert each.student == "ann" or wait.wait(60)  # bob's has begun, and is not waited for
        return Graded(each, given)

    def write(graded, folder):
        write_results(graded, folder)
        wait.set()

    monkeypatch.setattr("notebooks.grading.attempts.grade_submission", grade)
    monkeypatch.setattr("notebooks.grading.results.write_results", write)
    monkeypatch.setattr("notebooks.grading.__main__._line", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        grade_class(tmp_path, tmp_path / "results", workers=1)
    (row,) = csv.DictReader((tmp_path / "results" / "grades.csv").open())
    assert (row["student"], row["points"]) == ("ann", "1")


def test_a_missing_nbgrader_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"kd_lab\[classroom\]"):
        grade_class(tmp_path, tmp_path)


@pytest.mark.slow
def test_hostile_exercises_get_zero_and_the_others_are_graded(capsys):
    """Of one student: one patches the checker, one ends the kernel, one never ends; and one is right."""
    answers = {
        "01.1": RIGHT["01.1"],
        "01.2": f"{AT_ONCE['hooks']}\n{WRONG['01.2']}",
        "01.3": f"{IN_A_MASK['stubborn']}\n{RIGHT['01.3']}",
        "01.4": f"{IN_A_MASK['aborts']}\n{RIGHT['01.4']}",
    }
    found = _submissions.grade_batch([Handed("hostile", notebook(answers), {"01.1"})], seconds=10)
    assert (found["false_passes"], found["good_right"], found["good_items"]) == (0, 1, 1), capsys.readouterr().out


@pytest.mark.slow
def test_nbgraders_own_commands_take_the_source_and_its_exercise(tmp_path):
    course = tmp_path / "source" / LESSON / SOURCE.name
    handed = tmp_path / "submitted" / "ann" / LESSON / SOURCE.name
    for path, made in ((course, nbformat.read(SOURCE, as_version=4)), (handed, notebook({"01.1": RIGHT["01.1"]}))):
        path.parent.mkdir(parents=True)
        nbformat.write(made, path)
    nbgrader = configured(tmp_path, tmp_path / "gradebook.db")
    assert nbgrader.generate_assignment(LESSON)["success"]
    assert nbgrader.autograde(LESSON, "ann")["success"]
    assert nbgrader.generate_feedback(LESSON, "ann")["success"]
    assert (tmp_path / "feedback" / "ann" / LESSON / f"{LESSON}.html").exists()
    with nbgrader.gradebook as book:
        grades = book.find_submission_notebook(LESSON, LESSON, "ann").grades
        assert {grade.name: grade.auto_score for grade in grades if grade.auto_score} == {"check-01-1": 1}


@pytest.mark.slow
def test_what_training_and_export_change_in_torch_is_not_held_against_a_student():
    handed = [each for each in _submissions.solved() if each.file[:2] in ("10", "11")]
    found = _submissions.grade_batch(handed, seconds=60)
    assert found["good_right"] == found["good_items"] == 9
