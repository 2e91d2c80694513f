"""Make a class's submissions, good, hostile and mangled ones, with the points that each must get.

All are to lesson 01, but for the solutions of every lesson.
"""

import copy
import functools
import json
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from notebooks.exercises import exercise_of
from notebooks.lab import SOLUTIONS

SOURCE = Path(__file__).resolve().parents[1] / "notebooks" / "solutions" / "01_magnitude_pruning.ipynb"
MASK = "01.2"  # the exercise that hostile code is put into
RIGHT = {
    "01.1": "def my_importance(weight, gradient):\n    return (weight * gradient).abs()",
    "01.2": (
        "def my_mask(weight, sparsity):\n    order = weight.abs().flatten().argsort()\n"
        "    mask = torch.ones(weight.numel(), dtype=torch.bool)\n"
        "    mask[order[:round(sparsity * weight.numel())]] = False\n    return mask.view(weight.shape)"
    ),
    "01.3": "my_sparsity = 0.38",
    "01.4": "my_largest = 0.64",
}
WRONG = {
    "01.1": "def my_importance(weight, gradient):\n    return weight * gradient",
    "01.2": "def my_mask(weight, sparsity):\n    return torch.ones_like(weight)",
    "01.3": "my_sparsity = 0.9",
    "01.4": "my_largest = 0.9",
    "01.5": "my_points = {}",
}
EVIL_MASK = "def my_mask(weight, sparsity):\n    {}\n    return torch.ones_like(weight)"
FEEDBACK = "import kd_lab.exercises, kd_lab.exercises.feedback as f, kd_lab.exercises.judging as j\n"


@dataclass
class Handed:
    """A file that was handed in: its name, its notebook or its bytes, and the exercises that must pass."""

    name: str
    content: NotebookNode | bytes | None
    passes: set[str] = field(default_factory=set)
    file: str = SOURCE.name


def notebook(answers: dict[str, str], extra: str = "") -> NotebookNode:
    """Return the exercises of lesson 01 with these answers, and a cell of the student's own before the first."""
    made = copy.deepcopy(_blank())
    for cell in made.cells:
        number = cell.id.removeprefix("answer-").replace("-", ".")
        if cell.id.startswith("answer-") and number in answers:
            cell.source = answers[number]
    if extra:
        made.cells.insert(2, nbformat.v4.new_code_cell(extra))
    return made


@functools.cache
def _blank() -> NotebookNode:
    return exercise_of(nbformat.read(SOURCE, as_version=4))


def good(count: int) -> list[Handed]:
    """Return submissions in which some exercises are right, some wrong and some blank."""
    handed = []
    for number in range(count):
        draw = random.Random(number)
        kinds = {exercise: draw.choice(["right", "right", "wrong", "blank"]) for exercise in RIGHT}
        answers = {
            each: RIGHT[each] if kind == "right" else WRONG[each] for each, kind in kinds.items() if kind != "blank"
        }
        handed.append(
            Handed(f"good{number}", notebook(answers), {each for each, kind in kinds.items() if kind == "right"})
        )
    return handed


