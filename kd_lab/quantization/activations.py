"""Quantize what flows between the layers: fold BatchNorm, look at some images, round each layer's input."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from kd_lab.errors import ParameterError, check_choice, check_whole_number
from kd_lab.networks.layers import copied, make_permanent, record, weighted_layers
from kd_lab.quantization.grids import CALIBRATIONS, MIN_SCALE, check_finite, find_grid
from kd_lab.quantization.weights import FakeQuantizer, bits_by_layer, quantize_weights

MAX_CALIBRATION_NUMBERS = 200_000  # of the numbers at a layer's input, those that "least_squares" looks at
FUSES = {nn.Conv2d: fuse_conv_bn_eval, nn.Linear: fuse_linear_bn_eval}


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """Return a new, ordinary model in evaluation mode whose BatchNorm layers are part of the layers before them.

    In evaluation a BatchNorm multiplies and adds constants, which the weight and the bias before it can take over; an
    Identity stays in its place. Only those in a Sequential, right behind a Linear layer or convolution, can be folded.
    """
    folded = make_permanent(model).eval()
    for block in [module for module in folded.modules() if isinstance(module, nn.Sequential)]:
        for place in range(1, len(block)):
            before, norm = block[place - 1], block[place]
            if isinstance(norm, _BatchNorm) and type(before) in FUSES:
                block[place - 1], block[place] = FUSES[type(before)](before, norm), nn.Identity()
    return folded


def quantize_activations(
    model: nn.Module, images: Tensor, num_bits: int = 8, calibration: str = "least_squares"
) -> nn.Module:
    """Return a new model that rounds the input of every Linear layer and convolution to an affine grid of 1 to 8 bits.

    `images` (N, 1, 28, 28), from the training part, are run through the model to find each grid (calibration); grids
    that were there are replaced, and a layer that is never run gets none.
    """
    check_whole_number("num_bits", num_bits, "[1, 8]")
    check_choice("calibration", calibration, list(CALIBRATIONS))
    quantized = copied(model)
    for layer in weighted_layers(quantized).values():
        set_input_quantizer(layer, None)
    for name, values in _record(quantized, images, inputs=True).items():
        row = values.reshape(1, -1)
        if calibration == "least_squares":
            row = row[:, :: 1 + row.shape[1] // MAX_CALIBRATION_NUMBERS]
        check_finite(**{f"the input of layer {name}": row})
        scale, zero_point = find_grid(row, num_bits, False, calibration)
        set_input_quantizer(quantized.get_submodule(name), FakeQuantizer(scale, zero_point, num_bits))
    return quantized


def quantize_model(
    model: nn.Module,
    images: Tensor,
    weight_bits: int | dict[str, int] = 8,
    activation_bits: int = 8,
    *,
    granularity: str = "per_channel",
    symmetric: bool = True,
    calibration: str = "least_squares",
) -> nn.Module:
    """Return a new model with BatchNorm folded, quantized weights and quantized activations, of 1 to 8 bits each.

    `symmetric` says how the grids of the weights lie; those of the activations are affine, since behind a ReLU half of
    a symmetric one would stay unused.
    """
    check_finite(images=images)  # before the weights, which take longer
    check_whole_number("activation_bits", activation_bits, "[1, 8]")
    bits_by_layer(model, weight_bits, "weight_bits")  # under the name that they have here
    weights = quantize_weights(fold_batch_norm(model), weight_bits, granularity, symmetric, calibration)
    return quantize_activations(weights, images, activation_bits, calibration)


def output_errors(model: nn.Module, dense: nn.Module, images: Tensor) -> dict[str, float]:
    """Return for each layer the squared error of its output over the squared output, errors of earlier layers included.

    `dense` says what is right; a layer that is never run is left out.
    """
    found, expected = (_record(each, images, inputs=False) for each in (model, dense))
    shapes, wanted = ({name: tuple(output.shape[1:]) for name, output in each.items()} for each in (found, expected))
    if list(shapes.items()) != list(wanted.items()):
        raise ParameterError(
            f"both models must have the same layers with outputs of the same shapes. Got {shapes} and {wanted}."
        )
    return {
        name: ((found[name] - output).square().sum() / output.square().sum().clamp(min=MIN_SCALE)).item()
        for name, output in expected.items()
    }


def set_input_quantizer(layer: nn.Module, quantizer: FakeQuantizer | None) -> None:
    """Round what this layer takes by this quantizer from now on, in place; None rounds nothing."""
    if not hasattr(layer, "input_quantizer"):
        layer.register_forward_pre_hook(_quantize_input)
    layer.input_quantizer = quantizer


def _quantize_input(layer: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor]:
    return arguments if layer.input_quantizer is None else (layer.input_quantizer(*arguments),)


def _record(model: nn.Module, images: Tensor, inputs: bool) -> dict[str, Tensor]:
    """Return what each layer takes, or gives, for these images, in the order in which the layers are run."""
    check_finite(images=images)
    found = record(model, weighted_layers(model), images, lambda taken, given: taken[0] if inputs else given)
    return {name: torch.cat(parts) for name, parts in found.items()}
