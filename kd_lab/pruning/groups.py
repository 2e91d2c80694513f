"""Find the channels that go together: to remove one, all layers that compute or read it must be changed."""

import math
import operator
import warnings
from collections import Counter
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from kd_lab.errors import ParameterError, called_function, check_choice, reason
from kd_lab.networks.layers import CONVOLUTIONS, EMBEDDINGS, TRANSPOSED, Weight, weights
from kd_lab.networks.modes import evaluation_mode
from kd_lab.networks.permanent import make_permanent
from kd_lab.networks.predictions import example_images, predict
from kd_lab.networks.tracing import is_plain, trace, trace_training

COPIES = {nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, F.dropout, F.dropout2d}
COPIES |= {"contiguous", "clone", "detach", "float", torch.clone}
ACTIVATION_LAYERS = {nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Tanh}
ACTIVATION_LAYERS |= {nn.Sigmoid, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish}
ACTIVATION_FUNCTIONS = {F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.gelu, F.silu, F.mish, F.softplus, F.tanh}
ACTIVATION_FUNCTIONS |= {F.sigmoid, F.hardtanh, F.hardsigmoid, F.hardswish}
ACTIVATION_FUNCTIONS |= {torch.relu, torch.relu_, torch.tanh, torch.sigmoid}
ACTIVATION_METHODS = {"relu", "relu_", "tanh", "tanh_", "sigmoid", "sigmoid_"}
ELEMENTWISE = COPIES | ACTIVATION_LAYERS | ACTIVATION_FUNCTIONS | ACTIVATION_METHODS
SIZES = "1d", "2d", "3d"
POOLS = {getattr(nn, f"{kind}Pool{size}") for kind in ("Max", "Avg", "AdaptiveMax", "AdaptiveAvg") for size in SIZES}
POOLS |= {getattr(F, f"{kind}_pool{size}") for kind in ("max", "avg", "adaptive_max", "adaptive_avg") for size in SIZES}
LAYERS = {nn.Linear, *CONVOLUTIONS, *EMBEDDINGS}
NORMS = {nn.GroupNorm, *(getattr(nn, f"{kind}Norm{size}") for kind in ("Batch", "Instance") for size in SIZES)}
ARITHMETIC = {operator.add, operator.iadd, torch.add, "add", "add_", operator.sub, operator.isub, torch.sub, "sub"}
ARITHMETIC |= {operator.mul, operator.imul, torch.mul, "mul", "mul_", operator.truediv, torch.div, "div"}
VIEWS = {"view", "reshape", torch.reshape}  # to sizes that may stand in the forward as numbers
MOVES = VIEWS | {nn.Flatten, torch.flatten, "flatten", "squeeze", torch.squeeze, "unsqueeze", torch.unsqueeze}
MOVES |= {"permute", torch.permute, "transpose", torch.transpose, operator.getitem}
MOVES |= {"mean", torch.mean, "amax", torch.amax}  # over other axes than that of the channels
PROBABILITIES = {nn.Softmax, nn.LogSoftmax, F.softmax, F.log_softmax, torch.softmax, torch.log_softmax}
PROBABILITIES |= {"softmax", "log_softmax"}
ANSWERS = "they are the network's answers"
NO_TENSOR = int, float, str, torch.Size, torch.dtype, torch.device, type(None)


@dataclass
class Group:
    """The layers, by name, that share channels (units, of Linear layers): to remove one, all must be changed.

    `producers` are the Linear layers, convolutions and embeddings that compute them, `norms` the normalization layers
    on their way, `consumers` the Linear layers and convolutions that read them, `grouped` the depthwise and grouped
    convolutions that pass them on; `obstacle` says why none can be removed, if so. `size` is how many can be removed
    apart from each other: where a convolution or a GroupNorm has fewer groups than channels, that of its groups.
    """

    size: int = 0
    producers: tuple[str, ...] = ()
    norms: tuple[str, ...] = ()
    consumers: tuple[str, ...] = ()
    grouped: tuple[str, ...] = ()
    obstacle: str = ""

    @property
    def layers(self) -> tuple[str, ...]:
        """Return the layers whose channels these are."""
        return self.producers + self.grouped

    def covers(self, other: "Group") -> bool:
        """Return whether every layer of another group is in the same part of this one."""
        return all({*getattr(other, part)} <= {*getattr(self, part)} for part in PARTS)

    def block(self, obstacle: str) -> None:
        """Name what stands in the way, unless something did before."""
        self.obstacle = self.obstacle or obstacle

    def coarsen(self, count: int, obstacle: str) -> None:
        """Make one of several channels that must go together, so that `count` is a multiple of what is left."""
        if self.size > 1 and math.gcd(self.size, count) == 1:
            self.block(obstacle)
        self.size = math.gcd(self.size, count)


