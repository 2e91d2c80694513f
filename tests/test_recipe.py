"""A recipe's stages each do what they say, add up to a small file, and are never lost once they are finished."""

import hashlib
import multiprocessing
import random
import time
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from digits import MNIST
from torch import nn

from kd_lab.compression import Factorize, FineTune, Grid, Prune, PruneUnits, Quantize, Share, compress
from kd_lab.compression import recipe as recipe_module
from kd_lab.compression.stages import with_masks
from kd_lab.cost import count_macs, count_parameters
from kd_lab.data import Mnist
from kd_lab.distillation import DistillationLoss
from kd_lab.errors import ParameterError
from kd_lab.evaluation import accuracy
from kd_lab.factorization import NEAREST, factorize
from kd_lab.formats import grid_codes
from kd_lab.formats.coding import ShortRangeWriter
from kd_lab.formats.kdz import load_packed, pack, unpack
from kd_lab.networks.layers import weighted_layers
from kd_lab.networks.permanent import make_permanent
from kd_lab.networks.predictions import predict
from kd_lab.networks.zoo import build_model, small_student
from kd_lab.pruning import remove_layers

SMALL = Mnist(MNIST.train[:2000], MNIST.validation[:500], MNIST.test[:200])
SETTINGS = dict(learning_rate=3e-3, batch_size=100, progress=False)
STAGES = [Prune(0.9, steps=3, epochs=1), FineTune(2), Share(3, epochs=1)]


@pytest.fixture(scope="module")
def start(student):
    return student


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Time and zip nothing, which would take most of these tests' time."""
    monkeypatch.setattr("kd_lab.cost.latency", lambda *_arguments: 1e-3)
    monkeypatch.setattr("kd_lab.cost.zipped_bytes", lambda *_arguments: 1)


@pytest.fixture(scope="module")
def outcome(start):
    return compress(start, start, SMALL, STAGES, **SETTINGS)


def named(architecture):
    """Return a mlp128 that claims to be another network."""
    model = build_model("mlp128")
    model.architecture = architecture
    return model


def zeros(model):
    return {name: layer.weight == 0 for name, layer in weighted_layers(model).items()}


def test_every_stage_is_a_row_and_each_file_is_smaller(outcome):
    assert list(outcome.models) == ["start", *(f"{place} {stage}" for place, stage in enumerate(STAGES, 1))]
    sizes = list(outcome.bytes.values())
    assert sizes == sorted(sizes, reverse=True) and outcome.complete
    assert sizes == [len(pack(model)) for model in outcome.models.values()]
    assert outcome.ratio == 4 * count_parameters(outcome.models["start"]) / sizes[-1] > 20
    assert "Share(num_bits=3, epochs=1, bias_bits=4)" in repr(outcome) and "<table>" in outcome._repr_html_()


def test_what_was_pruned_stays_pruned_through_all_later_stages(outcome):
    _, pruned, *later = outcome.models.values()
    count = sum(int(each.sum()) for each in zeros(pruned).values())
    assert count == round(0.9 * sum(each.numel() for each in zeros(pruned).values()))
    for model in later:
        assert all(torch.equal(zeros(model)[name], mask) for name, mask in zeros(pruned).items())


@pytest.mark.parametrize(
    "later",
    [
        PruneUnits({"fc1": 0.25}, epochs=1),
        pytest.param(Prune({"fc2": 0.5}, 2, 1), marks=pytest.mark.slow),
        Prune(0.5, 2, 1),
    ],
)
def test_no_later_pruning_brings_a_weight_back(start, later):
    outcome = compress(start, start, SMALL, [Prune(0.9, 1, epochs=1), later], **SETTINGS)
    _, pruned, last = outcome.models.values()
    before, after = (zeros(model)["fc1"] for model in (pruned, last))
    assert after.sum() >= before[before.sum(1).argsort()[-len(after) :]].sum() * 0.9 and after.float().mean() > 0.88
    if len(after) == len(before):
        assert after[before].all()


def test_shared_weights_and_biases_have_few_values_of_half_precision(outcome):
    for layer in weighted_layers(outcome.model).values():
        assert len(layer.weight.unique()) <= 2**3 + 1 and len(layer.bias.unique()) <= 2**4
        for values in (layer.weight, layer.bias):
            assert torch.equal(values, values.half().float()) and values.requires_grad


