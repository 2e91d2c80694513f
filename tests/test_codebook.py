"""The clusters err no more than scikit-learn's, and the weights of a layer share them whatever training does."""

import copy
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans

from kd_lab.checkpoints import load_trained
from kd_lab.errors import ParameterError
from kd_lab.evaluation import accuracy
from kd_lab.networks.layers import Weight, weighted_layers, weights
from kd_lab.networks.permanent import make_permanent
from kd_lab.networks.predictions import predict
from kd_lab.networks.zoo import build_model
from kd_lab.pruning import prune
from kd_lab.pruning.masks import lift_masks
from kd_lab.quantization import BinaryQuantizer, CodebookQuantizer, kmeans, quantize_weights, share_weights
from kd_lab.training import train

GENERATOR = torch.Generator().manual_seed(0)


def squared_error(values, codebook, codes):
    return (codebook[codes.long()].double() - values.double()).square().sum().item()


def shared(layer):
    return Weight(layer).parametrization(CodebookQuantizer)


def spread(kind):
    values = torch.randn(2000, generator=GENERATOR)
    return {
        "normal": values,
        "tails": values.exp() ** 2,
        "far": values + 1e4,
        "tiny": values * 1e-30,
        "clumped": values.clamp(-0.5, 0.5),
        "rounded": (100 * values).round(),
    }[kind]


def weight(name, layer):
    return load_trained(name).get_submodule(layer).weight.detach().flatten()


SPREADS = {
    **{kind: lambda kind=kind: spread(kind) for kind in ("normal", "tails", "far", "tiny", "clumped", "rounded")},
    **{
        f"{name}.{layer}": lambda name=name, layer=layer: weight(name, layer)
        for name, layer in (("lenet300", "fc3"), ("cnn", "conv1"), ("cnn", "conv2"), ("cnn", "fc2"))
    },
}
COUNTS = dict.fromkeys(SPREADS, (2, 4, 8, 16, 64)) | dict.fromkeys(  # 256 where values are smooth, wide, few, or real
    ("normal", "tails", "rounded", "cnn.conv2"), (2, 4, 8, 16, 64, 256)
)


@pytest.mark.parametrize(
    "values, count",
    [
        pytest.param(values, count, id=f"{name}-{count}", marks=[pytest.mark.slow] * (count != 8))
        for name, values in SPREADS.items()
        for count in COUNTS[name]
    ],
)
def test_the_clusters_err_no_more_than_those_of_scikit_learn(values, count):
    values = values()
    if count > len(values.unique()):
        return
    unit = values.std().item()
    peer = KMeans(count, n_init=10, random_state=0).fit(values[:, None].double().numpy() / unit)
    assert squared_error(values, *kmeans(values, count)) <= (1 + 1e-5) * peer.inertia_ * unit**2


@pytest.mark.parametrize(
    ("name", "layer", "count"),
    [
        pytest.param("cnn", "fc1", 4, marks=pytest.mark.slow),
        pytest.param("lenet300", "fc2", 64, marks=pytest.mark.slow),
        ("lenet5_classic", "fc2", 64),
    ],
)
def test_nor_in_large_layers(name, layer, count):
    values = weight(name, layer)
    peer = KMeans(count, n_init=10, random_state=0).fit(values[:, None].double().numpy())
    assert squared_error(values, *kmeans(values, count)) <= (1 + 1e-5) * peer.inertia_


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_of_a_few_values_the_clusters_are_the_best_there_are(count):
    for _ in range(10):
        values = torch.randn(9, generator=GENERATOR)
        ordered, ways = np.sort(values.double().numpy()), itertools.combinations(range(1, 9), count - 1)
        best = min(sum(((part - part.mean()) ** 2).sum() for part in np.split(ordered, way)) for way in ways)
        assert squared_error(values, *kmeans(values, count)) == pytest.approx(best, rel=1e-5)


