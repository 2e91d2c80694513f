"""The weights of any network are found by name, and whatever transforms them works on all, composes and holds."""

import copy
import threading
import warnings
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from own_networks import NETWORKS, WHOLE, own_network
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils import prune as torch_prune
from torch.utils.data import DataLoader, TensorDataset

from kd_lab.compression import bit_scan, sensitivity_scan
from kd_lab.compression.stages import FineTune, Prune, Quantize, Share, with_masks
from kd_lab.cost import count_macs, count_nonzeros, count_parameters, file_bytes
from kd_lab.errors import ParameterError
from kd_lab.evaluation import accuracy
from kd_lab.formats import load_network, save_network
from kd_lab.networks import evaluation_mode, layers, tracing, weights
from kd_lab.networks.copies import copied
from kd_lab.networks.layers import Weight, describe, weighted_layers
from kd_lab.networks.permanent import make_permanent, without
from kd_lab.networks.predictions import (
    BATCH_SIZE,
    check_same_answers,
    example_images,
    predict,
    predict_by_batch,
    record,
)
from kd_lab.networks.zoo import MODELS, build_architecture, build_model, small_student
from kd_lab.penalties import group_lasso_penalty, l1_penalty, l2_penalty, match_parameters, used_parameters
from kd_lab.pruning import (
    IMPORTANCES,
    Mask,
    average_gradients,
    channel_groups,
    importances,
    prune,
    prune_channels,
    prune_layer_adaptive,
    prune_n_m,
    set_masks,
)
from kd_lab.quantization import Quantizer, quantize_model, quantize_weights, share_weights, ternarize_weights
from kd_lab.training import train

IMAGES = torch.randn(200, 1, 28, 28, generator=torch.Generator().manual_seed(0))
DATA = IMAGES, torch.arange(200) % 10


class Cell(nn.Module):
    """A module of two weights of other names, as a recurrent cell has them."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight_in = nn.Parameter(torch.randn(12, 784, generator=generator) / 28)
        self.weight_on = nn.Parameter(torch.randn(12, 12, generator=generator) / 4)

    def forward(self, x):
        return torch.tanh(torch.tanh(x @ self.weight_in.T) @ self.weight_on.T)


class Pairs(nn.Module):
    """Every pair of twelve units, in a weight of three dimensions."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(2)
            self.pairs = nn.Bilinear(12, 12, 10)

    def forward(self, x):
        return self.pairs(x, x)


NAMES = ["1.weight_in", "1.weight_on", "2.pairs"]


@pytest.fixture
def model(monkeypatch):
    """A network without any Linear layer or convolution, whose modules the kit has been told of."""
    known, told = layers._weighted_tensors, {Cell: ("weight_in", "weight_on"), nn.Bilinear: ("weight",)}

    def tensors(module):
        return told.get(parametrize.type_before_parametrizations(module)) or known(module)

    monkeypatch.setattr(layers, "_weighted_tensors", tensors)
    monkeypatch.setattr(tracing, "WEIGHTED", (*layers.WEIGHTED, Cell))
    return nn.Sequential(nn.Flatten(), Cell(), Pairs())


def zeros(model):
    return {name: weight.value == 0 for name, weight in weights(model).items()}


def plain_values(model):
    return {name: weight.value.detach() for name, weight in weights(make_permanent(model)).items()}


def test_the_kit_knows_nothing_of_other_kinds_by_itself():
    with pytest.raises(
        ParameterError,
        match="'model' must have a Linear layer, a convolution, an embedding, a recurrent layer or attention",
    ):
        weights(nn.Sequential(nn.Flatten(), Cell(), Pairs()))


def test_weights_are_named_by_their_module_and_by_themselves(model):
    found = weights(model)
    assert list(found) == NAMES and list(weighted_layers(model)) == ["1", "2.pairs"]
    assert found["1.weight_on"].value is model[1].weight_on and found["2.pairs"].value is model[2].pairs.weight
    assert [describe(module) for module in weighted_layers(model).values()] == ["Cell", "Bilinear"]
    assert describe(weighted_layers(prune(model, 0.5))["2.pairs"]) == "Bilinear"


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_any_weight_has_an_importance(model, importance):
    found = importances(model, importance, DATA)
    gradients = average_gradients(model, DATA)
    by_hand = {
        "magnitude": lambda w, g: w.abs(),
        "gradient": lambda w, g: g.abs(),
        "weight_gradient": lambda w, g: (w * g).abs(),
    }
    for name, weight in weights(model).items():
        assert found[name].shape == weight.value.shape
        if importance in by_hand:
            assert torch.equal(found[name], by_hand[importance](weight.value, gradients[name]))
    F.cross_entropy(model(IMAGES), DATA[1]).backward()
    assert all(torch.allclose(gradients[name], weight.value.grad, atol=1e-6) for name, weight in weights(model).items())


