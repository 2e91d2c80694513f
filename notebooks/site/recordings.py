"""Record every panel of the lessons: measure it at chosen settings, and keep the page that moves through them."""

import ast
import hashlib
import io
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
import torch

from kd_lab.checkpoints import load_trained
from kd_lab.data import Split, load_mnist
from kd_lab.errors import ParameterError, SetupError
from kd_lab.evaluation import predict_classes
from kd_lab.pruning import prune
from kd_lab.storage import write_safely
from notebooks.build import ROOT
from notebooks.lab import NOTEBOOKS

SOURCES = ("kd_lab/**/*.py", "kd_lab/**/*.js", "kd_lab/**/*.css", "kd_lab/**/*.html", "data/checkpoints/*")
Settings = Callable[[Any], list[dict[str, Any]] | Split]  # of digits, for the pad
ALL = "all layers"
BY_SIZE = {"importance": "magnitude", "scope": "global"}


class Recording(NamedTuple):
    """A panel of a lesson, made by its own cell, and at which settings it is measured."""

    name: str
    lesson: str
    cell: str
    title: str
    settings: Settings


def along(control: str, values: Iterable, **others: Any) -> list[dict[str, Any]]:
    """Return a setting for each value of one control, the others as they are given."""
    return [{control: value, **others} for value in values]


def _pruning(_panel: Any) -> list[dict[str, Any]]:
    others = [
        {"sparsity": sparsity, "importance": importance, "scope": "global"}
        for importance in ("gradient", "weight_gradient", "random")
        for sparsity in (0.5, 0.8)
    ]
    each = along("sparsity", (0.5, 0.8, 0.9), importance="magnitude", scope="per_layer")
    plain = along("sparsity", (0.5, 0.0, 0.7, 0.8, 0.9, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99), **BY_SIZE)
    return plain + others + each


def _channels(panel: Any) -> list[dict[str, Any]]:
    """Return ratios of all layers together and, where there are several, of each alone while the others stay whole."""
    panel.set(layer=ALL, ratio=0.0)
    settings = along("ratio", (0.5, 0.0, 0.1, 0.25, 0.4, 0.6, 0.7, 0.75, 0.8, 0.9, 0.95), layer=ALL)
    _all, *layers = panel.controls["layer"].options
    alone = layers if len(layers) > 1 else []
    return settings + [{"layer": layer, "ratio": ratio} for layer in alone for ratio in (0.7, 0.9)]


def _quantization(_panel: Any) -> list[dict[str, Any]]:
    bits = (4, 8, 7, 6, 5, 3, 2, 1)
    each = [along("weight_bits", bits, granularity=granularity) for granularity in ("per_channel", "per_tensor")]
    return [*each[0], *each[1], *along("activation_bits", ("8", "4", "2"), weight_bits=8)]


def _distillation(_panel: Any) -> list[dict[str, Any]]:
    taught = along("temperature", (4.0, 1.0, 2.0, 8.0, 12.0, 20.0), images="2,000")
    few = along("temperature", (4.0, 1.0, 8.0, 20.0), images="500")
    looks = along("temperature", (4.0, 1.0, 8.0, 20.0), images="2,000", view="soft targets only")
    return taught + few + along("images", ("5,000", "55,000"), temperature=8.0) + looks


def _recipe(_panel: Any) -> list[dict[str, Any]]:
    bits = along("bits", (3, 1, 2, 8), ratio=0.9)
    return bits + along("ratio", (0.5, 0.8, 0.95, 0.98), bits=3) + along("temperature", (20.0,), ratio=0.9, bits=3)


def _budgets(panel: Any) -> list[dict[str, Any]]:
    stops = panel.controls["budget"].stops
    return along("budget", [panel.setting["budget"], *map(int, stops)])


def _drawings(_panel: Any) -> Split:
    """Return validation digits: one of each, then some that the pruned network reads as another digit."""
    images, labels = load_mnist().validation
    dense = load_trained("cnn")
    others = predict_classes(prune(dense, 0.9), images) != predict_classes(dense, images)
    places = [int((labels == digit).nonzero()[0]) for digit in range(10)] + others.nonzero().flatten().tolist()[:8]
    return Split(images[places], labels[places])


def _sparsities(*values: float) -> Settings:
    return lambda _panel: along("sparsity", values)


