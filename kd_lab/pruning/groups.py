"""Find the channels that go together: to remove one, all layers that compute or read it must be changed."""

import operator
from collections import Counter
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from kd_lab.errors import ParameterError, check_choice, reason
from kd_lab.networks.layers import Weight, example_images, make_permanent, predict, weights
from kd_lab.networks.tracing import trace

COPIES = {nn.Identity, nn.Dropout, nn.Dropout2d, F.dropout, "contiguous"}
ACTIVATION_LAYERS = {nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid}
ACTIVATION_FUNCTIONS = {F.relu, F.leaky_relu, F.gelu, F.silu, torch.relu, torch.tanh, torch.sigmoid}
ELEMENTWISE = COPIES | ACTIVATION_LAYERS | ACTIVATION_FUNCTIONS | {"relu", "tanh", "sigmoid"}
POOL_LAYERS = {nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d}
POOLS = POOL_LAYERS | {F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d}
LAYERS = {nn.Linear, nn.Conv2d}  # whose weight is (channels made, channels read, …)
NORMS = {nn.BatchNorm1d, nn.BatchNorm2d}
FLATTENS = {nn.Flatten, torch.flatten, "flatten"}
ADDITIONS = {operator.add, operator.iadd, torch.add, "add"}


@dataclass
class Group:
    """The layers, by name, that share channels (units, of Linear layers): to remove one, all must be changed.

    `producers` are the Linear layers and convolutions that compute them, `norms` the BatchNorm layers on their way,
    `consumers` the Linear layers and convolutions that read them; `obstacle` says why none can be removed, if so.
    """

    size: int = 0
    producers: tuple[str, ...] = ()
    norms: tuple[str, ...] = ()
    consumers: tuple[str, ...] = ()
    obstacle: str = ""

    def block(self, obstacle: str) -> None:
        """Name what stands in the way, unless something did before."""
        self.obstacle = self.obstacle or obstacle


def channel_groups(model: nn.Module, images: Tensor | None = None) -> dict[str, Group]:
    """Return the groups of channels that can be removed safely, by the name of the first layer that computes them.

    Raises a ParameterError for a model that has no layers or can't read the images. `images`, a few,
    are needed for a network that reads others than (N, 1, 28, 28).
    """
    return {group.producers[0]: group for group in _all_groups(model, images) if not group.obstacle}


def find_groups(model: nn.Module, names: list[str] | None = None, images: Tensor | None = None) -> dict[str, Group]:
    """Return the groups of these names, or all.

    Raises a ParameterError that says what stands in the way of one, or of every one.
    """
    by_layer = {layer: group for group in _all_groups(model, images) for layer in group.producers}
    groups = {name: group for name, group in by_layer.items() if not group.obstacle and name == group.producers[0]}
    for name in names or ([] if groups else list(by_layer)[:1]):
        group = by_layer.get(name)
        if group and group.obstacle:
            raise ParameterError(
                f"the channels of layer {name!r} can't be removed safely: "
                f"{group.obstacle}. prune() can still mask single weights of it."
            )
        if group and name not in groups:
            raise ParameterError(
                f"the channels of layer {name!r} go together with those of {group.producers[0]!r}. Name that one."
            )
        check_choice("group", name, list(groups))
    return groups if names is None else {name: groups[name] for name in names}


def _all_groups(model: nn.Module, images: Tensor | None) -> list[Group]:
    """Return the groups of all layers, those that can't be pruned with their obstacle."""
    layers = list(weights(model))
    plain, images = make_permanent(model).eval(), example_images(images)
    predict(plain, images)  # names a model that can't read them
    try:
        traced = trace(plain, images)
    except ParameterError as error:
        return _closed(layers, reason(error))
    follower = _Follower(traced, weights(plain))
    with torch.no_grad():
        follower.run(images)
    used = [group for group in follower.made if group.producers]
    for group in used:
        if not group.consumers:
            group.block("no layer reads them")
    found = {name for group in used for name in group.producers}
    return used + _closed([name for name in layers if name not in found], "the network doesn't use it")


def _closed(layers: list[str], obstacle: str) -> list[Group]:
    return [Group(producers=(name,), obstacle=obstacle) for name in layers]


