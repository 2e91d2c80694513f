"""Least-squares pruning is Optimal Brain Surgeon, step by step and in closed form; it loses far less than magnitude."""

import copy
import re
import time

import pytest
import torch
from own_networks import own_network
from torch import nn

from kd_lab.checkpoints import load_trained
from kd_lab.errors import ParameterError
from kd_lab.evaluation import accuracy, paired_difference
from kd_lab.networks.inputs import layer_inputs
from kd_lab.networks.permanent import make_permanent
from kd_lab.networks.predictions import predict
from kd_lab.networks.zoo import build_model, small_student
from kd_lab.pruning import (
    compensated_weight,
    damped_hessian,
    least_squares,
    least_squares_importance,
    prune,
    prune_least_squares,
    rank,
)
from kd_lab.pruning.least_squares import DAMPING
from kd_lab.results import load_results


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def correlated(count, n):
    return random(count, n) @ random(n, n, seed=1)


def cut(weight, hessian, sparsity):
    return rank({"": least_squares_importance(weight, hessian)}, "per_layer").masks(sparsity)[""]


def brain_surgeon(weight, hessian):
    """Remove all weights of a row as Hassibi & Stork have it: the order, and the weights before each step."""
    w, inverse, order, states = weight.clone(), torch.linalg.inv(hessian), [], [weight]
    for _ in range(len(w)):
        left = [place for place in range(len(w)) if place not in order]
        p = min(left, key=lambda place: w[place] ** 2 / inverse[place, place])
        w = w - w[p] / inverse[p, p] * inverse[p]
        w[p] = 0
        inverse = inverse - torch.outer(inverse[p], inverse[p]) / inverse[p, p]
        order.append(p)
        states.append(w)
    return order, states


