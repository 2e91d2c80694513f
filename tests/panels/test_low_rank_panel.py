"""The low-rank panel shows what `factorize` gives, measured; what is drawn is what SVD says; every error in words."""

import io
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks.faults import count_widgets
from kd_lab.checkpoints import load_trained
from kd_lab.cost import count_macs, count_parameters, file_bytes
from kd_lab.data import Mnist
from kd_lab.errors import ParameterError
from kd_lab.evaluation import accuracy, paired_difference
from kd_lab.factorization import NEAREST, about_mean, factorize
from kd_lab.networks.inputs import layer_inputs
from kd_lab.networks.zoo import build_model
from kd_lab.panels import LowRankPanel
from kd_lab.panels.low_rank import CALIBRATION_IMAGES, HEIGHT, RANKS
from kd_lab.panels.measurement import percent, points

LAYER, FULL = "fc2", 100  # 300 to 100

pytestmark = pytest.mark.usefixtures("quick_latency")


@pytest.fixture(scope="module")
def model():
    return load_trained("lenet300")


@pytest.fixture(scope="module")
def part(mnist):
    return Mnist(mnist.train[:2200], mnist.validation[:1125], mnist.test[:10])


@pytest.fixture(scope="module")
def shared(model, part, quick_latency):
    panel = LowRankPanel(model, part, LAYER)
    panel.flush()
    yield panel
    panel.close()


def answers(panel, rank):
    panel.flush()  # one at a time: only its worker measures
    return list(panel.measure(rank))


def both(model, rank, part, layer=LAYER):
    images = part.train.images[:CALIBRATION_IMAGES]
    return {name: factorize(model, {layer: rank}, images, name) for name in NEAREST}


def test_it_measures_what_factorize_gives(panel, model, part):
    for rank in (1, 15, FULL):
        first, everything, *_, last = answers(panel, rank)
        assert set(RANKS[: RANKS.index(80) + 1]) | {FULL} == set(last.nearest["output"].curve)
        for name, thin in both(model, rank, part).items():
            assert first.nearest[name].comparison.accuracy == accuracy(thin, part.validation[:1000])
            assert everything.nearest[name].comparison.accuracy == accuracy(thin, part.validation)
            assert everything.comparisons[f"nearest {name}"].difference == paired_difference(
                thin, model, part.validation
            )
            assert last.nearest[name].curve[rank] == accuracy(thin, part.validation[:1000]).value
            assert list(last.costs.values()) == [count_parameters(thin), file_bytes(thin), count_macs(thin)]
    assert panel.draw(last).title.startswith("Rank 100 of fc2: by weight 9")
    assert panel.draw(last).title.endswith("% of 1,125 validation images")


def test_the_tables_have_accuracies_and_costs_beside_the_dense_ones(panel, model, part):
    *_, last = answers(panel, 20)
    weight, output = both(model, 20, part).values()
    found, tables = last.comparisons, panel.draw(last).tables
    assert list(found) == ["dense", "nearest weight", "nearest output"]
    for text in (
        *(percent(accuracy(each, part.validation)) for each in (model, weight, output)),
        points(found["nearest output"], found["nearest weight"]),
        f"{count_macs(model):,}",
        f"{count_macs(output):,}",
        f"{file_bytes(model) / file_bytes(output):.2f} ×",
        f"measured on {torch.get_num_threads()} thread",
    ):
        assert text in tables
    for dense, thin in last.seconds.values():
        assert f"{1000 * dense:.3g}</td>" in tables and f"{dense / thin:.2f} ×" in tables
    assert list(last.seconds) == [1, 256] and "…" not in tables


def test_what_is_kept_of_the_output_is_measured_on_validation_images(panel, model, part):
    inputs = layer_inputs(model, LAYER, part.validation.images[:1000])
    total = (inputs @ model.fc2.weight.T).square().sum()
    for rank in (1, 20, FULL):
        answer = answers(panel, rank)[0]
        for name, thin in both(model, rank, part).items():
            kept = 1 - ((model.fc2(inputs) - thin.fc2(inputs)).square().sum() / total).item()
            assert answer.kept[name] == pytest.approx(kept, abs=1e-4)
            assert f"{100 * answer.kept[name]:.2f} %" in panel.draw(answer).tables
        assert answer.kept["output"] >= answer.kept["weight"] - 1e-6


