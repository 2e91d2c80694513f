"""A network comes back from its file to the bit, dense, pruned or quantized; of version 0.1, too. So do codes."""

import base64
import copy
import functools
import zlib

import numpy as np
import pytest
import torch
from own_networks import NETWORKS, own_network
from torch import nn
from torch.nn.utils import parametrize

from kd_lab import storage
from kd_lab.checkpoints import SHIPPED, load_trained
from kd_lab.cost import file_bytes
from kd_lab.errors import DamagedFileError, ParameterError, StorageError
from kd_lab.formats import load_network, network_file_bytes, pack_bits, save_network, unpack_bits
from kd_lab.networks.layers import weighted_layers
from kd_lab.networks.permanent import make_permanent
from kd_lab.networks.predictions import predict
from kd_lab.networks.zoo import MODELS, build_model, small_student
from kd_lab.pruning import hard_prune, prune, prune_channels, remove_channels, remove_layers
from kd_lab.quantization import (
    fold_batch_norm,
    quantize_activations,
    quantize_model,
    quantize_weights,
    share_weights,
    ternarize_weights,
)
from kd_lab.storage import load_tensors, save_tensors

IMAGES = torch.randn(130, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def narrow(name):
    return hard_prune(prune_channels(load_trained(name), 0.5))


def masked_afterwards(model):
    return prune(model, 0.6, scope="per_layer")


CHANGES = {
    **{
        f"{bits} bits {granularity}{'' if symmetric else ' affine'}": functools.partial(
            quantize_weights, num_bits=bits, granularity=granularity, symmetric=symmetric
        )
        for bits in (1, 2, 3, 8)
        for granularity in ("per_tensor", "per_channel")
        for symmetric in (True, False)
    },
    "ternary": ternarize_weights,
    "codebook": lambda model: share_weights(model, 3),
    "mask, codebook": lambda model: share_weights(prune(model, 0.6, scope="per_layer"), 3),
    "codebook, mask": lambda model: masked_afterwards(share_weights(model, 3)),
    "mask, codebook of 8 bits": lambda model: share_weights(prune(model, 0.1, scope="per_layer"), {"conv2": 8}),
    "mask, grid": lambda model: quantize_weights(prune(model, 0.6, scope="per_layer"), 4),
    "grid, mask": lambda model: masked_afterwards(quantize_weights(model, 4)),
    "sign, mask": lambda model: masked_afterwards(quantize_weights(model, 1)),
    "ternary, mask": lambda model: masked_afterwards(ternarize_weights(model)),
    "activations": lambda model: quantize_activations(quantize_weights(model, 4), IMAGES, 5),
    "some layers": lambda model: quantize_weights(model, {"fc1": 4}),
}


def assert_comes_back(model, template, path):
    save_network(path, model)
    assert path.stat().st_size == network_file_bytes(model)
    for loaded in (load_network(path, template), load_network(path)):  # the file says what it is
        assert torch.equal(predict(loaded, IMAGES), predict(model, IMAGES))
        assert torch.equal(predict(loaded, IMAGES[:1]), predict(model, IMAGES[:1]))
        for name, layer in weighted_layers(loaded).items():
            assert torch.equal(layer.weight, model.get_submodule(name).weight)
            assert not parametrize.is_parametrized(layer)
        assert not any(module.training for module in loaded.modules())
        assert loaded.architecture == model.architecture


SLOW = "1 bits per_tensor", "2 bits", "3 bits per_channel", "8 bits", "mask, codebook of 8 bits", "ternary, mask"


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(change, id=name, marks=[pytest.mark.slow] * name.startswith(SLOW))
        for name, change in CHANGES.items()
    ],
)
def test_it_comes_back_to_the_bit(change, tmp_path):
    assert_comes_back(change(load_trained("lenet5_classic")), build_model("lenet5_classic", 3), tmp_path / "file")