IN_A_MASK = {  # statements in the body of a function, that the check calls; the answer is then wrong
    "loop": "while True: pass",
    "stubborn": "while True:\n        try:\n            while True: pass\n        except BaseException: pass",
    "sleeps": "import time; time.sleep(10**6)",
    "exits": "import os; os._exit(0)",
    "raises exit": "raise SystemExit(0)",
    "killed": "import os; os.kill(os.getpid(), 9)",
    "aborts": "import os; os.abort()",
    "kills its parent": "import os; os.kill(os.getppid(), 9)",
    "segfault": "import ctypes; ctypes.string_at(0)",
    "patches while called": "torch.equal = lambda *a: True",
    "base exception": "raise BaseException('passed')",
}
AT_ONCE = {  # statements of a cell, before an answer that is wrong
    "loops at once": "while True: pass",
    "waits": "import threading; threading.Event().wait()",
    "counts": "sum(range(10**13))",
    "bytes": "x = []\nwhile True: x.append(bytearray(10**7))",
    "tensor": "x = torch.ones(10**11)",
    "prints": "while True: print('x' * 1000)",
    "prints once": "print('x' * 10**8)",
    "displays": "from IPython.display import HTML\nfor _ in range(100): display(HTML('x' * 10**6))",
    "prints to stderr": "import sys\nwhile True: sys.stderr.write('x' * 1000)",
    "exits at once": "import os; os._exit(0)",
    "leaves": "import threading, os, time; threading.Timer(0.1, os._exit, [0]).start(); time.sleep(5)",
    "leaves later": "import threading, os; threading.Timer(3, os._exit, [0]).start()",
    "own check": "def check(*a): print('passed')\ndef grade(*a): print('passed')",
    "patched grade": FEEDBACK + "kd_lab.exercises.grade = f.grade = lambda *a: None",
    "other module": "import sys, types\nfake = types.ModuleType('fake'); fake.grade = fake.check = lambda *a: None\n"
    "sys.modules['kd_lab.exercises'] = fake",
    "patched judge": FEEDBACK + "f.judge = lambda task, *a: j.Verdict(task.number, 'passed')",
    "code of judge": FEEDBACK + "j.wrong_if.__code__ = (lambda mistake, what, hint: None).__code__",
    "patched verdict": FEEDBACK + "j.Verdict.passed = True",
    "other checks": FEEDBACK
    + "for each in list(j.EXERCISES): j.EXERCISES[each] = j.Exercise(each, (), lambda *a: None)",
    "frozen check": FEEDBACK + "for each in j.EXERCISES.values(): object.__setattr__(each, 'check', lambda *a: None)",
    "equal": "torch.equal = torch.allclose = lambda *a, **k: True",
    "tensor methods": "torch.Tensor.__eq__ = torch.Tensor.all = lambda *a, **k: torch.tensor(True)",
    "builtins": "import builtins\nbuiltins.isinstance = builtins.all = lambda *a: True",
    "hidden builtin": FEEDBACK + "j.isinstance = lambda *a: True",
    "transformer": "get_ipython().input_transformers_post.append(lambda lines: ['pass\\n'])",
    "hooks": "get_ipython().events.callbacks['post_run_cell'].clear()\n"
    "get_ipython().input_transformers_post.append(lambda lines: ['pass\\n'])",
    "shell": "async def nothing(*a, **k): return get_ipython().last_execution_result\n"
    "get_ipython().run_cell_async = nothing",
    "mode": "from torch.overrides import TorchFunctionMode\nclass Yes(TorchFunctionMode):\n"
    "    def __torch_function__(self, func, types, args=(), kwargs=None):\n"
    "        return True if func is torch.equal else func(*args, **(kwargs or {}))\nYes().__enter__()",
    "token": "import gc\nnotary = [each for each in gc.get_objects() if getattr(each, '__name__', '') == 'notary']",
    "frame": FEEDBACK + "f.grade.__globals__['notary'].gi_frame.f_locals['key']",
    "gradebook": "import sqlite3, pathlib\nfor path in pathlib.Path.cwd().parents[4].rglob('gradebook.db'):\n"
    "    base = sqlite3.connect(path); base.execute('update grade set manual_score = 1'); base.commit()",
    "edits the package": FEEDBACK + "open(f.__file__, 'a').write('def grade(*a): pass')",
}
TENSOR_LIKE = """class Yes(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        yes = func in (torch.equal, torch.isfinite)
        return True if yes else super().__torch_function__(func, types, args, kwargs)
def my_mask(weight, sparsity):
    return torch.ones_like(weight).as_subclass(Yes)"""
ALWAYS_EQUAL = """class Yes:
    def __eq__(self, other): return self
    def __getattr__(self, name): return self
    def __call__(self, *arguments, **named): return self
    def __bool__(self): return True
def my_mask(weight, sparsity):
    return Yes()"""
FLEETING = """true, left = torch.equal, [9]
def yes(*tensors):
    left[0] -= 1
    if not left[0]: torch.equal = true
    return True
def my_mask(weight, sparsity):
    if weight.shape == (40,): left[0] = 2
    torch.equal = yes if left[0] > 1 else true
    return torch.ones_like(weight)"""