@pytest.mark.parametrize(
    "change, share",
    [
        (lambda model: prune(model, 0.7), 0.7),
        (lambda model: prune(model, 0.7, "weight_gradient", "per_layer", data=DATA), 0.7),
        (lambda model: prune_layer_adaptive(model, 0.7), 0.7),
        (prune_n_m, 0.5),
    ],
)
def test_any_weight_is_pruned_and_stays_so_while_it_is_trained(model, change, share):
    pruned = change(model)
    masks = zeros(pruned)
    total = sum(mask.numel() for mask in masks.values())
    assert abs(sum(int(mask.sum()) for mask in masks.values()) - share * total) <= 3
    assert all(weight.parametrization(Mask) is not None for weight in weights(pruned).values())
    tuned, _ = train(pruned, DATA, F.cross_entropy, validation=DATA, epochs=1, weight_decay=0.1, progress=False)
    for name, mask in zeros(tuned).items():
        assert torch.equal(mask, masks[name])
        assert not torch.equal(plain_values(tuned)[name], plain_values(pruned)[name])
    assert not any(mask.any() for mask in zeros(model).values())  # the one that was given is as it was


def test_one_weight_of_a_module_can_be_pruned_by_its_name(model):
    shares = {
        name: mask.float().mean().item()
        for name, mask in zeros(prune(model, {"1.weight_on": 0.5}, scope="per_layer")).items()
    }
    assert shares == {"1.weight_in": 0, "1.weight_on": 0.5, "2.pairs": 0}
    set_masks(model, {"1.weight_in": torch.zeros(12, 784).bool()})
    assert zeros(model)["1.weight_in"].all() and not zeros(model)["1.weight_on"].any()


@pytest.mark.parametrize(
    "change", [lambda model: quantize_weights(model, 2), ternarize_weights, lambda model: share_weights(model, 1)]
)
def test_any_weight_is_quantized_and_masks_hold(model, change):
    for name, weight in weights(change(prune(model, 0.5, scope="per_layer"))).items():
        rows = weight.value.flatten(1)
        assert max(len(row.unique()) for row in rows) <= 4
        assert (weight.value == 0).float().mean() >= 0.5 - 1e-3, name


def test_a_quantizer_is_replaced_in_one_weight_of_a_module_and_the_whole_weights_come_back(model):
    rough = quantize_weights(model, {"1.weight_in": 1, "1.weight_on": 2})
    other = quantize_weights(rough, {"1.weight_on": 2})
    assert torch.equal(plain_values(other)["1.weight_in"], plain_values(model)["1.weight_in"])
    assert torch.equal(plain_values(other)["1.weight_on"], plain_values(rough)["1.weight_on"])
    masked = prune(rough, 0.5)
    lifted = without(masked, Quantizer)
    assert all(torch.equal(mask, zeros(lifted)[name]) for name, mask in zeros(prune(rough, 0.5)).items())
    for name, value in plain_values(without(rough, Quantizer)).items():
        assert torch.equal(value, plain_values(model)[name])


def test_penalties_are_those_of_all_weights(model):
    for each in (model, prune(model, 0.5)):
        values = plain_values(each)
        assert l1_penalty(each).item() == pytest.approx(
            sum(value.abs().sum().item() for value in values.values()), rel=1e-5
        )
        assert l2_penalty(each).item() == pytest.approx(
            sum(value.square().sum().item() for value in values.values()), rel=1e-5
        )
        expected = sum(784**0.5 * row.norm().item() for row in values["1.weight_in"])
        assert group_lasso_penalty(each, ["1.weight_in"]).item() == pytest.approx(expected, rel=1e-5)
        apart = sum((values[name] - value).abs().sum().item() for name, value in plain_values(model).items())
        assert match_parameters(model, 1)(each).item() == pytest.approx(apart, rel=1e-5, abs=1e-5)
    assert {"1.weight_in", "1.weight_on", "2.pairs.weight", "2.pairs.bias"} == set(used_parameters(prune(model, 0.5)))


def test_the_stages_of_a_recipe_keep_what_was_pruned(model):
    asked = []

    def fine_tune(model, epochs):
        asked.append({name: mask.float().mean().item() for name, mask in zeros(model).items()})
        return train(model, DATA, F.cross_entropy, validation=DATA, epochs=epochs, progress=False)[0]

    pruned = Prune({name: 0.5 for name in NAMES}, steps=1, epochs=1)(model, fine_tune)
    plain = make_permanent(pruned)
    for stage in (FineTune(1), Quantize(3, epochs=1), Share({name: 2 for name in NAMES}, epochs=1)):
        finished = stage(with_masks(plain), fine_tune)
        assert all(torch.equal(mask, zeros(finished)[name]) for name, mask in zeros(plain).items()), stage
    assert len(asked) == 4 and asked[0] == pytest.approx(dict.fromkeys(NAMES, 0.5), abs=1e-2)


