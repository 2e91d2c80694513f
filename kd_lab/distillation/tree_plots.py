"""Draw trees that read digits: what every node looks at, the path of one digit, the answers at the leaves."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from kd_lab.distillation.trees import SoftTree, Trees, check_soft_tree
from kd_lab.errors import ParameterError, check_kind, check_whole_number
from kd_lab.networks.layers import check_tensors, predict

if TYPE_CHECKING:
    from sklearn.tree import DecisionTreeRegressor

MAX_DRAWN_DEPTH = 4  # as a whole; a deeper tree has more leaves than fit side by side
WIDTH, ROW, CELL, MARGIN = 11.0, 1.3, 0.8, 0.35  # inches
PATH, PALE, DARK = "#15803d", "#c3c8d0", "#374151"


def draw_soft_tree(tree: SoftTree, image: Tensor | None = None) -> Figure:
    """Draw a soft tree of depth 1 to 4: the filters of its nodes, the answers of its leaves, the path of one digit.

    Where a filter is red, ink sends a digit right; where it is blue, left. The most probable path of `image`
    (1, 28, 28) is drawn with its outline and the probabilities of its turns. Raises a ParameterError for a deeper tree.
    """
    check_soft_tree(tree)
    if tree.depth > MAX_DRAWN_DEPTH:
        raise ParameterError(
            f"'tree' must be at most {MAX_DRAWN_DEPTH} deep to be drawn as a whole. "
            f"Got a depth of {tree.depth}. Did you mean draw_path(tree, image)?"
        )
    path = {} if image is None else _path(tree, image)
    note = "Red: ink here sends right.\nBlue: ink here sends left."
    figure, cells = _draw_tree(range(2 ** (tree.depth + 1) - 1), tree.depth, path, note)
    filters, answers = _filters(tree), tree.log_answers().detach().exp()
    for node, axes in cells.items():
        on_path = node in path
        if node < len(filters):
            _show_filter(axes, filters[node], image if on_path else None)
        else:
            _show_answer(axes, answers[node - len(filters)], on_path)
        axes.spines[:].set(color=PATH if on_path else PALE, linewidth=2 if on_path else 1)
    if image is not None:
        _show_digit(figure.add_axes(_rectangle(figure, MARGIN, MARGIN, CELL)), image)
    return figure


def draw_path(tree: SoftTree, image: Tensor) -> Figure:
    """Draw one digit (1, 28, 28), the filters on its most probable path, and the answer of the leaf at its end.

    Above each filter stand the turn there and its probability. The colours are those of `draw_soft_tree`; the tree may
    have any depth.
    """
    check_soft_tree(tree)
    (_root, *path), filters = _path(tree, image).items(), _filters(tree)
    figure, row = plt.subplots(1, tree.depth + 2, figsize=(1.1 * (tree.depth + 2), 1.6), layout="constrained")
    _show_digit(row[0], image)
    for axes, (node, probability) in zip(row[1:-1], path, strict=True):
        _show_filter(axes, filters[(node - 1) // 2], image)
        axes.set_title(f"{'left' if node % 2 else 'right'} {100 * probability:.0f} %", fontsize=9, color=PATH)
    _show_answer(row[-1], tree.log_answers()[node - len(filters)].detach().exp(), True)
    row[-1].set_box_aspect(1)
    return figure


def draw_tree(trees: Trees, images: Tensor, levels: int = 3) -> Figure:
    """Draw the questions of the top 1 to 4 levels of a fitted tree, the first if there are several, and the answers.

    Each node is the mean of those `images` (N, 1, 28, 28) that reach it, and shows the one pixel that it asks; a digit
    with little ink there goes left, one with more goes right.
    """
    check_kind("trees", trees, Trees, "what fit_trees returns")
    check_whole_number("levels", levels, f"[1, {MAX_DRAWN_DEPTH}]")
    check_tensors(4, images=images)
    predict(trees, images[:1])  # names images that it can't read
    tree = trees.estimators[0]
    nodes = _nodes(tree, levels)
    reached = torch.tensor(tree.decision_path(images.flatten(1).numpy()).toarray(), dtype=torch.bool)  # (N, nodes)
    figure, cells = _draw_tree(nodes, levels, {}, "Left: little ink at the marked pixel.\nRight: more.")
    for place, axes in cells.items():
        if 2 * place + 1 in nodes:
            _show_question(axes, images[reached[:, nodes[place]]], int(tree.tree_.feature[nodes[place]]))
        else:
            _show_answer(axes, torch.tensor(tree.tree_.value[nodes[place], :, 0]), False)
        axes.spines[:].set(color=PALE)
    return figure


def _path(tree: SoftTree, image: Tensor) -> dict[int, float]:
    """Return the nodes on the most probable path of an image, each with how probably it follows the one before.

    A leaf is counted as if it were the next of the inner nodes.
    """
    check_tensors(3, image=image)
    predict(tree, image.unsqueeze(0))  # names an image that it can't read
    nodes, right, probabilities, _leaf = (part[0] for part in tree.paths(image.unsqueeze(0)))
    return {0: 1.0} | dict(zip((2 * nodes + 1 + right).tolist(), probabilities.tolist(), strict=True))


def _filters(tree: SoftTree) -> Tensor:
    """Return by how much ink at a pixel draws a digit right, (nodes, 28, 28); beta may turn the weights' sign."""
    return (tree.beta.unsqueeze(1) * tree.filters.weight).detach().unflatten(1, (28, 28))


