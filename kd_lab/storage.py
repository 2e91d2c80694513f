"""Save files whole or not at all, refuse damaged ones, and let one process make each."""

import errno
import glob
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import pooch
import safetensors.torch
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from torch import Tensor

from kd_lab.errors import DamagedFileError, StorageError, check_kind, reason

SCHEMA = 2  # raised when a file's meaning changes, so that an older kd_lab says so instead of guessing
READABLE = "1", "2"  # 1 is version 0.1, whose layers were named by their places
MAX_HEADER_BYTES = 1_000_000  # bytes; ours are below 10,000, and an absurd length must not take memory
STALE_AFTER = 3600  # seconds after which a temporary file can't belong to a save that still runs
NO_DIGEST = "0" * 64


def cache_folder() -> Path:
    """Return the user's folder for what kd_lab makes: $KD_LAB_CACHE, or the system's usual place.

    A user without a home gets it with its `~`: nothing lies there, and only what must write there fails.
    """
    given = os.environ.get("KD_LAB_CACHE")
    with suppress(RuntimeError):
        return Path(given or pooch.os_cache("kd_lab")).expanduser()
    return Path(given or "~/.cache/kd_lab")


def file_path(path: str | os.PathLike) -> Path:
    """Return the path of a file, its `~` replaced by the user's home.

    Raises a ParameterError for what is no path, such as a number, and a StorageError where there is no home.
    """
    check_kind("path", path, (str, os.PathLike), "the path of a file")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise StorageError(
            f"{path} can't be found, since there is no home for its '~'. Set HOME to a folder of yours, or "
            "KD_LAB_CACHE if you gave no path."
        ) from error


def cache_key(settings: dict) -> str:
    """Return 12 hex digits that change whenever any of the settings does."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def write_safely(path: Path, content: bytes) -> None:
    """Write a file so that at every moment it holds all of the old bytes or all of the new ones.

    A StorageError says how much room is missing where the disk is full; the old file is then untouched.
    """
    path = file_path(path)
    if not path.name or "\0" in str(path):
        raise StorageError(f"{str(path)!r:.80} can't be the path of a file.")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep_strays(_temporaries(path), STALE_AFTER)
        _write_through(temporary, content)
        os.replace(temporary, path)
    except OSError as error:
        raise _explain(error, path, len(content)) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def append(path: Path, content: bytes) -> None:
    """Add to the end of a file, in one piece, also where several processes do so at once.

    Raises a StorageError where the folder can't be written or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_through(path, content, "ab")
    except OSError as error:
        raise _explain(error, path, len(content)) from error


def _write_through(path: Path, content: bytes, mode: str = "wb") -> None:
    with open(path, mode) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # the bytes must lie on the disk before the name points at them


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # Windows and some network drives can't; the file itself is whole all the same
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _temporaries(path: Path) -> Iterable[Path]:
    return path.parent.glob(f".{glob.escape(path.name)}.*.tmp")


def sweep_strays(strays: Iterable[Path], older_than: float = 0) -> None:
    """Delete the temporary files that killed processes left, if they are older than some seconds."""
    for stray in strays:
        with suppress(OSError):
            if time.time() - stray.stat().st_mtime >= older_than:
                stray.unlink()


def _explain(error: OSError, path: Path, size: int) -> StorageError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(path.parent).free
        return StorageError(f"{path} was not saved: it needs {size / 1e6:.1f} MB and {free / 1e6:.1f} MB are free.")
    return StorageError(f"{path} was not saved: {error.strerror}.")


def set_aside(path: Path) -> Path | None:
    """Rename a damaged file, so that it is kept but not read again; return its new name, None if it must stay."""
    aside = path.with_name(f"{path.name}.{secrets.token_hex(2)}.damaged")
    try:
        return path.rename(aside)
    except OSError:
        return None


def writable(folder: Path) -> bool:
    """Return whether files can be made in this folder, or in the nearest one above it that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK)


@contextmanager
def lock(path: Path):
    """Lock a file, for one process at a time; the system frees the lock when its holder ends, however it ends.

    What a killed holder left half-written is swept. Raises a StorageError where the folder can't be written.
    """
    path = file_path(path)
    file_lock = FileLock(f"{path}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        acquired = _acquire(file_lock, path)
    except OSError as error:
        raise StorageError(
            f"{path.parent} can't be written: {error.strerror}. Set KD_LAB_CACHE to a folder of yours that can."
        ) from error
    with acquired:
        sweep_strays(_temporaries(path))
        yield


def _acquire(file_lock: FileLock, path: Path) -> AbstractContextManager:
    try:
        return file_lock.acquire(timeout=1)
    except Timeout:
        print(f"Another process is making {path.name}; waiting for it.")
        return file_lock.acquire()


def read_file(path: Path, most: int = -1) -> bytes:
    """Return the bytes of a file, `most` of them at most; raise a StorageError that says why it can't be read."""
    with _opened(path) as file:
        return file.read(most)


