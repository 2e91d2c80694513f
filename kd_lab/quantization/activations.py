"""Quantize what flows between the layers: fold BatchNorm, look at some images, round each layer's input."""

import warnings
from collections import Counter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_weights

from kd_lab.errors import ParameterError, called_function, check_choice, check_whole_number, reason
from kd_lab.networks.checks import check_finite, check_tensors
from kd_lab.networks.copies import copied
from kd_lab.networks.layers import CONVOLUTIONS, replace, weighted_layers
from kd_lab.networks.permanent import make_permanent
from kd_lab.networks.predictions import check_same_answers, example_images, predict, record
from kd_lab.networks.tracing import is_plain, trace
from kd_lab.quantization.grids import CALIBRATIONS, MIN_SCALE, find_grid
from kd_lab.quantization.weights import FakeQuantizer, bits_by_layer, quantize_weights

MAX_CALIBRATION_NUMBERS = 200_000  # of the numbers at a layer's input, those that "least_squares" looks at
EXAMPLES = 16  # images on which a rewritten network is compared with the one that it was
NORMS = nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d
FOLDABLE = nn.Linear, *CONVOLUTIONS  # whose channels, dimension 1 of the output, a BatchNorm may follow


def fold_batch_norm(model: nn.Module, images: Tensor | None = None) -> nn.Module:
    """Return a new, ordinary model in evaluation mode whose BatchNorm layers are part of the layers before them.

    In evaluation a BatchNorm multiplies and adds constants, which the weight and the bias before it can take over; an
    Identity stays in its place. `images`, a few, are needed for a network that reads others than (N, 1, 28, 28). Warns
    of each BatchNorm that is left as it is, since it does not read the channels of one Linear layer or convolution
    alone.
    """
    plain = make_permanent(model).eval()
    if not _norms(plain):
        return plain
    if images is not None:
        predict(plain, example_images(images))
    images, folded = example_images(images, EXAMPLES), copied(plain)
    why = "it is not behind one Linear layer or convolution that nothing else reads."
    try:
        for layer, norm in _foldable(folded, images):
            _fold(folded, folded.get_submodule(layer), folded.get_submodule(norm))
        check_same_answers(folded, plain, images, "folded")
    except ParameterError as error:
        folded, why = plain, reason(error)
    if left := _norms(folded):
        warnings.warn(f"{called_function()}(): left {', '.join(map(repr, left))} as before: {why}", stacklevel=2)
    return folded


def _norms(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]


def _foldable(model: nn.Module, images: Tensor) -> list[tuple[str, str]]:
    """Return each layer and the BatchNorm that alone reads its output, by name, where one can take over the other."""
    calls = called_once(trace(model, images).graph)
    pairs = {
        layer.target: norm.target
        for norm in calls.values()
        for layer in norm.all_input_nodes
        if layer in calls.values() and len(layer.users) == 1 and _fits(model, layer.target, norm.target)
    }
    dimensions = record(model, pairs, images, lambda _taken, given: given.dim())
    return [
        (layer, norm)
        for layer, norm in pairs.items()
        if set(dimensions[layer]) == {model.get_submodule(layer).weight.dim()}  # else the channels lie elsewhere
    ]


def called_once(graph: fx.Graph) -> dict[str, Any]:
    """Return by name the node of each module that is called once and whose tensors are read by nothing else."""
    targets = [(node, str(node.target)) for node in graph.nodes]
    uses = Counter(name.rpartition(".")[0] if node.op == "get_attr" else name for node, name in targets)
    return {name: node for node, name in targets if node.op == "call_module" and uses[name] == 1}


def _fits(model: nn.Module, layer_name: str, norm_name: str) -> bool:
    """Return whether both modules compute what their classes say, and the layer's channels are those of its weight."""
    layer, norm = model.get_submodule(layer_name), model.get_submodule(norm_name)
    owners = Counter(tensor for module in model.modules() for tensor in module.parameters(recurse=False))
    tied = any(owners[tensor] > 1 for tensor in layer.parameters(recurse=False))
    grouped = getattr(layer, "transposed", False) and layer.groups > 1
    fixed = any(is_plain(norm, kind) for kind in NORMS) and norm.running_mean is not None
    return fixed and not tied and any(computes_as(layer, kind) for kind in FOLDABLE) and not grouped


