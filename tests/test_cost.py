"""Costs agree with what a pencil gives, and the bytes are those of a file that can be read back."""

import zipfile

import pytest
import safetensors.torch
import torch
from torch import nn

from kd_lab import cost
from kd_lab.errors import ParameterError
from kd_lab.networks.zoo import build_model

MACS = {
    "mlp128": 784 * 128 + 128 * 10,
    "lenet300": 784 * 300 + 300 * 100 + 100 * 10,
    "cnn": 28 * 28 * 16 * 9 + 14 * 14 * 32 * 16 * 9 + 1568 * 128 + 128 * 10,
    "lenet5": 24 * 24 * 20 * 25 + 8 * 8 * 50 * 20 * 25 + 800 * 500 + 500 * 10,
    "lenet5_classic": 28 * 28 * 6 * 25 + 10 * 10 * 16 * 6 * 25 + 400 * 120 + 120 * 84 + 84 * 10,
    "resnet": 28 * 28 * 16 * 9 + 14 * 14 * (2 * 16 * 16 + 48 * 16) * 9 + 7 * 7 * 2 * 48 * 48 * 9 + 48 * 10,
}


@pytest.mark.parametrize("name", MACS)
def test_macs(name):
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
