"""Save a whole network in as few bytes as possible (.kdz); it reads back to the same predictions.

The file is b"kdz", the schema as a digit, the first 16 bytes of the SHA-256 of all that follows, a line of text that
says what the network is and how it is coded, and the coded tensors in the order in which the network has them: for each
a table of its values and a matrix of codes. So pruned weights, shared ones, few bits and biases all are a table and
codes.
"""

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kd_lab.errors import DamagedFileError, ParameterError, StorageError, check_choice, check_kind, reason
from kd_lab.formats.coding import HuffmanReader, HuffmanWriter, RangeReader, RangeWriter
from kd_lab.networks.layers import weighted_layers, weights
from kd_lab.networks.permanent import make_permanent
from kd_lab.networks.zoo import build_architecture, old_names
from kd_lab.pruning.channels import Form, build_form, form_of
from kd_lab.storage import file_path, read_file, write_safely

MAGIC, SCHEMA = b"kdz", b"3"
OLD_SCHEMA = b"2"  # of version 0.1, whose layers were named by their places
DIGEST_BYTES = 16  # bytes of the SHA-256
BODY_START = len(MAGIC + SCHEMA) + DIGEST_BYTES
MAX_FILE_BYTES = 40_000_000  # those of the kit's largest network as it is, a student of 10,000 units, are 32 millions
MAX_LINE_BYTES = 500  # of the line of text; ours have less than a hundred
LINE = re.compile(r"(\S+) (\S+)((?: [\w.]+=\d+)*)((?: [-+][\w.]+)*)")
CODERS: dict[str, tuple[Any, Any]] = {"range": (RangeWriter, RangeReader), "huffman": (HuffmanWriter, HuffmanReader)}
FLOAT32_BYTES = 4
MAX_TABLE = 256  # values; of more, each weight has its own
MAX_NUMBER_BYTES, MAX_TABLE_BYTES = 8, 2_000  # in a file, of a weight and of what a tensor's coding begins with


def save_packed(path: Path, model: nn.Module, coder: str = "range") -> None:
    """Save a network of the kit, pruned, quantized, shared or not, in as few bytes as `pack` finds for it."""
    write_safely(file_path(path), pack(model, coder))


def load_packed(path: Path) -> nn.Module:
    """Return a new network in evaluation mode that predicts as the one that `save_packed` saved.

    Digit for digit, where that had the memory layout of the kit's networks (channels_last for convolutions).

    Raises a DamagedFileError if one bit differs from what was saved, and a StorageError for a newer schema. Nothing in
    the file is ever executed, and no more memory is taken than the network of that name needs.
    """
    return unpack(read_packed(path), str(path))


def read_packed(path: Path) -> bytes:
    """Return the bytes of a file, and no more than one byte above what a file of ours may have."""
    return read_file(path, MAX_FILE_BYTES + 1)


def pack(model: nn.Module, coder: str = "range") -> bytes:
    """Return the bytes of the file that `save_packed` makes.

    `coder` is "range" or "huffman". Raises a ParameterError for a model that is no version of a network of the kit, and
    for weights of NaN.
    """
    check_choice("coder", coder, list(CODERS))
    weights(model)  # says so where it is no network, or torch.nn.utils.prune masked it
    plain = make_permanent(model).cpu()
    try:
        form = form_of(plain)
    except ParameterError as error:
        raise ParameterError(f"{reason(error)} save_network() saves any network.") from error
    tensors, writer = plain.state_dict(), CODERS[coder][0]()
    for key in build_form(form).state_dict():  # a parametrization changes the order
        if not torch.isfinite(tensors[key]).all():
            raise ParameterError(f"{key!r} of 'model' must be finite. Got NaN or infinite values.")
        write_tensor(writer, tensors[key])
    body = _describe(form, coder) + writer.content()
    return MAGIC + SCHEMA + _digest(body) + body


@torch.inference_mode(False)  # whose tensors could never be trained
def unpack(content: bytes, where: str = "unpack()") -> nn.Module:
    """Return the network in the bytes of a file; `where` names it in errors."""
    form, coder, coded = _parse(content, where)
    try:
        model = build_form(form)
        tensors = model.state_dict()
        if _schema(content) == SCHEMA and not content[BODY_START:].startswith(_describe(form_of(model), coder)):
            raise ValueError("the line that describes it is not the one that pack() writes.")
        if len(coded) > sum(MAX_NUMBER_BYTES * each.numel() + MAX_TABLE_BYTES for each in tensors.values()):
            raise ValueError("there are bytes left over.")  # seen before they take memory
        reader = CODERS[coder][1](coded)
        tensors = {key: read_tensor(reader, tensors[key]) for key in _order(content, tensors, form)}
        if not reader.is_at_end():
            raise ValueError("there are bytes left over, or some are missing.")
        model.load_state_dict(tensors)
    except (ParameterError, ValueError, LookupError, AssertionError) as error:
        raise StorageError(f"{where} holds no network of the kit: {reason(error)}") from error
    return model.eval()


def architecture_in(content: bytes, where: str = "architecture_in()") -> str:
    """Return the architecture of the network that the bytes of a file hold; raise as `unpack` does."""
    return _parse(content, where)[0].architecture


def _parse(content: bytes, where: str) -> tuple[Form, str, bytes]:
    """Return the form of a file's network, its coder and the coded tensors."""
    _check(content, where)
    line, _, coded = content[BODY_START:].partition(b"\n")
    match = LINE.fullmatch(line.decode("latin")) if len(line) <= MAX_LINE_BYTES else None
    try:
        if not match:
            raise ParameterError(f"the line that describes it is {line[:40]!r}.")
        check_choice("coder", match[2], list(CODERS))
        return _form(content, match[1], match[3].split(), match[4].split()), match[2], coded
    except ParameterError as error:
        raise StorageError(f"{where} holds no network of the kit: {reason(error)}") from error


