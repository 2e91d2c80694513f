"""Keep a quantized network in the few bytes that its bits take, in a file that reads back to the same predictions."""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from kd_lab.errors import ParameterError, StorageError, check_kind, check_whole_number, reason
from kd_lab.parametrizations import make_permanent, parametrization, weighted_layers
from kd_lab.quantization.activations import set_input_quantizer
from kd_lab.quantization.affine import BITS, dequantize
from kd_lab.quantization.weights import FakeQuantizer, Quantizer
from kd_lab.storage import check_shapes, load_tensors, save_tensors, serialise

TABLES = ("scale", "zero_point", "codebook")


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


def save_quantized(path: Path, model: nn.Module) -> None:
    """Save a network whose weights are quantized: packed codes and the tables that decode them, all else as it is.

    Raises a ParameterError where no weight is quantized, or where more than a mask changes one after its quantizer.
    """
    save_tensors(Path(path), *_pack(model))


def packed_bytes(model: nn.Module) -> int:
    """Return the bytes of the file that `save_quantized` makes, all included, without making it."""
    return len(serialise(*_pack(model)))


def load_quantized(path: Path, model: nn.Module) -> nn.Module:
    """Return a new model in evaluation mode that predicts, to the bit, as the one that `save_quantized` saved.

    `model` is a network of the same layers, whose values don't matter: build_model("lenet300"), or one with BatchNorm
    folded, or hard-pruned. Weights come back as plain numbers. A StorageError says what does not fit.
    """
    weighted_layers(model)
    loaded = make_permanent(model)
    tensors, metadata = load_tensors(Path(path))
    if "quantized" not in metadata:
        raise StorageError(
            f"{path} was not saved by save_quantized(). Is it a checkpoint, or a pruned network? "
            "load_checkpoint() of kd_lab.checkpoints or load_pruned() of kd_lab.pruning reads those."
        )
    try:
        _unpack(tensors, metadata["quantized"])
    except (ParameterError, LookupError, TypeError, RuntimeError) as error:
        raise StorageError(f"{path} holds no quantized network that fits together. {reason(error)}") from error
    for name, layer in weighted_layers(loaded).items():
        num_bits = metadata["inputs"].get(name)
        set_input_quantizer(layer, num_bits and FakeQuantizer(torch.ones(1), torch.zeros(1).int(), num_bits))
    check_shapes(path, "a quantized version of this network", loaded.state_dict(), tensors)
    loaded.load_state_dict(tensors)
    return loaded.eval()


def _pack(model: nn.Module) -> tuple[dict[str, Tensor], dict]:
    """Return the tensors and the metadata of the file."""
    layers = weighted_layers(model)
    tensors, quantized = make_permanent(model).state_dict(), {}
    for name, layer in layers.items():
        if quantizer := parametrization(layer, Quantizer):
            prefix, weight = _prefix(name), layer.weight.detach()
            codes, tables = _encode(name, quantizer, weight)
            num_bits = max(1, int(codes.max()).bit_length())
            del tensors[f"{prefix}weight"]
            tensors |= {f"{prefix}codes": pack_bits(codes, num_bits), **{prefix + key: tables[key] for key in tables}}
            quantized[name] = [num_bits, [*weight.shape]]
    if not quantized:
        raise ParameterError(
            "'model' must have quantized weights, as quantize_weights() and share_weights() give. Got one without."
        )
    inputs = {
        name: layer.input_quantizer.num_bits
        for name, layer in layers.items()
        if getattr(layer, "input_quantizer", None)
    }
    return tensors, {"quantized": quantized, "inputs": inputs}


def _unpack(tensors: dict[str, Tensor], quantized: dict[str, list]) -> None:
    """Put weights in the place of codes and tables."""
    for name, (num_bits, shape) in quantized.items():
        codes, *tables = (tensors.pop(_prefix(name) + part, None) for part in ("codes", *TABLES))
        tensors[f"{_prefix(name)}weight"] = _decode(unpack_bits(codes, num_bits, shape), *tables)


def _encode(name: str, quantizer: Quantizer, weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    codes, tables = quantizer.encode(weight)
    if not torch.equal(_decode(codes, *map(tables.get, TABLES)), weight):
        raise ParameterError(
            f"the weight of layer {name!r} must be what its {type(quantizer).__name__} "
            "gives, or 0 by a mask. Got one that is changed afterwards."
        )
    if "codebook" not in tables and len(tables["zero_point"].unique()) == 1:  # as for every symmetric grid
        tables["zero_point"] = tables["zero_point"].flatten()[:1]
    return codes, tables


def _decode(codes: Tensor, scale: Tensor | None, zero_point: Tensor | None, codebook: Tensor | None) -> Tensor:
    return dequantize(codes, scale, zero_point) if codebook is None else codebook[codes]


def _prefix(name: str) -> str:
    return name and f"{name}."  # a model that is one layer has a nameless one
