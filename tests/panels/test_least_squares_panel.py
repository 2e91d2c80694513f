"""The least-squares panel shows what both methods give, measured from scratch; every error in words."""

import io
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks.faults import count_widgets
from kd_lab.checkpoints import load_trained
from kd_lab.data import Mnist
from kd_lab.errors import ParameterError
from kd_lab.evaluation import accuracy, paired_difference
from kd_lab.networks.inputs import layer_inputs
from kd_lab.networks.zoo import build_model
from kd_lab.panels import LeastSquaresPanel
from kd_lab.panels.least_squares import CALIBRATION_IMAGES, CURVE, HEIGHT, LeastSquaresAnswer
from kd_lab.pruning import prune, prune_least_squares

LAYER = "fc2"  # 128 to 10


@pytest.fixture(scope="module")
def model():
    return load_trained("mlp128")


@pytest.fixture(scope="module")
def part(mnist):
    return Mnist(mnist.train[:3000], mnist.validation[:1125], mnist.test[:10])


@pytest.fixture(scope="module")
def shared(model, part):
    panel = LeastSquaresPanel(model, part, LAYER)
    panel.flush()
    yield panel
    panel.close()


def answers(panel, **setting):
    panel.flush()  # one at a time: only its worker measures
    return [answer for answer in panel.measure(**setting) if isinstance(answer, LeastSquaresAnswer)]


def both(model, sparsity, part):
    return {
        "magnitude": prune(model, {LAYER: sparsity}, scope="per_layer"),
        "least squares": prune_least_squares(model, {LAYER: sparsity}, part.train.images[:CALIBRATION_IMAGES]),
    }


def test_it_measures_what_both_methods_give(panel, model, part):
    for sparsity in (0.0, 0.8, 0.97):
        measured = answers(panel, sparsity=sparsity)
        first, everything, last = measured[0], measured[1], measured[-1]
        for method, pruned in both(model, sparsity, part).items():
            assert first.comparisons[method].accuracy == accuracy(pruned, part.validation[:1000])
            assert everything.comparisons[method].accuracy == accuracy(pruned, part.validation)
            assert everything.comparisons[method].difference == paired_difference(pruned, model, part.validation)
            assert torch.allclose(last.methods[method].weight.float(), pruned.get_submodule(LAYER).weight, atol=1e-6)
            if sparsity in (0.8, 0.97):
                assert last.methods[method].curve[sparsity] == accuracy(pruned, part.validation[:1000]).value
    shown = panel.draw(last)
    assert f"{100 * accuracy(pruned, part.validation).value:.2f} %" in shown.title
    assert "97 % of layer fc2" in shown.title
    assert shown.title.endswith("of 1,125 validation images") and set(CURVE) <= set(last.methods["magnitude"].curve)


def test_the_table_compares_the_methods_on_the_same_images(panel, model, part):
    by_size, ours = both(model, 0.95, part).values()
    difference = paired_difference(ours, by_size, part.validation)
    low, high = difference.interval
    row = panel.draw(answers(panel, sparsity=0.95)[-1]).tables.split("against magnitude")[1]
    assert f"{100 * difference.value:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})" in row


def test_the_output_error_is_measured_on_validation_images(panel, model, part):
    answer = answers(panel, sparsity=0.9)[-1]
    inputs = layer_inputs(model, LAYER, part.validation.images[:1000])
    dense = inputs @ model[3].weight.detach().T
    for method, pruned in both(model, 0.9, part).items():
        wrong = dense - inputs @ pruned[3].weight.detach().T
        expected = (wrong.square().sum() / dense.square().sum()).item()
        assert answer.methods[method].error == pytest.approx(expected, rel=1e-3)
        assert f"{100 * expected:.2f} %" in panel.draw(answer).tables
    assert answer.methods["least squares"].error < 0.5 * answer.methods["magnitude"].error


