"""Schema 4 of the packed file: any sequence of layers in few bytes, read alike by a second decoder, and nothing else.

The decoder, `kdz_decoder`, is written from kd_lab/formats/KDZ.md alone.
"""

import copy
import hashlib
import time
import tracemalloc
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kdz_decoder import decode
from torch import nn

from kd_lab.compression.records import load_records
from kd_lab.errors import DamagedFileError, ParameterError, StorageError
from kd_lab.factorization import factorize
from kd_lab.formats import compact, grid_codes, kdz, outlines
from kd_lab.formats.coding import ShortRangeWriter, code_choice
from kd_lab.formats.grid_codes import compact_step
from kd_lab.formats.kdz import architecture_in, load_packed, pack, save_packed, unpack
from kd_lab.formats.network_file import load_network, save_network
from kd_lab.formats.outlines import KIND_COUNTS, NETWORK_COUNTS, NETWORKS, SPARE_KINDS, STEP_KINDS, code_outline
from kd_lab.networks.predictions import predict
from kd_lab.networks.sequences import LayerStep, flattened
from kd_lab.networks.zoo import build_model, small_student
from kd_lab.pruning import hard_prune, prune, prune_channels, remove_channels, remove_layers
from kd_lab.pruning.channels import Form, sort_channels
from kd_lab.quantization import find_grid, fold_batch_norm, share_weights
from kd_lab.results import RESULTS

IMAGES = torch.randn(20, 1, 28, 28, generator=torch.Generator().manual_seed(1))


def rounded(model, bits, bias_bits=6):
    """Return the model, changed in place, with weights and biases on grids of one-byte steps."""
    for parameter in model.parameters():
        num_bits = bits if parameter.dim() > 1 else bias_bits
        scale, _ = find_grid(parameter.detach().reshape(1, -1), num_bits, True, "least_squares")
        step, half = compact_step(float(scale)), 2 ** (num_bits - 1)
        parameter.data = (parameter.data / step).round().clamp(-half, half - 1) * step
    return model


def normal(model, seed=0):
    """Return the model, changed in place, with normal weights, which are the same on every machine."""
    generator = np.random.default_rng(seed)
    for parameter in model.parameters():
        spread = (parameter[0].numel() if parameter.dim() > 1 else 16) ** -0.5
        parameter.data = torch.from_numpy(generator.normal(0, spread, parameter.shape).astype(np.float32))
    return model


def three_convolutions():
    """Return 1,240 parameters."""
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 5), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Conv2d(4, 8, 3), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Conv2d(8, 10, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 10)),
    )


def separable():
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Dropout()),
        nn.Sequential(nn.Conv2d(4, 4, (3, 5), padding=(1, 2), groups=4, bias=False), nn.Conv2d(4, 8, 1), nn.ReLU()),
        *(nn.AvgPool2d(3, 2, 1), nn.Conv2d(8, 6, 1, groups=2), nn.MaxPool2d((7, 1)), nn.Flatten(), nn.Linear(42, 10)),
    )


def shared():
    again = nn.Conv2d(4, 4, 3, padding=1)
    return nn.Sequential(
        nn.Conv2d(1, 4, 5), nn.ReLU(), again, nn.ReLU(), again, nn.Flatten(), nn.Linear(2304, 10, False)
    )


def batch_norm():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(676, 5)
    )
    model(IMAGES)
    return model.eval()


def narrow_lenet5(bits=3):
    return rounded(
        normal(remove_channels(build_model("lenet5"), {"conv1": torch.arange(3), "fc1": torch.arange(9)})), bits
    )


