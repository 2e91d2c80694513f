"""Every exercise: its empty form is not attempted, each mistake gets a hint of its own, the notebooks fit the checks.

That every solution passes, on numbers that nobody has seen, its own notebook proves.
"""

import itertools
import re
from contextlib import suppress
from types import SimpleNamespace

import nbformat
import pytest
import torch

from benchmarks._wrong_answers import right_answers, verdicts
from kd_lab.errors import ParameterError, StorageError
from kd_lab.exercises import check, grade, hint, solution
from kd_lab.exercises.feedback import SOLUTIONS, every_exercise, find_exercise
from kd_lab.exercises.journal import entries
from kd_lab.exercises.judging import EXERCISES, WIDTH, judge
from notebooks.exercises import exercise_of
from notebooks.lab import LESSONS

SOURCES = {path.stem: nbformat.read(path, as_version=4) for path in sorted(SOLUTIONS.glob("*.ipynb"))}
NUMBERS = every_exercise()
REGION = re.compile(r"^ *### BEGIN (SOLUTION|HIDDEN TESTS)\n.*?^ *### END \1$", re.MULTILINE | re.DOTALL)


def cell(number, kind):
    (lesson,) = (notebook for stem, notebook in SOURCES.items() if stem.startswith(number.partition(".")[0]))
    return next(each for each in lesson.cells if each.id == f"{kind}-{number.replace('.', '-')}")


def test_every_lesson_has_three_to_five_exercises_and_each_has_its_check():
    asked = {
        stem: [each.id for each in notebook.cells if each.id.startswith("question-")]
        for stem, notebook in SOURCES.items()
    }
    assert all(3 <= len(questions) <= 5 for questions in asked.values())
    questions = [f"question-{number.replace('.', '-')}" for number in NUMBERS]
    assert sorted(itertools.chain(*asked.values())) == questions


@pytest.mark.parametrize("number", NUMBERS)
def test_a_question_says_its_minutes_and_its_answers_range_and_has_hints(number):
    question = cell(number, "question").source
    assert re.match(rf"## {re.escape(number)} \S.*\n\n\*About \d+ minutes\.\* \S", question)
    assert "<details><summary>A right answer</summary>\n\n" in question
    assert 1 <= len(EXERCISES[number].hints) <= 3 and len(set(EXERCISES[number].hints)) == len(EXERCISES[number].hints)


@pytest.mark.parametrize("number", NUMBERS)
def test_the_empty_form_is_not_attempted(number):
    empty = cell_of_exercise(number).source
    for code in (empty, empty.replace("pass  # your code here", "raise NotImplementedError()")):
        assert judge(find_exercise(number), _answered(code), 0).outcome == "not attempted"


def cell_of_exercise(number):
    source = next(notebook for stem, notebook in SOURCES.items() if stem.startswith(number.partition(".")[0]))
    answer = cell(number, "answer").id
    return next(each for each in exercise_of(source).cells if each.id == answer)


def _answered(code):
    names = {"torch": torch}
    with suppress(NotImplementedError):  # nbgrader's own stub behind a value
        exec(code, names)
    return [value for name, value in names.items() if name.startswith("my_")][-1]


@pytest.mark.slow
@pytest.mark.parametrize("number", NUMBERS)
def test_each_mistake_is_caught_with_a_hint_of_its_own(number):
    judged = verdicts(number)
    assert {words: str(verdict) for words, verdict in judged.items() if words not in str(verdict)} == {}
    assert all(verdict.outcome == "wrong" and verdict.hint for verdict in judged.values())
    assert len({verdict.hint for verdict in judged.values()}) >= 3
    assert len({(verdict.what, verdict.hint) for verdict in judged.values()}) == len(judged) >= 3


@pytest.mark.parametrize("number", NUMBERS)
def test_another_right_way_passes(number):
    for answer in right_answers(number):
        verdicts_on = [judge(find_exercise(number), answer, seed) for seed in range(3)]
        assert all(verdict.passed for verdict in verdicts_on), verdicts_on


