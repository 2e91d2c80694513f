"""The pictures of trees show the nodes, pixels and answers that are there."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kd_lab.distillation import SoftTree, draw_path, draw_soft_tree, draw_tree, fit_trees
from kd_lab.errors import ParameterError


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def fitted(few):
    return fit_trees(few.images[:500], F.one_hot(few.labels[:500], 10).float(), max_leaf_nodes=12)


def titles(figure):
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


def note(figure):
    return figure.texts[0].get_text()


def pictures(figure):
    return [axes.images[0].get_array() for axes in figure.axes if axes.images]


def answers(figure):
    return [axes.get_xlabel() for axes in figure.axes if axes.get_xlabel()]


def filters(tree):
    return (tree.beta.unsqueeze(1) * tree.filters.weight).detach().view(-1, 28, 28).numpy()


@pytest.mark.parametrize("depth", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_soft_tree_shows_every_filter_and_every_leafs_answer(depth):
    tree = SoftTree(depth)
    with torch.no_grad():
        tree.beta[0] = -2  # turns the sign of what the root's weights do
    figure = draw_soft_tree(tree)
    assert np.allclose(pictures(figure), filters(tree))
    for axes in (axes for axes in figure.axes if axes.images):
        low, high = axes.images[0].get_clim()
        assert low == -high == -np.abs(axes.images[0].get_array()).max()  # white is zero
    assert answers(figure) == [str(digit) for digit in tree.leaves.argmax(dim=1).tolist()]


def test_a_soft_tree_shows_the_turns_of_one_digit(validation):
    tree, image = SoftTree(3), validation.images[0]
    turns = [f"{100 * p:.0f} %" for p in tree.paths(image.unsqueeze(0)).probabilities[0].tolist()]
    figure = draw_soft_tree(tree, image)
    assert titles(figure) == turns and "Red: ink here sends right" in note(figure)
    assert sum(bool(axes.collections) for axes in figure.axes) == 3  # its outline on three filters
    assert np.array_equal(pictures(figure)[-1], image[0])


def test_a_path_shows_digit_filters_turns_and_leaf(validation):
    tree, image = SoftTree(8), validation.images[3]
    nodes, right, probabilities, leaf = (part[0] for part in tree.paths(image.unsqueeze(0)))
    figure = draw_path(tree, image)
    digit, *shown = pictures(figure)
    assert np.array_equal(digit, image[0]) and np.allclose(shown, filters(tree)[nodes])
    assert [axes.get_title() for axes in figure.axes[1:-1]] == [
        f"{'right' if turn else 'left'} {100 * p:.0f} %" for turn, p in zip(right, probabilities, strict=True)
    ]
    heights = [bar.get_height() for bar in figure.axes[-1].patches]
    assert heights == pytest.approx(F.softmax(tree.leaves[leaf], dim=0).tolist())


def test_a_tree_shows_the_pixel_that_each_node_asks_on_the_digits_that_reach_it(fitted, validation):
    tree, images = fitted.estimators[0].tree_, validation.images
    figure = draw_tree(fitted, images, levels=2)
    root, left, _right, *_leaves = figure.axes
    assert "little ink" in note(figure) and np.allclose(root.images[0].get_array(), images.mean(dim=0)[0], atol=1e-5)
    row, column = divmod(int(tree.feature[0]), 28)
    assert (root.lines[0].get_xdata()[0], root.lines[0].get_ydata()[0]) == (column, row)
    light = images[images[:, 0, row, column] <= tree.threshold[0]]
    assert np.allclose(left.images[0].get_array(), light.mean(dim=0)[0], atol=1e-5)


def test_a_tree_that_ends_early_is_drawn_as_far_as_it_goes(few, validation):
    stump = fit_trees(few.images[:500], F.one_hot(few.labels[:500], 10).float(), max_leaf_nodes=2)
    figure = draw_tree(stump, validation.images, levels=4)
    assert len(pictures(figure)) == 1 and "further down" not in note(figure)
    assert answers(figure) == [str(value.argmax()) for value in stump.estimators[0].tree_.value[1:, :, 0]]


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
def test_leaves_that_lie_too_deep_to_be_drawn_are_counted_and_their_mean_is_dashed(fitted, validation, levels):
    tree = fitted.estimators[0].tree_
    figure = draw_tree(fitted, validation.images, levels)
    dashed = [axes for axes in figure.axes if axes.spines["top"].get_linestyle() == "--"]
    inner = nodes_at(tree, levels)
    assert len(dashed) == len(inner) > 0 and not any(axes.images for axes in dashed)
    for axes, node in zip(dashed, inner, strict=True):
        assert [bar.get_height() for bar in axes.patches] == pytest.approx(tree.value[node, :, 0].tolist())
    drawn = sum(bool(axes.get_xlabel()) for axes in figure.axes) - len(dashed)
    assert f"further down ({tree.n_leaves - drawn} of {tree.n_leaves})" in note(figure)


def nodes_at(tree, level):
    """The inner nodes so far below the root, from left to right."""
    nodes = [0]
    for _ in range(level):
        nodes = [child for node in nodes for child in (tree.children_left[node], tree.children_right[node])]
        nodes = [node for node in nodes if tree.children_left[node] != -1]
    return nodes


@pytest.mark.slow
def test_nothing_overlaps_or_is_cut_off(fitted, validation):
    for figure in (
        draw_soft_tree(SoftTree(4), validation.images[0]),
        draw_tree(fitted, validation.images, levels=4),
        draw_path(SoftTree(12), validation.images[0]),
    ):
        figure.canvas.draw()
        boxes = [axes.get_tightbbox() for axes in figure.axes]
        assert all(
            box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1 for box in boxes
        )
        assert not any(one.overlaps(other) for place, one in enumerate(boxes) for other in boxes[:place])


def test_bad_input_gets_one_clear_error(fitted, validation):
    images, image = validation.images, validation.images[0]
    for match, call in {
        r"draw_soft_tree\(\): 'tree' must be a SoftTree": lambda: draw_soft_tree(fitted),
        r"draw_soft_tree\(\): 'tree' must be at most 4 deep .* of 5\. Did you": lambda: draw_soft_tree(SoftTree(5)),
        r"draw_soft_tree\(\): 'image' must be a tensor of 3 dim": lambda: draw_soft_tree(SoftTree(2), images),
        r"draw_path\(\): 'tree' must be a SoftTree": lambda: draw_path(None, image),
        r"draw_path\(\): 'image' must be a tensor of 3 dimensions": lambda: draw_path(SoftTree(2), image[0]),
        r"the model can't read images of shape \(1, 14, 14\)": lambda: draw_path(SoftTree(2), image[:, :14, :14]),
        r"draw_tree\(\): 'trees' must be what fit_trees returns": lambda: draw_tree(SoftTree(2), images),
        r"draw_tree\(\): 'levels' must be a whole number in \[1, 4\]": lambda: draw_tree(fitted, image, levels=5),
        r"draw_tree\(\): 'images' must be a tensor of 4 dimensions": lambda: draw_tree(fitted, image),
        r"draw_tree\(\): the model can't read images": lambda: draw_tree(fitted, images[:, :, :14]),
    }.items():
        with pytest.raises(ParameterError, match=match):
            call()


def test_images_that_remember_their_gradients_are_drawn_alike(fitted, few):
    images, tree = few.images[:20], SoftTree(2)
    tracked = images.clone().requires_grad_()
    draws = (
        lambda each: draw_tree(fitted, each),
        lambda each: draw_path(tree, each[0]),
        lambda each: draw_soft_tree(tree, each[0]),
    )
    for draw in draws:
        for found, expected in zip(pictures(draw(tracked)), pictures(draw(images)), strict=True):
            assert np.array_equal(found, expected)


def test_images_of_other_kinds_are_refused_in_words(fitted, few):
    tree = SoftTree(2)
    for wrong in (few.images[0, 0], few.images[0].numpy(), None):
        with pytest.raises(ParameterError, match=r"^draw_path\(\): 'image' must be a tensor of 3 dimensions"):
            draw_path(tree, wrong)
    for wrong in (few.images[:, 0], few.images.numpy()):
        with pytest.raises(ParameterError, match=r"^draw_tree\(\): 'images' must be a tensor of 4 dimensions"):
            draw_tree(fitted, wrong)
