"""Hard pruning gives smaller networks with the answers of the masked ones, as Torch-Pruning does, kept to the bit."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torch_pruning
from torch import nn
from torch.nn.utils import parametrize

from kd_lab.cost import count_macs, count_parameters, file_bytes
from kd_lab.errors import ParameterError
from kd_lab.networks.layers import Weight, weighted_layers
from kd_lab.networks.permanent import make_permanent
from kd_lab.networks.predictions import predict
from kd_lab.networks.zoo import MODELS, build_model, small_student
from kd_lab.pruning import Mask, channel_groups, hard_prune, prune, prune_channels, remove_channels, remove_layers
from kd_lab.pruning.channels import form_of, sort_channels
from kd_lab.quantization import fold_batch_norm

IMAGES = torch.randn(20, 1, 28, 28, generator=torch.Generator().manual_seed(0))
QUICK = "mlp128", "cnn", "resnet"
NAMES = [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in MODELS]


def shaken(name, seed=1):
    """Return a network whose biases and BatchNorm parameters and statistics are random, too."""
    model = build_model(name, seed).eval()
    generator = torch.Generator().manual_seed(seed)
    for key, tensor in model.state_dict().items():
        if tensor.dim() == 1:
            tensor.uniform_(0.5 if "running_var" in key else -0.5, 1.5, generator=generator)
    return model


def assert_same_answers(one, other, images=IMAGES):
    assert torch.allclose(predict(one, images), predict(other, images), rtol=1e-5, atol=1e-5)


class Own(nn.Module):
    """Layers as a learner names them, and a forward of the learner's own."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.own = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return self.own(self, x)


def between(*layers, first=None, last=None):
    """Return a network with these layers between a convolution of 6 channels and another one."""
    first, last = first or nn.Conv2d(1, 6, 3), last or nn.Conv2d(6, 4, 3)
    return nn.Sequential(first, *layers, last, nn.ReLU(), nn.Flatten(), nn.LazyLinear(10))


def own(forward, **more):
    layers = {"one": nn.Conv2d(1, 6, 3, padding=1), "two": nn.Conv2d(6, 6, 3, padding=1), "fc": nn.LazyLinear(10)}
    return Own(forward, **(layers | more))


def added_in_place(self, x):
    x = F.relu(self.one(x), inplace=True)
    x += self.two(x)
    return self.fc(x.view(x.size(0), -1))


def with_head(self, x):
    x = F.max_pool2d(self.one(x).relu(), 2)
    y = self.fc(self.two(x).mean((2, 3)))
    return (y, self.head(x.flatten(1))) if self.training else y


def gated(x, layer):
    return x.mul(layer(x).amax((2, 3), True).sigmoid())


def words():
    def forward(self, x):
        return self.fc(F.relu(self.one(self.words(x).transpose(1, 2))).amax(2))

    return Own(forward, words=nn.Embedding(12, 6), one=nn.Conv1d(6, 8, 3), fc=nn.Linear(8, 10))


