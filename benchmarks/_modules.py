"""List the modules of kd_lab, floor by floor, with the first line of each docstring."""

import ast
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "kd_lab"


def list_modules(inside: bool = False) -> list[tuple[int, str, str]]:
    """Return floor, path and first line of each module and folder; with `inside`, of each file instead of the folder.

    Their order is that of the import contracts in pyproject.toml, the lowest floor first.
    """
    found = []
    for floor, names in enumerate(_floors(PACKAGE)):
        for name in names:
            folder = (ROOT / PACKAGE / name).is_dir()
            files = [f"{name}.py"]
            if folder:
                files = [f"{name}/{each}.py" for below in _floors(f"{PACKAGE}.{name}") for each in below]
            if folder and not inside:
                found.append((floor, f"{name}/", _first_line(f"{name}/__init__.py")))
            else:
                found += [(floor, file, _first_line(file)) for file in files]
    return found


def _floors(container: str) -> list[list[str]]:
    """Return the names on each floor of a package, the lowest first."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["containers"] == [container])
    return [re.split(r"\s*[|:]\s*", layer) for layer in reversed(layers)]


def _first_line(file: str) -> str:
    """Return the first line of a file's docstring, as it can stand in a table."""
    docstring = ast.get_docstring(ast.parse((ROOT / PACKAGE / file).read_text()))
    return docstring.splitlines()[0].replace("|", "\\|")
