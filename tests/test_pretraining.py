"""The pretext tasks learn from images alone, for any network, and labels are drawn evenly."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kd_lab import pretraining
from kd_lab.data import Split
from kd_lab.errors import ParameterError
from kd_lab.networks import build_model, predict
from kd_lab.pretraining import TASKS, RandomViews, few_labels, hide_patches, nt_xent, pretrain, random_views
from kd_lab.pruning import prune

QUICK = {"epochs": 1, "batch_size": 16, "progress": False}


def images(count=32, *shape, seed=0):
    return torch.rand(count, *(shape or (1, 28, 28)), generator=torch.Generator().manual_seed(seed))


def pretrained(model, task="contrastive", data=None, **settings):
    data = images() if data is None else data
    return pretrain(model, data, task, validation=data[:16], **QUICK | settings)[0]


def state(model):
    return torch.cat([parameter.flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2])
def test_the_contrastive_loss_is_that_of_the_paper(temperature):
    pairs = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(1))
    views = [(image, view) for image in range(5) for view in range(2)]

    def likeness(one, other):
        return math.exp(F.cosine_similarity(pairs[one], pairs[other], dim=0).item() / temperature)

    losses = []
    for image, view in views:
        others = [likeness((image, view), other) for other in views if other != (image, view)]
        losses.append(-math.log(likeness((image, view), (image, 1 - view)) / sum(others)))
    assert nt_xent(pairs, temperature).item() == pytest.approx(sum(losses) / 10, rel=1e-5)


def test_one_pair_has_nothing_to_be_told_from_and_pairs_that_are_all_alike_are_a_guess():
    assert nt_xent(torch.rand(1, 2, 4)).item() == pytest.approx(0, abs=1e-6)
    assert nt_xent(torch.ones(8, 2, 4)).item() == pytest.approx(math.log(15))


def test_a_view_moves_the_image_a_little_and_each_image_in_a_way_of_its_own():
    dots = torch.zeros(200, 2, 28, 28)
    dots[:, :, 12:16, 12:16] = 1.0
    torch.manual_seed(0)
    views = random_views(dots)
    torch.manual_seed(0)
    assert torch.equal(views, random_views(dots)) and len(views.unique(dim=0)) == 200
    assert torch.equal(views[:, 0], views[:, 1])  # the channels of an image move together
    rows = torch.arange(28.0)
    center = (views[:, 0].sum(2) @ rows) / views[:, 0].sum((1, 2))
    assert 13.0 < center.mean() < 14.0 and 1 < center.std() < 3 and center.min() > 5 and center.max() < 22
    flat = torch.full((3, 1, 5, 9), -0.42)
    torch.testing.assert_close(random_views(flat), flat)  # what comes in from outside is like the edge


@pytest.mark.parametrize("strength", [0, 0.1, 0.5, 1])
def test_of_all_that_a_view_does_its_strength_is_the_part_that_is_done(strength, monkeypatch):
    images = torch.rand(50, 1, 28, 28)
    torch.manual_seed(0)
    found = random_views(images, strength)
    for name in ("ANGLE", "SHEAR", "STRETCH", "SHIFT", "BEND"):
        monkeypatch.setattr(pretraining, name, strength * getattr(pretraining, name))
    torch.manual_seed(0)
    torch.testing.assert_close(found, random_views(images) if strength else images)


@pytest.mark.parametrize("strength", [-0.1, 1.1, "half"])
def test_a_strength_that_is_no_part_is_refused(strength):
    with pytest.raises(ParameterError, match=r"^random_views\(\): 'strength' must be .*\[0, 1\]"):
        random_views(torch.rand(4, 1, 8, 8), strength)


def test_a_mask_takes_whole_patches_of_sixty_percent():
    masked = hide_patches(torch.ones(500, 1, 28, 28))
    assert set(masked.unique().tolist()) == {0, 1} and 0.38 < masked.mean() < 0.42
    patches = masked.unfold(2, 4, 4).unfold(3, 4, 4).flatten(4)
    assert torch.equal(patches.amin(4), patches.amax(4))


def test_views_are_seen_in_training_alone():
    views, seen = RandomViews(), images()
    assert views.eval()(seen) is seen and not torch.equal(views.train()(seen), seen)


@pytest.mark.parametrize("task", TASKS)
def test_the_seed_decides_and_labels_never_come_in(task):
    model, data = build_model("mlp128"), Split(images(), torch.arange(32) % 10)
    before = state(model)
    shuffled = Split(data.images, data.labels[torch.randperm(32)])
    torch.manual_seed(3)
    first = pretrained(model, task, data.images)
    torch.manual_seed(4)  # the global random numbers play no part
    again = pretrained(model, task, shuffled.images)
    assert torch.equal(state(first), state(again)) and torch.equal(state(model), before)
    assert not torch.equal(state(first), state(pretrained(model, task, data.images, seed=1)))
    with pytest.raises(ParameterError, match=r"^pretrain\(\): 'images' must be a tensor.*Give its \.images"):
        pretrain(model, data, task, validation=data.images, **QUICK)


@pytest.mark.parametrize("task", TASKS)
def test_every_layer_but_the_last_learns_and_the_last_has_initial_weights(task):
    model = build_model("lenet300", 5)
    found = pretrained(model, task)
    assert found.architecture == "lenet300" and not found.training and predict(found, images()).shape == (32, 10)
    for layer in ("fc1", "fc2"):
        assert not torch.equal(found.get_submodule(layer).weight, model.get_submodule(layer).weight)
    bound = 100**-0.5  # as torch draws them
    assert found.fc3.weight.abs().max() <= bound and not torch.equal(found.fc3.weight, model.fc3.weight)
    assert torch.equal(found.fc3.weight, pretrained(model, data=images(seed=9)).fc3.weight)


def test_the_loss_falls(mnist):
    few = mnist.train.images[:512]
    for task in TASKS:
        _, history = pretrain(build_model("mlp128"), few, task, validation=few, epochs=4, batch_size=64, progress=False)
        assert history.validation_loss[-1] < history.validation_loss[0] - 0.05


class Own(nn.Module):
    """A learner's network: two channels, BatchNorm, a last layer without a bias that isn't the last by its name."""

    def __init__(self):
        super().__init__()
        self.answer = nn.Linear(6, 4, bias=False)
        self.conv, self.norm = nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6)

    def forward(self, x):
        return self.answer(F.relu(self.norm(self.conv(x))).mean((2, 3)))


@pytest.mark.parametrize("task", TASKS)
def test_any_network_is_pretrained(task):
    found = pretrained(Own(), task, images(20, 2, 9, 11))
    assert found.answer.weight.shape == (4, 6) and found.answer.bias is None and type(found) is Own
    assert predict(found, images(3, 2, 9, 11)).shape == (3, 4)


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Flatten(), nn.Linear(784, 10), nn.ReLU()),
        nn.Sequential(nn.Flatten(), nn.Linear(784, 10), nn.LogSoftmax(1)),
        nn.Sequential(nn.Conv2d(1, 10, 28), nn.Flatten()),
        prune(build_model("mlp128"), 0.5),
    ],
    ids=["relu", "softmax", "conv", "masked"],
)
def test_a_network_without_a_last_linear_layer_is_refused(model):
    with pytest.raises(ParameterError, match=r"^pretrain\(\): 'model' must have layers before a last Linear one"):
        pretrained(model)


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"task": "rotation"}, "'task' must be one of contrastive, masked"),
        ({"data": images(8, 784)}, "'images' must be a tensor of 4 dimensions"),
        ({"data": images() * math.nan}, "'images' must be .*NaN"),
        ({"data": images(20, 1, 9, 9)}, "the model can't read images"),
        ({"seed": -1}, "'seed' must be a whole number"),
        ({"epochs": 0}, "'epochs' must be a whole number"),
        ({"model": "cnn"}, r"'model' must be a network.*load_trained"),
    ],
)
def test_what_cannot_be_pretrained_is_refused(changed, said):
    with pytest.raises(ParameterError, match=rf"^pretrain\(\): {said}"):
        pretrained(**{"model": build_model("mlp128")} | changed)


@pytest.mark.parametrize(
    "pairs, temperature", [(torch.rand(4, 3, 8), 1), (torch.rand(4, 8), 1), (torch.rand(4, 2, 8), 0)]
)
def test_what_are_no_pairs_is_refused(pairs, temperature):
    with pytest.raises(ParameterError, match=r"^nt_xent\(\): '(pairs|temperature)' must be"):
        nt_xent(pairs, temperature)


def test_labels_are_drawn_evenly_by_seed(mnist):
    for count, per_class in ((10, {1}), (100, {10}), (105, {10, 11}), (1000, {100})):
        few = few_labels(mnist.train, count)
        assert len(few.labels) == count and set(few.labels.bincount(minlength=10).tolist()) == per_class
    assert torch.equal(few.images, few_labels(mnist.train, 1000).images)
    assert not torch.equal(few.images, few_labels(mnist.train, 1000, 1).images)


@pytest.mark.parametrize("count", [0, 9, 60_000, 10.0, True])
def test_fewer_labels_than_classes_or_more_than_there_are_are_refused(mnist, count):
    with pytest.raises(ParameterError, match=r"^few_labels\(\): 'count' must be a whole number in \[10, 55000\]"):
        few_labels(mnist.train, count)


def test_more_labels_than_a_class_has_are_refused(mnist):
    with pytest.raises(ParameterError, match=r"^few_labels\(\): 54000 images need more than 5400 of each class"):
        few_labels(mnist.train, 54_000)


@pytest.mark.parametrize(
    "labels", [torch.arange(40) % 10 - 1, torch.arange(40)[:, None] % 10, (torch.arange(40) % 10).float()]
)
def test_what_are_no_labels_is_refused(labels):
    with pytest.raises(ParameterError, match=r"^few_labels\(\): .*labels"):
        few_labels((torch.rand(40, 1, 8, 8), labels), 10)


def test_views_of_whole_numbers_are_refused():
    with pytest.raises(ParameterError, match=r"^random_views\(\): 'images' must be numbers in floating point"):
        random_views(torch.ones(4, 1, 8, 8).int())
