"""A packed network reads back to the bit; a file that is damaged, newer or made up is refused, whatever it claims."""

import copy
import hashlib
import re
import time
import tracemalloc
from contextlib import suppress
from functools import cache, partial

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.prune import l1_unstructured

from kd_lab.checkpoints import SHIPPED, load_trained
from kd_lab.cost import file_bytes
from kd_lab.errors import DamagedFileError, KdLabError, ParameterError, StorageError
from kd_lab.formats import kdz
from kd_lab.formats.kdz import CODERS, MAGIC, architecture_in, load_packed, pack, save_packed, unpack
from kd_lab.formats.tensors import write_tensor
from kd_lab.networks.layers import weighted_layers
from kd_lab.networks.permanent import make_permanent
from kd_lab.networks.predictions import predict
from kd_lab.networks.zoo import MODELS, build_architecture, build_model, small_student
from kd_lab.pruning import channel_groups, channels, hard_prune, prune, prune_channels, remove_channels, remove_layers
from kd_lab.quantization import fold_batch_norm, quantize_weights, share_weights, ternarize_weights

IMAGES = torch.randn(20, 1, 28, 28, generator=torch.Generator().manual_seed(0))


@cache
def shared():
    return share_weights(prune(small_student(16), 0.9), 3)


def assert_same(model, loaded):
    assert torch.equal(predict(loaded, IMAGES), predict(model, IMAGES)) and not loaded.training


@pytest.mark.parametrize(
    ("name", "coder"),
    [
        ("resnet", "range"),
        ("mlp128", "huffman"),
        *(pytest.param(name, "range", marks=pytest.mark.slow) for name in MODELS if name != "resnet"),
        *(pytest.param(name, "huffman", marks=pytest.mark.slow) for name in ("lenet300", "resnet")),
    ],
)
def test_every_network_reads_back_as_it_is_and_compressed(name, coder, tmp_path):
    model = load_trained(name) if (SHIPPED / f"{name}.safetensors").exists() else build_model(name)
    for each in (model, share_weights(prune(model, 0.9), 2)):
        save_packed(tmp_path / "model.kdz", each, coder)
        assert_same(each, load_packed(tmp_path / "model.kdz"))


@pytest.mark.parametrize("compress", [partial(quantize_weights, num_bits=4), ternarize_weights])
def test_other_ways_to_few_values_read_back(compress):
    model = compress(small_student(16))
    assert_same(model, unpack(pack(model)))


@pytest.mark.slow
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    build=st.sampled_from([partial(small_student, 20), partial(build_model, "lenet5_classic")]),
    seed=st.integers(0, 1000),
    sparsity=st.sampled_from([0.0, 0.5, 0.9, 0.99]),
    bits=st.integers(1, 8),
    narrow=st.booleans(),
    coder=st.sampled_from(list(CODERS)),
)
def test_any_mask_and_codebook_reads_back_to_the_bit(build, seed, sparsity, bits, narrow, coder):
    model = prune(build(seed=seed), sparsity, scope="per_layer")
    if narrow:
        model = hard_prune(prune_channels(model, 0.5))
    model = share_weights(model, bits)
    loaded = unpack(pack(model, coder))
    assert_same(model, loaded)
    for name, layer in weighted_layers(model).items():
        assert torch.equal(layer.weight, loaded.get_submodule(name).weight)


def test_removed_channels_and_layers_stay_removed():
    narrow = hard_prune(prune_channels(load_trained("cnn"), 0.8))
    assert str(unpack(pack(narrow))) == str(narrow)
    shallow = remove_layers(load_trained("resnet"), ["block1"])
    loaded = unpack(pack(shallow))
    assert str(loaded) == str(shallow)
    assert_same(shallow, loaded)


@pytest.mark.slow
def test_each_step_makes_the_file_smaller():
    dense = load_trained("lenet300")
    sizes = [
        file_bytes(dense),
        *(
            len(pack(each))
            for each in (
                dense,
                prune(dense, 0.95),
                share_weights(prune(dense, 0.95), 4),
                share_weights(prune(dense, 0.95), 2),
            )
        ),
    ]
    assert sizes == sorted(sizes, reverse=True)
    model = share_weights(prune(dense, 0.95), 3)
    assert len(pack(model, "range")) < len(pack(model, "huffman"))


