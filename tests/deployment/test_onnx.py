"""ONNX Runtime gives the answers of the kit's own networks, in fp32 and on integers; bad input writes no file."""

import copy
import sys

import onnx
import pytest
import torch
from torch import nn

from kd_lab.checkpoints import load_trained
from kd_lab.cost import count_parameters, file_bytes, latency
from kd_lab.deployment import OnnxModel, export_onnx
from kd_lab.deployment.runtime import RuntimeModel
from kd_lab.errors import DamagedFileError, ParameterError, SetupError, StorageError
from kd_lab.evaluation import accuracy
from kd_lab.networks.predictions import predict
from kd_lab.networks.zoo import build_model
from kd_lab.pruning import prune
from kd_lab.quantization import quantize_model, quantize_weights, to_integer

INTEGER_NODES = {"QuantizeLinear", "QLinearConv", "QGemm", "MaxPool", "Flatten", "Clip"}


@pytest.fixture(scope="module")
def integers(mnist):
    """Models with weights of 7 bits: products of 8 by 8 bits can overflow the pair sums of older processors."""
    return {
        name: to_integer(quantize_model(load_trained(name), mnist.train.images[:100], weight_bits=7))
        for name in ("lenet300", "cnn", "resnet")
    }


def through_onnx(model, folder):
    export_onnx(model, folder / "model.onnx")
    return OnnxModel(folder / "model.onnx")


@pytest.mark.parametrize("name", ["lenet300", "cnn"])
def test_onnx_runtime_gives_the_integer_answers(name, integers, validation, tmp_path):
    whole = integers[name]
    deployed = through_onnx(whole, tmp_path)
    logits, expected = (predict(model, validation.images) for model in (deployed, whole))
    assert (logits.argmax(1) == expected.argmax(1)).sum() >= 995
    assert (logits - expected).abs().max() < 0.01 * expected.abs().max()
    assert {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node} <= INTEGER_NODES
    assert file_bytes(deployed) < 1.02 * file_bytes(whole)


def test_the_file_holds_the_same_integers_scales_and_zero_points(integers, tmp_path):
    export_onnx(integers["cnn"], tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    held = {tensor.name: torch.tensor(onnx.numpy_helper.to_array(tensor)) for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type in ("QLinearConv", "QGemm")]
    for node, name in zip(nodes, ("conv1", "conv2", "fc1", "fc2"), strict=True):
        layer = integers["cnn"].get_submodule(name)
        scale, zero_point, weight, weight_scale, weight_zero_point = (held[key] for key in node.input[1:6])
        assert torch.equal(weight, layer.weight) and torch.equal(weight_scale, layer.weight_scale.flatten())
        assert scale == layer.input_scale and int(zero_point) - 128 == layer.input_zero_point
        assert not weight_zero_point.any()
        assert torch.equal(held[node.input[8 if node.op_type == "QLinearConv" else 6]], layer.bias)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


@pytest.mark.parametrize(
    "bits, options",
    [
        (8, {}),
        (4, {}),
        (2, {}),
        (5, {"granularity": "per_tensor"}),
        (6, {"granularity": "per_tensor", "symmetric": False}),
    ],
)
def test_other_layers_and_few_bits(bits, options, odd_layers, tmp_path):
    dense = nn.Sequential(*odd_layers, odd_layers[2])  # and a ReLU behind the last layer
    images = torch.randn(70, 1, 28, 28)
    whole = to_integer(quantize_model(dense, images, bits, bits, **options))
    assert not whole.left_in_float
    logits, expected = predict(through_onnx(whole, tmp_path), images), predict(whole, images)
    assert (logits.sign() == expected.sign()).float().mean() > 0.99
    step = whole[-2].input_scale * (whole[-2].weight_scale * whole[-2].weight.abs()).amax()
    assert (logits - expected).abs().max() <= 2 * step and (logits - expected).abs().mean() < 0.1 * step


def test_a_sequential_in_another_a_module_used_twice_and_affine_channels_of_linear_layers(tmp_path):
    torch.manual_seed(0)
    pool = nn.MaxPool2d(2)
    dense = nn.Sequential(pool, pool, nn.Sequential(nn.Flatten(), nn.Linear(49, 30), nn.ReLU()), nn.Linear(30, 4))
    images = torch.rand(40, 1, 28, 28)
    whole = to_integer(quantize_model(dense, images, symmetric=False))
    assert torch.allclose(predict(through_onnx(whole, tmp_path), images), predict(whole, images), atol=1e-4)


@pytest.mark.parametrize(
    "prepare",
    [
        pytest.param(lambda model, images: model, marks=pytest.mark.slow),
        lambda *given: to_integer(quantize_model(*given)),
    ],
)
def test_a_network_that_reads_other_images_is_written_for_them(prepare, tmp_path):
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(3, 4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 28 * 16, 10))
    images = torch.rand(40, 3, 32, 20)
    model = prepare(dense, images)
    with pytest.raises(ParameterError, match=r"the model can't read images of shape \(1, 28, 28\)"):
        export_onnx(model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
    export_onnx(model, tmp_path / "model.onnx", images[:2])
    assert torch.allclose(predict(OnnxModel(tmp_path / "model.onnx"), images), predict(model, images), atol=1e-4)


def with_norm_and_dropout():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 5, stride=3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(4 * 64, 10)
    )