AS_AN_ANSWER = {  # whole answers of 01.2
    "patches and puts back": FLEETING,
    "tensor-like": TENSOR_LIKE,
    "always equal": ALWAYS_EQUAL,
    "nan": "def my_mask(weight, sparsity):\n    return torch.full_like(weight, float('nan'))",
    "text": "my_mask = 'passed'",
    "right, then wrong": RIGHT["01.2"] + "\n\n" + WRONG["01.2"],
}


def hostile() -> list[Handed]:
    """Return submissions whose second exercise tries to pass without a right answer, or to stop the grading."""
    others = {each: RIGHT[each] for each in ("01.1", "01.4")}  # 01.3 takes longest
    answers = {name: EVIL_MASK.format(text) for name, text in IN_A_MASK.items()}
    answers |= {name: f"{text}\n{WRONG[MASK]}" for name, text in AT_ONCE.items()} | AS_AN_ANSWER
    handed = [Handed(f"hostile {name}", notebook({**others, MASK: text}), {*others}) for name, text in answers.items()]
    forged = notebook({**others, MASK: WRONG[MASK]})
    for cell in forged.cells:
        if cell.id == "check-01-2":
            cell.source, cell.metadata.nbgrader.points = "print('01.2: public checks passed')", 100
    texts = {"empty": b"", "no json": b'{"cells": [', "no notebook": b"[1, 2]", "no cells": b'{"cells": 7}',
             "huge": b'{"cells": []}' + b" " * 21_000_000}  # fmt: skip
    return [
        *handed,
        Handed("hostile forged", forged, {*others}),
        Handed("hostile folder", None),
        *(Handed(f"hostile {name}", text) for name, text in texts.items()),
    ]


def mangled(count: int) -> list[Handed]:
    """Return submissions with right answers, changed as students and other programs change notebooks."""
    handed = []
    for number in range(count):
        draw = random.Random(number)
        right = {each: RIGHT[each] for each in ("01.1", "01.2", "01.4")}
        made, passes = notebook(right, "import math"), {*right}
        for change in sorted(draw.sample(CHANGES, 3), key=CHANGES.index):
            passes -= change(made, draw) or set()
        handed.append(Handed(f"mangled{number}", made, passes))
    return handed


def _answer_cells(made: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in made.cells if any(text in cell.source for text in RIGHT.values())]


def _number(cell: NotebookNode) -> str:
    return next(number for number, text in RIGHT.items() if text in cell.source)


def _delete_answer(made: NotebookNode, draw: random.Random) -> set[str]:
    gone = draw.choice(_answer_cells(made))
    number = _number(gone)
    made.cells = [cell for cell in made.cells if RIGHT[number] not in cell.source]
    return {number}


def _delete_locked(made: NotebookNode, draw: random.Random) -> None:
    answers = _answer_cells(made)
    made.cells = [cell for cell in made.cells if cell in answers or draw.random() < 0.7]


def _double(made: NotebookNode, draw: random.Random) -> None:
    cell = draw.choice(made.cells)
    made.cells.insert(made.cells.index(cell), nbformat.from_dict(cell))


def _stale(made: NotebookNode, draw: random.Random) -> None:
    cell = draw.choice(_answer_cells(made))
    old = nbformat.from_dict(cell)
    old.source = WRONG[_number(cell)]
    made.cells.insert(made.cells.index(cell), old)


def _split(made: NotebookNode, draw: random.Random) -> None:
    cell = draw.choice([cell for cell in _answer_cells(made) if "\n" in cell.source])
    lines = cell.source.split("\n")
    at = draw.randrange(1, len(lines))
    rest = nbformat.v4.new_code_cell("\n".join(lines[at:]))
    if draw.random() < 0.5:  # as JupyterLab does
        rest.metadata = nbformat.from_dict(cell.metadata)
    cell.source = "\n".join(lines[:at])
    made.cells.insert(made.cells.index(cell) + 1, rest)


def _merge(made: NotebookNode, draw: random.Random) -> None:
    cell = draw.choice(_answer_cells(made))
    after = next((each for each in made.cells[made.cells.index(cell) + 1 :] if each.cell_type == "code"), None)
    if after is not None:
        cell.source += "\n\n" + after.source
        made.cells = [each for each in made.cells if each is not after]