@pytest.mark.parametrize("n", [7, 40, 135])  # within one block of removals, and over several
def test_order_and_weights_are_those_of_optimal_brain_surgeon(n):
    weight, hessian = random(3, n, seed=2), damped_hessian(correlated(2 * n, n))
    importance = least_squares_importance(weight, hessian)
    for row, values in zip(weight, importance, strict=True):
        order, states = brain_surgeon(row, hessian)
        assert values.argsort().tolist() == order
        for removed in (0, 1, n // 2, n - 1, n):
            mask = torch.ones(n, dtype=torch.bool)
            mask[order[:removed]] = False
            assert torch.allclose(compensated_weight(row[None], mask[None], hessian)[0], states[removed], atol=1e-8)


def test_importance_is_the_growth_of_the_error():
    weight, hessian = random(4, 12, seed=2), damped_hessian(correlated(30, 12))
    for row, values in zip(weight, least_squares_importance(weight, hessian), strict=True):
        order, states = brain_surgeon(row, hessian)
        errors = torch.stack([(row - state) @ hessian @ (row - state) for state in states])
        assert torch.allclose(values[order], errors.diff().cummax(0).values)
        assert (values[order].diff() > 0).all()  # even where a step costs less than one before


@pytest.mark.parametrize("count", [50, 5])  # with fewer samples than inputs, too
@pytest.mark.parametrize("sparsity", [0.0, 0.2, 0.5, 0.9])
def test_the_closed_form_is_a_least_squares_solution(count, sparsity):
    inputs, weight = correlated(count, 12), random(6, 12, seed=2)
    inputs[:, 3] = 0  # a pixel that is never lit
    hessian = damped_hessian(inputs)
    mask = random(6, 12, seed=3) > torch.distributions.Normal(0, 1).icdf(torch.tensor(sparsity))
    damping = DAMPING * inputs.square().mean()
    system = torch.cat([inputs / count**0.5, damping**0.5 * torch.eye(12)])  # [X; √λ I]
    found = compensated_weight(weight, mask, hessian)
    for row, kept, ours in zip(weight, mask, found, strict=True):
        solution = torch.linalg.lstsq(system[:, kept], system @ row).solution
        assert torch.allclose(ours[kept], solution) and not ours[~kept].any()


def test_the_first_weight_to_go_is_the_best_of_all():
    weight, hessian = random(20, 6, seed=2), damped_hessian(correlated(30, 6))
    first = least_squares_importance(weight, hessian).argmin(dim=1)

    def error(row, place):
        mask = torch.arange(6) != place
        wrong = row - compensated_weight(row[None], mask[None], hessian)[0]
        return wrong @ hessian @ wrong

    assert first.tolist() == [min(range(6), key=lambda place, row=row: error(row, place)) for row in weight]
    assert first.tolist() != weight.abs().argmin(dim=1).tolist()


def test_whatever_is_cut_is_a_beginning_of_each_rows_order():
    weight, hessian = random(30, 25, seed=2), damped_hessian(correlated(40, 25))
    orders = [brain_surgeon(row, hessian)[0] for row in weight]
    for sparsity in (0.1, 0.5, 0.8, 0.97):
        mask = cut(weight, hessian, sparsity)
        assert (~mask).sum() == round(sparsity * weight.numel())
        for order, kept in zip(orders, mask, strict=True):
            assert kept[order].int().diff().ge(0).all()


def test_compensation_never_makes_the_error_larger():
    inputs, weight = correlated(60, 30), random(10, 30, seed=2)
    hessian = damped_hessian(inputs)
    for mask in (cut(weight, hessian, 0.6), weight.abs() > 0.7):
        errors = [weight - kept for kept in (compensated_weight(weight, mask, hessian), weight * mask)]
        compensated, masked = (((wrong @ hessian) * wrong).sum(1) for wrong in errors)
        assert (compensated < masked).all()
        assert (errors[0] @ inputs.T).square().sum() < (errors[1] @ inputs.T).square().sum()


def test_weights_that_are_zero_go_first_and_stay_zero():
    weight, hessian = random(4, 20, seed=2), damped_hessian(correlated(40, 20))
    weight[:, ::2] = 0
    mask = cut(weight, hessian, 0.5)
    assert torch.equal(mask, weight != 0) and torch.allclose(compensated_weight(weight, mask, hessian), weight)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(1, 4, 3, padding=1),
        nn.Conv2d(1, 4, 5, stride=2),
        nn.Conv2d(1, 4, 3, dilation=2, padding="same"),
        nn.Conv2d(1, 4, (2, 3), padding=2, padding_mode="reflect"),
        nn.Linear(28, 5),
    ],
    ids=repr,
)
def test_a_layers_inputs_give_its_outputs(layer, few):
    model, images = nn.Sequential(nn.Dropout(), layer).train(), few.images[:3]
    inputs = layer_inputs(model, "1", images)
    outputs = inputs @ layer.weight.detach().flatten(1).T + layer.bias.detach()
    expected = predict(model, images)
    expected = expected.movedim(1, -1) if isinstance(layer, nn.Conv2d) else expected
    assert torch.allclose(outputs.view(expected.shape), expected, atol=1e-5)
    assert model.training and not layer._forward_pre_hooks


@pytest.mark.parametrize(
    "layers",
    [
        ("conv1", "conv2", "fc3"),
        pytest.param(("conv1", "conv2", "fc1", "fc2", "fc3"), marks=pytest.mark.slow),  # which takes seconds
    ],
)
def test_a_model_loses_far_less_than_by_magnitude(layers, mnist, validation):
    model = load_trained("lenet5_classic")
    before = copy.deepcopy(model.state_dict())
    sparsity = dict.fromkeys(layers, 0.8)
    pruned = prune_least_squares(model, sparsity, mnist.train.images[:300])
    by_size = prune(model, sparsity, scope="per_layer")
    dense, by_size, ours = (accuracy(each, validation).value for each in (model, by_size, pruned))
    assert dense - ours < 0.2 * (dense - by_size) and dense - ours < 0.02
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    for layer in map(pruned.get_submodule, layers):
        assert layer.weight.count_nonzero() == layer.weight.numel() - round(0.8 * layer.weight.numel())


@pytest.mark.slow
def test_a_network_loses_as_much_as_the_record_says(mnist):
    model, recorded = load_trained("lenet300"), load_results("pruning")
    pruned = {
        "magnitude": prune(model, 0.8, scope="per_layer"),
        "least_squares": prune_least_squares(model, 0.8, mnist.train.images[:2000]),
    }
    for method, network in pruned.items():
        points = recorded.figures("least_squares", "lost", method)
        lost = -100 * paired_difference(network, model, mnist.test).value
        assert points.low - 0.3 < lost < points.high + 0.3


