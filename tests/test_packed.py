"""A packed network reads back to the bit; a file that is damaged, newer or made up is refused, whatever it claims."""

import hashlib
import time
from contextlib import suppress
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn.utils.prune import l1_unstructured

from kd_lab.checkpoints import SHIPPED, load_trained
from kd_lab.cost import file_bytes
from kd_lab.errors import DamagedFileError, KdLabError, ParameterError, StorageError
from kd_lab.formats.kdz import CODERS, MAGIC, _write, load_packed, pack, save_packed, unpack
from kd_lab.networks.layers import make_permanent, predict, weighted_layers
from kd_lab.networks.zoo import MODELS, build_model
from kd_lab.pruning import hard_prune, prune, prune_channels, remove_layers
from kd_lab.quantization import quantize_weights, share_weights, ternarize_weights

IMAGES = torch.randn(20, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def shared(name="lenet300", sparsity=0.95, bits=3):
    return share_weights(prune(load_trained(name), sparsity), bits)


def assert_same(model, loaded):
    assert torch.equal(predict(loaded, IMAGES), predict(model, IMAGES)) and not loaded.training


@pytest.mark.parametrize(
    ("name", "coder"), [*((name, "range") for name in MODELS), ("lenet300", "huffman"), ("resnet", "huffman")]
)
def test_every_network_reads_back_as_it_is_and_compressed(name, coder, tmp_path):
    model = load_trained(name) if (SHIPPED / f"{name}.safetensors").exists() else build_model(name)
    for each in (model, share_weights(prune(model, 0.9), 2)):
        save_packed(tmp_path / "model.kdz", each, name, coder)
        assert_same(each, load_packed(tmp_path / "model.kdz"))


@pytest.mark.parametrize("compress", [partial(quantize_weights, num_bits=4), ternarize_weights])
def test_other_ways_to_few_values_read_back(compress):
    model = compress(load_trained("mlp128"))
    assert_same(model, unpack(pack(model, "mlp128")))


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(["mlp128", "cnn", "lenet5_classic"]),
    seed=st.integers(0, 1000),
    sparsity=st.sampled_from([0.0, 0.5, 0.9, 0.99]),
    bits=st.integers(1, 8),
    narrow=st.booleans(),
    coder=st.sampled_from(list(CODERS)),
)
def test_any_mask_and_codebook_reads_back_to_the_bit(name, seed, sparsity, bits, narrow, coder):
    model = prune(build_model(name, seed), sparsity, scope="per_layer")
    if narrow:
        model = hard_prune(prune_channels(model, 0.5))
    model = share_weights(model, bits)
    loaded = unpack(pack(model, name, coder))
    assert_same(model, loaded)
    for name, layer in weighted_layers(model).items():
        assert torch.equal(layer.weight, loaded.get_submodule(name).weight)


def test_removed_channels_and_layers_stay_removed():
    narrow = hard_prune(prune_channels(load_trained("cnn"), 0.5))
    assert str(unpack(pack(narrow, "cnn"))) == str(narrow)
    shallow = remove_layers(load_trained("resnet"), ["4"])
    assert str(unpack(pack(shallow, "resnet"))) == str(shallow)
    assert_same(shallow, unpack(pack(shallow, "resnet")))