def test_the_result_reads_better_than_pruning_alone(outcome, start):
    alone = compress(start, start, SMALL, [Prune(0.9, steps=1, epochs=0)], **SETTINGS)
    assert accuracy(outcome.model, SMALL.validation).value > accuracy(alone.model, SMALL.validation).value + 0.01


def test_the_teacher_is_heard_and_left_out(start, monkeypatch):
    heard = []
    monkeypatch.setattr(
        recipe_module,
        "train",
        lambda model, data, loss, **settings: (
            heard.append((data, loss, settings)),
            (model, type("History", (), {"stopped": "finished"})),
        )[1],
    )
    compress(start, start, SMALL, [FineTune(2)], temperature=3.0, alpha=0.3, strength=0.5, **SETTINGS)
    compress(start, None, SMALL, [FineTune(2)], **SETTINGS)
    (taught, loss, settings), (alone, plain, others) = heard
    assert loss == DistillationLoss(3.0, 0.3) and plain is nn.functional.cross_entropy
    assert torch.equal(taught[2], predict(start, SMALL.train.images)) and len(alone) == 2
    by_hand = 0.5 * sum(layer.weight.square().sum() for layer in weighted_layers(start).values())
    assert torch.isclose(settings["penalty"](start), by_hand) and others["penalty"] is None
    assert settings["epochs"] == 2 and settings["learning_rate"] == 3e-3


def test_units_taken_away_are_gone_and_grids_are_kept(start):
    outcome = compress(start, start, SMALL, [PruneUnits(0.5, epochs=1), Quantize(4, epochs=1)], **SETTINGS)
    assert outcome.model[1].weight.shape == (16, 784)
    assert all(len(layer.weight.unique()) <= 16 for layer in weighted_layers(outcome.model).values())


def test_each_layer_has_a_setting_of_its_own(start):
    stages = [
        PruneUnits({"fc1": 0.25}, epochs=0),
        Prune({"fc1": 0.9, "fc2": 0.5}, steps=3, epochs=0),
        Share({"fc1": 2, "fc2": 4}, epochs=0),
    ]
    outcome = compress(start, start, SMALL, stages, **SETTINGS)
    first, second = weighted_layers(outcome.model).values()
    assert first.weight.shape == (24, 784) and second.weight.shape == (10, 24)
    assert int((first.weight == 0).sum()) == round(0.9 * 24 * 784) and int((second.weight == 0).sum()) == 120
    assert len(first.weight.unique()) == 2**2 + 1 and 2**3 < len(second.weight.unique()) <= 2**4 + 1


def test_two_thin_layers_go_through_the_stages_behind_them(start, tmp_path):
    both = "fc1.first", "fc1.second"
    stages = [
        Prune({"fc1": 0.5, "fc2": 0.5}, 1, 0),
        Factorize({"fc1": 8}, epochs=1),
        Prune(dict.fromkeys(both, 0.5), 1, 1),
        Quantize(4, 0),
        Share({**dict.fromkeys(both, 3), "fc2": 4}, epochs=0),
    ]
    outcome = compress(start, start, SMALL, stages, folder=tmp_path, **SETTINGS)
    assert outcome.complete
    _, pruned, thin, *later = outcome.models.values()
    for model in (thin, *later):
        assert model.architecture == "784-32-10/fc1=8" and list(weighted_layers(model)) == [*both, "fc2"]
        assert zeros(model)["fc2"][zeros(pruned)["fc2"]].all(), "the zeros of other layers are kept"
    assert zeros(thin)["fc1.first"].float().mean() < 0.1 and all(zeros(later[0])[name].sum() >= 128 for name in both)
    assert len(outcome.model.fc1.first.weight.unique()) <= 2**3 + 1
    sizes = list(outcome.bytes.values())
    assert sizes[2] < sizes[1] and sizes == sorted(sizes, reverse=True)
    assert count_macs(thin) == 8 * (784 + 32) + 320 < count_macs(start) / 3
    images = SMALL.validation.images
    assert torch.allclose(predict(unpack(pack(outcome.model)), images), predict(outcome.model, images), atol=1e-4)
    again = compress(start, start, SMALL, stages, folder=tmp_path, **SETTINGS)
    assert pack(again.model) == pack(outcome.model)