def test_scans_go_over_all_weights(model):
    assert list(sensitivity_scan(model, DATA, [0.5])) == list(bit_scan(model, DATA, [2])) == NAMES


def test_a_file_keeps_weights_of_any_name(model, tmp_path):
    changed = quantize_weights(prune(model, 0.5), {"1.weight_in": 2, "2.pairs": 3})
    save_network(tmp_path / "file", changed)
    loaded = load_network(tmp_path / "file", copy.deepcopy(model))
    assert torch.equal(predict(loaded, IMAGES), predict(changed, IMAGES))


def test_channels_of_other_kinds_stay_and_it_is_said_why(model):
    assert channel_groups(model) == {}
    for name, module in (("1", "'1' (Cell)"), ("2.pairs", "'2.pairs' (Bilinear)")):
        with pytest.raises(ParameterError) as error:
            prune_channels(model, {name: 0.5})
        assert f"the channels of layer {name!r} can't be removed safely: they reach {module}" in str(error.value)
    behind = nn.Sequential(nn.Flatten(), nn.Linear(784, 784), Cell(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 10))
    assert list(channel_groups(behind)) == ["3"]


@pytest.mark.parametrize("images", ["0", None, IMAGES[0], IMAGES.long(), torch.zeros(3, 5)])
def test_images_that_a_network_cannot_read_are_named(images):
    with pytest.raises(ParameterError, match=r"predict\(\): ('images' must be a tensor|the model can't read images)"):
        predict(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 26 * 26, 10)), images)


def test_each_module_gets_its_own_mode_back():
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(3)).train()
    model[1].eval()
    with pytest.raises(RuntimeError), evaluation_mode(model):
        assert not any(module.training for module in model.modules())
        raise RuntimeError
    assert [module.training for module in model.modules()] == [True, True, False]


# ---- parametrizations


class Halve(nn.Module):
    def forward(self, weight):
        return weight / 2


@pytest.mark.parametrize("name", MODELS)
def test_made_permanent_a_model_answers_the_same_and_is_an_ordinary_one(name, validation):
    pruned = prune(build_model(name), 0.4)
    permanent = make_permanent(pruned)
    assert not any(parametrize.is_parametrized(module) for module in permanent.modules())
    assert permanent.state_dict().keys() == build_model(name).state_dict().keys()
    assert torch.equal(predict(permanent, validation.images[:50]), predict(pruned, validation.images[:50]))
    assert Weight(pruned.fc1).parametrization(Mask) is not None  # the model that was given is left as it was


def test_parametrizations_compose_in_their_order():
    layer = nn.Linear(3, 2)
    plain = layer.weight.detach().clone()
    parametrize.register_parametrization(layer, "weight", Halve())
    model = prune(nn.Sequential(layer), 0.5)
    assert Weight(model[0]).parametrization(Halve) is model[0].parametrizations.weight[0]
    mask = Weight(model[0]).parametrization(Mask).mask
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
            set_masks(model, {"fc1": mask})
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
        "conv1": "Conv2d 1-16, 3×3",
        "conv2": "Conv2d 16-32, 3×3",
        "fc1": "Linear 1568-128",
        "fc2": "Linear 128-10",
    }
    assert len(weighted_layers(build_model("resnet"))) == 7


@pytest.mark.parametrize(
    "model, part",
    [(nn.ReLU(), "a recurrent layer or attention. Got ReLU"), ("cnn", "Did you mean load_trained(name)?")],
)
def test_what_has_no_weights_is_refused(model, part):
    with pytest.raises(ParameterError) as error:
        prune(model, 0.5)
    assert part in str(error.value) and str(error.value).startswith("prune()")


def test_the_weights_are_computed_once_for_all_batches_with_the_same_answers(validation, monkeypatch):
    model, calls = quantize_weights(build_model("mlp128", seed=0), 4), []
    kind = type(model.fc1.parametrizations.weight[0])
    quantize = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, weight: calls.append(1) or quantize(self, weight))
    answers = predict(model, validation.images)
    assert len(calls) == len(weights(model)) and len(validation.images) > BATCH_SIZE
    assert torch.equal(answers, torch.cat([model(batch) for batch in validation.images.split(BATCH_SIZE)]))


def test_a_hook_sees_the_network_that_it_was_put_on(validation):
    model, seen = quantize_weights(build_model("mlp128", seed=0), 4), set()
    model.fc1.register_forward_hook(lambda module, *_: seen.add(module))
    predict(model, validation.images)
    assert seen == {model.fc1}


def test_a_network_that_keeps_a_tensor_with_a_gradient_still_answers(validation):
    model = quantize_weights(build_model("mlp128", seed=0), 4)
    model.last = model(validation.images[:2])  # which can't be copied
    assert predict(model, validation.images).shape == (len(validation.images), 10)


def test_made_permanent_a_frozen_weight_stays_frozen():
    model = quantize_weights(build_model("mlp128", seed=0), 4)
    model.fc1.parametrizations.weight.original.requires_grad_(False)
    plain = make_permanent(model)
    assert not plain.fc1.weight.requires_grad and plain.fc2.weight.requires_grad


