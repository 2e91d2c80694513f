"""What people give by mistake is named, alike by every function: compiled networks, swapped arguments, odd tensors."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kd_lab.cost import count_macs, file_bytes, latency
from kd_lab.distillation import SoftTree, layer_outputs
from kd_lab.errors import ParameterError
from kd_lab.evaluation import accuracy
from kd_lab.formats import save_network
from kd_lab.networks.copies import copied
from kd_lab.networks.inputs import layer_inputs
from kd_lab.networks.predictions import predict
from kd_lab.networks.zoo import build_model
from kd_lab.pruning import hard_prune, prune, prune_gradually, prune_until
from kd_lab.quantization import quantize_activations
from kd_lab.scorecard import scorecard
from kd_lab.training import train

IMAGES = torch.randn(20, 1, 28, 28, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(20) % 10
FEW_IMAGES = IMAGES[:3]


def in_place():
    model = build_model("mlp128")
    model.compile(backend="eager")
    return model


@pytest.mark.parametrize(
    "build",
    [
        lambda: torch.compile(build_model("mlp128"), backend="eager"),
        lambda: nn.Sequential(nn.Flatten(), torch.compile(nn.Linear(784, 10), backend="eager")),
    ],
    ids=["whole", "a layer"],
)
def test_a_compiled_network_which_would_not_see_what_is_added_to_it_is_named(build):
    model = build().eval()
    expected = predict(model, IMAGES)  # now it is compiled, without hooks
    name = next(name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    calls = {
        "quantize_activations": lambda: quantize_activations(model, IMAGES, 2),
        "layer_outputs": lambda: layer_outputs(model, name, IMAGES),
        "layer_inputs": lambda: layer_inputs(model, name, IMAGES),
        "prune": lambda: prune(model, 0.5),
    }
    for function, call in calls.items():
        with pytest.raises(ParameterError, match=rf"^{function}\(\): 'model' must be a network that is not compiled"):
            call()
    assert torch.equal(predict(model, IMAGES), expected)
    assert accuracy(model, (IMAGES, LABELS)).count == len(IMAGES)


def test_one_that_is_compiled_in_place_is_named_or_its_copy_is_not_compiled():
    model = in_place().eval()
    predict(model, IMAGES)
    with pytest.raises(ParameterError, match="must be a network that is not compiled"):
        layer_outputs(model, "fc1", IMAGES)
    rounded = predict(quantize_activations(model, IMAGES, 2), IMAGES)
    assert torch.equal(rounded, predict(quantize_activations(build_model("mlp128"), IMAGES, 2), IMAGES))


class Buffered(nn.Module):
    """A Linear layer, and a buffer without numbers."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(784, 10)
        self.register_buffer("shift", torch.zeros(10, device="meta"))

    def forward(self, x):
        return self.fc(x.flatten(1)) + self.shift


@pytest.mark.parametrize(
    "build",
    [
        Buffered,
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.LazyBatchNorm2d(affine=False), nn.Flatten(), nn.Linear(1352, 10)),
        lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(10)),
    ],
    ids=["meta", "lazy buffers", "lazy weights"],
)
@pytest.mark.parametrize(
    "call",
    [
        file_bytes,
        copied,
        lambda model: prune_gradually(model, 0.5, 2, lambda pruned: pruned),
        lambda model: quantize_activations(model, IMAGES, 8),
        lambda model: save_network("never", model),
    ],
)
def test_weights_and_buffers_without_values_are_named(build, call):
    with pytest.raises(ParameterError, match=r"the weights of 'model' must have values\. Got "):
        call(build())


NOT_DENSE = {
    "to_dense()": FEW_IMAGES.to_sparse(),
    "dequantize()": torch.quantize_per_tensor(FEW_IMAGES, 0.1, 0, torch.qint8),
    "to_padded_tensor(0)": torch.nested.nested_tensor([*FEW_IMAGES]),
    'on the device "meta"': FEW_IMAGES.to("meta"),
}


@pytest.mark.parametrize("hint", NOT_DENSE)
def test_images_that_are_no_dense_tensor_are_named(hint):
    model, images, labels = build_model("mlp128"), NOT_DENSE[hint], torch.tensor([1, 2, 3])
    for call in (
        lambda: predict(model, images),
        lambda: count_macs(model, images),
        lambda: quantize_activations(model, images, 8),
        lambda: accuracy(model, (images, labels)),
        lambda: train(model, (images, labels), F.cross_entropy, validation=(images, labels), epochs=1),
        lambda: SoftTree(2).paths(images),
    ):
        with pytest.raises(ParameterError) as error:
            call()
        assert hint in str(error.value), error.value


class Answering(nn.Module):
    """Answer with numbers of a dtype."""

    def __init__(self, dtype):
        super().__init__()
        self.fc, self.dtype = nn.Linear(784, 10), dtype

    def forward(self, x):
        return self.fc(x.flatten(1)).to(self.dtype)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.complex64])
def test_answers_that_are_no_real_numbers_are_named(dtype):
    model = Answering(dtype)
    for call in (
        lambda: accuracy(model, (FEW_IMAGES, torch.tensor([1, 2, 3]))),
        lambda: hard_prune(model),
        lambda: prune_until(model, 0.5, (FEW_IMAGES, torch.tensor([1, 2, 3])), lambda pruned: pruned),
    ):
        with pytest.raises(ParameterError, match=rf"must answer \d images .* and {dtype}, which are no real numbers"):
            call()


def test_pictures_of_bytes_are_to_be_divided():
    with pytest.raises(ParameterError, match=r"Give images / 255\."):
        predict(build_model("mlp128"), (FEW_IMAGES * 99).abs().byte())


@pytest.mark.parametrize(
    "call",
    [
        lambda model: prune(0.5, model),
        lambda model: predict(FEW_IMAGES, model),
        lambda model: latency(2, model),
        lambda model: quantize_activations(model, model, 8),
        lambda model: save_network(model, "file"),
        lambda model: scorecard(model, (FEW_IMAGES, torch.tensor([1, 2, 3]))),
    ],
)
def test_swapped_arguments_are_guessed(call):
    with pytest.raises(ParameterError, match=r"Did you swap two arguments\?$"):
        call(build_model("mlp128"))


@pytest.mark.parametrize("values", [FEW_IMAGES.numpy(), [*FEW_IMAGES], torch.utils.data.DataLoader(FEW_IMAGES)])
def test_what_becomes_a_tensor_gets_the_line_that_makes_one(values):
    with pytest.raises(ParameterError, match=r"Give torch\.(as_tensor|cat)\("):
        quantize_activations(build_model("mlp128"), values, 8)