@contextmanager
def _opened(path: Path):
    try:
        with open(file_path(path), "rb") as file:
            yield file
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or reason(error)
        raise StorageError(f"{path} can't be read: {said.removesuffix('.')}.") from error


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict) -> None:
    """Save named tensors as safetensors with JSON metadata, a schema version and a SHA-256 of the whole file.

    NaN and infinite values are refused with a StorageError, since no kept model should hold them.
    """
    _refuse_non_finite(path, tensors)
    write_safely(path, serialise(tensors, metadata))


def serialise(tensors: dict[str, Tensor], metadata: dict) -> bytes:
    """Return the bytes of the file that `save_tensors` writes."""
    header = {"schema": str(SCHEMA), "sha256": NO_DIGEST, "metadata": json.dumps(metadata)}
    content = safetensors.torch.save(contiguous(tensors), header)
    digest = hashlib.sha256(content).hexdigest()
    return content.replace(NO_DIGEST.encode(), digest.encode(), 1)


def contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors as safetensors takes them: on the CPU, row by row, and each of tied ones a copy."""
    return {name: each.detach().cpu().clone(memory_format=torch.contiguous_format) for name, each in tensors.items()}


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Load what `save_tensors` saved: the tensors (on the CPU) and the metadata.

    Raises a DamagedFileError if one bit differs from what was saved, and a StorageError for a pickle, a newer
    schema, or NaN weights. Nothing in the file is ever executed.
    """
    with _opened(path) as file:  # once: another process may replace it meanwhile
        header = _read_header(file, path)
        file.seek(0)
        content = file.read()
    _check_digest(content, header["sha256"], path)  # first, since its rule is the same in every schema
    _check_schema(header, path)
    try:
        tensors, metadata = safetensors.torch.load(content), json.loads(header["metadata"])
    except (SafetensorError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise StorageError(f"{path} was not saved by kd_lab: its tensors or metadata can't be read.") from error
    if not isinstance(metadata, dict):
        raise StorageError(f"{path} was not saved by kd_lab: its metadata is {metadata!r:.40}, no dict.")
    _refuse_non_finite(path, tensors)
    return tensors, metadata


def check_tensor_shapes(path: Path, what: str, expected: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
    """Raise a StorageError that names up to five tensors of the file that are not as `what` has them."""

    def shape(state: dict[str, Tensor], key: str) -> str:
        return str(tuple(state[key].shape)) if key in state else "absent"

    differing = [
        f"{key} ({shape(expected, key)} expected, {shape(tensors, key)} in the file)"
        for key in {**expected, **tensors}
        if shape(expected, key) != shape(tensors, key)
    ]
    if differing:
        raise StorageError(
            f"{path} does not hold {what}: {len(differing)} tensors differ, first {'; '.join(differing[:5])}."
        )


def _read_header(file, path: Path) -> dict:
    """Return the text entries of the header, having looked at its length before taking memory for it."""
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > MAX_HEADER_BYTES:
        if start.startswith((b"PK\x03\x04", b"\x80")):
            raise StorageError(f"{path} is a pickle, as torch.save makes; kd_lab opens none, since it can run code.")
        raise DamagedFileError(f"{path} is damaged, or no safetensors file: its header claims {length} bytes.")
    try:
        header = json.loads(file.read(length))["__metadata__"]
        return {name: header[name] for name in ("schema", "sha256", "metadata")}
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise DamagedFileError(f"{path} is damaged, or was not saved by kd_lab: its header can't be read.") from error


def _check_schema(header: dict, path: Path) -> None:
    if header["schema"] not in READABLE:
        raise StorageError(
            f"{path} has schema {header['schema']!r}; this kd_lab reads schema {SCHEMA} and before. Update kd_lab."
        )


def _check_digest(content: bytes, digest: str, path: Path) -> None:
    blank = content.replace(str(digest).encode(errors="replace"), NO_DIGEST.encode(), 1)
    if hashlib.sha256(blank).hexdigest() != digest:
        raise DamagedFileError(f"{path} is damaged: its SHA-256 is not the one it was saved with.")


def _refuse_non_finite(path: Path, tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise StorageError(f"{path}: the tensor {name!r} holds NaN or infinite values.")
