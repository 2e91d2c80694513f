"""Save a whole network in as few bytes as possible (.kdz); it reads back to the same predictions.

The file is b"kdz", the schema as a digit, the first 16 bytes of the SHA-256 of all that follows, a line of text that
says what the network is and how it is coded, and the coded tensors in the order in which the network has them: for each
a table of its values and a matrix of codes. So pruned weights, shared ones, few bits and biases all are a table and
codes. In schema 4, where a network of a few hundred weights is meant, the digest has 4 bytes, and what the network is
takes a few, too. KDZ.md describes both to the last bit.
"""

import hashlib
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kd_lab.errors import DamagedFileError, ParameterError, StorageError, check_choice, check_kind, check_that, reason
from kd_lab.formats.coding import HuffmanReader, HuffmanWriter, RangeReader, RangeWriter, ShortRangeReader
from kd_lab.formats.compact import read_compact, read_outline, write_compact
from kd_lab.formats.outlines import Outline, outline_of
from kd_lab.formats.tensors import read_tensor, write_tensor
from kd_lab.networks.layers import weighted_layers, weights
from kd_lab.networks.permanent import make_permanent
from kd_lab.networks.predictions import example_images, predict
from kd_lab.networks.sequences import SEQUENCE
from kd_lab.networks.zoo import build_architecture, old_names
from kd_lab.pruning.channels import Form, build_form, form_of
from kd_lab.storage import file_path, read_file, write_safely

MAGIC, SCHEMA = b"kdz", b"3"
OLD_SCHEMA = b"2"  # of version 0.1, whose layers were named by their places
COMPACT_SCHEMA = b"4"
DIGEST_BYTES = 16  # bytes of the SHA-256
COMPACT_DIGEST_BYTES = 4  # a file that is damaged by chance is taken for a whole one once in four billion times
SCHEMA_END = len(MAGIC + SCHEMA)
MAX_FILE_BYTES = 40_000_000  # those of the kit's largest network as it is, a student of 10,000 units, are 32 millions
MAX_LINE_BYTES = 500  # of the line of text; ours have less than a hundred
LINE = re.compile(r"(\S+) (\S+)((?: [\w.]+=\d+)*)((?: [-+][\w.]+)*)")
CODERS: dict[str, tuple[Any, Any]] = {"range": (RangeWriter, RangeReader), "huffman": (HuffmanWriter, HuffmanReader)}
COMPACT = "compact"
COMPARED_IMAGES = 8  # that a network and what its file holds both read
FLOAT32_BYTES = 4
MAX_NUMBER_BYTES, MAX_TABLE_BYTES = 8, 2_000  # in a file, of a weight and of what a tensor's coding begins with


def save_packed(path: Path, model: nn.Module, coder: str = "range") -> None:
    """Save a network, pruned, quantized, shared or not, in as few bytes as `pack` finds for it."""
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

    `coder` is "range" or "huffman" for a network of the kit, or "compact", which takes fewer bytes for a small one
    whose values lie on grids of 8 bits or fewer. "compact" and "range" also pack any nn.Sequential of Conv2d (with
    groups or without), Linear, BatchNorm2d, ReLU, Flatten, MaxPool2d, AvgPool2d and AdaptiveAvgPool2d(1) that reads
    images (1, 28, 28). There a layer that comes several times is kept once; Identity and Dropout, which compute nothing
    when it predicts, are left out, and what is inside another Sequential comes in its place; how many batches a
    BatchNorm has seen isn't kept. Raises a ParameterError for any other model, naming what can't be kept, and for
    weights of NaN.
    """
    check_choice("coder", coder, [*CODERS, COMPACT])
    weights(model)  # says so where it is no network, or torch.nn.utils.prune masked it
    plain = make_permanent(model).cpu()
    outline = packable(plain)
    if coder == COMPACT or not isinstance(outline, Form):
        check_that("coder", coder, coder != "huffman", 'one that packs any sequence, "range" or "compact"')
        return _pack_compact(plain, outline)
    return _pack_form(plain, outline, coder)


def packable(plain: nn.Module) -> Outline:
    """Return what a file says of an ordinary network; raise a ParameterError for one that no file holds."""
    try:
        return outline_of(plain)
    except ParameterError as error:
        raise ParameterError(f"{reason(error)} save_network() saves any network.") from error


def _pack_form(plain: nn.Module, form: Form, coder: str) -> bytes:
    tensors, writer = plain.state_dict(), CODERS[coder][0]()
    for key in build_form(form).state_dict():  # a parametrization changes the order
        if not torch.isfinite(tensors[key]).all():
            raise ParameterError(f"{key!r} of 'model' must be finite. Got NaN or infinite values.")
        write_tensor(writer, tensors[key])
    body = _describe(form, coder) + writer.content()
    return MAGIC + SCHEMA + _digest(body, DIGEST_BYTES) + body


def _pack_compact(plain: nn.Module, outline: Outline) -> bytes:
    """Return a file of schema 4, once what it holds has given the network's answers digit for digit."""
    body = write_compact(plain, outline)
    content = MAGIC + COMPACT_SCHEMA + _digest(body, COMPACT_DIGEST_BYTES) + body
    images = example_images(count=COMPARED_IMAGES)
    expected = predict(plain.to(memory_format=torch.channels_last), images)
    if not torch.allclose(predict(unpack(content), images), expected, rtol=0, atol=0, equal_nan=True):
        raise ParameterError("'model' must give the answers of its layers. What the file would hold gives others.")
    return content