def test_the_model_itself_is_left_as_it_is():
    model = copy.deepcopy(shared()).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    pack(model)
    assert model.training and all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_500_bit_flips_and_every_truncation_are_refused():
    content = pack(shared())
    generator = np.random.default_rng(0)
    for place in generator.choice(8 * len(content), 500, replace=False):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        with pytest.raises(StorageError):
            unpack(bytes(flipped))
    for length in range(0, len(content), 16):
        with pytest.raises(StorageError):
            unpack(content[:length])


def sealed(line, coded=b"", schema=b"3"):
    body = line + coded
    return MAGIC + schema + hashlib.sha256(body).digest()[:16] + body


@pytest.mark.parametrize(
    ("content", "kind", "part"),
    [
        (b"", StorageError, "is no .kdz file"),
        (b"PK\x03\x04", StorageError, "is no .kdz file"),
        (MAGIC, DamagedFileError, "is damaged"),
        (
            sealed(b"lenet300 range\n", schema=b"5"),
            StorageError,
            "has schema '5'; this kd_lab reads schemas 2 to 4. Update",
        ),
        (sealed(b"lenet30 range\n"), StorageError, "Did you mean 'lenet300'?"),
        (sealed(b"lenet300 rang\n"), StorageError, "Did you mean 'range'?"),
        (sealed(b"lenet300\n"), StorageError, "holds no network of the kit"),
        (sealed(b"lenet300 huffman\n"), StorageError, "end too early"),
        (sealed(b"lenet300 huffman\n", b"\xff" * 100), StorageError, "holds no network of the kit"),
        (sealed(b"lenet300 range 1=1000000000\n"), StorageError, "whole number in [1, 100]. Got 1000000000"),
        (sealed(b"lenet300 range 0=0\n"), StorageError, "whole number in [1, 300]. Got 0"),
        (sealed(b"lenet300 range 2=9\n"), StorageError, "must be one of fc1, fc2. Got 'fc3'"),
        (sealed(b"784-10001-10 range\n"), StorageError, "whole number in [1, 10000]. Got 10001"),
        (sealed(b"784-99999999-10 range\n"), StorageError, "must be one of mlp128"),
        (sealed(b"lenet300 range +fc9\n"), StorageError, "must be one of fc1, fc2, fc3. Got 'fc9'"),
        *(
            (sealed(line, b"\xff" * 400), StorageError, "the line that describes it is not the one that pack() writes")
            for line in (
                b"lenet300 range 0=300\n",  # all of them
                b"lenet300 range 1=6 0=6\n",
                b"lenet300 range 0=06\n",
                b"lenet300 range 0=7 0=6\n",
                b"lenet300 range fc1=6\n",
                b"lenet300 range +fc1\n",  # it has a bias anyway
                b"resnet range -block2 -block1\n",
                b"resnet range -block1 -block1\n",
            )
        ),
        (sealed(b"lenet300 range 1=ten\n"), StorageError, "holds no network of the kit"),
        (sealed(b"lenet300 range 9=3\n"), StorageError, "must be one of fc1, fc2. Got '9'"),
        (sealed(b"lenet300 range -fc1\n"), StorageError, "must give the shape that it takes"),
        (sealed(b"lenet300 range -1\n", schema=b"2"), StorageError, "module 'fc1' must give the shape that it takes"),
        (sealed(b"\xff\xfe\n"), StorageError, "holds no network of the kit"),
        (sealed(b"resnet range" + b" -block1" * 20_000 + b"\n"), StorageError, "holds no network of the kit"),
        (sealed(b"mlp128 " + b"r" * 5_000_000 + b"\n"), StorageError, "the line that describes it is b'mlp128 rrrr"),
        (sealed(b"mlp128 range\n"), StorageError, "there are bytes left over, or some are missing"),
        (sealed(b"mlp128 huffman\n", bytes(2_000_000)), StorageError, "there are bytes left over"),
        (sealed(b"mlp128 huffman\n", bytes(500_000)), StorageError, "there are bytes left over"),
        (
            sealed(
                b"mlp128 huffman\n",
                np.packbits(
                    np.frombuffer(b"000000010" + f"{1:024b}".encode() + b"0" * 327, np.uint8) - ord("0")
                ).tobytes()
                + bytes(40_000),
            ),
            StorageError,
            "the bits are no code",
        ),
        (
            sealed(
                b"mlp128 huffman\n",
                np.packbits(
                    np.frombuffer(b"000000001" + b"1" * 24 + b"00001" + b"0" * 322, np.uint8) - ord("0")
                ).tobytes()
                + bytes(400_000),
            ),
            StorageError,
            "more symbols than places",
        ),
    ],
)
def test_a_file_that_is_not_ours_is_refused_in_words_within_a_second(content, kind, part, tmp_path):
    (tmp_path / "model.kdz").write_bytes(content)
    start = time.process_time()
    with pytest.raises(kind) as error:
        load_packed(tmp_path / "model.kdz")
    assert part in str(error.value) and "model.kdz" in str(error.value), str(error.value)
    assert time.process_time() - start < 2


