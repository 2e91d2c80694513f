"""Set a network to evaluation and restore each module's own mode."""

from contextlib import contextmanager

import torch
from torch import nn

from kd_lab.networks.copies import copied


@contextmanager
def evaluation_mode(model: nn.Module):
    """Set every module to evaluation (no dropout, kept batch statistics) and restore the mode that each had."""
    modes = {module: module.training for module in model.modules()}
    _set_modes(dict.fromkeys(modes, False))
    try:
        yield
    finally:
        _set_modes(modes)


def _set_modes(modes: dict[nn.Module, bool]) -> None:
    for module, training in modes.items():
        # its own may do more than to set the flag, for all that is inside it
        if has_own_mode(module) and module.training is not training:
            module.train() if training else module.eval()
    for module, training in modes.items():
        if module.training is not training:  # model.eval() would take a while to set what is set already
            module.training = training


def has_own_mode(module: nn.Module) -> bool:
    """Return whether a class has a `train` or an `eval` of its own, which may do more than to set the flag."""
    return type(module).train is not nn.Module.train or type(module).eval is not nn.Module.eval


def changes_with_mode(module: nn.Module, name: str) -> bool:
    """Return whether a module's `train` and `eval` change this tensor of it."""
    trained, judged = copied(module).train(), copied(module).eval()
    return not torch.equal(getattr(trained, name), getattr(judged, name))
