"""Files are whole or absent, damage is refused, and one process at a time makes a file."""

import errno
import hashlib
import json
import os
import pickle
import struct
import time
import tracemalloc
from pathlib import Path

import pytest
import safetensors.torch
import torch

from benchmarks.faults import fork, kill_during_saves
from kd_lab import storage
from kd_lab.checkpoints import load_trained
from kd_lab.data import load_mnist
from kd_lab.errors import DamagedFileError, ParameterError, StorageError
from kd_lab.results import load_results
from kd_lab.storage import (
    NO_DIGEST,
    cache_key,
    load_tensors,
    lock,
    read_file,
    save_tensors,
    set_aside,
    writable,
    write_safely,
)

TENSORS = {"weight": torch.randn(20, 30), "steps": torch.tensor(7)}


@pytest.fixture
def path(tmp_path):
    save_tensors(tmp_path / "model.safetensors", TENSORS, {"seed": 3})
    return tmp_path / "model.safetensors"


def test_what_is_saved_is_loaded(path):
    tensors, metadata = load_tensors(path)
    assert metadata == {"seed": 3}
    assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())


def test_the_file_is_plain_safetensors(path):
    assert torch.equal(safetensors.torch.load_file(path)["weight"], TENSORS["weight"])


def test_a_file_from_a_gpu_loads_on_the_cpu(tmp_path):
    class OnGpu(torch.Tensor):
        """Stand for a tensor on a GPU, which has to be brought over before it is written."""

        def cpu(self):
            OnGpu.brought = True
            return super().cpu()

    save_tensors(tmp_path / "gpu.safetensors", {"weight": torch.ones(3).as_subclass(OnGpu)}, {})
    assert OnGpu.brought
    assert load_tensors(tmp_path / "gpu.safetensors")[0]["weight"].device.type == "cpu"


def test_every_single_bit_flip_is_refused(path):
    content = path.read_bytes()
    for place in [*range(0, 400), *range(400, len(content), 97)]:
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        with pytest.raises(StorageError):
            load_tensors(path)