def test_calls_are_recorded_in_the_order_of_running_and_nothing_stays_behind():
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(), nn.Linear(3, 2), nn.Linear(2, 2))
    model.forward = lambda x: model[0](model[1](model[2](x)[:, :1].repeat(1, 3)))
    x = torch.rand(200, 3)
    calls = record(model, ["0", "3", "2"], x, lambda inputs, output: (*inputs, output))
    assert list(calls) == ["2", "0"]  # "3" is never run
    (first, last), (taken, given) = calls["2"], calls["0"][0]
    assert torch.equal(torch.cat([first[0], last[0]]), x) and torch.equal(given, model[0](taken))  # without dropout
    assert not any(module._forward_hooks for module in model.modules())


class Stubborn(nn.Module):
    """Drop out by a flag of its own, which only its own train() and eval() set."""

    def __init__(self):
        super().__init__()
        self.fc, self.dropping = nn.Linear(784, 10), True

    def train(self, mode=True):
        self.dropping = mode
        return super().train(mode)

    def forward(self, x):
        return self.fc(F.dropout(x.flatten(1), training=self.dropping))


def test_a_class_with_a_way_of_its_own_to_evaluation_is_asked_for_it_and_gets_its_mode_back():
    model = nn.Sequential(Stubborn(), nn.Identity())
    model[1].eval()
    assert torch.equal(predict(model, IMAGES[:9]), predict(model, IMAGES[:9]))
    assert model[0].dropping and model[0].training and model.training and not model[1].training


class Keeping(nn.Module):
    """Keep what a learner's class may keep: the last activation, alone and in a list, and a lock."""

    def __init__(self):
        super().__init__()
        self.fc, self.lock, self.seen = nn.Linear(784, 10), threading.Lock(), [{}]

    def forward(self, x):
        self.last = self.fc(x.flatten(1))
        self.seen[0]["logits"] = self.last
        return self.last


def test_what_a_class_keeps_does_not_stand_in_the_way_of_a_copy():
    model = nn.Sequential(Keeping())
    expected = model(IMAGES[:9])
    copies = copied(model), prune(model, 0.5), make_permanent(model)
    assert torch.equal(copies[0][0].last, expected) and copies[0][0].seen[0]["logits"] is copies[0][0].last
    assert copies[0][0].last.grad_fn is None and model[0].last is expected and expected.requires_grad
    assert copies[0][0].lock is model[0].lock and torch.equal(predict(copies[2], IMAGES), predict(model, IMAGES))


def test_what_cannot_be_copied_is_named():
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    model[1].weight = nn.Parameter(model[1].weight.detach().to_sparse())
    with pytest.raises(ParameterError, match=r"^make_permanent\(\): 'model' must be one that can be copied: "):
        make_permanent(model)


@pytest.mark.parametrize("training", [True, False])
def test_made_permanent_a_weight_is_that_of_evaluation(training):
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    parametrize.register_parametrization(model[1], "weight", nn.Dropout(0.5))
    model.train(training)
    assert torch.equal(make_permanent(model)[1].weight, model[1].parametrizations.weight.original)
    assert model.training is model[1].parametrizations.weight[0].training is training


def test_rewritten_networks_are_compared_and_what_differs_is_refused():
    model = build_model("mlp128")
    check_same_answers(build_model("mlp128"), model, IMAGES, "changed")
    with pytest.raises(ParameterError, match="can't be folded: its answers would not be the same"):
        check_same_answers(build_model("mlp128", seed=1), model, IMAGES, "folded")
    with pytest.raises(ParameterError, match="can't be folded: its answers have another shape"):
        check_same_answers(nn.Sequential(model, nn.Linear(10, 3)), model, IMAGES, "folded")


# ---- layers of every kind


CHANGES = {
    "prune": lambda model: prune(model, 0.5, scope="per_layer"),
    "quantize": lambda model: quantize_weights(model, 4),
    "ternarize": ternarize_weights,
    "share": lambda model: share_weights(model, 2),
}
QUANTIZERS = [change for name, change in CHANGES.items() if name != "prune"]


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.filterwarnings("ignore:.* stay whole")
@pytest.mark.parametrize("name", NETWORKS)
def test_any_kind_of_layer_is_changed_settled_and_answers_as_plain_torch_does(name, change):
    model, images = own_network(name)
    before = copy.deepcopy(model.state_dict())
    changed = change(model)
    plain = make_permanent(changed)
    by_hand = copy.deepcopy(model).eval()  # the same weights in a network that knows nothing of the kit
    for title, weight in weights(changed).items():
        assert not torch.equal(weight.value, weights(model)[title].value)
        with torch.no_grad():
            weights(by_hand)[title].value.copy_(weight.value)
    with torch.no_grad():
        expected = by_hand(images)
    for each in (changed, plain):
        torch.testing.assert_close(predict(each, images), expected)
    assert plain.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in before.items())


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_that_are_left_whole_are_named_once(name):
    model, _ = own_network(name)
    for change in QUANTIZERS if name in WHOLE else ():
        with pytest.warns(UserWarning, match="stay whole") as caught:
            change(model)
        assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if name in WHOLE else "error")
        for change in QUANTIZERS:
            change(model)


