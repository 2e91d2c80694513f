"""Penalties are those of their formulas, and pull as their derivatives say, towards zero or towards a teacher."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from own_networks import NETWORKS, own_network
from torch import nn

from kd_lab.checkpoints import load_trained
from kd_lab.errors import ParameterError
from kd_lab.networks import layers as network_layers
from kd_lab.networks.layers import weighted_layers
from kd_lab.networks.permanent import make_permanent
from kd_lab.networks.predictions import predict
from kd_lab.networks.zoo import build_model, small_student
from kd_lab.penalties import group_lasso_penalty, l1_penalty, l2_penalty, match_parameters, used_parameters
from kd_lab.pruning import hard_prune, prune, prune_channels
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
    assert group_lasso_penalty(model, ["conv1", "conv2"]).item() == pytest.approx(expected.item(), rel=1e-5)


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
    group_lasso_penalty(model, ["fc1"]).backward()
    assert torch.isfinite(model[1].weight.grad).all() and not model[1].weight.grad[0].any()


def test_l1_makes_many_weights_tiny_and_the_group_lasso_whole_units(few, validation):
    def fit(penalty):
        model, _ = train(
            build_model("mlp128"),
            few[:1000],
            torch.nn.functional.cross_entropy,
            validation=validation[:200],
            epochs=20,
            progress=False,
            penalty=penalty,
            batch_size=64,
        )
        return model[1].weight.detach()

    l1, l2 = fit(lambda model: 1e-3 * l1_penalty(model)), fit(lambda model: 1e-2 * l2_penalty(model))
    assert (l1.abs() < 1e-3).float().mean() > 2 * (l2.abs() < 1e-3).float().mean()
    group = fit(lambda model: 1e-3 * group_lasso_penalty(model, ["fc1"]))
    assert (group.norm(dim=1) < 0.05).sum() > 20 > (l1.norm(dim=1) < 0.05).sum()


def test_an_unknown_layer_is_named():
    with pytest.raises(ParameterError, match=r"group_lasso_penalty\(\): 'layers' must be one of fc1, fc2. Got 'relu1'"):
        group_lasso_penalty(build_model("mlp128"), ["relu1"])
    for layers in ("fc", None, 3):
        with pytest.raises(
            ParameterError, match=rf"'layers' must be a list of names, as in \['fc1'\]\. Got {layers!r}"
        ):
            group_lasso_penalty(build_model("mlp128"), layers)


def distance(student, teacher):
    pairs = dict(student.named_parameters()), dict(teacher.named_parameters())
    return sum((pairs[0][name] - pairs[1][name]).abs().sum().item() for name in pairs[0])


@pytest.mark.parametrize("name", ["lenet300", "resnet"])
def test_it_is_the_sum_of_the_absolute_differences(name):
    teacher, student = load_trained(name), build_model(name)
    assert match_parameters(teacher, 0.5)(student).item() == pytest.approx(0.5 * distance(student, teacher), rel=1e-5)
    assert match_parameters(teacher, 3)(load_trained(name)).item() == 0


def test_gradients_pull_as_strongly_from_anywhere_and_the_teacher_gets_none():
    teacher, student = load_trained("mlp128"), build_model("mlp128")
    match_parameters(teacher, 0.5)(student).backward()
    for found, target in zip(student.parameters(), teacher.parameters(), strict=True):
        torch.testing.assert_close(found.grad, 0.5 * (found - target).sign().detach())
        assert target.grad is None


def test_the_teacher_is_copied():
    teacher, student = load_trained("mlp128"), build_model("mlp128")
    penalty = match_parameters(teacher, 1)
    before = penalty(student).item()
    with torch.no_grad():
        teacher[1].weight.zero_()
    assert penalty(student).item() == before


def test_of_a_masked_student_the_weights_that_are_used_count():
    teacher = load_trained("lenet300")
    student = prune(teacher, 0.9)
    assert list(used_parameters(student)) != list(used_parameters(teacher))  # in another order
    assert set(used_parameters(student)) == set(used_parameters(teacher))
    penalty = match_parameters(teacher, 1)
    far = distance(make_permanent(student), teacher)
    assert far > 0 and penalty(student).item() == pytest.approx(far, rel=1e-5)
    penalty(student).backward()
    gradient = student[1].parametrizations.weight.original.grad
    assert not gradient[~student[1].parametrizations.weight[0].mask].any()  # what is pruned can't be held
    assert match_parameters(student, 1)(make_permanent(student)).item() == 0  # a masked teacher, too


def test_layers_restrict_it(few):
    teacher = load_trained("lenet300")
    shrunk = hard_prune(prune_channels(teacher, {"fc1": 0.5}))
    assert match_parameters(teacher, 1, ["fc3"])(shrunk).item() == 0
    other = build_model("lenet300")
    by_hand = sum(
        (a - b).abs().sum().item()
        for place in (1, 5)
        for a, b in zip(other[place].parameters(), teacher[place].parameters(), strict=True)
    )
    assert match_parameters(teacher, 1, ("fc1", "fc3"))(other).item() == pytest.approx(by_hand, rel=1e-5)


def test_permuted_units_answer_the_same_and_are_far_apart(few):
    teacher, permuted = load_trained("lenet300"), load_trained("lenet300")
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for tensor in (permuted[1].weight, permuted[1].bias):
            tensor.copy_(tensor[order])
        permuted[3].weight.copy_(permuted[3].weight[:, order])
    torch.testing.assert_close(predict(permuted, few.images), predict(teacher, few.images), rtol=1e-4, atol=1e-4)
    assert match_parameters(teacher, 1)(permuted).item() > 1000


def test_a_student_is_held_near_its_teacher(few, validation):
    teacher, found = load_trained("mlp128"), []
    for strength in (0, 1e-3, 1e-1):
        student, _ = train(
            teacher,
            few,
            F.cross_entropy,
            validation=validation,
            epochs=2,
            progress=False,
            learning_rate=1e-2,
            penalty=match_parameters(teacher, strength),
        )
        found.append(distance(student, teacher))
    assert found[0] > 2 * found[1] > 2 * found[2]


def test_others_are_refused_before_the_training_with_both_shapes(few, validation):
    student = small_student(30)
    with pytest.raises(
        ParameterError,
        match=r"match_parameters\(\): student and teacher must have the same parameters"
        r"\. They differ in 'fc1.weight': \(30, 784\) and \(300, 784\); "
        r"'fc1.bias': \(30,\) and \(300,\); 'fc2.weight': .*; "
        r"'fc3.weight': none and \(10, 100\); … 'layers' can",
    ):
        match_parameters(load_trained("lenet300"), 1)(student)
    with pytest.raises(ParameterError, match=r"They differ in '1.bias': none and \(10,\)\. 'layers' can name"):
        match_parameters(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), 1)(
            nn.Sequential(nn.Flatten(), nn.Linear(784, 10, bias=False))
        )
    with pytest.raises(ParameterError, match=r"'fc3.weight': \(10, 100\) and none; 'fc3.bias'"):
        match_parameters(load_trained("lenet300")[:4], 1)(load_trained("lenet300"))
    with pytest.raises(ParameterError, match=r"^train\(\): 'penalty' .*'fc2.weight': \(10, 128\) and \(100, 300\)"):
        train(
            build_model("mlp128"),
            few,
            F.cross_entropy,
            validation=validation,
            epochs=1,
            penalty=match_parameters(load_trained("lenet300"), 1, ["fc2"]),
        )


@pytest.mark.parametrize("strength", [-1, float("nan"), float("inf"), "1", None, True])
def test_strengths_are_not_negative(strength):
    with pytest.raises(ParameterError, match=r"match_parameters\(\): 'strength' must be a number in \[0, 1e6\]\. Got"):
        match_parameters(load_trained("mlp128"), strength)


def test_layers_that_are_not_there_are_named():
    teacher = load_trained("mlp128")
    with pytest.raises(ParameterError, match=r"'layers' must be one of fc1, fc2\. Got 'relu1'"):
        match_parameters(teacher, 1, ["relu1"])
    with pytest.raises(ParameterError, match=r"'layers' must be one of fc1, fc2\. Got \[\]"):
        match_parameters(teacher, 1, [])
    for layers in ("fc1", 3):
        with pytest.raises(ParameterError, match=rf"'layers' must be a list of names, .* Got {layers!r}"):
            match_parameters(teacher, 1, layers)
    with pytest.raises(ParameterError, match="'teacher' must have parameters"):
        match_parameters(nn.ReLU(), 1)
    with pytest.raises(ParameterError, match="must be a network"):
        match_parameters("mlp128", 1)
    with pytest.raises(ParameterError, match=r"used_parameters\(\): 'model' must be a network"):
        used_parameters("mlp128")


class Halves(nn.Module):
    """An autoencoder's two halves with one weight, and a head."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.decoder.weight = self.encoder.weight


