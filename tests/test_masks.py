"""Masks are those of torch's own pruning, of any scope and importance; bad input changes nothing."""

import copy

import numpy as np
import pytest
import torch
from own_networks import NETWORKS, Tied, own_network
from torch import nn
from torch.nn.utils import prune as torch_prune

from kd_lab.checkpoints import load_trained
from kd_lab.cost import count_nonzeros, count_parameters
from kd_lab.errors import EmptyLayerError, ParameterError
from kd_lab.networks.layers import weighted_layers, weights
from kd_lab.networks.permanent import make_permanent
from kd_lab.networks.predictions import predict
from kd_lab.networks.zoo import MODELS, build_model
from kd_lab.pruning import (
    IMPORTANCES,
    SCOPES,
    Mask,
    average_gradients,
    gradient_mask,
    importances,
    magnitude_mask,
    n_m_mask,
    prune,
    prune_layer_adaptive,
    prune_n_m,
    random_mask,
    rank,
    rewind,
    set_masks,
    weight_gradient_mask,
)

AMOUNTS = (0.0, 0.1, 0.5, 0.9, 0.99)
HAND = torch.tensor([[3.0, -1.0], [0.5, -2.0]])


def masks_of(model):
    return {name: weight.parametrization(Mask).mask for name, weight in weights(model).items()}


def masks_of_torch(model, amount, scope):
    model = copy.deepcopy(model).to(memory_format=torch.contiguous_format)  # which its global pruning needs
    present = {name: (weight.module, weight.name) for name, weight in weights(model).items()}
    if scope == "global":
        torch_prune.global_unstructured(present.values(), torch_prune.L1Unstructured, amount=amount)
    else:
        for layer, tensor in present.values():
            torch_prune.l1_unstructured(layer, tensor, amount)
    return {name: getattr(layer, f"{tensor}_mask").bool() for name, (layer, tensor) in present.items()}


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("source", [load_trained, build_model], ids=["trained", "untrained"])
def test_masks_equal_those_of_torch(source, name, scope):
    model = source(name)
    ranking = rank(importances(model, "magnitude"), scope)
    for amount in AMOUNTS:
        ours, theirs = ranking.masks(amount), masks_of_torch(model, amount, scope)
        present = list(weights(model).items())
        for group in [present] if scope == "global" else [[each] for each in present]:
            sizes, our_mask, their_mask = (
                torch.cat([part.flatten() for part in parts])
                for parts in (
                    [weight.value.abs() for _, weight in group],
                    [ours[key] for key, _ in group],
                    [theirs[key] for key, _ in group],
                )
            )
            assert our_mask.sum() == their_mask.sum()
            differing = sizes[our_mask != their_mask]  # half precision makes ties: of equal ones, either may go
            assert len(differing) == 0 or (differing == sizes[~our_mask].max()).all()


def test_by_hand():
    gradient = torch.tensor([[0.1, -5.0], [1.0, 0.2]])
    assert magnitude_mask(HAND, 0.5).tolist() == [[True, False], [False, True]]
    assert gradient_mask(gradient, 0.5).tolist() == [[False, True], [True, False]]
    assert weight_gradient_mask(HAND, gradient, 0.5).tolist() == [[False, True], [True, False]]
    assert weight_gradient_mask(HAND, gradient, 0.25).tolist() == [[False, True], [True, True]]  # |w·g|: .3 5 .5 .4


@pytest.mark.parametrize("sparsity", AMOUNTS)
def test_exactly_so_many_weights_are_pruned_and_masks_are_nested(sparsity):
    weight = torch.randn(37, 19)
    for mask in (magnitude_mask(weight, sparsity), random_mask(weight, sparsity)):
        assert (~mask).sum() == round(sparsity * weight.numel())
    assert (magnitude_mask(weight, sparsity) | ~magnitude_mask(weight, 0.995)).all()


def test_equal_weights_are_pruned_from_the_first_on():
    assert magnitude_mask(torch.ones(10_000), 0.5).tolist() == [False] * 5000 + [True] * 5000