@pytest.mark.parametrize(
    "name",
    ["lenet5", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mlp128", "lenet300", "cnn", "resnet"))],
)
def test_so_does_every_network_with_its_activations_rounded(name, tmp_path):
    model = quantize_model(load_trained(name), IMAGES, 4, 6).train()
    assert_comes_back(model, fold_batch_norm(build_model(name)), tmp_path / "file")
    assert_comes_back(model, model, tmp_path / "file")  # what stands in the network given doesn't matter
    assert_comes_back(quantize_weights(load_trained(name), 4), build_model(name), tmp_path / "file")


@pytest.mark.parametrize(
    "change",
    [lambda model: share_weights(model, 2), lambda model: quantize_weights(model, 4, "per_tensor", symmetric=False)],
)
def test_so_does_a_layer_of_one_value(change, tmp_path):
    model = build_model("mlp128")
    model[3].weight.data.fill_(-0.3)  # whose code is 0, which takes a bit all the same
    assert_comes_back(change(model), build_model("mlp128"), tmp_path / "file")


def test_so_does_a_pruned_network(tmp_path):
    save_network(tmp_path / "pruned", narrow("cnn"))
    assert_comes_back(share_weights(narrow("cnn"), 4), load_network(tmp_path / "pruned"), tmp_path / "file")


def test_so_does_a_single_layer(tmp_path):
    layer = quantize_weights(nn.Linear(784, 10), 3)
    save_network(tmp_path / "file", layer)
    assert torch.equal(load_network(tmp_path / "file", nn.Linear(784, 10)).weight, layer.weight)


def test_grids_of_activations_stay_away_where_the_file_has_none(tmp_path):
    model = quantize_weights(load_trained("mlp128"), 4)
    assert_comes_back(model, quantize_activations(model, IMAGES, 2), tmp_path / "file")


@pytest.mark.parametrize("given", [None, "cnn"])
def test_a_network_without_them_has_no_hooks(given, tmp_path):
    save_network(tmp_path / "some.safetensors", load_trained("cnn"))
    loaded = load_network(tmp_path / "some.safetensors", given and build_model(given))
    assert not any(module._forward_pre_hooks for module in loaded.modules())


def test_both_models_stay_as_they_were(tmp_path):
    model, template = share_weights(prune(load_trained("mlp128"), 0.5), 4), build_model("mlp128")
    before = [copy.deepcopy(each.state_dict()) for each in (model, template)]
    save_network(tmp_path / "file", model)
    load_network(tmp_path / "file", template)
    for each, old in zip((model, template), before, strict=True):
        assert all(torch.equal(tensor, old[name]) for name, tensor in each.state_dict().items())


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("name", ["mlp128", "cnn"])
@pytest.mark.parametrize("bits", [1, 3, *(pytest.param(bits, marks=pytest.mark.slow) for bits in (2, 4, 8))])
def test_bytes_are_those_of_codes_scales_and_biases_and_a_header(name, granularity, bits):
    model = load_trained(name)
    layers = weighted_layers(model).values()
    codes = sum(-(-layer.weight.numel() * bits // 8) for layer in layers)
    scales = sum(len(layer.weight) if granularity == "per_channel" else 1 for layer in layers)
    biases = sum(len(layer.bias) for layer in layers)
    found = network_file_bytes(quantize_weights(model, bits, granularity))
    assert 0 < found - codes - 4 * (scales + biases + len(layers)) < 1600


def test_four_bits_take_an_eighth():
    model = load_trained("lenet300")
    assert 7.7 < file_bytes(model) / network_file_bytes(quantize_weights(model, 4)) < 8


class Halve(nn.Module):
    def forward(self, weight):
        return weight / 2


def halved():
    model = quantize_weights(build_model("mlp128"), 3)
    parametrize.register_parametrization(model[3], "weight", Halve())
    model[3].parametrizations.weight[0].scale[0] *= 3
    return model


@pytest.mark.parametrize(
    "function",
    [lambda model: save_network("absent/file", model), network_file_bytes],
    ids=["save_network", "network_file_bytes"],
)
def test_a_weight_off_its_codes_is_refused(function, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ParameterError, match=r"\(\): the weight of layer 'fc2' must be what its FakeQuantizer gives"):
        function(halved())
    with pytest.raises(ParameterError, match=r"\(\): 'model' must be a network"):
        function("mlp128")
    assert not list(tmp_path.glob("*/*"))


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    path = tmp_path_factory.mktemp("quantized") / "file"
    save_network(path, quantize_model(load_trained("mlp128"), IMAGES, 4))
    return path.read_bytes()


@pytest.fixture
def path(content, tmp_path):
    (tmp_path / "file").write_bytes(content)
    return tmp_path / "file"


def test_a_damaged_file_is_refused(path):
    content = path.read_bytes()
    for place in range(0, len(content), 997):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(StorageError):
            load_network(path, build_model("mlp128"))
    path.write_bytes(content[:-3])
    with pytest.raises(DamagedFileError):
        load_network(path, build_model("mlp128"))


def test_another_network_is_refused_and_five_tensors_named(path, tmp_path):
    with pytest.raises(StorageError) as error:
        load_network(path, build_model("cnn"))
    assert "file does not hold a network of the layers of 'model': 5 tensors differ, first conv1.weight" in str(
        error.value
    )
    assert str(error.value).count(" in the file)") == 5
    with pytest.raises(StorageError, match=r"first fc1\.weight \(\(300, 784\) expected, \(128, 784\) in the file\)"):
        load_network(path, build_model("lenet300"))
    save_network(tmp_path / "folded", quantize_model(load_trained("resnet"), IMAGES))
    with pytest.raises(StorageError, match=r"first norm1\.weight .*; norm1\.num_batches_tracked"):
        load_network(tmp_path / "folded", build_model("resnet"))


def test_what_is_no_file_or_no_model_is_named(path, tmp_path):
    with pytest.raises(StorageError, match="can't be read"):
        load_network(tmp_path / "absent")
    with pytest.raises(ParameterError, match=r"^load_network\(\): 'model' must be a network"):
        load_network(path, "mlp128")
    for call in (lambda: load_network(None), lambda: save_network(None, build_model("mlp128"))):
        with pytest.raises(ParameterError, match="'path' must be the path of a file"):
            call()


def test_a_checkpoint_is_read_like_any_other():
    assert str(load_network(SHIPPED / "mlp128.safetensors")) == str(build_model("mlp128"))


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, _: tensors.pop("fc1.codes"),
        lambda tensors, _: tensors.pop("fc1.scale"),
        lambda tensors, _: tensors.update({"fc1.codes": tensors["fc1.codes"][1:].clone()}),
        lambda tensors, _: tensors.update({"fc1.scale": torch.ones(7, 1)}),
        lambda tensors, _: tensors.update({"fc1.codebook": torch.ones(2)}),
        lambda tensors, _: tensors.update({"fc1.more": torch.ones(2)}),
        lambda _, metadata: metadata["quantized"].update({"fc1": [33, [128, 784]]}),
        lambda _, metadata: metadata["quantized"].update({"fc1": [4, [784, 128]]}),
        lambda _, metadata: metadata["quantized"].pop("fc2"),
        lambda _, metadata: metadata["inputs"].pop("fc2"),
        lambda _, metadata: metadata["quantized"].update({"fc1": 4}),
        lambda _, metadata: metadata["quantized"].update({"fc1": [4, [128, 784], 4]}),
        lambda _, metadata: metadata["quantized"].update({"fc3": [4, [128, 784]]}),
        lambda _, metadata: metadata.update(quantized=[4]),
        lambda _, metadata: metadata["inputs"].update({"fc1": "4"}),
        lambda _, metadata: metadata["inputs"].update({"fc3": 4}),
        lambda _, metadata: metadata.update(inputs=4),
    ],
)
@pytest.mark.parametrize("model", [None, build_model("mlp128")], ids=["by itself", "into a model"])
def test_a_file_that_does_not_fit_together_is_refused(change, model, path):
    tensors, metadata = load_tensors(path)
    change(tensors, metadata)
    save_tensors(path, tensors, metadata)
    with pytest.raises(StorageError, match=r"file (holds no network that fits together|does not hold a)"):
        load_network(path, model)


PRUNED = {
    **{name: lambda name=name: narrow(name) for name in MODELS},
    "narrow, without a block": lambda: remove_layers(narrow("resnet"), ["block1"]),
    "without a block, narrow": lambda: hard_prune(prune_channels(without("block1"), {"conv1": 0.5})),
    "without parts of blocks": lambda: without("block2.body", "block1.body.relu1"),  # it adds its input to itself
    "without an activation": lambda: without("relu1"),
    "masked": lambda: prune(prune_channels(load_trained("cnn"), 0.4), 0.5),
    "dense": lambda: load_trained("lenet5"),
    "folded": lambda: fold_batch_norm(narrow("resnet")),
    "student": lambda: small_student(30),
    "narrow student": lambda: remove_channels(small_student(30), {"fc1": torch.arange(7)}),
}


def without(*names):
    return remove_layers(load_trained("resnet"), names)


@pytest.mark.parametrize("build", PRUNED.values(), ids=PRUNED)
def test_saved_and_reloaded_they_are_equal_to_the_bit(build, tmp_path):
    model = build()
    save_network(tmp_path / "file", model)
    loaded, plain = load_network(tmp_path / "file"), make_permanent(model)
    assert str(loaded) == str(plain) and not loaded.training and loaded.architecture == model.architecture
    assert all(torch.equal(tensor, loaded.state_dict()[key]) for key, tensor in plain.state_dict().items())
    assert torch.equal(predict(loaded, IMAGES), predict(plain, IMAGES))


def own():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 20), nn.Tanh(), nn.Linear(20, 10))