@pytest.mark.parametrize("nearest", NEAREST)
def test_the_stage_is_near_to_the_output_for_images_that_are_trained_on(start, nearest):
    outcome = compress(start, None, SMALL, [Factorize({"fc1": 8}, 0, nearest)], **SETTINGS)
    expected = factorize(start, {"fc1": 8}, SMALL.train.images[:2000], nearest)
    images = SMALL.validation.images
    assert torch.allclose(predict(outcome.model, images), predict(expected, images), atol=1e-5)
    alone = lambda model, _epochs: model
    if nearest == "output":
        with pytest.raises(ParameterError, match="'images' must be given where nearest is 'output'"):
            Factorize({"fc1": 8})(start, alone)
    else:
        assert torch.allclose(
            predict(Factorize({"fc1": 8}, 0, nearest)(start, alone), images), predict(expected, images)
        )


def test_units_and_ranks_go_together_and_a_network_that_is_factorized_goes_through(start):
    thin = factorize(start, {"fc1": 8}, SMALL.train.images[:200], "output")
    for model, stages in (
        (start, [PruneUnits(0.25, 0), Factorize({"fc1": 8}, 0)]),
        (start, [Factorize({"fc1": 8}, 0), PruneUnits(0.25, 0)]),
        (thin, [Prune(0.5, 1, 0), Share(4, 0)]),
    ):
        outcome = compress(model, start, SMALL, stages, **SETTINGS)
        assert outcome.complete and outcome.model.architecture == "784-32-10/fc1=8"
        assert len(pack(outcome.model)) == list(outcome.bytes.values())[-1]


def test_layers_are_pruned_in_proportion_at_every_step(start):
    seen = []
    Prune({"fc1": 0.8, "fc2": 0.4}, steps=2, epochs=1)(
        start,
        lambda model, _epochs: seen.append([zeroed.float().mean().item() for zeroed in zeros(model).values()]) or model,
    )
    assert seen == [pytest.approx([0.7, 0.35], abs=1e-3), pytest.approx([0.8, 0.4], abs=1e-3)]


def test_the_model_and_the_teacher_are_left_as_they_are(start):
    before = {key: value.clone() for key, value in start.state_dict().items()}
    compress(start.train(), start, SMALL, [Prune(0.5, 1, 1)], **SETTINGS)
    assert start.training and all(torch.equal(before[key], value) for key, value in start.state_dict().items())
    start.eval()


def test_masks_follow_zeros():
    model = build_model("mlp128")
    model[1].weight.data[:, :10] = 0
    masked = with_masks(model)
    assert hasattr(masked[1], "parametrizations") and not hasattr(masked[3], "parametrizations")


def test_finished_stages_are_read_not_made_again(start, outcome, tmp_path, monkeypatch):
    first = compress(start, start, SMALL, STAGES[:2], folder=tmp_path, **SETTINGS)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    calls = []
    train = recipe_module.train
    monkeypatch.setattr(recipe_module, "train", lambda *args, **kw: calls.append(1) or train(*args, **kw))
    second = compress(start, start, SMALL, STAGES, folder=tmp_path, **SETTINGS | {"progress": True})
    assert len(calls) == 1 and len(times) == 2  # only Share was left
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    for result, model in ((outcome, second.model), (first, list(second.models.values())[2])):
        expected = result.model
        assert torch.equal(predict(expected, SMALL.test.images), predict(model, SMALL.test.images))
    (last,) = set(tmp_path.glob("3_*.kdz"))
    assert torch.equal(predict(load_packed(last), SMALL.test.images), predict(second.model, SMALL.test.images))


