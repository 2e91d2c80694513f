"""Plots hold what they are given."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from kd_lab.errors import ParameterError
from kd_lab.plots import plain_log, plot_digits, plot_intervals


def test_a_logarithmic_axis_has_plain_numbers():
    axes = plt.subplots()[1]
    axes.set(xscale="log", xlim=(900, 30_000))
    plain_log(axes.xaxis)
    axes.figure.canvas.draw()
    texts = [label.get_text() for label in axes.get_xticklabels()]
    assert [text for text in texts if text] == texts and {"1,000", "2,000", "5,000", "10,000", "20,000"} <= set(texts)
    assert not any(label.get_text() for label in axes.get_xticklabels(minor=True))


def test_digits_stand_in_one_row_under_their_titles():
    images = torch.rand(3, 1, 28, 28)
    row = plot_digits(images, ["a", "b", "c"])
    assert [axes.get_title() for axes in row] == ["a", "b", "c"]
    assert np.allclose(row[1].images[0].get_array(), images[1, 0])
    plt.close("all")


def test_intervals_reach_from_end_to_end_with_the_first_on_top():
    axes = plot_intervals(["first", "second"], [0.5, 0.6], [(0.4, 0.7), (0.55, 0.62)])
    bars = [segment[:, 0].tolist() for segment in axes.collections[0].get_segments()]
    assert np.allclose(bars, [(0.4, 0.7), (0.55, 0.62)])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["first", "second"]
    assert axes.xaxis.get_major_formatter()(0.985) == "98.5"
    assert axes.get_ylim()[0] > axes.get_ylim()[1]
    plt.close("all")


def test_lengths_that_differ_are_named():
    with pytest.raises(ParameterError, match=r"^plot_digits\(\): images, titles must be equally long.*'titles': 1"):
        plot_digits(torch.rand(2, 1, 28, 28), ["one"])
    with pytest.raises(ParameterError, match=r"^plot_intervals\(\): "):
        plot_intervals([], [], [])


IMAGES = torch.rand(3, 1, 28, 28)


@pytest.mark.parametrize(
    "images", [IMAGES[:, 0], IMAGES.numpy(), IMAGES.clone().requires_grad_(), IMAGES.double(), IMAGES.numpy()[:, 0]]
)
def test_images_of_any_kind_are_drawn_alike(images):
    row = plot_digits(images, ["a", "b", "c"])
    assert np.allclose(row[1].images[0].get_array(), IMAGES[1, 0])
    plt.close("all")


@pytest.mark.parametrize("images", [torch.rand(3, 784), torch.rand(3, 3, 28, 28), [1, 2, 3]])
def test_what_is_no_picture_is_refused(images):
    with pytest.raises(ParameterError, match=r"^plot_digits\(\): 'images' must be a tensor \(N, 1, height, width\)"):
        plot_digits(images, ["a", "b", "c"])


@pytest.mark.parametrize(
    ("values", "intervals", "said"),
    [
        ([0.5], [(0.6, 0.7)], "hold their values"),
        ([0.5], [(0.7, 0.4)], "hold their values"),
        ([float("nan")], [(0.4, 0.7)], "hold their values"),
        ([0.5], [(0.4, 0.5, 0.6)], "pairs of them"),
        (["a"], [(0.4, 0.7)], "pairs of them"),
        ([0.5], [None], "pairs of them"),
    ],
)
def test_what_is_no_interval_is_named(values, intervals, said):
    before = plt.get_fignums()
    with pytest.raises(ParameterError, match=rf"^plot_intervals\(\): .*{said}"):
        plot_intervals(["name"], values, intervals)
    assert plt.get_fignums() == before


def test_tensors_with_gradients_are_drawn():
    values = torch.tensor([0.5], requires_grad=True)
    axes = plot_intervals({"name": 1}.keys(), values, torch.stack([values - 0.1, values + 0.1], dim=1))
    assert axes.lines[0].get_xdata() == [0.5]
    plot_digits(torch.rand(2, 28, 28, dtype=torch.bfloat16), ["a", "b"])
    plt.close("all")


@pytest.mark.parametrize("images", [None, 3, [torch.rand(28, 28)], torch.rand(2, 28, 28).to_sparse(), object()])
def test_what_are_no_pictures_is_named(images):
    with pytest.raises(ParameterError, match=r"^plot_digits\(\): 'images' must be a tensor"):
        plot_digits(images, ["a", "b"])
