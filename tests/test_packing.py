"""Codes lie side by side, and a quantized network comes back from its file to the bit."""

import copy
import functools

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from kd_lab.checkpoints import SHIPPED, load_checkpoint, load_trained
from kd_lab.cost import file_bytes
from kd_lab.errors import DamagedFileError, ParameterError, StorageError
from kd_lab.formats.network_file import pack_bits, unpack_bits
from kd_lab.networks.layers import make_permanent, predict, weighted_layers
from kd_lab.networks.zoo import build_model
from kd_lab.pruning import hard_prune, load_pruned, prune, prune_channels, save_pruned
from kd_lab.quantization import (
    fold_batch_norm,
    load_quantized,
    packed_bytes,
    quantize_activations,
    quantize_model,
    quantize_weights,
    save_quantized,
    share_weights,
    ternarize_weights,
)
from kd_lab.storage import load_tensors, save_tensors

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randn(130, 1, 28, 28, generator=GENERATOR)


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
    "mask, codebook of 8 bits": lambda model: share_weights(prune(model, 0.1, scope="per_layer"), 8),
    "mask, grid": lambda model: quantize_weights(prune(model, 0.6, scope="per_layer"), 4),
    "grid, mask": lambda model: masked_afterwards(quantize_weights(model, 4)),
    "sign, mask": lambda model: masked_afterwards(quantize_weights(model, 1)),
    "ternary, mask": lambda model: masked_afterwards(ternarize_weights(model)),
    "activations": lambda model: quantize_activations(quantize_weights(model, 4), IMAGES, 5),
    "some layers": lambda model: quantize_weights(model, {"3": 4}),
}


def assert_comes_back(model, template, path):
    save_quantized(path, model)
    assert path.stat().st_size == packed_bytes(model)
    loaded = load_quantized(path, template)
    assert torch.equal(predict(loaded, IMAGES), predict(model, IMAGES))
    assert torch.equal(predict(loaded, IMAGES[:1]), predict(model, IMAGES[:1]))
    for name, layer in weighted_layers(loaded).items():
        assert torch.equal(layer.weight, model.get_submodule(name).weight)
        assert not parametrize.is_parametrized(layer)
    assert not any(module.training for module in loaded.modules())


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_it_comes_back_to_the_bit(change, tmp_path):
    assert_comes_back(change(load_trained("lenet5_classic")), build_model("lenet5_classic", 3), tmp_path / "file")


@pytest.mark.parametrize("name", ["mlp128", "lenet300", "cnn", "lenet5", "resnet"])
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
    save_pruned(tmp_path / "pruned", narrow("cnn"), "cnn")
    assert_comes_back(share_weights(narrow("cnn"), 4), load_pruned(tmp_path / "pruned"), tmp_path / "file")


def test_so_does_a_single_layer(tmp_path):
    layer = quantize_weights(nn.Linear(784, 10), 3)
    save_quantized(tmp_path / "file", layer)
    assert torch.equal(load_quantized(tmp_path / "file", nn.Linear(784, 10)).weight, layer.weight)


def test_grids_of_activations_stay_away_where_the_file_has_none(tmp_path):
    model = quantize_weights(load_trained("mlp128"), 4)
    assert_comes_back(model, quantize_activations(model, IMAGES, 2), tmp_path / "file")