@pytest.mark.slow
def test_other_settings_or_another_start_are_never_taken_for_these(start, tmp_path):
    compress(start, start, SMALL, [FineTune(1)], folder=tmp_path, **SETTINGS)
    other = small_student(32)  # of the same layers
    fewer = SMALL._replace(train=SMALL.train[:1000])
    for change in (
        dict(stages=[FineTune(2)]),
        dict(model=other),
        dict(teacher=None),
        dict(seed=1),
        dict(temperature=2.0),
        dict(data=fewer),
    ):
        before = len(list(tmp_path.iterdir()))
        arguments = dict(model=start, teacher=start, data=SMALL, stages=[FineTune(1)]) | SETTINGS
        compress(**arguments | change, folder=tmp_path)
        assert len(list(tmp_path.iterdir())) == before + 1


def test_a_network_from_its_file_is_the_one_that_was_saved(start, tmp_path):
    made = compress(start, None, SMALL, [Prune(0.5, epochs=0)], folder=tmp_path / "made", **SETTINGS).model
    (path,) = (tmp_path / "made").iterdir()
    for model in (made, load_packed(path)):
        compress(model, None, SMALL, [FineTune(1)], folder=tmp_path / "further", **SETTINGS)
    assert len(list((tmp_path / "further").iterdir())) == 1


def test_a_damaged_stage_is_set_aside_and_made_again(start, tmp_path):
    compress(start, start, SMALL, [FineTune(1)], folder=tmp_path, **SETTINGS)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    compress(start, start, SMALL, [FineTune(1)], folder=tmp_path, **SETTINGS)
    assert path.read_bytes() == whole and len(list(tmp_path.glob("*.damaged"))) == 1


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", marks=pytest.mark.slow),
        pytest.param(bytes(500), marks=pytest.mark.slow),
        b"kdz0" + hashlib.sha256(b"").digest()[:16],
    ],
)
def test_a_stage_that_is_empty_or_of_another_schema_is_made_again(start, tmp_path, content):
    compress(start, None, SMALL, [FineTune(0)], folder=tmp_path, **SETTINGS)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(content)
    compress(start, None, SMALL, [FineTune(0)], folder=tmp_path, **SETTINGS)
    assert path.read_bytes() == whole and len(list(tmp_path.glob("*.damaged"))) == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:compress")  # one of the teachers is a poor one
def test_networks_of_the_same_weights_but_other_layers_are_not_the_same(start, tmp_path):
    for model, teacher in (
        (start, start),
        (remove_layers(start, ["relu1"]), start),
        (start, remove_layers(start, ["relu1"])),
    ):
        found = compress(model, teacher, SMALL, [FineTune(0)], folder=tmp_path, **SETTINGS).model
        assert str(found) == str(model)
    assert len(list(tmp_path.iterdir())) == 3


def test_whole_numbers_of_numpy_are_whole_numbers(start):
    numbers = dict(seed=np.int64(3), batch_size=np.int64(50), steps_per_epoch=np.int64(2))
    settings = {"progress": False, "learning_rate": 2e-3}
    by_numpy = compress(start, None, SMALL, [FineTune(np.int64(1))], **numbers, **settings)
    plain = compress(start, None, SMALL, [FineTune(1)], seed=3, batch_size=50, steps_per_epoch=2, **settings)
    assert torch.equal(by_numpy.model[1].weight, plain.model[1].weight)


def test_a_stage_of_ones_own_may_have_a_dict(start):
    @dataclass(frozen=True)
    class Own:
        options: dict

        def __call__(self, model, fine_tune):
            return model

    assert compress(start, None, SMALL, [Own({"rate": 3})], **SETTINGS).complete


