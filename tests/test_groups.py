"""Channels that go together are found, and masked so that nothing revives them; N:M masks are those of torch."""

import copy
import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.ao.pruning import WeightNormSparsifier
from torch.nn.utils import parametrize

from kd_lab.checkpoints import load_trained
from kd_lab.cost import count_nonzeros
from kd_lab.errors import ParameterError
from kd_lab.networks.layers import Weight, weighted_layers
from kd_lab.networks.permanent import make_permanent
from kd_lab.networks.predictions import predict
from kd_lab.networks.zoo import MODELS, Residual, build_model
from kd_lab.pruning import (
    IMPORTANCES,
    Group,
    Mask,
    channel_groups,
    importances,
    n_m_mask,
    prune,
    prune_channels,
    prune_n_m,
)


def kept_channels(model):
    """Return by group the channels whose producers' rows are not masked."""
    layers = weighted_layers(model)
    return {name: Weight(layers[name]).parametrization(Mask).mask.flatten(1).any(1) for name in channel_groups(model)}


def test_the_channels_of_a_residual_network_go_together():
    assert channel_groups(build_model("resnet")) == {
        "conv1": Group(
            16, ("conv1", "block1.body.conv2"), ("norm1", "block1.body.norm2"), ("block1.body.conv1", "conv2")
        ),
        "block1.body.conv1": Group(16, ("block1.body.conv1",), ("block1.body.norm1",), ("block1.body.conv2",)),
        "conv2": Group(
            48, ("conv2", "block2.body.conv2"), ("norm2", "block2.body.norm2"), ("block2.body.conv1", "fc1")
        ),
        "block2.body.conv1": Group(48, ("block2.body.conv1",), ("block2.body.norm1",), ("block2.body.conv2",)),
    }


@pytest.mark.parametrize("name", MODELS)
def test_all_but_the_last_layer_can_be_pruned(name):
    masked = prune(build_model(name), 0.5)  # masks don't hide what lies below
    inner = [layer for group in channel_groups(masked).values() for layer in group.producers]
    normalized = ("attention.output", "fc2", "conv2") if name == "vit" else ()  # LayerNorm reads all features together
    assert sorted(inner) == sorted(each for each in list(weighted_layers(masked))[:-1] if not each.endswith(normalized))


class Functional(nn.Module):
    """The same operations as functions and methods, a module used twice, and units read by two layers."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, padding=1)
        self.activation, self.drop, self.units = nn.ReLU(), nn.Dropout(), nn.BatchNorm1d(6 * 169)
        self.left, self.right, self.last = nn.Linear(6 * 169, 8), nn.Linear(6 * 169, 8), nn.Linear(8, 10)

    def forward(self, x):
        x = F.max_pool2d(self.activation(self.norm(self.first(x))), 2)
        y = torch.tanh(self.second(x))
        z = self.units(torch.flatten(self.drop(y + self.activation(x)), 1).contiguous())
        return self.last(F.dropout(self.left(z), 0.1, self.training).add(self.right(y.flatten(1)).relu()))


def test_functions_and_methods_are_followed():
    assert channel_groups(Functional()) == {
        "first": Group(6, ("first", "second"), ("norm", "units"), ("second", "left", "right")),
        "left": Group(8, ("left", "right"), (), ("last",)),
    }


class ByName(nn.Module):
    """Call layers and functions with their input by name, and change a buffer while it is trained."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.Linear(6 * 169, 10)
        self.register_buffer("mean", torch.zeros(784))

    def forward(self, x):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.flatten(1).mean(0)
        x = F.max_pool2d(input=F.relu(input=self.norm(input=self.first(input=x))), kernel_size=2)
        return self.last(input=torch.flatten(input=x, start_dim=1))


def test_inputs_by_name_are_followed():
    assert channel_groups(ByName()) == {"first": Group(6, ("first",), ("norm",), ("last",))}


class Unpooled(nn.Module):
    """Have a pooling that gives a tuple."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 6, 3), nn.Linear(6 * 26 * 26, 10)
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)

    def forward(self, x):
        pooled = self.pool(self.first(x).relu())
        return self.last(self.unpool(pooled[0], pooled[1]).flatten(1))


def test_a_part_of_a_tuple_is_not_followed():
    with pytest.raises(ParameterError, match="the channels of layer 'first' can't be removed safely: they reach"):
        prune_channels(Unpooled(), 0.5)


class Sequences(nn.Module):
    """Units on the last axis, as in a transformer's feed-forward part."""

    def __init__(self, middle):
        super().__init__()
        self.first, self.middle, self.second = nn.Linear(28, 12), middle, nn.Linear(12, 4)
        self.last = nn.Linear(112, 10)

    def forward(self, x):
        return self.last(self.second(self.middle(self.first(x.squeeze(1)))).flatten(1))


