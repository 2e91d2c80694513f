"""Scans measure what their definition says; no other sparsities, bits within the bytes, or ranks do better."""

import copy
import itertools
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from own_networks import Tied
from torch import nn

from kd_lab.checkpoints import load_trained
from kd_lab.compression import allocation
from kd_lab.compression.allocation import (
    allocate,
    bit_scan,
    choose_bits,
    choose_ranks,
    rank_scan,
    scan_layers,
    sensitivity_scan,
)
from kd_lab.cost import count_macs
from kd_lab.errors import ParameterError
from kd_lab.factorization import NEAREST, factorize
from kd_lab.formats import network_file_bytes
from kd_lab.networks.layers import weighted_layers
from kd_lab.networks.predictions import predict
from kd_lab.pruning import prune
from kd_lab.quantization import quantize_activations, quantize_weights, share_weights

# ---- sparsities


def test_a_scan_is_the_rise_of_the_loss_with_one_layer_pruned(validation):
    model = load_trained("mlp128")
    scan = sensitivity_scan(model, validation, [0.5, 0.9])
    pruned = prune(model, {"fc2": 0.9}, scope="per_layer")
    loss = [F.cross_entropy(predict(each, validation.images), validation.labels).item() for each in (model, pruned)]
    assert scan["fc2"][0.9] == pytest.approx(loss[1] - loss[0])
    assert list(scan) == ["fc1", "fc2"] and all(
        list(rises) == [0.0, 0.5, 0.9] and rises[0.0] == 0 for rises in scan.values()
    )


def test_masks_are_lifted_before_a_scan_as_by_prune(validation):
    model = load_trained("mlp128")
    assert sensitivity_scan(prune(model, 0.9), validation[:200], [0.8]) == sensitivity_scan(
        model, validation[:200], [0.8]
    )


TIED_DATA = torch.randn(60, 64), torch.arange(60) % 10


@pytest.mark.parametrize("scanner, settings", [(sensitivity_scan, [0.5, 0.9]), (bit_scan, [2, 4])])
@pytest.mark.parametrize("kind", [list, np.array, tuple])
def test_a_scan_names_tied_weights_once_and_has_pythons_own_numbers(scanner, settings, kind):
    model = Tied()
    before = copy.deepcopy(model.state_dict())
    scan = scanner(model, TIED_DATA, kind(settings))
    assert list(scan) == ["encoder", "head"] and json.loads(json.dumps(scan))
    assert {type(setting) for rises in scan.values() for setting in rises} <= {int, float}
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    changed = copy.deepcopy(model)
    if scanner is bit_scan:
        changed = quantize_weights(model, {"encoder": 2})
    else:
        cut = prune(model, {"encoder": 0.5}, scope="per_layer").encoder.weight.detach()
        with torch.no_grad():
            changed.encoder.weight.copy_(cut)
    loss = [F.cross_entropy(predict(each, TIED_DATA[0]), TIED_DATA[1]).item() for each in (model, changed)]
    assert scan["encoder"][settings[0]] == pytest.approx(loss[1] - loss[0], abs=1e-6)


@pytest.mark.parametrize("number", [np.float32, np.float64])
def test_a_scan_in_numbers_of_numpy_is_shared_out_alike(number):
    scan = {"a": {0.0: 0.0, 0.5: 0.1, 0.75: 0.3}, "b": {0.0: 0.0, 0.5: 0.25, 0.75: 0.5}}
    counts = {"a": 200, "b": 100}
    own = {name: {number(key): number(rise) for key, rise in rises.items()} for name, rises in scan.items()}
    chosen = allocate(own, {name: np.uint8(count) for name, count in counts.items()}, number(0.5))
    assert chosen == allocate(scan, counts, 0.5) and {type(each) for each in chosen.values()} == {float}
    bits = {"a": {2: 0.3, 8: 0.0}, "b": {2: 0.3, 8: 0.0}}
    own = {name: {np.uint8(key): number(rise) for key, rise in rises.items()} for name, rises in bits.items()}
    chosen = choose_bits(own, {name: np.uint8(count) for name, count in counts.items()}, np.int64(240))
    assert chosen == choose_bits(bits, counts, 240) and {type(each) for each in chosen.values()} == {int}