def test_one_layer_is_pruned_by_the_pure_functions_and_the_others_stay(few):
    model = load_trained("lenet300")
    pruned = prune_least_squares(model, {"fc2": 0.7}, few.images[:300])
    weight, hessian = model[3].weight.detach(), damped_hessian(layer_inputs(model, "fc2", few.images[:300]))
    expected = compensated_weight(weight, cut(weight, hessian, 0.7), hessian).float()
    assert torch.equal(pruned[3].weight, expected)
    assert all(torch.equal(pruned[place].weight, model[place].weight) for place in (1, 5))


def test_a_layer_makes_up_for_the_layers_below(few):
    model, images = load_trained("lenet5_classic"), few.images[:150]
    below, both = (prune_least_squares(model, cut, images) for cut in ({"conv2": 0.9}, {"fc2": 0.0, "conv2": 0.9}))
    far, near = ((predict(pruned, images) - predict(model, images)).square().mean() for pruned in (below, both))
    assert near < 0.9 * far and not torch.equal(both[9].weight, model[9].weight)


@pytest.mark.parametrize("sparsity", [{"conv2": 0.0, "fc3": 0.0}, pytest.param(0.0, marks=pytest.mark.slow)])
def test_nothing_pruned_gives_the_same_outputs(sparsity, few):
    model = load_trained("lenet5_classic")
    pruned = prune_least_squares(model, sparsity, few.images[:50])
    assert torch.allclose(predict(pruned, few.images[:300]), predict(model, few.images[:300]), atol=1e-5)
    assert prune_least_squares(model, {}, few.images[:50]) is not model


@pytest.mark.slow
def test_a_layer_that_reads_nothing_is_pruned_by_magnitude():
    model = small_student(5)
    pruned = prune_least_squares(model, {"fc1": 0.5}, torch.zeros(2, 1, 28, 28))
    assert torch.allclose(pruned[1].weight, prune(model, {"fc1": 0.5}, scope="per_layer")[1].weight, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_a_hessian_may_have_any_precision(dtype):
    weight, hessian, mask = random(2, 4), 3 * torch.eye(4), torch.tensor([[True, False] * 2] * 2)
    expected = [least_squares_importance(weight, hessian.double()), compensated_weight(weight, mask, hessian.double())]
    assert torch.equal(least_squares_importance(weight, hessian.to(dtype)), expected[0])
    assert torch.equal(compensated_weight(weight, mask, hessian.to(dtype)), expected[1])


def test_a_cell_that_is_run_twice_prunes_once(few):
    model, images = prune(load_trained("mlp128"), 0.5, scope="per_layer"), few.images[:200]
    sparsity = {"fc2": 0.5}
    once = prune_least_squares(model, sparsity, images)
    twice = prune_least_squares(once, sparsity, images)
    assert len(twice[3].parametrizations.weight) == 1
    assert torch.allclose(once[3].weight, make_permanent(model)[3].weight, atol=1e-6)
    assert torch.allclose(once[3].weight, twice[3].weight, atol=1e-6)


class Grouped(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(2304, 10))


IMAGES = torch.zeros(2, 1, 28, 28)


def patches_of(layer, x):
    """Return what a layer without padding and strides reads, (groups, N · positions, n), by plain torch."""
    if isinstance(layer, nn.Linear):
        return x.reshape(1, -1, x.shape[-1])
    for axis, size in enumerate(layer.kernel_size, 2):
        x = x.unfold(axis, size, 1)
    count = len(layer.kernel_size)
    x = x.unflatten(1, (layer.groups, -1)).movedim(1, 0)  # (groups, N, channels, positions …, window …)
    return x.movedim(2, 2 + count).flatten(2 + count).flatten(1, -2)


SOLVED = ["Linear", "Conv1d", "Conv2d", "Conv3d", "depthwise", "grouped", "BatchNorm1d", "LayerNorm"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SOLVED)
def test_every_kind_of_layer_is_refitted_to_its_own_outputs(name, dtype):
    model, images = own_network(name, 200)
    model, images = model.to(dtype), images.to(dtype)
    layer = model[0]
    pruned = make_permanent(prune_least_squares(model, {"0": 0.5}, images))
    assert pruned[0].weight.dtype == dtype
    assert pruned[0].weight.count_nonzero() == layer.weight.numel() - round(0.5 * layer.weight.numel())
    patches = patches_of(layer, images)
    before, after = (
        each[0].weight.detach().double().flatten(1).unflatten(0, (len(patches), -1)) for each in (model, pruned)
    )
    for rows, refitted, x in zip(before, after, patches, strict=True):
        slope = (refitted - rows) @ damped_hessian(x)  # of the squared error, zero for each weight that is kept
        assert slope[refitted != 0].abs().max() < 1e-5 * (rows @ damped_hessian(x)).abs().max()
    by_size = prune(model, {"0": 0.5}, scope="per_layer")
    dense, ours, theirs = (each[0](images) for each in (model, pruned, by_size))
    assert (ours - dense).square().mean() < (theirs - dense).square().mean()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_another_default_dtype_changes_nothing(dtype):
    model, images = own_network("Conv2d", 100)
    expected = prune_least_squares(model, 0.5, images)
    try:
        torch.set_default_dtype(dtype)
        found = prune_least_squares(model, 0.5, images)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(found[place].weight, expected[place].weight) for place in (0, 2))