NETWORK = {
    "grid": lambda: rounded(normal(three_convolutions()), 3),
    "two bits": lambda: rounded(normal(separable()), 2, 4),
    "sorted": lambda: sort_channels(rounded(normal(separable()), 3)),
    "table": lambda: share_weights(normal(three_convolutions()), 2),
    "raw": lambda: normal(separable()),
    "shared layer": lambda: rounded(normal(shared()), 4),
    "batch norm": batch_norm,
    "pruned": lambda: prune(rounded(normal(shared()), 3), 0.9),
    "zeros": lambda: prune(rounded(normal(three_convolutions()), 2), 0.95, scope="per_layer"),
    "one layer": lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 2, bias=False)),
    "no weights but one": lambda: nn.Sequential(nn.MaxPool2d(28), nn.Flatten(), nn.Linear(1, 10)),
    "student": lambda: rounded(normal(small_student(5)), 2),
    "lenet5": lambda: share_weights(prune(narrow_lenet5(), 0.5), 2),
    "thin lenet5": lambda: rounded(factorize(narrow_lenet5(), {"fc1": 2, "conv2": 3}, nearest="weight"), 3),
    "without a layer": lambda: remove_layers(small_student(5), ["relu1"]),
}
OTHERS = {
    "resnet": lambda: hard_prune(prune_channels(build_model("resnet"), 0.9)),
    "folded resnet": lambda: fold_batch_norm(remove_layers(build_model("resnet"), ["block2"])),
    "lstm": lambda: rounded(build_model("lstm"), 2),
    "vit": lambda: rounded(build_model("vit"), 2),
}


def tensors_of(model):
    return {name: tensor for name, tensor in model.state_dict().items() if "num_batches" not in name}


def assert_same(model, loaded):
    expected = predict(copy.deepcopy(model).to(memory_format=torch.channels_last), IMAGES)
    assert torch.equal(predict(loaded, IMAGES), expected) and not loaded.training


@pytest.mark.parametrize("name", NETWORK)
def test_a_network_reads_back_to_the_bit_and_the_second_decoder_reads_the_same(name):
    model = NETWORK[name]()
    content = pack(model, "compact")
    loaded = unpack(content)
    assert_same(model, loaded)
    assert content[:4] == b"kdz4" and pack(loaded, "compact") == content
    assert loaded.architecture == architecture_in(content) == getattr(model, "architecture", "sequence")
    assert_decoded(content, loaded)


def assert_decoded(content, loaded):
    """Check that the second decoder reads from a file the network that the kit reads."""
    name, layers, tensors = decode(content)
    assert name == loaded.architecture
    names = [each for each, module in loaded.named_modules(remove_duplicate=False) if not list(module.children())]
    gone = [each for each, module in loaded.named_modules() if isinstance(module, nn.Identity)]
    assert [layer["name"] for layer in layers] == [each for each in names if each not in gone]
    again = {f"{layer['name']}." for layer in layers if "again" in layer}
    expected = {key: value for key, value in tensors_of(loaded).items() if key[: key.rindex(".") + 1] not in again}
    assert list(tensors) == list(expected)
    for key, rows in tensors.items():
        found = np.array(rows, dtype=np.float32).reshape(expected[key].shape)
        assert np.array_equal(found.view(np.int32), (expected[key] + 0).numpy().view(np.int32)), key


@pytest.mark.slow
def test_the_second_decoder_reads_every_file_of_the_records():
    records = load_records()
    assert records
    for path in sorted({RESULTS / name for record in records for name in record.files}):
        assert_decoded(path.read_bytes(), load_packed(path))


@pytest.mark.parametrize("name", ["resnet", *(pytest.param(each, marks=pytest.mark.slow) for each in [*OTHERS][1:])])
def test_networks_that_are_no_sequence_read_back_to_the_bit(name):
    model = OTHERS[name]()
    loaded = unpack(pack(model, "compact"))
    assert_same(model, loaded)
    found, expected = tensors_of(loaded), tensors_of(model)
    assert str(loaded) == str(model) and found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize(("bits", "most"), [(2, 320), (3, 460), (4, 585)])
def test_a_network_of_1240_weights_takes_hardly_more_than_its_bits(bits, most):
    model = rounded(normal(three_convolutions()), bits)
    assert len(pack(model)) <= most
    estimate = outlines.ShortRangeWriter()
    code_outline(estimate, outlines.outline_of(flattened(model)))
    assert len(estimate.content()) <= 8  # of the architecture


def test_a_sequence_is_packed_whatever_the_coder_but_by_huffman(tmp_path):
    model = NETWORK["grid"]()
    save_packed(tmp_path / "model.kdz", model)
    assert (tmp_path / "model.kdz").read_bytes() == pack(model) == pack(model, "compact")
    assert_same(model, load_packed(tmp_path / "model.kdz"))
    with pytest.raises(ParameterError, match=r"^pack\(\): 'coder' must be one that packs any sequence, \"range\" or"):
        pack(model, "huffman")


