"""The course benchmark counts lines of code as a reader would, and the command line hands its options on."""

import json

import pytest

from benchmarks import __main__ as command
from benchmarks import course
from kd_lab.errors import ParameterError

MODULE = '''"""A docstring
of two lines."""

# a comment
import math  # code, with a comment behind it

TEXT = """no docstring
# no comment either

last"""


def double(x):
    """Return it twice."""

    # another comment
    return 2 * x


class Circle:
    """A circle."""

    "a string behind the docstring is none"

    def area(self, r):
        """Return
        the area."""
        return (
            math.pi

            * r**2
        )
'''
# import, three lines of TEXT (its blank one is blank), def, return, class, the string, def, four lines of the return
LINES = 1 + 3 + 2 + 2 + 1 + 4


def test_blank_lines_comments_and_docstrings_are_no_code():
    assert course.count_code_lines(MODULE) == LINES


@pytest.mark.parametrize("source", ["", "\n\n", "# a comment", '"""A docstring."""\n', "def f(): ...  # one\n"])
def test_a_small_source_is_counted_by_hand(source):
    assert course.count_code_lines(source) == ("def" in source)


def test_lines_on_a_docstring_of_an_async_function_do_not_count():
    assert course.count_code_lines('async def f():\n    """Wait."""\n    return 1\n') == 2


@pytest.fixture
def quick(monkeypatch):
    """Let the benchmark measure nothing that takes time."""
    monkeypatch.setattr(course, "lesson_seconds", lambda _path: 30.0)
    monkeypatch.setattr(course, "run_all", lambda: {"course.false_passes": 0})
    monkeypatch.setattr(course, "judge_all", lambda: {"course.mutants": 3})
    monkeypatch.setattr(course, "time_command", lambda _target: 1.5)


@pytest.mark.parametrize("options", [[], ["--tests"]])
def test_the_last_line_is_json_with_the_figures(quick, capsys, options):
    command.main(["course", *options])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    minutes = {"course.test_minutes", "course.test_all_minutes"}
    assert figures["course.cached_minutes"] == figures["course.lessons"] / 2
    assert figures["course.slowest_lesson_s"] == 30 and figures["course.mutants"] == 3
    assert figures.keys() & minutes == (minutes if options else set())


def test_an_option_that_a_benchmark_does_not_take_is_refused():
    with pytest.raises(ParameterError, match="--rerun is not known to course"):
        command.main(["course", "--rerun"])
