"""Transform a layer's weight wherever it is used: masks, fake quantization, binary weights, codebooks.

All are parametrizations (torch.nn.utils.parametrize): the layer keeps the original weight, which training changes, and
computes the one that it uses from it, so they compose and hold whatever the optimizer does.
"""

import copy

from torch import nn
from torch.nn.utils import parametrize

from kd_lab.errors import ParameterError
from kd_lab.models import check_model

WEIGHTED = (nn.Linear, nn.Conv2d)


def weighted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the Linear layers and convolutions by name; their `weight` is what compression transforms.

    Raises a ParameterError where there is none.
    """
    check_model(model)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, WEIGHTED)}
    if not layers:
        raise ParameterError(f"'model' must have a Linear or Conv2d layer. Got {type(model).__name__}.")
    for name, layer in layers.items():
        if not parametrize.is_parametrized(layer, "weight") and not isinstance(layer.weight, nn.Parameter):
            raise ParameterError(
                f"the weight of layer {name!r} must be a parameter. Got one that is "
                "computed from others. Did torch.nn.utils.prune mask it? Call its remove() first."
            )
    return layers


def parametrization(layer: nn.Module, kind: type[nn.Module]) -> nn.Module | None:
    """Return the layer's parametrization of this kind, None where its weight has none."""
    if not parametrize.is_parametrized(layer, "weight"):
        return None
    return next((module for module in layer.parametrizations.weight if isinstance(module, kind)), None)


def make_permanent(model: nn.Module) -> nn.Module:
    """Return a new, ordinary model whose weights are those that the parametrizations gave."""
    check_model(model)
    plain = copy.deepcopy(model)
    for module in list(plain.modules()):
        if parametrize.is_parametrized(module):
            _settle(module)
    return plain


def _settle(module: nn.Module) -> None:
    # parametrize.remove_parametrizations would take `weight` from the class, which a copy shares with its model
    settled = {
        name: nn.Parameter(getattr(module, name).detach(), any(p.requires_grad for p in chain.parameters()))
        for name, chain in module.parametrizations.items()
    }
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    for name, parameter in settled.items():
        module.register_parameter(name, parameter)


def without(model: nn.Module, kind: type[nn.Module]) -> nn.Module:
    """Return a new model in which no weight has a parametrization of this kind; those of other kinds stay."""
    lifted = copy.deepcopy(model)
    for layer in weighted_layers(lifted).values():
        if not parametrization(layer, kind):
            continue
        chain = layer.parametrizations.weight
        for place in reversed([place for place, module in enumerate(chain) if isinstance(module, kind)]):
            del chain[place]
        if not len(chain):
            chain.append(nn.Identity())
            _settle(layer)
    return lifted


def describe(layer: nn.Module) -> str:
    """Return the kind and the size of a layer, as in "Linear 784-300" or "Conv2d 16-32, 3×3"."""
    if isinstance(layer, nn.Linear):
        return f"Linear {layer.in_features}-{layer.out_features}"
    height, width = layer.kernel_size
    return f"Conv2d {layer.in_channels}-{layer.out_channels}, {height}×{width}"
