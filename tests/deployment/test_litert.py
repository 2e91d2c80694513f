"""LiteRT gives the answers of torch in the files that ship; a wrong, foreign or damaged file is refused in a sentence.

The converter has an environment of its own, which a learner need not have: a script stands in for it here.
"""

import runpy
import stat
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks._litert import CALIBRATION_IMAGES, KINDS
from kd_lab.checkpoints import load_trained
from kd_lab.cost import count_parameters, file_bytes
from kd_lab.deployment import LitertModel, export_litert, litert, load_litert
from kd_lab.errors import DamagedFileError, ParameterError, SetupError, StorageError
from kd_lab.evaluation import accuracy, paired_difference
from kd_lab.networks.predictions import predict
from kd_lab.quantization import quantize_model, quantize_weights, to_integer

FP32, STATIC, INTEGER = "cnn_fp32", "cnn_static_int8", "cnn_integer"
NAMES = [f"cnn_{kind}" for kind in KINDS]
IN_INT8 = [name for name in NAMES if name != FP32]


@pytest.fixture
def cnn():
    """Return the network of torch that the files were made of."""
    return load_trained("cnn")


@pytest.fixture
def converter(tmp_path, monkeypatch):
    """Return a function that puts lines of Python in the converter's place; they know `folder` and `recipe`."""
    folder = tmp_path / ".litert"
    (folder / "bin").mkdir(parents=True)
    monkeypatch.setattr(litert, "ENVIRONMENT", folder)

    def put(lines):
        (folder / "fake.py").write_text(
            "import shutil, sys, pathlib\nfolder, recipe = pathlib.Path(sys.argv[3]), sys.argv[4]\n" + lines
        )
        python = folder / "bin" / "python"
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{folder / "fake.py"}" "$@"\n')
        python.chmod(python.stat().st_mode | stat.S_IXUSR)
        (folder / "installed").touch()

    return put


def copies(name):
    return f"shutil.copy({str(litert.SHIPPED / name)!r} + '.tflite', folder / 'network.tflite')"


def test_a_file_in_fp32_gives_the_logits_of_torch(validation, cnn):
    deployed = load_litert(FP32)
    found, expected = predict(deployed, validation.images), predict(cnn, validation.images)
    assert torch.equal(found.argmax(1), expected.argmax(1)) and found.dtype == expected.dtype
    assert (found - expected).abs().max() < 1e-4
    for count in (1, 3, 130):  # the file takes one image at a time
        assert torch.allclose(deployed(validation.images[:count]), expected[:count], atol=1e-4)


@pytest.mark.parametrize("name", IN_INT8)
def test_files_in_int8_read_as_many_digits_within_0_3_points_in_a_quarter_of_the_bytes(name, validation, cnn):
    deployed = load_litert(name)
    assert abs(accuracy(deployed, validation).value - accuracy(cnn, validation).value) <= 0.003
    found, expected = predict(deployed, validation.images), predict(cnn, validation.images)
    assert found.dtype == torch.float32 and (found - expected).abs().mean() < 0.02 * expected.abs().max()
    assert file_bytes(deployed) < 0.31 * 4 * count_parameters(cnn)


@pytest.mark.parametrize("part", ["validation", pytest.param("test", marks=pytest.mark.slow)])
def test_the_kits_own_integers_answer_as_they_do_in_torch(part, mnist, cnn):
    integer = to_integer(quantize_model(cnn, mnist.train.images[:CALIBRATION_IMAGES]))
    images = getattr(mnist, part).images
    found, expected = predict(load_litert(INTEGER), images), predict(integer, images)
    assert torch.equal(found.argmax(1), expected.argmax(1))
    wrong = (found - expected).abs().amax(1)
    assert wrong.median() < 1e-4 and (wrong > 1e-3).sum() < 0.01 * len(images)  # a few sums round to their other side


