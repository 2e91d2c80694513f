"""Time every lesson, judge wrong answers to every exercise, grade a class, and count what a reader has to read.

--tests also times both test commands. Each lesson runs once, in a fresh kernel, one after another; then come thirty
good hand-ins, forty hostile and fifty mangled ones. Let nothing else run beside it.
"""

import ast
import io
import subprocess
import time
import tokenize
from pathlib import Path

from tabulate import tabulate

from benchmarks._submissions import run_all
from benchmarks._wrong_answers import judge_all
from notebooks.course import lesson_seconds
from notebooks.lab import LESSONS

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = {"test": "course.test_minutes", "test-all": "course.test_all_minutes"}  # of make
NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def run(tests: bool) -> dict[str, float]:
    """Print the seconds of each lesson and the figures, and return the latter; `tests` times `make test`, too."""
    seconds = {lesson.stem: lesson_seconds(lesson) for lesson in LESSONS}
    files = sorted((ROOT / "kd_lab").rglob("*.py"))
    figures = (
        {
            "course.cached_minutes": round(sum(seconds.values()) / 60, 2),
            "course.slowest_lesson_s": round(max(seconds.values()), 1),
            "course.lessons": len(seconds),
            "course.code_lines": sum(count_code_lines(file.read_text()) for file in files),
            "course.files": len(files),
        }
        | judge_all()
        | run_all()
    )
    if tests:
        figures |= {key: time_command(target) for target, key in COMMANDS.items()}
    print(tabulate(seconds.items(), ["lesson", "seconds"], floatfmt=".1f"))
    print(tabulate(figures.items(), ["figure", "value"]), flush=True)
    return figures


def time_command(target: str) -> float:
    """Return the minutes that `make` takes for a target; raise an error if it fails."""
    begun = time.perf_counter()
    subprocess.run(["make", target], cwd=ROOT, check=True, capture_output=True)
    return round((time.perf_counter() - begun) / 60, 2)


def count_code_lines(source: str) -> int:
    """Return how many lines have code: blank ones, comments and docstrings don't count, other strings do."""
    docstrings = set(_docstrings(ast.parse(source)))
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE and token.start not in docstrings:
            lines.update(range(token.start[0], token.end[0] + 1))
    return sum(bool(line.strip()) for number, line in enumerate(source.splitlines(), 1) if number in lines)


def _docstrings(tree: ast.Module) -> list[tuple[int, int]]:
    """Return the line and the column at which each docstring begins."""
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    documented = [node for node in ast.walk(tree) if isinstance(node, owners) and ast.get_docstring(node) is not None]
    return [(node.body[0].lineno, node.body[0].col_offset) for node in documented]