def changed_by_hand():
    model = load_trained("mlp128")
    model[2] = nn.Tanh()
    return model


@pytest.mark.parametrize("build", [own, changed_by_hand])
def test_a_network_of_ones_own_needs_a_model_and_comes_back(build, tmp_path):
    model = quantize_weights(build(), {"1" if build is own else "fc1": 3})
    save_network(tmp_path / "file", model)
    with pytest.raises(StorageError, match="It doesn't say what network it is: give a 'model' of the same layers"):
        load_network(tmp_path / "file")
    assert torch.equal(predict(load_network(tmp_path / "file", build()), IMAGES), predict(model, IMAGES))


@pytest.mark.parametrize(
    "change, part",
    [
        (
            lambda tensors, _: tensors.update({"conv2.bias": torch.zeros(1)}),
            "1 tensors differ, first conv2.bias ((16,) expected, (1,) in the file)",
        ),
        (lambda tensors, _: tensors.pop("conv2.bias"), "conv2.bias ((16,) expected, absent in the file)"),
        (lambda tensors, _: tensors.pop("conv2.weight"), "It has no layer 'conv2'; a cnn has conv1, conv2, fc1."),
        (lambda tensors, _: tensors.update(more=torch.zeros(1)), "more (absent expected, (1,) in the file)"),
        (
            lambda tensors, _: tensors.update({"conv1.weight": torch.zeros(8, 1, 5, 5)}),
            "conv1.weight ((8, 1, 3, 3) expected, (8, 1, 5, 5) in the file)",
        ),
        (
            lambda tensors, _: tensors.update({"conv1.weight": torch.zeros(17, 1, 3, 3)}),
            "\"width of 'conv1'\" must be a whole number in [1, 16]. Got 17",
        ),
        (lambda tensors, _: tensors.update({"fc2.bias": torch.zeros(9)}), "fc2.bias ((10,) expected, (9,) in the file"),
        (lambda _, metadata: metadata.update(architecture="cn"), "Did you mean 'cnn'?"),
        (lambda _, metadata: metadata.update(architecture="784-10001-10"), "'width' must be a whole number in [1, 10"),
        (lambda _, metadata: metadata.update(architecture=[1]), "must be one of mlp128, lenet300"),
        (lambda _, metadata: metadata.update(removed=["a"]), "'name' must be one of conv1, pool1"),
        (lambda _, metadata: metadata.update(removed=3), "holds no network that fits together"),
        (lambda _, metadata: metadata.pop("architecture"), "It doesn't say what network it is"),
    ],
)
def test_a_pruned_file_that_does_not_fit_together_is_refused(change, part, tmp_path):
    save_network(tmp_path / "file", narrow("cnn"))
    tensors, metadata = load_tensors(tmp_path / "file")
    change(tensors, metadata)
    save_tensors(tmp_path / "file", tensors, metadata)
    with pytest.raises(StorageError) as error:
        load_network(tmp_path / "file")
    assert part in str(error.value) and str(tmp_path / "file") in str(error.value), str(error.value)