def test_chance_depends_on_the_seed_and_on_nothing_else():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = random_mask(HAND, 0.5, seed=1)
    assert torch.equal(torch.rand(1), expected)  # the caller's random numbers stay as they were
    assert torch.equal(first, random_mask(100 * HAND, 0.5, seed=1))
    weight = torch.randn(50, 50)
    assert not torch.equal(random_mask(weight, 0.5, seed=1), random_mask(weight, 0.5, seed=2))
    kept = random_mask(weight, 0.5) & magnitude_mask(weight, 0.5)
    assert 0.2 < kept.float().mean() < 0.3


def test_a_mask_is_not_the_callers(few):
    model, mask = build_model("mlp128"), torch.ones(128, 784, dtype=torch.bool)
    set_masks(model, {"fc1": mask})
    mask.zero_()
    assert model[1].weight.count_nonzero() > 100_000


def test_a_global_rank_compares_all_layers_and_a_layers_own_only_itself():
    values = {"a": torch.tensor([1.0, 9.0]), "b": torch.tensor([[2.0, 3.0]])}
    assert {name: mask.tolist() for name, mask in rank(values).masks(0.5).items()} == {
        "a": [False, True],
        "b": [[False, True]],
    }
    assert {name: mask.tolist() for name, mask in rank(values, "per_layer").masks({"b": 0.5}).items()} == {
        "a": [True, True],
        "b": [[False, True]],
    }


def test_pruning_gives_a_new_model_and_leaves_the_old_one(validation):
    model = load_trained("mlp128")
    before = copy.deepcopy(model.state_dict())
    pruned = prune(model, 0.9)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    kept = round(0.1 * (784 * 128 + 1280))
    assert abs(count_nonzeros(pruned) - kept - 138) <= 1 and count_parameters(pruned) == 101_770
    assert predict(pruned, validation.images[:5]).shape == (5, 10)


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_a_cell_that_is_run_twice_prunes_once(importance, few):
    model = load_trained("mlp128")
    once = prune(model, 0.5, importance, data=few[:300])
    twice = prune(once, 0.5, importance, data=few[:300])
    assert len(twice[1].parametrizations.weight) == 1  # masks don't pile up
    assert all(torch.equal(mask, masks_of(twice)[name]) for name, mask in masks_of(once).items())


def test_pruned_weights_come_back_unless_they_were_made_permanent():
    model = build_model("mlp128")
    assert count_nonzeros(prune(prune(model, 0.9), 0)) == count_nonzeros(model)
    half = make_permanent(prune(model, 0.5, "random"))
    assert torch.equal(make_permanent(prune(half, 0.5))[1].weight, half[1].weight)


def test_a_masked_convolution_stays_channels_last():
    layer = prune(build_model("cnn"), 0.5)[0]
    assert layer.weight.stride() == build_model("cnn")[0].weight.stride()


BAD = [
    (dict(sparsity=-0.1), "'sparsity' must be a number in [0, 1). Got -0.1."),
    (dict(sparsity=float("nan")), "in [0, 1). Got nan."),
    (dict(sparsity=float("inf")), "in [0, 1). Got inf."),
    (dict(sparsity=1), "'sparsity' must be below 1, a number in [0, 1). Got 1."),
    (dict(sparsity=1.0), "'sparsity' must be below 1, a number in [0, 1). Got 1.0."),
    (dict(sparsity={"fc1": 1.0}, scope="per_layer"), "below 1"),
    (dict(sparsity={0: 0.5}, scope="per_layer"), "'sparsity' must be one of fc1, fc2. Got 0."),
    (dict(sparsity=50), "Got 50. Did you mean 0.5?"),
    (dict(sparsity=True), "in [0, 1). Got True."),
    (dict(sparsity="0.5"), "Got '0.5'. Did you mean 0.5?"),
    (dict(sparsity=None), "Got None."),
    (dict(sparsity=0.5, importance="magnitud"), "Did you mean 'magnitude'?"),
    (dict(sparsity=0.5, scope="globl"), "Did you mean 'global'?"),
    (dict(sparsity=0.5, importance="gradient"), "importance 'gradient' needs 'data'"),
    (dict(sparsity=0.5, importance="random", seed=-1), "'seed' must be a whole number"),
    (dict(sparsity={"fc1": 0.5}), "'sparsity' for each layer and 'scope' \"global\" exclude each other"),
    (dict(sparsity={"l": 0.5}, scope="per_layer"), "one of fc1, fc2"),
    (dict(sparsity={"fc1": 1.5}, scope="per_layer"), "\"sparsity['fc1']\" must be a number in [0, 1)"),
    (dict(sparsity={"fc2": 0.9999}, scope="per_layer"), "leaves no weight in layer 'fc2'"),
    (
        dict(
            sparsity=0.9999, importance="gradient", data=(torch.zeros(1, 1, 28, 28), torch.zeros(1, dtype=torch.int64))
        ),
        "or use scope 'per_layer'",
    ),
    (dict(sparsity=0.5, importance="gradient", data=(torch.zeros(0, 1, 28, 28), torch.zeros(0))), "not empty"),
    (dict(sparsity=0.5, importance="gradient", data=(torch.zeros(1, 1, 28, 28), torch.tensor([200]))), "labels"),
]


