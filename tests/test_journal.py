"""The journal only grows: nothing that a learner wrote is lost, whatever stops the process."""

import json
import subprocess
import sys

import pytest
import torch

from kd_lab.errors import StorageError
from kd_lab.exercises.journal import entries, journal, keep


def test_entries_come_back_in_order_by_kind_and_exercise():
    keep("answer", "01.1", "a = 1")
    keep("hint", "01.1", 1)
    keep("answer", "01.2", "b")
    keep("answer", "01.1", "a = 2")
    assert [entry["value"] for entry in entries("answer")] == ["a = 1", "b", "a = 2"]
    assert [entry["value"] for entry in entries("answer", "01.1")] == ["a = 1", "a = 2"]
    assert entries("hint")[0]["value"] == 1 and entries("prediction") == []


def test_what_json_cannot_hold_is_kept_in_words():
    keep("answer", "01.1", {"mask": torch.ones(2, 3), "nan": float("nan")})
    assert "(2, 3)" in entries("answer")[0]["value"]["mask"]


@pytest.mark.parametrize("torn", [b'{"time": "2026', b"\xff\xfe\x00", b"[1]", b'{"kind": "answer"}', b"null"])
def test_a_damaged_line_is_passed_over_and_never_overwritten(torn):
    keep("answer", "01.1", "before")
    with open(journal(), "ab") as file:
        file.write(torn)
    keep("answer", "01.1", "after")
    assert [entry["value"] for entry in entries("answer")] == ["before", "after"]
    assert torn in journal().read_bytes()


def test_a_folder_that_cannot_be_made_is_one_clear_error(empty_cache):
    empty_cache.parent.mkdir(exist_ok=True)
    empty_cache.write_text("a file where the folder should be")
    with pytest.raises(StorageError, match="was not saved"):
        keep("answer", "01.1", "a")


@pytest.mark.slow
def test_processes_that_write_at_once_lose_nothing(empty_cache):
    code = "from kd_lab.exercises.journal import keep\nfor n in range(50): keep('answer', '01.1', 'x' * 5000)"
    writers = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    lines = journal().read_text().split("\n")
    assert len(entries("answer")) == 150 and all(json.loads(line) for line in lines if line)