def by_places(module):
    """Return the module, changed in place, with the layers of every Sequential named by their places, as in 0.1."""
    for name, child in module.named_children():
        setattr(module, name, by_places(child))
    return nn.Sequential(*module) if isinstance(module, nn.Sequential) else module


@pytest.fixture
def save_old(tmp_path, monkeypatch):
    """Return a function that writes tensors and metadata as version 0.1 did, and returns the path."""

    def save(model, metadata):
        with monkeypatch.context() as patched:
            patched.setattr(storage, "SCHEMA", 1)
            save_tensors(tmp_path / "old", by_places(copy.deepcopy(model)).state_dict(), metadata)
        return tmp_path / "old"

    return save


@pytest.mark.parametrize("name", sorted(MODELS.keys() - {"lstm", "vit"}))
def test_a_pruned_file_of_version_0_1_is_read(name, save_old):
    model = narrow(name)
    path = save_old(model, {"model": name, "pruned": {"removed": []}})
    assert all(key.split(".")[0].isdigit() for key in load_tensors(path)[0])
    loaded = load_network(path)
    assert str(loaded) == str(model) and loaded.architecture == name
    assert torch.equal(predict(loaded, IMAGES), predict(model, IMAGES))


def test_so_is_one_without_layers_and_one_that_is_dense(save_old):
    model = without("block2.body", "relu1")
    loaded = load_network(save_old(model, {"model": "resnet", "pruned": {"removed": ["9.body", "2"]}}))
    assert str(loaded) == str(model) and torch.equal(predict(loaded, IMAGES), predict(model, IMAGES))
    checkpoint = save_old(load_trained("cnn"), {"model": "cnn", "recipe": {}, "seed": 0})
    assert torch.equal(predict(load_network(checkpoint), IMAGES), predict(load_trained("cnn"), IMAGES))