def test_both_models_stay_as_they_were(tmp_path):
    model, template = share_weights(prune(load_trained("mlp128"), 0.5), 4), build_model("mlp128")
    before = [copy.deepcopy(each.state_dict()) for each in (model, template)]
    save_quantized(tmp_path / "file", model)
    load_quantized(tmp_path / "file", template)
    for each, old in zip((model, template), before, strict=True):
        assert all(torch.equal(tensor, old[name]) for name, tensor in each.state_dict().items())


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("name", ["lenet300", "cnn"])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_bytes_are_those_of_codes_scales_and_biases_and_a_header(name, granularity, bits):
    model = load_trained(name)
    layers = weighted_layers(model).values()
    codes = sum(-(-layer.weight.numel() * bits // 8) for layer in layers)
    scales = sum(len(layer.weight) if granularity == "per_channel" else 1 for layer in layers)
    biases = sum(len(layer.bias) for layer in layers)
    found = packed_bytes(quantize_weights(model, bits, granularity))
    assert 0 < found - codes - 4 * (scales + biases + len(layers)) < 1600


def test_four_bits_take_an_eighth():
    model = load_trained("lenet300")
    assert 7.7 < file_bytes(model) / packed_bytes(quantize_weights(model, 4)) < 8


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
    [lambda model: save_quantized("absent/file", model), packed_bytes],
    ids=["save_quantized", "packed_bytes"],
)
def test_a_weight_off_its_codes_is_refused(function, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ParameterError, match=r"\(\): the weight of layer '3' must be what its FakeQuantizer gives"):
        function(halved())
    with pytest.raises(ParameterError, match=r"\(\): 'model' must have quantized weights"):
        function(prune(build_model("mlp128"), 0.5))
    with pytest.raises(ParameterError, match=r"\(\): 'model' must be a network"):
        function("mlp128")
    assert not list(tmp_path.glob("*/*"))


@pytest.fixture
def path(tmp_path):
    save_quantized(tmp_path / "file", quantize_model(load_trained("mlp128"), IMAGES, 4))
    return tmp_path / "file"


def test_a_damaged_file_is_refused(path):
    content = path.read_bytes()
    for place in range(0, len(content), 997):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(StorageError):
            load_quantized(path, build_model("mlp128"))
    path.write_bytes(content[:-3])
    with pytest.raises(DamagedFileError):
        load_quantized(path, build_model("mlp128"))


def test_another_network_is_refused_and_five_tensors_named(path, tmp_path):
    with pytest.raises(StorageError) as error:
        load_quantized(path, build_model("cnn"))
    assert "file does not hold a quantized version of this network: 12 tensors differ, first 0.weight" in str(
        error.value
    )
    assert str(error.value).count(" in the file)") == 5
    with pytest.raises(StorageError, match=r"first 1\.weight \(\(300, 784\) expected, \(128, 784\) in the file\)"):
        load_quantized(path, build_model("lenet300"))
    save_quantized(tmp_path / "folded", quantize_model(load_trained("resnet"), IMAGES))
    with pytest.raises(StorageError, match=r"first 1\.weight .*; 1\.num_batches_tracked"):
        load_quantized(tmp_path / "folded", build_model("resnet"))


def test_each_kind_of_file_says_what_reads_it(path, tmp_path):
    save_pruned(tmp_path / "pruned", build_model("mlp128"), "mlp128")
    for other in (SHIPPED / "mlp128.safetensors", tmp_path / "pruned"):
        with pytest.raises(StorageError, match=r"not saved by save_quantized\(\).*load_checkpoint.*load_pruned"):
            load_quantized(other, build_model("mlp128"))
    for load in (lambda: load_checkpoint(path, "mlp128"), lambda: load_pruned(path)):
        with pytest.raises(StorageError, match=r"holds a quantized network\. Use load_quantized\(path, model\) of kd_"):
            load()
    with pytest.raises(StorageError, match="can't be read"):
        load_quantized(tmp_path / "absent", build_model("mlp128"))
    with pytest.raises(ParameterError, match=r"^load_quantized\(\): 'model' must be a network"):
        load_quantized(path, "mlp128")


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, _: tensors.pop("1.codes"),
        lambda tensors, _: tensors.pop("1.scale"),
        lambda tensors, _: tensors.update({"1.codes": tensors["1.codes"][1:].clone()}),
        lambda tensors, _: tensors.update({"1.scale": torch.ones(7, 1)}),
        lambda tensors, _: tensors.update({"1.codebook": torch.ones(2)}),
        lambda tensors, _: tensors.update({"1.more": torch.ones(2)}),
        lambda _, metadata: metadata["quantized"].update({"1": [33, [128, 784]]}),
        lambda _, metadata: metadata["quantized"].update({"1": [4, [784, 128]]}),
        lambda _, metadata: metadata["quantized"].pop("3"),
        lambda _, metadata: metadata["inputs"].pop("3"),
        lambda _, metadata: metadata["quantized"].update({"1": 4}),
    ],
)
def test_a_file_that_does_not_fit_together_is_refused(change, path):
    tensors, metadata = load_tensors(path)
    change(tensors, metadata)
    save_tensors(path, tensors, metadata)
    with pytest.raises(StorageError, match=r"file (holds no quantized network|does not hold a quantized version)"):
        load_quantized(path, build_model("mlp128"))


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
        (lambda: pack_bits(torch.tensor([-1]), 4), "from 0 to 15, which is what 4 bits hold. Got tensor([-1])."),
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


def test_an_unfinished_model_is_not_written(tmp_path):
    model = quantize_weights(build_model("mlp128"), 4)
    model[1].bias.data[0] = torch.nan
    with pytest.raises(StorageError, match=r"'1\.bias' holds NaN"):
        save_quantized(tmp_path / "file", model)
    assert make_permanent(model)[1].bias.isnan().any() and not (tmp_path / "file").exists()