def test_a_scan_trusts_no_change():
    def spoil(model, chosen):
        for name in chosen:
            nn.init.zeros_(model.get_submodule(name).weight)
        return model

    model, rises = Tied(), []
    for _ in range(2):
        rises.append(scan_layers(model, TIED_DATA, [0.5], spoil))
    assert rises[0] == rises[1] and model.head.weight.any()
    with pytest.raises(ParameterError, match="'change' must return a network"):
        scan_layers(model, TIED_DATA, [0.5], lambda model, chosen: None)
    with pytest.raises(ParameterError, match=r"scan_layers\(\): 'change' must be a function .* Got \[0\.5\]"):
        scan_layers(model, TIED_DATA, spoil, [0.5])


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of memory")], ids=repr)
@pytest.mark.parametrize("scan, change, setting", [(sensitivity_scan, "prune", 0.5), (bit_scan, "quantize_weights", 2)])
def test_what_ends_a_scan_early_keeps_the_layers_that_are_done(
    scan, change, setting, error, validation, monkeypatch, capsys
):
    model, few, changed = load_trained("lenet300"), validation[:50], getattr(allocation, change)
    whole, names = scan(model, few, [setting]), list(weighted_layers(model))
    for done in (2, 0):

        def ending(model, chosen, last=names[done], **settings):
            if last in chosen:
                raise error
            return changed(model, chosen, **settings)

        monkeypatch.setattr(allocation, change, ending)
        if done:
            assert scan(model, few, [setting]) == {name: whole[name] for name in names[:done]}
            assert "2 of 3 layers are done." in capsys.readouterr().out
        else:
            with pytest.raises(type(error)):
                scan(model, few, [setting])


@pytest.mark.parametrize("sparsity", [0, 0.3, 0.55, 0.8, 0.9])
def test_no_other_choice_is_better(sparsity):
    generator = torch.Generator().manual_seed(int(100 * sparsity))
    grid = [0.0, 0.3, 0.6, 0.9]
    scan = {name: dict(zip(grid, [0.0, *torch.rand(3, generator=generator).tolist()], strict=True)) for name in "abcd"}
    counts = {"a": 1000, "b": 30, "c": 200, "d": 5}
    chosen = allocate(scan, counts, sparsity)

    def pruned(choice):
        return sum(counts[name] * choice[name] for name in counts)

    def rise(choice):
        return sum(scan[name][choice[name]] for name in counts)

    every = [dict(zip("abcd", choice, strict=True)) for choice in itertools.product(grid, repeat=4)]
    allowed = [choice for choice in every if pruned(choice) >= sparsity * 1235 - 1e-6]
    assert pruned(chosen) >= sparsity * 1235 - 1e-6
    assert rise(chosen) == pytest.approx(min(map(rise, allowed)))


@pytest.mark.slow
def test_it_beats_one_sparsity_for_all(validation):
    model = load_trained("lenet5_classic")
    counts = {name: layer.weight.numel() for name, layer in weighted_layers(model).items()}
    few = validation[:300]
    scan = sensitivity_scan(model, few, [0.3, 0.5, 0.7, 0.8, 0.9, 0.95])
    sparsities = allocate(scan, counts, 0.8)
    assert sum(counts[name] * sparsity for name, sparsity in sparsities.items()) >= 0.8 * sum(counts.values())
    loss = [
        F.cross_entropy(predict(prune(model, choice, scope="per_layer"), few.images), few.labels).item()
        for choice in (sparsities, 0.8)
    ]
    assert loss[0] < 0.5 * loss[1]