def test_stages_in_a_folder_at_home_are_found_again(start, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    arguments = dict(stages=[FineTune(0)], folder="~/stages", **SETTINGS)
    first = compress(start, None, SMALL, **arguments)
    assert len(list((tmp_path / "stages").glob("1_*.kdz"))) == 1
    monkeypatch.setattr(FineTune, "__call__", lambda *_arguments: pytest.fail("this stage was finished before"))
    assert compress(start, None, SMALL, **arguments).bytes == first.bytes


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of memory")], ids=repr)
def test_what_ends_a_recipe_early_keeps_the_stages_that_are_finished(start, capsys, error):
    def fail(model, fine_tune):
        raise error

    outcome = compress(start, start, SMALL, [FineTune(1), fail, FineTune(1)], **SETTINGS)
    assert not outcome.complete and len(outcome.models) == 2
    assert "1 of 3 stages are done" in capsys.readouterr().out
    with pytest.raises(type(error)):
        compress(start, start, SMALL, [fail, FineTune(1)], **SETTINGS)


def test_half_a_pruning_is_no_finished_stage(start, tmp_path, monkeypatch):
    calls, prune_to = [], Prune._prune_to

    def interrupt(stage, model, sparsity):
        calls.append(sparsity)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return prune_to(stage, model, sparsity)

    monkeypatch.setattr(Prune, "_prune_to", interrupt)
    outcome = compress(start, None, SMALL, [FineTune(0), Prune(0.9, 3, 0)], folder=tmp_path, **SETTINGS)
    assert not outcome.complete and len(outcome.models) == 2 and len(list(tmp_path.iterdir())) == 1


def test_a_stage_whose_training_was_interrupted_is_not_kept(start, tmp_path, monkeypatch):
    train, calls = recipe_module.train, []

    def interrupted(*arguments, **settings):
        model, history = train(*arguments, **settings)
        calls.append(1)
        history.stopped = "interrupted" if len(calls) == 2 else history.stopped
        return model, history

    monkeypatch.setattr(recipe_module, "train", interrupted)
    outcome = compress(start, start, SMALL, [FineTune(1), FineTune(1)], folder=tmp_path, **SETTINGS)
    assert not outcome.complete and len(outcome.models) == 2 and len(list(tmp_path.iterdir())) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        dict(alpha=0.5),
        dict(strength=0.1),
        dict(batch_size=50),
        dict(data=SMALL._replace(train=SMALL.train._replace(images=SMALL.train.images.flip(3)))),
        dict(
            data=SMALL._replace(
                train=SMALL.train._replace(images=torch.cat([SMALL.train.images[:1], SMALL.train.images[1:].flip(0)]))
            )
        ),
    ],
)
def test_a_kept_stage_is_only_for_what_it_was_made_of(start, tmp_path, change):
    arguments = dict(model=start, teacher=start, data=SMALL, stages=[FineTune(0)], folder=tmp_path, **SETTINGS)
    compress(**arguments)
    compress(**arguments | change)
    compress(**arguments | dict(data=SMALL._replace(test=SMALL.test[:5])))  # which changes nothing
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_killed_recipe_goes_on_and_loses_no_finished_stage(start, tmp_path, seed):
    stages, seen, moments = [FineTune(1)] * 6, {}, random.Random(seed)
    fork = multiprocessing.get_context("fork")  # a new interpreter would need longer than the recipe
    for kill in (True, True, False):
        process = fork.Process(
            target=compress, args=(start, start, SMALL, stages), kwargs=dict(folder=tmp_path, **SETTINGS)
        )
        process.start()
        if kill:
            time.sleep(moments.uniform(0.1, 0.8))
            process.kill()
        process.join(100)
        found = {path: path.read_bytes() for path in tmp_path.glob("*.kdz")}
        assert all(found[path] == content for path, content in seen.items())  # nothing is lost
        seen = found
    assert process.exitcode == 0 and len(seen) == len(stages)  # and nothing was made under another name


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (dict(model="mlp128"), "compress(): 'model' must be a network"),
        (
            dict(model=nn.Linear(784, 10)),
            "'model' must be a network of the kit, or an nn.Sequential of plain layers without hooks. Got 'Linear'.",
        ),
        (dict(model=named("mlp")), "Did you mean 'mlp128'?"),
        (dict(model=named("lenet300")), "'model' must be a pruned lenet300"),
        (dict(data=SMALL.train), "'data' must be what load_mnist() returns"),
        (dict(stages=[]), "'stages' must be a list of stages"),
        (dict(stages=Prune(0.5)), "'stages' must be a list of stages"),
        (dict(stages=[FineTune]), "'stages' must be a list of stages"),
        (
            dict(stages=[FineTune(1), PruneUnits({"fc2": 0.5})]),
            "'layer in ratio of PruneUnits' must be one of fc1. Got 'fc2'",
        ),
        (dict(stages=[lambda model, fine_tune: model]), "must have a repr that says what it does"),
        (dict(lr=1), "'setting' must be one of learning_rate,"),
        (dict(stages=[Prune(0.5, 1, 0)], learning_rate=-1), "compress(): 'learning_rate' must be a number"),
        (dict(stages=["prune"]), "'stages' must be a list of stages"),
        (
            dict(stages=[Prune(0.5), Share({"relu1": 4})]),
            "'layer in num_bits of Share' must be one of fc1, fc2. Got 'relu1'",
        ),
        (dict(stages=[Factorize({"fc3": 8})]), "'layer in ranks of Factorize' must be one of fc1, fc2. Got 'fc3'"),
        (dict(stages=[Factorize({"fc2": 11})]), "'rank of fc2' must be a whole number in [1, 10]. Got 11."),
        (
            dict(stages=[Factorize({"fc1": 8}), Share({"fc1": 2})]),
            "'layer in num_bits of Share' must be one of fc1.first, fc1.second, fc2. Got 'fc1'",
        ),
        (dict(teacher=nn.Sequential(nn.Flatten(), nn.Linear(784, 7))), "must have one shape (N, classes)"),
        (dict(teacher="mlp128"), "compress(): 'teacher' must be a network, or None. Got 'mlp128'."),
        (dict(teacher=None, temperature="hot"), "'temperature' must be a number in (0, 1000]"),
        (
            dict(model=build_model("mlp128").double()),
            "must be (128, 784), torch.float32 to fit the others. Got (128, 784), torch.float64.",
        ),
        (dict(folder=5), "compress(): 'folder' must be the path of a folder, or None. Got 5."),
        (dict(folder=__file__), "compress(): 'folder' must be one that can be written, or be made. Got "),
        (dict(folder=f"{__file__}/below"), "compress(): 'folder' must be one that can be written, or be made. Got "),
        (dict(temperature=0), "'temperature' must be a number in (0, 1000]"),
        (dict(alpha=50), "'alpha' must be a number in [0, 1]"),
        (dict(strength=-1), "'strength' must be a number in [0, 100]"),
        (dict(learning_rate=-1), "'learning_rate' must be a number"),
    ],
)
def test_bad_arguments_are_named_before_anything_begins(start, change, part, tmp_path):
    arguments = dict(model=start, teacher=start, data=SMALL, stages=STAGES, folder=tmp_path)
    with pytest.raises(ParameterError) as error:
        compress(**arguments | SETTINGS | change)
    assert part in str(error.value), str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (lambda: Prune(50), "Prune(): 'sparsity' must be a number in (0, 1). Got 50. Did you mean 0.5?"),
        (lambda: Prune({"fc1": 0.5, "fc2": 1}), "'sparsity of layer fc2' must be a number in (0, 1). Got 1."),
        (lambda: Prune({}), "Prune(): 'sparsity' must be a number in (0, 1). Got {}."),
        (lambda: PruneUnits({"fc1": -1}), "'ratio of layer fc1' must be a number in [0, 1)"),
        (lambda: Share({"fc1": 2.5}), "'num_bits of layer fc1' must be a whole number in [1, 8]"),
        (lambda: Prune(0.5, 0), "Prune(): 'steps' must be a whole number"),
        (lambda: PruneUnits(1), "PruneUnits(): 'ratio' must be a number in [0, 1)"),
        (lambda: Factorize({"fc1": 0}), "Factorize(): 'ranks of layer fc1' must be a whole number in [1, 10000]"),
        (lambda: Factorize(8), "Factorize(): 'ranks' must be a dict of ranks by the names of layers"),
        (lambda: Factorize({"fc1": 8}, nearest="inputs"), "Factorize(): 'nearest' must be one of weight, output"),
        (lambda: Factorize({}), "Factorize(): 'ranks' must be a dict of ranks by the names of layers"),
        (lambda: FineTune(-1), "FineTune(): 'epochs' must be a whole number"),
        (lambda: Share(0), "Share(): 'num_bits' must be a whole number in [1, 8]"),
        (lambda: Share(2, bias_bits=9), "Share(): 'bias_bits' must be a whole number in [1, 8]"),
        (lambda: Quantize(4.5), "Quantize(): 'num_bits' must be a whole number in [1, 8]"),
        (lambda: Grid(1), "Grid(): 'num_bits' must be a whole number in [2, 8]. Got 1"),
        (lambda: Grid({"fc1": 9}), "'num_bits of layer fc1' must be a whole number in [2, 8]"),
        (lambda: Grid(4, bias_bits=1), "Grid(): 'bias_bits' must be a whole number in [2, 8]"),
    ],
)
def test_bad_stages_are_named_when_they_are_written(call, part):
    with pytest.raises(ParameterError) as error:
        call()
    assert part in str(error.value), str(error.value)