SQUARE = torch.randn(3, 1, 12, 12, generator=torch.Generator().manual_seed(1))
LINE, CUBE, WORDS = (
    SQUARE.flatten(2),
    SQUARE[..., :6].unflatten(3, (2, 3)),
    SQUARE.flatten(1)[:, :9].abs().mul(4).long(),
)
OWN = {  # the network, its images, and how many channels of each group can be removed
    "Conv1d": (lambda: between(nn.BatchNorm1d(6), first=nn.Conv1d(1, 6, 3), last=nn.Conv1d(6, 4, 3)), LINE, [6, 4]),
    "Conv3d": (lambda: between(nn.BatchNorm3d(6), first=nn.Conv3d(1, 6, 2), last=nn.Conv3d(6, 4, 1)), CUBE, [6, 4]),
    "ConvTranspose2d": (
        lambda: between(nn.ConvTranspose2d(6, 8, 3, bias=False), last=nn.Conv2d(8, 4, 3)),
        SQUARE,
        [6, 8, 4],
    ),
    "depthwise": (lambda: between(nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6), nn.ReLU6()), SQUARE, [6, 4]),
    "depthwise, twice as many": (
        lambda: between(nn.Conv2d(6, 12, 3, groups=6), nn.Hardswish(), last=nn.Conv2d(12, 4, 3)),
        SQUARE,
        [6, 4],
    ),
    "grouped": (lambda: between(nn.Conv2d(6, 9, 3, groups=3), last=nn.Conv2d(9, 4, 3)), SQUARE, [3, 4]),
    "grouped, transposed": (
        lambda: between(nn.ConvTranspose2d(6, 9, 3, groups=3), last=nn.Conv2d(9, 4, 3)),
        SQUARE,
        [3, 4],
    ),
    "GroupNorm": (lambda: between(nn.GroupNorm(3, 6)), SQUARE, [3, 4]),
    "GroupNorm behind a grouped convolution": (
        lambda: between(
            nn.Conv2d(12, 12, 3, groups=6), nn.GroupNorm(4, 12), first=nn.Conv2d(1, 12, 3), last=nn.Conv2d(12, 4, 3)
        ),
        SQUARE,
        [2, 4],
    ),
    "InstanceNorm": (lambda: between(nn.InstanceNorm2d(6, affine=True, track_running_stats=True)), SQUARE, [6, 4]),
    "pooled": (lambda: between(nn.Dropout2d(), nn.AvgPool2d(2), last=nn.AdaptiveAvgPool2d((1, 1))), SQUARE, [6]),
    "words": (words, WORDS, [6, 8]),
    "added in place": (lambda: own(added_in_place), SQUARE, [6]),
    "view": (lambda: own(lambda self, x: self.fc(self.two(self.one(x)).view(x.shape[0], -1))), SQUARE, [6, 6]),
    "view of several axes": (
        lambda: own(lambda self, x: self.fc((y := self.two(self.one(x))).view(-1, y.size(1) * y.size(2) * y.size(3)))),
        SQUARE,
        [6, 6],
    ),
    "mean": (lambda: own(lambda self, x: self.fc((self.two(self.one(x)) / 2 - 1).mean([2, 3]))), SQUARE, [6, 6]),
    "gate": (lambda: own(lambda self, x: self.fc(gated(self.one(x), self.two).flatten(1))), SQUARE, [6]),
    "units added to features": (
        lambda: own(lambda self, x: self.fc(self.one(x).flatten(1) + self.two(x.flatten(1))), two=nn.Linear(144, 864)),
        SQUARE,
        [6],
    ),
    "a head for training": (lambda: own(with_head, head=nn.LazyLinear(10)), SQUARE, [6, 6]),
}


def own_network(name):
    """Build one of these networks with its lazy layers made, and everything that is random from one seed."""
    build, images, sizes = OWN[name]
    torch.manual_seed(0)
    model = build()
    model.train()(images)
    for key, tensor in model.state_dict().items():
        if "running" in key:
            tensor.uniform_(0.5, 1.5)
    return model.eval(), images, sizes


@pytest.mark.parametrize("name", OWN)
def test_channels_of_a_learners_own_network_are_removed(name):
    model, images, sizes = own_network(name)
    groups = channel_groups(model, images)
    assert [group.size for group in groups.values()] == sizes
    data = images, torch.zeros(len(images), dtype=torch.int64)
    masked = prune_channels(model, 0.5, "random", data=data)
    removed = hard_prune(masked, images)
    kept = {key: _rows_kept(masked.get_submodule(key), group.size) for key, group in groups.items()}
    assert [int(mask.sum()) for mask in kept.values()] == [size - round(size / 2) for size in sizes]
    for narrow in (removed, remove_channels(model, kept, images)):
        for key, mask in kept.items():
            weight, narrower = model.get_submodule(key).weight, narrow.get_submodule(key).weight
            assert narrower.numel() <= weight.numel() * mask.float().mean()
        assert_same_answers(narrow, masked, images)
        assert_same_answers(narrow, masked, images[:1])
        narrow.train()(images)  # a head that only training runs got narrower, too


