"""Costs agree with what a pencil gives, and the bytes are those of a file that can be read back."""

import copy
import sys
import warnings
import zipfile
from contextlib import nullcontext

import pytest
import safetensors.torch
import torch
from own_networks import NETWORKS, Recurrent, own_network
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kd_lab import cost
from kd_lab.errors import ParameterError
from kd_lab.networks.permanent import make_permanent
from kd_lab.networks.zoo import build_model
from kd_lab.pruning import prune
from kd_lab.quantization import quantize_weights, share_weights

CHANGES = (
    lambda model: prune(model, 0.5),
    lambda model: quantize_weights(model, 3),
    lambda model: share_weights(model, 1),
)

MACS = {
    "mlp128": 784 * 128 + 128 * 10,
    "lenet300": 784 * 300 + 300 * 100 + 100 * 10,
    "cnn": 28 * 28 * 16 * 9 + 14 * 14 * 32 * 16 * 9 + 1568 * 128 + 128 * 10,
    "lenet5": 24 * 24 * 20 * 25 + 8 * 8 * 50 * 20 * 25 + 800 * 500 + 500 * 10,
    "lenet5_classic": 28 * 28 * 6 * 25 + 10 * 10 * 16 * 6 * 25 + 400 * 120 + 120 * 84 + 84 * 10,
    "resnet": 28 * 28 * 16 * 9 + 14 * 14 * (2 * 16 * 16 + 48 * 16) * 9 + 7 * 7 * 2 * 48 * 48 * 9 + 48 * 10,
}


@pytest.mark.parametrize("name", MACS)
def test_macs(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch._dynamo", None)  # to import it is an error, and takes a second or two
    assert cost.count_macs(build_model(name)) == MACS[name]


def test_parameters_and_nonzeros():
    model = build_model("mlp128")
    assert cost.count_parameters(model) == 784 * 128 + 128 + 128 * 10 + 10
    model[1].weight.data.zero_()
    assert cost.count_parameters(model) - cost.count_nonzeros(model) == 784 * 128


@pytest.mark.parametrize("name", MACS)
def test_the_bytes_are_those_of_a_file_that_can_be_read_back(name, tmp_path):
    model = build_model(name)
    safetensors.torch.save_model(model, tmp_path / "model.safetensors")
    assert cost.file_bytes(model) == (tmp_path / "model.safetensors").stat().st_size
    again = build_model(name, seed=1)
    safetensors.torch.load_model(again, tmp_path / "model.safetensors")
    x = torch.randn(4, 1, 28, 28)
    assert torch.equal(again.eval()(x), model.eval()(x))


def test_zeros_stay_in_the_file_and_go_from_the_zip():
    dense, zeroed = build_model("lenet300"), build_model("lenet300")
    zeroed[1].weight.data.zero_()
    assert cost.file_bytes(zeroed) == cost.file_bytes(dense)
    assert cost.zipped_bytes(zeroed) < 0.2 * cost.zipped_bytes(dense)


def test_the_zip_is_one_that_can_be_unpacked(tmp_path):
    model = build_model("mlp128")
    safetensors.torch.save_model(model, tmp_path / "model.safetensors")
    with zipfile.ZipFile(tmp_path / "model.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.write(tmp_path / "model.safetensors", "model.safetensors")
    content = zipfile.ZipFile(tmp_path / "model.zip").read("model.safetensors")
    assert torch.equal(safetensors.torch.load(content)["fc1.weight"], model[1].weight)
    assert cost.zipped_bytes(model) == (tmp_path / "model.zip").stat().st_size


def test_latency_grows_with_the_batch_and_leaves_the_mode():
    model = nn.Sequential(build_model("cnn"), nn.Dropout()).train()
    one, many = cost.latency(model, 1), cost.latency(model, 256)
    assert 0 < one < many
    assert model.training


def test_what_a_network_costs_that_reads_other_images():
    images = torch.rand(3, 3, 32, 20)
    colours = nn.Sequential(nn.Conv2d(3, 4, 5), nn.Flatten(), nn.Linear(4 * 28 * 16, 10))
    assert cost.count_macs(colours, images) == 28 * 16 * 4 * 3 * 25 + 4 * 28 * 16 * 10
    assert 0 < cost.latency(colours, 1, images) < cost.latency(colours, 64, images)
    for measure in (cost.count_macs, lambda model: cost.latency(model, 1)):
        with pytest.raises(ParameterError, match=r"the model can't read images of shape \(1, 28, 28\)"):
            measure(colours)


def test_what_one_costs_that_reads_whole_numbers():
    words = nn.Sequential(nn.Embedding(50, 8), nn.Flatten(), nn.Linear(12 * 8, 10))
    numbers = torch.randint(50, (5, 12))
    assert cost.count_macs(words, numbers) == 12 * 8 * 10 and cost.latency(words, 4, numbers) > 0


@pytest.mark.parametrize("images", [5, [0.0], "a.png", torch.tensor(0.0), torch.zeros(0, 1, 28, 28)])
@pytest.mark.parametrize("measure", [cost.count_macs, lambda model, images: cost.latency(model, 1, images)])
def test_what_are_no_images_is_named(measure, images):
    with pytest.raises(
        ParameterError, match=r"^(count_macs|latency)\(\): 'images' must be a tensor of one image or more.* Got"
    ):
        measure(build_model("mlp128"), images)


@pytest.mark.parametrize("measure", [cost.count_macs, lambda model: cost.latency(model, 1)])
def test_a_model_that_reads_no_digits_is_refused_in_words(measure):
    with pytest.raises(ParameterError, match=r"^(count_macs|latency)\(\): the model can't read images of shape"):
        measure(nn.Linear(5, 5))


@pytest.mark.parametrize(
    "measure",
    [
        cost.count_parameters,
        cost.count_nonzeros,
        cost.count_macs,
        cost.file_bytes,
        cost.zipped_bytes,
        lambda model: cost.latency(model, 1),
    ],
)
def test_what_is_no_network_is_refused(measure):
    with pytest.raises(ParameterError, match=r"'model' must be a network"):
        measure("lenet300")


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, True, "8"])
def test_bad_batch_sizes_are_refused(batch_size):
    with pytest.raises(ParameterError, match=r"^latency\(\): 'batch_size' must be a whole number"):
        cost.latency(build_model("mlp128"), batch_size)


