"""Save any network, dense, pruned or quantized, as safetensors; it reads back to the same predictions."""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from kd_lab.errors import ParameterError, StorageError, check_choice, check_kind, check_that, check_whole_number, reason
from kd_lab.networks.checks import check_model
from kd_lab.networks.copies import copied
from kd_lab.networks.layers import Weight, state_tensors, tied_names, weighted_layers, weights
from kd_lab.networks.permanent import make_permanent
from kd_lab.networks.zoo import build_architecture, old_names, with_new_names
from kd_lab.pruning.channels import build_form, form_of, form_of_tensors
from kd_lab.quantization.activations import set_input_quantizer
from kd_lab.quantization.grids import BITS_RANGE, dequantize
from kd_lab.quantization.weights import WEIGHT_BITS_RANGE, FakeQuantizer, Quantizer
from kd_lab.storage import check_tensor_shapes, file_path, load_tensors, save_tensors, serialise

TABLES = ("scale", "zero_point", "codebook")


def save_network(path: Path, model: nn.Module) -> None:
    """Save a network: quantized weights as packed codes and the tables that decode them, all else as it is.

    Masks are made permanent. Raises a ParameterError where more than a mask changes a weight after its quantizer.
    """
    save_tensors(file_path(path), *_encode(model))


def network_file_bytes(model: nn.Module) -> int:
    """Return the bytes of the file that `save_network` makes, all included, without making it."""
    return len(serialise(*_encode(model)))


@torch.inference_mode(False)  # whose tensors could never be trained
def load_network(path: Path, model: nn.Module | None = None) -> nn.Module:
    """Return a new network in evaluation mode that predicts as the one that `save_network` saved.

    That is to the bit, but for the order in which products are added up: `train` may lay out the weights of
    convolutions channels last, and here they are in the order of `model`.

    A network of the kit is built as the file says. For one of your own, `model` is a network of the same layers, whose
    values don't matter. Weights come back as plain numbers. A StorageError says what does not fit.
    """
    path = file_path(path)
    if model is not None:
        check_model(model)
    tensors, metadata = load_tensors(path)
    try:
        dense = _dense(metadata) if model is None else model
        metadata, tensors = _upgrade(metadata, tensors, dense)
        _decode(tensors, metadata.get("quantized", {}), weights(dense))
        loaded = _narrow(metadata, tensors) if model is None else make_permanent(model)
        _set_inputs(loaded, metadata.get("inputs", {}))
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise StorageError(f"{path} holds no network that fits together. {reason(error)}") from error
    of_the_kit = f"a {metadata['architecture']} that fits together"
    expected = of_the_kit if model is None else "a network of the layers of 'model'"
    tied = tied_names(loaded)
    tensors = {name: tensor for name, tensor in tensors.items() if not _repeats(name, tensors, tied)}
    check_tensor_shapes(path, expected, state_tensors(loaded), tensors)
    loaded.load_state_dict(tensors | {name: tensors[first] for name, first in tied.items()})
    return loaded.eval()


def _repeats(name: str, tensors: dict[str, Tensor], tied: dict[str, str]) -> bool:
    """Return whether a tensor is one that the network ties to another, and equal to that; older files have both."""
    return name in tied and torch.equal(tensors[name], tensors.get(tied[name], torch.empty(0)))


def _encode(model: nn.Module) -> tuple[dict[str, Tensor], dict]:
    """Return the tensors and the metadata of the file."""
    present, plain = weights(model), make_permanent(model)
    tensors, quantized = state_tensors(plain), {}
    for name, weight in present.items():
        if quantizer := weight.parametrization(Quantizer):
            codes, tables = _codes(name, quantizer, weight.value.detach())
            num_bits = max(1, int(codes.max()).bit_length())
            prefix = _prefix(name)
            del tensors[_key(name, weight)]
            tensors |= {f"{prefix}codes": pack_bits(codes, num_bits), **{prefix + key: tables[key] for key in tables}}
            quantized[name] = [num_bits, [*weight.value.shape]]
    grids = {name: getattr(layer, "input_quantizer", None) for name, layer in weighted_layers(model).items()}
    inputs = {name: grid.num_bits for name, grid in grids.items() if grid}
    return tensors, {**_description(plain), "quantized": quantized, "inputs": inputs}


def _description(plain: nn.Module) -> dict:
    """Return what a network of the kit is; nothing of another, or of one whose modules were changed by hand."""
    bare = copied(plain)
    for module in bare.modules():
        module._modules.pop("input_quantizer", None)  # which is no part of its form
    try:
        form = form_of(bare)
    except ParameterError:
        return {"architecture": None, "removed": []}
    return {"architecture": form.architecture, "removed": [*form.removed]}


def _dense(metadata: dict) -> nn.Module:
    """Return the network of the kit that a file says its own was made of."""
    architecture = metadata.get("architecture", metadata.get("model"))
    if architecture is None:
        raise ParameterError("It doesn't say what network it is: give a 'model' of the same layers.")
    return build_architecture(str(architecture))


