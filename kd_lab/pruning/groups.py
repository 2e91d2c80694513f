"""Find the channels that go together: to remove one, all layers that compute or read it must be changed."""

import math
import operator
import warnings
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from kd_lab.errors import ParameterError, called_function, check_choice, reason
from kd_lab.networks.layers import (
    CONVOLUTIONS,
    EMBEDDINGS,
    RECURRENT,
    TRANSPOSED,
    recurrent_layers,
    weight_titles,
    weighted_layers,
    weights,
)
from kd_lab.networks.modes import evaluation_mode
from kd_lab.networks.permanent import make_permanent
from kd_lab.networks.predictions import example_images, predict
from kd_lab.networks.tracing import is_plain, trace, trace_training
from kd_lab.networks.transformer import Heads

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
GATES = {nn.RNN: 1, nn.GRU: 3, nn.LSTM: 4}  # whose weights lie in the same tensor, one gate after another
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
    """The layers, by name, that share channels (units, or attention heads): to remove one, all must be changed.

    `producers` are the layers that compute them, `norms` the normalization layers and the attention on their way,
    `consumers` the layers that read them, `grouped` the depthwise and grouped convolutions that pass them on;
    `obstacle` says why none can be removed, if so. `size` is how many can be removed apart from each other: where a
    convolution or a GroupNorm has fewer groups than channels, that of its groups, and of attention that of its heads.
    `turns` is how often all of them come, one after another, in what a norm or a consumer reads: flattened steps, or
    the two directions of a recurrent layer.
    """

    size: int = 0
    producers: tuple[str, ...] = ()
    norms: tuple[str, ...] = ()
    consumers: tuple[str, ...] = ()
    grouped: tuple[str, ...] = ()
    obstacle: str = ""
    turns: dict[str, int] = field(default_factory=dict, compare=False)

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


class Part(NamedTuple):
    """A tensor of a layer, by name, with channels along an axis; all of them come `turns` times, one after another."""

    tensor: str
    axis: int
    turns: int = 1


def computed(layer: nn.Module) -> list[Part]:
    """Return where the channels lie that a layer computes."""
    if isinstance(layer, RECURRENT):
        kinds, gates = ("weight_ih", "weight_hh", "bias_ih", "bias_hh"), GATES[type(layer)]
        return [Part(f"{kind}_{each}", 0, gates) for each in recurrent_layers(layer) for kind in kinds]
    return [Part("weight", output_axis(layer)), Part("bias", 0)]


def read(layer: nn.Module, turns: int) -> list[Part]:
    """Return where the channels of another layer lie that a layer reads."""
    if isinstance(layer, RECURRENT):
        return [Part(f"weight_ih_{each}", 1, turns) for each in recurrent_layers(layer) if each.startswith("l0")]
    return [Part("weight", input_axis(layer), turns)]


def fed_back(layer: nn.Module) -> list[Part]:
    """Return where the channels lie that a recurrent layer reads of its own; of other layers nothing."""
    if not isinstance(layer, RECURRENT):
        return []
    names = recurrent_layers(layer)
    upper = [Part(f"weight_ih_{each}", 1, 1 + layer.bidirectional) for each in names if not each.startswith("l0")]
    return [Part(f"weight_hh_{each}", 1) for each in names] + upper


class _Place(NamedTuple):
    """Where the channels of a group lie in a result: the axis, and how often all come on it, one after another."""

    group: Group
    axis: int
    turns: int = 1


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
        check_choice("group", name, list(groups) or list(by_layer))
    stay: dict[str, list[str]] = defaultdict(list)
    for name, group in by_layer.items():
        stay[group.obstacle].append(repr(name))
    why = [f"{', '.join(names)}: {obstacle}" for obstacle, names in stay.items() if obstacle not in ("", ANSWERS)]
    if names is None and why:
        stay_said = f"some channels can't be removed safely, and stay. {'; '.join(why)}."
        warnings.warn(f"{called_function()}(): {stay_said}", stacklevel=3)
    return groups if names is None else {name: groups[name] for name in names}


