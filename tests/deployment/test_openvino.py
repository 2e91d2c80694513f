"""OpenVINO gives the answers of the kit's own networks, in fp32, in int8 and on integers; bad input writes no file."""

import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import onnx
import pytest
import torch
from torch import nn

from kd_lab.checkpoints import load_trained
from kd_lab.cost import file_bytes, latency
from kd_lab.deployment import OpenvinoModel, export_openvino
from kd_lab.deployment import openvino as deployed_openvino
from kd_lab.deployment.openvino import _package
from kd_lab.errors import DamagedFileError, ParameterError, SetupError, StorageError
from kd_lab.evaluation import accuracy
from kd_lab.networks.predictions import predict
from kd_lab.pruning import prune
from kd_lab.quantization import quantize_model, quantize_weights, to_integer


def through_openvino(model, folder, **given):
    export_openvino(model, folder / "model.xml", **given)
    return OpenvinoModel(folder / "model.xml")


def bytes_of_both(folder):
    return sum((folder / f"model.{ending}").stat().st_size for ending in ("xml", "bin"))


@pytest.fixture(scope="module")
def integers(student, mnist):
    return to_integer(quantize_model(student, mnist.train.images[:100]))


@pytest.fixture
def written(integers, tmp_path):
    export_openvino(integers, tmp_path / "model.xml")
    return tmp_path / "model.xml"


@pytest.mark.parametrize("name", [pytest.param("cnn", marks=pytest.mark.slow), "student"])
def test_an_fp32_file_gives_the_logits_of_torch(name, student, mnist, tmp_path, capfd):
    model = student if name == "student" else load_trained(name)
    deployed = through_openvino(model, tmp_path)
    for count in (1, 7, 1000):  # any batch, whichever one it was exported with
        images = mnist.test.images[:count]
        logits, expected = predict(deployed, images), predict(model, images)
        assert torch.equal(logits.argmax(1), expected.argmax(1)) and (logits - expected).abs().max() <= 1e-4
    assert capfd.readouterr().out == ""
    floats = 4 * sum(parameter.numel() for parameter in model.parameters())
    assert floats < (tmp_path / "model.bin").stat().st_size < floats + 1000  # not rounded to fp16
    assert bytes_of_both(tmp_path) - 200 < file_bytes(deployed) < bytes_of_both(tmp_path) + 200
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.bin", "model.xml"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn", "lenet300"])
def test_nncf_quantizes_without_a_word_and_loses_little(name, mnist, tmp_path, capfd):
    model, test = load_trained(name), mnist.test[:2000]
    logged = logging.root.manager.disable
    deployed = through_openvino(model, tmp_path, calibration=mnist.train.images[:300])
    assert abs(accuracy(deployed, test).value - accuracy(model, test).value) <= 0.003
    assert file_bytes(deployed) < 0.3 * file_bytes(model)
    assert capfd.readouterr().out == "" and logging.root.manager.disable == logged


@pytest.mark.parametrize("name", [pytest.param("cnn", marks=pytest.mark.slow), "student"])
def test_openvino_gives_the_answers_of_the_integers(name, student, mnist, tmp_path):
    model, images = student if name == "student" else load_trained(name), mnist.test.images[:2000]
    integers = to_integer(quantize_model(model, mnist.train.images[:100]))
    deployed = through_openvino(integers, tmp_path)
    logits, expected = predict(deployed, images), predict(integers, images)
    assert (logits.argmax(1) != expected.argmax(1)).sum() <= 2
    assert (logits - expected).abs().mean() < 1e-3 * expected.abs().max()
    assert (tmp_path / "model.bin").stat().st_size < 1.05 * sum(
        each.numel() * each.element_size() for each in integers.parameters()
    )