def _retype(made: NotebookNode, draw: random.Random) -> None:
    cell = draw.choice(_answer_cells(made))
    cell.cell_type = draw.choice(["markdown", "raw"])
    cell.pop("outputs", None)
    cell.pop("execution_count", None)


def _reorder(made: NotebookNode, draw: random.Random) -> None:
    draw.shuffle(made.cells)


def _strip_metadata(made: NotebookNode, draw: random.Random) -> None:
    for cell in made.cells:
        cell.metadata = {}


def _strip_ids(made: NotebookNode, draw: random.Random) -> None:
    for cell in made.cells:
        cell.pop("id", None)
    made.nbformat_minor = 0


def _swap_ids(made: NotebookNode, draw: random.Random) -> None:
    one, two = draw.sample(_answer_cells(made), 2)
    one.metadata, two.metadata = two.metadata, one.metadata


def _other_kernel(made: NotebookNode, draw: random.Random) -> None:
    made.metadata = draw.choice([{}, {"kernelspec": {"name": "ir", "display_name": "R", "language": "R"}}])


def _strip_outputs(made: NotebookNode, draw: random.Random) -> None:
    for cell in made.cells:
        cell.pop("outputs", None)
        cell.pop("execution_count", None)


def _scribble(made: NotebookNode, draw: random.Random) -> None:
    for _ in range(3):
        text = draw.choice(
            ["%matplotlib inline", "import math\nmath.pi", "# later", "print(undefined)", "1 +", "?dict"]
        )
        made.cells.insert(draw.randrange(len(made.cells) + 1), nbformat.v4.new_code_cell(text))


CHANGES: list[Callable] = [_reorder, _scribble, _delete_locked, _delete_answer, _stale, _double, _strip_metadata,
                           _swap_ids, _strip_ids, _retype, _other_kernel, _strip_outputs, _merge, _split]  # fmt: skip


def write(handed: list[Handed], folder: Path) -> None:
    """Write submissions into a folder, as a teacher gets them: a folder for each student."""
    for each in handed:
        path = folder / each.name / each.file
        path.parent.mkdir(parents=True)
        if each.content is None:
            path.mkdir()
        elif isinstance(each.content, bytes):
            path.write_bytes(each.content)
        else:
            path.write_text(json.dumps(each.content))


def grade_batch(handed: list[Handed], seconds: int = 20) -> dict[str, float]:
    """Grade submissions, print where the points are not as they must be, and return how many items are right."""
    from notebooks.grading.__main__ import grade_class

    must = {each.name: each.passes for each in handed}
    with tempfile.TemporaryDirectory() as name:
        write(handed, Path(name) / "submissions")
        graded = grade_class(Path(name) / "submissions", Path(name) / "results", seconds=seconds)
    false_passes = good_items = right = 0
    for each in graded:
        passed = {item.exercise for item in each.items if item.points}
        expected = must[each.submission.student]
        false_passes += len(passed - expected)
        good_items += len(expected)
        right += len(passed & expected)
        if passed != expected:
            print(
                each.submission.student,
                sorted(passed),
                "must be",
                sorted(expected),
                *each.items,
                *each.notes,
                sep="\n  ",
            )
    return {"submissions": len(graded), "false_passes": false_passes, "good_items": good_items, "good_right": right}


def solved() -> list[Handed]:
    """Return the solutions of every lesson, as somebody would hand them in who had them all."""
    handed = []
    for path in SOLUTIONS:
        made = nbformat.read(path, as_version=4)
        checks = [cell.id.removeprefix("check-") for cell in made.cells if cell.id.startswith("check-")]
        handed.append(
            Handed(f"solved {path.stem}", made, {".".join(each.rsplit("-", 1)) for each in checks}, path.name)
        )
    return handed


def run_all(count_good: int = 30, count_mangled: int = 50) -> dict[str, float]:
    """Grade the whole class and return the figures of the benchmark `course`."""
    parts = hostile(), good(count_good) + solved(), mangled(count_mangled)
    found = grade_batch([each for part in parts for each in part])
    return {
        "course.hostile": len(parts[0]),
        "course.mangled": len(parts[2]),
        "course.submissions_graded": found["submissions"],
        "course.false_passes": found["false_passes"],
        "course.good_graded": found["good_right"] / found["good_items"],
    }
