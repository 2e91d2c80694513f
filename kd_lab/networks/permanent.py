"""Make permanent what parametrizations, and the hooks of older torch, give as a weight, or take some off."""

import torch
from torch import nn
from torch.nn.utils import parametrize

from kd_lab.errors import ParameterError
from kd_lab.networks.checks import check_model
from kd_lab.networks.copies import copied
from kd_lab.networks.layers import Weight, identity, removal
from kd_lab.networks.modes import evaluation_mode


@torch.inference_mode(False)
def make_permanent(model: nn.Module) -> nn.Module:
    """Return a new, ordinary model whose weights are those that the parametrizations give in evaluation mode.

    So are those of torch.nn.utils.prune, and of the weight_norm and spectral_norm that torch had before it had
    parametrizations.
    """
    check_model(model)
    plain = copied(model)
    settled: dict[tuple, nn.Parameter] = {}  # tied weights stay one
    with evaluation_mode(plain):
        for module in list(plain.modules()):
            if parametrize.is_parametrized(module):
                _settle(module, settled)
            for hook in list(module._forward_pre_hooks.values()):
                if found := removal(hook):
                    remove, name = found
                    remove(module, name)
    return plain


def computed_once(model: nn.Module) -> nn.Module:
    """Return the model, or a copy whose parametrized weights are computed already, not again for each batch.

    A model with hooks stays itself: they may know its modules.
    """
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    if hooked or not any(map(parametrize.is_parametrized, model.modules())):
        return model
    try:
        return make_permanent(model)
    except ParameterError:  # it can't be copied
        return model


def _settle(module: nn.Module, settled: dict[tuple, nn.Parameter]) -> None:
    # parametrize.remove_parametrizations would take `weight` from the class, which a copy shares with its model
    found = {name: _settled(module, name, settled) for name in module.parametrizations}
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    for name, parameter in found.items():
        module.register_parameter(name, parameter)


def _settled(module: nn.Module, name: str, settled: dict[tuple, nn.Parameter]) -> nn.Parameter:
    """Return the value of a parametrized weight, the same parameter for modules that share it."""
    key = identity(module, name)
    if key not in settled:
        settled[key] = nn.Parameter(getattr(module, name).detach(), Weight(module, name).trained)
    return settled[key]


@torch.inference_mode(False)
def without(model: nn.Module, kind: type[nn.Module]) -> nn.Module:
    """Return a new model in which no weight has a parametrization of this kind; those of other kinds stay."""
    lifted = copied(model)
    parametrized = [module for module in lifted.modules() if parametrize.is_parametrized(module)]
    settled: dict[tuple, nn.Parameter] = {}
    placeholder = nn.Identity()  # one for all: tied weights have the same parametrizations
    for module in parametrized:
        chains = module.parametrizations.values()
        for chain in chains:
            others = [each for each in chain if not isinstance(each, kind)]
            if len(others) < len(chain):
                del chain[:]
                chain.extend(others or [placeholder])
        # one that has another weight with parametrizations keeps the Identity
        if all(isinstance(each, nn.Identity) for chain in chains for each in chain):
            _settle(module, settled)
    return lifted
