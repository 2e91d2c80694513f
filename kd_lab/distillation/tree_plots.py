"""Draw trees that read digits: what every node looks at, the path of one digit, the answers at the leaves."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch
from torch import Tensor

from kd_lab.distillation.trees import SoftTree, Trees, check_soft_tree
from kd_lab.errors import ParameterError, check_kind, check_whole_number
from kd_lab.networks.checks import check_tensors
from kd_lab.networks.predictions import predict

if TYPE_CHECKING:
    from sklearn.tree import DecisionTreeRegressor

NO_CHILD = -1  # what scikit-learn calls the child of a leaf
MAX_DRAWN_DEPTH = 4  # as a whole; a deeper tree has more leaves than fit side by side
WIDTH, ROW = 11.0, 1.3  # inches
NO_TICKS: dict[str, Any] = {"xticks": [], "yticks": []}
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
        _show_digit(figure.add_subplot(cells[0].get_gridspec()[0, 0]), image)
    return figure


def draw_path(tree: SoftTree, image: Tensor) -> Figure:
    """Draw one digit (1, 28, 28), the filters on its most probable path, and the answer of the leaf at its end.

    Above each filter stand the turn there and its probability. The colours are those of `draw_soft_tree`; the tree may
    have any depth.
    """
    check_soft_tree(tree)
    (_root, *path), filters = _path(tree, image).items(), _filters(tree)
    count = tree.depth + 2
    figure, row = plt.subplots(1, count, figsize=(1.1 * count, 1.6), layout="constrained", subplot_kw=NO_TICKS)
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
    with little ink there goes left, one with more goes right. Where a tree is deeper, a dashed frame holds the mean
    answer of the leaves further down, and the picture says how many they are.
    """
    check_kind("trees", trees, Trees, "what fit_trees returns")
    levels = check_whole_number("levels", levels, f"[1, {MAX_DRAWN_DEPTH}]")
    check_tensors(4, images=images)
    predict(trees, images[:1])  # names images that it can't read
    tree = trees.estimators[0]
    nodes = _nodes(tree, levels)
    images = images.detach()
    reached = torch.tensor(tree.decision_path(images.flatten(1).numpy()).toarray(), dtype=torch.bool)  # (N, nodes)
    ends = [place for place in nodes if 2 * place + 1 not in nodes]
    cut = [place for place in ends if tree.tree_.children_left[nodes[place]] != NO_CHILD]
    note = "Left: little ink at the marked pixel.\nRight: more."
    if cut:
        leaves = tree.get_n_leaves()
        note += f"\nDashed: mean of leaves further down ({leaves - len(ends) + len(cut)} of {leaves})."
    figure, cells = _draw_tree(nodes, levels, {}, note)
    for place, axes in cells.items():
        if place in ends:
            _show_answer(axes, torch.tensor(tree.tree_.value[nodes[place], :, 0]), False)
        else:
            _show_question(axes, images[reached[:, nodes[place]]], int(tree.tree_.feature[nodes[place]]))
        axes.spines[:].set(color=DARK if place in cut else PALE, linestyle="--" if place in cut else "-")
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
        if place in nodes and tree.tree_.children_left[nodes[place]] != NO_CHILD:
            nodes[2 * place + 1] = tree.tree_.children_left[nodes[place]]
            nodes[2 * place + 2] = tree.tree_.children_right[nodes[place]]
    return nodes


def _draw_tree(places: Iterable[int], levels: int, path: dict[int, float], note: str) -> tuple[Figure, dict[int, Axes]]:
    """Return a figure of the edges, those on the path with their probability, and Axes for each place."""
    figure = plt.figure(figsize=(WIDTH, (levels + 1) * ROW), dpi=80)
    figure.text(0.97, 0.95, note, ha="right", va="top", fontsize=9, color=DARK, linespacing=1.5)
    grid = figure.add_gridspec(levels + 1, 2**levels, left=0.02, right=0.98, top=0.93, hspace=0.6)
    cells: dict[int, Axes] = {}
    for place in places:
        level = (place + 1).bit_length() - 1
        columns = 2 ** (levels - level)  # as many as leaves below
        left = (place + 1 - 2**level) * columns
        cells[place] = figure.add_subplot(grid[level, left : left + columns], box_aspect=1, **NO_TICKS)
        if place:
            _draw_edge(figure, cells[(place - 1) // 2], cells[place], path.get(place))
    return figure, cells


def _draw_edge(figure: Figure, parent: Axes, child: Axes, probability: float | None) -> None:
    style = {"color": PALE, "linewidth": 1} if probability is None else {"color": PATH, "linewidth": 2.5}
    ends = (0.5, 0), (0.5, 1)  # from the bottom of the parent to the top of the child
    figure.add_artist(ConnectionPatch(*ends, "axes fraction", axesA=parent, axesB=child, zorder=-1, **style))
    if probability is not None:
        around = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
        child.set_title(f"{100 * probability:.0f} %", fontsize=9, color=PATH, bbox=around)


def _show_digit(axes: Axes, image: Tensor) -> None:
    axes.imshow(image[0].detach().numpy(), cmap="gray_r", interpolation="nearest")
    axes.axis("off")


def _show_filter(axes: Axes, weights: Tensor, image: Tensor | None) -> None:
    limit = float(weights.abs().max())
    colors = plt.get_cmap("RdBu_r", 15)  # few, so that the picture takes half of the bytes in a notebook
    axes.imshow(weights.numpy(), cmap=colors, vmin=-limit, vmax=limit, interpolation="nearest")
    if image is not None:  # its outline
        ink = image[0].detach().float().numpy()
        axes.contour(ink, levels=[float(ink.min() + ink.max()) / 2], colors="black", linewidths=0.8)


def _show_question(axes: Axes, images: Tensor, pixel: int) -> None:
    axes.imshow(images.detach().float().mean(dim=0)[0].numpy(), cmap="gray_r", interpolation="nearest")
    axes.plot(pixel % 28, pixel // 28, "s", color=PATH, fillstyle="none", markersize=6, markeredgewidth=2)


def _show_answer(axes: Axes, answer: Tensor, on_path: bool) -> None:
    """Draw the distribution of a leaf over the digits, 0 on the left, and the digit that it answers with."""
    color, digit = PATH if on_path else DARK, int(answer.argmax())
    bars = axes.bar(range(len(answer)), answer.numpy(), color=PALE)
    bars[digit].set_facecolor(color)
    axes.set(ylim=(0, 1))
    axes.set_xlabel(str(digit), fontsize=13, fontweight="bold", color=color, labelpad=2)
