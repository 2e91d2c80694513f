"""Penalties are those of their formulas, and pull as their derivatives say."""

import pytest
import torch

from kd_lab.errors import ParameterError
from kd_lab.networks.layers import weighted_layers
from kd_lab.networks.zoo import build_model
from kd_lab.penalties import group_lasso_penalty, l1_penalty, l2_penalty
from kd_lab.pruning import prune
from kd_lab.training import train


def weights(model):
    return torch.cat([layer.weight.flatten() for layer in weighted_layers(model).values()])


def test_by_torchs_own_norms():
    model = build_model("cnn")
    assert l1_penalty(model).item() == pytest.approx(weights(model).norm(1).item(), rel=1e-5)
    assert l2_penalty(model).item() == pytest.approx(weights(model).norm(2).item() ** 2, rel=1e-5)
    expected = sum(3 * model[0].weight[c].norm() for c in range(16)) + sum(
        12 * model[3].weight[c].norm() for c in range(32)
    )
    assert group_lasso_penalty(model, ["0", "3"]).item() == pytest.approx(expected.item(), rel=1e-5)


def test_they_pull_on_the_weights_that_are_used():
    model = prune(build_model("mlp128"), 0.9)
    assert l1_penalty(model).item() == pytest.approx(weights(model).abs().sum().item())
    l1_penalty(model).backward()
    original = model[1].parametrizations.weight.original
    kept = model[1].weight != 0
    assert torch.equal(original.grad, original.sign() * kept)  # as strong on a small weight as on a large one


def test_a_unit_of_zeros_has_no_gradient_that_is_no_number():
    model = build_model("mlp128")
    with torch.no_grad():
        model[1].weight[0] = 0
    group_lasso_penalty(model, ["1"]).backward()
    assert torch.isfinite(model[1].weight.grad).all() and not model[1].weight.grad[0].any()


def test_l1_makes_many_weights_tiny_and_the_group_lasso_whole_units(few, validation):
    def fit(penalty):
        model, _ = train(
            build_model("mlp128"),
            few,
            torch.nn.functional.cross_entropy,
            validation=validation,
            epochs=15,
            progress=False,
            penalty=penalty,
            batch_size=64,
        )
        return model[1].weight.detach()

    l1, l2 = fit(lambda model: 1e-3 * l1_penalty(model)), fit(lambda model: 1e-2 * l2_penalty(model))
    assert (l1.abs() < 1e-3).float().mean() > 2 * (l2.abs() < 1e-3).float().mean()
    group = fit(lambda model: 1e-3 * group_lasso_penalty(model, ["1"]))
    assert (group.norm(dim=1) < 0.05).sum() > 20 > (l1.norm(dim=1) < 0.05).sum()


def test_an_unknown_layer_is_named():
    with pytest.raises(ParameterError, match=r"group_lasso_penalty\(\): 'layers' must be one of 1, 3. Got '2'"):
        group_lasso_penalty(build_model("mlp128"), ["2"])
    for layers in ("13", None, 3):  # "13" would be layers 1 and 3
        with pytest.raises(ParameterError, match=rf"'layers' must be a list of names, as in \['1'\]\. Got {layers!r}"):
            group_lasso_penalty(build_model("mlp128"), layers)