def test_each_step_makes_the_file_smaller():
    dense = load_trained("lenet300")
    sizes = [
        file_bytes(dense),
        *(
            len(pack(each, "lenet300"))
            for each in (
                dense,
                prune(dense, 0.95),
                share_weights(prune(dense, 0.95), 4),
                share_weights(prune(dense, 0.95), 2),
            )
        ),
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert len(pack(shared(), "lenet300", "range")) < len(pack(shared(), "lenet300", "huffman"))


def test_the_model_itself_is_left_as_it_is():
    model = shared().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    pack(model, "lenet300")
    assert model.training and all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_500_bit_flips_and_every_truncation_are_refused():
    content = pack(shared(sparsity=0.97, bits=2), "lenet300")
    generator = np.random.default_rng(0)
    for place in generator.choice(8 * len(content), 500, replace=False):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        with pytest.raises(StorageError):
            unpack(bytes(flipped))
    for length in range(0, len(content), 256):
        with pytest.raises(StorageError):
            unpack(content[:length])


def sealed(line, coded=b"", schema=b"2"):
    body = line + coded
    return MAGIC + schema + hashlib.sha256(body).digest()[:16] + body


@pytest.mark.parametrize(
    ("content", "kind", "part"),
    [
        (b"", StorageError, "is no .kdz file"),
        (b"PK\x03\x04", StorageError, "is no .kdz file"),
        (MAGIC, DamagedFileError, "is damaged"),
        (
            sealed(b"lenet300 range\n", schema=b"3"),
            StorageError,
            "has schema '3'; this kd_lab reads schema '2'. Update",
        ),
        (sealed(b"lenet30 range\n"), StorageError, "Did you mean 'lenet300'?"),
        (sealed(b"lenet300 rang\n"), StorageError, "Did you mean 'range'?"),
        (sealed(b"lenet300\n"), StorageError, "holds no network of the kit"),
        (sealed(b"lenet300 huffman\n"), StorageError, "end too early"),
        (sealed(b"lenet300 huffman\n", b"\xff" * 100), StorageError, "holds no network of the kit"),
        (sealed(b"lenet300 range 1=1000000000\n"), StorageError, "whole number in [1, 300]. Got 1000000000"),
        (sealed(b"lenet300 range 1=ten\n"), StorageError, "holds no network of the kit"),
        (sealed(b"lenet300 range 9=3\n"), StorageError, "must be one of 1, 3"),
        (sealed(b"lenet300 range -1\n"), StorageError, "must give the shape that it takes"),
        (sealed(b"\xff\xfe\n"), StorageError, "holds no network of the kit"),
        (sealed(b"resnet range" + b" -4" * 20_000 + b"\n"), StorageError, "holds no network of the kit"),
        (sealed(b"mlp128 " + b"r" * 5_000_000 + b"\n"), StorageError, "must be one of range, huffman"),
        (sealed(b"mlp128 range\n"), StorageError, "Packing it again gives another file"),
        (sealed(b"mlp128 huffman\n", bytes(2_000_000)), StorageError, "Packing it again gives another file"),
        (
            sealed(
                b"mlp128 huffman\n",
                np.packbits(
                    np.frombuffer(b"000000010" + f"{1:024b}".encode() + b"0" * 327, np.uint8) - ord("0")
                ).tobytes()
                + bytes(40_000),
            ),
            StorageError,
            "The bits are no code",
        ),
        (
            sealed(
                b"mlp128 huffman\n",
                np.packbits(
                    np.frombuffer(b"000000001" + b"1" * 24 + b"00001" + b"0" * 322, np.uint8) - ord("0")
                ).tobytes()
                + bytes(3_000_000),
            ),
            StorageError,
            "more symbols than places",
        ),
    ],
)
def test_a_file_that_is_not_ours_is_refused_in_words_within_a_second(content, kind, part, tmp_path):
    (tmp_path / "model.kdz").write_bytes(content)
    start = time.perf_counter()
    with pytest.raises(kind) as error:
        load_packed(tmp_path / "model.kdz")
    assert part in str(error.value) and "model.kdz" in str(error.value), str(error.value)
    assert time.perf_counter() - start < 1


def test_noise_behind_a_right_digest_never_hangs_or_crashes():
    generator = np.random.default_rng(0)
    for coder in (b"range", b"huffman"):
        for _ in range(20):
            with suppress(KdLabError):
                unpack(sealed(b"mlp128 " + coder + b"\n", generator.bytes(400)))


@pytest.mark.parametrize("change", [lambda body: body + bytes(8), lambda body: body[:-400], lambda body: body[:-4]])
@pytest.mark.parametrize("coder", CODERS)
def test_what_is_too_long_or_too_short_behind_a_right_digest_is_refused(coder, change):
    line, _, coded = pack(shared("mlp128"), "mlp128", coder)[20:].partition(b"\n")
    assert_same(shared("mlp128"), unpack(sealed(line + b"\n", coded)))
    with pytest.raises(StorageError, match="holds no network of the kit"):
        unpack(sealed(line + b"\n", change(coded)))


def test_weights_that_are_no_numbers_behind_a_right_digest_are_refused():
    model = make_permanent(shared("mlp128"))
    model[3].weight.data[0, 0] = torch.inf
    writer = CODERS["range"][0]()
    for _key, tensor in sorted(model.state_dict().items()):
        _write(writer, tensor)
    with pytest.raises(StorageError, match=r"'3\.weight' of 'model' must be finite"):
        unpack(sealed(b"mlp128 range\n", writer.content()))


def test_a_gigabyte_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "model.kdz"
    with open(path, "wb") as file:
        file.write(MAGIC)
        file.truncate(2**30)
    with pytest.raises(StorageError, match="more than 8,000,000 bytes"):
        load_packed(path)
    with pytest.raises(StorageError, match="can't be read"):
        load_packed(tmp_path / "absent.kdz")


def torch_pruned():
    model = build_model("mlp128")
    l1_unstructured(model[1], "weight", 0.5)
    predict(model, IMAGES)
    return model


@pytest.mark.parametrize("path", [None, 3.5, "", "a\0b", "absent.kdz"])
def test_what_is_no_file_is_named(path):
    with pytest.raises(StorageError, match="can't be read"):
        load_packed(path)


@pytest.mark.filterwarnings("error")
def test_weights_too_large_for_half_precision_stay_as_they_are():
    model = build_model("mlp128")
    model[1].weight.data[0, 0] = 1e30
    assert_same(model, unpack(pack(model, "mlp128")))


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (lambda: pack("lenet300", "lenet300"), "pack(): 'model' must be a network"),
        (lambda: pack(build_model("cnn"), "cn"), "Did you mean 'cnn'?"),
        (lambda: pack(build_model("cnn"), "lenet300"), "pack(): 'model' must be a pruned lenet300"),
        (lambda: pack(build_model("cnn"), "cnn", "rang"), "Did you mean 'range'?"),
        (lambda: save_packed("file", build_model("cnn"), "cnn", "rang"), "save_packed(): 'coder' must be one of"),
        (lambda: save_packed(None, build_model("cnn"), "cnn"), "'path' must be the path of a file. Got None."),
        (lambda: pack(build_model("cnn").double(), "cnn"), "'0.weight' must be of torch.float32. Got torch.float64."),
        (lambda: pack(build_model("mlp128").bfloat16(), "mlp128"), "must be of torch.float32. Got torch.bfloat16."),
        (lambda: pack(torch_pruned(), "mlp128"), "Did torch.nn.utils.prune mask it? Call its remove() first."),
    ],
)
def test_bad_arguments_are_named(call, part):
    with pytest.raises(ParameterError) as error:
        call()
    assert part in str(error.value), str(error.value)


def test_weights_that_are_no_numbers_are_refused():
    model = build_model("mlp128")
    model[1].weight.data[0, 0] = torch.nan
    with pytest.raises(ParameterError, match=r"'1\.weight' of 'model' must be finite"):
        pack(model, "mlp128")
