"""The small data set is scikit-learn's own, in MNIST's shape, split without a part in common."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from kd_lab.checkpoints import load_trained
from kd_lab.data import MEAN, STD, load_optical_digits
from kd_lab.evaluation import accuracy


def test_parts_have_mnists_shape_and_every_digit_alike():
    parts = load_optical_digits()
    assert [len(part.labels) for part in parts] == [997, 300, 500]
    for images, labels in parts:
        assert images.shape == (len(labels), 1, 28, 28) and images.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert (labels.bincount() - len(labels) / 10).abs().max() <= 3
        assert images.min() * STD + MEAN >= -1e-6 and images.max() * STD + MEAN <= 1 + 1e-6


def test_every_published_image_is_there_once():
    images = torch.cat([part.images for part in load_optical_digits()])
    labels = torch.cat([part.labels for part in load_optical_digits()])
    published = torch.tensor(load_digits().data, dtype=torch.float32).view(-1, 1, 8, 8)
    expected = F.interpolate(published / 16, size=20, mode="bilinear")
    middle = images[:, :, 4:-4, 4:-4] * STD + MEAN
    distances = torch.cdist(middle.flatten(1), expected.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
    assert distances.min(1).values.max() < 1e-3
    nearest = distances.argmin(1)
    assert nearest.unique().numel() >= len(labels) - 5  # a few were published twice
    assert torch.equal(torch.tensor(load_digits().target)[nearest], labels)
    assert images[:, :, :4].unique().numel() == 1  # the border is empty


def test_it_is_the_same_each_time_and_new_to_a_network_of_mnist():
    first, second = load_optical_digits(), load_optical_digits()
    for one, two in zip(first, second, strict=True):
        assert torch.equal(one.images, two.images) and torch.equal(one.labels, two.labels)
    assert 0.6 < accuracy(load_trained("lenet5"), first.test).value < 0.95
