"""The networks have the sizes that the papers and articles give them."""

import pytest
import torch
from torch import nn

from kd_lab.errors import ParameterError
from kd_lab.networks.layers import evaluation_mode
from kd_lab.networks.zoo import MODELS, Residual, build_model

PARAMETERS = {"mlp128": 101_770, "lenet300": 266_610, "cnn": 206_922, "lenet5": 431_080, "lenet5_classic": 61_706}


@pytest.mark.parametrize("name", MODELS)
def test_every_network_reads_digits(name):
    model = build_model(name)
    assert model(torch.zeros(3, 1, 28, 28)).shape == (3, 10)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters == PARAMETERS.get(name, parameters) and (name != "resnet" or parameters < 60_000)


def test_the_seed_decides_the_weights_and_leaves_the_callers_numbers_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, same, other = (build_model("mlp128", seed)[1].weight for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(torch.rand(1), expected)


def test_pooling_before_relu_changes_nothing():
    x = torch.randn(5, 1, 28, 28)
    convolution = build_model("cnn")[0]
    usual = nn.Sequential(convolution, nn.ReLU(), nn.MaxPool2d(2))(x)
    assert torch.equal(nn.Sequential(*build_model("cnn")[:3])(x), usual)


def test_a_residual_block_with_a_dead_body_passes_positive_inputs_on():
    block = Residual(4).eval()
    block.body[-1].weight.data.zero_()
    block.body[-1].bias.data.zero_()
    x = torch.rand(2, 4, 6, 6)
    assert torch.equal(block(x), x)


def test_an_unknown_network_gets_the_closest_name():
    with pytest.raises(ParameterError, match=r"build_model\(\): 'name' must be one of .* Did you mean 'lenet300'\?"):
        build_model("lenet-300")


@pytest.mark.parametrize("seed", ["a", -1, 1.5, None])
def test_bad_seeds_are_refused(seed):
    with pytest.raises(ParameterError, match=r"build_model\(\): 'seed' must be a whole number"):
        build_model("cnn", seed)


def test_each_module_gets_its_own_mode_back():
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(3)).train()
    model[1].eval()
    with pytest.raises(RuntimeError), evaluation_mode(model):
        assert not any(module.training for module in model.modules())
        raise RuntimeError
    assert [module.training for module in model.modules()] == [True, True, False]