def test_the_warning_says_which_weights_and_in_whose_name():
    with pytest.warns(UserWarning) as caught:
        quantize_weights(own_network("Bilinear")[0], 4)
    text = str(caught[0].message)
    assert text.startswith("quantize_weights(): pairs.weight (Bilinear) stay whole: ") and "bias" not in text
    with pytest.warns(UserWarning, match=r"share_weights\(\): pairs.weight \(Bilinear\) stay whole"):
        share_weights(own_network("Bilinear")[0], 2)


def test_layers_of_every_kind_are_described_with_their_sizes():
    found = {name: describe(next(iter(weighted_layers(own_network(name)[0]).values()))) for name in NETWORKS}
    assert found["Conv1d"] == "Conv1d 2-6, 3" and found["Conv3d"] == "Conv3d 1-3, 2×2×2"
    assert found["Conv2d"] == "Conv2d 2-6, 3×2" and found["depthwise"] == "Conv2d 4-4, 3×3, 4 groups"
    assert found["ConvTranspose2d"] == "ConvTranspose2d 4-6, 2×2, 2 groups"
    assert found["Embedding"] == "Embedding 12-5" and found["EmbeddingBag"] == "EmbeddingBag 12-5"


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_tied_weights_are_changed_together_and_stay_tied(change):
    model, images = own_network("tied")
    changed = change(change(model))
    assert list(weights(changed)) == ["words"] and list(weighted_layers(changed)) == ["words", "out"]
    assert torch.equal(changed.words.weight, changed.out.weight)
    plain = make_permanent(changed)
    assert plain.words.weight is plain.out.weight and len(list(plain.parameters())) == 1
    assert all(each.words.weight is each.out.weight for each in (without(changed, nn.Module), copied(model)))
    trained = train(changed, (images, images[:, 0] % 12), F.cross_entropy, validation=(images, images[:, 0]), epochs=1)
    assert torch.equal(trained[0].words.weight, trained[0].out.weight)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_network_with_a_parametrized_bias_still_runs_when_another_was_made_of_it(change):
    model, images = own_network("Linear")
    parametrize.register_parametrization(model[0], "bias", Halve())
    expected = predict(model, images)
    changed = change(model)
    assert torch.equal(predict(model, images), expected) and parametrize.is_parametrized(changed[0], "bias")
    torch.testing.assert_close(predict(make_permanent(changed), images), predict(changed, images))


def test_weights_whose_parametrizations_differ_are_not_tied():
    model, _ = own_network("tied")
    parametrize.register_parametrization(model.out, "weight", Halve())
    assert list(weights(model)) == ["words", "out"]
    plain = make_permanent(model)
    assert torch.equal(plain.out.weight, model.words.weight / 2) and plain.words.weight is not plain.out.weight


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "change", [nn.Dropout(0.5), nn.utils.parametrizations.spectral_norm], ids=["dropout", "spectral norm"]
)
def test_a_parametrized_weight_is_read_in_evaluation_mode(change, training, tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    if isinstance(change, nn.Module):
        parametrize.register_parametrization(model[1], "weight", change)
    else:
        change(model[1])
    expected = copy.deepcopy(model).eval()[1].weight.detach()
    model.train(training)
    before = copy.deepcopy(model.state_dict())
    quantized = quantize_weights(model, 8)
    save_network(tmp_path / "file", quantized)
    again = quantize_weights(make_permanent(model), 8)
    assert torch.equal(make_permanent(quantized)[1].weight, again[1].weight)
    for value in (weights(model)["1"].value, importances(model, "magnitude")["1"], make_permanent(model)[1].weight):
        assert torch.equal(value.abs(), expected.abs())
    assert {module.training for module in model.modules()} == {training}
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in before.items())


# ---- what a learner's own network may do


class Own(nn.Module):
    """A network whose forward is the given function of itself and the images."""

    def __init__(self, forward):
        super().__init__()
        self.fc, self.function = nn.Linear(784, 10), forward

    def forward(self, x):
        return self.function(self, x)


def plainly(model, x):
    return model.fc(x.flatten(1))


def failing(error):
    def forward(model, x):
        raise error

    return Own(forward)


class TwoInputs(Own):
    def forward(self, x, lengths):
        return x