def test_units_may_lie_on_the_last_axis():
    groups = channel_groups(Sequences(nn.GELU()))
    assert groups == {"first": Group(12, ("first",), (), ("second",)), "second": Group(4, ("second",), (), ("last",))}
    assert groups["second"].turns["last"] == 28  # flattened, the units of one row come behind those of another


class Call(nn.Module):
    """Two layers with any function between them."""

    def __init__(self, function, first=None, second=None):
        super().__init__()
        self.function = function
        self.first, self.second = first or nn.Conv2d(1, 4, 28), second or nn.Linear(4, 10)

    def forward(self, x):
        return self.second(self.function(self.first(x)).flatten(1))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.again, self.last = nn.Linear(784, 12), nn.Linear(12, 12), nn.Linear(12, 10)

    def forward(self, x):
        return self.last(self.again(self.again(self.first(x.flatten(1)))))


class Tied(Twice):
    def forward(self, x):
        return self.last(F.linear(self.again(self.first(x.flatten(1))), self.again.weight))


class Branching(Twice):
    def forward(self, x):
        one = self.first(x.flatten(1))
        return self.last(one) if x.sum() == 0 else self.last(self.again(one))


class Scaled(nn.Linear):
    """A layer with a forward of its own."""

    def forward(self, x):
        return 3 * super().forward(x)


def hooked(kind):
    """Return a network whose layer of this kind has a hook that changes what it gives."""
    model = Call(nn.ReLU())
    next(each for each in model.modules() if isinstance(each, kind)).register_forward_hook(lambda _, __, y: 2 * y)
    return model


def patched():
    model = Call(nn.ReLU())
    model.second.forward = lambda x: F.linear(x, model.second.weight[:, :4])
    return model


class Drifting(Twice):
    """Take another way in training mode than in evaluation mode."""

    def forward(self, x):
        first = self.first(x.flatten(1))
        return self.again(first) if self.training else self.last(first)


class Stochastic(Twice):
    def forward(self, x):
        first = self.first(x.flatten(1))
        return self.last(self.again(first) if self.training and first.sum() > 0 else first)


VIEW = ", whatever is removed: write x.flatten(1) or x.view(x.size(0), -1) in the forward"
HOOK = ", which has a hook or a forward of its own"
UNSAFE = [
    (lambda: Call(nn.ReLU(), nn.Conv2d(1, 4, 28), Scaled(4, 10)), "first", "they reach 'second' (Scaled)", {}),
    (lambda: Sequences(Scaled(12, 12)), "first", "they reach 'middle' (Scaled)", {"second"}),
    (lambda: Sequences(Scaled(12, 12)), "middle", "they reach 'middle' (Scaled)", {"second"}),
    (lambda: hooked(nn.Conv2d), "first", f"they reach 'first' (Conv2d){HOOK}", {}),
    (lambda: hooked(nn.Linear), "first", f"they reach 'second' (Linear){HOOK}", {}),
    (lambda: hooked(nn.ReLU), "first", f"they reach 'function' (ReLU){HOOK}", {}),
    (patched, "first", f"they reach 'second' (Linear){HOOK}", {}),
    (lambda: Call(lambda x: x.view(-1, 4)), "first", f"the function 'view', which asks for 4 numbers{VIEW}", {}),
    (lambda: Call(lambda x: x.reshape((-1, 4))), "first", f"'reshape', which asks for 4 numbers{VIEW}", {}),
    (lambda: Call(lambda x: torch.reshape(x, (-1, 4))), "first", f"which asks for 4 numbers{VIEW}", {}),
    (lambda: Call(lambda x: torch.cat([x, x], 1), second=nn.Linear(8, 10)), "first", "the function 'cat'", {}),
    (lambda: Call(lambda x: x[:, :3], second=nn.Linear(3, 10)), "first", "the function 'getitem'", {}),
    (lambda: Call(lambda x: x.mean(1), second=nn.Linear(1, 10)), "first", "the function 'mean'", {}),
    (lambda: Call(nn.GroupNorm(1, 4)), "first", "'function' (GroupNorm), which takes all channels together", {}),
    (Drifting, "first", "in training mode they take another way", {}),
    (Stochastic, "first", "torch.fx can't follow the network in training mode: ", {}),
    (Twice, "first", "they reach 'again' (Linear), whose weights are used twice", {}),
    (Twice, "again", "they reach 'again' (Linear), whose weights are used twice", {}),
    (Tied, "first", "they reach 'again' (Linear), whose weights are used twice", {}),
    (Branching, "first", "torch.fx can't follow the network: symbolically traced variables", {}),
    (lambda: Sequences(nn.LayerNorm(12)), "first", "they reach 'middle' (LayerNorm)", {"second"}),
    (lambda: Sequences(nn.BatchNorm1d(28)), "first", "they reach 'middle' (BatchNorm1d)", {"second"}),
    (lambda: Sequences(nn.ReLU()), "last", "they are the network's answers", {"first", "second"}),
    (lambda: Call(lambda x: x.softmax(1)), "first", "they reach the function 'softmax'", {}),
    (lambda: Call(lambda x: x * torch.ones(4, 1, 1)), "first", "they reach the function 'mul'", {}),
    (lambda: Call(nn.PReLU(4)), "first", "they reach 'function' (PReLU)", {}),
    (lambda: Call(nn.Linear(28, 1), nn.Conv2d(1, 4, (28, 1))), "first", "they reach 'function' (Linear)", {}),
    (
        lambda: Call(nn.ReLU(), nn.Conv2d(1, 4, 28), nn.LazyLinear(10)),
        "second",
        "they are the network's answers",
        {"first"},
    ),
]


