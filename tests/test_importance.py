"""Importances are those of their formulas, of the weights as they are used, and leave no trace."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from kd_lab.networks.layers import weighted_layers
from kd_lab.networks.permanent import make_permanent
from kd_lab.networks.zoo import build_model
from kd_lab.pruning import IMPORTANCES, average_gradients, importances, layer_adaptive


def test_gradients_are_those_of_the_mean_loss_and_leave_no_trace(few):
    model, data = build_model("resnet").train(), few[:300]  # over two batches
    model[0].weight.requires_grad_(False)  # a frozen layer has an importance, too
    gradients = average_gradients(model, data)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training and not model[0].weight.requires_grad
    model.eval().requires_grad_(True)
    F.cross_entropy(model(data.images), data.labels).backward()
    for name, layer in weighted_layers(model).items():
        assert torch.allclose(gradients[name], layer.weight.grad, atol=1e-6)


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_importances_of_a_model_are_those_of_its_layers(importance, few):
    model = build_model("mlp128")
    found = importances(model, importance, few[:100])
    gradients = average_gradients(model, few[:100])
    expected = {
        "magnitude": lambda w, g: w.abs(),
        "gradient": lambda w, g: g.abs(),
        "weight_gradient": lambda w, g: (w * g).abs(),
    }
    for name, layer in weighted_layers(model).items():
        assert found[name].shape == layer.weight.shape
        if importance != "random":
            assert torch.equal(found[name], expected[importance](layer.weight, gradients[name]))


def test_importance_is_that_of_the_weight_as_it_is_used(few):
    model = build_model("mlp128")
    parametrize.register_parametrization(model[1], "weight", Halve())
    found = importances(model, "weight_gradient", few[:100])
    with torch.no_grad():  # a learner may be in it
        expected = importances(make_permanent(model), "weight_gradient", few[:100])
    assert all(torch.equal(found[name], expected[name]) for name in expected)


class Halve(nn.Module):
    def forward(self, weight):
        return weight / 2


def test_layer_adaptive_importances_are_those_by_hand():
    scores = layer_adaptive(torch.tensor([[3.0, -1.0], [2.0, 0.0]]).abs())
    assert torch.allclose(scores, torch.tensor([[1, 1 / 14], [4 / 13, 0]], dtype=torch.float64))
    assert layer_adaptive(torch.zeros(3)).tolist() == [0, 0, 0]