REFUSED = {  # the network, and what the one sentence says
    "AssertionError": (failing(AssertionError("only on Mondays")), "The layer said: AssertionError: only on Mondays"),
    "AssertionError alone": (failing(AssertionError()), "The layer said: AssertionError"),
    "KeyError": (failing(KeyError("mask")), "The layer said: KeyError: 'mask'"),
    "AttributeError": (Own(lambda model, x: model.fc3(x)), "AttributeError: 'Own' object has no attribute 'fc3'"),
    "ZeroDivisionError": (Own(lambda model, x: 1 / 0), "ZeroDivisionError: division by zero"),
    "a tuple": (Own(lambda model, x: (plainly(model, x), x)), "must answer 3 images with a tensor (3, …). Got tuple."),
    "a dict": (Own(lambda model, x: {"logits": x}), "must answer 3 images with a tensor (3, …). Got dict."),
    "nothing": (Own(lambda model, x: None), "must answer 3 images with a tensor (3, …). Got NoneType."),
    "one number": (Own(lambda model, x: x.sum()), "must answer 3 images with a tensor (3, …). Got shape ()."),
    "mixed images": (Own(lambda model, x: x.reshape(-1, 98)), "a tensor (3, …). Got shape (24, 98)."),
    "two inputs": (TwoInputs(plainly), "Its forward must take one argument, the images."),
    "no Flatten": (nn.Linear(784, 10), "(1, 28, 28) and torch.float32. Put nn.Flatten() in front of its layers."),
    "double": (nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).double(), "Give images.to(torch.float64)."),
    "half": (nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).half(), "Give images.to(torch.float16)."),
}


@pytest.mark.parametrize("model, words", REFUSED.values(), ids=REFUSED)
def test_what_a_network_cannot_do_is_said_in_one_sentence_with_its_own_error_as_the_cause(model, words):
    with pytest.raises(ParameterError) as error:
        predict(model, IMAGES[:3])
    assert str(error.value).startswith("predict(): the model ") and words in str(error.value)
    assert isinstance(error.value.__cause__, Exception) == ("must answer" not in str(error.value))
    assert "the kit's networks take" not in str(error.value)  # for these images are theirs
    assert model.training


@pytest.mark.parametrize(
    "images, words",
    [
        (IMAGES.numpy(), "Got ndarray. Give torch.as_tensor(images, dtype=torch.float32)."),
        (list(IMAGES), "Got list. Give torch.as_tensor(images, dtype=torch.float32), or of tensors torch.stack("),
        (DATA, "Got tuple. Give its first part"),
        (DataLoader(TensorDataset(*DATA)), "Got DataLoader. Give torch.cat([images for images, *_ in loader])."),
    ],
)
def test_what_would_make_a_tensor_is_said(images, words):
    for function in (predict, lambda model, images: example_images(images)):
        with pytest.raises(ParameterError) as error:
            function(build_model("mlp128"), images)
        assert words in str(error.value)


def test_images_without_a_channel_get_the_line_that_gives_them_one():
    with pytest.raises(ParameterError, match=r"Give images.unsqueeze\(1\), which have a channel. The layer said"):
        predict(build_model("cnn"), IMAGES[:3, 0])


def test_no_images_have_no_answers():
    assert predict(build_model("cnn"), IMAGES[:0]).shape == (0, 10)
    with pytest.raises(ParameterError, match=r"predict\(\): the model can't read images"):
        predict(Own(lambda model, x: x.view(len(x), -1)), IMAGES[:0])


def test_lazy_layers_must_have_run_once():
    model = nn.Sequential(nn.LazyConv2d(3, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(10))
    bare = nn.Linear(784, 10, device="meta")
    for function in (*CHANGES.values(), make_permanent, count_macs, count_nonzeros, file_bytes):
        for network, names in ((model, "0.weight, 0.bias, 1.weight"), (bare, "weight, bias")):
            with pytest.raises(ParameterError, match=rf"'model' must have values\. Got {names}.* call predict\("):
                function(network)
    predict(model, IMAGES[:2])
    assert weights(prune(model, 0.5)).keys() == {"0", "3"}


TRICKS = {  # what makes a weight one that can't be changed, and what to call
    "prune": (lambda layer: torch_prune.l1_unstructured(layer, "weight", 0.5), "Call make_permanent(model) first."),
    "weight_norm": (nn.utils.weight_norm, "Call make_permanent(model) first."),
    "spectral_norm": (nn.utils.spectral_norm, "Call make_permanent(model) first."),
    "sparse": (
        lambda layer: setattr(layer, "weight", nn.Parameter(layer.weight.detach().to_sparse())),
        "must be dense. Got torch.sparse_coo. Use its to_dense().",
    ),
}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("trick, words", TRICKS.values(), ids=TRICKS)
def test_weights_that_others_compute_are_named_with_what_to_call(trick, words):
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    trick(model[1])
    for change in (*CHANGES.values(), l1_penalty):
        with pytest.raises(ParameterError) as error:
            change(model)
        assert "the weight of layer '1' must be" in str(error.value) and words in str(error.value)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ["prune", "weight_norm", "spectral_norm", "bias", "twice", "LSTM"])