def _rows_kept(layer, size):
    """Return which channels of a masked layer some weight computes."""
    axis = int(isinstance(layer, (nn.Embedding, nn.ConvTranspose2d)))
    return Weight(layer).parametrization(Mask).mask.movedim(axis, 0).reshape(size, -1).any(1)


@pytest.mark.parametrize("last", [torch.contiguous_format, torch.channels_last])
def test_every_tensor_keeps_its_memory_format(last):
    model, images, _ = own_network("mean")
    model = model.to(memory_format=last)
    smaller = remove_channels(model, {"one": torch.arange(3)}, images)
    for key in ("one", "two"):
        weight = smaller.get_submodule(key).weight
        assert weight.stride() == torch.empty_like(weight, memory_format=last).stride()


def test_channels_go_where_all_of_a_group_of_a_convolution_go():
    model, images, _ = own_network("grouped")
    smaller = remove_channels(model, {"0": torch.tensor([0, 2])}, images)
    assert [smaller[0].out_channels, smaller[1].groups, smaller[2].in_channels] == [4, 2, 6]
    assert torch.equal(smaller[0].weight, model[0].weight[[0, 1, 4, 5]])
    assert torch.equal(smaller[1].weight, model[1].weight[[0, 1, 2, 6, 7, 8]])


def averaged(self, x):
    y = self.two(self.one(x))
    return self.fc(y.flatten(1) / y.size(1))


def asserted(self, x):
    y = self.one(x)
    torch._assert(y.size(1) == 6, "six channels are expected")
    return self.fc(self.two(y).flatten(1))


@pytest.mark.parametrize(
    "build, part",
    [
        (lambda: own(averaged), "the network can't be made narrower: its answers would not be the same, but differ"),
        (lambda: own(asserted), "what is left of the network could not run: AssertionError: six channels are expected"),
    ],
)
def test_a_network_that_would_not_run_or_answer_otherwise_is_refused(build, part):
    model = build()
    model(SQUARE)
    masked = prune_channels(model, 0.5, data=(SQUARE, torch.zeros(3).long()))
    kept = {name: torch.arange(3) for name in channel_groups(model, SQUARE)}
    for call in (lambda: hard_prune(masked, SQUARE), lambda: remove_channels(model, kept, SQUARE)):
        with pytest.raises(ParameterError) as error:
            call()
        assert part in str(error.value)


def test_a_network_that_would_not_run_without_a_layer_is_refused():
    model = Own(
        lambda self, x: self.fc(self.body(x).mean(1)),
        body=nn.TransformerEncoderLayer(12, 2, 16, batch_first=True),
        fc=nn.Linear(12, 10),
    )
    with pytest.raises(ParameterError, match=r"remove_layers\(\): what is left of the network could not run: .*'eps'"):
        remove_layers(model, ["body.norm1"], SQUARE.squeeze(1))


