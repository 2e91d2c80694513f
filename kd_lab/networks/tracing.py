"""Follow the data through any network: what a module reads and who reads it, not where it stands in a list."""

import threading

from torch import Tensor, fx, nn

from kd_lab.errors import ParameterError, reason
from kd_lab.networks.layers import WEIGHTED, check_same_answers, evaluation_mode

_tracing = threading.Lock()  # torch.fx replaces methods of nn.Module while it traces


def trace(model: nn.Module, images: Tensor) -> fx.GraphModule:
    """Return the graph of a network in evaluation mode, which gives its answers to these images.

    Raises a ParameterError where torch.fx can't follow the network, or another way than these images take.
    """
    try:
        with evaluation_mode(model):
            traced = _graph(model)
            check_same_answers(traced, model, images, "followed")
    except Exception as error:
        raise ParameterError(f"torch.fx can't follow the network: {reason(error)}") from error
    return traced


def trace_training(model: nn.Module) -> fx.GraphModule:
    """Return the graph of a network in training mode, in which it may run other layers; the model keeps its mode.

    Raises a ParameterError where torch.fx can't follow the network.
    """
    try:
        with evaluation_mode(model):  # which restores the mode of every module
            model.train()
            return _graph(model)
    except Exception as error:
        raise ParameterError(f"torch.fx can't follow the network in training mode: {reason(error)}") from error


def _graph(model: nn.Module) -> fx.GraphModule:
    with _tracing:
        return fx.GraphModule(model, _Tracer().trace(model))


class _Tracer(fx.Tracer):
    """Trace what this thread calls; panels run networks in others, which torch.fx would take for its own."""

    def trace(self, root: nn.Module) -> fx.Graph:
        self.thread = threading.get_ident()
        return super().trace(root)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, tuple(WEIGHTED)) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m, forward, args, kwargs):
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Return whether a module is exactly of this class, with no hook: it computes what its class says and no more."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return type(module) is kind and "forward" not in vars(module) and not any(getattr(module, each) for each in hooks)