def _all_groups(model: nn.Module, images: Tensor | None) -> list[Group]:
    """Return the groups of all layers, those that can't be pruned with their obstacle."""
    layers, images = weighted_layers(model), example_images(images)
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
    follower = _Follower(traced, plain)
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

    def __init__(self, traced: fx.GraphModule, plain: nn.Module):
        super().__init__(traced)
        self._weights, self._layers = weights(plain), weighted_layers(plain)
        self.made: list[Group] = []
        self._at: dict[fx.Node, _Place] = {}
        self._shapes: dict[fx.Node, tuple[int, ...]] = {}
        called = [module for node in traced.graph.nodes if (module := self._module(node))]
        uses = [tensor for module in called for tensor in _tensors(module)]
        uses += [module for module in called if type(module) in LAYERS | NORMS | {*GATES, Heads}]
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

    def _follow(self, node: fx.Node) -> _Place:
        """Return the group of the node's channels and where they lie."""
        module, sources = self._module(node), self._sources(node)
        kind = type(module) if module else node.target
        if module and (obstacle := self._obstacle(module)):
            return self._block(node, f"{_reason(node, module)}, {obstacle}")
        recurrent = kind in GATES and len(sources) == 1 and not getattr(module, "proj_size", 0)  # from a state of zeros
        if recurrent or (kind in LAYERS and getattr(module, "groups", 1) == 1):
            return self._layer(node, module)
        if kind is Heads and self._agree(*sources):
            return self._attend(node, module, sources)
        if len(sources) == 1 and (place := self._place(kind, sources[0], node)) is not None:
            return self._pass(node, module, place)
        if len(sources) == 2 and kind in ARITHMETIC and self._agree(*sources):
            return self._unite(sources[0], sources[1], _reason(node, module))
        return self._block(node, _reason(node, module))

    def _sources(self, node: fx.Node) -> list[fx.Node]:
        return [each for each in node.all_input_nodes if each in self._at]

    def _obstacle(self, module: nn.Module) -> str:
        """Return why a module may not be changed, "" where it may."""
        if any(self._uses[id(each)] > 1 for each in (module, *_tensors(module))):
            return "whose weights are used twice"
        return "" if is_plain(module, type(module)) else "which has a hook or a forward of its own"

    def _layer(self, node: fx.Node, layer: nn.Module) -> _Place:
        """Begin a group at a layer, which reads the one before."""
        (source,) = self._sources(node)
        before, axis, turns = self._at[source]
        last = len(self._shapes[source]) - 1
        if axis == (1 if isinstance(layer, CONVOLUTIONS) else last) and not isinstance(layer, EMBEDDINGS):
            before.consumers += (node.target,)
            before.turns[node.target] = turns
        else:
            before.block(_reason(node, layer))
        size = getattr(layer, "hidden_size", 0) or layer.weight.shape[output_axis(layer)]
        self.made.append(Group(size, (node.target,)))
        if not {*weight_titles(node.target, layer)} <= {*self._weights}:
            self.made[-1].block("another layer has the same weights")
        if getattr(layer, "max_norm", None) is not None:
            self.made[-1].block(f"'{node.target}' normalizes all of them together (max_norm)")
        if type(layer) in GATES:
            return _Place(self.made[-1], last, 1 + layer.bidirectional)
        return _Place(self.made[-1], 1 if isinstance(layer, CONVOLUTIONS) else len(self._shapes[node]) - 1)

    def _attend(self, node: fx.Node, heads: nn.Module, sources: list[fx.Node]) -> _Place:
        """Make one group of the channels of queries, keys and values, of which those of a head go together."""
        for source in sources[1:]:
            self._unite(sources[0], source, _reason(node, heads))
        return self._pass(node, heads, self._at[sources[0]])

    def _place(self, kind: object, source: fx.Node, node: fx.Node) -> _Place | None:
        """Return where the channels lie behind an operation that keeps them apart, None behind another."""
        place = self._at[source]
        if isinstance(self.env[source], tuple):
            return self._taken(place, node)
        if kind in MOVES:
            return self._moved(source, node)
        apart = kind in ELEMENTWISE | ARITHMETIC or (kind in POOLS | NORMS | {*CONVOLUTIONS} and place.axis == 1)
        return place if apart else None

    def _taken(self, place: _Place, node: fx.Node) -> _Place | None:
        """Return where channels lie in one of the results of a recurrent layer: its steps, or its last state."""
        if node.target is operator.getitem and (place.turns == 1 or node.args[1] == 0 or not _is_read(node)):
            return place
        return None  # the last states of both directions lie beside each other on another axis

    def _moved(self, source: fx.Node, node: fx.Node) -> _Place | None:
        """Return where the channels lie behind an operation that moves them: each is marked by its number."""
        (group, axis, turns), shape = self._at[source], self._shapes[source]
        if group.size < 2 or axis >= len(shape):  # it may be a part of a tuple
            return None
        marks = _marks(group.size, shape, axis, turns).expand(shape).contiguous()
        given = (node.args, node.kwargs)  # by place or by name
        args, kwargs = fx.node.map_arg(given, lambda each: marks if each is source else self.env[each])
        moved = getattr(self, node.op)(node.target, args, kwargs)
        for place in sorted(range(moved.dim()), key=lambda place: abs(place - axis)):
            if (found := _turns(group.size, moved, place)) is not None:
                halved = node.target is operator.getitem and found < turns  # by numbers that stand in the forward
                return None if halved else _Place(group, place, found)
        return None

    def _pass(self, node: fx.Node, module: nn.Module | None, place: _Place) -> _Place:
        """Go on with a group behind an operation that keeps its channels apart."""
        group, axis, turns = place
        if node.target in VIEWS and (number := _fixed_size(node, axis)):
            group.block(
                f"{_reason(node, module)}, which asks for {number} numbers, whatever is removed: write x.flatten(1) or "
                "x.view(x.size(0), -1) in the forward"
            )
        if type(module) in NORMS | {Heads}:
            group.norms += (node.target,)
        if type(module) in CONVOLUTIONS:
            group.grouped += (node.target,)
        if module:
            group.turns[node.target] = turns
        if groups := getattr(module, "num_heads", getattr(module, "num_groups", getattr(module, "groups", 0))):
            together = f"{_reason(node, module)}, which takes all channels together"
            group.coarsen(groups, together)
            if turns > 1:
                group.block(together)
        return place

    def _agree(self, *nodes: fx.Node) -> bool:
        """Return whether channels lie on the same axis of these results, as many features on it."""
        places = {(self._at[node].axis, self._at[node].turns, len(self._shapes[node])) for node in nodes}
        sizes = {self._shapes[node][self._at[node].axis : self._at[node].axis + 1] for node in nodes}
        return len(places) == len(sizes) == 1

    def _unite(self, one: fx.Node, other: fx.Node, reason: str) -> _Place:
        """Make one group of two whose channels go together; the first one made gives it the name."""
        both = self._at[one].group, self._at[other].group
        groups = [group for group in self.made if group is both[0] or group is both[1]]  # equal ones are not the same
        if len(groups) == 2:
            first, second = groups
            for part in PARTS:
                setattr(first, part, getattr(first, part) + getattr(second, part))
            first.turns |= second.turns
            first.block(second.obstacle)
            first.coarsen(second.size, reason)
            second.producers = second.grouped = ()  # they are the first one's now
            self._at |= {node: place._replace(group=first) for node, place in self._at.items() if place.group is second}
        return self._at[one]

    def _block(self, node: fx.Node, reason: str) -> _Place:
        """Close the groups that this node reads, and begin one that is closed from the start."""
        for source in self._sources(node):
            self._at[source].group.block(reason)
        inside = {*module.modules()} if (module := self._module(node)) else set()
        layers = tuple(name for name, layer in self._layers.items() if layer in inside)
        self.made.append(Group(producers=layers, obstacle=reason))
        return _Place(self.made[-1], 1)


