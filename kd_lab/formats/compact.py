"""Write a network in the fewest bytes (schema 4 of .kdz): what it is and all its tensors, in one range-coded stream.

KDZ.md describes it to the last bit.
"""

import torch
from torch import Tensor, nn

from kd_lab.errors import ParameterError
from kd_lab.formats.coding import ShortRangeReader, ShortRangeWriter
from kd_lab.formats.grid_codes import TensorCoder
from kd_lab.formats.outlines import NOTHING, Outline, as_unpacked, build_outline, code_outline, outline_of
from kd_lab.networks.layers import tied_names

COUNTED = "num_batches_tracked"  # of a BatchNorm: no prediction and no training of the kit reads it


def write_compact(plain: nn.Module, outline: Outline) -> bytes:
    """Return the stream of an ordinary network; raise a ParameterError unless all its numbers are finite."""
    writer = ShortRangeWriter()
    code_outline(writer, outline)
    tensors, coder = as_unpacked(plain).state_dict(), TensorCoder(writer)
    for key in _stored(build_outline(outline)):  # a parametrization changes the order
        if not torch.isfinite(tensors[key]).all():
            raise ParameterError(f"{key!r} of 'model' must be finite. Got NaN or infinite values.")
        coder.write(tensors[key])
    return writer.content()


def read_compact(coded: bytes) -> nn.Module:
    """Return the network of a stream; raise a ValueError or a ParameterError for what `write_compact` doesn't write."""
    reader = ShortRangeReader(coded)
    outline = read_outline(reader)
    model = build_outline(outline)
    if outline_of(model) != outline:
        raise ValueError("what it says of the network is not what pack() writes.")
    coder = TensorCoder(reader)
    tensors = {key: coder.read(like) for key, like in _stored(model).items()}
    if not reader.is_at_end():
        raise ValueError("there are bytes left over, or some are missing.")
    again = {name: tensors[first] for name, first in tied_names(model).items()}
    model.load_state_dict({**model.state_dict(), **tensors, **again})
    return model


def read_outline(reader: ShortRangeReader) -> Outline:
    """Return what a stream says of its network, with which it begins; raise a ValueError for another spelling of it."""
    outline, writer = code_outline(reader, NOTHING), ShortRangeWriter()
    code_outline(writer, outline)
    if writer.content() != reader.so_far():
        raise ValueError("what it says of the network is not written as pack() writes it.")
    return outline


def _stored(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that a file has of a network, each once."""
    tied = tied_names(model)
    return {
        name: tensor for name, tensor in model.state_dict().items() if name not in tied and not name.endswith(COUNTED)
    }