def test_layers_that_stay_whole_while_others_are_pruned_are_named():
    first = nn.Sequential(nn.Flatten(), nn.Linear(784, 6), nn.ReLU(), nn.Linear(6, 4))
    doubled = Call(lambda x: torch.cat([x, x], 1), first, nn.Linear(8, 10))
    model = nn.Sequential(doubled, nn.LogSoftmax(1))
    with pytest.warns(UserWarning, match=r"^prune_channels\(\): some channels .* '0.first.3': they .* 'cat'\.$"):
        prune_channels(model, 0.5)
    with warnings.catch_warnings(action="error"):
        prune_channels(model, {"0.first.1": 0.5})
        prune_channels(build_model("resnet"), 0.5)


@pytest.mark.parametrize("build, layer, part, safe", UNSAFE, ids=[f"{layer}: {part}" for _, layer, part, _ in UNSAFE])
def test_what_is_not_safe_is_left_out_and_named(build, layer, part, safe):
    model = build()
    predict(model, torch.zeros(1, 1, 28, 28))  # which a lazy layer needs
    before = copy.deepcopy(model.state_dict())
    assert set(channel_groups(model)) == set(safe)
    with pytest.raises(ParameterError) as error:
        prune_channels(model, {layer: 0.5})
    assert str(error.value).startswith(f"prune_channels(): the channels of layer {layer!r} can't be removed safely: ")
    assert part in str(error.value) and "prune() can still mask single weights" in str(error.value)
    if not safe:
        with pytest.raises(ParameterError, match="can't be removed safely"):
            prune_channels(model, 0.5)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_layer_that_is_not_used_is_left_out():
    model = Twice()
    model.spare = nn.Linear(12, 12)
    with pytest.raises(ParameterError, match="the network doesn't use it"):
        prune_channels(model, {"spare": 0.5})


def test_other_threads_may_run_and_trace_networks_meanwhile():
    model, images, failures = build_model("resnet"), torch.randn(2, 1, 28, 28), []
    call = nn.Module.__call__
    ended = threading.Event()

    def work(job):
        try:
            while not ended.is_set():
                job()
        except Exception as error:  # noqa: BLE001 whatever came, the test must see it
            failures.append(error)

    threads = [
        threading.Thread(target=work, args=(job,))
        for job in (lambda: predict(model, images), lambda: channel_groups(model))
    ]
    [thread.start() for thread in threads]
    try:
        found = [channel_groups(model) for _ in range(15)]
    finally:
        ended.set()
        [thread.join() for thread in threads]
    assert failures == [] and all(groups == found[0] for groups in found) and nn.Module.__call__ is call