@pytest.mark.parametrize("arguments, part", BAD, ids=[part for _, part in BAD])
def test_bad_input_gets_one_clear_error(arguments, part):
    model = build_model("mlp128")
    if arguments.get("importance") == "gradient" and arguments["sparsity"] == 0.9999:
        model[1].weight.data.mul_(100)  # the last layer's gradients are the largest, so the first is emptied
    with pytest.raises(ParameterError) as error:
        prune(model, **arguments)
    assert part in str(error.value) and str(error.value).startswith("prune(): "), str(error.value)


@pytest.mark.parametrize(
    "call, part",
    [
        (lambda: magnitude_mask("weights", 0.5), "magnitude_mask(): 'weight' must be a tensor of finite numbers"),
        (lambda: magnitude_mask(torch.zeros(0), 0.5), "Got torch.float32, (0,)"),
        (lambda: magnitude_mask(torch.tensor([1.0, torch.nan]), 0.5), "finite"),
        (lambda: magnitude_mask(0.5, HAND), "'weight' must be a tensor of finite numbers, at least one. Got float."),
        (lambda: random_mask(0.5, HAND), "'weight' must be a tensor of finite numbers, at least one. Got float."),
        (lambda: gradient_mask(HAND, 1.0), "gradient_mask(): 'sparsity'"),
        (lambda: weight_gradient_mask(HAND, HAND[0], 0.5), "must have one shape. Got (2, 2) and (2,)"),
        (lambda: random_mask(HAND, 0.5, seed="a"), "'seed'"),
        (lambda: rank({"a": torch.tensor([torch.inf])}), "finite"),
        (
            lambda: magnitude_mask(HAND > 0, 0.5),
            "must be a tensor of finite numbers, at least one. Got torch.bool, (2, 2)",
        ),
        (lambda: rank(HAND), "rank(): 'importances' must be a dict"),
        (lambda: rank({"a": None}), "rank(): 'a' must be a tensor of finite numbers, at least one. Got NoneType"),
        (lambda: set_masks(build_model("mlp128"), None), "set_masks(): 'masks' must be a dict"),
        (lambda: rank({"a": HAND}, "layer"), "Did you mean 'per_layer'?"),
        (lambda: rank({"a": HAND}).masks(50), "Ranking.masks(): 'sparsity' must be a number in [0, 1). Got 50."),
        (lambda: rank({"a": HAND}).masks({"b": 0.5}), "one of a"),
        (lambda: importances(nn.ReLU(), "magnitude"), "importances(): 'model' must have"),
        (lambda: set_masks(build_model("mlp128"), {"fc1": HAND.bool()}), "must be a bool tensor of shape (128, 784)"),
        (lambda: set_masks(build_model("mlp128"), {"relu1": HAND.bool()}), "one of fc1, fc2"),
    ],
)
def test_bad_input_of_the_pure_functions(call, part):
    with pytest.raises(ParameterError) as error:
        call()
    assert part in str(error.value)


TIED_DATA = torch.randn(30, 64), torch.arange(30) % 10