def test_a_cluster_that_loses_all_its_values_is_made_elsewhere():
    lumps = torch.cat([torch.linspace(-0.1, 0, 2500), torch.linspace(10, 10.1, 2500)])  # no border lies between
    codebook, codes = kmeans(lumps, 3)
    assert len(codebook) == 3 and squared_error(lumps, codebook, codes) < 1.01 * 2500 * (0.1**2 + 0.05**2) / 12


def test_each_value_has_the_nearest_centroid_and_each_centroid_is_the_mean_of_its_values():
    values = torch.randn(5000, generator=GENERATOR)
    codebook, codes = kmeans(values, 32)
    assert codebook.dtype == torch.float32 and codes.dtype == torch.uint8 and codes.shape == values.shape
    assert (codebook.diff() > 0).all()
    assert torch.equal((values[:, None] - codebook).abs().argmin(1), codes.long())
    means = torch.stack([values[codes == code].double().mean() for code in range(32)])
    assert torch.allclose(means, codebook.double(), atol=1e-6)
    assert all(torch.equal(*pair) for pair in zip(kmeans(values, 32), (codebook, codes), strict=True))


@pytest.mark.parametrize(
    ("values", "count", "codebook", "codes"),
    [
        ([7.0], 1, [7.0], [0]),
        ([7.0], 256, [7.0], [0]),
        ([2.0, 2.0, 2.0], 4, [2.0], [0, 0, 0]),
        ([3.0, -1.0, 3.0], 4, [-1.0, 3.0], [1, 0, 1]),
        ([1.0, 3.0, 2.0, 9.0], 1, [3.75], [0, 0, 0, 0]),
        ([1e38, -1e38, 3.0], 3, [-1e38, 3.0, 1e38], [2, 0, 1]),
    ],
)
def test_extremes(values, count, codebook, codes):
    found, places = kmeans(torch.tensor(values), count)
    assert torch.equal(found, torch.tensor(codebook)) and places.tolist() == codes


@pytest.mark.parametrize("num_bits", [1, 3, {"fc2": 6}])
def test_the_weights_of_a_layer_share_few_values(num_bits):
    model = load_trained("lenet5_classic")
    few = share_weights(model, num_bits)
    for name, layer in weighted_layers(few).items():
        bits = num_bits.get(name) if isinstance(num_bits, dict) else num_bits
        dense = model.get_submodule(name).weight
        if bits is None:
            assert torch.equal(layer.weight, dense)
            continue
        codebook, codes = kmeans(dense.flatten(), 2**bits)
        assert torch.equal(layer.weight, codebook[codes.long()].view(dense.shape))
        assert layer.weight.stride() == dense.stride()  # laid out as it was, else convolutions are slow
        assert len(layer.weight.unique()) <= 2**bits


def test_four_bits_change_few_answers(validation):
    model = load_trained("lenet300")
    assert accuracy(share_weights(model, 4), validation).value > accuracy(model, validation).value - 0.01


def test_a_gradient_is_the_sum_of_those_of_the_weights_that_share_a_value(few):
    model = build_model("mlp128")
    few_values = share_weights(model, 2)
    F.cross_entropy(few_values(few.images[:100]), few.labels[:100]).backward()
    plain = make_permanent(few_values)
    F.cross_entropy(plain(few.images[:100]), few.labels[:100]).backward()
    quantizer = shared(few_values[1])
    by_hand = torch.stack([plain[1].weight.grad[quantizer.codes == code].sum() for code in range(4)])
    assert torch.allclose(quantizer.codebook.grad, by_hand, rtol=1e-3)
    assert few_values[1].parametrizations.weight.original.grad is None


@pytest.mark.parametrize("sparsity", [pytest.param(0, marks=pytest.mark.slow), 0.8])
def test_training_moves_the_values_and_keeps_them_shared(sparsity, few, validation):
    before = share_weights(prune(load_trained("lenet300"), sparsity), 2)
    codes = {name: shared(layer).codes.clone() for name, layer in weighted_layers(before).items()}
    after, _ = train(before, few, F.cross_entropy, validation=validation, epochs=2, learning_rate=1e-3, progress=False)
    loss = [F.cross_entropy(predict(each, few.images), few.labels).item() for each in (before, after)]
    assert loss[1] < 0.8 * loss[0]
    for name, layer in weighted_layers(after).items():
        dead = before.get_submodule(name).weight == 0
        assert torch.equal(layer.weight == 0, dead) and dead.any() == (sparsity > 0)
        assert len(layer.weight[~dead].unique()) <= 4
        assert torch.equal(shared(layer).codes, codes[name])
        assert not torch.equal(shared(layer).codebook, shared(before.get_submodule(name)).codebook)