def test_the_picture_shows_what_was_measured_and_the_singular_values(panel, model, part):
    *_, answer = answers(panel, 15)
    panel.draw(answer)
    drawing = panel._drawing
    for name, found in answer.nearest.items():
        curve, right = drawing._curves[name], found.comparison.accuracy
        assert curve.point.get_xydata().tolist() == [[15, right.value]] and curve.bar.get_ydata() == right.interval
        assert curve.curve.get_xydata().tolist() == [list(point) for point in sorted(found.curve.items())]
    assert [line.get_xdata() for line in drawing._marks.lines] == [[15, 15], [15, 15]]
    _curves, top, bottom = drawing._canvas._agg.figure.axes
    _, mean = about_mean(model.fc2, layer_inputs(model, LAYER, part.train.images[:CALIBRATION_IMAGES]))
    outputs = (layer_inputs(model, LAYER, part.validation.images[:1000]) - mean) @ model.fc2.weight.detach().T
    for line, matrix in zip(top.lines, (model.fc2.weight.detach(), outputs), strict=False):
        values = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
        assert np.allclose(line.get_ydata(), values / values[0], atol=1e-4)
    assert [line.get_ydata()[14] for line in bottom.lines[:2]] == pytest.approx(list(answer.kept.values()))


def test_the_picture_moves_and_keeps_its_size(panel):
    pictures = []
    for rank in (1, 20, FULL):
        panel.set(rank=rank)
        pictures.append(np.asarray(Image.open(io.BytesIO(panel.flush().png)).convert("RGB")))
    assert {picture.shape for picture in pictures} == {(HEIGHT, 800, 3)}
    for one, other in pairwise(pictures):
        assert 0.001 < (one != other).any(axis=2).mean() < 0.2


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, layer", [("cnn", "conv1"), ("lenet5_classic", "conv2"), ("resnet", "block1.body.conv1")]
)
def test_convolutions_too(name, layer, mnist):
    before, few, model = count_widgets(), Mnist(*(part[:250] for part in mnist)), load_trained(name)
    panel = LowRankPanel(model, few, layer)
    panel.set(rank=3)
    expected = accuracy(both(model, 3, few, layer)["output"], few.validation)
    assert f"by output {100 * expected.value:.2f} % of 250" in panel.flush().title
    panel.close()
    assert count_widgets() == before


@pytest.mark.parametrize("value", [0, 101, 2.5, None])
def test_a_slider_refuses_what_it_cannot_stand_at(panel, value):
    before = panel.flush()
    with pytest.raises(ParameterError, match=r"LowRankPanel\.set\(\): 'rank' must be a whole number in \[1, 100\]"):
        panel.set(rank=value)
    assert panel.flush() == before


def test_an_error_is_shown_in_words(panel, monkeypatch):
    before = panel.flush()
    monkeypatch.setattr("kd_lab.panels.low_rank.two_layers", lambda *_: {}["missing"])
    panel.set(rank=3)
    with pytest.raises(KeyError):
        panel.flush()
    assert "KeyError" in panel._message.value and panel.shown == before


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("model", None, "fc1"), "LowRankPanel(): 'model' must be a network"),
        ((nn.ReLU(), None, "1"), "must have a Linear layer"),
        ((build_model("mlp128"), "mnist", "fc1"), "each (images, labels). Got 'mnist'."),
        ((build_model("mlp128"), None, "2"), "must be one of fc1, fc2. Got '2'"),
        ((build_model("mlp128"), None, None), "must be one of fc1, fc2. Got None"),
        (
            (nn.Sequential(nn.Conv2d(1, 2, 28, groups=1), nn.Conv2d(2, 10, 1, groups=2), nn.Flatten()), None, "1"),
            "groups",
        ),
    ],
)
def test_bad_input_gets_one_clear_error_and_leaves_no_widget(arguments, said, part):
    before, (model, data, layer) = count_widgets(), arguments
    with pytest.raises(ParameterError) as error:
        LowRankPanel(model, data or part, layer)
    assert said in str(error.value) and str(error.value).startswith("LowRankPanel(): "), str(error.value)
    assert count_widgets() == before


def test_where_no_widgets_are_a_picture_is(panel):
    assert {"image/png", "text/plain"} <= set(panel._repr_mimebundle_())