class Lost:
    """A stage that gives back what it should not."""

    def __init__(self, made):
        self.made = made

    def __call__(self, model, fine_tune):
        return self.made

    def __repr__(self):
        return "Lost()"


@pytest.mark.parametrize("made, told", [(None, "NoneType. Is the line missing"), ((1, 2), "tuple. Did you mean model")])
def test_a_stage_that_gives_no_network_is_named(start, made, told):
    with pytest.raises(ParameterError) as error:
        compress(start, None, SMALL, [Lost(made)], **SETTINGS)
    assert "compress(): 'stage Lost()' must return a network" in str(error.value) and told in str(error.value)


@pytest.mark.parametrize(
    "stage, same",
    [
        (Prune(np.float64(0.9), np.int64(3), np.uint8(1)), Prune(0.9, 3, 1)),
        (Prune({"fc1": np.float64(0.9)}), Prune({"fc1": 0.9})),
        (PruneUnits(np.float64(0.5), np.int8(1)), PruneUnits(0.5, 1)),
        (FineTune(np.int64(2)), FineTune(2)),
        (Factorize({"fc1": np.uint8(4)}), Factorize({"fc1": 4})),
        (Quantize({"fc1": np.uint8(4)}), Quantize({"fc1": 4})),
        (Share(np.uint8(8), np.int16(1), np.uint8(8)), Share(8, 1, 8)),
        (Grid({"fc1": np.uint8(4)}, np.int16(1), np.uint8(8)), Grid({"fc1": 4}, 1, 8)),
    ],
)
def test_a_stage_in_numbers_of_numpy_has_the_key_of_pythons(stage, same):
    assert repr(stage) == repr(same) and stage == same