def test_zeros_have_no_part_in_the_clustering():
    pruned = prune(load_trained("mlp128"), 0.9)
    values = pruned[1].weight[pruned[1].weight != 0].detach()
    few = share_weights(pruned, 3)
    assert torch.equal(shared(few[1]).codebook, kmeans(values, 8)[0])
    codes, tables = shared(few[1]).encode(few[1].weight)
    assert len(tables["codebook"]) == 9 and torch.equal(codes == 8, pruned[1].weight == 0)
    assert torch.equal(tables["codebook"][codes], few[1].weight)


def test_a_weight_whose_mask_is_lifted_gets_the_smallest_value():
    few = share_weights(prune(load_trained("mlp128"), 0.9), 3)
    dead, codebook = few[1].weight == 0, shared(few[1]).codebook
    assert torch.all(lift_masks(few)[1].weight[dead] == codebook[codebook.abs().argmin()])


def test_a_layer_of_zeros_stays_one():
    model = build_model("mlp128")
    model[3].weight.data.zero_()
    assert not share_weights(model, 2)[3].weight.any()


def test_other_quantizers_are_replaced_and_the_model_itself_stays():
    model = quantize_weights(load_trained("mlp128"), 1)
    before = copy.deepcopy(model.state_dict())
    few = share_weights(share_weights(model, 1), 2)
    assert Weight(few[1]).parametrization(BinaryQuantizer) is None and len(few[1].weight.unique()) == 4
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "call, part",
    [
        *(
            (
                lambda bits=bits: share_weights(build_model("mlp128"), bits),
                f"share_weights(): 'num_bits' must be a whole number in [1, 8]. Got {bits!r}.",
            )
            for bits in (0, 9, 33, 4.5, True, "4", None)
        ),
        (lambda: share_weights(build_model("mlp128"), {"fc1": 4.5}), "in [1, 8]. Got 4.5."),
        (lambda: share_weights(build_model("mlp128"), {"2": 4}), "share_weights(): 'num_bits' must be one of fc1,"),
        (lambda: share_weights("mlp128", 4), "share_weights(): 'model' must be a network"),
        *(
            (
                lambda count=count: kmeans(torch.ones(3), count),
                f"kmeans(): 'count' must be a whole number in [1, 256]. Got {count!r}.",
            )
            for count in (0, 257, 2.5, True, None)
        ),
        *(
            (
                lambda values=values: kmeans(values, 2),
                "kmeans(): 'values' must be a tensor of 1 dimensions and of finite",
            )
            for values in (
                torch.ones(0),
                torch.tensor([torch.nan]),
                torch.tensor([torch.inf]),
                torch.ones(3).int(),
                [1.0],
            )
        ),
        (lambda: kmeans(torch.ones(2, 3), 2), "kmeans(): 'values' must be a tensor of 1 dimensions and of finite"),
    ],
)
def test_bad_input_gets_one_clear_error(call, part):
    with pytest.raises(ParameterError) as error:
        call()
    assert part in str(error.value), str(error.value)


@pytest.mark.parametrize("frozen", ["fc1", "fc2"])
def test_the_codebook_of_a_frozen_layer_is_not_trained(frozen, few):
    model = build_model("mlp128")
    model.get_submodule(frozen).weight.requires_grad_(False)
    coarse = share_weights(prune(model, 0.5), 3)
    tuned, _ = train(coarse, few, F.cross_entropy, validation=few, epochs=1, progress=False)
    for name, weight in weights(tuned).items():
        assert torch.equal(weight.value, weights(coarse)[name].value) == (name == frozen)
        assert weights(make_permanent(tuned))[name].value.requires_grad == (name != frozen)
