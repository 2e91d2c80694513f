"""Transform a layer's weight wherever it is used: masks, fake quantization, binary weights, codebooks.

All are parametrizations (torch.nn.utils.parametrize): the layer keeps the original weight, which training changes, and
computes the one that it uses from it, so they compose and hold whatever the optimizer does.
"""

import copy

from torch import nn
from torch.nn.utils import parametrize

from kd_lab.networks.layers import check_model, weights


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
    for weight in weights(lifted).values():
        if not weight.parametrization(kind):
            continue
        chain = weight.module.parametrizations[weight.name]
        for place in reversed([place for place, module in enumerate(chain) if isinstance(module, kind)]):
            del chain[place]
        if not len(chain):
            chain.append(nn.Identity())
            _settle(weight.module)
    return lifted
