"""Replace a layer by two thin ones (low rank).

Their product has fewer weights. Of all products of a rank, truncated SVD misses least of a weight (Eckart & Young
1936). What counts is the layer's output, and some inputs are larger and more frequent than others: weighted by their
second moments, the same calculation misses least of the output, and of what it misses the bias makes up for the mean
(Zhang et al. 2016, arXiv 1505.06798).
"""

import torch
from torch import Tensor, nn

from kd_lab.errors import ParameterError, check_choice, check_kind, check_that, check_whole_number
from kd_lab.networks.checks import check_shapes, check_tensors
from kd_lab.networks.copies import copied
from kd_lab.networks.inputs import KINDS, layer_inputs
from kd_lab.networks.layers import describe, replace, weights
from kd_lab.networks.permanent import make_permanent
from kd_lab.networks.predictions import check_same_answers, example_images, own_reason, predict
from kd_lab.networks.tracing import is_plain
from kd_lab.networks.zoo import thin_layers

NEAREST = "weight", "output"
EXAMPLES = 4  # images on which a network with two layers for one is compared with the network


def low_rank(weight: Tensor, rank: int, inputs: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return `second` (outputs, rank) and `first` (rank, n), whose product comes closest to a weight (outputs, n).

    Without `inputs` that is by the sum of squares of what is missed of the weight; with inputs (N, n) of the layer, by
    what is missed of its outputs, inputs @ weight.T. `rank` is from 1 to the smaller one of both sizes.
    """
    check_tensors(2, weight=weight)
    rank = check_whole_number("rank", rank, rank_range(weight))
    rows = weight.detach().double()
    moments = rows @ rows.T
    if inputs is not None:
        check_tensors(2, inputs=inputs)
        rule = f"'inputs' must have {weight.shape[1]} numbers in a row"
        check_shapes(rule, lambda shape: shape[1] == weight.shape[1], inputs)
        moments = sum(outputs.T @ outputs for outputs in (part.double() @ rows.T for part in inputs.split(10_000)))
    # the directions in which the outputs, or the weight's columns, are largest; the weight projected on them
    second = torch.linalg.eigh(moments).eigenvectors[:, -rank:].flip(1)
    return second.to(weight.dtype), (second.T @ rows).to(weight.dtype)


@torch.inference_mode(False)  # in which nothing can be made that is trained later
@torch.no_grad()
def factorize(
    model: nn.Module, ranks: dict[str, int], images: Tensor | None = None, nearest: str = "weight"
) -> nn.Module:
    """Return a new model in which each of these layers is two thin ones, `first` and `second`, of a rank.

    `ranks` has a rank for each layer by name, a Linear layer or a convolution without groups. A layer of n inputs and m
    outputs has n · m weights, its two layers rank · (n + m). They are nearest to the layer's "weight", or to the
    "output" that it has for `images`, some thousand of the training part, by a new bias, too, where there is one. A
    network that reads others than (N, 1, 28, 28) needs some images in any case. Masks and quantized weights become
    plain numbers first. Raises a ParameterError for a layer that can't be replaced by two.
    """
    check_kind("ranks", ranks, dict, "a dict of ranks by the names of layers, as in {'fc1': 20}")
    check_choice("nearest", nearest, list(NEAREST))
    by_output = nearest == "output"
    check_that("images", images, images is not None or not by_output, "given where nearest is 'output'")
    plain = make_permanent(model)
    layers = {name: _layer(plain, name) for name in ranks}
    ranges = {name: rank_range(layer.weight) for name, layer in layers.items()}
    ranks = {name: check_whole_number(f"rank of {name}", ranks[name], allowed) for name, allowed in ranges.items()}
    _check_replaceable(plain, layers, images)
    factorized = copied(plain)
    for name, rank in ranks.items():
        inputs, mean = about_mean(layers[name], layer_inputs(plain, name, images)) if by_output else (None, None)
        pair = two_layers(layers[name], *low_rank(layers[name].weight.flatten(1), rank, inputs), mean)
        replace(factorized, factorized.get_submodule(name), pair)
    if isinstance(architecture := getattr(model, "architecture", None), str):
        factorized.architecture = "".join([architecture, *(f"/{name}={rank}" for name, rank in ranks.items())])
    return factorized


def about_mean(layer: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the inputs (N, n) of a layer less their mean, and the mean (n,), which is 0 where no bias can take it."""
    mean = inputs.mean(0) if layer.bias is not None else torch.zeros_like(inputs[0])
    return inputs - mean, mean


@torch.no_grad()
def two_layers(layer: nn.Module, second: Tensor, first: Tensor, mean: Tensor | None = None) -> nn.Sequential:
    """Return the two thin layers for one, whose weights are these factors, as low_rank gives them.

    The bias makes up for what they miss at the mean of the layer's inputs, if that is given.
    """
    thin = thin_layers(layer, len(first))
    thin.first.weight.copy_(first.view_as(thin.first.weight))
    thin.second.weight.copy_(second.view_as(thin.second.weight))
    if layer.bias is not None:
        missed = 0 if mean is None else (layer.weight.flatten(1) - second @ first) @ mean
        thin.second.bias.copy_(layer.bias + missed)
    return thin


def rank_range(weight: Tensor) -> str:
    """Return the range of the ranks that a weight (outputs, …) can have."""
    return f"[1, {min(weight.flatten(1).shape)}]"


def _layer(model: nn.Module, name: str) -> nn.Module:
    """Return the layer of this name; raise a ParameterError unless it is one that two can stand for."""
    present = weights(model)
    check_choice("name of a layer in 'ranks'", name, list(present))
    weight = present[name]
    alone = any(is_plain(weight.module, kind) for kind in KINDS) and not weight.tied
    if not alone or getattr(weight.module, "groups", 1) > 1:
        what = "shared with other layers" if weight.tied else describe(weight.module)
        raise ParameterError(
            f"layer {name!r} can't be two thin ones: it is {what}, and only Linear layers and convolutions that have "
            "a weight of their own, no groups and no hooks can."
        )
    return weight.module


def _check_replaceable(model: nn.Module, layers: dict[str, nn.Module], images: Tensor | None) -> None:
    """Raise a ParameterError unless the network answers the same with two layers of full rank in place of each."""
    whole = copied(model)
    for name, layer in layers.items():
        rows = layer.weight.flatten(1)
        outputs, inputs = rows.shape
        second, first = (torch.eye(outputs), rows) if outputs <= inputs else (rows, torch.eye(inputs))
        replace(whole, whole.get_submodule(name), two_layers(layer, second, first))
    images = example_images(images, EXAMPLES)
    predict(model, images)  # says so where these are not the images that it reads
    try:
        check_same_answers(whole, model, images, "factorized")
    except ParameterError as problem:
        raise ParameterError(
            "'model' must run the layers in 'ranks' as modules. Got one that can't do with two for one: "
            f"{own_reason(problem)}"
        ) from problem
