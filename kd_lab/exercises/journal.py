"""Keep what a learner answers and predicts, in a file that only ever grows: the journal."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kd_lab.errors import described
from kd_lab.storage import append, cache_folder, read_file

Entry = dict[str, Any]


def journal() -> Path:
    """Return the path of the journal, one JSON object a line: $KD_LAB_JOURNAL, or a file in the cache folder."""
    return Path(os.environ.get("KD_LAB_JOURNAL") or cache_folder() / "journal.jsonl")


def keep(kind: str, of: str, value: Any) -> None:
    """Append an entry, such as keep("hint", "01.2", 1); it lies on the disk when this returns.

    What JSON can't hold is kept in words. Raises a StorageError where the journal can't be written.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    line = json.dumps({"time": now, "kind": kind, "of": of, "value": value}, default=described)
    append(journal(), f"\n{line}\n".encode())  # a line that a killed process left half-written ends before this one


def entries(kind: str, of: str | None = None) -> list[Entry]:
    """Return the entries of a kind, the oldest first; with `of`, only those of one exercise or question."""
    if not journal().exists():
        return []
    found = filter(None, map(_entry, read_file(journal()).decode(errors="replace").splitlines()))
    return [entry for entry in found if entry["kind"] == kind and of in (None, entry["of"])]


def _entry(line: str) -> Entry | None:
    """Return the entry of a line, None for one that is damaged."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) and {"time", "kind", "of", "value"} <= entry.keys() else None