def test_bad_input_is_named(validation):
    scan = {"1": {0.0: 0.0, 0.5: 0.1}}
    with pytest.raises(ParameterError, match=r"0\.8 is out of reach: .* it is 0\.500\. Scan higher ones"):
        allocate(scan, {"1": 10}, 0.8)
    with pytest.raises(ParameterError, match=r"Got 50\. Did you mean 0\.5\?"):
        allocate(scan, {"1": 10}, 50)
    with pytest.raises(ParameterError, match="'layer of the scan' must be one of 2"):
        allocate(scan, {"2": 10}, 0.5)
    for bad in (None, {}, {"1": {}}, {"1": 0.5}):
        with pytest.raises(ParameterError, match=r"^allocate\(\): 'scan' must be .* as sensitivity_scan\(\) gives"):
            allocate(bad, {"1": 10}, 0.5)
    for bad, message in (
        ({50: 0.1}, "sparsity in the scan.* Got 50"),
        ({0.5: float("nan")}, "rise.* Got nan"),
        ({0.5: "a"}, "rise.* Got 'a'"),
    ):
        with pytest.raises(ParameterError, match=rf"^allocate\(\): .*{message}"):
            allocate({"1": bad}, {"1": 10}, 0.5)
    for bad, message in ((None, "'counts' must be a dict"), ({"1": "a"}, "whole number"), ({"1": 0}, "Got 0")):
        with pytest.raises(ParameterError, match=rf"^allocate\(\): .*{message}"):
            allocate(scan, bad, 0.5)
    with pytest.raises(ParameterError, match=r"'sparsities' must be a list of fractions, as in .* Got 0\.5"):
        sensitivity_scan(load_trained("mlp128"), validation, 0.5)
    with pytest.raises(ParameterError, match=r"'sparsities' must be a number in \[0, 1\)\. Got 90"):
        sensitivity_scan(load_trained("mlp128"), validation, [0.5, 90])
    with pytest.raises(ParameterError, match=r"sensitivity_scan\(\): .*not empty"):
        sensitivity_scan(load_trained("mlp128"), validation[:0], [0.5])


# ---- bits


def loss(model, data):
    return F.cross_entropy(predict(model, data.images), data.labels).item()


def test_a_scan_is_the_rise_of_the_loss_with_one_layer_quantized(validation):
    model = load_trained("mlp128")
    scan = bit_scan(model, validation, [1, 2, 4])
    assert list(scan) == ["fc1", "fc2"] and all(list(rises) == [1, 2, 4] for rises in scan.values())
    for name, bits in (("fc1", 1), ("fc1", 2), ("fc2", 4)):
        alone = copy.deepcopy(model)
        alone.get_submodule(name).weight.data = quantize_weights(model, bits).get_submodule(name).weight.data
        assert scan[name][bits] == pytest.approx(loss(alone, validation) - loss(model, validation), abs=1e-6)
    assert scan["fc1"][1] > scan["fc1"][2] > scan["fc1"][4]


def test_quantizers_of_weights_are_lifted_before_a_scan_and_those_of_activations_stay(validation):
    few = validation[:200]
    model = quantize_activations(load_trained("mlp128"), few.images, 2)
    assert (
        bit_scan(share_weights(model, 1), few, [2])
        == bit_scan(model, few, [2])
        != bit_scan(load_trained("mlp128"), few, [2])
    )


COUNTS = {"a": 1001, "b": 33, "c": 205, "d": 3}
BITS = [1, 2, 4, 8]


