"""Whole numbers of few bits side by side, without gaps."""

import math

import numpy as np
import torch
from torch import Tensor

from kd_lab.errors import ParameterError, check_kind, check_whole_number
from kd_lab.quantization.grids import BITS


def pack_bits(codes: Tensor, num_bits: int) -> Tensor:
    """Return whole numbers from 0 to 2^num_bits - 1 side by side without gaps, as a row of bytes (uint8).

    Each begins with its highest bit; zeros fill the last byte. `num_bits` is from 1 to 16.
    """
    check_whole_number("num_bits", num_bits, BITS)
    check_kind("codes", codes, Tensor, "a tensor of whole numbers")
    if codes.is_floating_point() or not ((codes >= 0) & (codes.long() < 2**num_bits)).all():
        raise ParameterError(
            f"'codes' must be whole numbers from 0 to {2**num_bits - 1}, which is what "
            f"{num_bits} bits hold. Got {codes!r:.80}."
        )
    bits = codes.int().reshape(-1, 1).numpy() >> np.arange(num_bits)[::-1] & 1  # (codes, num_bits)
    return torch.from_numpy(np.packbits(bits.astype(bool)))


def unpack_bits(packed: Tensor, num_bits: int, shape: tuple[int, ...]) -> Tensor:
    """Return the whole numbers (int32) of this shape that `pack_bits` packed."""
    check_whole_number("num_bits", num_bits, BITS)
    check_kind("shape", shape, (tuple, list), "a tuple of whole numbers")
    for size in shape:
        check_whole_number("shape", size, "[0, 1e12]")
    count = math.prod(shape)
    size = -(-count * num_bits // 8)
    if not isinstance(packed, Tensor) or packed.dtype != torch.uint8 or packed.shape != (size,):
        raise ParameterError(
            f"'packed' must be {size} bytes (uint8), which is what {count} codes of "
            f"{num_bits} bits take. Got {packed!r:.80}."
        )
    bits = np.unpackbits(packed.numpy(), count=count * num_bits).reshape(count, num_bits)
    return torch.from_numpy(bits @ (1 << np.arange(num_bits, dtype=np.int32)[::-1])).view(*shape)
