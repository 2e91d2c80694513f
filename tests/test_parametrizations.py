"""Whatever transforms a weight composes, holds while the model is trained, and can be made permanent."""

import pytest
import torch
import torch.nn.functional as F
from kd_lab.parametrizations import parametrization
from torch import nn
from torch.nn.utils import parametrize

from kd_lab.errors import ParameterError
from kd_lab.networks.layers import describe, make_permanent, predict, weighted_layers
from kd_lab.networks.zoo import MODELS, build_model
from kd_lab.pruning import Mask, prune, set_masks
from kd_lab.training import train


class Halve(nn.Module):
    def forward(self, weight):
        return weight / 2


@pytest.mark.parametrize("name", MODELS)
def test_made_permanent_a_model_answers_the_same_and_is_an_ordinary_one(name, validation):
    pruned = prune(build_model(name), 0.7)
    permanent = make_permanent(pruned)
    assert not any(parametrize.is_parametrized(module) for module in permanent.modules())
    assert permanent.state_dict().keys() == build_model(name).state_dict().keys()
    assert torch.equal(predict(permanent, validation.images[:50]), predict(pruned, validation.images[:50]))
    assert parametrization(pruned[-1], Mask) is not None  # the model that was given is left as it was


def test_parametrizations_compose_in_their_order():
    layer = nn.Linear(3, 2)
    plain = layer.weight.detach().clone()
    parametrize.register_parametrization(layer, "weight", Halve())
    model = prune(nn.Sequential(layer), 0.5)
    assert parametrization(model[0], Halve) is model[0].parametrizations.weight[0]
    mask = parametrization(model[0], Mask).mask
    assert torch.equal(make_permanent(model)[0].weight, plain / 2 * mask)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9, weight_decay=0.01),
        lambda parameters: torch.optim.Adam(parameters, 0.01),
    ],
)
def test_a_mask_holds_through_momentum_that_was_gathered_before_it(optimizer, few):
    model = build_model("mlp128")
    steps, mask = optimizer(model.parameters()), torch.rand(128, 784) > 0.5
    for step in range(6):
        if step == 3:  # the optimizer still pushes the weights that are pruned now
            set_masks(model, {"1": mask})
            before = model[1].parametrizations.weight.original.detach().clone()
        steps.zero_grad()
        F.cross_entropy(model(few.images[:100]), few.labels[:100]).backward()
        steps.step()
    assert (model[1].parametrizations.weight.original[~mask] != before[~mask]).any()
    assert (model[1].weight[~mask] == 0).all() and (model[1].weight[mask] != 0).all()


def test_train_keeps_the_mask_and_changes_the_rest(few, validation):
    pruned = prune(build_model("cnn"), 0.8)
    tuned, _ = train(pruned, few, F.cross_entropy, validation=validation, epochs=1, weight_decay=0.1, progress=False)
    for name, layer in weighted_layers(pruned).items():
        tuned_layer = weighted_layers(tuned)[name]
        assert torch.equal(tuned_layer.weight == 0, layer.weight == 0)
        assert not torch.equal(tuned_layer.weight, layer.weight)


def test_layers_are_found_named_and_described():
    assert {name: describe(layer) for name, layer in weighted_layers(build_model("cnn")).items()} == {
        "0": "Conv2d 1-16, 3×3",
        "3": "Conv2d 16-32, 3×3",
        "7": "Linear 1568-128",
        "9": "Linear 128-10",
    }
    assert len(weighted_layers(build_model("resnet"))) == 7


@pytest.mark.parametrize(
    "model, part",
    [(nn.ReLU(), "must have a Linear or Conv2d layer. Got ReLU"), ("cnn", "Did you mean load_trained(name)?")],
)
def test_what_has_no_weights_is_refused(model, part):
    with pytest.raises(ParameterError) as error:
        weighted_layers(model, "prune")
    assert part in str(error.value) and str(error.value).startswith("prune()")