PARTS = "producers", "norms", "consumers", "grouped"


def output_axis(layer: nn.Module) -> int:
    """Return the axis of a layer's weight on which the channels lie that it computes."""
    return int(isinstance(layer, (*TRANSPOSED, *EMBEDDINGS)))


def input_axis(layer: nn.Module) -> int:
    """Return the axis of a layer's weight on which the channels lie that it reads."""
    return 1 - output_axis(layer)


def channel_groups(model: nn.Module, images: Tensor | None = None) -> dict[str, Group]:
    """Return the groups of channels that can be removed safely, by the name of the first layer that computes them.

    Raises a ParameterError for a model that has no layers or can't read the images. `images`, a few,
    are needed for a network that reads others than (N, 1, 28, 28).
    """
    return {group.producers[0]: group for group in _all_groups(model, images) if not group.obstacle}


def find_groups(model: nn.Module, names: list[str] | None = None, images: Tensor | None = None) -> dict[str, Group]:
    """Return the groups of these names, or all; warns of those that are left out of all.

    Raises a ParameterError that says what stands in the way of one, or of every one.
    """
    by_layer = {layer: group for group in _all_groups(model, images) for layer in group.layers}
    groups = {name: group for name, group in by_layer.items() if not group.obstacle and name in group.producers[:1]}
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
    stay = {name: group.obstacle for name, group in by_layer.items() if group.obstacle not in ("", ANSWERS)}
    if names is None and stay:
        why = "; ".join(f"{name!r}: {obstacle}" for name, obstacle in stay.items())
        warnings.warn(f"{called_function()}(): some channels can't be removed safely, and stay. {why}.", stacklevel=3)
    return groups if names is None else {name: groups[name] for name in names}


def _all_groups(model: nn.Module, images: Tensor | None) -> list[Group]:
    """Return the groups of all layers, those that can't be pruned with their obstacle."""
    layers, images = weights(model), example_images(images)
    plain = make_permanent(model)
    predict(plain, images)  # names a model that can't read them
    try:
        running, training = trace(plain, images), trace_training(plain, images)
    except ParameterError as error:
        return _closed(list(layers), reason(error))
    groups = _follow(running, plain, images)
    if str(training.graph) != str(running.graph):
        groups = _with_training(groups, _follow(training, plain, images))
    found = {name for group in groups for name in group.layers}
    return groups + _closed([name for name in layers if name not in found], "the network doesn't use it")


def _closed(layers: list[str], obstacle: str) -> list[Group]:
    return [Group(producers=(name,), obstacle=obstacle) for name in layers]


def _follow(traced: fx.GraphModule, plain: nn.Module, images: Tensor) -> list[Group]:
    """Return the groups of the layers that a traced network runs."""
    follower = _Follower(traced, weights(plain))
    with evaluation_mode(traced), torch.no_grad():
        follower.run(images.clone())
    used = [group for group in follower.made if group.layers]
    for group in used:
        if not group.consumers:
            group.block("no layer reads them")
    return used


def _with_training(groups: list[Group], training: list[Group]) -> list[Group]:
    """Return the groups of a network that runs other layers, such as an auxiliary head, while it is trained."""
    trained = {layer: group for group in training for layer in group.layers}
    found = {layer for group in groups for layer in group.layers}
    both = [_wider(group, trained.get(group.layers[0], group)) for group in groups]
    return both + [group for group in training if not found & {*group.layers}]