@pytest.mark.parametrize(
    "build",
    [
        with_norm_and_dropout,
        pytest.param(lambda: load_trained("lenet300"), marks=pytest.mark.slow, id="lenet300"),
        pytest.param(lambda: load_trained("resnet"), marks=pytest.mark.slow, id="resnet"),
    ],
)
def test_an_fp32_file_gives_the_logits_of_torch(build, validation, tmp_path, capfd, recwarn):
    model = build().train()
    deployed = through_onnx(model, tmp_path)
    for count in (1, 7, 1000):  # any batch, whichever one it was exported with
        images = validation.images[:count]
        assert torch.allclose(predict(deployed, images), predict(model, images), atol=1e-3, rtol=1e-4)
    assert accuracy(deployed, validation) == accuracy(model, validation)
    assert model.training and capfd.readouterr().out == ""
    assert not any("training mode" in str(warning.message) for warning in recwarn)


@pytest.mark.slow
def test_masks_and_grids_of_weights_alone_are_written_as_the_weights_they_give(validation, tmp_path):
    model = quantize_weights(prune(load_trained("mlp128"), 0.8), 4)
    deployed = through_onnx(model, tmp_path)
    assert torch.allclose(predict(deployed, validation.images), predict(model, validation.images), atol=1e-3)


def test_a_file_is_run_like_a_network(integers, validation, tmp_path):
    deployed = through_onnx(integers["lenet300"], tmp_path)
    assert accuracy(deployed, validation).value > 0.97
    assert 0 < latency(deployed, 1) < latency(deployed, 256)
    options = deployed.session.get_session_options()
    assert options.intra_op_num_threads == 1
    assert options.get_session_config_entry("session.x64quantprecision") == "1"  # or 8 bits overflow without VNNI
    size = (tmp_path / "model.onnx").stat().st_size
    assert size < file_bytes(copy.deepcopy(deployed)) < size + 200 and count_parameters(deployed) == 0
    for images in (validation.images[:, :, :14], validation.images.double(), validation.labels):
        with pytest.raises(ParameterError, match=r"predict\(\): the model can't read images"):
            predict(deployed, images)


def refused(model, folder, match):
    path = folder / "kept.onnx"
    path.write_bytes(b"old")
    with pytest.raises(ParameterError, match=match):
        export_onnx(model, path)
    assert path.read_bytes() == b"old" and list(folder.iterdir()) == [path]