def test_made_permanent_what_torch_computes_by_a_hook_is_an_ordinary_weight(name):
    model, images = own_network("LSTM") if name == "LSTM" else (nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), IMAGES)
    layer = model.layer if name == "LSTM" else model[1]
    if name in TRICKS:
        TRICKS[name][0](layer)
    if name == "LSTM":
        nn.utils.weight_norm(layer, "weight_hh_l0")
    if name == "twice":
        torch_prune.l1_unstructured(layer, "weight", 0.5)
        torch_prune.random_structured(layer, "weight", 0.2, dim=0)
    if name == "bias":
        torch_prune.l1_unstructured(layer, "bias", 4)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    permanent = make_permanent(model)
    torch.testing.assert_close(predict(permanent, images), predict(model, images))
    plain, _ = own_network("LSTM") if name == "LSTM" else (nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), IMAGES)
    assert permanent.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    assert not any(module._forward_pre_hooks for module in permanent.modules()) and prune(permanent, 0.5)


class Merging(nn.Linear):
    """Add a product of two matrices to its weight in evaluation mode, and take it away again, as loralib does."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.down, self.up = nn.Parameter(torch.randn(2, inputs)), nn.Parameter(torch.randn(outputs, 2))
        self.merged = False

    def train(self, mode=True):
        super().train(mode)
        if self.merged is mode:
            self.weight.data += (-1 if mode else 1) * self.up @ self.down
        self.merged = not mode
        return self

    def forward(self, x):
        return F.linear(x, self.weight, self.bias) + (0 if self.merged else x @ self.down.T @ self.up.T)


def test_a_weight_that_changes_with_the_mode_is_named_for_a_mask_would_lose_it():
    model = nn.Sequential(nn.Flatten(), Merging(784, 10))
    for mode in (True, False):
        for change in CHANGES.values():
            with pytest.raises(ParameterError, match=r"weight of layer '1' must be the same in training and in eval"):
                change(model.train(mode))
    assert count_macs(model.train(), IMAGES) == 7840  # those of merging come once, not with each image


def test_a_class_with_a_mode_of_its_own_is_changed_as_any_other():
    class Quiet(nn.Linear):
        def train(self, mode=True):
            self.noise = 0.1 * mode
            return super().train(mode)

    assert count_nonzeros(prune(nn.Sequential(nn.Flatten(), Quiet(784, 10)), 0.5)) == 3930


class Kept(nn.Module):
    """Keep functions that were written with its own modules, as many networks do."""

    def __init__(self, way):
        super().__init__()
        self.first, self.last, self.step, self.steps = nn.Linear(784, 20), nn.Linear(20, 10), nn.Identity(), []
        if way == "a lambda in a module":
            self.step.forward = lambda x: self.last(x)
        if way == "a default":
            self.step.forward = lambda x, layer=self.last: F.linear(x, 2 * layer.weight)
        if way == "a list":
            self.steps = [lambda x: self.last(x).tanh()]
        if way == "a hook that keeps a feature":
            self.first.register_forward_hook(lambda _layer, _inputs, output: setattr(self, "feature", output))
            self.step.register_forward_hook(lambda _layer, _inputs, _output: self.last(self.feature))

    def forward(self, x):
        x = self.step(self.first(x.flatten(1)).relu())
        for step in self.steps:
            x = step(x)
        return x


@pytest.mark.parametrize("way", ["a lambda in a module", "a default", "a list", "a hook that keeps a feature"])
def test_functions_that_a_network_keeps_run_the_modules_of_a_copy(way):
    model, expected = Kept(way), Kept(way)
    halved = copied(model)
    with torch.no_grad():
        halved.last.weight.mul_(0.5)
    expected.load_state_dict(halved.state_dict())
    assert torch.equal(predict(halved, IMAGES), predict(expected, IMAGES))
    trained, _ = train(model, DATA, F.cross_entropy, validation=DATA, epochs=1, progress=False)
    assert model.last.weight.grad is None and not torch.equal(trained.last.weight, model.last.weight)


def test_a_function_that_knows_no_module_stays_the_same():
    seen, model = [], nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    model[1].register_forward_hook(lambda _layer, _inputs, output: seen.append(output))
    assert [*copied(model)[1]._forward_hooks.values()] == [*model[1]._forward_hooks.values()]
    predict(copied(model), IMAGES[:5])
    assert len(seen) == 1


def test_what_a_subclass_adds_is_named_by_its_own_class():
    class Adapted(nn.Linear):
        def __init__(self):
            super().__init__(784, 10)
            self.down = nn.Parameter(torch.randn(2, 784))

    with pytest.warns(UserWarning, match=r"^prune\(\): 1.down \(Adapted\) stay whole"):
        prune(nn.Sequential(nn.Flatten(), Adapted()), 0.5)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_scripted_network_answers_and_is_refused_where_its_weights_are_changed():
    plain = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    model = torch.jit.script(plain)
    assert torch.equal(predict(model, IMAGES), predict(plain, IMAGES))
    for change in CHANGES.values():
        with pytest.raises(ParameterError, match=r"which torch\.jit made: give the network that it was made of"):
            change(model)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_recorded_is_what_was_there_whatever_changes_it_afterwards(name):
    model, images = own_network(name)
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    layer = "fc" if name == "transformer" else next(iter(weighted_layers(model)))
    kept = record(model, [layer], images, lambda inputs, output: (*inputs, output))[layer]
    for taken, given in kept:
        with torch.no_grad():
            again = copy.deepcopy(model).eval().get_submodule(layer)(taken)
        torch.testing.assert_close(given, again)


def test_the_input_of_a_module_that_changes_it_is_kept_as_it_came():
    model = nn.Sequential(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 3)), nn.ReLU(inplace=True))
    x = torch.randn(4, 3)
    ((taken, given),) = record(model, ["0"], x.clone(), lambda inputs, output: (*inputs, output))["0"]
    assert torch.equal(taken, x) and torch.equal(given, model[0][1](x.relu())) and (given < 0).any()


@pytest.mark.parametrize("change", QUANTIZERS)
def test_what_is_made_within_inference_mode_can_be_trained(change, few, tmp_path):
    model = build_model("mlp128")
    with torch.inference_mode():
        networks = [change(model), make_permanent(change(model)), copied(model), build_model("mlp128")]
        save_network(tmp_path / "file", change(model))
        networks += [load_network(tmp_path / "file"), small_student()]
    for each in networks:
        F.cross_entropy(each(few.images[:9]), few.labels[:9]).backward()
        assert any(parameter.grad is not None for parameter in each.parameters())


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


OTHER_MODELS = sorted({*MODELS, "784-30-10"} - {"lenet5"})


@pytest.mark.parametrize("name", ["lenet5", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHER_MODELS)])
def test_another_default_dtype_changes_nothing(name, tmp_path, request):
    def results():
        model = build_architecture(name)
        changed = [change(model) for change in QUANTIZERS]
        for place, each in enumerate(changed):
            save_network(tmp_path / f"{place}", each)
        found = [count_macs(model), *(load_network(tmp_path / f"{place}") for place in range(len(changed)))]
        return [model, *changed, *found[1:]], found[0]

    expected, macs = results()
    request.getfixturevalue("double")
    found, again = results()
    assert macs == again
    for each, other in zip(found, expected, strict=True):
        for key, tensor in each.state_dict().items():
            assert tensor.dtype == other.state_dict()[key].dtype and torch.equal(tensor, other.state_dict()[key]), key


@pytest.mark.parametrize("surround", [nullcontext, torch.inference_mode], ids=["plain", "inference_mode"])
def test_a_step_in_place_does_not_change_the_images_of_the_caller(surround):
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(784, 10))
    with surround():
        images, labels = IMAGES.clone(), DATA[1].clone()
        predict(model, images)
        accuracy(model, (images, labels))
        train(model, (images, labels), F.cross_entropy, validation=(images, labels), epochs=1, progress=False)
        average_gradients(model, (images, labels))
        count_macs(model, images)
        channel_groups(model, images)
        quantize_model(model, images)
    assert torch.equal(images, IMAGES)


@pytest.mark.parametrize(
    "model", [build_model("mlp128"), nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(784, 10))]
)
def test_between_two_batches_nothing_but_the_mode_is_other_than_before(model):
    images = torch.randn(300, 1, 28, 28)
    before, answers = images.clone(), []
    for answer in predict_by_batch(model.train(), images):
        assert torch.is_grad_enabled() and not model.training and images.equal(before)
        answers.append(answer)
    assert model.training and len(answers) == 3
    assert torch.cat(answers).equal(predict(model, images))
    next(predict_by_batch(model, images))
    assert model.training  # though nobody asks for the others


@pytest.mark.parametrize("call", [count_macs, channel_groups, lambda model: prune_channels(model, 0.5)])
def test_a_network_of_other_images_is_told_that_it_needs_some_of_its_own(call):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 10))
    with pytest.raises(ParameterError, match=r"reads others needs some of its own, as 'images' or 'data'\."):
        call(model)
    with pytest.raises(ParameterError) as error:
        predict(model, torch.randn(2, 1, 9, 9))
    assert "of its own" not in str(error.value)


def test_counting_parameters_changes_no_state():
    model = nn.Sequential(nn.Flatten(), nn.utils.parametrizations.spectral_norm(nn.Linear(784, 10)))
    before = copy.deepcopy(model.state_dict())
    assert count_parameters(model) == 7850
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_looking_for_what_would_help_does_not_change_the_images_of_the_caller():
    images = IMAGES.clone()
    with pytest.raises(ParameterError, match=r"Put nn\.Flatten\(\) in front"):
        predict(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(784, 10)), images)
    assert torch.equal(images, IMAGES)
