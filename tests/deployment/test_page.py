"""A page holds the kit's networks, whatever compressed them, and refuses what it can't compute; no address is in it."""

import json
import re
import warnings

import pytest
import torch
from torch import nn

from kd_lab.checkpoints import load_trained
from kd_lab.deployment import export_page, page
from kd_lab.errors import ParameterError
from kd_lab.formats import load_packed
from kd_lab.networks.predictions import predict
from kd_lab.networks.zoo import build_model
from kd_lab.pruning import prune
from kd_lab.quantization import quantize_activations, quantize_model, quantize_weights, share_weights, to_integer
from kd_lab.results import RESULTS


def held(path):
    return json.loads(page.DATA.search(path.read_text())[1])["networks"]


def exported(model, folder):
    export_page(model, folder / "page.html")
    (network,) = held(folder / "page.html")
    return page._Held(network)


@pytest.fixture(autouse=True)
def no_answer_differs():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".* answers .* otherwise than torch")
        yield


@pytest.fixture
def fewer(monkeypatch, validation):
    """Compare a hundred digits: large networks take seconds for a thousand."""
    few = validation.images[:100]
    monkeypatch.setattr(page, "real_images", lambda images, count: few[:count])
    original = page.check_parity
    monkeypatch.setattr(page, "check_parity", lambda *given: original(*given[:2], few, *given[3:]))


@pytest.mark.parametrize(
    "name", ["lenet5_taught_2_0", pytest.param("lenet300_taught_7_1", marks=pytest.mark.slow, id="lenet300")]
)
def test_a_page_with_a_packed_network_has_at_most_30_kb_and_needs_nothing_else(name, tmp_path):
    export_page(load_packed(RESULTS / "deep_compression" / f"{name}.kdz"), tmp_path / "page.html")
    content = (tmp_path / "page.html").read_bytes()
    assert len(content) <= 30_000
    assert not re.search(rb"https?:|src=|href=|url\(|import |fetch", content)


def test_it_holds_several_networks_by_name(tmp_path, fewer, student):
    masked = prune(student, 0.9)
    named = {"dense </script>": student, "masked": masked, "shared": share_weights(masked, 4)}
    export_page(named, tmp_path / "page.html")
    found = held(tmp_path / "page.html")
    assert [network["name"] for network in found] == list(named)
    assert len(found[0]["coded"]) > 3 * len(found[1]["coded"]) > 6 * len(found[2]["coded"])


def every_step():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.MaxPool2d(3, 2, padding=1, ceil_mode=True), nn.Dropout()),
        nn.Conv2d(1, 6, (3, 2), stride=(2, 1), padding=(0, 2), bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 4, (4, 3), padding="same", dilation=(1, 2), groups=2),
        nn.Identity(),
        nn.Conv2d(4, 8, 1, padding="valid"),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5, bias=False),
    )


def test_every_kind_of_layer_is_computed(tmp_path, validation, fewer):
    model = every_step().train()
    model[2](torch.randn(50, 6, 4, 4))  # which gives the BatchNorm its statistics
    found, expected = predict(exported(model, tmp_path), validation.images), predict(model, validation.images)
    assert torch.allclose(found, expected, atol=1e-5) and model.training


@pytest.mark.parametrize(
    "change",
    [
        lambda model, images: quantize_weights(model, 4, granularity="per_tensor"),
        lambda model, images: quantize_activations(model, images),
        lambda model, images: to_integer(quantize_model(model, images, 4, granularity="per_tensor")),
        lambda model, images: to_integer(quantize_model(model, images, symmetric=False)),
    ],
)
def test_quantized_networks_are_held_with_their_integers(change, tmp_path, validation, fewer):
    images = validation.images[:100]
    model = change(build_model("lenet5_classic"), images)
    differing = (predict(exported(model, tmp_path), images) - predict(model, images)).abs() > 1e-5
    assert differing.float().mean() < 0.05  # in floating point some numbers lie between two steps of a grid


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn", "resnet"])
def test_the_larger_networks_are_held(name, tmp_path, validation, fewer):
    for model in (load_trained(name), to_integer(quantize_model(load_trained(name), validation.images[:100]))):
        found, expected = (predict(each, validation.images) for each in (exported(model, tmp_path), model))
        assert torch.equal(found.argmax(1), expected.argmax(1))


def hooked():
    layer = nn.Linear(784, 10)
    layer.register_forward_hook(lambda module, taken, given: -given)
    return nn.Sequential(nn.Flatten(), layer)


class Own(nn.Sequential):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    "build, named",
    [
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10), nn.Softmax(1)), r"2 \(Softmax\)"),
        (lambda: nn.Sequential(nn.Sequential(nn.Flatten(2)), nn.Flatten(), nn.Linear(784, 10)), r"0\.0 \(Flatten\)"),
        (lambda: nn.Sequential(nn.Linear(28, 10), nn.Flatten()), r"0 \(Linear\)"),
        (lambda: nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), nn.Flatten()), r"0 \(Conv2d\)"),
        (lambda: nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()), r"0 \(AdaptiveAvgPool2d\)"),
        (hooked, r"1 \(Linear\)"),
        (lambda: Own(nn.Flatten(), nn.Linear(784, 10)), r"model \(Own\)"),
    ],
)
def test_a_layer_that_a_page_can_not_compute_is_named(build, named, tmp_path):
    (tmp_path / "page.html").write_text("old")
    with pytest.raises(ParameterError, match=rf"^export_page\(\): 'models' must be .* Got one with {named}"):
        export_page(build(), tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == "old"


def test_what_is_no_network_of_digits_is_refused(tmp_path):
    for models in ({}, {1: build_model("mlp128")}):
        with pytest.raises(ParameterError, match="'models' must be a network, or some by name"):
            export_page(models, tmp_path / "page.html")
    with pytest.raises(ParameterError, match="must be a network"):
        export_page("cnn", tmp_path / "page.html")
    with pytest.raises(ParameterError, match="the model can't read images"):
        export_page(nn.Linear(3, 2), tmp_path / "page.html")
    with pytest.raises(ParameterError, match=r"whose logits are \(N, classes\)"):
        export_page(nn.Sequential(nn.Conv2d(1, 2, 3)), tmp_path / "page.html")
    assert not list(tmp_path.glob("page*"))


def test_nothing_is_written_where_the_page_computes_another_network(tmp_path, monkeypatch, student):
    monkeypatch.setattr(page._Held, "_relu", lambda self, x, step: x)
    with pytest.raises(ParameterError, match="must be one that the page computes alike"):
        export_page(student, tmp_path / "page.html")
    assert not list(tmp_path.glob("page*"))