@pytest.mark.parametrize("number", NUMBERS)
def test_an_odd_answer_is_never_an_error_and_never_passes(number):
    for odd in (float("nan"), "text", object(), [], {}, {"a": None}, torch.tensor(float("nan"))):
        for answer in (odd, lambda *_, odd=odd, **__: odd):
            assert judge(find_exercise(number), answer, 0).outcome in ("wrong", "can't be judged"), odd


@pytest.mark.parametrize("stem", SOURCES)
def test_an_exercise_is_its_solution_without_the_blanks(stem):
    exercise = nbformat.read(SOLUTIONS.parent / "exercises" / f"{stem}.ipynb", as_version=4)
    assert exercise == exercise_of(SOURCES[stem]), "Run: make exercises"
    for blank, full in zip(exercise.cells, SOURCES[stem].cells, strict=True):
        kept = REGION.split(full.source)[::2]
        assert all(part.strip("\n") in blank.source for part in kept), full.id
        assert (blank.source == full.source) == (len(kept) == 1) and not blank.get("outputs")


def test_every_lesson_has_its_exercises():
    assert [path.stem for path in LESSONS] == list(SOURCES)


def test_check_keeps_the_answer_before_it_judges_it(capsys):
    def my_mask(weight, sparsity):
        raise SystemExit

    check("01.2", my_mask)
    assert "wrong: your function stops with SystemExit" in capsys.readouterr().out
    assert "raise SystemExit" in entries("answer", "01.2")[0]["value"]["answer"]


def test_what_is_no_function_or_has_another_first_line_is_told_so():
    importance = find_exercise("01.1")
    called = judge(importance, torch.ones(4, 6), 0)
    assert "a function is asked for, and Tensor of shape (4, 6)" in called.what and "itself" in called.hint
    for answer in (lambda weight: weight, lambda *, weight, gradient: weight):
        assert "2 arguments" in judge(importance, answer, 0).what
    assert "as_tensor" in judge(importance, lambda weight, gradient: weight.tolist(), 0).hint
    assert "list" in judge(importance, lambda weight, gradient: weight.tolist(), 0).what


@pytest.mark.parametrize("kind", [torch.float64, torch.float32])
def test_a_right_tensor_passes_in_any_precision(kind):
    assert judge(find_exercise("01.1"), lambda weight, gradient: (weight * gradient).abs().to(kind), 0).passed
    assert judge(find_exercise("02.1"), lambda f, b, s, keep: (f[keep].to(kind), b[keep], s[:, keep]), 0).passed


def test_a_removal_that_takes_the_same_units_always_never_passes():
    always = [judge(find_exercise("02.1"), lambda f, b, s, keep: (f[:4], b[:4], s[:, :4]), seed) for seed in range(10)]
    assert not any(verdict.passed for verdict in always)


@pytest.mark.parametrize("odd", ["meta", "sparse", "complex"])
def test_an_odd_tensor_is_wrong_and_not_a_raw_error(odd):
    made = {"meta": lambda w: w.to("meta"), "sparse": torch.Tensor.to_sparse, "complex": lambda w: w + 1j}[odd]
    assert odd in judge(find_exercise("01.1"), lambda weight, gradient: made(weight), 0).what


class Unspeakable:
    def __repr__(self):
        raise RuntimeError("no words")

    @property
    def __wrapped__(self):
        raise RuntimeError("no source")


def test_an_answer_that_cant_even_be_shown_is_judged(capsys):
    check("01.3", Unspeakable())
    assert "Unspeakable is not a number" in capsys.readouterr().out


def test_an_answer_that_checks_itself_ends(capsys):
    def my_importance(weight, gradient):
        check("01.1", my_importance)
        return (weight * gradient).abs()

    check("01.1", my_importance)
    assert capsys.readouterr().out.count("your answer calls check itself") == 1


