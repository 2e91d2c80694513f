"""Make the module reference from the docstrings, which are plain prose with `backticks`."""

import ast
import importlib
import inspect
import re
from functools import cache
from itertools import groupby
from types import ModuleType

import nbformat
from sphinx.application import Sphinx

from benchmarks._modules import list_modules
from notebooks.lab import EXERCISES, LESSONS

CODE = re.compile(r"(`[^`]+`)")
SPECIAL = re.compile(r"([\\*|_])")


def module_pages() -> dict[str, str]:
    """Return the page (reStructuredText) of every module by its name, the most basic first."""
    names = [f"kd_lab.{path.removesuffix('/').removesuffix('.py')}" for _floor, path, _said in list_modules()]
    return {name: module_page(importlib.import_module(name)) for name in names}


def module_page(module: ModuleType) -> str:
    """Return the page of one module: its docstring, and all that a user imports from it."""
    parts = [f"{module.__name__}\n{'=' * len(module.__name__)}", f".. py:module:: {module.__name__}"]
    parts.append("\n".join(to_rst((module.__doc__ or "").splitlines())))
    parts += [entry(home, name) for home, name in public(module)]
    return "\n\n".join(parts) + "\n"


def public(module: ModuleType) -> list[tuple[str, str]]:
    """Return the public names of a module and the module that each is imported from.

    A file gives the functions and classes that it defines, a folder what it hands on; what lessons import comes to it.
    """
    home, names = module.__name__, [name for name in vars(module) if name[0] != "_" and name != "main"]
    is_folder = hasattr(module, "__path__")
    own = [name for name in names if (_is_handed_on if is_folder else _is_defined)(module, name)]
    more = [(place, name) for place, name in imported() if f"{place}.".startswith(f"{home}.") and name not in own]
    return [(home, name) for name in own] + more


def _is_handed_on(module: ModuleType, name: str) -> bool:
    return not inspect.ismodule(vars(module)[name])


def _is_defined(module: ModuleType, name: str) -> bool:
    value = vars(module)[name]
    return (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__ == module.__name__


@cache
def imported() -> list[tuple[str, str]]:
    """Return what lessons and exercises import, (module, name) each."""
    found = set()
    for path in (*LESSONS, *EXERCISES):
        cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        for node in ast.walk(ast.parse("\n".join(re.sub(r"(?m)^\s*[%!].*", "", cell) for cell in cells))):
            if isinstance(node, ast.ImportFrom) and node.module:
                found |= {(node.module, alias.name) for alias in node.names}
    return sorted(found)


def entry(home: str, name: str) -> str:
    """Return the directive that documents one name."""
    value = getattr(importlib.import_module(home), name)
    if inspect.isclass(value):
        return f".. autoclass:: {home}.{name}\n   :members:"
    if inspect.isfunction(value):
        return f".. autofunction:: {home}.{name}"
    names = [f"`{each}`" for each in value if isinstance(each, str)] if isinstance(value, tuple | dict) else []
    return f".. py:data:: {home}.{name}\n\n   {', '.join(names)}"


def to_rst(lines: list[str]) -> list[str]:
    """Return a docstring's lines as reStructuredText: `code` as code, indented lines as they are, the rest as prose."""
    written: list[str] = []
    for indented, group in groupby(lines, lambda line: line.startswith("    ")):
        if indented:
            written += ["", "::", "", *group, ""]
        else:
            written += _prose("\n".join(group)).splitlines()
    return written


def _prose(text: str) -> str:
    parts = CODE.split(text)
    return "".join(rf"\ `{part}`\ " if part[:1] == "`" else SPECIAL.sub(r"\\\1", part) for part in parts)


def setup(app: Sphinx) -> dict[str, bool]:
    """Let Sphinx read the docstrings so, and leave out the fields of named tuples, which have none of their own."""
    app.connect("autodoc-process-docstring", lambda _app, _what, _name, _object, _options, lines: _replace(lines))
    app.connect(
        "autodoc-skip-member", lambda _app, _what, _name, member, _skip, _options: True if _is_field(member) else None
    )
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _replace(lines: list[str]) -> None:
    lines[:] = to_rst(lines)


def _is_field(member: object) -> bool:
    return (getattr(member, "__doc__", None) or "").startswith("Alias for field number")