def test_noise_behind_a_right_digest_never_hangs_or_crashes():
    generator = np.random.default_rng(0)
    for coder in (b"range", b"huffman"):
        for _ in range(10):
            with suppress(KdLabError):
                unpack(sealed(b"mlp128 " + coder + b"\n", generator.bytes(400)))


@pytest.mark.parametrize("change", [lambda body: body + bytes(8), lambda body: body[:-400], lambda body: body[:-4]])
@pytest.mark.parametrize("coder", CODERS)
def test_what_is_too_long_or_too_short_behind_a_right_digest_is_refused(coder, change):
    line, _, coded = pack(shared(), coder)[20:].partition(b"\n")
    assert_same(shared(), unpack(sealed(line + b"\n", coded)))
    with pytest.raises(StorageError, match="holds no network of the kit"):
        unpack(sealed(line + b"\n", change(coded)))


def test_weights_that_are_no_numbers_behind_a_right_digest_are_refused():
    for value in (torch.inf, torch.nan):
        model = small_student(4)
        model[3].weight.data[0, 0] = value
        for coder in CODERS:
            with pytest.raises(StorageError, match="a value is NaN or infinite"):
                unpack(sealed(f"784-4-10 {coder}\n".encode(), coded(coder, in_order(model))))


def in_order(model):
    """Return a network's tensors in the order in which a file has them; a parametrization changes it."""
    tensors = make_permanent(model).state_dict()
    return [tensors[key] for key in build_architecture(model.architecture).state_dict()]


def coded(coder, tensors):
    """Return tensors as pack() codes them, whatever is in them."""
    writer = CODERS[coder][0]()
    for tensor in tensors:
        write_tensor(writer, tensor)
    return writer.content()


def bits(*parts):
    """Return numbers, each with as many bits as are given for it, as bytes."""
    text = "".join(f"{number:0{width}b}" for number, width in parts)
    return np.packbits(np.frombuffer(text.encode(), np.uint8) - ord("0")).tobytes()


SKIPS, LENGTHS = (0, 24), [(31, 5), *[(0, 5)] * 63]  # of a first tensor's gaps: how many, and their codes' lengths


@pytest.mark.parametrize(
    "content, part",
    [
        (bits((1, 9), (2**24 - 1, 24), *LENGTHS), "there are more symbols than places"),
        (bits((1, 9), SKIPS, *[(1, 5)] * 64), "'lengths' must be those of codes of which none begins like another"),
        (bits((300, 9)), "a number is too large"),  # the values of a table
        (bits((1, 9), SKIPS), "the bits end too early"),
    ],
)
def test_wrong_tables_and_counts_behind_a_right_digest_are_refused_without_packing(content, part, monkeypatch):
    monkeypatch.setattr(kdz, "pack", lambda *_arguments: pytest.fail("it was packed again"))
    with pytest.raises(StorageError, match=re.escape(part)):
        unpack(sealed(b"mlp128 huffman\n", content))