def _narrow(metadata: dict, tensors: dict[str, Tensor]) -> nn.Module:
    return build_form(form_of_tensors(metadata["architecture"], metadata.get("removed", []), tensors))


def _set_inputs(model: nn.Module, inputs: dict[str, int]) -> None:
    """Round the inputs of these layers to grids of so many bits, whose values are yet to come, and of no others."""
    layers = weighted_layers(model)
    for name, num_bits in inputs.items():
        check_choice("layer with a quantized input", name, list(layers))
        check_whole_number(f"bits of the input of {name!r}", num_bits, WEIGHT_BITS_RANGE)
    for name, layer in layers.items():
        if name in inputs:
            set_input_quantizer(
                layer, FakeQuantizer(torch.ones(1, dtype=torch.float32), torch.zeros(1).int(), inputs[name])
            )
        elif hasattr(layer, "input_quantizer"):  # others get no hook: a network without is quicker
            set_input_quantizer(layer, None)


def _upgrade(metadata: dict, tensors: dict[str, Tensor], dense: nn.Module) -> tuple[dict, dict[str, Tensor]]:
    """Return metadata and tensors in the words of this version; those of version 0.1 named layers by their places."""
    if "architecture" in metadata:
        return metadata, tensors
    names = old_names(dense)
    removed = [names.get(name, name) for name in metadata.get("pruned", {}).get("removed", [])]
    upgraded: dict = {"architecture": metadata.get("model"), "removed": removed}
    for part in ("quantized", "inputs"):
        upgraded[part] = {names.get(name, name): value for name, value in metadata.get(part, {}).items()}
    return upgraded, with_new_names(tensors, dense)


def _decode(tensors: dict[str, Tensor], quantized: dict[str, list], present: dict[str, Weight]) -> None:
    """Put weights in the place of codes and tables."""
    for name, (num_bits, shape) in quantized.items():
        check_choice("quantized layer", name, list(present))
        codes, *tables = (tensors.pop(_prefix(name) + part, None) for part in ("codes", *TABLES))
        tensors[_key(name, present[name])] = _weight(unpack_bits(codes, num_bits, shape), *tables)


def _codes(name: str, quantizer: Quantizer, weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    codes, tables = quantizer.encode(weight)
    if not torch.equal(_weight(codes, *map(tables.get, TABLES)), weight):
        raise ParameterError(
            f"the weight of layer {name!r} must be what its {type(quantizer).__name__} gives, or 0 by a mask. Got one "
            "that is changed afterwards."
        )
    if "codebook" not in tables and len(tables["zero_point"].unique()) == 1:  # as for every symmetric grid
        tables["zero_point"] = tables["zero_point"].flatten()[:1]
    return codes, tables


def _weight(codes: Tensor, scale: Tensor | None, zero_point: Tensor | None, codebook: Tensor | None) -> Tensor:
    return dequantize(codes, scale, zero_point) if codebook is None else codebook[codes]


def _key(name: str, weight: Weight) -> str:
    """Return what the state dict calls a weight that `weights` calls by this name."""
    return f"{_prefix(name)}weight" if weight.name == "weight" else name


def _prefix(name: str) -> str:
    return name and f"{name}."  # a model that is one layer has a nameless one


def pack_bits(codes: Tensor, num_bits: int) -> Tensor:
    """Return whole numbers from 0 to 2^num_bits - 1 side by side without gaps, as a row of bytes (uint8).

    Each begins with its highest bit; zeros fill the last byte. `num_bits` is from 1 to 16.
    """
    num_bits = check_whole_number("num_bits", num_bits, BITS_RANGE)
    check_kind("codes", codes, Tensor, "a tensor of whole numbers")
    fits = not codes.is_floating_point() and ((codes >= 0) & (codes.long() < 2**num_bits)).all()
    check_that("codes", codes, fits, f"whole numbers from 0 to {2**num_bits - 1}, which is what {num_bits} bits hold")
    bits = codes.int().reshape(-1, 1).numpy() >> np.arange(num_bits)[::-1] & 1  # (codes, num_bits)
    return torch.from_numpy(np.packbits(bits.astype(bool)))


def unpack_bits(packed: Tensor, num_bits: int, shape: tuple[int, ...]) -> Tensor:
    """Return the whole numbers (int32) of this shape that `pack_bits` packed."""
    num_bits = check_whole_number("num_bits", num_bits, BITS_RANGE)
    check_kind("shape", shape, (tuple, list), "a tuple of whole numbers")
    shape = tuple(check_whole_number("shape", size, "[0, 1e12]") for size in shape)
    count = math.prod(shape)
    size = -(-count * num_bits // 8)
    fits = isinstance(packed, Tensor) and packed.dtype == torch.uint8 and packed.shape == (size,)
    allowed = f"{size} bytes (uint8), which is what {count} codes of {num_bits} bits take"
    check_that("packed", packed, fits, allowed)
    bits = np.unpackbits(packed.numpy(), count=count * num_bits).reshape(count, num_bits)
    return torch.from_numpy(bits @ (1 << np.arange(num_bits, dtype=np.int32)[::-1])).view(*shape)