def test_a_stage_is_kept_under_one_key_whatever_kind_its_numbers_have(start, tmp_path):
    for number, real in ((int, float), (np.int64, np.float64)):
        settings = dict(temperature=real(4), alpha=real(0.5), strength=real(0.0), folder=tmp_path)
        compress(start, start, SMALL, [Prune(real(0.5), number(1), number(0))], **settings | SETTINGS)
    assert len(list(tmp_path.iterdir())) == 1


def test_fine_tuning_that_loses_what_a_stage_pruned_is_refused(start):
    def lose(model, _epochs):
        settled = make_permanent(model)
        with torch.no_grad():
            settled[1].weight += 0.01
        return settled

    with pytest.raises(ParameterError, match=r"'fine_tune' must keep at zero what was pruned"):
        Prune(0.9, 2, 1)(start, lose)


def tiny(twice=False):
    """Return a sequence of one's own, a quick one; with `twice` it runs one of its layers twice."""
    again = nn.Conv2d(4, 4, 3, padding=1)
    between = [again, nn.ReLU(), again] if twice else [again]
    start = nn.Conv2d(1, 4, 5, stride=2), nn.ReLU(), nn.Dropout(0.1)
    return nn.Sequential(*start, nn.Sequential(*between, nn.ReLU()), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(36, 10))


OWN_STAGES = [
    FineTune(1),
    PruneUnits({"conv1": 0.25}, 1),
    Prune(0.3, 1, 1),
    Grid({"conv1": 4, "conv2": 3, "fc1": 2}, 1),
]


