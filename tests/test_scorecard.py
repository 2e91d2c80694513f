"""A scorecard puts the same measurements beside each other for every model."""

import copy
import io

import pytest
import torch
from own_networks import NETWORKS, own_network

from kd_lab import cost
from kd_lab.errors import ParameterError
from kd_lab.evaluation import accuracy, paired_difference
from kd_lab.networks.zoo import build_model
from kd_lab.quantization import quantize_weights
from kd_lab.scorecard import scorecard


@pytest.fixture(scope="module")
def models():
    models = {"plain": build_model("mlp128"), "conv": build_model("cnn")}
    models["conv"][0].weight.data.zero_()
    return models


@pytest.fixture(scope="module")
def card(models, validation):
    return scorecard(models, validation)


def test_every_figure_is_the_one_that_its_own_function_gives(card, models, validation):
    row = card["conv"]
    assert row.accuracy == accuracy(models["conv"], validation)
    assert row.difference == paired_difference(models["conv"], models["plain"], validation)
    assert (row.parameters, row.nonzeros, row.macs) == (206_922, 206_922 - 144, cost.count_macs(models["conv"]))
    assert 0 < row.latency[0] < row.latency[1]
    assert (row.file_bytes, row.zipped_bytes) == (cost.file_bytes(models["conv"]), cost.zipped_bytes(models["conv"]))
    assert card["plain"].difference is None


def test_it_shows_itself_as_a_table_and_as_text(card):
    html, text = card._repr_html_(), repr(card)
    for shown in (html, text):
        for expected in ("on 1 thread", "plain", "conv", "206,922", "101,770", "baseline", "256 images, ms"):
            assert expected in shown
    assert html.count("<tr>") == len(text.splitlines()) - 1 == 12  # text has a line below its header


def test_no_models_is_an_error(validation):
    for models in ({}, [build_model("mlp128")], None):
        with pytest.raises(ParameterError, match="must be a dict with at least one model"):
            scorecard(models, validation)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp437", "utf-8"])
def test_it_can_be_printed_on_any_console(models, validation, encoding, monkeypatch):
    console = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    card = scorecard({"größer → 4 Bit": models["plain"]}, (validation.images[:100], validation.labels[:100]))
    monkeypatch.setattr("sys.stdout", console)
    print(card)
    console.flush()
    text = console.buffer.getvalue().decode(encoding)
    assert "95 % interval" in text and " to " in text and "4 Bit" in text


@pytest.mark.filterwarnings("ignore:.* stay whole")
@pytest.mark.parametrize("name", NETWORKS)
def test_any_network_has_a_scorecard(name):
    model, images = own_network(name)
    data = images, torch.arange(len(images))
    card = scorecard({"dense": model, "4 bits": quantize_weights(model, 4)}, data)
    with torch.no_grad():
        right = copy.deepcopy(model).eval()(images).argmax(1) == data[1]
    assert card["dense"].accuracy.correct == int(right.sum())
    assert card["dense"].parameters == card["4 bits"].parameters == sum(each.numel() for each in model.parameters())


def test_a_name_that_is_not_there_gets_the_closest_one(card):
    with pytest.raises(ParameterError, match="Did you mean 'plain'"):
        card["plane"]