def test_the_picture_shows_what_was_measured(panel):
    answer = answers(panel, sparsity=0.9)[-1]
    panel.draw(answer)
    drawing = panel._drawing
    for method, found in answer.methods.items():
        curve, accuracy = drawing._curves[method], found.comparison.accuracy
        assert curve.point.get_xydata().tolist() == [[0.9, accuracy.value]]
        assert curve.bar.get_ydata() == accuracy.interval
        assert curve.curve.get_xydata().tolist() == [list(point) for point in sorted(found.curve.items())]
        places, marks = drawing._marks[method].get_data()
        weights = found.weight[drawing._row, drawing._bars]
        assert weights[places].tolist() == marks.tolist() and len(marks) == weights.count_nonzero()
        outputs = (drawing._inputs @ found.weight.T)[:, drawing._units]
        assert drawing._dots[method].get_ydata().tolist() == pytest.approx(outputs.flatten().tolist())


def test_the_picture_moves_and_keeps_its_size(panel):
    pictures = []
    for sparsity in (0, 0.8, 0.95, 0.99):
        panel.set(sparsity=sparsity)
        pictures.append(np.asarray(Image.open(io.BytesIO(panel.flush().png)).convert("RGB")))
    assert {picture.shape for picture in pictures} == {(HEIGHT, 800, 3)}
    for one, other in pairwise(pictures):
        assert 0.005 < (one != other).any(axis=2).mean() < 0.2


@pytest.mark.slow
def test_the_ranking_is_announced_and_goes_on_where_a_move_stopped_it(mnist):
    panel = LeastSquaresPanel(load_trained("lenet300"), mnist, "fc2")
    for step in range(100):
        panel.set(sparsity=round(0.99 * step / 99, 2))
    assert panel.flush().title.startswith("99 % of layer fc2 pruned") and panel._picture.value == panel.shown.png
    del panel._rankings["least squares"], panel._importance[2:]
    assert list(panel._rank()) == [0.6, 0.8, 1.0] and list(panel._rank()) == []
    del panel._rankings["least squares"], panel._importance[2:]
    shown = next(panel.measure(0.5))
    assert shown.title == "Ranking the weights of layer fc2: 60 %" and shown.png != panel.shown.png
    panel.close()


@pytest.mark.slow
@pytest.mark.parametrize("name, layer", [("lenet5_classic", "conv1"), ("lenet5_classic", "fc2"), ("mlp128", "fc2")])
def test_any_small_layer_of_the_kit(name, layer, mnist):
    before, few = count_widgets(), Mnist(*(part[:250] for part in mnist))
    panel = LeastSquaresPanel(load_trained(name), few, layer)
    panel.set(sparsity=0.5)
    assert f"50 % of layer {layer} pruned" in panel.flush().title
    panel.close()
    assert count_widgets() == before


@pytest.mark.parametrize(
    "value, said", [(1.5, "in [0, 0.99]. Got 1.5."), (50, "Did you mean 0.5?"), (None, "Got None")]
)
def test_a_slider_refuses_what_it_cannot_stand_at(panel, value, said):
    before = panel.flush()
    with pytest.raises(ParameterError) as error:
        panel.set(sparsity=value)
    assert said in str(error.value) and panel.flush() == before


def test_an_error_is_shown_in_words(panel, monkeypatch):
    before = panel.flush()
    monkeypatch.setattr("kd_lab.panels.least_squares.compensated_weight", lambda *_: {}["missing"])
    panel.set(sparsity=0.3)
    with pytest.raises(KeyError):
        panel.flush()
    assert "KeyError" in panel._message.value and panel.shown == before


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("model", None, "fc1"), "LeastSquaresPanel(): 'model' must be a network"),
        ((nn.ReLU(), None, "1"), "must have a Linear layer"),
        ((build_model("mlp128"), "mnist", "fc1"), "each (images, labels). Got 'mnist'."),
        ((build_model("mlp128"), None, "2"), "'layer' must be one of fc1, fc2. Got '2'"),
        ((nn.Sequential(nn.Flatten(), nn.Linear(784, 5)), None, "1"), "the labels must be 0 to 4"),
    ],
)
def test_bad_input_gets_one_clear_error_and_leaves_no_widget(arguments, said, part):
    before, (model, data, layer) = count_widgets(), arguments
    with pytest.raises(ParameterError) as error:
        LeastSquaresPanel(model, data or part, layer)
    assert said in str(error.value) and str(error.value).startswith("LeastSquaresPanel(): "), str(error.value)
    assert count_widgets() == before


def test_where_no_widgets_are_a_picture_is(panel):
    assert {"image/png", "text/plain"} <= set(panel._repr_mimebundle_())
