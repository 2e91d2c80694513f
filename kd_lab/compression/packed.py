"""Keep a whole network in a file of few bytes (.kdz) that reads back to the same predictions.

The file is b"kdz", the schema as a digit, the first 16 bytes of the SHA-256 of all that follows, a line of text that
says what the network is and how it is coded, and the coded tensors in the order of their names: for each a table of
its values and a matrix of codes. So pruned weights, shared ones, few bits and biases all are a table and codes.
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from kd_lab.compression.huffman import HuffmanReader, HuffmanWriter
from kd_lab.compression.range_coder import RangeReader, RangeWriter
from kd_lab.errors import DamagedFileError, ParameterError, StorageError, check_choice, check_kind, reason
from kd_lab.models import MODELS
from kd_lab.parametrizations import make_permanent, weighted_layers
from kd_lab.pruning import Form, build_form, form_of
from kd_lab.storage import write_safely

MAGIC, SCHEMA = b"kdz", b"2"
DIGEST = 16  # bytes of the SHA-256
BODY = len(MAGIC + SCHEMA) + DIGEST
LARGEST = 8_000_000  # bytes of a file; those of the kit's networks as they are have at most two millions
LINE = 500  # bytes of the line of text; ours have less than a hundred
CODERS = {"range": (RangeWriter, RangeReader), "huffman": (HuffmanWriter, HuffmanReader)}
FLOAT32 = 4  # bytes of a number as it is
TABLE = 256  # values; of more, each weight has its own


def save_packed(path: Path, model: nn.Module, name: str, coder: str = "range") -> None:
    """Save a network of the kit, pruned, quantized, shared or not, in as few bytes as `pack` finds for it."""
    check_kind("path", path, (str, Path), "the path of a file")
    write_safely(Path(path), pack(model, name, coder))


def load_packed(path: Path) -> nn.Module:
    """Return a new network in evaluation mode that predicts as the one that `save_packed` saved.

    Digit for digit, where that had the memory layout of the kit's networks (channels_last for convolutions).

    Raises a DamagedFileError if one bit differs from what was saved, and a StorageError for a newer schema. Nothing in
    the file is ever executed, and no more memory is taken than the network of that name needs.
    """
    return unpack(read_packed(path), str(path))


def read_packed(path: Path) -> bytes:
    """Return the bytes of a file, and no more than one byte above what a file of ours may have."""
    try:
        with open(Path(path), "rb") as file:
            return file.read(LARGEST + 1)
    except (OSError, ValueError, TypeError) as error:
        raise StorageError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}.") from error


def network_of(content: bytes, where: str = "network_of()") -> str:
    """Return the name of the network that the bytes of a file hold; raise as `unpack` does."""
    _check(content, where)
    name = content[BODY:].partition(b" ")[0].decode("latin")
    if name not in MODELS:
        raise StorageError(f"{where} holds no network of the kit: its name is {name!r:.80}.")
    return name


def pack(model: nn.Module, name: str, coder: str = "range") -> bytes:
    """Return the bytes of the file that `save_packed` makes.

    `name` is that of the network before channels or layers were removed; `coder` is "range" or "huffman". Raises a
    ParameterError for a model that is no version of that network, and for weights of NaN.
    """
    check_choice("coder", coder, list(CODERS))
    weighted_layers(model)  # says so where it is no network, or torch.nn.utils.prune masked it
    plain = make_permanent(model).cpu()
    form = form_of(plain, name)
    writer = CODERS[coder][0]()
    for key, tensor in sorted(plain.state_dict().items()):  # a parametrization changes their order
        if not torch.isfinite(tensor).all():
            raise ParameterError(f"{key!r} of 'model' must be finite. Got NaN or infinite values.")
        _write(writer, tensor)
    body = _describe(name, coder, form) + writer.content()
    return MAGIC + SCHEMA + hashlib.sha256(body).digest()[:DIGEST] + body


def unpack(content: bytes, where: str = "unpack()") -> nn.Module:
    """Return the network in the bytes of a file; `where` names it in errors."""
    _check(content, where)
    line = content[BODY : BODY + LINE].partition(b"\n")[0]
    try:
        name, coder, form = _understand(line.decode())
        model = build_form(name, form)
        reader = CODERS[coder][1](content[BODY + len(line) + 1 :])
        model.load_state_dict({key: _read(reader, tensor) for key, tensor in sorted(model.state_dict().items())})
        if pack(model, name, coder) != content:
            raise ValueError("Packing it again gives another file.")
    except (ParameterError, ValueError, LookupError, AssertionError) as error:
        raise StorageError(f"{where} holds no network of the kit: {reason(error)}") from error
    return model.eval()


def _check(content: bytes, where: str) -> None:
    """Refuse what is no file of ours, is damaged, or is of another schema; the digest's rule is the same in all."""
    if not content.startswith(MAGIC) or len(content) > LARGEST:
        raise StorageError(
            f"{where} is no .kdz file: it does not begin with {MAGIC.decode()!r}, or has more than {LARGEST:,} bytes."
        )
    if len(content) < BODY or hashlib.sha256(content[BODY:]).digest()[:DIGEST] != content[BODY - DIGEST : BODY]:
        raise DamagedFileError(f"{where} is damaged: its SHA-256 is not the one it was saved with.")
    schema = content[len(MAGIC) : BODY - DIGEST].decode("latin")
    if schema != SCHEMA.decode():
        raise StorageError(
            f"{where} has schema {schema!r}; this kd_lab reads schema {SCHEMA.decode()!r}. "
            "Update kd_lab, or pack the network again."
        )