def _is_read(node: fx.Node) -> bool:
    """Return whether anything but taking it apart, as in `steps, (hidden, cell) = lstm(x)`, is done with a result."""
    return any(user.target is not operator.getitem or _is_read(user) for user in node.users)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _marks(size: int, shape: tuple[int, ...], axis: int, turns: int) -> Tensor:
    """Return the number of the channel to which each feature on an axis belongs, as wide as `shape` there."""
    numbers = torch.arange(size, dtype=torch.float64).repeat_interleave(shape[axis] // (size * turns)).repeat(turns)
    return numbers.view([-1 if place == axis else 1 for place in range(len(shape))])


def _turns(size: int, marked: Tensor, axis: int) -> int | None:
    """Return how often all channels come on an axis of marked features, None where they don't lie on it."""
    row = marked.movedim(axis, -1).reshape(-1, marked.shape[axis])[0]
    together = int((row.cumsum(0) == 0).sum())  # the features of the first channel
    if not together or len(row) % (size * together):
        return None
    turns = len(row) // (size * together)
    return turns if torch.allclose(marked, _marks(size, marked.shape, axis, turns).expand_as(marked)) else None


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
        tied = any(isinstance(each, nn.MultiheadAttention) for each in module.modules())
        advice = ", whose heads can't be removed since their size depends on their number: take SelfAttention" * tied
        return f"they reach '{node.target}' ({type(module).__name__}){advice}"
    return f"they reach the function {getattr(node.target, '__name__', node.target)!r}"