def test_a_sequence_goes_through_a_recipe_and_goes_on_from_its_folder(tmp_path, monkeypatch):
    outcome = compress(tiny(), None, SMALL, OWN_STAGES, folder=tmp_path, **SETTINGS)
    assert list(outcome.bytes.values()) == sorted(outcome.bytes.values(), reverse=True)
    assert [*outcome.model._modules] == ["conv1", "relu1", "conv2", "relu2", "pool1", "flatten", "fc1"]
    assert outcome.model.conv1.out_channels == 3 and len(list(tmp_path.iterdir())) == len(OWN_STAGES)
    monkeypatch.setattr(recipe_module, "train", lambda *_arguments, **_settings: pytest.fail("it was trained again"))
    again = compress(tiny_of(outcome), None, SMALL, OWN_STAGES, folder=tmp_path, **SETTINGS)
    for one, other in zip(outcome.models.values(), again.models.values(), strict=True):
        assert str(one) == str(other) and torch.equal(*(predict(each, SMALL.test.images) for each in (one, other)))


def tiny_of(outcome):
    """Return the network that a recipe began with, as it was given."""
    model = tiny()
    model.load_state_dict(dict(zip(model.state_dict(), outcome.models["start"].state_dict().values(), strict=True)))
    return model


@pytest.mark.parametrize(
    "stages",
    [
        [Prune(0.5, 1, 0), Share(2, 0)],
        [Quantize(3, 0)],
        [Grid(3, 0)],
        [Factorize({"conv2": 2}, 0), Prune({"conv2": 0.5}, 1, 0)],
    ],
    ids=str,
)
def test_a_layer_that_comes_twice_stays_one(stages):
    model = compress(tiny(twice=True), None, SMALL, stages, **SETTINGS).model
    assert len(model) == 9 + 2 * isinstance(stages[0], Factorize)
    assert len({*map(id, model.parameters())}) == 6 + isinstance(stages[0], Factorize)
    assert torch.equal(predict(unpack(pack(model)), SMALL.test.images), predict(model, SMALL.test.images))


@pytest.mark.parametrize("build", [tiny, lambda: small_student(8)], ids=["sequence", "student"])
def test_a_grid_ends_on_steps_of_one_byte_biases_too(build, monkeypatch):
    model = compress(build(), None, SMALL, [Prune(0.5, 1, 0), Grid(3, 1, bias_bits=5)], **SETTINGS).model
    steps = [(8 + m) / 8 * 2.0**-e for m in range(8) for e in range(32)]
    for parameter in model.parameters():
        most = 2 ** (2 if parameter.dim() > 1 else 4)
        codes = [parameter / step for step in steps if (parameter / step).abs().max() <= most]
        assert any(torch.equal(each, each.round()) and each.max() < most for each in codes) and parameter.requires_grad
    hidden = list(weighted_layers(model).values())[:-1]
    assert all((layer.bias.diff() >= 0).all() for layer in hidden)
    zeros_before = sum(int((layer.weight == 0).sum()) for layer in weighted_layers(model).values())
    assert zeros_before >= 0.5 * sum(layer.weight.numel() for layer in weighted_layers(model).values())
    for plan in plans(model, monkeypatch):
        assert plan.way == "grid" and grid_codes._step_kind(plan.step) == "byte"


def plans(model, monkeypatch):
    """Return how each tensor of a network is written in a file."""
    found, kept = [], grid_codes.TensorCoder._code

    def code(self, tensor, plan):
        if type(self._stream) is ShortRangeWriter:
            found.append(plan)
        return kept(self, tensor, plan)

    monkeypatch.setattr(grid_codes.TensorCoder, "_code", code)
    pack(model, "compact")
    return found


def test_fine_tuning_through_a_grid_reads_better_than_rounding_alone(start):
    rounded, tuned = (compress(start, start, SMALL, [Grid(2, epochs=epochs)], **SETTINGS).model for epochs in (0, 2))
    assert accuracy(tuned, SMALL.validation).value > accuracy(rounded, SMALL.validation).value + 0.01


def test_a_network_that_no_file_holds_is_refused_before_it_is_trained(monkeypatch):
    monkeypatch.setattr(recipe_module, "train", lambda *_arguments, **_settings: pytest.fail("it was trained"))
    with pytest.raises(ParameterError, match=r"^compress\(\): 'layer 1' must be one of torch's own Conv2d, .*'GELU'"):
        compress(nn.Sequential(nn.Flatten(), nn.GELU(), nn.Linear(784, 10)), None, SMALL, [FineTune(1)], **SETTINGS)