def _describe(name: str, coder: str, form: Form) -> bytes:
    """Return the line that says what the network is: "lenet300 range 1=120 -4", say, where nothing else is left."""
    whole = form_of(build_form(name, Form([], {})), name).widths
    widths = [f"{group}={width}" for group, width in form.widths.items() if width != whole.get(group)]
    return " ".join([name, coder, *widths, *(f"-{layer}" for layer in form.removed)]).encode() + b"\n"


def _understand(line: str) -> tuple[str, str, Form]:
    name, coder, *rest = line.split(" ")
    check_choice("coder", coder, list(CODERS))
    removed = [part[1:] for part in rest if part.startswith("-")]
    widths = dict(part.split("=") for part in rest if not part.startswith("-"))
    return name, coder, Form(removed, {group: int(width) for group, width in widths.items()})


def _write(writer: RangeWriter | HuffmanWriter, tensor: Tensor) -> None:
    """Write the table of a tensor's values other than 0, and the codes; or, without a table, each value as it is."""
    values = np.ascontiguousarray(tensor.detach().numpy()).reshape(_matrix(tensor))
    table = np.unique(values[values != 0])
    shared = len(table) <= TABLE
    codes = np.where(values == 0, 0, 1 + np.searchsorted(table, values)) if shared else (values != 0).astype(int)
    writer.uniform(np.array([len(table) if shared else TABLE + 1]), TABLE + 2)
    writer.matrix(codes, 1 + len(table) if shared else 2)
    kept = table if shared else values[values != 0]
    with np.errstate(over="ignore"):  # what is too large for half precision becomes infinite, so it differs
        halved = kept.dtype == np.float32 and np.array_equal(kept, kept.astype(np.float16).astype(np.float32))
    writer.uniform(np.array([int(halved)]), 2)
    writer.uniform(np.frombuffer(kept.astype(np.float16 if halved else kept.dtype).tobytes(), np.uint8), 256)


def _read(reader: RangeReader | HuffmanReader, like: Tensor) -> Tensor:
    """Return a tensor of the shape and the dtype of this one."""
    (count,) = reader.uniform(1, TABLE + 2)
    shared = count <= TABLE
    codes = reader.matrix(_matrix(like), 1 + count if shared else 2)
    count = count if shared else (codes > 0).sum()
    (halved,) = reader.uniform(1, 2)
    dtype = np.dtype(np.float16 if halved else like.numpy().dtype)
    kept = reader.uniform(count * dtype.itemsize, 256).astype(np.uint8).view(dtype)
    with np.errstate(invalid="ignore"):  # a count that is said to be NaN becomes another, and so is found out
        kept = kept.astype(like.numpy().dtype)
    values = np.zeros(codes.shape, kept.dtype)
    values[codes > 0] = kept[codes[codes > 0] - 1] if shared else kept
    return torch.from_numpy(values).view(like.shape)


def _matrix(tensor: Tensor) -> tuple[int, int]:
    """Return how a tensor is laid out as rows and columns: a row for each output, or each bias."""
    rows = len(tensor) if tensor.dim() else 1
    return rows, tensor.numel() // rows