OLD = (  # save_quantized() of version 0.1: build_model("mlp128", 0) with its first unit alone, one bit a weight
    "c-q^+!~h1>O7ZczsU?Xii6x2g@k&<JO2rw8My6&;R!S)rMn(pyW{F8jNy!H0$*HEvsRn7urb(%mhG_<g2F9u8hDnL0#>t6khDMeqCWdB)CP|iQ#"
    "s($^M#f2rmIg{XN-&dwrd7u%6_zIEm1I_>ro<>&DFFF~AUfJm2aL@vOk!ho6k?Q&5uye<3Wl+<wII>Vyn@n_Vz9>ATA<0r$r-7+Aaf0sYIT$h^^!6"
    "Zi$ShWDXA<-1q!<v8-Y}1B!YO+hOs(IU?1kEr4^@^098gC=$OQUbrvTl=A`1$s)I$diH-$Cb5&|letbcGW?l(NmRsl;8i5QjCgg4dOudFiI;K#~gq"
    "&`G&F!W}I+jrVWV+rGXo4BU|H=6&sVMFbwLsEqX@NzvnU0~Q3B-Q<x{a{--O>c88)$d!W>4n5ompbGz$9${U3>msVObvA2$Q9IHgCAF=O4eT?WOCH"
    "du={F+Y|aa*p{s)VUNL0p}i>&HSD4|PT0mL8rzibyl2}acfs~!l(Fr$KjL<K4!GKSJX5jrPvf@(nd$0yHj#a?UGJV>8GFvKre6@+r;x#_t9{(%=t*"
    "_wm$zoP&+(iqv2@4w`@Nq_OXUQ9f0MlJW8Hd6bnl_ZOT}lIZ#7$FAaZ4~$VWq)av|<-$`4C5E?p_=dAHR>ziq18!!I}WmU}b+00nd`jQ"
)


def test_a_quantized_file_that_version_0_1_wrote_is_read_into_a_model(tmp_path):
    (tmp_path / "old").write_bytes(zlib.decompress(base64.b85decode(OLD)))
    loaded = load_network(tmp_path / "old", remove_channels(build_model("mlp128"), {"fc1": torch.arange(1)}))
    image = torch.linspace(-1, 1, 3 * 784).view(3, 1, 28, 28)[:1]
    expected = [-0.08454, 0.03825, -0.02062, -0.02997, 0.05232, -0.05500, -0.03433, 0.04974, -0.00704, -0.04165]
    torch.testing.assert_close(predict(loaded, image)[0], torch.tensor(expected), atol=1e-5, rtol=0)
    with pytest.raises(StorageError, match="It doesn't say what network it is: give a 'model' of the same layers"):
        load_network(tmp_path / "old")