def computes_as(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Return whether a layer, parametrized or not, is exactly of this class, and no hook but its quantizer's runs."""
    hooks = [*layer._forward_hooks.values(), *layer._forward_pre_hooks.values(), *layer._backward_hooks.values()]
    exact = parametrize.type_before_parametrizations(layer) is kind and "forward" not in vars(layer)
    return exact and all(hook is _quantize_input for hook in hooks)


def _fold(model: nn.Module, layer: nn.Module, norm: nn.Module) -> None:
    statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    transposed = getattr(layer, "transposed", False)
    layer.weight, layer.bias = fuse_conv_bn_weights(layer.weight, layer.bias, *statistics, transposed)
    replace(model, norm, nn.Identity())


def quantize_activations(
    model: nn.Module, images: Tensor, num_bits: int = 8, calibration: str = "least_squares"
) -> nn.Module:
    """Return a new model that rounds the input of every layer (weighted_layers) to an affine grid of 1 to 8 bits.

    `images` (N, 1, 28, 28), from the training part, are run through the model to find each grid (calibration); grids
    that were there are replaced, and a layer that is never run, or reads whole numbers, gets none. What a recurrent
    layer hands from step to step stays as it is, as do keys and values that are not the queries.
    """
    num_bits = check_whole_number("num_bits", num_bits, "[1, 8]")
    check_choice("calibration", calibration, list(CALIBRATIONS))
    quantized = copied(model)
    for layer in weighted_layers(quantized).values():
        set_input_quantizer(layer, None)
    for name, parts in _record(quantized, images, inputs=True).items():
        # an Embedding's are places in a table, and a packed sequence is no tensor
        if not all(isinstance(part, Tensor) and part.is_floating_point() for part in parts):
            continue
        row = torch.cat([part.reshape(1, -1) for part in parts], 1)
        if calibration == "least_squares":
            row = row[:, :: 1 + row.shape[1] // MAX_CALIBRATION_NUMBERS]
        check_finite(**{f"the input of layer {name}": row})
        scale, zero_point = find_grid(row, num_bits, False, calibration)
        set_input_quantizer(quantized.get_submodule(name), FakeQuantizer(scale, zero_point, num_bits))
    quantized.calibration_images = images[:EXAMPLES].detach().clone()  # to_integer compares the answers to them
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
    _check_images(images)  # before the weights, which take longer
    activation_bits = check_whole_number("activation_bits", activation_bits, "[1, 8]")
    bits_by_layer(model, weight_bits, "weight_bits")  # under the name that they have here
    weights = quantize_weights(fold_batch_norm(model, images), weight_bits, granularity, symmetric, calibration)
    return quantize_activations(weights, images, activation_bits, calibration)


def output_errors(model: nn.Module, dense: nn.Module, images: Tensor) -> dict[str, float]:
    """Return for each layer the squared error of its output over the squared output, errors of earlier layers included.

    `dense` says what is right; a layer that is never run is left out.
    """
    found, expected = (_record(each, images, inputs=False) for each in (model, dense))
    shapes, wanted = ({name: [part.shape for part in each[name]] for name in each} for each in (found, expected))
    if list(shapes.items()) != list(wanted.items()):
        got, right = ({name: tuple(each[name][0][1:]) for name in each} for each in (shapes, wanted))
        raise ParameterError(
            f"both models must have the same layers with outputs of the same shapes. Got {got} and {right}."
        )
    return {name: _squared_error(found[name], parts) for name, parts in expected.items()}


def _squared_error(found: list[Tensor], expected: list[Tensor]) -> float:
    found, right = (torch.cat([part.flatten() for part in parts]) for parts in (found, expected))
    return ((found - right).square().sum() / right.square().sum().clamp(min=MIN_SCALE)).item()


def set_input_quantizer(layer: nn.Module, quantizer: FakeQuantizer | None) -> None:
    """Round what this layer takes by this quantizer from now on, in place; None rounds nothing."""
    if not hasattr(layer, "input_quantizer"):
        layer.register_forward_pre_hook(_quantize_input, with_kwargs=True)
    layer.input_quantizer = quantizer


def _quantize_input(layer: nn.Module, arguments: tuple, named: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    if layer.input_quantizer is None:
        return arguments, named
    first = (*arguments, *named.values())[0]  # it may have a name, as in conv(input=x)
    rounded = layer.input_quantizer(first)
    args = tuple(rounded if each is first else each for each in arguments)  # attention may take one tensor three times
    return args, {name: rounded if each is first else each for name, each in named.items()}


def _record(model: nn.Module, images: Tensor, inputs: bool) -> dict[str, list[Tensor]]:
    """Return what each layer takes, or gives, for these images, call by call, in the order in which they are run."""
    _check_images(images)

    def keep(taken: tuple[Tensor, ...], given: Tensor | tuple) -> Tensor:
        return taken[0] if inputs else given if isinstance(given, Tensor) else given[0]  # a recurrent layer's steps

    return record(model, weighted_layers(model), images, keep)


def _check_images(images: Tensor) -> None:
    whole = isinstance(images, Tensor) and not images.is_floating_point()  # those that an Embedding reads
    check_tensors(None, None if whole else torch.float32, images=images)
