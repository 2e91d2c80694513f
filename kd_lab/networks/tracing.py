"""Follow the data through any network: what a module reads and who reads it, not where it stands in a list."""

import threading
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from kd_lab.errors import ParameterError, saying
from kd_lab.networks.layers import WEIGHTED
from kd_lab.networks.modes import evaluation_mode
from kd_lab.networks.predictions import check_same_answers
from kd_lab.networks.transformer import Heads

ASKING = "size", "dim", "numel", "shape", "ndim", "dtype", "device", len  # they tell nothing of the values
_tracing = threading.Lock()  # torch.fx replaces methods of nn.Module while it traces


def trace(model: nn.Module, images: Tensor) -> fx.GraphModule:
    """Return the graph of a network in evaluation mode, which gives its answers to these images.

    Raises a ParameterError where torch.fx can't follow the network, or another way than these images take.
    """
    with saying("torch.fx can't follow the network"), evaluation_mode(model):
        traced = _graph(model, images)
        check_same_answers(traced, model, images, "followed")
        return traced


def trace_training(model: nn.Module, images: Tensor) -> fx.GraphModule:
    """Return the graph of a network in training mode, in which it may run other layers; the model keeps its mode.

    Raises a ParameterError where torch.fx can't follow the network.
    """
    # evaluation mode first, since leaving it restores the mode of every module
    with saying("torch.fx can't follow the network in training mode"), evaluation_mode(model):
        model.train()
        return _graph(model, images)


def _graph(model: nn.Module, images: Tensor) -> fx.GraphModule:
    try:
        enabled = torch._C._EnableTorchFunction()  # a caller may have turned it off, and proxies need it
        with _tracing, enabled, _len_recorded(model), _attributes_kept(model):
            return fx.GraphModule(model, _Tracer(images).trace(model))
    except fx.proxy.TraceError as error:
        raise ParameterError(f"{error} Its forward must not ask for the values of the data.") from error


@contextmanager
def _attributes_kept(model: nn.Module):
    """Leave no proxy in a model that keeps what it computes, its last activation say, and no constant of torch.fx."""
    kept = [(space, dict(space)) for each in model.modules() for space in (vars(each), each._buffers)]
    try:
        yield
    finally:
        for space, before in kept:
            space.update(before)
            for name in space.keys() - before.keys():
                del space[name]


@contextmanager
def _len_recorded(model: nn.Module):
    """Let a forward call `len(x)`: Python's takes no proxy, so its module has, for a while, one that is recorded."""
    spaces = [getattr(type(module).forward, "__globals__", {}) for module in model.modules()]
    own = {id(space): space for space in spaces if "len" not in space}.values()
    for space in own:
        space["len"] = _len
    try:
        yield
    finally:
        for space in own:
            del space["len"]


def _len(x: Any) -> Any:
    return x.tracer.create_proxy("call_function", len, (x,), {}) if isinstance(x, fx.Proxy) else len(x)


class _Tracer(fx.Tracer):
    """Trace what this thread calls; panels run networks in others, which torch.fx would take for its own."""

    def __init__(self, images: Tensor):
        super().__init__()
        self.images, self.thread, self.deciding = images[:2], threading.get_ident(), False

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Return what a condition on the shape of the data is for the images; one on their values is refused."""
        if not _of_shape(obj.node):
            return super().to_bool(obj)
        steps: dict[fx.Node, Any] = {}
        so_far = fx.Graph()
        so_far.graph_copy(self.graph, steps)
        so_far.output(steps[obj.node])
        self.deciding = True
        try:
            with evaluation_mode(self.root):  # in which no module changes
                return bool(fx.GraphModule(self.root, so_far)(self.images.clone()))
        finally:
            self.deciding = False

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (*WEIGHTED, Heads)) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m, forward, args, kwargs):
        return super().call_module(m, forward, args, kwargs) if self._follows() else forward(*args, **kwargs)

    def getattr(self, attr, attr_val, parameter_proxy_cache):
        return super().getattr(attr, attr_val, parameter_proxy_cache) if self._follows() else attr_val

    def _follows(self) -> bool:
        return threading.get_ident() == self.thread and not self.deciding


def _of_shape(node: fx.Node) -> bool:
    """Return whether a number of the graph comes from shapes and dtypes alone."""
    if node.target in ASKING or (node.target is getattr and node.args[1] in ASKING):
        return True
    computed = node.op in ("call_function", "call_method") and bool(node.all_input_nodes)
    return computed and all(map(_of_shape, node.all_input_nodes))


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Return whether a module is exactly of this class, with no hook: it computes what its class says and no more."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return type(module) is kind and "forward" not in vars(module) and not any(getattr(module, each) for each in hooks)