@pytest.mark.parametrize("seconds, times", [(0.0002, 15), (0.002, 15), (0.2, 5)])
def test_latency_is_the_median_of_single_passes(monkeypatch, seconds, times):
    class Clock:
        def __init__(self, work):
            self.timeit = lambda number: number * seconds
            self.repeat = lambda repeat, number: (
                [number * seconds] * (repeat - 1) + [number * 100] if repeat == times else []
            )

    monkeypatch.setattr(cost, "Timer", Clock)
    assert cost.latency(build_model("mlp128"), 1) == pytest.approx(seconds)


# ---- a learner's own networks


def plain_flops(model, images):
    """What torch's counter says without the fast paths of attention and of recurrent layers."""
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as counter, torch.no_grad():
            copy.deepcopy(model).eval()(images[:1])
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("surroundings", [nullcontext, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("name", NETWORKS)
def test_macs_of_any_network_are_those_of_torch_without_fast_paths(name, surroundings):
    model, images = own_network(name)
    expected = plain_flops(model, images)
    with surroundings(), warnings.catch_warnings():
        warnings.simplefilter("ignore" if name == "Bilinear" else "error")  # whose products have no formula
        assert cost.count_macs(model, images) == expected > 0
    assert torch.backends.mha.get_fastpath_enabled()


def test_macs_leave_out_what_computes_a_weight_in_a_network_with_a_hook():
    model = nn.Sequential(nn.Flatten(), nn.utils.parametrizations.spectral_norm(nn.Linear(784, 10)))
    model.register_forward_hook(lambda _model, _inputs, output: 2 * output)
    assert cost.count_macs(model) == 784 * 10


def test_macs_by_hand_of_recurrent_layers_and_of_attention():
    steps, inputs, width = 28, 28, 40
    for layer, gates in ((nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)):
        recurrent = Recurrent(layer(inputs, width, batch_first=True), width)
        expected = steps * gates * width * (inputs + width) + 10 * width
        assert cost.count_macs(recurrent, torch.rand(3, steps, inputs)) == expected
    rows, width, hidden = 5, 8, 16
    attention = 4 * rows * width**2 + 2 * rows**2 * width + 2 * rows * width * hidden
    assert cost.count_macs(*own_network("transformer")) == attention + 10 * width


class Products(nn.Module):
    """Products of matrices and vectors that are no layer."""

    def forward(self, x):
        matrix, vector = torch.ones(7, 5), torch.ones(5)
        return x + (matrix @ vector).sum() + vector @ vector + torch.addmv(torch.ones(7), matrix, vector).sum()


def test_macs_of_products_that_are_no_layer():
    assert cost.count_macs(Products()) == 2 * 7 * 5 + 5


@pytest.mark.parametrize("layer, name", [(nn.Bilinear(28, 28, 3), "_trilinear"), (None, "_fft")])
def test_what_cannot_be_counted_is_named(layer, name):
    class Strange(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.fc = layer, nn.Linear(28, 10)

        def forward(self, x):
            x = x.flatten(1)[:, :28]
            return self.fc(self.layer(x, x) @ torch.ones(3, 28) if self.layer else torch.fft.fft(x).real)

    with pytest.warns(UserWarning, match=rf"^count_macs\(\): the multiplications of aten\.{name}\w* can't be counted"):
        assert cost.count_macs(Strange()) == 280 + (84 if layer else 0)


@pytest.mark.parametrize("change", [lambda model: model, *CHANGES])
@pytest.mark.filterwarnings("ignore:.* stay whole")
@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_and_nonzeros_of_any_network_are_those_of_its_tensors(name, change):
    model, images = own_network(name)
    changed = change(model)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert cost.count_parameters(changed) == count >= cost.count_nonzeros(changed) > 0
    assert cost.count_macs(changed, images) == cost.count_macs(model, images)
    assert cost.count_nonzeros(changed) == sum(
        int(each.count_nonzero()) for each in make_permanent(changed).parameters()
    )


def test_tied_weights_are_in_the_file_once(tmp_path):
    model, _ = own_network("tied")
    safetensors.torch.save_model(model, tmp_path / "model.safetensors")
    header = 8 + int.from_bytes((tmp_path / "model.safetensors").read_bytes()[:8], "little")
    stored = (tmp_path / "model.safetensors").stat().st_size - header
    assert stored == 4 * 12 * 6 and stored < cost.file_bytes(model) < stored + 200
    assert cost.zipped_bytes(model) < 4 * 12 * 6 + 400


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_a_sparse_weight_is_in_no_file_and_named():
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    for sparse in (model[1].weight.detach().to_sparse_csr(), model[1].weight.detach().to_sparse()):
        model[1].weight = nn.Parameter(sparse)
        with pytest.raises(
            ParameterError, match=r"^file_bytes\(\): 'model' must .* dense tensors. Got 1.weight, which"
        ):
            cost.file_bytes(model)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
def test_what_torch_computes_by_a_hook_is_counted_as_it_is_used():
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10), nn.utils.weight_norm(nn.Linear(10, 10)))
    torch.nn.utils.prune.l1_unstructured(model[1], "weight", 0.5)
    assert (cost.count_parameters(model), cost.count_nonzeros(model)) == (7850 + 110, 3930 + 110)


class NoPadding(nn.Module):
    """Read words, of which 0 is padding; a text of nothing else can't be read."""

    def __init__(self):
        super().__init__()
        self.words, self.fc = nn.Embedding(12, 5, padding_idx=0), nn.Linear(5, 10)

    def forward(self, x):
        counts = (x != 0).sum(1, keepdim=True)
        if (counts == 0).any():
            raise ValueError("a text without a word")
        return self.fc(self.words(x).sum(1) / counts)


def test_latency_is_that_of_the_images_that_are_given():
    assert cost.latency(NoPadding(), 3, torch.randint(1, 12, (2, 4))) > 0


class Counting(nn.Module):
    """Keep state that is no tensor."""

    def __init__(self):
        super().__init__()
        self.fc, self.seen = nn.Linear(784, 10), {"batches": 3}

    def get_extra_state(self):
        return self.seen

    def set_extra_state(self, state):
        self.seen = state

    def forward(self, x):
        return self.fc(x.flatten(1))


def test_state_that_is_no_tensor_is_named():
    model = nn.Sequential(Counting())
    assert cost.count_parameters(model) == 7850 and cost.count_macs(model) == 7840
    for measure in (cost.file_bytes, cost.zipped_bytes):
        with pytest.raises(
            ParameterError, match=r"'model' must keep its state in dense tensors. Got 0._extra_state, which"
        ):
            measure(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        packed = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)))
    for measure in (cost.count_parameters, cost.count_nonzeros):
        with pytest.raises(ParameterError, match=r"'model' must keep its weights in tensors. Got 1._packed_params"):
            measure(packed)
    with pytest.warns(UserWarning, match=r"the multiplications of quantized.linear_dynamic can't be counted"):
        assert cost.count_macs(packed) == 0