def test_models_that_onnx_can_not_hold_are_refused(integers, validation, tmp_path):
    few = validation.images[:64]
    ends = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Sigmoid())
    refused(
        integers["resnet"], tmp_path, r"Got one with conv1 \(a convolution that gives float32\), block1 \(Residual\)"
    )
    refused(nn.Sequential(integers["cnn"], nn.Softmax(1)), tmp_path, r"Got one with 1 \(Softmax\)\.")
    refused(to_integer(quantize_model(ends, few)), tmp_path, r"0 \(a convolution that gives float32\), 2 \(Sigmoid\)")
    refused(
        to_integer(quantize_model(load_trained("cnn"), few, symmetric=False)),
        tmp_path,
        r"conv1 \(a weight with several zero points\), conv2 \(a weight",
    )
    refused(quantize_model(load_trained("cnn"), few), tmp_path, r"call to_integer\(model\) first")
    refused("cnn", tmp_path, "must be a network")
    refused(nn.Linear(3, 2), tmp_path, r"export_onnx\(\): the model can't read images")


def test_a_model_that_torch_can_not_export_is_refused(tmp_path):
    class Branches(nn.Module):
        def forward(self, x):
            return x.flatten(1) if x.sum() > 1 else -x.flatten(1)

    refused(Branches(), tmp_path, "must be one that torch can export. Got: Could not guard on data-dependent")


def test_missing_packages_are_named(monkeypatch, tmp_path):
    model = build_model("mlp128")
    for package in ("onnx", "onnxscript", "onnxruntime"):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, package, None)
            with pytest.raises(SetupError, match=f"{package} is not installed. Run: pip install onnx onnxruntime"):
                OnnxModel(tmp_path / "a.onnx") if package == "onnxruntime" else export_onnx(model, tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


def test_files_that_can_not_be_read_are_named(tmp_path):
    path = tmp_path / "model.onnx"
    with pytest.raises(StorageError, match=r"model\.onnx can't be read: No such file"):
        OnnxModel(path)
    for content in (b"", b"not a model", b"\x80\x02}q\x00."):
        path.write_bytes(content)
        with pytest.raises(DamagedFileError, match=r"model\.onnx is damaged, or no ONNX file"):
            OnnxModel(path)


def made_elsewhere(path, kind="Flatten", batch="N", takes=1, given=1, **settings):
    """Write a file as other tools do: flattened images times weights, from nodes of this kind on."""
    weight = onnx.numpy_helper.from_array(WEIGHT.numpy(), "weight")
    dtype = settings.get("dtype", onnx.TensorProto.FLOAT)
    shape = None if settings.get("open") else [batch, 1, 4, 4]
    images = [onnx.helper.make_tensor_value_info(f"x{place}", dtype, shape) for place in range(takes)]
    logits = [onnx.helper.make_tensor_value_info(f"y{place}", 1, None) for place in range(given)]
    nodes = [onnx.helper.make_node(kind, ["x0"], ["flat"], domain=settings.get("domain", ""))]
    if dtype != 1:
        nodes.append(onnx.helper.make_node("Cast", [nodes[-1].output[0]], ["float"], to=1))
    nodes += [onnx.helper.make_node("MatMul", [nodes[-1].output[0], "weight"], [each.name]) for each in logits]
    if settings.get("in_a_node"):  # as older exporters have them
        nodes.insert(0, onnx.helper.make_node("Constant", [], ["weight"], value=weight))
    opsets = [onnx.helper.make_opsetid("", settings.get("opset", 17)), onnx.helper.make_opsetid("elsewhere", 1)]
    graph = onnx.helper.make_graph(nodes, "elsewhere", images, logits, [] if settings.get("in_a_node") else [weight])
    model = onnx.helper.make_model(graph, ir_version=settings.get("version", 8), opset_imports=opsets)
    where = {"save_as_external_data": settings.get("outside", False), "location": "weights", "size_threshold": 0}
    onnx.save(model, path, **where, convert_attribute=True)
    return path


WEIGHT = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"batch": 1},
        {"batch": 7},
        {"batch": 64, "outside": True},
        {"outside": True},
        {"outside": True, "in_a_node": True},
        {"open": True},
        {"dtype": onnx.TensorProto.UINT8},
        {"dtype": onnx.TensorProto.DOUBLE, "batch": 2},
    ],
)
@pytest.mark.parametrize("count", [1, 7, 130])
def test_a_file_made_elsewhere_gives_the_logits_that_torch_gives(settings, count, tmp_path):
    model = OnnxModel(made_elsewhere(tmp_path / "model.onnx", **settings))
    images = (100 * torch.rand(count, 1, 4, 4)).to(model.dtype)
    assert torch.allclose(predict(model, images), images.float().flatten(1) @ WEIGHT, rtol=1e-4, atol=1e-3)
    assert file_bytes(model) > 4 * WEIGHT.numel()  # wherever they lie


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"kind": "Sharpen"}, "can't be run by ONNX Runtime .*: .*No Op registered for Sharpen"),
        ({"kind": "Sharpen", "domain": "elsewhere"}, "can't be run by ONNX Runtime .*: .*elsewhere:Sharpen"),
        ({"opset": 99}, r"can't be run by ONNX Runtime [\d.]+: ONNX Runtime only .* Opset 99 is under development"),
        ({"version": 99}, r"can't be run by ONNX Runtime [\d.]+: Unsupported model IR version: 99, max"),
        ({"takes": 2}, r"It takes 'x0' \(tensor\(float\)\), 'x1' \(tensor\(float\)\) and gives 'y0'"),
        ({"given": 2}, r"It takes 'x0' .* and gives 'y0' \(tensor\(float\)\), 'y1' "),
        ({"dtype": onnx.TensorProto.BFLOAT16}, r"one tensor of numbers and give one\. It takes .x0. \(tensor"),
    ],
)
def test_a_file_that_can_not_be_run_is_named(settings, said, tmp_path):
    with pytest.raises(StorageError, match=rf"model\.onnx .*{said}") as error:
        OnnxModel(made_elsewhere(tmp_path / "model.onnx", **settings))
    assert not isinstance(error.value, DamagedFileError) and "\n" not in str(error.value)