def test_every_truncation_is_refused(path):
    content = path.read_bytes()
    for length in [0, 1, 7, 8, 9, 100, len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(DamagedFileError, match="is damaged"):
            load_tensors(path)


def test_an_absurd_header_is_refused_before_memory_is_taken(path):
    for length in (2**62, 40_000_000):
        path.write_bytes(struct.pack("<Q", length) + bytes(50_000_000))
        tracemalloc.start()
        with pytest.raises(DamagedFileError, match=f"claims {length} bytes"):
            load_tensors(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
        tracemalloc.stop()


def test_a_header_nested_without_end_is_refused(path):
    path.write_bytes(struct.pack("<Q", 200_000) + b"[" * 200_000)
    with pytest.raises(DamagedFileError, match="header can't be read"):
        load_tensors(path)


def test_a_file_that_is_replaced_while_it_is_read_is_the_old_one(path, tmp_path, monkeypatch):
    save_tensors(tmp_path / "newer", TENSORS, {"seed": 4})
    read_header = storage._read_header

    def replaced(*arguments):
        header = read_header(*arguments)
        if (tmp_path / "newer").exists():
            os.replace(tmp_path / "newer", path)
        return header

    monkeypatch.setattr(storage, "_read_header", replaced)
    assert [load_tensors(path)[1]["seed"] for _ in range(2)] == [3, 4]


def test_what_can_not_be_read_is_named(tmp_path):
    for absent in (tmp_path / "absent", tmp_path, str(tmp_path / "absent")):
        with pytest.raises(StorageError, match="can't be read"):
            load_tensors(absent)


def test_a_foreign_safetensors_file_is_named_as_such(tmp_path):
    safetensors.torch.save_file(TENSORS, tmp_path / "other.safetensors")
    with pytest.raises(DamagedFileError, match="was not saved by kd_lab"):
        load_tensors(tmp_path / "other.safetensors")


def forged(path, tensors, metadata):
    """Write a file with a right digest, whatever else it says."""
    header = {"__metadata__": {"schema": "1", "sha256": NO_DIGEST, "metadata": metadata}, **tensors}
    text = json.dumps(header).encode()
    content = struct.pack("<Q", len(text)) + text + bytes(8)
    digest = hashlib.sha256(content).hexdigest()
    path.write_bytes(content.replace(NO_DIGEST.encode(), digest.encode(), 1))


FINE = {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


@pytest.mark.parametrize(
    ("tensors", "metadata", "part"),
    [
        ({"x": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, "{}", "can't be read"),
        ({"x": {"dtype": "F33", "shape": [2], "data_offsets": [0, 8]}}, "{}", "can't be read"),
        (FINE, "{", "can't be read"),
        (FINE, "[" * 100_000, "can't be read"),
        (FINE, "null", "its metadata is None"),
    ],
)
def test_nonsense_behind_a_right_digest_is_refused(path, tensors, metadata, part):
    forged(path, FINE, '{"seed": 3}')
    assert load_tensors(path)[1] == {"seed": 3}
    forged(path, tensors, metadata)
    with pytest.raises(StorageError, match=part):
        load_tensors(path)


def test_a_digest_that_is_no_text_is_refused(path):
    content = path.read_bytes()
    start = content.index(b'"sha256":"') + len(b'"sha256":"')
    path.write_bytes(content[:start] + b"\\ud800" + b"0" * 58 + content[start + 64 :])
    with pytest.raises(DamagedFileError):
        load_tensors(path)


@pytest.mark.parametrize("name", ["", ".", "/", "a\0b"])
def test_what_is_no_path_of_a_file_is_named(name):
    with pytest.raises(StorageError, match="can't be the path of a file"):
        write_safely(Path(name), b"")


def test_any_name_is_fine(tmp_path):
    write_safely(tmp_path / "a**[b.kdz", b"x")
    assert [each.name for each in tmp_path.iterdir()] == ["a**[b.kdz"]


def test_a_newer_schema_names_both_versions(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "SCHEMA", 3)
    save_tensors(tmp_path / "new.safetensors", TENSORS, {})
    monkeypatch.undo()
    with pytest.raises(StorageError, match=r"has schema '3'; this kd_lab reads schema 2 and before\. Update"):
        load_tensors(tmp_path / "new.safetensors")


class Bomb:
    """Leave a trace when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, (os.environ["BOMB"],)


@pytest.mark.parametrize(
    "save",
    [
        lambda path: torch.save({"bomb": Bomb()}, path),
        lambda path: path.write_bytes(pickle.dumps(Bomb(), protocol=4)),
        lambda path: path.write_bytes(pickle.dumps(Bomb(), protocol=0)),
    ],
)
def test_a_pickle_is_never_executed(tmp_path, monkeypatch, save):
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    save(tmp_path / "model.pt")
    with pytest.raises(StorageError):
        load_tensors(tmp_path / "model.pt")
    assert not (tmp_path / "exploded").exists()


def test_a_pickle_is_called_one(tmp_path):
    torch.save({"weight": torch.ones(3)}, tmp_path / "model.pt")
    with pytest.raises(StorageError, match="is a pickle"):
        load_tensors(tmp_path / "model.pt")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_weights_are_neither_saved_nor_loaded(path, monkeypatch, value):
    bad = {"weight": torch.tensor([1.0, value])}
    old = path.read_bytes()
    with pytest.raises(StorageError, match="'weight' holds NaN"):
        save_tensors(path, bad, {})
    assert path.read_bytes() == old
    with monkeypatch.context() as patch:
        patch.setattr(storage, "_refuse_non_finite", lambda *arguments: None)
        save_tensors(path, bad, {})
    with pytest.raises(StorageError, match="'weight' holds NaN"):
        load_tensors(path)


def test_a_full_disk_keeps_the_old_file_and_says_how_much_is_missing(path, monkeypatch):
    old = path.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"was not saved: it needs 3\.0 MB and [\d.]+ MB are free"):
        write_safely(path, bytes(3_000_000))
    assert path.read_bytes() == old
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_an_unwritable_place_is_named(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(StorageError, match="taken was not saved"):
        write_safely(tmp_path / "taken", b"x")


def test_old_strays_are_swept_and_running_saves_are_not(path):
    stray, running = (path.with_name(f".{path.name}.{name}.tmp") for name in ("0000", "1111"))
    for file in (stray, running):
        file.write_bytes(b"half")
    os.utime(stray, (time.time() - 7200, time.time() - 7200))
    write_safely(path, b"whole")
    assert not stray.exists() and running.exists()


def test_whoever_has_the_lock_sweeps_every_stray(path):
    stray = path.with_name(f".{path.name}.0000.tmp")
    stray.write_bytes(b"half")
    with lock(path):
        assert not stray.exists()


def test_a_folder_that_can_not_be_synced_is_no_failure(path, monkeypatch):
    sync, folder = os.fsync, os.stat(path.parent).st_ino

    def refuse_folders(descriptor):
        if os.fstat(descriptor).st_ino == folder:
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    write_safely(path, b"whole")
    assert path.read_bytes() == b"whole"


def test_tied_weights_are_saved_twice(tmp_path):
    weight = torch.randn(3)
    save_tensors(tmp_path / "tied.safetensors", {"one": weight, "other": weight}, {})
    assert torch.equal(load_tensors(tmp_path / "tied.safetensors")[0]["other"], weight)


def test_writable_looks_at_the_nearest_folder_that_exists(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    assert writable(tmp_path / "not" / "yet") and not writable(tmp_path / "file") and not writable(tmp_path / "file/x")
    monkeypatch.setattr(os, "access", lambda folder, mode: folder != tmp_path)
    assert not writable(tmp_path / "not" / "yet")


def test_an_unusable_cache_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"can't be written.*Set KD_LAB_CACHE"), lock(tmp_path / "file" / "model"):
        pass


def test_the_cache_may_be_given_from_the_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KD_LAB_CACHE", "~/kd")
    assert storage.cache_folder() == tmp_path / "kd"


@pytest.fixture
def no_home(monkeypatch):
    """Leave the user without HOME, without an entry in the password database and without a cache folder."""
    for name in ("HOME", "KD_LAB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda _number: {}["no such user"])


def test_what_ships_is_loaded_without_a_home(no_home):
    assert isinstance(load_trained("mlp128"), torch.nn.Module)
    assert len(load_mnist().test.labels) == 10_000
    assert load_results("hinton").seeds


def test_what_needs_a_home_says_so(no_home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for need in (
        lambda: load_trained("mlp128", seed=5),
        lambda: write_safely("~/model", b""),
        lambda: load_tensors("~/model"),
    ):
        with pytest.raises(StorageError, match=r"there is no home for its '~'\. Set HOME"):
            need()
    assert not list(tmp_path.iterdir())


def test_a_tilde_means_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    save_tensors("~/folder/model", TENSORS, {"seed": 3})
    assert (tmp_path / "folder" / "model").exists() and load_tensors("~/folder/model")[1] == {"seed": 3}
    assert read_file("~/folder/model", 8) == (tmp_path / "folder" / "model").read_bytes()[:8]
    with lock("~/locked"):
        assert (tmp_path / "locked.lock").exists()


@pytest.mark.parametrize("path", [None, 3, 2.5, b"model", ["model"]])
def test_what_is_no_path_is_named(path):
    with pytest.raises(ParameterError, match=r"'path' must be the path of a file\. Got "):
        write_safely(path, b"")
    for read in (read_file, load_tensors):
        with pytest.raises(StorageError, match=r"can't be read: 'path' must be the path of a file\. Got "):
            read(path)


def test_a_folder_is_named(tmp_path):
    for use in (lambda: write_safely(tmp_path, b""), lambda: read_file(tmp_path), lambda: load_tensors("a\0b")):
        with pytest.raises(StorageError, match=r"Is a directory\.|embedded null byte\."):
            use()


def test_a_damaged_file_is_set_aside_not_deleted(path):
    content = path.read_bytes()
    aside = set_aside(path)
    assert aside.read_bytes() == content and not path.exists()
    assert set_aside(path) is None


def test_other_settings_give_another_key():
    settings = {"model": "cnn", "epochs": 3, "learning_rate": 1e-3}
    assert cache_key(settings) == cache_key(json.loads(json.dumps(settings)))
    assert len({cache_key({**settings, name: 5}) for name in settings} | {cache_key(settings)}) == 4


def test_kills_during_a_save_leave_the_old_or_the_new_file():
    assert kill_during_saves(15)["faults.corrupt"] == 0


def test_the_lock_waits_and_says_so_and_passes_on_when_its_holder_dies(tmp_path, capsys):
    path = tmp_path / "file"

    def hold_and_die():
        with lock(path):
            (tmp_path / "held").touch()
            time.sleep(1.5)
            os._exit(1)  # dies without freeing the lock

    child = fork(hold_and_die)
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    with lock(path):
        assert os.waitpid(child, os.WNOHANG)[0] == child or os.waitpid(child, 0)
    assert "Another process is making file" in capsys.readouterr().out