def test_a_network_in_bfloat16_loses_less_than_by_magnitude():
    model, images = own_network("Conv2d", 200)
    model, images = model.bfloat16(), images.bfloat16()
    ours, by_size = prune_least_squares(model, 0.5, images), prune(model, 0.5, scope="per_layer")
    errors = [(predict(each, images) - predict(model, images)).float().square().mean() for each in (ours, by_size)]
    assert errors[0] < errors[1] and ours[0].weight.dtype == torch.bfloat16


def test_what_was_pruned_in_inference_mode_can_be_trained():
    model, images = own_network("Conv2d", 50)
    expected = prune_least_squares(model, 0.5, images)
    with torch.inference_mode():
        pruned = prune_least_squares(model, 0.5, images.clone())
    assert torch.equal(pruned[0].weight, expected[0].weight)
    pruned(images).sum().backward()


class InPlace(nn.Module):
    """A network whose layers' inputs are changed behind them, in place or not."""

    def __init__(self, in_place):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.block, self.last = (nn.Linear(8, 8) for _ in range(4))
        self.conv = nn.Conv1d(1, 1, 3, padding=1)
        self.relu, self.in_place = nn.ReLU(inplace=in_place), in_place

    def add(self, x, y):
        return x.add_(y) if self.in_place else x + y

    def forward(self, x):
        x = self.first(x)
        second = self.second(x)
        x = self.relu(x)  # which the second layer has read before
        x = self.add(x, self.block(x))
        x = self.add(x, self.conv(x[:, None])[:, 0])
        return self.last(self.relu(self.add(second, x)))


def test_inputs_are_those_that_were_read_whatever_changes_them_later():
    images, (changing, keeping) = torch.randn(100, 8), (InPlace(each) for each in (True, False))
    for layer in ("first", "second", "block", "conv", "last"):
        assert torch.equal(layer_inputs(changing, layer, images), layer_inputs(keeping, layer, images))
    ours, expected = (prune_least_squares(each, 0.5, images) for each in (changing, keeping))
    assert all(
        torch.equal(ours.get_submodule(layer).weight, expected.get_submodule(layer).weight)
        for layer in ("first", "second", "block", "conv", "last")
    )


class Scaled(nn.Linear):
    def forward(self, x):
        return 0.5 * super().forward(x)


class Adapted(nn.Linear):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.down, self.up = nn.Parameter(torch.randn(2, 8)), nn.Parameter(torch.randn(8, 2))

    def forward(self, x):
        return super().forward(x) + x @ self.down.T @ self.up.T


class Standardised(nn.Conv1d):
    def forward(self, x):
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


class Twice(nn.Linear):
    def forward(self, x):
        return super().forward(x), x


class Same(nn.Linear):
    def forward(self, x):
        return nn.functional.linear(x, self.weight, self.bias)