@pytest.mark.parametrize("bits, symmetric", [(8, True), (4, True), (2, True), (5, False)])
def test_other_layers_few_bits_and_several_zero_points(bits, symmetric, odd_layers, tmp_path):
    images = torch.randn(70, 1, 28, 28)
    whole = to_integer(quantize_model(odd_layers, images, bits, bits, symmetric=symmetric))
    assert not whole.left_in_float
    logits, expected = predict(through_openvino(whole, tmp_path, images=images), images), predict(whole, images)
    last = whole[-1]
    step = last.input_scale * (last.weight_scale * (last.weight.int() - last.weight_zero_point).abs()).max()
    # a sum halfway between two integers may be rounded to the other one, in more than one layer
    assert (logits - expected).abs().max() <= 3 * step and (logits - expected).abs().mean() < 0.1 * step


def test_a_convolution_may_be_the_last_layer(tmp_path):
    torch.manual_seed(0)
    images = torch.rand(40, 3, 8, 6)
    whole = to_integer(quantize_model(nn.Sequential(nn.Conv2d(3, 4, (8, 6)), nn.Flatten()), images))
    deployed = through_openvino(whole, tmp_path, images=images)
    assert torch.allclose(predict(deployed, images), predict(whole, images), atol=1e-4)


@pytest.mark.slow
def test_masks_and_grids_of_weights_alone_are_written_as_the_weights_they_give(student, validation, tmp_path):
    model = quantize_weights(prune(student, 0.8), 4)
    deployed = through_openvino(model, tmp_path)
    assert torch.allclose(predict(deployed, validation.images), predict(model, validation.images), atol=1e-3)


def test_files_are_run_like_a_network_by_one_thread_or_by_several(written, integers, validation):
    deployed = OpenvinoModel(written)
    assert deployed.session.get_property("INFERENCE_NUM_THREADS") == 1
    assert 0 < latency(deployed, 1) < latency(deployed, 256)
    batches = validation.images.split(10)
    with ThreadPoolExecutor(4) as pool:
        found = torch.cat(list(pool.map(deployed, batches)))
    assert torch.equal(found, torch.cat([deployed(batch) for batch in batches]))
    for images in (validation.images[:, :, :14], validation.images.double(), validation.labels):
        with pytest.raises(ParameterError, match=r"predict\(\): the model can't read images"):
            predict(deployed, images)


def refused(model, folder, match, **given):
    (folder / "kept.xml").write_bytes(b"old")
    with pytest.raises(ParameterError, match=match):
        export_openvino(model, folder / "kept.xml", **given)
    assert [path.read_bytes() for path in folder.iterdir()] == [b"old"]


def test_models_that_openvino_can_not_hold_are_refused(student, integers, validation, tmp_path):
    few = validation.images[:64]
    refused(nn.Sequential(integers, nn.Softmax(1)), tmp_path, r"^export_openvino\(\): 'model' .* 1 \(Softmax\)")
    refused(quantize_model(student, few), tmp_path, r"call to_integer\(model\) first")
    refused(integers, tmp_path, "in fp32 where calibration images are given", calibration=few)
    refused("cnn", tmp_path, "must be a network")
    for wrong in (few[:0], [1]):
        refused(integers, tmp_path, "'calibration' must be a tensor of some hundred images", calibration=wrong)
    with pytest.raises(ParameterError, match=r"'path' must be the path of an \.xml file\. Got "):
        export_openvino(integers, tmp_path / "model.onnx")


def test_a_missing_package_is_named(monkeypatch, integers, tmp_path):
    monkeypatch.setitem(sys.modules, "openvino", None)
    for call in (lambda path: export_openvino(integers, path), OpenvinoModel):
        with pytest.raises(SetupError, match=r"openvino is not installed\. Run: pip install openvino nncf"):
            call(tmp_path / "model.xml")
    assert list(tmp_path.iterdir()) == []