def test_a_layer_that_comes_twice_is_kept_once():
    once, twice = shared(), shared()
    once[4] = nn.ReLU()
    assert abs(len(pack(twice)) - len(pack(once))) < 20
    loaded = unpack(pack(twice))
    assert loaded.conv3 is loaded.conv2 and "conv3.weight" in loaded.state_dict()
    twin = unpack(pack(once))
    twin.conv2.weight.data += 1
    assert len(tensors_of(unpack(pack(loaded)))) == len(tensors_of(loaded))


def test_what_is_unpacked_can_be_saved_and_trained(tmp_path):
    loaded = unpack(pack(NETWORK["shared layer"]()))
    save_network(tmp_path / "model.safetensors", loaded)
    assert_same(loaded, load_network(tmp_path / "model.safetensors", unpack(pack(shared()))))
    with torch.inference_mode():
        trainable = unpack(pack(loaded))
    trainable(torch.zeros(2, 1, 28, 28)).sum().backward()


def test_a_network_whose_file_would_answer_otherwise_is_refused(monkeypatch):
    monkeypatch.setattr(kdz, "read_compact", lambda _coded: three_convolutions())
    with pytest.raises(ParameterError, match=r"^pack\(\): 'model' must give the answers of its layers"):
        pack(normal(three_convolutions()))


def test_weights_that_are_no_numbers_are_refused():
    model = three_convolutions()
    model[3].weight.data[0, 0] = torch.nan
    with pytest.raises(ParameterError, match=r"^pack\(\): 'conv2\.weight' of 'model' must be finite"):
        pack(model)


@pytest.mark.slow
@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from([three_convolutions, separable, shared, lambda: small_student(7)]),
    st.integers(0, 1000),
    st.integers(1, 8),
    st.sampled_from([0.0, 0.5, 0.9]),
    st.sampled_from(["grid", "share", "raw"]),
)
def test_any_bits_and_sparsity_read_back_to_the_bit(build, seed, bits, sparsity, how):
    model = prune(normal(build(), seed), sparsity, scope="per_layer")
    if how == "share":
        model = share_weights(model, bits)
    model = kdz.make_permanent(model)
    if how == "grid":
        rounded(model, bits)
    loaded = unpack(pack(model, "compact"))
    assert_same(model.eval(), loaded)
    assert_decoded(pack(model, "compact"), loaded)


# ---- files that are none


def sealed(body):
    return b"kdz4" + hashlib.sha256(body).digest()[:4] + body


def outline_bytes(outline, monkeypatch):
    """Return a file that claims to hold this, whether it can be or not."""
    writer = ShortRangeWriter()
    with monkeypatch.context() as patch:
        patch.setattr(outlines, "input_shapes", lambda steps: [(1, 28, 28)] * len(steps))
        code_outline(writer, outline)
    return sealed(writer.content())


def refused(content):
    start = time.process_time()
    with pytest.raises(StorageError) as error:
        unpack(content, "small.kdz")
    assert time.process_time() - start < 2 and "small.kdz" in str(error.value)
    return str(error.value)


def test_every_flipped_bit_and_every_truncation_is_refused():
    content = pack(NETWORK["two bits"]())
    for place in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        with pytest.raises(StorageError):
            unpack(bytes(flipped))
    for length in range(len(content)):
        with pytest.raises(StorageError):
            unpack(content[:length])


def test_one_flipped_bit_is_called_a_damage():
    content = bytearray(pack(NETWORK["grid"]()))
    content[100] ^= 4
    with pytest.raises(DamagedFileError, match="is damaged: its SHA-256 is not the one"):
        unpack(bytes(content))


def test_bytes_that_say_nothing_behind_a_right_digest_are_refused():
    content = pack(NETWORK["grid"]())
    body = content[8:]
    assert unpack(sealed(body)) is not None
    for wrong in (body + b"\0", body + b"\x80", body + body, body + bytes(400), body[:1], b"", bytes(9)):
        refused(sealed(wrong))