def test_weights_that_are_not_beside_the_file_are_named(tmp_path):
    path = made_elsewhere(tmp_path / "model.onnx", outside=True)
    (tmp_path / "weights").unlink()
    with pytest.raises(StorageError, match=r"model\.onnx needs weights from a file beside it that can't be read"):
        OnnxModel(path)


def test_what_runs_in_onnx_runtime_already_is_not_exported(tmp_path):
    model = nn.Sequential(OnnxModel(made_elsewhere(tmp_path / "model.onnx")))
    with pytest.raises(ParameterError, match=r"^export_onnx\(\): 'model' must be a network of torch\. Got "):
        export_onnx(model, tmp_path / "again.onnx", torch.rand(2, 1, 4, 4))


class OneIsAnother(nn.Module):
    """Answer twice as loud to an image alone, which an export for any number of images does not see."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(784, 10)

    def forward(self, x):
        return self.fc(x.flatten(1)) * (2 if len(x) == 1 else 1)


def test_what_onnx_runtime_would_compute_otherwise_is_not_written(tmp_path):
    refused(OneIsAnother(), tmp_path, r"ONNX Runtime computes alike\. In a batch of 1 its logits, .* differ by up to ")


@pytest.mark.parametrize("count", [3, 130])
def test_every_number_of_images_is_tried(count, integers, tmp_path, monkeypatch):
    run = RuntimeModel.forward
    monkeypatch.setattr(RuntimeModel, "forward", lambda self, x: run(self, x) + 10 * (len(x) in (count, 125)))
    refused(integers["lenet300"], tmp_path, f"In a batch of {count} its logits")


def test_a_path_is_looked_at_first_and_a_tilde_is_home(integers, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    model = integers["lenet300"]
    with pytest.raises(ParameterError, match=r"^export_onnx\(\): 'path' must be the path of a file\. Got 3\.$"):
        export_onnx(model, 3)
    export_onnx(model, "~/model.onnx")
    assert predict(OnnxModel("~/model.onnx"), torch.zeros(1, 1, 28, 28)).shape == (1, 10)


@pytest.mark.slow
def test_what_surrounds_an_export_changes_nothing(tmp_path):
    model, images = build_model("mlp128"), torch.rand(3, 1, 28, 28)
    with torch.inference_mode():
        export_onnx(model, tmp_path / "model.onnx", images.clone())
    assert torch.allclose(predict(OnnxModel(tmp_path / "model.onnx"), images), predict(model, images), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lenet300", "cnn", "resnet"])
@pytest.mark.filterwarnings("ignore:ONNX Runtime answers")
def test_the_runtimes_own_int8_loses_less_than_a_third_of_a_point(name, mnist, validation, tmp_path, capfd):
    model = load_trained(name)
    export_onnx(model, tmp_path / "fp32.onnx")
    export_onnx(model, tmp_path / "int8.onnx", calibration=mnist.train.images[:300])
    nodes = {node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= nodes  # QDQ
    whole, small = (OnnxModel(tmp_path / f"{each}.onnx") for each in ("fp32", "int8"))
    assert accuracy(small, validation).value > accuracy(model, validation).value - 0.003
    assert file_bytes(small) < 0.45 * file_bytes(whole)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "calibration",
    [3, [1, 2], torch.empty(0, 1, 28, 28), torch.rand(3, 784), torch.rand(3, 1, 28, 28, dtype=torch.float64)],
    ids=["number", "list", "none", "flat", "float64"],
)
def test_calibration_that_is_no_tensor_of_images_is_refused(calibration, tmp_path):
    with pytest.raises(ParameterError, match=r"^export_onnx\(\): 'calibration' must be a tensor of some"):
        export_onnx(build_model("mlp128"), tmp_path / "model.onnx", calibration=calibration)
    assert not list(tmp_path.glob("*.onnx"))


def test_int8_is_compared_on_other_images_than_those_it_was_calibrated_on(student, mnist, monkeypatch, tmp_path):
    compared = []
    monkeypatch.setattr("kd_lab.deployment.onnx.check_parity", lambda *given: compared.append(given[2]))
    export_onnx(student, tmp_path / "model.onnx", calibration=mnist.train.images[:50])
    assert compared == [None]  # which stands for real digits of the validation part


def test_a_network_of_integers_is_not_quantized_again(integers, validation, tmp_path):
    with pytest.raises(ParameterError, match=r"'model' must be in fp32 where calibration images are given"):
        export_onnx(integers["lenet300"], tmp_path / "model.onnx", calibration=validation.images)


@pytest.mark.parametrize("integer", [False, True])
def test_the_checker_of_onnx_finds_nothing_and_any_batch_is_taken(integer, integers, tmp_path):
    export_onnx(integers["lenet300"] if integer else build_model("mlp128"), tmp_path / "model.onnx")
    file = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(file, full_check=not integer)  # shapes of Microsoft's own operators are unknown to it
    (taken,), (given,) = file.graph.input, file.graph.output
    assert (taken.name, given.name) == ("images", "logits")
    assert taken.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert {opset.domain: opset.version for opset in file.opset_import}[""] >= 17


def test_a_file_holds_no_place_in_the_code_that_made_it(student, tmp_path):
    def deeper(path):
        export_onnx(student, path)

    export_onnx(student, tmp_path / "first.onnx")
    deeper(tmp_path / "second.onnx")
    content = (tmp_path / "first.onnx").read_bytes()
    assert content == (tmp_path / "second.onnx").read_bytes()
    assert b".py" not in content and b"line " not in content