@pytest.mark.parametrize("importance", IMPORTANCES)
@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("sparsity", [0.15, 0.5, 0.7, {"encoder": 0.9}])
def test_tied_weights_are_pruned_once_and_counted_once(sparsity, again, importance):
    model, scope = Tied(), "per_layer" if isinstance(sparsity, dict) else "global"
    start = prune(model, 0.3) if again else model
    pruned = prune(start, sparsity, importance, scope, data=TIED_DATA)
    assert torch.equal(pruned.encoder.weight, pruned.decoder.weight)
    zeros = sum(int((layer.weight == 0).sum()) for layer in (pruned.encoder, pruned.head))
    assert zeros == round(0.9 * 4096 if scope == "per_layer" else sparsity * (4096 + 640))


@pytest.mark.parametrize("cut", [prune_n_m, lambda model: prune_layer_adaptive(model, 0.5)])
def test_tied_weights_are_masked_alike(cut):
    pruned = cut(Tied())
    assert torch.equal(pruned.encoder.weight, pruned.decoder.weight) and (pruned.encoder.weight == 0).any()


def test_tied_weights_have_one_gradient_and_one_mask():
    model = Tied()
    nn.functional.cross_entropy(model(TIED_DATA[0]), TIED_DATA[1]).backward()
    for each in (model, prune(model, 0)):
        found = average_gradients(each, TIED_DATA)
        assert list(found) == ["encoder", "head"]
        assert torch.allclose(found["encoder"], model.encoder.weight.grad, atol=1e-6)
    set_masks(model, {"encoder": torch.eye(64).bool()})
    assert torch.equal(model.encoder.weight, model.decoder.weight) and model.encoder.weight.count_nonzero() == 64
    with pytest.raises(ParameterError, match=r"one of encoder, head\. Got 'decoder'"):
        set_masks(model, {"decoder": torch.eye(64).bool()})
    with pytest.raises(ParameterError, match=r"one of encoder, head\. Got 'decoder'"):
        prune(model, {"decoder": 0.5}, scope="per_layer")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_chance_is_the_same_whatever_the_default_dtype(dtype):
    weight, model = torch.randn(40, 30), build_model("mlp128")
    expected = random_mask(weight, 0.5, seed=3), masks_of(prune(model, 0.5, "random"))
    try:
        torch.set_default_dtype(dtype)
        assert torch.equal(random_mask(weight, 0.5, seed=3), expected[0])
        assert all(torch.equal(mask, expected[1][name]) for name, mask in masks_of(prune(model, 0.5, "random")).items())
        assert torch.equal(random_mask(weight.to(dtype), 0.5, seed=3), expected[0])
    finally:
        torch.set_default_dtype(torch.float32)


CUTS = [
    *(lambda model, data, how=how: prune(model, 0.5, how, data=data) for how in IMPORTANCES),
    lambda model, _data: prune_n_m(model),
    lambda model, _data: prune_layer_adaptive(model, 0.5),
    lambda model, _data: rewind(prune(model, 0.5), model),
]


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("surrounding", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_what_surrounds_the_call_changes_nothing_and_the_result_can_be_trained(surrounding, cut):
    model, data = Tied(), TIED_DATA
    expected = cut(model, data)
    with surrounding():
        pruned = cut(model, tuple(part + 0 for part in data))
    assert all(torch.equal(mask, masks_of(pruned)[name]) for name, mask in masks_of(expected).items())
    pruned(data[0]).sum().backward()
    assert pruned.head.parametrizations.weight.original.grad is not None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("cut", CUTS)
def test_a_network_of_another_precision_keeps_it(cut, dtype):
    pruned = cut(Tied().to(dtype), (TIED_DATA[0].to(dtype), TIED_DATA[1]))
    assert pruned.head.weight.dtype == dtype and (pruned.head.weight == 0).any()
    assert pruned(TIED_DATA[0].to(dtype)).dtype == dtype


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16, np.longdouble])
def test_numbers_of_numpy_are_pythons_own(kind):
    model = build_model("mlp128")
    once, other = prune(model, kind(0.5), seed=np.int64(3)), prune(model, 0.5)
    assert all(torch.equal(mask, masks_of(other)[name]) for name, mask in masks_of(once).items())
    assert torch.equal(random_mask(HAND, kind(0.5), np.uint8(3)), random_mask(HAND, 0.5, 3))
    assert torch.equal(n_m_mask(HAND, np.int8(1), np.uint8(2)), n_m_mask(HAND, 1, 2))