def test_damaged_files_are_named(written):
    xml, weights = written.read_bytes(), written.with_suffix(".bin").read_bytes()
    for place in (100, len(xml) // 2):
        written.write_bytes(xml[:place] + bytes([xml[place] ^ 1]) + xml[place + 1 :])
        with pytest.raises(DamagedFileError, match=r"model\.xml or its weights.*, are damaged"):
            OpenvinoModel(written)
    written.write_bytes(xml)
    for content in (weights[:-1], weights[:500] + bytes([weights[500] ^ 1]) + weights[501:], b""):
        written.with_suffix(".bin").write_bytes(content)
        with pytest.raises(DamagedFileError, match=r"model\.xml or its weights.*, are damaged"):
            OpenvinoModel(written)
    written.with_suffix(".bin").unlink()
    with pytest.raises(StorageError, match=r"model\.bin can't be read: No such file"):
        OpenvinoModel(written)


def test_foreign_files_are_named(written):
    for content in (b"", b"not a model", onnx.ModelProto(ir_version=8).SerializeToString()):
        written.write_bytes(content)
        with pytest.raises(DamagedFileError, match=r"model\.xml is damaged, or no \.xml file of OpenVINO"):
            OpenvinoModel(written)
    for content in (b"<?xml version='1.0'?><svg></svg>", b"<?xml version='1.0'?><net name='a' version='11'>"):
        written.write_bytes(content)
        with pytest.raises(StorageError, match=r"model\.xml can't be run by OpenVINO: [^\n]{5,}$"):
            OpenvinoModel(written)


@pytest.mark.parametrize("batch", [-1, 1, 7])
@pytest.mark.parametrize("kind", ["f32", "u8", "f64"])
def test_files_made_elsewhere_give_the_logits_that_torch_gives(batch, kind, tmp_path):
    openvino = _package("openvino")  # as the kit imports it, without what sends statistics
    ops, weight = openvino.opset13, torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    images = ops.parameter([batch, 1, 4, 4], getattr(openvino.Type, kind))
    flat = ops.reshape(ops.convert(images, "f32"), ops.constant([-1, 16], openvino.Type.i64), False)
    logits = ops.matmul(flat, ops.constant(weight.numpy()), False, False)
    openvino.serialize(openvino.Model([logits], [images]), tmp_path / "model.xml")
    model = OpenvinoModel(tmp_path / "model.xml")
    for count in (1, 7, 130):
        given = (100 * torch.rand(count, 1, 4, 4)).to(model.dtype)
        assert torch.allclose(predict(model, given), given.float().flatten(1) @ weight, rtol=1e-4, atol=1e-3)


def test_files_that_take_or_give_several_tensors_are_named(tmp_path):
    openvino = _package("openvino")
    ops = openvino.opset13
    taken = [ops.parameter([-1, 4], openvino.Type.f32) for _ in range(2)]
    openvino.serialize(openvino.Model([ops.add(*taken)], taken), tmp_path / "model.xml")
    with pytest.raises(StorageError, match=r"must take one tensor of numbers and give one\. It takes \['f32', 'f32'\]"):
        OpenvinoModel(tmp_path / "model.xml")


@pytest.mark.slow
def test_nothing_is_sent_and_nncf_is_imported_only_for_int8(written):
    code = (
        "import sys, socket\n"
        "socket.socket.connect = socket.create_connection = lambda *given: sys.exit('asked the network')\n"
        "from kd_lab.deployment import OpenvinoModel\n"
        "assert 'openvino' not in sys.modules\n"
        f"OpenvinoModel({str(written)!r})\n"
        "assert 'nncf' not in sys.modules and sys.modules['openvino_telemetry'] is None\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


@pytest.mark.slow
def test_what_surrounds_an_export_changes_nothing(surroundings, student, validation, tmp_path):
    images = validation.images[:3]
    deployed = through_openvino(student, tmp_path, images=images.clone())
    assert torch.allclose(predict(deployed, images), predict(student, images), atol=1e-4)


@pytest.mark.parametrize(
    ("machine", "has", "exact"),
    [
        ("x86_64", {}, True),
        ("AMD64", {"avx2": True, "avx_vnni": False}, True),
        ("x86_64", {"avx512_vnni": True}, False),
        ("arm64", {}, False),
    ],
)
def test_a_processor_that_would_overflow_multiplies_bytes_as_floats(machine, has, exact, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    monkeypatch.setattr(deployed_openvino.platform, "machine", lambda: machine)
    assert (deployed_openvino._settings().get("LP_TRANSFORMS_MODE") == "NO") == exact