def test_fractions_where_whole_numbers_are_counted_are_refused():
    model = build_model("resnet")
    tensors = {
        key: tensor.float() + 0.5 if "num_batches" in key else tensor for key, tensor in model.state_dict().items()
    }
    with pytest.raises(StorageError, match="a fraction where whole numbers are"):
        unpack(sealed(b"resnet huffman\n", coded("huffman", tensors.values())))


@pytest.mark.parametrize("coder", CODERS)
def test_a_tensor_left_over_or_missing_is_refused(coder):
    tensors = in_order(shared())
    assert_same(shared(), unpack(sealed(f"784-16-10 {coder}\n".encode(), coded(coder, tensors))))
    for wrong in ([*tensors, tensors[1]], tensors[1:]):
        with pytest.raises(StorageError, match="holds no network of the kit"):
            unpack(sealed(f"784-16-10 {coder}\n".encode(), coded(coder, wrong)))


@pytest.mark.parametrize(
    "content",
    [
        sealed(b"mlp128 huffman\n", bytes(39_000_000)),
        sealed(b"mlp128 range\n", bytes(800_000)),
        sealed(b"mlp128 huffman\n", b"\xff" * 800_000),
        sealed(b"784-10001-10 range\n", bytes(39_000_000)),
        sealed(b"r" * 39_000_000),
    ],
    ids=["more than the network", "zeros", "ones", "too wide", "a long line"],
)
def test_nonsense_takes_no_more_memory_than_the_network_and_the_file(content):
    tracemalloc.start()
    try:
        with pytest.raises(StorageError):
            unpack(content)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 3 * len(content) + 30e6


def test_the_channels_are_followed_once_in_a_pack_and_once_in_an_unpack(monkeypatch):
    calls = []
    monkeypatch.setattr(channels, "channel_groups", lambda *each: calls.append(1) or channel_groups(*each))
    model = hard_prune(prune_channels(load_trained("resnet"), 0.5))
    content = pack(model)
    for work in (lambda: pack(model), lambda: unpack(content)):
        channels._dense.cache_clear()
        calls.clear()
        work()
        assert len(calls) == 1
        work()
        assert len(calls) == 1  # and none for another of the same architecture


def by_places(module):
    """Return the module, changed in place, with the layers of every Sequential named by their places, as in 0.1."""
    for name, child in module.named_children():
        setattr(module, name, by_places(child))
    return nn.Sequential(*module) if isinstance(module, nn.Sequential) else module


@pytest.mark.parametrize(
    "line, build",
    [
        pytest.param("mlp128 {coder}", lambda: load_trained("mlp128"), marks=pytest.mark.slow),
        ("cnn {coder} 0=8 3=16 7=64", lambda: hard_prune(prune_channels(load_trained("cnn"), 0.5))),
        (
            "resnet {coder} 0=8 4.body.0=8 5=24 -9",
            lambda: remove_layers(hard_prune(prune_channels(load_trained("resnet"), 0.5)), ["block2"]),
        ),
        ("resnet {coder} -4.body.2 -9.body", lambda: without("block1.body.relu1", "block2.body")),
    ],
)
@pytest.mark.parametrize("coder", ["range", pytest.param("huffman", marks=pytest.mark.slow)])
def test_a_file_of_version_0_1_is_read(line, build, coder):
    model = share_weights(prune(build(), 0.8), 3)
    tensors = by_places(make_permanent(model)).state_dict()
    old = sealed(f"{line.format(coder=coder)}\n".encode(), coded(coder, map(tensors.get, sorted(tensors))), b"2")
    loaded = unpack(old)
    assert_same(model, loaded)
    assert loaded.architecture == architecture_in(old) == line.split()[0] and str(loaded) == str(make_permanent(model))


def without(*names):
    return remove_layers(load_trained("resnet"), names)