@pytest.mark.parametrize("importance", IMPORTANCES)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.filterwarnings("ignore:prune")
def test_every_kind_of_layer_is_masked(name, importance):
    model, images = own_network(name)
    before = copy.deepcopy(model.state_dict())
    if name == "in place" and "gradient" in importance:  # which plain torch can't differentiate either
        with pytest.raises(ParameterError, match=r"no gradient can be computed .* inplace operation"):
            prune(model, 0.4, importance, data=(images, torch.arange(7)))
        return
    pruned = prune(model, 0.4, importance, "per_layer", data=(images, torch.arange(7)))
    for weight in weights(pruned).values():
        mask = weight.parametrization(Mask).mask
        assert (~mask).sum() == round(0.4 * mask.numel()) and not weight.value[~mask].any()
    torch.testing.assert_close(predict(pruned, images), predict(make_permanent(pruned), images))
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "cut", [lambda model: prune(model, 0.5), prune_n_m, lambda model: prune_layer_adaptive(model, 0.5)]
)
def test_weights_that_stay_whole_are_named(cut):
    with pytest.warns(UserWarning, match=r"^prune\w*\(\): pairs.weight \(Bilinear\) stay whole"):
        cut(own_network("Bilinear")[0])


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.filterwarnings("ignore:prune")
def test_of_every_four_inputs_of_every_output_two_stay(name):
    for weight in weights(prune_n_m(own_network(name)[0])).values():
        rows = weight.parametrization(Mask).mask
        if isinstance(weight.module, nn.ConvTranspose2d):  # of two groups, each with 2 inputs and 3 outputs
            rows = torch.stack([rows[2 * group :][:2, output] for group in range(2) for output in range(3)])
        elif weight.output_axis == 1:
            rows = rows.transpose(0, 1)
        for start in range(0, rows[0].numel(), 4):
            some = rows.flatten(1)[:, start : start + 4]
            assert (some.sum(1) == min(2, some.shape[1])).all()


class Detached(Tied):
    def forward(self, x):
        return super().forward(x).detach()


def test_a_network_without_gradients_is_named():
    with pytest.raises(ParameterError, match=r"^prune\(\): no gradient can be computed through the model: "):
        prune(Detached(), 0.5, "gradient", data=TIED_DATA)


def test_groups_of_m_run_along_the_inputs_of_a_transposed_convolution():
    for groups in (1, 2):
        layer = nn.ConvTranspose2d(8, 6, 3, groups=groups, bias=False)
        mask = masks_of(prune_n_m(nn.Sequential(layer)))["0"]
        for group in range(groups):
            inputs = slice(group * 8 // groups, (group + 1) * 8 // groups)
            for output in range(6 // groups):
                row = layer.weight.detach()[inputs, output]
                assert torch.equal(mask[inputs, output], n_m_mask(row.reshape(1, -1)).view_as(row))


def test_a_wrong_mask_is_named_by_its_shape():
    with pytest.raises(ParameterError, match=r"Got torch.float32, \(2, 2\)\."):
        set_masks(build_model("mlp128"), {"fc1": HAND})


def test_layer_adaptive_pruning_spares_what_a_global_threshold_empties():
    model = build_model("lenet300")
    model[5].weight.data *= 0.01  # the whole last layer is smaller than the threshold
    with pytest.raises(EmptyLayerError, match="'fc3'"):
        prune(model, 0.95)
    masks = {name: layer.weight != 0 for name, layer in weighted_layers(prune_layer_adaptive(model, 0.95)).items()}
    count = sum(mask.numel() for mask in masks.values())
    assert sum(int(mask.sum()) for mask in masks.values()) == count - round(0.95 * count)
    assert masks["fc3"].float().mean() > masks["fc1"].float().mean()
    for name, mask in masks.items():  # within a layer it is magnitude that counts
        weight = model.get_submodule(name).weight.abs()
        assert weight[mask].min() >= weight[~mask].max()


def test_pruning_layer_adaptively_again_gives_the_same():
    once = prune_layer_adaptive(build_model("mlp128"), 0.9)
    twice = prune_layer_adaptive(once, 0.9)
    assert torch.equal(once[1].weight, twice[1].weight)
    with pytest.raises(ParameterError, match=r"prune_layer_adaptive\(\): 'sparsity' must be below 1"):
        prune_layer_adaptive(once, 1)