@pytest.mark.parametrize("name", ["mlp128", "lenet5_classic", "resnet"])
def test_so_is_one_whose_activations_are_quantized(name, tmp_path, monkeypatch):
    model = quantize_model(load_trained(name), IMAGES, 4, 6)
    save_network(tmp_path / "new", model)
    tensors, metadata = load_tensors(tmp_path / "new")
    names = {new: old for (old, _), (new, _) in zip(*(each.named_modules() for each in pair(model)), strict=True)}
    old_parts = {
        part: {names[layer]: value for layer, value in metadata[part].items()} for part in ("quantized", "inputs")
    }
    old_tensors = {renamed(key, names): tensor for key, tensor in tensors.items()}
    monkeypatch.setattr(storage, "SCHEMA", 1)
    save_tensors(tmp_path / "old", old_tensors, old_parts)
    loaded = load_network(tmp_path / "old", fold_batch_norm(build_model(name)))
    assert torch.equal(predict(loaded, IMAGES), predict(model, IMAGES))


def pair(model):
    """Return a network with its layers named as in version 0.1, and as they are."""
    plain = make_permanent(model)
    return by_places(copy.deepcopy(plain)), plain


def renamed(key, names):
    layer = max((name for name in names if name and key.startswith(f"{name}.")), key=len)
    return names[layer] + key.removeprefix(layer)


def test_an_unfinished_model_is_not_written(tmp_path):
    model = quantize_weights(build_model("mlp128"), 4)
    model[1].bias.data[0] = torch.nan
    with pytest.raises(StorageError, match=r"'fc1\.bias' holds NaN"):
        save_network(tmp_path / "file", model)
    assert make_permanent(model)[1].bias.isnan().any() and not (tmp_path / "file").exists()


# ---- codes side by side, without gaps


GENERATOR = torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    ("codes", "num_bits", "packed"),
    [
        ([1, 0, 1, 1, 0, 0, 0, 1, 1], 1, [0b10110001, 0b10000000]),
        ([3, 0, 1, 2, 3], 2, [0b11000110, 0b11000000]),
        ([5, 2, 7], 3, [0b10101011, 0b10000000]),  # the third code lies on both sides of the byte's end
        ([15, 1], 4, [0b11110001]),
        ([255, 0, 129], 8, [255, 0, 129]),
        ([256, 1], 9, [0b10000000, 0b00000000, 0b01000000]),
        ([], 5, []),
    ],
)
def test_codes_are_packed_as_by_hand(codes, num_bits, packed):
    found = pack_bits(torch.tensor(codes, dtype=torch.int32), num_bits)
    assert found.dtype == torch.uint8 and found.tolist() == packed
    assert unpack_bits(found, num_bits, (len(codes),)).tolist() == codes


