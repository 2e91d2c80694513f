"""Hard pruning gives smaller networks with the answers of the masked ones, as Torch-Pruning does, kept to the bit."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torch_pruning
from kd_lab.parametrizations import parametrization
from torch import nn
from torch.nn.utils import parametrize

from kd_lab.checkpoints import load_checkpoint, load_trained
from kd_lab.cost import count_macs, count_parameters, file_bytes
from kd_lab.errors import DamagedFileError, ParameterError, StorageError
from kd_lab.networks.layers import make_permanent, predict, weighted_layers
from kd_lab.networks.zoo import MODELS, build_model
from kd_lab.pruning import (
    Mask,
    channel_groups,
    hard_prune,
    load_pruned,
    prune,
    prune_channels,
    remove_channels,
    remove_layers,
    save_pruned,
)
from kd_lab.storage import load_tensors, save_tensors

IMAGES = torch.randn(20, 1, 28, 28, generator=torch.Generator().manual_seed(0))


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


def random_choice(model, seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randperm(group.size, generator=generator)[: 1 + group.size // (2 + seed)]
        for name, group in channel_groups(model).items()
    }


@pytest.mark.parametrize("seed", range(3))
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
@pytest.mark.parametrize("name", MODELS)
def test_removed_answers_as_masked(name, ratio):
    model = shaken(name)
    masked = prune_channels(model, ratio, "random")
    removed = hard_prune(masked)
    for key, group in channel_groups(removed).items():
        assert group.size == channel_groups(model)[key].size - round(ratio * channel_groups(model)[key].size)
    assert_same_answers(removed, masked)
    assert_same_answers(removed, masked, IMAGES[:1])
    assert not any(parametrize.is_parametrized(module) for module in removed.modules())


@pytest.mark.parametrize("name", MODELS)
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
    smaller = hard_prune(prune_channels(model, {"0": 0.25, "3": 0.5, "7": 0.5}))
    weights = 12 * 9 + 16 * 12 * 9 + 64 * 16 * 49 + 10 * 64
    assert count_parameters(smaller) == weights + 12 + 16 + 64 + 10
    assert count_macs(smaller) == 12 * 9 * 784 + 16 * 12 * 9 * 196 + 64 * 16 * 49 + 10 * 64
    assert file_bytes(model) - file_bytes(smaller) == pytest.approx(
        4 * (count_parameters(model) - count_parameters(smaller)), abs=64
    )  # the header names shorter numbers
    assert count_macs(prune_channels(model, 0.5)) == count_macs(model)  # masks alone save nothing
    layers = weighted_layers(smaller)
    assert (layers["0"].out_channels, layers["3"].in_channels, layers["7"].in_features) == (12, 12, 784)


def test_batch_norm_shrinks_with_its_channels():
    model = shaken("resnet")
    smaller = remove_channels(model, {"0": torch.tensor([3, 1])})
    for key in ("1", "4.body.4"):
        before, after = model.get_submodule(key), smaller.get_submodule(key)
        assert after.num_features == 2
        for name in ("weight", "bias", "running_mean", "running_var"):
            assert torch.equal(getattr(after, name), getattr(before, name)[[1, 3]])  # in the order that they had
    assert smaller.get_submodule("4.body.1").num_features == 16


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
    smaller = remove_channels(model, {"0": torch.arange(5)})
    assert not smaller[0].weight.requires_grad and smaller[5].weight.requires_grad
    assert smaller.training and not smaller[1].training
    assert smaller[5].weight.is_contiguous(memory_format=torch.channels_last)
    assert smaller[5].weight.shape == (48, 5, 3, 3)


def test_nothing_is_changed_in_the_model_itself():
    model = prune_channels(shaken("cnn"), 0.5)
    before = copy.deepcopy(model.state_dict())
    for call in (
        hard_prune,
        lambda model: remove_channels(model, {"0": torch.arange(3)}),
        lambda model: remove_layers(model, ["2"]),
    ):
        call(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_what_only_removed_channels_read_goes_with_them():
    model = shaken("lenet300")
    model[5].weight.data[:, 7] = 0  # nothing reads unit 7 of layer 3
    model[3].weight.data[:7, 11] = model[3].weight.data[8:, 11] = 0  # and only it reads unit 11 of layer 1
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
    for name in ("4", "9"):
        shorter = remove_layers(model, [name])
        by_hand = nn.Sequential(*(layer for place, layer in enumerate(model) if str(place) != name))
        assert_same_answers(shorter, by_hand)
        assert isinstance(shorter[int(name)], nn.Identity)
    both = remove_layers(model, ["4", "4.body.0", "9"])
    assert count_parameters(both) == 16 * 9 + 32 + 48 * 16 * 9 + 96 + 490
    assert channel_groups(both)["5"].producers == ("5",)
    assert len(model[4].body) == 5


def test_masks_stay_when_a_layer_goes():
    shorter = remove_layers(prune_channels(shaken("resnet"), 0.5), ["4"])
    assert parametrization(shorter[5], Mask) is not None


def without_blocks(names):
    return lambda: remove_layers(shaken("resnet"), names)


PRUNED = [
    *((name, lambda name=name: hard_prune(prune_channels(shaken(name), 0.6))) for name in MODELS),
    ("resnet", lambda: remove_layers(hard_prune(prune_channels(shaken("resnet"), 0.6)), ["4"])),
    ("resnet", lambda: hard_prune(prune_channels(without_blocks(["4"])(), {"0": 0.5}))),
    ("resnet", without_blocks(["9.body", "4.body.2"])),  # the block adds its input to itself
    ("resnet", without_blocks(["2"])),
    ("cnn", lambda: prune(prune_channels(shaken("cnn"), 0.4), 0.5)),
    ("lenet5", lambda: load_trained("lenet5")),
]


@pytest.mark.parametrize("name, build", PRUNED)
def test_saved_and_reloaded_they_are_equal_to_the_bit(name, build, tmp_path):
    model = build()
    save_pruned(tmp_path / "file", model, name)
    loaded, plain = load_pruned(tmp_path / "file"), make_permanent(model)
    assert str(loaded) == str(plain) and not loaded.training
    assert all(torch.equal(tensor, loaded.state_dict()[key]) for key, tensor in plain.state_dict().items())
    assert torch.equal(predict(loaded, IMAGES), predict(plain, IMAGES))


def altered():
    model = build_model("lenet300")
    model[2] = nn.Tanh()
    return model


def widened():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 10))


BAD = [
    (
        lambda: remove_channels(build_model("cnn"), {"0": torch.ones(5).bool()}),
        "remove_channels(): 'kept' of layer '0' must be a bool tensor of shape (16,) or a tensor of different "
        "indices from 0 to 15.",
    ),
    (lambda: remove_channels(build_model("cnn"), {"0": torch.tensor([1, 1])}), "of different indices"),
    (lambda: remove_channels(build_model("cnn"), {"0": torch.tensor([16])}), "of different indices"),
    (lambda: remove_channels(build_model("cnn"), {"0": torch.tensor([-1])}), "of different indices"),
    (lambda: remove_channels(build_model("cnn"), {"0": torch.tensor([0.5])}), "of different indices"),
    (lambda: remove_channels(build_model("cnn"), {"0": torch.zeros(16).bool()}), "leaves no channel in layer '0'"),
    (lambda: remove_channels(build_model("cnn"), {"0": torch.tensor([], dtype=torch.int64)}), "leaves no channel in"),
    (lambda: remove_channels(build_model("cnn"), {"9": torch.arange(3)}), "they are the network's answers"),
    (lambda: remove_channels(build_model("cnn"), {"8": torch.arange(3)}), "'layer' must be one of 0, 3, 7. Got '8'."),
    (lambda: remove_channels("cnn", {}), "remove_channels(): 'model' must be a network"),
    (lambda: remove_channels(build_model("cnn"), {"0": [0, 1]}), "of different indices from 0 to 15. Got [0, 1]."),
    (lambda: remove_channels(build_model("cnn"), {"0": torch.tensor([True])}), "of different indices"),
    (lambda: remove_channels(build_model("cnn"), None), "remove_channels(): 'kept' must be a dict"),
    (lambda: hard_prune(nn.ReLU()), "hard_prune(): 'model' must have a Linear or Conv2d layer"),
    (lambda: hard_prune("cnn"), "hard_prune(): 'model' must be a network"),
    (lambda: hard_prune(emptied()), "hard_prune(): no layer reads any channel of layer '1'"),
    (
        lambda: remove_layers(build_model("resnet"), ["5"]),
        "module '5' must give the shape that it takes. It makes (1, 48, 14, 14) of (1, 16, 14, 14).",
    ),
    (lambda: remove_layers(build_model("resnet"), ["4", "12"]), "It makes (1, 10) of (1, 48)."),
    (lambda: remove_layers(build_model("resnet"), ["4.bodi"]), "Did you mean '4.body'?"),
    (lambda: remove_layers(build_model("resnet"), "4"), "'names' must be a list of names, as in ['4']. Got '4'."),
    (lambda: remove_layers(build_model("resnet"), [4]), "Got 4."),
    (lambda: remove_layers(build_model("resnet"), None), "Got None."),
    (lambda: remove_layers("resnet", ["4"]), "remove_layers(): 'model' must be a network"),
    (lambda: save_pruned("file", build_model("cnn"), "cn"), "save_pruned(): 'name' must be one of"),
    (lambda: save_pruned("file", "cnn", "cnn"), "save_pruned(): 'model' must be a network"),
    (lambda: save_pruned("file", build_model("cnn"), "lenet5"), "save_pruned(): 'model' must be a pruned lenet5."),
    (lambda: save_pruned("file", build_model("cnn"), "lenet300"), "It has no layer '1'; a lenet300 has 1, 3."),
    (lambda: save_pruned("file", altered(), "lenet300"), "Got one with other modules."),
    (lambda: save_pruned("file", widened(), "mlp128"), "save_pruned(): 'model' must be a pruned mlp128."),
    (lambda: save_pruned("file", widened(), "resnet"), "save_pruned(): 'model' must be a pruned resnet."),
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
        remove_layers(model, ["2.spare"])


def test_a_pruned_file_is_no_checkpoint_and_says_what_reads_it(tmp_path):
    save_pruned(tmp_path / "file", hard_prune(prune_channels(build_model("cnn"), 0.5)), "cnn")
    with pytest.raises(StorageError, match=r"holds a pruned cnn\. Use load_pruned\(path\) of kd_lab"):
        load_checkpoint(tmp_path / "file", "cnn")


def test_a_checkpoint_is_no_pruned_file_and_says_what_reads_it(tmp_path):
    save_tensors(tmp_path / "file", build_model("cnn").state_dict(), {"model": "cnn"})
    with pytest.raises(StorageError, match="Is it a checkpoint\\? load_checkpoint\\(path, name\\)"):
        load_pruned(tmp_path / "file")


@pytest.mark.parametrize(
    "change, part",
    [
        (lambda tensors, _: tensors.update({"3.bias": torch.zeros(1)}), "must be (16,) to fit the others. Got (1,)"),
        (lambda tensors, _: tensors.pop("3.bias"), "Got absent."),
        (lambda tensors, _: tensors.pop("3.weight"), "It has no layer '3'"),
        (lambda tensors, _: tensors.update(more=torch.zeros(1)), "'more' must be absent to fit the others."),
        (lambda tensors, _: tensors.update({"0.weight": torch.zeros(8, 1, 5, 5)}), "'0.weight' must be (8, 1, 3, 3)"),
        (
            lambda tensors, _: tensors.update({"0.weight": torch.zeros(17, 1, 3, 3)}),
            "a whole number in [1, 16]. Got 17",
        ),
        (lambda tensors, _: tensors.update({"9.bias": torch.zeros(9)}), "'9.bias' must be (10,)"),
        (lambda _, metadata: metadata.update(model="cn"), "holds no pruned cn. build_model(): 'name' must be one of"),
        (lambda _, metadata: metadata["pruned"].update(removed=["a"]), "must be one of"),
    ],
)
def test_a_file_that_does_not_fit_together_is_refused(change, part, tmp_path):
    save_pruned(tmp_path / "file", hard_prune(prune_channels(build_model("cnn"), 0.5)), "cnn")
    tensors, metadata = load_tensors(tmp_path / "file")
    change(tensors, metadata)
    save_tensors(tmp_path / "file", tensors, metadata)
    with pytest.raises(StorageError) as error:
        load_pruned(tmp_path / "file")
    assert part in str(error.value), str(error.value)


def test_a_damaged_file_is_refused(tmp_path):
    save_pruned(tmp_path / "file", build_model("cnn"), "cnn")
    content = bytearray((tmp_path / "file").read_bytes())
    content[-5] ^= 1
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(DamagedFileError):
        load_pruned(tmp_path / "file")