def _check(content: bytes, where: str) -> None:
    """Refuse what is no file of ours, is damaged, or is of another schema; the digest's rule is the same in all."""
    check_kind(
        "content", content, (bytes, bytearray), "the bytes of a file, as pack() gives; load_packed() takes a path"
    )
    if not content.startswith(MAGIC) or len(content) > MAX_FILE_BYTES:
        raise StorageError(
            f"{where} is no .kdz file: it does not begin with {MAGIC.decode()!r}, or has more than "
            f"{MAX_FILE_BYTES:,} bytes."
        )
    if _digest(content[BODY_START:]) != content[BODY_START - DIGEST_BYTES : BODY_START]:
        raise DamagedFileError(f"{where} is damaged: its SHA-256 is not the one it was saved with.")
    schema = _schema(content)
    if schema not in (OLD_SCHEMA, SCHEMA):
        raise StorageError(
            f"{where} has schema {schema.decode('latin')!r}; this kd_lab reads schemas 2 and 3. Update kd_lab, or pack "
            "the network again."
        )


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()[:DIGEST_BYTES]


def _schema(content: bytes) -> bytes:
    return content[len(MAGIC) : BODY_START - DIGEST_BYTES]


def _describe(form: Form, coder: str) -> bytes:
    """Return the line that says what the network is.

    "lenet5 range 0=6 1=12" has 6 channels left in its first layer and 12 in its second; "-block1" is gone, and "+conv1"
    has a bias that it had not.
    """
    places = list(weighted_layers(build_architecture(form.architecture)))
    widths = [f"{places.index(group)}={width}" for group, width in form.widths.items()]
    changes = [f"-{name}" for name in form.removed] + [f"+{name}" for name in form.biased]
    return f"{' '.join([form.architecture, coder, *widths, *changes])}\n".encode()


def _form(content: bytes, name: str, widths: list[str], changes: list[str]) -> Form:
    """Return the form that the parts of the line describe."""
    dense = build_architecture(name)
    old = old_names(dense) if _schema(content) == OLD_SCHEMA else {}
    names = old or {str(place): layer for place, layer in enumerate(weighted_layers(dense))}
    pairs = (width.split("=") for width in widths)
    removed, biased = ([old.get(each[1:], each[1:]) for each in changes if each[0] == sign] for sign in "-+")
    return Form(name, removed, {names.get(group, group): int(width) for group, width in pairs}, biased)


def _order(content: bytes, tensors: dict[str, Tensor], form: Form) -> list[str]:
    """Return the tensors' names in the order in which a file has them; a file of version 0.1 sorted the old names."""
    if _schema(content) == SCHEMA:
        return list(tensors)
    old = {new: name for name, new in old_names(build_architecture(form.architecture)).items()}
    parts = {key: key.rpartition(".") for key in tensors}
    return sorted(tensors, key=lambda key: f"{old[parts[key][0]]}.{parts[key][2]}")


def write_tensor(writer: RangeWriter | HuffmanWriter, tensor: Tensor) -> None:
    """Write the table of a tensor's values other than 0, and the codes; or, without a table, each value as it is."""
    values = np.ascontiguousarray(tensor.detach().numpy()).reshape(_matrix(tensor))
    table = np.unique(values[values != 0])
    shared = len(table) <= MAX_TABLE
    codes = np.where(values == 0, 0, 1 + np.searchsorted(table, values)) if shared else (values != 0).astype(int)
    writer.uniform(np.array([len(table) if shared else MAX_TABLE + 1]), MAX_TABLE + 2)
    writer.matrix(codes, 1 + len(table) if shared else 2)
    kept = table if shared else values[values != 0]
    with np.errstate(over="ignore"):  # what is too large for half precision becomes infinite, so it differs
        halved = kept.dtype == np.float32 and np.array_equal(kept, kept.astype(np.float16).astype(np.float32))
    writer.uniform(np.array([int(halved)]), 2)
    writer.uniform(np.frombuffer(kept.astype(np.float16 if halved else kept.dtype).tobytes(), np.uint8), 256)


def read_tensor(reader: RangeReader | HuffmanReader, like: Tensor) -> Tensor:
    """Return a tensor of the shape and the dtype of this one."""
    (count,) = reader.uniform(1, MAX_TABLE + 2)
    shared = count <= MAX_TABLE
    codes = reader.matrix(_matrix(like), 1 + count if shared else 2)
    count = count if shared else int((codes > 0).sum())
    (halved,) = reader.uniform(1, 2)
    dtype = np.dtype(np.float16 if halved else like.numpy().dtype)
    kept = reader.uniform(count * dtype.itemsize, 256).astype(np.uint8).view(dtype)
    if not np.isfinite(kept).all() or (halved and not like.is_floating_point()):
        raise ValueError("a value is NaN or infinite, or a fraction where whole numbers are.")
    values = np.zeros(codes.shape, like.numpy().dtype)
    values[codes > 0] = kept[codes[codes > 0] - 1] if shared else kept
    return torch.from_numpy(values).view(like.shape)


def _matrix(tensor: Tensor) -> tuple[int, int]:
    """Return how a tensor is laid out as rows and columns: a row for each output, or each bias."""
    rows = len(tensor) if tensor.dim() else 1
    return rows, tensor.numel() // rows