@pytest.mark.parametrize("importance", IMPORTANCES)
@pytest.mark.parametrize("name", ["lenet300", "cnn", "resnet"])
def test_the_least_important_channels_go(name, importance, few):
    model, data = load_trained(name), few[:200]
    weights = importances(model, importance, data)
    kept = kept_channels(prune_channels(model, 0.3, importance, data=data))
    for name, group in channel_groups(model).items():
        sums = (
            weights[name].flatten(1)[:, 0]
            if importance == "random"
            else sum(weights[layer].flatten(1).sum(1) for layer in group.producers)
        )
        assert (~kept[name]).sum() == round(0.3 * group.size)
        assert sums[~kept[name]].max() <= sums[kept[name]].min()


def test_a_global_scope_compares_the_means_of_all_layers():
    model = load_trained("lenet300")
    means = {name: model.get_submodule(name).weight.abs().mean(1) for name in ("fc1", "fc2")}
    threshold = torch.cat(list(means.values())).sort().values[round(0.4 * 400)]
    kept = kept_channels(prune_channels(model, 0.4, scope="global"))
    assert all(torch.equal(kept[name], means[name] >= threshold) for name in means)
    assert (~kept["fc1"]).sum() != 120


def test_chance_is_the_same_for_every_channel_of_every_layer():
    model, removed = build_model("cnn"), {}
    for seed in range(20):
        for name, kept in kept_channels(prune_channels(model, 0.25, "random", "global", seed=seed)).items():
            removed[name] = removed.get(name, 0) + (~kept).float().mean().item() / 20
    assert all(0.17 < share < 0.33 for share in removed.values()), removed


def test_one_layer_can_be_pruned_by_its_name():
    model = build_model("cnn")
    pruned = prune_channels(model, {"conv2": 0.25})
    assert not parametrize.is_parametrized(pruned[0]) and not parametrize.is_parametrized(pruned[9])
    assert Weight(pruned[7]).parametrization(Mask).mask.sum() == 128 * 24 * 49


def test_masked_channels_have_no_effect_whatever_biases_and_norms_do():
    model = build_model("resnet").eval()
    pruned = prune_channels(model, 0.5)
    kept = kept_channels(pruned)
    expected = predict(pruned, images := torch.randn(20, 1, 28, 28))
    for name, group in channel_groups(model).items():
        for norm in group.norms:
            pruned.get_submodule(norm).bias.data[~kept[name]] = 100
    assert torch.equal(predict(pruned, images), expected)


def test_pruning_gives_a_new_model_and_a_cell_that_is_run_twice_prunes_once():
    model = load_trained("cnn")
    before = copy.deepcopy(model.state_dict())
    once = prune_channels(model, 0.5)
    twice = prune_channels(prune_channels(once, 0.9), 0.5)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(torch.equal(once.state_dict()[name], tensor) for name, tensor in twice.state_dict().items())
    assert count_nonzeros(prune_channels(twice, 0)) == count_nonzeros(model)  # channels come back
    assert once[3].weight.stride() == model[3].weight.stride()  # and a convolution stays as fast


BAD = [
    (dict(ratio=50), "'ratio' must be a number in [0, 1). Got 50. Did you mean 0.5?"),
    (dict(ratio=1), "in [0, 1). Got 1."),
    (dict(ratio=-0.1), "Got -0.1"),
    (dict(ratio=True), "Got True"),
    (dict(ratio=None), "Got None"),
    (dict(ratio=float("nan")), "Got nan"),
    (dict(ratio="0.5"), "Did you mean 0.5?"),
    (dict(ratio={"conv1": 50}), "\"ratio['conv1']\" must be a number in [0, 1). Got 50. Did you mean 0.5?"),
    (
        dict(ratio={"zero": 0.5}),
        "'group' must be one of conv1, block1.body.conv1, conv2, block2.body.conv1. Got 'zero'.",
    ),
    (dict(ratio={"block1.body.conv2": 0.5}), "go together with those of 'conv1'. Name that one."),
    (dict(ratio={"fc1": 0.5}), "they are the network's answers"),
    (dict(ratio={"conv1": 0.5}, scope="global"), "'ratio' for each group and 'scope' \"global\" exclude each other"),
    (dict(ratio=0.5, scope="layer"), "Did you mean 'per_layer'?"),
    (dict(ratio=0.5, importance="magnitud"), "Did you mean 'magnitude'?"),
    (dict(ratio=0.5, importance="gradient"), "needs 'data'"),
    (dict(ratio=0.5, importance="random", seed=0.5), "'seed' must be a whole number"),
    (dict(ratio=0.98), "ratio 0.98 leaves no channel in group 'conv1'. Lower it."),
    (dict(ratio=0.9, scope="global"), "Lower it, or use scope 'per_layer'."),
]