class _Follower(fx.Interpreter):
    """Run a traced network and note to which group the channels of every result belong, and on which axis they lie."""

    def __init__(self, traced: fx.GraphModule, present: dict[str, Weight]):
        super().__init__(traced)
        self._weights = present
        self.made: list[Group] = []
        self._at: dict[fx.Node, tuple[Group, int]] = {}
        self._shapes: dict[fx.Node, tuple[int, ...]] = {}
        called = [self._module(node) for node in traced.graph.nodes]
        uses = [parameter for module in called if module for parameter in module.parameters()]
        uses += [self.fetch_attr(node.target) for node in traced.graph.nodes if node.op == "get_attr"]
        self._uses = Counter(map(id, uses))

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.submodules[node.target] if node.op == "call_module" else None

    def run_node(self, node: fx.Node):
        result = super().run_node(node)
        self._shapes[node] = tuple(getattr(result, "shape", ()))
        self._at[node] = self._follow(node)
        return result

    def _follow(self, node: fx.Node) -> tuple[Group, int]:
        """Return the group of the node's channels and their axis."""
        module = self._module(node)
        kind, inputs = type(module) if module else node.target, node.all_input_nodes
        if module and any(self._uses[id(parameter)] > 1 for parameter in module.parameters()):
            return self._block(node, f"they reach '{node.target}' ({kind.__name__}), whose weights are used twice")
        if kind in LAYERS and getattr(module, "groups", 1) == 1:
            return self._layer(node, module)
        if len(inputs) == 1 and self._keeps(kind, inputs[0], node):
            group, axis = self._at[inputs[0]]
            group.norms += (node.target,) if kind in NORMS else ()
            return group, axis
        if len(inputs) == 2 and kind in ADDITIONS and self._agree(*inputs):
            return self._unite(*(self._at[each] for each in inputs))
        return self._block(node, _reason(node, module))

    def _layer(self, node: fx.Node, layer: nn.Module) -> tuple[Group, int]:
        """Begin a group at a Linear layer or convolution, which reads the one before."""
        (source,) = node.all_input_nodes
        read, axis = self._at[source]
        own_axis = len(self._shapes[node]) - 1 if isinstance(layer, nn.Linear) else 1
        if axis == own_axis:
            read.consumers += (node.target,)
        else:
            read.block(_reason(node, layer))
        self.made.append(Group(len(layer.weight), (node.target,)))
        return self.made[-1], own_axis

    def _keeps(self, kind: object, source: fx.Node, node: fx.Node) -> bool:
        """Return whether this operation leaves every channel where it is, apart from the others."""
        if kind in FLATTENS:
            before, after = self._shapes[source], self._shapes[node]
            return self._at[source][1] == 1 and len(after) == 2 and after[0] == before[0]
        return kind in ELEMENTWISE or (kind in POOLS | NORMS and self._at[source][1] == 1)

    def _agree(self, one: fx.Node, other: fx.Node) -> bool:
        (a, axis), (b, other_axis) = self._at[one], self._at[other]
        return self._shapes[one] == self._shapes[other] and a.size == b.size and axis == other_axis

    def _unite(self, one: tuple[Group, int], other: tuple[Group, int]) -> tuple[Group, int]:
        """Make one group of two whose channels are added to each other; the first one made gives it the name."""
        if one[0] is other[0]:
            return one
        first, second = (group for group in self.made if group is one[0] or group is other[0])
        for part in ("producers", "norms", "consumers"):
            setattr(first, part, getattr(first, part) + getattr(second, part))
        first.block(second.obstacle)
        second.producers = ()  # they are the first one's now
        self._at |= {node: (first, axis) for node, (group, axis) in self._at.items() if group is second}
        return first, one[1]

    def _block(self, node: fx.Node, reason: str) -> tuple[Group, int]:
        """Close the groups that this node reads, and begin one that is closed from the start."""
        for source in node.all_input_nodes:
            self._at[source][0].block(reason)
        layers = tuple(name for name, weight in self._weights.items() if weight.module is self._module(node))
        self.made.append(Group(producers=layers, obstacle=reason))
        return self.made[-1], 1


def _reason(node: fx.Node, module: nn.Module | None) -> str:
    if node.op == "output":
        return "they are the network's answers"
    if module:
        return f"they reach '{node.target}' ({type(module).__name__})"
    return f"they reach the function {getattr(node.target, '__name__', node.target)!r}"
