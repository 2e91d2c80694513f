"""Plots hold what they are given."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.transforms import Bbox

from kd_lab.errors import ParameterError
from kd_lab.plots import label_points, plain_log, plot_digits, plot_intervals


def test_a_logarithmic_axis_has_plain_numbers():
    axes = plt.subplots()[1]
    axes.set(xscale="log", xlim=(900, 30_000))
    plain_log(axes.xaxis)
    axes.figure.canvas.draw()
    texts = [label.get_text() for label in axes.get_xticklabels()]
    assert [text for text in texts if text] == texts and {"1,000", "2,000", "5,000", "10,000", "20,000"} <= set(texts)
    assert not any(label.get_text() for label in axes.get_xticklabels(minor=True))


def test_an_upright_logarithmic_axis_has_a_number_wherever_a_point_may_be():
    axes = plt.subplots()[1]
    axes.set(yscale="log", ylim=(2.5, 40))
    plain_log(axes.yaxis)
    axes.figure.canvas.draw()
    assert {"3", "5", "10", "20", "30"} <= {label.get_text() for label in axes.get_yticklabels()}


POINTS = [(f"text {place}", x, y) for place, (x, y) in enumerate([(1, 1), (1.1, 1), (2, 1.02), (2, 1.9), (1.5, 1.5)])]


def scattered(points, **more):
    """Return the axes of some points with their texts, and the boxes of these."""
    axes = plt.subplots(figsize=(7, 4), layout="constrained")[1]
    axes.plot([x for _, x, _ in points], [y for *_, y in points], "o", label="points")
    axes.margins(0.4)
    axes.legend(loc="upper right")
    label_points(axes, points, **more)
    axes.figure.canvas.draw()
    boxes = {text.get_text(): text.get_window_extent() for text in axes.texts}
    plt.close("all")
    return axes, boxes


def test_texts_stand_beside_their_points_and_cover_nothing():
    axes, boxes = scattered(POINTS)
    assert list(boxes) == [text for text, *_ in POINTS]
    legend = axes.get_legend().get_window_extent()
    for text, x, y in POINTS:
        box, others = boxes[text], [boxes[other] for other in boxes if other != text]
        assert not box.count_overlaps([*others, legend]) and box.intersection(box, axes.bbox).bounds == box.bounds
        assert not any(box.contains(*axes.transData.transform(point[1:])) for point in POINTS)
        place = axes.transData.transform((x, y))
        assert box.padded(30).contains(*place)


def test_a_text_covers_no_bar():
    _, free = scattered([("text", 1, 1), ("", 2, 2)])
    axes, barred = scattered([("text", 1, 1), ("", 2, 2)], bars=[(1.02, 0.5, 1.5)])
    bar = Bbox(axes.transData.transform([(1.02, 0.5), (1.02, 1.5)]))
    assert free["text"].overlaps(bar) and not barred["text"].overlaps(bar)


def test_a_text_covers_no_legend():
    axes = plt.subplots(figsize=(7, 4))[1]
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.plot([], [], "o", label="points")
    legend = axes.legend(loc="center right").get_window_extent()
    left, _, _, top = axes.transData.inverted().transform_bbox(legend).extents
    label_points(axes, [("text", left - 0.03, (top + 0.5) / 2)])  # left of the legend, into which the text would go
    (text,) = axes.texts
    assert not text.get_window_extent().overlaps(legend)
    plt.close("all")


def test_a_text_without_room_is_left_out():
    _, boxes = scattered([("the same place", 1, 1)] * 40 + [("", 2, 2)])
    _, alone = scattered([("text", 1, 1)])
    _, wide = scattered([("w" * 400, 1, 1)])
    assert len(boxes) < 40 and len(alone) == 1 and not wide
    axes = plt.subplots()[1]
    label_points(axes, [])
    assert not axes.texts
    plt.close("all")


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