@pytest.mark.parametrize("arguments, part", BAD, ids=[part for _, part in BAD])
def test_bad_input_gets_one_clear_error(arguments, part):
    with pytest.raises(ParameterError) as error:
        prune_channels(build_model("resnet"), **arguments)
    assert part in str(error.value) and str(error.value).startswith("prune_channels(): "), str(error.value)


@pytest.mark.parametrize(
    "call, part",
    [
        (lambda: channel_groups("cnn"), "channel_groups(): 'model' must be a network"),
        (lambda: channel_groups(nn.ReLU()), "channel_groups(): 'model' must have a Linear"),
        (lambda: channel_groups(nn.Linear(3, 3)), "channel_groups(): the model can't read images"),
        (lambda: n_m_mask(torch.ones(8)), "must be (outputs, inputs, …). Got (8,)"),
        (lambda: n_m_mask(torch.full((2, 2), torch.nan)), "finite"),
        (lambda: n_m_mask(torch.ones(2, 4), 4, 4), "'n' must be a whole number in [1, 3]. Got 4."),
        (lambda: n_m_mask(torch.ones(2, 4), 0, 4), "Got 0."),
        (lambda: n_m_mask(torch.ones(2, 4), 1, 1), "'m' must be a whole number in [2, 1000]. Got 1."),
        (lambda: prune_n_m(build_model("mlp128"), 2.0), "prune_n_m(): 'n' must be a whole number"),
        (lambda: prune_n_m(nn.ReLU()), "prune_n_m(): 'model' must have"),
    ],
)
def test_bad_input_of_the_others(call, part):
    with pytest.raises(ParameterError) as error:
        call()
    assert part in str(error.value), str(error.value)


@pytest.mark.parametrize("n, m", [(2, 4), (1, 4), (3, 8), (1, 2), (5, 7)])
@pytest.mark.parametrize("shape", [(5, 16), (3, 10), (4, 3, 3, 3), (2, 1)])
def test_n_of_every_m_weights_stay(shape, n, m):
    weight = torch.randn(shape)
    for row, kept in zip(weight.flatten(1), n_m_mask(weight, n, m).flatten(1), strict=True):
        for start in range(0, len(row), m):
            sizes, stay = row[start : start + m].abs(), kept[start : start + m]
            assert stay.sum() == min(n, len(sizes))
            assert sizes[stay].min() >= sizes[~stay].max() if not stay.all() else True


@pytest.mark.parametrize("name", ["mlp128", "lenet5"])
def test_two_of_four_are_those_of_torch(name):
    pruned = make_permanent(prune_n_m(load_trained(name)))
    for key, layer in weighted_layers(load_trained(name)).items():
        weight = layer.weight.detach().flatten(1)
        if weight.shape[1] % 4 == 0:
            linear = nn.Linear(*weight.T.shape, bias=False)  # torch's sparsifier takes no convolutions
            linear.weight = nn.Parameter(weight.clone())
            sparsifier = WeightNormSparsifier(1.0, (1, 4), 2)
            sparsifier.prepare(nn.Sequential(linear), [{"tensor_fqn": "0.weight"}])
            sparsifier.step()
            ours, theirs = pruned.get_submodule(key).weight.flatten(1), linear.weight
            assert ours.count_nonzero() == theirs.count_nonzero() == weight.numel() // 2
            assert (ours != theirs).float().mean() < 0.01  # half precision makes ties: of equal ones, either may go
            assert torch.allclose(ours.abs().sum(1), theirs.abs().sum(1))


def test_pruning_two_of_four_starts_anew():
    model = load_trained("mlp128")
    assert torch.equal(prune_n_m(prune(model, 0.9))[1].weight, prune_n_m(model)[1].weight)
    assert prune_n_m(build_model("cnn"))[0].weight.stride() == build_model("cnn")[0].weight.stride()


def test_residual_blocks_stay_residual():
    assert isinstance(prune_channels(build_model("resnet"), 0.5)[4], Residual)