class Around(nn.Module):
    def __init__(self, layer, call=lambda layer, x: layer(x)):
        super().__init__()
        self.layer, self.last, self.call = layer, nn.Linear(8, 3), call

    def forward(self, x):
        return self.last(self.call(self.layer, x))


def hooked(register, hook):
    layer = nn.Linear(8, 8)
    getattr(layer, register)(hook)
    return layer


OTHERS = {
    "scaled": Around(Scaled(8, 8)),
    "LoRA": Around(Adapted(8, 8)),
    "weight-standardised": Around(Standardised(1, 1, 3, padding=1), lambda layer, x: layer(x[:, None])[:, 0]),
    "two outputs": Around(Twice(8, 8), lambda layer, x: layer(x)[0]),
    "a hook": Around(hooked("register_forward_hook", lambda _layer, _inputs, output: output + 1)),
    "never run": Around(nn.Linear(8, 8), lambda layer, x: x @ layer.weight.T),
    "transposed": Around(nn.ConvTranspose1d(1, 1, 3, padding=1), lambda layer, x: layer(x[:, None])[:, 0]),
    "an embedding": Around(nn.Embedding(9, 8), lambda layer, x: layer(x.long() % 9).mean(1)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_layer_that_computes_something_else_is_named_before_anything_is_pruned(name):
    model, images = OTHERS[name], torch.randn(50, 8).abs()
    with pytest.raises(ParameterError, match=r"^prune_least_squares\(\): .*layer 'layer'"):
        prune_least_squares(model, 0.5, images)
    left_out = prune_least_squares(model, {"last": 0.5}, images)
    assert left_out.last.weight.count_nonzero() == 12


def test_a_layer_that_is_called_by_name_is_refitted_as_any_other():
    named, images = Around(nn.Linear(8, 8), lambda layer, x: layer(input=x)), torch.randn(50, 8)
    plain = Around(named.layer, lambda layer, x: layer(x))
    plain.last = named.last
    found, expected = (prune_least_squares(each, 0.5, images) for each in (named, plain))
    assert torch.equal(found.layer.weight, expected.layer.weight) and torch.equal(found(images), expected(images))


def test_tied_weights_are_named():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    with pytest.raises(ParameterError, match="layer '0' must be left out: other layers share"):
        prune_least_squares(model, 0.5, torch.randn(9, 8))


def test_a_layer_that_only_reads_other_inputs_is_solved_for_those():
    images = torch.randn(60, 8)
    rounded = Around(hooked("register_forward_pre_hook", lambda _layer, inputs: (inputs[0].round(),)))
    plain = Around(nn.Linear(8, 8), lambda layer, x: layer(x.round()))
    own_class = Around(Same(8, 8), lambda layer, x: layer(x.round()))
    for model in (plain, own_class):
        model.load_state_dict(rounded.state_dict())
    assert torch.equal(layer_inputs(rounded, "layer", images), images.round())
    weights = [prune_least_squares(model, 0.5, images).layer.weight for model in (rounded, plain, own_class)]
    assert torch.equal(weights[0], weights[1]) and torch.equal(weights[0], weights[2])


def interrupted_after(done, monkeypatch):
    real, left = least_squares._prune_layer, iter(range(done))

    def prune_layer(*arguments):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(least_squares, "_prune_layer", prune_layer)


def test_an_interrupt_keeps_the_layers_that_are_done(monkeypatch, capsys):
    model, images = own_network("depthwise", 50)
    whole = prune_least_squares(model, 0.5, images)
    interrupted_after(2, monkeypatch)
    pruned = prune_least_squares(model, 0.5, images)
    assert all(torch.equal(pruned[place].weight, whole[place].weight) for place in (0, 2))
    assert torch.equal(pruned[4].weight, model[4].weight)
    said = "prune_least_squares(): interrupted after 2 of 3 layers: 0, 2 are pruned, the others are whole."
    assert said in capsys.readouterr().out
    interrupted_after(0, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        prune_least_squares(model, 0.5, images)


def test_long_work_is_announced_and_short_work_is_not(monkeypatch, capsys):
    model, images = own_network("Linear", 50)
    expected = prune_least_squares(model, 0.5, images)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(least_squares, "MIN_MINUTES", 0)
    pruned = prune_least_squares(model, 0.5, images)
    told = capsys.readouterr()
    assert torch.equal(pruned[0].weight, expected[0].weight) and not told.err
    assert re.match(r"prune_least_squares\(\): about [\d.e-]+ minutes, most for layer '0'\. An interrupt", told.out)
    assert "least squares: 100%" in told.out


def test_the_estimate_is_of_the_size_that_the_work_has(monkeypatch, capsys):
    monkeypatch.setattr(least_squares, "MIN_MINUTES", 0)
    model, images = nn.Sequential(nn.Linear(500, 30), nn.Linear(30, 3)), torch.randn(100, 500)
    start = time.perf_counter()
    prune_least_squares(model, {"0": 0.5}, images)
    took = (time.perf_counter() - start) / 60
    told = float(re.search(r"about ([\d.e-]+) minutes", capsys.readouterr().out)[1])
    assert took / 10 < told < 10 * took


@pytest.mark.parametrize(
    "arguments, part",
    [
        (dict(sparsity=50), "'sparsity' must be a number in [0, 1). Got 50. Did you mean 0.5?"),
        (dict(sparsity=float("nan")), "Got nan."),
        (dict(sparsity={"l": 0.5}), "one of fc1, fc2"),
        (dict(sparsity={"fc2": 1.5}), "\"sparsity['fc2']\" must be a number in [0, 1)"),
        (dict(sparsity={"fc2": 0.9999}), "leaves no weight in layer 'fc2'. Lower it."),
        (dict(images=None), "'images' must be a tensor of finite numbers, at least one. Got NoneType."),
        (dict(images=IMAGES[:0]), "Got torch.float32, (0, 1, 28, 28)."),
        (dict(images=IMAGES / 0), "finite"),
        (dict(images=IMAGES[..., 1:]), "the model can't read images of shape (1, 28, 27)"),
        (dict(images=torch.zeros(2, 1, 28, 28, dtype=torch.uint8)), "the model can't read images"),
        (dict(model=nn.ReLU()), "'model' must have a Linear layer"),
        (
            dict(
                model=Grouped().apply(
                    lambda module: isinstance(module, nn.Linear) and module.weight.data.fill_(torch.nan)
                )
            ),
            "the weights must be finite numbers. Those of layer '3' are not.",
        ),
    ],
)
def test_bad_input_gets_one_clear_error(arguments, part):
    with pytest.raises(ParameterError) as error:
        prune_least_squares(**dict(model=build_model("mlp128"), sparsity=0.5, images=IMAGES) | arguments)
    assert part in str(error.value) and str(error.value).startswith("prune_least_squares(): "), str(error.value)


class Unused(nn.Sequential):
    def forward(self, x):
        return self[1](self[0](x))


@pytest.mark.parametrize(
    "call, part",
    [
        (
            lambda: layer_inputs(build_model("mlp128"), "2", IMAGES),
            "layer_inputs(): 'layer' must be one of fc1, fc2. Got '2'",
        ),
        (lambda: layer_inputs(build_model("mlp128"), "fc1", "images"), "layer_inputs(): 'images' must be a tensor"),
        (
            lambda: layer_inputs(Grouped(), "1", IMAGES),
            "layer_inputs(): a grouped convolution reads other inputs in each group",
        ),
        (lambda: layer_inputs(Unused(*build_model("mlp128")), "3", IMAGES), "the model never runs its layer '3'."),
        (lambda: damped_hessian(torch.full((3, 2), torch.nan)), "damped_hessian(): 'inputs' must be a tensor of 2 dim"),
        (lambda: least_squares_importance(torch.ones(2, 3), torch.eye(2)), "a column for each of 3 weights of a row"),
        (lambda: least_squares_importance(torch.ones(2, 3), torch.ones(3, 3)), "must be positive definite"),
        (
            lambda: compensated_weight(torch.ones(2, 3), torch.ones(2, 3), torch.eye(3)),
            "must be a bool tensor of shape (2",
        ),
    ],
)
def test_bad_input_of_the_pure_functions(call, part):
    with pytest.raises(ParameterError) as error:
        call()
    assert part in str(error.value)
