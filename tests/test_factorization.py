"""Two thin layers in place of one are the best of their rank, and the network around them stays what it was."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from kd_lab.checkpoints import load_trained
from kd_lab.cost import count_macs, count_parameters
from kd_lab.errors import ParameterError
from kd_lab.evaluation import accuracy
from kd_lab.factorization import NEAREST, factorize, low_rank
from kd_lab.formats import load_network, load_packed, save_network, save_packed
from kd_lab.networks.predictions import predict
from kd_lab.networks.zoo import build_architecture, build_model
from kd_lab.pruning import hard_prune, prune, prune_channels
from kd_lab.quantization import quantize_model, to_integer

SHAPES = [(5, 9), (9, 5), (1, 7), (7, 1), (6, 6)]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_product_is_the_truncated_svd_of_numpy(shape):
    weight = random(*shape)
    u, s, v = np.linalg.svd(weight.double().numpy(), full_matrices=False)
    for rank in range(1, min(shape) + 1):
        second, first = low_rank(weight, rank)
        assert (second.shape, first.shape) == ((shape[0], rank), (rank, shape[1]))
        expected = (u[:, :rank] * s[:rank]) @ v[:rank]
        assert np.allclose(second @ first, expected, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_with_inputs_it_is_the_truncated_svd_of_the_outputs_that_no_other_product_undercuts(shape):
    weight, inputs = random(*shape), random(40, shape[1], seed=1) @ random(shape[1], shape[1], seed=2)
    outputs = (inputs.double() @ weight.double().T).numpy()
    u, s, v = np.linalg.svd(outputs, full_matrices=False)
    for rank in range(1, min(shape) + 1):
        second, first = low_rank(weight, rank, inputs)
        found = inputs.double() @ (second.double() @ first.double()).T
        assert np.allclose(found, (u[:, :rank] * s[:rank]) @ v[:rank], atol=1e-4 * np.abs(outputs).max())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "layer, shape", [(nn.Linear(9, 6), (40, 9)), (nn.Conv2d(2, 5, 3, padding=1), (10, 2, 6, 6))], ids=str
)
def test_nearest_to_the_output_no_other_layers_miss_less_and_the_bias_makes_up_for_the_mean(layer, shape, bias):
    x, layer = random(*shape).relu() + 0.5, copy.deepcopy(layer)
    if not bias:
        layer.bias = None
    model = nn.Sequential(layer, nn.Flatten())
    dense = layer(x).movedim(1, -1).flatten(0, -2).double().detach().numpy()
    mean = dense.mean(0) if bias else 0
    values = np.linalg.svd(dense - mean, compute_uv=False)
    for rank in (1, 3):
        thin = factorize(model, {"0": rank}, x, "output")[0]
        missed = dense - thin(x).movedim(1, -1).flatten(0, -2).detach().numpy()
        assert np.square(missed).sum() == pytest.approx(np.square(values[rank:]).sum(), rel=1e-3)
        assert not bias or np.abs(missed.mean(0)).max() < 1e-5


def test_inputs_that_never_change_and_weights_of_zero_are_no_obstacle():
    weight = random(4, 6)
    constant = torch.ones(20, 6)
    second, first = low_rank(weight, 1, constant)
    assert torch.allclose(constant @ (second @ first).T, constant @ weight.T, atol=1e-5)
    second, first = low_rank(torch.zeros(4, 6), 2, constant)
    assert (second @ first).count_nonzero() == 0 and torch.isfinite(second).all()


def layers():
    yield nn.Sequential(nn.Flatten(), nn.Linear(64, 12, bias=False), nn.ReLU(), nn.Linear(12, 5)), {"1": 12, "3": 5}
    yield nn.Sequential(nn.Conv2d(1, 6, (3, 2), stride=(1, 2), padding=(1, 0), dilation=2), nn.Flatten()), {"0": 6}
    yield nn.Sequential(nn.Conv2d(1, 4, 3, padding="same", padding_mode="circular", bias=False), nn.Flatten()), {"0": 4}
    yield nn.Sequential(nn.Flatten(1, 2), nn.Conv1d(8, 3, 3), nn.Flatten()), {"1": 3}
    yield nn.Sequential(nn.Unflatten(1, (1, 1)), nn.Conv3d(1, 2, (1, 3, 3)), nn.Flatten()), {"1": 2}


@pytest.mark.parametrize("nearest", NEAREST)
@pytest.mark.parametrize("model, ranks", [*layers()], ids=[str(place) for place in range(5)])
def test_at_full_rank_a_network_answers_as_before(model, ranks, nearest):
    images, before = random(30, 1, 8, 8), copy.deepcopy(model.state_dict())
    found = factorize(model, ranks, images, nearest)
    assert torch.allclose(predict(found, images), predict(model, images), atol=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    for name in ranks:
        assert [*dict(found.get_submodule(name).named_children())] == ["first", "second"]
        assert found.get_submodule(name).second.bias is None or model.get_submodule(name).bias is not None
    assert all(parameter.requires_grad for parameter in found.parameters())


def test_fewer_macs_and_weights_and_the_output_is_missed_by_less_than_by_the_weight(mnist, validation):
    dense, ranks = load_trained("lenet300"), {"fc1": 40, "fc2": 20}
    by_weight, by_output = (factorize(dense, ranks, mnist.train.images[:2000], each) for each in NEAREST)
    assert count_macs(by_output) == 40 * (784 + 300) + 20 * (300 + 100) + 1000 < count_macs(dense) / 5
    assert count_parameters(by_output) == count_macs(by_output) + 300 + 100 + 10
    lost = [accuracy(dense, validation).value - accuracy(each, validation).value for each in (by_weight, by_output)]
    assert lost[1] <= 0.5 * lost[0]


def test_a_file_says_the_ranks_and_reads_back(tmp_path, validation):
    model = factorize(load_trained("lenet5_classic"), {"fc1": 7, "conv2": 5})
    assert model.architecture == "lenet5_classic/fc1=7/conv2=5"
    images = validation.images[:200]
    save_network(tmp_path / "thin.safetensors", model)
    save_packed(tmp_path / "thin.kdz", model)
    for loaded in (load_network(tmp_path / "thin.safetensors"), load_packed(tmp_path / "thin.kdz")):
        assert torch.allclose(predict(loaded, images), predict(model, images), atol=1e-5)
        assert loaded.architecture == model.architecture
    again = factorize(model, {"fc2": 3})
    assert again.architecture == "lenet5_classic/fc1=7/conv2=5/fc2=3"
    assert {*again.state_dict()} == {*build_architecture(again.architecture).state_dict()}


def test_it_goes_together_with_masks_channels_and_integers(tmp_path, mnist, validation):
    thin = factorize(load_trained("cnn"), {"fc1": 24}, mnist.train.images[:300], "output")
    masked = prune(thin, 0.5)
    plain = factorize(masked, {"fc2": 10})
    assert not any(map(parametrize.is_parametrized, plain.modules()))
    assert torch.allclose(predict(plain, validation.images), predict(masked, validation.images), atol=1e-4)
    narrow = hard_prune(prune_channels(thin, 0.25))
    assert count_macs(narrow) < count_macs(thin)
    for both in (narrow, factorize(hard_prune(prune_channels(load_trained("cnn"), 0.5)), {"fc1": 20})):
        save_packed(tmp_path / "both.kdz", both)
        found = predict(load_packed(tmp_path / "both.kdz"), validation.images)
        assert torch.allclose(found, predict(both, validation.images), atol=1e-4)
    integer = to_integer(quantize_model(thin, mnist.train.images[:300]))
    assert not integer.left_in_float
    assert accuracy(integer, validation).value > accuracy(thin, validation).value - 0.005


def test_a_layer_in_two_places_is_replaced_in_both():
    layer = nn.Linear(8, 8)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    found, rows = factorize(model, {"0": 8}, random(5, 8)), random(5, 8)
    assert found[0] is found[2] and torch.allclose(predict(found, rows), predict(model, rows), atol=1e-5)


class Reads(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return x @ self.fc.weight.T


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.other = nn.Linear(4, 4), nn.Linear(4, 4)
        self.other.weight = self.fc.weight

    def forward(self, x):
        return self.other(self.fc(x))


def hooked():
    model = nn.Sequential(nn.Linear(4, 3))
    model[0].register_forward_hook(lambda _layer, _inputs, output: output + 1)
    return model


@pytest.mark.parametrize(
    "model, ranks, said",
    [
        (build_model("mlp128"), {"fc1": 0}, r"'rank of fc1' must be a whole number in \[1, 128\]"),
        (build_model("mlp128"), {"fc2": 11}, r"'rank of fc2' must .* \[1, 10\]"),
        (build_model("mlp128"), {"fc1": 2.5}, r"'rank of fc1' must .* Got 2\.5"),
        (build_model("mlp128"), {"fc3": 2}, "must be one of fc1, fc2. Got 'fc3'"),
        (build_model("mlp128"), 20, "'ranks' must be a dict of ranks by the names of layers"),
        (nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), {"0": 2}, "'0' can't be two thin ones: it is "),
        (nn.Sequential(nn.ConvTranspose2d(1, 4, 3)), {"0": 2}, "'0' can't be two thin ones: it is "),
        (nn.Sequential(nn.Embedding(9, 4)), {"0": 2}, "'0' can't be two thin ones: it is "),
        (hooked(), {"0": 2}, "'0' can't be two thin ones: it is "),
        (Tied(), {"fc": 2}, "it is shared with other layers"),
        (Reads(), {"fc": 2}, "must run the layers in 'ranks' as modules. Got one that can't do with two for one: "),
    ],
    ids=str,
)
def test_what_cannot_be_factorized_is_refused(model, ranks, said):
    images = None if "fc1" in dict(model.named_modules()) else random(4, 4)
    with pytest.raises(ParameterError, match=rf"^factorize\(\): .*{said}"):
        factorize(model, ranks, images)


def test_a_network_of_your_own_keeps_what_it_calls_its_architecture():
    model = nn.Sequential(nn.Linear(8, 8))
    model.architecture = {"layers": 1}
    assert factorize(model, {"0": 2}, random(4, 8)).architecture == {"layers": 1}


def test_it_must_be_said_what_is_to_be_near_and_for_the_output_by_which_images():
    for nearest, said in (("outputs", "'nearest' must be one of weight, output"), ("output", "'images' must be given")):
        with pytest.raises(ParameterError, match=rf"^factorize\(\): {said}"):
            factorize(build_model("mlp128"), {"fc1": 3}, None, nearest)


def test_what_has_no_rank_is_refused():
    for rank in (0, 4, True, "2"):
        with pytest.raises(ParameterError, match=r"^low_rank\(\): 'rank' must be a whole number in \[1, 3\]"):
            low_rank(torch.ones(3, 5), rank)
    with pytest.raises(ParameterError, match=r"^low_rank\(\): 'inputs' must have 5 numbers in a row"):
        low_rank(torch.ones(3, 5), 1, torch.ones(2, 4))
    with pytest.raises(ParameterError, match=r"^low_rank\(\): 'weight' must be"):
        low_rank(torch.full((3, 5), torch.nan), 1)
    for architecture in ("lenet300/fc9=2", "lenet300/fc1=999", "lenet300/fc1=0", "none/fc1=2"):
        with pytest.raises(ParameterError):
            build_architecture(architecture)