def test_only_the_learner_interrupts_a_check():
    def stopped(by):
        def my_importance(weight, gradient):
            raise by

        return my_importance

    assert judge(find_exercise("01.1"), stopped(GeneratorExit), 0).outcome == "wrong"
    with pytest.raises(KeyboardInterrupt):
        judge(find_exercise("01.1"), stopped(KeyboardInterrupt), 0)
    assert judge(find_exercise("01.1"), torch.mul, 0).outcome == "wrong"  # and another one can be judged


def test_what_an_answer_does_to_torch_is_undone():
    def my_importance(weight, gradient):
        torch.set_num_threads(threads + 1)
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        torch.use_deterministic_algorithms(True)
        torch.set_default_device("meta")
        return (weight * gradient).abs()

    threads = torch.get_num_threads()
    assert judge(find_exercise("01.1"), my_importance, 0).passed
    assert (torch.get_num_threads(), torch.get_default_device().type) == (threads, "cpu")
    assert torch.is_grad_enabled() and not torch.are_deterministic_algorithms_enabled()
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("line", ['{"value": 3}', '{"value": {"cells": [{}]}}', "[" * 100_000, None])
def test_a_damaged_journal_keeps_nobody_from_working(line, tmp_path, monkeypatch, capsys):
    path = tmp_path / "journal.jsonl"
    monkeypatch.setenv("KD_LAB_JOURNAL", str(path))
    if line is None:
        path.mkdir()
    else:
        path.write_text(line.replace("{", '{"time": "", "kind": "answer", "of": "01.1", ', 1))
    check("01.1", lambda weight, gradient: (weight * gradient).abs())
    hint("01.1")
    said = capsys.readouterr().out
    assert "01.1: public checks passed" in said and "hint 1 of 3" in said
    assert ("This is not kept in the journal" in said) == (line is None)


def test_three_hints_come_in_turn_and_then_the_solution_is_named(capsys):
    for _ in range(4):
        hint("01.2")
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= WIDTH  # a notebook would break it within words
    assert [f"hint {n} of 3" in said for n in (1, 2, 3)] == [True] * 3 and said.count('solution("01.2")') == 1
    solution("01.2")
    assert "argsort" in capsys.readouterr().out


def test_where_the_solutions_were_taken_away_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("kd_lab.exercises.feedback.SOLUTIONS", tmp_path)
    with pytest.raises(StorageError, match=r"solution of 01\.2 is not on this machine"):
        solution("01.2")


def test_a_grade_is_an_error_with_the_reason_unless_the_answer_passes():
    grade("01.1", lambda weight, gradient: (weight * gradient).abs())
    with pytest.raises(AssertionError, match=r"w·g keeps its sign"):
        grade("01.1", lambda weight, gradient: weight * gradient)


@pytest.mark.parametrize("number", ["01.6", "1.2", 1.2, None, ""])
def test_an_unknown_number_is_refused(number):
    with pytest.raises(ParameterError, match=r"check\(\): 'number' must be one of"):
        check(number, 1)


def test_a_check_leaves_the_learners_surroundings_alone(surroundings):
    torch.manual_seed(3)
    before = torch.get_rng_state(), torch.get_default_dtype(), torch.is_inference_mode_enabled()
    assert (
        judge(find_exercise("01.2"), lambda weight, sparsity: torch.rand(weight.shape) > sparsity, 0).outcome == "wrong"
    )
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (torch.get_default_dtype(), torch.is_inference_mode_enabled()) == before[1:]


def test_the_cells_are_kept_whatever_a_learner_calls_in(monkeypatch):
    run = SimpleNamespace(input_hist_parsed=["", "In = 5"])
    shell = SimpleNamespace(history_manager=run, user_ns={"In": 5})
    monkeypatch.setattr("kd_lab.exercises.feedback.get_ipython", lambda: shell)
    check("01.1", torch.mul)
    check("01.1", torch.mul)
    assert [entry["value"]["cells"] for entry in entries("answer", "01.1")] == [["", "In = 5"], []]