def _nodes(tree: "DecisionTreeRegressor", levels: int) -> dict[int, int]:
    """Return the numbers of the nodes by their places; the places below i are 2i + 1 and 2i + 2."""
    nodes = {0: 0}
    for place in range(2**levels - 1):
        if place in nodes and tree.tree_.children_left[nodes[place]] != -1:  # no leaf
            nodes[2 * place + 1] = tree.tree_.children_left[nodes[place]]
            nodes[2 * place + 2] = tree.tree_.children_right[nodes[place]]
    return nodes


def _draw_tree(places: Iterable[int], levels: int, path: dict[int, float], note: str) -> tuple[Figure, dict[int, Axes]]:
    """Return a figure of the edges, those on the path with their probability, and Axes for each place."""
    figure = plt.figure(figsize=(WIDTH, levels * ROW + CELL + 2 * MARGIN), dpi=80)
    ground = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(figure.get_figheight(), 0))  # in inches
    ground.axis("off")
    ground.text(WIDTH - MARGIN, MARGIN, note, ha="right", va="top", fontsize=9, color=DARK, linespacing=1.5)
    cells = {}
    for place in places:
        x, y, size = _square(place)
        cells[place] = figure.add_axes(_rectangle(figure, x - size / 2, y - size / 2, size))
        if place:
            _draw_edge(ground, _square((place - 1) // 2), (x, y, size), path.get(place))
    return figure, cells


def _square(place: int) -> tuple[float, float, float]:
    """Return the middle and the size of a place, in inches from the top left."""
    level = (place + 1).bit_length() - 1
    spacing = WIDTH / 2**level
    return (place + 1.5 - 2**level) * spacing, MARGIN + CELL / 2 + level * ROW, min(CELL, 0.85 * spacing)


def _rectangle(figure: Figure, left: float, top: float, size: float) -> tuple[float, float, float, float]:
    """Return a square, given in inches from the top left, as add_axes wants it."""
    height = figure.get_figheight()
    return left / WIDTH, 1 - (top + size) / height, size / WIDTH, size / height


def _draw_edge(
    ground: Axes, parent: tuple[float, float, float], child: tuple[float, float, float], probability: float | None
) -> None:
    xs, ys = (parent[0], child[0]), (parent[1] + parent[2] / 2, child[1] - child[2] / 2)
    if probability is None:
        ground.plot(xs, ys, color=PALE, linewidth=1)
        return
    ground.plot(xs, ys, color=PATH, linewidth=2.5)
    around = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    middle, said = (sum(xs) / 2, sum(ys) / 2), f"{100 * probability:.0f} %"
    ground.text(*middle, said, color=PATH, fontsize=9, ha="center", va="center", bbox=around)


def _show_digit(axes: Axes, image: Tensor) -> None:
    axes.imshow(image[0].numpy(), cmap="gray_r", interpolation="nearest")
    axes.axis("off")


def _show_filter(axes: Axes, weights: Tensor, image: Tensor | None) -> None:
    limit = float(weights.abs().max())
    axes.imshow(weights.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    if image is not None:  # its outline
        axes.contour(image[0].numpy(), levels=[float(image.min() + image.max()) / 2], colors="black", linewidths=0.8)
    axes.set(xticks=[], yticks=[])


def _show_question(axes: Axes, images: Tensor, pixel: int) -> None:
    axes.imshow(images.mean(dim=0)[0].numpy(), cmap="gray_r", interpolation="nearest")
    axes.plot(pixel % 28, pixel // 28, "s", color=PATH, fillstyle="none", markersize=6, markeredgewidth=2)
    axes.set(xticks=[], yticks=[])


def _show_answer(axes: Axes, answer: Tensor, on_path: bool) -> None:
    """Draw the distribution of a leaf over the digits, 0 on the left, and the digit that it answers with."""
    color, digit = PATH if on_path else DARK, int(answer.argmax())
    bars = axes.bar(range(len(answer)), answer.numpy(), color=PALE)
    bars[digit].set_facecolor(color)
    axes.set(xticks=[], yticks=[], ylim=(0, 1))
    axes.set_xlabel(str(digit), fontsize=13, fontweight="bold", color=color, labelpad=2)