def torchvision_network(name):
    """Build a network for images of one channel, with BatchNorm statistics and biases that are random, too."""
    import torchvision  # takes seconds

    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(weights=None, num_classes=10)
    first, key = (model, "conv1") if name == "resnet18" else (model.features[0], "0")
    old = first.get_submodule(key)
    first.add_module(key, nn.Conv2d(1, old.out_channels, old.kernel_size, old.stride, old.padding, bias=False))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.uniform_(0.5, 1.5)
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize("name, count", [("resnet18", 12), ("mobilenet_v2", 25)])
def test_published_networks_are_cut_as_torch_pruning_does(name, count):
    model, images = torchvision_network(name), torch.randn(2, 1, 32, 32)
    theirs, groups = copy.deepcopy(model), channel_groups(model, images)
    assert len(groups) == count
    kept = {key: torch.randperm(group.size)[: group.size // 3] for key, group in groups.items()}
    for key, stay in kept.items():
        graph = torch_pruning.DependencyGraph().build_dependency(theirs, images)
        go = sorted({*range(groups[key].size)} - {*stay.tolist()})
        graph.get_pruning_group(theirs.get_submodule(key), torch_pruning.prune_conv_out_channels, go).prune()
    ours = remove_channels(model, kept, images)
    assert str(ours) == str(theirs)
    assert all(torch.equal(tensor, theirs.state_dict()[key]) for key, tensor in ours.state_dict().items())
    assert torch.equal(predict(ours, images), predict(theirs, images))


def random_choice(model, seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randperm(group.size, generator=generator)[: 1 + group.size // (2 + seed)]
        for name, group in channel_groups(model).items()
    }


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
@pytest.mark.parametrize("name", ["cnn", "lenet5", "resnet"])
def test_it_cuts_as_torch_pruning_does(name, seed):
    model = shaken(name)
    theirs, kept = copy.deepcopy(model), random_choice(model, seed)
    for group, stay in kept.items():
        graph = torch_pruning.DependencyGraph().build_dependency(theirs, IMAGES[:1])
        layer = theirs.get_submodule(group)
        kind = (
            torch_pruning.prune_linear_out_channels
            if isinstance(layer, nn.Linear)
            else torch_pruning.prune_conv_out_channels
        )
        go = sorted({*range(len(layer.weight))} - {*stay.tolist()})
        graph.get_pruning_group(layer, kind, go).prune()
    ours = remove_channels(model, kept)
    assert str(ours) == str(theirs)
    assert all(torch.equal(tensor, theirs.state_dict()[key]) for key, tensor in ours.state_dict().items())
    assert_same_answers(ours, theirs)


@pytest.mark.parametrize("ratio", [0.3, 0.9])
@pytest.mark.parametrize("name", NAMES)
def test_removed_answers_as_masked(name, ratio):
    model, ratio = shaken(name), min(ratio, 0.75) if name == "vit" else ratio  # of four heads one stays
    masked = prune_channels(model, ratio, "random")
    removed = hard_prune(masked)
    for key, group in channel_groups(removed).items():
        assert group.size == channel_groups(model)[key].size - round(ratio * channel_groups(model)[key].size)
    assert_same_answers(removed, masked)
    assert_same_answers(removed, masked, IMAGES[:1])
    assert not any(parametrize.is_parametrized(module) for module in removed.modules())


@pytest.mark.parametrize("name", NAMES)
def test_it_goes_with_masks_of_single_weights(name):
    model = make_permanent(prune(shaken(name), 0.5, scope="per_layer"))
    masked = prune(make_permanent(prune_channels(model, 0.4)), 0.7, scope="per_layer")
    removed = hard_prune(masked)
    assert_same_answers(removed, masked)
    assert count_parameters(removed) < 0.75 * count_parameters(model)


@pytest.mark.parametrize("name", ["cnn", "resnet"])
def test_it_holds_after_training_with_momentum(name, few):
    masked = prune_channels(build_model(name), 0.5).train()
    optimizer = torch.optim.SGD(masked.parameters(), 0.05, momentum=0.9, weight_decay=0.01)
    for x, y in zip(few.images[:192].split(64), few.labels[:192].split(64), strict=True):
        optimizer.zero_grad()
        F.cross_entropy(masked(x), y).backward()
        optimizer.step()
    removed = hard_prune(masked)
    assert_same_answers(removed, masked)
    assert removed.training
    assert [group.size for group in channel_groups(removed).values()] == [
        group.size // 2 for group in channel_groups(build_model(name)).values()
    ]


def test_costs_fall_as_counted_by_hand():
    model = shaken("cnn")
    smaller = hard_prune(prune_channels(model, {"conv1": 0.25, "conv2": 0.5, "fc1": 0.5}))
    weights = 12 * 9 + 16 * 12 * 9 + 64 * 16 * 49 + 10 * 64
    assert count_parameters(smaller) == weights + 12 + 16 + 64 + 10
    assert count_macs(smaller) == 12 * 9 * 784 + 16 * 12 * 9 * 196 + 64 * 16 * 49 + 10 * 64
    assert file_bytes(model) - file_bytes(smaller) == pytest.approx(
        4 * (count_parameters(model) - count_parameters(smaller)), abs=64
    )  # the header names shorter numbers
    assert count_macs(prune_channels(model, 0.5)) == count_macs(model)  # masks alone save nothing
    layers = weighted_layers(smaller)
    assert (layers["conv1"].out_channels, layers["conv2"].in_channels, layers["fc1"].in_features) == (12, 12, 784)


def test_batch_norm_shrinks_with_its_channels():
    model = shaken("resnet")
    smaller = remove_channels(model, {"conv1": torch.tensor([3, 1])})
    for key in ("norm1", "block1.body.norm2"):
        before, after = model.get_submodule(key), smaller.get_submodule(key)
        assert after.num_features == 2
        for name in ("weight", "bias", "running_mean", "running_var"):
            assert torch.equal(getattr(after, name), getattr(before, name)[[1, 3]])  # in the order that they had
    assert smaller.get_submodule("block1.body.norm1").num_features == 16


def test_a_batch_norm_without_tensors_shrinks_too():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4, affine=False, track_running_stats=False),
        nn.Flatten(),
        nn.Linear(4 * 26 * 26, 10),
    )
    smaller = remove_channels(model, {"0": torch.tensor([0, 2])})
    assert smaller[1].num_features == 2 and smaller[3].in_features == 2 * 26 * 26


@pytest.mark.parametrize("name", MODELS)
def test_ratio_0_changes_nothing(name):
    model = shaken(name)
    for same in (hard_prune(prune_channels(model, 0)), remove_channels(model, {}), remove_layers(model, [])):
        assert str(same) == str(model)
        assert all(torch.equal(tensor, same.state_dict()[key]) for key, tensor in model.state_dict().items())


def test_layout_gradients_and_mode_are_kept():
    model = build_model("resnet").train()
    model[0].weight.requires_grad_(False)
    model[1].eval()
    smaller = remove_channels(model, {"conv1": torch.arange(5)})
    assert not smaller[0].weight.requires_grad and smaller[5].weight.requires_grad
    assert smaller.training and not smaller[1].training
    assert smaller[5].weight.is_contiguous(memory_format=torch.channels_last)
    assert smaller[5].weight.shape == (48, 5, 3, 3)


def test_nothing_is_changed_in_the_model_itself():
    model = prune_channels(shaken("cnn"), 0.5)
    before = copy.deepcopy(model.state_dict())
    for call in (
        hard_prune,
        lambda model: remove_channels(model, {"conv1": torch.arange(3)}),
        lambda model: remove_layers(model, ["relu1"]),
    ):
        call(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_what_only_removed_channels_read_goes_with_them():
    model = shaken("lenet300")
    model[5].weight.data[:, 7] = 0  # nothing reads unit 7 of fc2
    model[3].weight.data[:7, 11] = model[3].weight.data[8:, 11] = 0  # and only it reads unit 11 of fc1
    smaller = hard_prune(model)
    assert [layer.out_features for layer in weighted_layers(smaller).values()] == [299, 99, 10]
    assert_same_answers(smaller, model)


def test_a_channel_is_kept_as_long_as_one_of_its_features_is_read():
    model = shaken("cnn")
    weight = model[7].weight.data.view(128, 32, 49)
    weight[:, 4] = 0
    weight[:, 5] = 0
    weight[3, 5, 48] = 1
    smaller = hard_prune(model)
    assert smaller[3].out_channels == 31
    assert torch.equal(smaller[3].weight, model[3].weight[[*range(4), *range(5, 32)]])


def emptied():
    model = build_model("lenet300")
    model[3].weight.data.zero_()
    return model


def test_what_cannot_be_followed_is_left_whole():
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.Softmax(1), nn.Linear(8, 10))
    model[3].weight.data[:, 3] = 0
    assert str(hard_prune(model)) == str(model)


def test_a_residual_block_can_be_removed():
    model = shaken("resnet")
    for name in ("block1", "block2"):
        shorter = remove_layers(model, [name])
        by_hand = nn.Sequential(*(layer for key, layer in model.named_children() if key != name))
        assert_same_answers(shorter, by_hand)
        assert isinstance(shorter.get_submodule(name), nn.Identity)
    both = remove_layers(model, ["block1", "block1.body.conv1", "block2"])
    assert count_parameters(both) == 16 * 9 + 32 + 48 * 16 * 9 + 96 + 490
    assert channel_groups(both)["conv2"].producers == ("conv2",)
    assert len(model[4].body) == 5


def test_masks_stay_when_a_layer_goes():
    shorter = remove_layers(prune_channels(shaken("resnet"), 0.5), ["block1"])
    assert Weight(shorter[5]).parametrization(Mask) is not None


def without_blocks(names):
    return lambda: remove_layers(shaken("resnet"), names)


def altered():
    model = build_model("lenet300")
    model[2] = nn.Tanh()
    return model


def named(architecture, model):
    """Return the model, which now claims to be another network."""
    model.architecture = architecture
    return model


BAD = [
    (
        lambda: remove_channels(build_model("cnn"), {"conv1": torch.ones(5).bool()}),
        "remove_channels(): 'kept' of layer 'conv1' must be a bool tensor of shape (16,) or a tensor of different "
        "indices from 0 to 15.",
    ),
    (lambda: remove_channels(build_model("cnn"), {"conv1": torch.tensor([1, 1])}), "of different indices"),
    (lambda: remove_channels(build_model("cnn"), {"conv1": torch.tensor([16])}), "of different indices"),
    (lambda: remove_channels(build_model("cnn"), {"conv1": torch.tensor([-1])}), "of different indices"),
    (lambda: remove_channels(build_model("cnn"), {"conv1": torch.tensor([0.5])}), "of different indices"),
    (
        lambda: remove_channels(build_model("cnn"), {"conv1": torch.zeros(16).bool()}),
        "leaves no channel in layer 'conv1'",
    ),
    (
        lambda: remove_channels(build_model("cnn"), {"conv1": torch.tensor([], dtype=torch.int64)}),
        "leaves no channel in",
    ),
    (lambda: remove_channels(build_model("cnn"), {"fc2": torch.arange(3)}), "they are the network's answers"),
    (
        lambda: remove_channels(build_model("cnn"), {"relu3": torch.arange(3)}),
        "'group' must be one of conv1, conv2, fc1. Got 'relu3'.",
    ),
    (lambda: remove_channels("cnn", {}), "remove_channels(): 'model' must be a network"),
    (lambda: remove_channels(build_model("cnn"), {"conv1": [0, 1]}), "of different indices from 0 to 15. Got [0, 1]."),
    (lambda: remove_channels(build_model("cnn"), {"conv1": torch.tensor([True])}), "of different indices"),
    (lambda: remove_channels(build_model("cnn"), None), "remove_channels(): 'kept' must be a dict"),
    (lambda: hard_prune(nn.ReLU()), "hard_prune(): 'model' must have a Linear layer"),
    (lambda: hard_prune("cnn"), "hard_prune(): 'model' must be a network"),
    (lambda: hard_prune(emptied()), "hard_prune(): no layer reads any channel of layer 'fc1'"),
    (
        lambda: remove_layers(build_model("resnet"), ["conv2"]),
        "module 'conv2' must give the shape that it takes. It makes (1, 48, 14, 14) of (1, 16, 14, 14).",
    ),
    (lambda: remove_layers(build_model("resnet"), ["block1", "fc1"]), "It makes (1, 10) of (1, 48)."),
    (lambda: remove_layers(build_model("resnet"), ["block1.bodi"]), "Did you mean 'block1.body'?"),
    (
        lambda: remove_layers(build_model("resnet"), "block1"),
        "'names' must be a list of names, as in ['block1']. Got 'block1'.",
    ),
    (lambda: remove_layers(build_model("resnet"), [4]), "Got 4."),
    (lambda: remove_layers(build_model("resnet"), None), "Got None."),
    (lambda: remove_layers("resnet", ["block1"]), "remove_layers(): 'model' must be a network"),
    (lambda: form_of(named("cn", build_model("cnn"))), "Did you mean 'cnn'?"),
    (lambda: form_of("cnn"), "form_of(): 'model' must be a network"),
    (
        lambda: form_of(named("lenet5", build_model("cnn"))),
        "form_of(): 'model' must be a pruned lenet5. Its tensor 'conv1.weight' must be (16, 1, 5, 5), torch.float32 to "
        "fit the others. Got (16, 1, 3, 3), torch.float32.",
    ),
    (lambda: form_of(named("cnn", build_model("lenet300"))), "It has no layer 'conv1'; a cnn has conv1, conv2, fc1."),
    (lambda: form_of(altered()), "Got one with other modules."),
    (
        lambda: form_of(named("mlp128", small_student(200))),
        "form_of(): 'model' must be a pruned mlp128. \"width of 'fc1'\" must be a whole number in [1, 128]. Got 200.",
    ),
    (lambda: form_of(named("resnet", small_student(200))), "form_of(): 'model' must be a pruned resnet. It has no"),
    (
        lambda: form_of(nn.Sequential(nn.Flatten(), nn.Linear(784, 10))),
        "Got a Sequential that carries no architecture.",
    ),
]


@pytest.mark.parametrize("call, part", BAD, ids=[part for _, part in BAD])
def test_bad_input_gets_one_clear_error(call, part):
    with pytest.raises(ParameterError) as error:
        call()
    assert part in str(error.value), str(error.value)


def test_a_layer_that_is_never_run_is_refused():
    model = build_model("mlp128")
    model[2].spare = nn.ReLU()
    with pytest.raises(ParameterError, match="It is never run"):
        remove_layers(model, ["relu1.spare"])


def depthwise():
    """Return a network of other images, whose depthwise convolution makes two channels of each."""
    first = nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 12, 3, groups=6, bias=False), nn.BatchNorm2d(12)
    return nn.Sequential(*first, nn.Flatten(), nn.Linear(12 * 4 * 4, 5), nn.ReLU(), nn.Linear(5, 3)).eval()


