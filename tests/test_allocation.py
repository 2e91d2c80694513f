"""Scans measure what their definition says; no other sparsities, or bits within the bytes, do better."""

import copy
import itertools
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from own_networks import Tied
from torch import nn

from kd_lab.checkpoints import load_trained
from kd_lab.compression import allocation
from kd_lab.compression.allocation import allocate, bit_scan, choose_bits, scan_layers, sensitivity_scan
from kd_lab.errors import ParameterError
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
