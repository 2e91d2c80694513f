"""Code one tensor: a table of its values and a matrix of codes, or each value as it is."""

import numpy as np
import torch
from torch import Tensor

from kd_lab.formats.coding import HuffmanReader, HuffmanWriter, RangeReader, RangeWriter

MAX_TABLE = 256  # values; of more, each weight has its own


def write_tensor(writer: RangeWriter | HuffmanWriter, tensor: Tensor, most: int = MAX_TABLE) -> None:
    """Write the table of a tensor's values other than 0, and the codes; or, of more than `most`, each as it is."""
    values = as_matrix(tensor)
    table = np.unique(values[values != 0])
    shared = len(table) <= most
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
    codes = reader.matrix(as_matrix(like).shape, 1 + count if shared else 2)
    count = count if shared else int((codes > 0).sum())
    (halved,) = reader.uniform(1, 2)
    dtype = np.dtype(np.float16 if halved else like.numpy().dtype)
    kept = reader.uniform(count * dtype.itemsize, 256).astype(np.uint8).view(dtype)
    if not np.isfinite(kept).all() or (halved and not like.is_floating_point()):
        raise ValueError("a value is NaN or infinite, or a fraction where whole numbers are.")
    values = np.zeros(codes.shape, like.numpy().dtype)
    values[codes > 0] = kept[codes[codes > 0] - 1] if shared else kept
    return torch.from_numpy(values).view(like.shape)


def as_matrix(tensor: Tensor) -> np.ndarray:
    """Return a tensor's numbers as rows and columns: a row for each output, or each bias."""
    rows = len(tensor) if tensor.dim() else 1
    return np.ascontiguousarray(tensor.detach().numpy()).reshape(rows, tensor.numel() // rows)