@pytest.mark.parametrize("masked", [False, True])
def test_a_tied_weight_counts_once(masked):
    model = prune(Halves(), 0.5) if masked else Halves()
    own = [model.encoder.weight, model.head.weight]
    assert torch.isclose(l1_penalty(model), sum(weight.abs().sum() for weight in own))
    assert torch.isclose(l2_penalty(model), sum(weight.square().sum() for weight in own))
    assert list(used_parameters(model)).count("encoder.weight") == 1 and "decoder.weight" not in used_parameters(model)
    other, biases = Halves(), ("encoder.bias", "decoder.bias", "head.bias")
    apart = [(a - b).abs().sum() for a, b in zip(own, (other.encoder.weight, other.head.weight), strict=True)]
    apart += [(model.get_parameter(name) - other.get_parameter(name)).abs().sum() for name in biases]
    assert torch.isclose(match_parameters(other, np.float64(2))(model), 2 * sum(apart))
    with pytest.raises(ParameterError, match=r"one of encoder, head\. Got 'decoder'"):
        group_lasso_penalty(model, ["decoder"])


@pytest.mark.parametrize("groups", [1, 2])
def test_a_group_is_what_an_output_of_a_transposed_convolution_reads(groups):
    layer = nn.ConvTranspose1d(4, 6, 3, groups=groups)
    expected = sum(
        (12 / groups) ** 0.5 * layer.weight[4 // groups * group :][: 4 // groups, output].norm()
        for group in range(groups)
        for output in range(6 // groups)
    )
    assert torch.isclose(group_lasso_penalty(nn.Sequential(layer), ["0"]), expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_penalty_is_of_every_kind_of_weight(name):
    model, _images = own_network(name)
    values = [weight.value for weight in network_layers.weights(model).values()]
    assert torch.isclose(l1_penalty(model), sum(value.abs().sum() for value in values))
    l2_penalty(model).backward()
    assert all(torch.allclose(value.grad, 2 * value) for value in values)
    counts = [sum(map(torch.numel, found)) for found in (used_parameters(model).values(), model.parameters())]
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    "call", [lambda model: group_lasso_penalty(["fc1"], model), lambda model: match_parameters(0.5, model)]
)
def test_swapped_arguments_are_named_by_the_model(call):
    with pytest.raises(ParameterError, match=r"'model' must be a network \(an nn\.Module\)\. Got (list|float)"):
        call(build_model("mlp128"))
