"""Write a panel as one page without a kernel: its controls move through answers that were measured beforehand."""

import base64
import html
import io
import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import ipywidgets as widgets
import numpy as np
import torch
from PIL import Image

from kd_lab.errors import StorageError, check_kind, check_that, described, saying
from kd_lab.panels.controls import Slider, asset, check_values
from kd_lab.storage import file_path, writable

STYLES, SCRIPTS = ("panel.css", "slider.css", "recorded.css"), ("slider.js", "recorded.js")
EXPORT = "export default"  # what follows is for widgets alone
PART = re.compile(r"{{(\w+)}}")
COLORS = 256  # of a PNG with a palette
PNG, TABLES = 2, 3  # of a record


class RecordedAnswer(NamedTuple):
    """What a panel shows at one setting of its controls; `images` is how many it was measured on, 0 for none."""

    values: tuple
    title: str
    png: bytes
    tables: str
    images: int


def checked_settings(controls: Mapping[str, widgets.Widget], settings: Any) -> Sequence[Mapping[str, Any]]:
    """Return the settings; raise a ParameterError that names the first one which the controls can't have."""
    check_kind("settings", settings, (list, tuple), "a list of settings, each a dict of values by name of the control")
    check_that("settings", settings, len(settings), "a list of one setting or more")
    for place, setting in enumerate(settings):
        with saying(f"settings[{place}] is none of this panel"):
            check_kind("setting", setting, Mapping, "a dict of values by name of the control")
            check_values(controls, setting)
    return settings


def checked_target(path: Path | str) -> Path:
    """Return the path of a file that can be written; raise a StorageError before anything is measured for it."""
    path = file_path(path)
    if path.is_dir():
        raise StorageError(f"{path} can't be written: it is a folder.")
    if not writable(path.parent):
        raise StorageError(f"{path} can't be written: {path.parent} is no folder that you may write to.")
    return path


def named(setting: Mapping[str, Any]) -> str:
    """Return a setting of controls as short text."""
    return ", ".join(f"{name} {described(value)}" for name, value in setting.items()) or "the present one"


def recorded_page(name: str, controls: Mapping[str, widgets.Widget], records: Sequence[RecordedAnswer]) -> bytes:
    """Return the page of a panel of this name; without JavaScript it shows the first record."""
    first, values = records[0], zip(*(record.values for record in records), strict=True)
    columns = [_column(*control, each) for control, each in zip(controls.items(), values, strict=True)]
    pictures, tables = (_distinct([record[field] for record in records]) for field in (PNG, TABLES))
    whole = _pixels(first.png)
    data = {
        "controls": [about for about, _ in columns],
        "settings": [*zip(*(each for _, each in columns), strict=True)],
        "answers": [*zip((record.title for record in records), pictures[1], tables[1], strict=True)],
        "pictures": [_text(_change(_pixels(png), whole)) for png in pictures[0]],
        "tables": tables[0],
    }
    parts = {
        "name": html.escape(name),
        "about": html.escape(_about(records)),
        "title": html.escape(first.title),
        "height": str(len(whole)),
        "width": str(len(whole[0])),
        "png": _text(_saved(Image.open(io.BytesIO(first.png)))),
        "tables": first.tables,
        "data": json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),  # which could end the element
        "style": "".join(map(asset, STYLES)),
        "script": "".join(asset(script).partition(EXPORT)[0] for script in SCRIPTS),
    }
    return PART.sub(lambda part: parts[part[1]], asset("recorded.html")).encode()


def _column(name: str, control: widgets.Widget, values: tuple) -> tuple[dict[str, Any], Sequence]:
    """Return what the page must know of a control, and its value at every record; what is drawn is numbered."""
    if isinstance(control, Slider):
        return {"label": control.label, "factor": control.factor, "unit": control.unit}, values
    if isinstance(control, widgets.Dropdown):
        return {"label": control.description, "options": list(control.options)}, values
    drawn, places = _distinct(values)
    return {"label": name, "factor": 1, "unit": f"of {len(drawn)}"}, [1 + place for place in places]


def _distinct(parts: Sequence[Any]) -> tuple[list[Any], list[int]]:
    """Return each part once, and for every part the place of its like."""
    once = list(dict.fromkeys(parts))
    return once, [once.index(part) for part in parts]


def _about(records: Sequence[RecordedAnswer]) -> str:
    """Return when, with what and on what the records were measured."""
    count, images = len(records), max(record.images for record in records)
    where = f", on {images:,} validation images" if images else ""
    return (
        f"{count} setting{'s' * (count > 1)}, measured on {datetime.now(UTC):%Y-%m-%d} with kd_lab {version('kd_lab')} "
        f"and torch {torch.__version__}{where}. Nothing is measured on this page, and nothing is interpolated."
    )


def _pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def _change(picture: np.ndarray, whole: np.ndarray) -> bytes:
    """Return as PNG what differs from the whole picture, both (height, width, 3) of uint8; the rest is transparent."""
    differs = (picture != whole).any(2)
    colors, places = np.unique(picture[differs], axis=0, return_inverse=True)
    if len(colors) >= COLORS:  # none is left for what is transparent
        return _saved(Image.fromarray(np.dstack([picture, 255 * differs.astype(np.uint8)])))
    indices = np.zeros(differs.shape, np.uint8)
    indices[differs] = 1 + places.ravel()
    image = Image.fromarray(indices)
    image.putpalette([0, 0, 0, *colors.ravel().tolist()])
    return _saved(image, transparency=0)


def _saved(image: Image.Image, **options: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True, **options)
    return file.getvalue()


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()