@pytest.mark.parametrize("length", [5, 60, *(pytest.param(each, marks=pytest.mark.slow) for each in (1, 20, 400))])
def test_noise_behind_a_right_digest_takes_neither_time_nor_memory(length):
    generator = np.random.default_rng(length)
    with suppress(StorageError):
        unpack(sealed(b""))  # what the first file of a process imports isn't its own work
    tracemalloc.start()
    start = time.process_time()
    for _ in range(25):
        body = generator.bytes(length)
        with suppress(StorageError):
            unpack(sealed(body))
        with suppress(StorageError):
            architecture_in(sealed(body))
    assert time.process_time() - start < 20 and tracemalloc.get_traced_memory()[1] < 1e8
    tracemalloc.stop()


HUGE = [LayerStep("conv", 10_001), LayerStep("flatten"), LayerStep("linear", 10)]


@pytest.mark.parametrize(
    ("steps", "part"),
    [
        (HUGE, "outputs of layer 1, conv,' must be a whole number in [1, 10000]. Got 10001"),
        (
            [LayerStep("flatten"), LayerStep("linear", 10_000), LayerStep("linear", 10_000)],
            "must be a whole number in [0, 10000000]",
        ),
        ([LayerStep("conv", 335, (1, 1))], "features behind layer 1, conv,' must be a whole number in [1, 262144]"),
        ([LayerStep("conv", 4, (29, 29))], "window of layer 1, conv,' must be a whole number in [1, 28]. Got 29"),
        ([LayerStep("conv", 4, padding=(60_000, 60_000))], "padding of layer 1, conv,'"),
        ([LayerStep("max_pool", 0, (2, 2), (2, 2), (2, 2))], "padding of layer 1, max_pool,'"),
        ([LayerStep("conv", 4), LayerStep("linear", 4)], "must be flat: put a Flatten before it"),
        ([LayerStep("conv", 4, (28, 28)), LayerStep("conv", 4, (3, 3))], "at least as large as its kernel"),
        ([LayerStep("conv", 4, groups=2), LayerStep("flatten")], "a divisor of 1 and of 4. Got 2"),
        ([LayerStep("relu")] * 65, "number of layers' must be a whole number in [1, 64]"),
        ([], "number of layers' must be a whole number in [1, 64]. Got 0"),
    ],
    ids=["wide", "parameters", "features", "window", "padding", "pool", "maps", "kernel", "groups", "long", "empty"],
)
def test_what_is_beyond_bounds_is_refused_before_memory_is_taken(steps, part, monkeypatch):
    content = outline_bytes(steps, monkeypatch)
    tracemalloc.start()
    assert part in refused(content)
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


def by_hand(*choices, writer=None):
    """Return a file that begins with these choices: values and their counts, or numbers of equal likelihood."""
    writer = writer or ShortRangeWriter()
    for value, counts in choices:
        writer.whole(value, counts) if isinstance(counts, int) else code_choice(writer, value, counts)
    return sealed(writer.content())


GRID = (0, grid_codes.WAY_COUNTS), (3, grid_codes.BITS_COUNTS), (0, grid_codes.STEP_KIND_COUNTS)
STEP = (5, grid_codes.EXPONENT_COUNTS), (0, 8)


@pytest.mark.parametrize(
    "claims",
    [[(1, grid_codes.WAY_COUNTS), (257, 258)], [*GRID, *STEP, (0, (6, 1))], [*GRID, *STEP, (1, (6, 1))]],
    ids=["values", "alone", "matrix"],
)
def test_a_few_bytes_that_claim_millions_of_weights_take_no_time(claims):
    writer = ShortRangeWriter()
    code_outline(writer, [LayerStep("flatten"), LayerStep("linear", 10_000)])
    content = by_hand(*claims, writer=writer)
    start = time.process_time()
    refused_or_read(content)
    assert time.process_time() - start < 8 and len(content) < 30