@pytest.mark.parametrize("num_bits", range(1, 17))
def test_what_is_packed_is_unpacked(num_bits):
    for shape in ((1,), (7,), (8, 3), (5, 3, 3, 3)):
        codes = torch.randint(2**num_bits, shape, generator=GENERATOR)
        packed = pack_bits(codes, num_bits)
        assert len(packed) == -(-codes.numel() * num_bits // 8)
        assert torch.equal(unpack_bits(packed, num_bits, shape), codes.int())


def test_another_layout_is_packed_in_the_same_order():
    codes = torch.randint(8, (4, 3, 5, 5), generator=GENERATOR)
    assert torch.equal(pack_bits(codes.to(memory_format=torch.channels_last), 3), pack_bits(codes, 3))


@pytest.mark.parametrize(
    "call, part",
    [
        *(
            (
                lambda bits=bits: pack_bits(torch.ones(3).int(), bits),
                f"pack_bits(): 'num_bits' must be a whole number in [1, 16]. Got {bits!r}.",
            )
            for bits in (0, 33, 4.5, True, "4", None)
        ),
        *(
            (
                lambda bits=bits: unpack_bits(torch.ones(3).byte(), bits, (3,)),
                f"unpack_bits(): 'num_bits' must be a whole number in [1, 16]. Got {bits!r}.",
            )
            for bits in (0, 33, 4.5, True, "4", None)
        ),
        (lambda: pack_bits(torch.tensor([0, 16]), 4), "pack_bits(): 'codes' must be whole numbers from 0 to 15"),
        (
            lambda: pack_bits(torch.tensor([-1]), 4),
            "from 0 to 15, which is what 4 bits hold. Got Tensor of shape (1,) and torch.int64.",
        ),
        (lambda: pack_bits(torch.tensor([1.0]), 4), "'codes' must be whole numbers"),
        (lambda: pack_bits([1], 4), "pack_bits(): 'codes' must be a tensor"),
        (lambda: unpack_bits(torch.ones(3).byte(), 4, (3,)), "must be 2 bytes (uint8), which is what 3 codes of 4"),
        (lambda: unpack_bits(torch.ones(2).int(), 4, (3,)), "'packed' must be 2 bytes"),
        (lambda: unpack_bits([1, 2], 4, (3,)), "Got [1, 2]."),
        *(
            (
                lambda shape=shape: unpack_bits(torch.ones(2).byte(), 4, shape),
                "unpack_bits(): 'shape' must be a whole number in [0, 1e12].",
            )
            for shape in ((-1, -3), ("3",), (1.5,), ((3,),))
        ),
        (lambda: unpack_bits(torch.ones(2).byte(), 4, 3), "'shape' must be a tuple of whole numbers. Got 3."),
    ],
)
def test_bad_input_gets_one_clear_error(call, part):
    with pytest.raises(ParameterError) as error:
        call()
    assert part in str(error.value), str(error.value)


# ---- a learner's own networks

QUANTIZED = (lambda model: quantize_weights(model, 4), ternarize_weights, lambda model: share_weights(model, 2))


@pytest.mark.parametrize("change", [lambda model: model, lambda model: prune(model, 0.5), *QUANTIZED])
@pytest.mark.filterwarnings("ignore:.* stay whole")
@pytest.mark.parametrize("name", NETWORKS)
def test_any_network_reads_back_from_its_file_to_the_same_answers(name, change, tmp_path):
    model, images = own_network(name)
    changed = change(model)
    save_network(tmp_path / "file", changed)
    loaded = load_network(tmp_path / "file", model)
    assert torch.equal(predict(loaded, images), predict(make_permanent(changed), images))
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert (tmp_path / "file").stat().st_size == network_file_bytes(changed)


@pytest.mark.parametrize("change", [lambda model: model, *QUANTIZED])
def test_tied_weights_are_stored_once_and_stay_tied(change, tmp_path):
    model, _ = own_network("tied")
    apart = copy.deepcopy(model)
    apart.out.weight = nn.Parameter(apart.out.weight.detach().clone())
    assert network_file_bytes(change(model)) < network_file_bytes(change(apart))
    save_network(tmp_path / "tied", change(model))
    assert (loaded := load_network(tmp_path / "tied", model)).words.weight is loaded.out.weight
    save_network(tmp_path / "apart", apart)  # as files had tied weights before
    assert torch.equal(load_network(tmp_path / "apart", model).words.weight, model.words.weight)
    with torch.no_grad():
        apart.out.weight[0, 0] += 1
    save_network(tmp_path / "other", apart)
    with pytest.raises(StorageError, match=r"out.weight \(absent expected"):
        load_network(tmp_path / "other", model)


def test_state_that_is_no_tensor_is_named_before_anything_is_written(tmp_path):
    class Counting(nn.Linear):
        def get_extra_state(self):
            return {"batches": 3}

    with pytest.raises(
        ParameterError, match=r"^save_network\(\): 'model' must keep its state in dense tensors. Got _extra"
    ):
        save_network(tmp_path / "file", Counting(784, 10))
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize("number", [np.uint8, np.int64])
def test_bits_and_shapes_as_numbers_of_numpy(number):
    codes = torch.arange(60).view(3, 20) % 32
    packed = pack_bits(codes, number(5))
    assert torch.equal(packed, pack_bits(codes, 5))
    assert torch.equal(unpack_bits(packed, number(5), (number(3), number(20))), codes.int())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("change", [lambda model: quantize_model(model, IMAGES, 4), fold_batch_norm])
def test_a_file_is_read_alike_whatever_the_default_dtype(change, dtype, tmp_path):
    model = change(build_model("resnet"))
    save_network(tmp_path / "file", model)
    torch.set_default_dtype(dtype)
    try:
        loaded = load_network(tmp_path / "file")
    finally:
        torch.set_default_dtype(torch.float32)
    assert {tensor.dtype for tensor in loaded.state_dict().values()} <= {torch.float32, torch.int32, torch.int64}
    assert torch.equal(predict(loaded, IMAGES), predict(model, IMAGES))