def _wider(group: Group, trained: Group) -> Group:
    """Return the one of two groups that has all layers of the other."""
    if trained.covers(group):
        return trained
    return group if group.covers(trained) else replace(group, obstacle="in training mode they take another way")


class _Follower(fx.Interpreter):
    """Run a traced network and note to which group the channels of every result belong, and on which axis they lie."""

    def __init__(self, traced: fx.GraphModule, present: dict[str, Weight]):
        super().__init__(traced)
        self._weights = present
        self.made: list[Group] = []
        self._at: dict[fx.Node, tuple[Group, int]] = {}
        self._shapes: dict[fx.Node, tuple[int, ...]] = {}
        called = [module for node in traced.graph.nodes if (module := self._module(node))]
        uses = [tensor for module in called for tensor in _tensors(module)]
        uses += [module for module in called if type(module) in LAYERS | NORMS]
        uses += [self.fetch_attr(node.target) for node in traced.graph.nodes if node.op == "get_attr"]
        self._uses = Counter(map(id, uses))

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.submodules[node.target] if node.op == "call_module" else None

    def run_node(self, node: fx.Node):
        result = super().run_node(node)
        self._shapes[node] = tuple(getattr(result, "shape", ()))
        if not isinstance(result, NO_TENSOR):
            self._at[node] = self._follow(node)
        return result

    def _follow(self, node: fx.Node) -> tuple[Group, int]:
        """Return the group of the node's channels and their axis."""
        module, sources = self._module(node), self._sources(node)
        kind = type(module) if module else node.target
        if module and (obstacle := self._obstacle(module)):
            return self._block(node, f"{_reason(node, module)}, {obstacle}")
        if kind in LAYERS and getattr(module, "groups", 1) == 1:
            return self._layer(node, module)
        if len(sources) == 1 and (axis := self._axis(kind, sources[0], node)) is not None:
            return self._pass(node, module, self._at[sources[0]][0], axis)
        if len(sources) == 2 and kind in ARITHMETIC and self._agree(*sources):
            return self._unite(self._at[sources[0]], self._at[sources[1]], _reason(node, module))
        return self._block(node, _reason(node, module))

    def _sources(self, node: fx.Node) -> list[fx.Node]:
        return [each for each in node.all_input_nodes if each in self._at]

    def _obstacle(self, module: nn.Module) -> str:
        """Return why a module may not be changed, "" where it may."""
        if any(self._uses[id(each)] > 1 for each in (module, *_tensors(module))):
            return "whose weights are used twice"
        return "" if is_plain(module, type(module)) else "which has a hook or a forward of its own"

    def _layer(self, node: fx.Node, layer: nn.Module) -> tuple[Group, int]:
        """Begin a group at a Linear layer, convolution or embedding, which reads the one before."""
        (source,) = self._sources(node)
        read, axis = self._at[source]
        own_axis = 1 if isinstance(layer, CONVOLUTIONS) else len(self._shapes[node]) - 1
        if axis == own_axis and not isinstance(layer, EMBEDDINGS):
            read.consumers += (node.target,)
        else:
            read.block(_reason(node, layer))
        self.made.append(Group(layer.weight.shape[output_axis(layer)], (node.target,)))
        if node.target not in self._weights:
            self.made[-1].block("another layer has the same weights")
        if getattr(layer, "max_norm", None) is not None:
            self.made[-1].block(f"'{node.target}' normalizes all of them together (max_norm)")
        return self.made[-1], own_axis

    def _axis(self, kind: object, source: fx.Node, node: fx.Node) -> int | None:
        """Return the axis of the channels behind an operation that keeps them apart, None behind another."""
        axis = self._at[source][1]
        if kind in MOVES:
            return self._moved_axis(source, node)
        apart = kind in ELEMENTWISE | ARITHMETIC or (kind in POOLS | NORMS | {*CONVOLUTIONS} and axis == 1)
        return axis if apart else None

    def _moved_axis(self, source: fx.Node, node: fx.Node) -> int | None:
        """Return where the channels lie behind an operation that moves them: each is marked by its number."""
        (group, axis), shape = self._at[source], self._shapes[source]
        if group.size < 2 or axis >= len(shape):  # it may be a part of a tuple
            return None
        marks = _marks(group.size, shape, axis).expand(shape).contiguous()
        given = (node.args, node.kwargs)  # by place or by name
        args, kwargs = fx.node.map_arg(given, lambda each: marks if each is source else self.env[each])
        moved = getattr(self, node.op)(node.target, args, kwargs)
        for place in sorted(range(moved.dim()), key=lambda place: abs(place - axis)):
            fits = moved.shape[place] % group.size == 0
            if fits and torch.allclose(moved, _marks(group.size, moved.shape, place).expand_as(moved)):
                return place
        return None

    def _pass(self, node: fx.Node, module: nn.Module | None, group: Group, axis: int) -> tuple[Group, int]:
        """Go on with a group behind an operation that keeps its channels apart."""
        if node.target in VIEWS and (number := _fixed_size(node, axis)):
            group.block(
                f"{_reason(node, module)}, which asks for {number} numbers, whatever is removed: write x.flatten(1) or "
                "x.view(x.size(0), -1) in the forward"
            )
        if type(module) in NORMS:
            group.norms += (node.target,)
        if type(module) in CONVOLUTIONS:
            group.grouped += (node.target,)
        if groups := getattr(module, "num_groups", getattr(module, "groups", 0)):
            group.coarsen(groups, f"{_reason(node, module)}, which takes all channels together")
        return group, axis

    def _agree(self, one: fx.Node, other: fx.Node) -> bool:
        """Return whether channels lie on the same axis of two results, as many features on it."""
        (_, axis), (_, other_axis) = self._at[one], self._at[other]
        a, b = self._shapes[one], self._shapes[other]
        return len(a) == len(b) and axis == other_axis and a[axis : axis + 1] == b[axis : axis + 1]

    def _unite(self, one: tuple[Group, int], other: tuple[Group, int], reason: str) -> tuple[Group, int]:
        """Make one group of two whose channels are added to each other; the first one made gives it the name."""
        if one[0] is other[0]:
            return one
        first, second = (group for group in self.made if group is one[0] or group is other[0])
        for part in PARTS:
            setattr(first, part, getattr(first, part) + getattr(second, part))
        first.block(second.obstacle)
        first.coarsen(second.size, reason)
        second.producers = second.grouped = ()  # they are the first one's now
        self._at |= {node: (first, axis) for node, (group, axis) in self._at.items() if group is second}
        return first, one[1]

    def _block(self, node: fx.Node, reason: str) -> tuple[Group, int]:
        """Close the groups that this node reads, and begin one that is closed from the start."""
        for source in self._sources(node):
            self._at[source][0].block(reason)
        inside = {*module.modules()} if (module := self._module(node)) else set()
        layers = tuple(name for name, weight in self._weights.items() if weight.module in inside)
        self.made.append(Group(producers=layers, obstacle=reason))
        return self.made[-1], 1


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _marks(size: int, shape: tuple[int, ...], axis: int) -> Tensor:
    """Return the number of the channel to which each feature on an axis belongs, as wide as `shape` there."""
    numbers = torch.arange(size, dtype=torch.float64).repeat_interleave(shape[axis] // size)
    return numbers.view([-1 if place == axis else 1 for place in range(len(shape))])


def _fixed_size(node: fx.Node, axis: int) -> int:
    """Return the size on an axis that a view has in the learner's code as a number, 0 where it has none."""
    sizes = node.args[1:] or tuple(node.kwargs.values())
    sizes = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes
    size = sizes[axis] if len(sizes) > axis else -1
    return size if isinstance(size, int) and size != -1 else 0


def _reason(node: fx.Node, module: nn.Module | None) -> str:
    last = node.target in PROBABILITIES or type(module) in PROBABILITIES
    if node.op == "output" or (last and {user.op for user in node.users} == {"output"}):
        return ANSWERS
    if node.op == "placeholder":
        return "they are those of the images"
    if module:
        return f"they reach '{node.target}' ({type(module).__name__})"
    return f"they reach the function {getattr(node.target, '__name__', node.target)!r}"