@torch.inference_mode(False)  # whose tensors could never be trained
def unpack(content: bytes, where: str = "unpack()") -> nn.Module:
    """Return the network in the bytes of a file; `where` names it in errors."""
    check_packed(content, where)
    try:
        compact = _schema(content) == COMPACT_SCHEMA
        return (read_compact(content[_body_start(content) :]) if compact else _unpack_form(content)).eval()
    except (ParameterError, ValueError, LookupError, AssertionError) as error:
        raise StorageError(f"{where} holds no network of the kit: {reason(error)}") from error


def _unpack_form(content: bytes) -> nn.Module:
    form, coder, coded = _parse(content)
    model = build_form(form)
    tensors = model.state_dict()
    if _schema(content) == SCHEMA and not content[_body_start(content) :].startswith(_describe(form_of(model), coder)):
        raise ValueError("the line that describes it is not the one that pack() writes.")
    if len(coded) > sum(MAX_NUMBER_BYTES * each.numel() + MAX_TABLE_BYTES for each in tensors.values()):
        raise ValueError("there are bytes left over.")  # seen before they take memory
    reader = CODERS[coder][1](coded)
    tensors = {key: read_tensor(reader, tensors[key]) for key in _order(content, tensors, form)}
    if not reader.is_at_end():
        raise ValueError("there are bytes left over, or some are missing.")
    model.load_state_dict(tensors)
    return model


def architecture_in(content: bytes, where: str = "architecture_in()") -> str:
    """Return the architecture of the network that the bytes of a file hold; raise as `unpack` does.

    It is "sequence" for a network that is none of the kit.
    """
    check_packed(content, where)
    try:
        if _schema(content) != COMPACT_SCHEMA:
            return _parse(content)[0].architecture
        outline = read_outline(ShortRangeReader(content[_body_start(content) :]))
        return outline.architecture if isinstance(outline, Form) else SEQUENCE
    except (ParameterError, ValueError, LookupError, AssertionError) as error:
        raise StorageError(f"{where} holds no network of the kit: {reason(error)}") from error


def _parse(content: bytes) -> tuple[Form, str, bytes]:
    """Return the form of a file's network, its coder and the coded tensors."""
    line, _, coded = content[_body_start(content) :].partition(b"\n")
    match = LINE.fullmatch(line.decode("latin")) if len(line) <= MAX_LINE_BYTES else None
    if not match:
        raise ValueError(f"the line that describes it is {line[:40]!r}.")
    check_choice("coder", match[2], list(CODERS))
    return _form(content, match[1], match[3].split(), match[4].split()), match[2], coded


def check_packed(content: bytes, where: str) -> None:
    """Refuse what is no file of ours, is damaged, or is of another schema; what it holds is not looked at."""
    check_kind(
        "content", content, (bytes, bytearray), "the bytes of a file, as pack() gives; load_packed() takes a path"
    )
    if not content.startswith(MAGIC) or len(content) > MAX_FILE_BYTES:
        raise StorageError(
            f"{where} is no .kdz file: it does not begin with {MAGIC.decode()!r}, or has more than "
            f"{MAX_FILE_BYTES:,} bytes."
        )
    start = _body_start(content)
    if _digest(content[start:], start - SCHEMA_END) != content[SCHEMA_END:start]:
        raise DamagedFileError(f"{where} is damaged: its SHA-256 is not the one it was saved with.")
    schema = _schema(content)
    if schema not in (OLD_SCHEMA, SCHEMA, COMPACT_SCHEMA):
        raise StorageError(
            f"{where} has schema {schema.decode('latin')!r}; this kd_lab reads schemas 2 to 4. Update kd_lab, or pack "
            "the network again."
        )


def _digest(body: bytes, count: int) -> bytes:
    return hashlib.sha256(body).digest()[:count]


def _schema(content: bytes) -> bytes:
    return content[len(MAGIC) : SCHEMA_END]


def _body_start(content: bytes) -> int:
    return SCHEMA_END + (COMPACT_DIGEST_BYTES if _schema(content) == COMPACT_SCHEMA else DIGEST_BYTES)


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
