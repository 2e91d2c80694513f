"""Intervals agree with their formulas and with worked examples; data are looked at once, and bad ones refused."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import ttest_1samp
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kd_lab.compression import FineTune, compress, search_recipe, search_settings
from kd_lab.data import Mnist, Split
from kd_lab.distillation import distil, distil_features, train_on_hints
from kd_lab.errors import ParameterError
from kd_lab.evaluation import (
    Accuracy,
    PairedDifference,
    accuracy,
    mean_cross_entropy,
    mean_interval,
    paired_difference,
    predict_classes,
)
from kd_lab.networks.predictions import predict
from kd_lab.networks.zoo import build_model, small_student
from kd_lab.scorecard import scorecard
from kd_lab.training import train

Z = 1.959963984540054


@pytest.mark.parametrize(("correct", "count"), [(9843, 10_000), (81, 263), (0, 10), (10, 10), (1, 1), (0, 1)])
def test_the_accuracy_interval_is_wilsons(correct, count):
    p, n = correct / count, count
    centre = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    result = Accuracy(correct, count)
    assert result.value == p
    assert result.interval == pytest.approx((centre - half, centre + half), abs=1e-9)


def test_the_mean_cross_entropy_is_minus_the_log_of_what_the_label_was_given():
    model, images, labels = build_model("mlp128"), torch.randn(300, 1, 28, 28), torch.randint(10, (300,))
    given = predict(model, images).double().softmax(1)[range(300), labels]
    assert mean_cross_entropy(model.train(), (images, labels, labels)) == pytest.approx(-given.log().mean().item())


def test_wilson_agrees_with_newcombes_example():
    assert Accuracy(81, 263).interval == pytest.approx((0.2553, 0.3662), abs=5e-5)  # Newcombe 1998, table I


def test_the_paired_interval_agrees_with_a_pencil():
    # 1 gained, 7 lost of 21, so 2/23 and 8/23: -6/23 ± 1.96 · sqrt((10/23 - 36/529) / 23)
    difference = PairedDifference(gained=1, lost=7, count=21)
    assert difference.value == pytest.approx(-6 / 21)
    assert difference.interval == pytest.approx((-0.50837, -0.01337), abs=1e-4)
    assert difference.p_value == pytest.approx(18 / 256)  # twice the chance of at most 1 head in 8 throws


@pytest.mark.parametrize(
    "difference",
    [PairedDifference(0, 0, 10), PairedDifference(10, 0, 10), PairedDifference(0, 10, 10), PairedDifference(0, 0, 1)],
)
def test_the_paired_interval_at_its_extremes(difference):
    low, high = difference.interval
    assert -1 <= low < high <= 1 and 0 < difference.p_value <= 1
    mirrored = PairedDifference(difference.lost, difference.gained, difference.count)
    assert mirrored.interval == pytest.approx((-high, -low)) and mirrored.p_value == difference.p_value


def test_the_intervals_hold_what_they_promise():
    generator = torch.Generator().manual_seed(1)
    inside = 0
    for _ in range(400):
        ours, theirs = torch.rand(500, generator=generator) < 0.9, torch.rand(500, generator=generator) < 0.85
        low, high = PairedDifference.of(ours, theirs).interval
        inside += low <= 0.05 <= high
    assert 0.92 <= inside / 400 <= 0.98


def test_results_read_like_sentences():
    assert repr(Accuracy(9843, 10_000)) == "98.43 % (9,843 of 10,000; 95 % interval 98.17 to 98.66)"
    assert repr(PairedDifference(20, 10, 1000)).startswith("+1.00 points (95 % interval -0.")


@pytest.mark.parametrize(("correct", "count"), [(5, 4), (-1, 4), (0, 0), (0.99, 1), (990.0, 1000), (True, 4)])
def test_impossible_counts_are_refused(correct, count):
    with pytest.raises(ParameterError, match=r"^Accuracy\(\): '(correct|count)' must be a whole number in "):
        Accuracy(correct, count)


@pytest.mark.parametrize("counts", [(5, 0, 4), (3, 2, 4), (-1, 0, 4), (0, 0, 0), (0.5, 0, 4), (0, True, 4)])
def test_impossible_disagreements_are_refused(counts):
    with pytest.raises(ParameterError, match=r"^PairedDifference\(\): '(gained|lost|count)' must be a whole number"):
        PairedDifference(*counts)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int64])
def test_counts_of_numpy_do_not_overflow(dtype):
    found, expected = PairedDifference(*map(dtype, (20, 100, 120))), PairedDifference(20, 100, 120)
    assert (found.value, found.interval, found.p_value) == (-2 / 3, expected.interval, expected.p_value)
    assert type(found.value) is float and type(found.interval[0]) is float


def test_answers_to_different_images_are_not_compared():
    with pytest.raises(ParameterError, match=r"same images\. Got 3 and 4"):
        PairedDifference.of(torch.ones(3).bool(), torch.ones(4).bool())


@pytest.fixture
def stub():
    """A model that answers with the first ten pixels, so that every answer is known."""
    return nn.Sequential(nn.Flatten(), First10())


class First10(nn.Module):
    def forward(self, x):
        return x[:, :10]


def digits(*largest):
    images = torch.zeros(len(largest), 1, 28, 28)
    images[range(len(largest)), 0, 0, list(largest)] = 1
    return images


def test_accuracy_counts_arg_max_hits(stub):
    assert accuracy(stub, (digits(3, 1, 4, 1), torch.tensor([3, 1, 4, 2]))) == Accuracy(3, 4)


def test_paired_difference_counts_both_kinds_of_disagreement(stub):
    data = (digits(3, 1, 4, 1, 0), torch.tensor([3, 1, 4, 2, 9]))
    always_nine = nn.Sequential(stub, AlwaysNine())
    assert paired_difference(stub, always_nine, data) == PairedDifference(gained=3, lost=1, count=5)


class AlwaysNine(nn.Module):
    def forward(self, x):
        return nn.functional.one_hot(torch.full((len(x),), 9), 10).float()


def test_predictions_ignore_the_mode_and_restore_it(mnist):
    model = nn.Sequential(build_model("mlp128"), nn.Dropout(0.9)).train()
    images = mnist.validation.images[:600]
    assert torch.allclose(predict(model, images), model[0](images), atol=1e-5)
    assert model.training and model[1].training


GOOD = (torch.zeros(4, 1, 28, 28), torch.tensor([0, 1, 2, 3]))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            (torch.zeros(0, 1, 28, 28), torch.zeros(0, dtype=torch.int64)),
            r"one length, not empty\. Got lengths \[0, 0\]",
        ),
        ((GOOD[0], GOOD[1][:3]), r"Got lengths \[4, 3\]"),
        ((GOOD[0] * math.nan, GOOD[1]), "must be finite numbers"),
        ((GOOD[0] + math.inf, GOOD[1]), "must be finite numbers"),
        ((torch.zeros(4, 1, 32, 32), GOOD[1]), r"can't read images of shape \(1, 32, 32\)"),
        ((GOOD[0].double(), GOOD[1]), "torch.float64; the kit's networks take"),
        ((GOOD[0].byte(), GOOD[1]), "torch.uint8; the kit's networks take"),
        ((GOOD[0], torch.tensor([0, 1, 2, 10])), r"labels must be 0 to 9.*Got labels from 0 to 10"),
        ((GOOD[0], torch.tensor([0, 1, 2, -1])), "Got labels from -1 to 2"),
        (GOOD[0], "must be a tuple of tensors"),
        ((GOOD[0],), "must be a tuple of tensors"),
        ((GOOD[0], GOOD[1][:, None]), r"labels must be whole numbers of shape \(N,\)\. Got shape \(4, 1\)"),
        ((GOOD[0], nn.functional.one_hot(GOOD[1], 10)), r"Got shape \(4, 10\)"),
        ((GOOD[0], GOOD[1].float()), "whole numbers of shape .* torch.float32"),
        ((torch.zeros(4), GOOD[1]), "can't read images of shape"),
        ((torch.tensor(1.0), GOOD[1]), r"Got lengths \[0, 4\]"),
        ([[1, 2], [3]], "must be a tuple of tensors"),
    ],
)
@pytest.mark.parametrize("name", ["lenet300", "cnn"])
def test_bad_data_is_refused_in_words(data, message, name):
    with pytest.raises(ParameterError, match=r"^accuracy\(\): ") as caught:
        accuracy(build_model(name), data)
    assert caught.match(message)


@pytest.mark.parametrize(
    ("model", "hint"),
    [
        ("lenet300", r"Got str\. Did you mean load_trained"),
        (None, "Got NoneType"),
        ((nn.Flatten(), None), r"Got tuple\. Did you mean model, history = "),
    ],
)
def test_what_is_no_network_is_refused(model, hint):
    with pytest.raises(ParameterError, match=rf"^accuracy\(\): 'model' must be a network.*{hint}"):
        accuracy(model, GOOD)


def test_large_finite_images_are_fine():
    images = torch.full((4, 1, 28, 28), 50.0, dtype=torch.float16)  # their sum is infinite in half precision
    assert accuracy(build_model("mlp128").half(), (images, GOOD[1])).count == 4


def test_a_model_without_logits_is_refused():
    with pytest.raises(ParameterError, match=r"^paired_difference\(\): the model must answer with logits"):
        paired_difference(nn.Identity(), nn.Identity(), GOOD)


@pytest.mark.parametrize("images", [GOOD, [[0.0]], None])
def test_what_is_no_tensor_is_not_read(images):
    with pytest.raises(ParameterError, match=r"^predict\(\): 'images' must be a tensor"):
        predict(build_model("mlp128"), images)


def test_predictions_can_be_targets_of_a_training(mnist):
    images = mnist.train.images[:8]
    student = build_model("mlp128")
    nn.functional.mse_loss(student(images), predict(build_model("cnn"), images)).backward()
    assert student[1].weight.grad.abs().sum() > 0


def test_a_model_that_answers_nan_has_no_accuracy():
    model = build_model("mlp128")
    model[1].weight.data.fill_(math.nan)
    with pytest.raises(ParameterError, match="answers NaN"):
        accuracy(model, GOOD)


def test_the_interval_of_a_mean_is_students():
    values = [1.2, 0.7, 2.5, 1.9, 1.1]
    center, interval = mean_interval(values)
    expected = ttest_1samp(values, 0).confidence_interval()
    assert center == pytest.approx(1.48) and interval == pytest.approx((expected.low, expected.high))
    assert mean_interval([3, 3]) == (3, (3, 3))


@pytest.mark.parametrize("values", [[], [1.0], [1.0, math.nan]])
def test_a_mean_of_too_little_has_no_interval(values):
    with pytest.raises(ParameterError, match="two or more finite numbers"):
        mean_interval(values)


def test_no_images_get_no_answers():
    assert predict_classes(build_model("mlp128"), torch.zeros(0, 1, 28, 28)).shape == (0,)


QUICK = {"progress": False, "batch_size": 10}
LAYERS = {"student_layer": "fc1", "teacher_layer": "fc1"}
STUDENT, TEACHER = small_student(4), small_student(8)
CALLS = {  # of a public function with the data; each looks at the parts that it needs
    "train": lambda data, fit: train(STUDENT, data.train, nn.functional.cross_entropy, **fit),
    "distil": lambda data, fit: distil(STUDENT, TEACHER, data.train, **fit),
    "distil_features": lambda data, fit: distil_features(STUDENT, TEACHER, data.train, **LAYERS, **fit),
    "train_on_hints": lambda data, fit: train_on_hints(STUDENT, TEACHER, data.train, **LAYERS, **fit),
    "compress": lambda data, _: compress(STUDENT, TEACHER, data, [FineTune(1), FineTune(1)], **QUICK),
    "compress, no teacher": lambda data, _: compress(STUDENT, None, data, [FineTune(1)], **QUICK),
    "search_recipe": lambda data, _: search_recipe(
        STUDENT, TEACHER, data, runs=2, minutes=1, most_lost=100, steps_per_epoch=1, **QUICK
    ),
    "search_settings": lambda data, _: search_settings(lambda *_: STUDENT, data.validation, runs=2),
    "scorecard": lambda data, _: scorecard({"one": STUDENT, "other": TEACHER}, data.validation),
    "paired_difference": lambda data, _: paired_difference(STUDENT, TEACHER, data.validation),
}


@pytest.mark.filterwarnings("ignore:.*Did you swap them")
@pytest.mark.parametrize("call", CALLS)
def test_each_part_of_the_data_is_looked_at_once(call, monkeypatch):
    """A look for numbers that are not finite goes over all images of a part."""
    data = Mnist(*(Split(torch.rand(count, 1, 28, 28), torch.arange(count) % 10) for count in (40, 30, 20)))
    names = {part.images.data_ptr(): name for name, part in data._asdict().items()}
    looks, aminmax = Counter(), torch.Tensor.aminmax
    monkeypatch.setattr(
        torch.Tensor, "aminmax", lambda tensor: looks.update([names.get(tensor.data_ptr())]) or aminmax(tensor)
    )
    monkeypatch.setattr("kd_lab.cost.latency", lambda *_arguments: 1e-3)
    CALLS[call](data, {"validation": data.validation, "epochs": 2, **QUICK})
    assert looks["validation"] == 1 and looks["test"] == 0
    assert looks["train"] == (call not in ("search_settings", "scorecard", "paired_difference"))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool])
def test_labels_of_any_whole_dtype_count_alike(dtype):
    model, images = build_model("mlp128"), torch.randn(40, 1, 28, 28)
    labels = torch.arange(40) % 2
    for measure in (accuracy, mean_cross_entropy, lambda *each: paired_difference(model, *each)):
        assert measure(model, (images, labels.to(dtype))) == measure(model, (images, labels))


def test_labels_are_looked_at_to_the_last():
    labels = torch.zeros(40, dtype=torch.uint8)
    labels[-1] = 10
    ignored = torch.full((40,), -100)  # by torch's cross-entropy
    cases = (labels, "0 to 10"), (ignored, "-100 to"), (torch.zeros(40), "float32"), (labels[:, None], "1")
    for measure in (accuracy, mean_cross_entropy):
        for wrong, said in cases:
            with pytest.raises(ParameterError, match=rf"^{measure.__name__}\(\): the labels must be .*Got .*{said}"):
                measure(build_model("mlp128"), (torch.zeros(40, 1, 28, 28), wrong))


LOADER = DataLoader(TensorDataset(*GOOD), batch_size=2)
PARTS = Mnist(*[Split(*GOOD)] * 3)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ((GOOD[0].numpy(), GOOD[1].numpy()), r"tuple of 2: ndarray of shape .*map\(torch\.as_tensor, data\)"),
        ((GOOD[0].tolist(), GOOD[1].tolist()), r"map\(torch\.as_tensor, data\)"),
        (LOADER, r"Got DataLoader.* Did you mean tuple\(map\(torch\.cat, zip\(\*loader\)\)\)"),
        (LOADER.dataset, r"Got TensorDataset.* Did you mean split_data"),
        (PARTS, r"Give one part of it, as data\.train or data\.validation"),
        ((GOOD[1], GOOD[0]), "Did you swap the two"),
        (GOOD[0], r"Got Tensor of shape \(4, 1, 28, 28\) and torch\.float32"),
        (build_model("cnn"), "Did you swap the model and the data"),
        ((GOOD[0], GOOD[1].double()), r"Did you mean labels\.long\(\)"),
    ],
)
def test_what_came_for_the_data_is_said_in_words(data, told):
    with pytest.raises(ParameterError, match=told) as caught:
        accuracy(build_model("mlp128"), data)
    assert "tensor(" not in str(caught.value) and "array(" not in str(caught.value) and "\n" not in str(caught.value)


def test_the_lines_that_messages_give_work():
    for line in ("tuple(map(torch.cat, zip(*loader)))", "tuple(map(torch.as_tensor, data))"):
        found = eval(line, {"torch": torch, "loader": LOADER, "data": [part.numpy() for part in GOOD]})
        assert all(map(torch.equal, found, GOOD))


def test_intervals_hold_their_point():
    counts = [(0, n) for n in range(1, 60)] + [(n, n) for n in range(1, 60)] + [(10**9 - 1, 10**9), (10**9, 10**9)]
    found = [Accuracy(*each) for each in counts] + [PairedDifference(a, n - a, n) for a, n in counts]
    assert all(each.interval[0] <= each.value <= each.interval[1] for each in found)
    for value in (0.1, 1e-20, 0.7e20, np.float32(0.1)):
        center, (low, high) = mean_interval([value] * 3)
        assert low <= center <= high and type(center) is float
    assert {type(value) for value in vars(Accuracy(np.int64(3), np.int32(4))).values()} == {int}


@pytest.mark.parametrize("values", ["text", 3, [1.0, None], ["a", "b"]])
def test_what_are_no_figures_is_named(values):
    with pytest.raises(ParameterError, match="'values' must be two or more finite numbers"):
        mean_interval(values)


@pytest.mark.parametrize(
    ("data", "hint"),
    [
        ((torch.zeros(4, 784), F.one_hot(torch.arange(4), 10)), "labels.argmax(1)?"),
        ([(torch.zeros(784), torch.tensor(1))] * 4, "tuple(map(torch.stack, zip(*data)))?"),
    ],
)
def test_the_line_that_makes_labels_or_data_is_told(data, hint):
    with pytest.raises(ParameterError) as error:
        accuracy(nn.Linear(784, 10), data)
    assert hint in str(error.value)