RECORDINGS = (
    Recording("01_pruning", "01_magnitude_pruning", "live-panel", "Prune lenet300 weight by weight", _pruning),
    Recording("02_channels", "02_soft_and_hard_pruning", "live-panel", "Remove channels and units of cnn", _channels),
    Recording(
        "03_least_squares",
        "03_pruning_with_care",
        "live-panel",
        "Prune one layer by magnitude and by least squares",
        _sparsities(0.95, 0.0, 0.5, 0.7, 0.8, 0.85, 0.9, 0.92, 0.94, 0.96, 0.97, 0.98, 0.99),
    ),
    Recording(
        "04_quantization", "04_quantization", "panel-live", "Store the weights of lenet300 in few bits", _quantization
    ),
    Recording(
        "05_distillation", "05_knowledge_distillation", "live-panel", "Let lenet300 teach a student", _distillation
    ),
    Recording(
        "07_recipe", "07_prune_distill_finetune", "9743b7ee", "Prune, fine-tune with the teacher, share", _recipe
    ),
    Recording(
        "08_frontier", "08_deep_compression", "frontier-panel", "The best network within a budget of bytes", _budgets
    ),
    Recording("09_units", "09_beyond_cnns", "live-panel", "Remove units of a recurrent layer", _channels),
    Recording(
        "09_low_rank",
        "09_beyond_cnns",
        "low-panel",
        "Put two thin layers in place of one",
        lambda _panel: along("rank", (40, 1, 2, 5, 10, 20, 30, 60, 80, 120, 160, 217, 300)),
    ),
    Recording("11_drawing", "11_deployment", "draw-panel", "Four networks read the same digits", _drawings),
    Recording(
        "own_pruning",
        "bring_your_own",
        "prune-panel",
        "Prune a network of your own",
        _sparsities(0.5, 0.0, 0.3, 0.7, 0.8, 0.85, 0.9, 0.95, 0.97, 0.99),
    ),
)


def make_panel(recording: Recording) -> Any:
    """Return the panel as its lesson makes it: by its cell, and by what this one needs of the cells before."""
    names: dict[str, Any] = {"__name__": "__main__"}
    *before, shown = needed(recording)
    exec(compile(ast.Module(before, []), recording.lesson, "exec"), names)
    return eval(compile(ast.Expression(shown.value), recording.lesson, "eval"), names)  # type: ignore[attr-defined]


def needed(recording: Recording) -> list[ast.stmt]:
    """Return the line that shows the panel and, before it, what binds the names that it and these lines use."""
    cells = nbformat.read(NOTEBOOKS / f"{recording.lesson}.ipynb", as_version=4).cells
    place = next(place for place, cell in enumerate(cells) if cell.id == recording.cell)
    sources = [cell.source for cell in cells[: place + 1] if cell.cell_type == "code" and cell.id != "colab-install"]
    *statements, shown = (line for source in sources for line in ast.parse(source).body)
    chosen, wanted = [shown], _read(shown)
    for statement in reversed(statements):
        seeds = isinstance(statement, ast.Expr) and "manual_seed" in ast.dump(statement)  # of a training below
        if seeds or wanted & _bound(statement):
            chosen.insert(0, statement)
            if isinstance(statement, ast.Assign | ast.Import | ast.ImportFrom):
                wanted -= _bound(statement)
            wanted |= _read(statement)
    return chosen


def _read(statement: ast.stmt) -> set[str]:
    names = (node for node in ast.walk(statement) if isinstance(node, ast.Name))
    return {name.id for name in names if isinstance(name.ctx, ast.Load)}


def _bound(statement: ast.stmt) -> set[str]:
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).split(".")[0] for alias in statement.names}
    names = (node for node in ast.walk(statement) if isinstance(node, ast.Name))
    return {name.id for name in names if isinstance(name.ctx, ast.Store)}


def record_all(folder: Path, names: list[str] | None = None) -> list[Recording]:
    """Record the panels of these names, all if None, and return them; one that is there and not outdated is kept."""
    if unknown := set(names or []) - {each.name for each in RECORDINGS}:
        raise ParameterError(
            f"no panel is called {', '.join(sorted(unknown))}; there are: {', '.join(r.name for r in RECORDINGS)}"
        )
    chosen = [each for each in RECORDINGS if names is None or each.name in names]
    outdated = [each.name for each in chosen if not _is_kept(each, folder)]
    with ProcessPoolExecutor(min(2, os.cpu_count() or 1), get_context("spawn")) as pool:
        tasks = {name: pool.submit(record, name, folder) for name in outdated}
        for name, task in tasks.items():
            if error := task.exception():
                pool.shutdown(cancel_futures=True)
                raise SetupError(f"The panel {name} could not be recorded. {type(error).__name__}: {error}") from error
    return chosen


def _is_kept(recording: Recording, folder: Path) -> bool:
    page, key = (folder / f"{recording.name}.{end}" for end in ("html", "key"))
    return page.is_file() and key.is_file() and key.read_text() == fingerprint(recording)


def record(name: str, folder: Path) -> None:
    """Measure a panel at its settings and write its page; a process of its own does so, since most take a while."""
    recording = next(each for each in RECORDINGS if each.name == name)
    with redirect_stdout(io.StringIO()):
        panel = make_panel(recording)
        panel.save_html(folder / f"{name}.html", recording.settings(panel))
    write_safely(folder / f"{name}.key", fingerprint(recording).encode())


def fingerprint(recording: Recording) -> str:
    """Return a digest that changes with the package, the lesson's code up to the panel, this file, or torch."""
    code = "\n".join(ast.dump(line) for line in needed(recording))
    return hashlib.sha256(f"{torch.__version__} {package_digest()} {code}".encode()).hexdigest()


@cache
def package_digest() -> str:
    """Return a digest of this file and of all that panels are made of."""
    files = [Path(__file__), *(path for pattern in SOURCES for path in sorted(ROOT.glob(pattern)))]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()
