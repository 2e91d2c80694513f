"""The benchmark of few labels trains on nothing but them, and its student is small and begins with the encoder."""

import pytest
import torch

from benchmarks import _few_labels
from kd_lab.cost import count_parameters
from kd_lab.data import Mnist, Split
from kd_lab.networks import build_model
from kd_lab.networks.layers import weighted_layers
from kd_lab.pretraining import few_labels
from kd_lab.results import Record

SHORT = {"epochs": 1, "steps_per_epoch": 1}


@pytest.fixture
def short(monkeypatch):
    for name in ("WHOLE", "VIEWS", "ANSWERS", "DISTILLING"):
        monkeypatch.setattr(_few_labels, name, getattr(_few_labels, name) | SHORT)
    monkeypatch.setattr(_few_labels, "load_pretrained", build_model)
    monkeypatch.setitem(_few_labels.TEACHERS, 20, "pretrained")


def test_only_the_labels_that_were_drawn_are_seen(mnist, short, monkeypatch):
    drawn, none = few_labels(mnist.train, 20), torch.zeros(300, dtype=torch.long)
    monkeypatch.setattr(_few_labels, "few_labels", lambda *_: drawn)
    monkeypatch.setattr(_few_labels, "error", lambda model, _data: sum_of_weights(model))
    shown = Mnist(*(part[:300] for part in mnist)), Mnist(*(Split(part.images[:300], none) for part in mnist))
    found, again = (_few_labels.errors_of(20, 0, data) for data in shown)
    assert found == again and {way["parameters"] for way in found.values()} == {206_922, 47_368}
    assert found["quantized"]["bytes"] < found["distilled"]["bytes"] / 6 < found["scratch"]["bytes"] / 24


def sum_of_weights(model):
    return sum(parameter.double().sum().item() for parameter in model.parameters())


def test_a_few_labels_change_the_last_layer_alone(mnist, short):
    encoder = build_model("cnn")
    answering = _few_labels.fit_answers(encoder, few_labels(mnist.train, 20), 0)
    for name, layer in weighted_layers(answering).items():
        assert torch.equal(layer.weight, encoder.get_submodule(name).weight) == (name != "fc2")
    assert all(parameter.requires_grad for parameter in [*answering.parameters(), *encoder.parameters()])


def test_the_figures_are_errors_of_100_labels_and_the_accuracy_of_1000():
    ways = {"scratch": 16.0, "pretrained": 4.0, "distilled": 3.0}
    run = {way: {"test_error": error, "parameters": 47_368} for way, error in ways.items()}
    recorded = Record({"seeds": [0, 1], **{f"labels{count}": {"seeds": [run, run]} for count in (100, 1000)}})
    assert _few_labels.score(recorded) == {"labels100": ways, "labels1000": {"student": 97.0, "parameters": 47_368}}
    assert count_parameters(build_model("cnn")) == 206_922