@pytest.mark.parametrize("name", ["mlp128", "cnn", "resnet", "lstm"])
def test_channels_come_in_the_order_of_their_biases_and_the_answers_stay(name):
    model = fold_batch_norm(build_model(name)) if name == "resnet" else build_model(name)
    ordered = sort_channels(model)
    images = torch.randn(20, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(predict(ordered, images), predict(model, images), atol=1e-5)
    for each in (group.producers[0] for group in channel_groups(ordered).values()):
        if isinstance(layer := ordered.get_submodule(each), (nn.Linear, nn.Conv2d)):
            assert (layer.bias.diff() >= 0).all() and layer.bias.numel() > 1
    last = list(weighted_layers(model))[-1]
    assert torch.equal(ordered.get_submodule(last).bias, model.get_submodule(last).bias)


def test_depthwise_channels_move_with_those_that_they_read():
    model, images = depthwise(), torch.randn(5, 2, 8, 8)
    model[3].running_mean.normal_()
    ordered = sort_channels(model, images)
    assert (ordered[0].bias.diff() >= 0).all() and not torch.equal(ordered[0].bias, model[0].bias)
    assert torch.allclose(predict(ordered, images), predict(model, images), atol=1e-5)


def test_a_group_without_biases_stays_as_it_is():
    model = build_model("resnet")
    assert all(map(torch.equal, sort_channels(model).state_dict().values(), model.state_dict().values()))