@pytest.mark.parametrize("bits", [8, 4])
def test_what_the_converter_is_given_of_integers_is_the_numbers_that_they_stand_for(bits, odd_layers, mnist):
    some = mnist.train.images[:100]
    integer = to_integer(quantize_model(odd_layers, some, weight_bits=bits, activation_bits=bits))
    program = litert.exported_program(integer, some[:1]).module()
    found = torch.cat([program(image) for image in some.split(1)])
    wrong, largest = (found - predict(integer, some)).abs(), found.abs().max()
    assert wrong.median() < 1e-6 * largest and wrong.mean() < 1e-3 * largest
    alone = to_integer(quantize_model(nn.Linear(28, 10), some))  # a model that is one layer
    rows = some[:1]
    assert torch.allclose(litert.exported_program(alone, rows).module()(rows), predict(alone, rows), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_files_that_ship_read_the_test_digits_as_torch_does(name, mnist, cnn):
    found = paired_difference(load_litert(name), cnn, mnist.test)
    assert abs(found.gained - found.lost) <= (30 if name in IN_INT8 else 0)


def test_the_files_that_ship_are_small_and_hold_no_path_of_the_machine_that_made_them():
    files = sorted(litert.SHIPPED.iterdir())
    assert [path.stem for path in files] == sorted(NAMES)
    content = b"".join(path.read_bytes() for path in files)
    assert len(content) < 1_500_000 and not any(word in content for word in (b"/tmp", b"/home", b"/root", b"site-pack"))


def test_the_bytes_are_what_it_costs_and_another_name_is_refused():
    path = litert.SHIPPED / f"{STATIC}.tflite"
    assert bytes(LitertModel(path).file.numpy()) == path.read_bytes()
    with pytest.raises(ParameterError, match=r"load_litert\(\): 'name' must be one of cnn_dynamic_int8, .* Did you"):
        load_litert("cnn_static")
    with pytest.raises(ParameterError, match=r"expected \(N, 1, 28, 28\) and torch\.float32"):
        load_litert(STATIC)(torch.zeros(2, 1, 28, 27))


def test_int8_images_are_rounded_to_nearest_and_clipped(validation):
    deployed = load_litert(STATIC)
    scale, zero_point = deployed._taken["quantization"]
    images = torch.tensor([0.0, 1.4, 1.6, 1e6, -1e6]).mul(scale).numpy()
    expected = np.clip([zero_point, zero_point + 1, zero_point + 2, 127, -128], -128, 127)
    assert litert._rounded(images, deployed._taken).tolist() == expected.tolist()
    far = validation.images[:1] * 1000  # beyond the grid
    assert torch.isfinite(deployed(far)).all()


@pytest.mark.parametrize("content", [b"", b"hello, I am a text", b"\x1c\0\0\0TFL3" + bytes(300), "half", "flipped"])
def test_a_damaged_or_foreign_file_is_refused(content, tmp_path):
    whole = (litert.SHIPPED / f"{FP32}.tflite").read_bytes()
    flipped = whole[:54] + bytes([whole[54] ^ 16]) + whole[55:]
    path = tmp_path / "network.tflite"
    path.write_bytes({"half": whole[: len(whole) // 2], "flipped": flipped}.get(content, content))
    with pytest.raises(DamagedFileError, match=r"network\.tflite is damaged, or LiteRT can't run it: "):
        LitertModel(path)
    with pytest.raises(StorageError, match=r"can't be read"):
        LitertModel(tmp_path / "absent.tflite")


def details(dtype, scale=0.0, shape=(1, 1, 28, 28)):
    return {"dtype": dtype, "quantization": (scale, 0), "shape_signature": np.array(shape), "index": 0}


class Foreign:
    """An interpreter of a file that another program wrote: it adds up the pixels of each image, in float32."""

    taken: list = [details(np.float32, shape=(-1, 1, 28, 28))]  # noqa: RUF012

    def __init__(self, model_content, num_threads):
        self.size = None

    def allocate_tensors(self):
        pass

    def get_input_details(self):
        return self.taken

    def get_output_details(self):
        return [details(np.float32)]

    def resize_tensor_input(self, _index, size):
        self.size = size

    def set_tensor(self, _index, images):
        assert images.shape == self.size
        self.images = images

    def invoke(self):
        if len(self.images) == 13:
            raise RuntimeError("Node 9 failed to prepare.\nMore.")

    def get_tensor(self, _index):
        return self.images.sum((1, 2, 3))[:, None]


@pytest.fixture
def foreign(monkeypatch, tmp_path):
    def put(*taken):
        monkeypatch.setattr(Foreign, "taken", [*taken])
        monkeypatch.setattr(litert, "optional", lambda *_: SimpleNamespace(Interpreter=Foreign))
        (tmp_path / "foreign.tflite").write_bytes(b"file")
        return tmp_path / "foreign.tflite"

    return put


def test_a_file_that_takes_any_number_is_given_all_at_once_and_what_it_says_is_handed_on(foreign, validation):
    deployed = LitertModel(foreign(details(np.float32, shape=(-1, 1, 28, 28))))
    images = validation.images[:13]
    assert torch.allclose(deployed(images[:7]).flatten(), images[:7].sum((1, 2, 3)))
    with pytest.raises(ParameterError, match=r"LiteRT can't read 13 images: Node 9 failed to prepare\.$"):
        deployed(images)


@pytest.mark.parametrize("taken", [[details(np.int64)], [details(np.bytes_)], [details(np.float32)] * 2])
def test_a_file_that_takes_no_images_is_refused(taken, foreign):
    with pytest.raises(StorageError, match=r"must take one tensor, fp32 or rounded from it, and give one\. It takes "):
        LitertModel(foreign(*taken))


def test_without_the_package_or_the_converter_it_says_what_to_install(monkeypatch, tmp_path, cnn):
    monkeypatch.setattr(litert, "ENVIRONMENT", tmp_path / "nowhere")
    with pytest.raises(SetupError, match=r"^The LiteRT converter is not installed\. .* run: make litert$"):
        export_litert(cnn, tmp_path / "network.tflite")
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(SetupError, match=r"Run: pip install ai-edge-litert$"):
        load_litert(FP32)
    assert not list(tmp_path.glob("network*"))


@pytest.mark.parametrize(
    "kind, recipe", [("fp32", ""), ("dynamic_int8", "dynamic_wi8_afp32"), ("static_int8", "static_wi8_ai8")]
)
def test_what_the_converter_makes_is_written_after_it_gave_the_answers(kind, recipe, converter, tmp_path, mnist, cnn):
    name, path = f"cnn_{kind}", tmp_path / "network.tflite"
    converter(f"assert recipe == {recipe!r}\n{copies(name)}")
    calibration = mnist.train.images[:100] if kind == "static_int8" else None
    export_litert(cnn, path, calibration=calibration, dynamic=kind == "dynamic_int8")
    assert path.read_bytes() == (litert.SHIPPED / f"{name}.tflite").read_bytes()


def test_masks_and_rounded_weights_are_made_permanent_before(converter, tmp_path, cnn):
    converter(copies(FP32))
    with pytest.raises(ParameterError, match=r"must be one that LiteRT computes alike\."):
        export_litert(quantize_weights(cnn, 2), tmp_path / "network.tflite")


@pytest.mark.parametrize("model, name", [("lenet5_classic", FP32), ("lenet5_classic", STATIC), ("mlp128", FP32)])
def test_the_file_of_another_network_is_never_handed_over(model, name, converter, tmp_path):
    converter(copies(name))
    with pytest.raises(ParameterError, match=r"^export_litert\(\): 'model' must be one that LiteRT computes alike\."):
        export_litert(load_trained(model), tmp_path / "network.tflite")
    assert not list(tmp_path.glob("network*"))


def test_other_answers_of_int8_are_named_and_another_network_is_refused(converter, tmp_path, validation, cnn):
    converter(copies("cnn_dynamic_int8"))
    untrained = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    with pytest.raises(ParameterError, match=r"^export_litert\(\): .* computes alike"):
        export_litert(untrained, tmp_path / "network.tflite", dynamic=True)
    noise = torch.randn(validation.images.shape, generator=torch.Generator().manual_seed(0))
    some = validation.images + 1.5 * noise  # on which the network is less sure
    with pytest.warns(UserWarning, match=r"^LiteRT answers \d+ of 1000 images otherwise than torch: images "):
        export_litert(cnn, tmp_path / "network.tflite", images=some, dynamic=True)


NOT_FOUND = "Lowering not found: aten.linalg_pinv.atol_rtol_tensor"  # as litert-torch 0.10 says it


class Inverse(nn.Module):
    def forward(self, x):
        return torch.linalg.pinv(x.view(-1, 2, 5)).flatten(1)


@pytest.mark.parametrize(
    "raised, said",
    [
        (f"RuntimeError('{NOT_FOUND}\\nmore')", f" with odd: {NOT_FOUND}"),
        ("MemoryError()", ": it ended with 1"),
        ("ValueError('in passes: /usr/linear.py:134:0: error: no op')", ": in passes: error: no op"),
        ("ImportError('No module named x')", ": No module named x"),
    ],
)
def test_a_layer_that_the_converter_has_no_word_for_is_named(raised, said, converter, tmp_path):
    converter(f"raise {raised}")
    layers = {"flatten": nn.Flatten(), "fc": nn.Linear(784, 10), "odd": Inverse()}
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    with pytest.raises(
        ParameterError, match=r"^export_litert\(\): 'model' must be one that LiteRT can hold\. Got"
    ) as error:
        export_litert(model, tmp_path / "network.tflite")
    assert f"Got one{said}" in str(error.value) and raised[:9] in error.value.__cause__.stderr


def test_a_file_that_does_not_run_is_never_handed_over(converter, tmp_path, cnn):
    converter("(folder / 'network.tflite').write_bytes(bytes(64))")
    with pytest.raises(ParameterError, match=r"'model' must be one that LiteRT can run\. Got: .*Flatbuffer"):
        export_litert(cnn, tmp_path / "network.tflite")
    assert not list(tmp_path.glob("network*"))


class Choosing(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :10] if x.sum() > 0 else x.flatten(1)[:, 10:20]


def test_what_cannot_be_handed_over_is_refused_before_the_converter_starts(converter, tmp_path, mnist, cnn):
    converter("raise SystemError")
    some, path = mnist.train.images[:50], tmp_path / "network.tflite"
    with pytest.raises(ParameterError, match=r"'model' must be one that torch can export\. Got: "):
        export_litert(Choosing(), path)
    rounding = quantize_model(cnn, some)
    with pytest.raises(ParameterError, match=r"^export_litert\(\): 'model' must not round .* call to_integer\(model\)"):
        export_litert(rounding, path)
    for settings in ({"calibration": some}, {"dynamic": True}):
        with pytest.raises(ParameterError, match=r"^export_litert\(\): 'model' must be in fp32 where "):
            export_litert(to_integer(rounding), path, **settings)
    with pytest.raises(ParameterError, match=r"^export_litert\(\): 'model' must be a network of torch\."):
        export_litert(load_litert(FP32), path)
    with pytest.raises(ParameterError, match=r"LiteRT can hold\. Got one with conv1, whose weight has a zero point"):
        export_litert(to_integer(quantize_model(cnn, some, symmetric=False)), path)
    for calibration in (some[:0], [1], some.tolist(), some[:, :, 1:]):
        with pytest.raises(ParameterError, match=r"'calibration' must be a tensor of some hundred images"):
            export_litert(cnn, path, calibration=calibration)
    with pytest.raises(ParameterError, match=r"'calibration' must be None for dynamic int8\. Got"):
        export_litert(cnn, path, calibration=some, dynamic=True)
    assert not path.exists()


def test_the_converter_gets_the_network_and_the_images_and_uses_the_recipe(monkeypatch, tmp_path, mnist, cnn):
    """The script itself, with its two packages replaced: what it is given, and what it does with it."""
    asked = {}

    class Quantizer:
        def __init__(self, content, recipe):
            asked.update(content=content, recipe=recipe)

        def calibrate(self, data, num_threads):
            return [image["args_0"].shape for image in data["serving_default"]]

        def quantize(self, seen):
            return SimpleNamespace(quantized_model=repr(seen).encode())

    def convert(network, sample, quant_config):
        asked.update(logits=network(*sample), config=quant_config)
        return SimpleNamespace(model_content=lambda: b"fp32")

    monkeypatch.setitem(sys.modules, "litert_torch", SimpleNamespace(convert=convert))
    of_torch = SimpleNamespace(
        PT2EQuantizer=lambda: SimpleNamespace(set_global=lambda setting: setting),
        get_symmetric_quantization_config=lambda: "int8",
        QuantConfig=lambda quantizer: f"static {quantizer}",
    )
    for module in ("pt2e_quantizer", "quant_config"):
        monkeypatch.setitem(sys.modules, f"litert_torch.quantize.{module}", of_torch)
    quantizer = SimpleNamespace(
        quantizer=SimpleNamespace(Quantizer=Quantizer), recipe=SimpleNamespace(static_wi8_ai8=lambda: "static")
    )
    monkeypatch.setitem(sys.modules, "ai_edge_quantizer", quantizer)
    script = runpy.run_path(str(litert.SCRIPT))
    some = mnist.train.images[:3]
    torch.export.save(litert.exported_program(cnn, some[:1]), tmp_path / "network.pt2")
    np.save(tmp_path / "images.npy", some.numpy())
    assert script["convert"](tmp_path, "") == b"fp32" and asked["config"] is None
    assert script["convert"](tmp_path, "integers") == b"fp32" and asked["config"] == "static int8"
    assert torch.allclose(asked["logits"], predict(cnn, some[:1]), atol=1e-5)
    assert script["convert"](tmp_path, "static_wi8_ai8") == repr([(1, 1, 28, 28)] * 3).encode()
    assert asked["recipe"] == "static" and asked["content"] == b"fp32"