@pytest.mark.slow
def test_a_few_bytes_that_hold_millions_of_zeros_are_read_about_as_fast_as_written():
    writer = ShortRangeWriter()
    code_outline(writer, [LayerStep("flatten"), LayerStep("linear", 10_000)])
    code_choice(writer, 1, grid_codes.WAY_COUNTS)
    writer.whole(257, 258)
    start = time.process_time()
    writer.matrix(np.zeros((10_000, 784), dtype=int), 2)
    written = time.process_time()
    refused_or_read(sealed(writer.content()))
    assert time.process_time() - written < 5 * (written - start) and len(writer.content()) < 100


def refused_or_read(content):
    with suppress(StorageError):
        unpack(content)


def kind(name, before=""):
    return STEP_KINDS.index(name), KIND_COUNTS[before] + SPARE_KINDS


SEQUENCE = 0, NETWORK_COUNTS


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (by_hand((len(NETWORKS), NETWORK_COUNTS)), "a network that this kd_lab doesn't have. Update kd_lab."),
        (
            by_hand(SEQUENCE, (len(STEP_KINDS), KIND_COUNTS[""] + SPARE_KINDS)),
            "a kind of layer that this kd_lab doesn't",
        ),
        (by_hand(SEQUENCE, kind("again")), "it runs a layer again where there is none before"),
        (
            by_hand(
                *(SEQUENCE, kind("max_pool"), (0, outlines.USUAL), (1, outlines.USUAL), (1, outlines.LONGER), (0, 2)),
                *((1, outlines.USUAL), (0, outlines.LONGER), kind("flatten", "max_pool"), kind("end", "flatten")),
            ),
            "what it says of the network is not written as pack() writes it",
        ),
        (sealed(b""), "holds no network of the kit"),
    ],
    ids=["another network", "another kind", "nothing again", "a longer spelling", "nothing"],
)
def test_what_pack_does_not_write_is_refused(content, part):
    assert part in refused(content)
    if "Update" in part:
        with pytest.raises(StorageError, match="Update kd_lab"):
            architecture_in(content)


@pytest.mark.parametrize(
    "form",
    [
        Form("lenet300", ["fc1"], {}, []),
        Form("resnet", ["block2", "block1"], {}, []),
        Form("resnet", ["block1", "block1"], {}, []),
        Form("784-10001-10", [], {}, []),
        Form("784-60000-10", [], {}, []),
        Form("lenet300/fc1=301", [], {}, []),
        Form("lenet5/fc1=5", ["fc1.first"], {}, []),
    ],
    ids=str,
)
def test_a_form_that_no_network_has_is_refused(form, monkeypatch):
    writer = ShortRangeWriter()
    with monkeypatch.context() as patch:
        names = build_model("lenet300") if "784" in form.architecture else build_model(form.architecture.split("/")[0])
        patch.setattr(outlines, "form_choices", lambda *_parts: ({}, []))
        if "lenet5" not in form.architecture:
            patch.setattr(outlines, "build_architecture", lambda _name: names)
        code_outline(writer, form)
    refused(sealed(writer.content()))


@pytest.mark.parametrize("removed", [["block2", "block1"], ["block1", "block1", "block2"]])
def test_another_spelling_of_a_form_is_refused(removed):
    model = kdz.make_permanent(remove_layers(build_model("resnet"), ["block1", "block2"]))
    assert unpack(sealed(compact.write_compact(model, outlines.outline_of(model)))) is not None
    body = compact.write_compact(model, Form("resnet", removed, {}, []))
    assert "what it says of the network is not what pack() writes" in refused(sealed(body))


def test_a_module_that_no_file_holds_is_named_with_what_to_do():
    with pytest.raises(ParameterError) as error:
        pack(nn.Sequential(nn.Flatten(), nn.Linear(784, 10), nn.GELU()))
    assert str(error.value) == (
        "pack(): 'layer 2' must be one of torch's own Conv2d, Linear, MaxPool2d, AvgPool2d, AdaptiveAvgPool2d, ReLU, "
        "Flatten, BatchNorm2d, Identity, Dropout, Dropout2d, without hooks. Got 'GELU'. "
        "save_network() saves any network."
    )


def test_the_count_of_batches_is_left_out():
    loaded = unpack(pack(batch_norm()))
    assert int(batch_norm()[1].num_batches_tracked) == 1 and int(loaded.norm1.num_batches_tracked) == 0
    assert compact.COUNTED in "norm1.num_batches_tracked"