def taken(choice):
    return sum(-(-COUNTS[name] * bits // 8) for name, bits in choice.items())


@pytest.mark.parametrize("seed", range(12))
def test_no_other_choice_of_bits_is_better(seed):
    generator = torch.Generator().manual_seed(seed)
    scan = {name: dict(zip(BITS, torch.randn(4, generator=generator).tolist(), strict=True)) for name in COUNTS}
    every = [dict(zip(COUNTS, choice, strict=True)) for choice in itertools.product(BITS, repeat=4)]
    least, most = taken(every[0]), taken(every[-1])
    some = every[int(torch.randint(len(every), (), generator=generator))]
    for budget in (least, taken(some) - 1, taken(some), taken(some) + 1, most, 10 * most):
        if budget < least:
            continue
        chosen = choose_bits(scan, COUNTS, budget)
        assert list(chosen) == list(COUNTS) and taken(chosen) <= budget
        rises = [sum(scan[name][choice[name]] for name in COUNTS) for choice in every if taken(choice) <= budget]
        assert sum(scan[name][bits] for name, bits in chosen.items()) == pytest.approx(min(rises), abs=1e-9)


def test_a_byte_less_than_the_fewest_bits_take_is_out_of_reach():
    scan = {name: {2: 0.5, 4: 0.1} for name in COUNTS}
    assert choose_bits(scan, COUNTS, 251 + 9 + 52 + 1) == dict.fromkeys(COUNTS, 2)
    with pytest.raises(
        ParameterError,
        match=r"^choose_bits\(\): a budget of 312 bytes is out of reach: with the "
        r"fewest bits of every layer in the scan the codes take 313\. Scan fewer",
    ):
        choose_bits(scan, COUNTS, 312)


@pytest.mark.slow
def test_it_beats_the_same_bits_for_all_and_keeps_to_the_bytes(validation):
    model, few = load_trained("lenet5_classic"), validation[:300]
    counts = {name: layer.weight.numel() for name, layer in weighted_layers(model).items()}
    budget = sum(-(-count * 2 // 8) for count in counts.values())
    chosen = choose_bits(bit_scan(model, few, [1, 2, 3, 4, 8]), counts, budget)
    mixed, even = quantize_weights(model, chosen), quantize_weights(model, 2)
    assert loss(mixed, few) < 0.3 * loss(even, few)
    assert network_file_bytes(mixed) <= network_file_bytes(even) + 100  # the header may be a little longer


SCAN = {"fc1": {2: 0.1, 4: 0.0}}


@pytest.mark.parametrize(
    "call, part",
    [
        *(
            (
                lambda model, data, bits=bits: bit_scan(model, data, [4, bits]),
                f"bit_scan(): 'bits' must be a whole number in [1, 8]. Got {bits!r}.",
            )
            for bits in (0, 33, 4.5, True, "4", None)
        ),
        *(
            (
                lambda model, data, bits=bits: bit_scan(model, data, bits),
                "bit_scan(): 'bits' must be a list of whole numbers, at least one, as in [2, 4, 8].",
            )
            for bits in (4, None, [])
        ),
        (lambda model, data: bit_scan("cnn", data, [4]), "bit_scan(): 'model' must be a network"),
        (lambda model, data: bit_scan(model, data[0], [4]), "bit_scan(): "),
        (lambda _, data: bit_scan(nn.Flatten(), data, [4]), "bit_scan(): 'model' must have a Linear layer, "),
        *(
            (
                lambda *_, budget=budget: choose_bits(SCAN, {"fc1": 9}, budget),
                f"choose_bits(): 'budget' must be a whole number in [1, 1e12]. Got {budget!r}.",
            )
            for budget in (0, 4.5, True, "4", None)
        ),
        *(
            (
                lambda *_, scan=scan: choose_bits(scan, {"fc1": 9}, 9),
                "choose_bits(): 'scan' must be {layer: {bits: rise}}, as bit_scan() gives it.",
            )
            for scan in (None, {}, {"fc1": {}}, {"fc1": 0.5})
        ),
        *(
            (
                lambda *_, bits=bits: choose_bits({"fc1": {bits: 0.1}}, {"fc1": 9}, 9),
                f"choose_bits(): 'bits in the scan' must be a whole number in [1, 8]. Got {bits!r}.",
            )
            for bits in (0, 33, 4.5, True, "4", None)
        ),
        (lambda *_: choose_bits({"fc1": {4: float("nan")}}, {"fc1": 9}, 9), "'rise in the scan' must be a number"),
        (lambda *_: choose_bits(SCAN, {"fc2": 9}, 9), "'layer of the scan' must be one of fc2. Got 'fc1'."),
        (lambda *_: choose_bits(SCAN, {"fc1": 0}, 9), "counts"),
        (lambda *_: choose_bits(SCAN, None, 9), "choose_bits(): 'counts' must be a dict"),
    ],
)
def test_bad_input_about_bits_is_named(call, part, validation):
    with pytest.raises(ParameterError) as error:
        call(load_trained("mlp128"), validation[:50])
    assert part in str(error.value), str(error.value)


# ---- ranks


@pytest.mark.parametrize("nearest", NEAREST)
def test_a_scan_is_the_rise_of_the_loss_with_one_layer_in_two(nearest, mnist, validation):
    model, few, images = load_trained("lenet300"), validation[:500], mnist.train.images[:200]
    scan = rank_scan(model, few, np.array([40, 5, 80, 5]), images, nearest)
    assert {name: list(rises) for name, rises in scan.items()} == {
        "fc1": [5, 40, 80, 300],  # 300 · 784 weights, and 5 · (300 + 784) in two layers
        "fc2": [5, 40, 100],  # 80 · (100 + 300) are more than 100 · 300
        "fc3": [5, 10],
    }
    assert all(rises[max(rises)] == 0 for rises in scan.values()) and json.loads(json.dumps(scan))
    alone = factorize(model, {"fc1": 5}, images, nearest)
    assert scan["fc1"][5] == pytest.approx(loss(alone, few) - loss(model, few), abs=1e-6)


def test_what_cannot_be_in_two_stays_whole():
    scan = rank_scan(Tied(), TIED_DATA, [1, 2])
    assert list(scan["encoder"]) == [min(Tied().encoder.weight.shape)] and set(scan["encoder"].values()) == {0.0}
    assert set(scan["head"]) > {1} and scan["head"][min(Tied().head.weight.shape)] == 0
    grouped = nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.Flatten(), nn.Linear(144, 5))
    assert {name: list(rises) for name, rises in rank_scan(grouped, GROUPED_DATA, [2]).items()} == {
        "0": [4],
        "2": [2, 5],
    }


GROUPED_DATA = torch.randn(20, 2, 8, 8), torch.arange(20) % 5
SHAPES = {"a": (30, 40), "b": (8, 2, 3, 3), "c": (16, 16), "d": (5, 3)}
RANKS = [1, 2, 4, 8, 20]


def size(name, rank):
    """Return how many weights a layer has at a rank, two layers or one."""
    outputs, inputs = SHAPES[name][0], math.prod(SHAPES[name][1:])
    return outputs * inputs if rank is None else rank * (outputs + inputs)


def sizes(choice):
    return sum(size(name, choice.get(name)) for name in SHAPES)


@pytest.mark.parametrize("seed", range(12))
def test_no_other_choice_of_ranks_is_better(seed):
    generator = torch.Generator().manual_seed(seed)
    full = {name: min(shape[0], math.prod(shape[1:])) for name, shape in SHAPES.items()}
    fitting = {name: [rank for rank in RANKS if size(name, rank) < size(name, None)] for name in SHAPES}
    scan = {
        name: dict(zip(ranks, torch.randn(len(ranks), generator=generator).tolist(), strict=True)) | {full[name]: 0.0}
        for name, ranks in fitting.items()
    }
    options = [[(name, rank) for rank in [*fitting[name], None]] for name in SHAPES]
    every = [{name: rank for name, rank in choice if rank} for choice in itertools.product(*options)]

    def rise(choice):
        return sum(scan[name][rank] for name, rank in choice.items())

    least, most = min(map(sizes, every)), sizes({})
    for budget in (least, *sorted({sizes(every[place]) for place in range(seed, len(every), 17)}), most - 1, 2 * most):
        chosen = choose_ranks(scan, SHAPES, budget)
        assert sizes(chosen) <= budget
        assert rise(chosen) == pytest.approx(min(rise(each) for each in every if sizes(each) <= budget), abs=1e-9)
    with pytest.raises(ParameterError, match=rf"^choose_ranks\(\): a budget of {least - 1} weights is out of reach"):
        choose_ranks(scan, SHAPES, least - 1)


def test_ranks_that_save_nothing_leave_a_layer_whole():
    scan = {"a": {25: -1.0, 30: 0.0}, "b": {2: 0.5, 8: 0.0}}  # 25 · 70 weights are more than 1,200
    assert choose_ranks(scan, {name: torch.empty(SHAPES[name]).shape for name in scan}, 1344) == {}
    assert choose_ranks(scan, SHAPES, 1343) == {"b": 2}


def test_chosen_ranks_keep_to_the_budget_and_beat_one_share_for_all(mnist, validation):
    model, few = load_trained("lenet300"), validation[:1000]
    shapes = {name: layer.weight.shape for name, layer in weighted_layers(model).items()}
    budget = count_macs(model) // 5
    chosen = choose_ranks(rank_scan(model, few, [5, 7, 10, 20, 40, 80]), shapes, budget)
    mixed = factorize(model, chosen)
    even = factorize(model, {"fc1": 43, "fc2": 15, "fc3": 2})  # a fifth of each layer
    assert count_macs(mixed) <= budget and count_macs(even) == pytest.approx(budget, rel=0.02)
    assert loss(mixed, few) < 0.5 * loss(even, few)


@pytest.mark.parametrize(
    "call, part",
    [
        *(
            (lambda model, data, rank=rank: rank_scan(model, data, [4, rank]), "rank_scan(): 'ranks' must be a whole")
            for rank in (0, 4.5, True, "4", None)
        ),
        *(
            (lambda model, data, ranks=ranks: rank_scan(model, data, ranks), "rank_scan(): 'ranks' must be a list")
            for ranks in (4, None, [])
        ),
        (lambda model, data: rank_scan(model, data, [4], nearest="outputs"), "rank_scan(): 'nearest' must be one of"),
        (lambda model, data: rank_scan(model, data, [4], nearest="output"), "rank_scan(): 'images' must be given"),
        (lambda model, data: rank_scan(model, data, [4], data.images[:, :, :9]), "rank_scan(): the model can't read"),
        (lambda model, data: rank_scan(model, data[0], [4]), "rank_scan(): "),
        (lambda *_: choose_ranks({"fc1": {4: 0.1}}, {"fc1": (9, 9)}, 0), "choose_ranks(): 'budget' must be a whole"),
        *(
            (lambda *_, shapes=shapes: choose_ranks({"fc1": {4: 0.1}}, shapes, 9), "choose_ranks(): 'shapes' must be")
            for shapes in (None, [1], {"fc1": 9}, {"fc1": (9,)})
        ),
        (lambda *_: choose_ranks({"fc1": {4: 0.1}}, {"fc1": (9, "9")}, 9), "'shape of fc1' must be a whole number"),
        (lambda *_: choose_ranks({"fc1": {0: 0.1}}, {"fc1": (9, 9)}, 9), "'rank in the scan' must be a whole number"),
        (lambda *_: choose_ranks(None, {"fc1": (9, 9)}, 9), "{layer: {rank: rise}}, as rank_scan() gives it."),
        (lambda *_: choose_ranks({"fc1": {4: 0.1}}, {"fc2": (9, 9)}, 9), "'layer of the scan' must be one of fc2."),
    ],
)
def test_bad_input_about_ranks_is_named(call, part, validation):
    with pytest.raises(ParameterError) as error:
        call(load_trained("mlp128"), validation[:50])
    assert part in str(error.value), str(error.value)