@pytest.mark.parametrize("width", [1, 12])
def test_students_can_be_packed_and_pruned(width):
    student = small_student(width)
    for each in (student, share_weights(prune(student, 0.5), 2), remove_channels(student, {"fc1": torch.arange(1)})):
        loaded = unpack(pack(each))
        assert_same(each, loaded)
        assert loaded.architecture == f"784-{width}-10"


def test_a_folded_batch_norm_stays_folded():
    folded = fold_batch_norm(hard_prune(prune_channels(load_trained("resnet"), 0.5)))
    loaded = unpack(pack(folded))
    assert_same(folded, loaded)
    assert str(loaded) == str(folded)


def test_a_network_of_ones_own_is_refused_with_what_to_do():
    with pytest.raises(ParameterError) as error:
        pack(nn.ModuleDict({"fc": nn.Linear(784, 10)}))
    assert str(error.value) == (
        "pack(): 'model' must be a network of the kit, or an nn.Sequential of plain layers without hooks. Got "
        "'ModuleDict'. save_network() saves any network."
    )


def test_a_gigabyte_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "model.kdz"
    with open(path, "wb") as file:
        file.write(MAGIC)
        file.truncate(2**30)
    with pytest.raises(StorageError, match="more than 40,000,000 bytes"):
        load_packed(path)
    with pytest.raises(StorageError, match="can't be read"):
        load_packed(tmp_path / "absent.kdz")


def named(architecture):
    """Return a cnn that claims to be another network."""
    model = build_model("cnn")
    model.architecture = architecture
    return model


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
    model = small_student(4)
    model[1].weight.data[0, 0] = 1e30
    assert_same(model, unpack(pack(model)))


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (lambda: pack("lenet300"), "pack(): 'model' must be a network"),
        (lambda: pack(named("cn")), "Did you mean 'cnn'?"),
        (lambda: pack(named("lenet300")), "pack(): 'model' must be a pruned lenet300"),
        (lambda: pack(build_model("cnn"), "rang"), "Did you mean 'range'?"),
        (lambda: save_packed("file", build_model("cnn"), "rang"), "save_packed(): 'coder' must be one of"),
        (lambda: save_packed(None, build_model("cnn")), "'path' must be the path of a file. Got None."),
        (
            lambda: pack(build_model("cnn").double()),
            "'conv1.weight' must be (16, 1, 3, 3), torch.float32 to fit the others. Got (16, 1, 3, 3), torch.float64.",
        ),
        (lambda: pack(build_model("mlp128").bfloat16()), "Got (128, 784), torch.bfloat16."),
        (lambda: pack(torch_pruned()), "Got one that is computed from others. Call make_permanent(model) first."),
    ],
)
def test_bad_arguments_are_named(call, part):
    with pytest.raises(ParameterError) as error:
        call()
    assert part in str(error.value), str(error.value)


def test_weights_that_are_no_numbers_are_refused():
    model = build_model("mlp128")
    model[1].weight.data[0, 0] = torch.nan
    with pytest.raises(ParameterError, match=r"'fc1\.weight' of 'model' must be finite"):
        pack(model)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_in_another_precision_are_named(dtype):
    with pytest.raises(ParameterError, match=r"^pack\(\): .* 'fc1.weight' must be .*torch.float32 .*Got .*torch"):
        pack(build_model("mlp128").to(dtype))


def test_a_network_is_packed_and_unpacked_alike_whatever_the_default_dtype():
    model = share_weights(build_model("mlp128"), 2)
    expected = pack(model)
    torch.set_default_dtype(torch.float64)
    try:
        assert pack(model) == expected
        found = unpack(expected)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(tensor.dtype == torch.float32 for tensor in found.state_dict().values())
    with torch.inference_mode():
        trainable = unpack(expected)
    trainable(torch.zeros(2, 1, 28, 28)).sum().backward()


@pytest.mark.parametrize("content", [None, "text", 3, memoryview(b"kdz")])
def test_what_are_no_bytes_is_named(content):
    with pytest.raises(ParameterError, match=r"unpack\(\): 'content' must be the bytes of a file"):
        unpack(content)
