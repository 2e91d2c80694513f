"""Trees as students: a soft tree, trained by gradients, and ordinary ones, fitted to a teacher's answers.

Frosst & Hinton 2017, arXiv 1711.09784; Breiman 2001, Random Forests.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lab.errors import ParameterError, check_kind, check_whole_number
from kd_lab.networks.checks import check_tensors
from kd_lab.networks.predictions import example_images, predict
from kd_lab.networks.zoo import initial_weights

if TYPE_CHECKING:
    from sklearn.tree import DecisionTreeRegressor

MIN_PROBABILITY = 1e-6  # in an answer: the logarithm of zero would not be finite
PIXELS, DIGITS = 28 * 28, 10
MIN_LOG_REACH = -80  # the logarithm of the smallest probability that float32 still holds well


class Paths(NamedTuple):
    """The most probable path of each of N images.

    `nodes` (N, depth) are the inner nodes on it, `right` (N, depth) the turns there and `probabilities` (N, depth)
    those of these turns; `leaf` (N,) is where it ends, counted from the left.
    """

    nodes: Tensor
    right: Tensor
    probabilities: Tensor
    leaf: Tensor


class SoftTree(nn.Module):
    """Send each image to all leaves, to every one with a probability, and mix their answers.

    Inner node i goes right with probability sigmoid(beta_i·(w_i·x + b_i)), and its children are 2i + 1 and 2i + 2; a
    leaf holds one distribution over the digits, whatever the image. `depth` is 1 to 12; the initial weights are those
    that belong to `seed`.
    """

    @torch.inference_mode(False)  # whose tensors could never be trained
    def __init__(self, depth: int, seed: int = 0):
        super().__init__()
        self.depth = depth = check_whole_number("depth", depth, "[1, 12]")
        seed = check_whole_number("seed", seed, "[0, 1000000]")
        with initial_weights(seed):
            self.filters = nn.Linear(PIXELS, 2**depth - 1)
            self.leaves = nn.Parameter(torch.randn(2**depth, DIGITS))  # alike, they would all learn the same
            self.beta = nn.Parameter(torch.ones(2**depth - 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the log-probabilities (N, 10) of the mixture of all leaves, finite for all finite x and weights."""
        answers = self.log_answers()
        highest = answers.amax(dim=0).detach()  # of each digit, so that no sum below is zero
        reach = self.log_levels(self.log_turns(x))[-1].clamp(min=MIN_LOG_REACH).exp()  # (N, leaves)
        return (reach @ (answers - highest).exp()).log() + highest  # a logsumexp over the leaves, as a matrix product

    def log_answers(self) -> Tensor:
        """Return the log-probabilities of the digits at each leaf, (leaves, 10)."""
        return F.log_softmax(self.leaves, dim=1)

    def log_turns(self, x: Tensor) -> Tensor:
        """Return the log-probabilities of the turns left and right at each inner node, (N, nodes, 2)."""
        steepness = self.beta * self.filters(x.flatten(1))  # (N, nodes)
        return F.logsigmoid(torch.stack([-steepness, steepness], dim=2))

    def log_levels(self, turns: Tensor) -> list[Tensor]:
        """Return the log-probabilities that the nodes of each level, (N, 2^level), are reached, the leaves last."""
        levels = [turns.new_zeros(len(turns), 1)]
        for level in range(self.depth):
            first = 2**level - 1
            children = levels[-1].unsqueeze(2) + turns[:, first : 2 * first + 1]
            levels.append(children.flatten(1))  # siblings side by side
        return levels

    def paths(self, images: Tensor) -> Paths:
        """Return the most probable path of each image (N, 1, 28, 28), the one to its most probable leaf."""
        predict(self, example_images(images, 1))  # names images that it can't read
        with torch.no_grad():
            turns = self.log_turns(images)
            leaf = self.log_levels(turns)[-1].argmax(dim=1)
        level, leaves = torch.arange(self.depth), leaf.unsqueeze(1)
        nodes = 2**level - 1 + (leaves >> (self.depth - level))
        right = leaves >> (self.depth - 1 - level) & 1  # the number of a leaf, in binary, says the turns to it
        probabilities = turns[torch.arange(len(images)).unsqueeze(1), nodes, right].exp()
        return Paths(nodes, right.bool(), probabilities, leaf)


class SingleLeaf(nn.Module):
    """Answer with the most probable leaf of a soft tree alone, as the paper does: one path then explains the answer."""

    def __init__(self, tree: SoftTree):
        super().__init__()
        check_soft_tree(tree)
        self.tree = tree

    def forward(self, x: Tensor) -> Tensor:
        """Return the log-probabilities (N, 10) that this leaf holds."""
        return self.tree.log_answers()[self.tree.log_levels(self.tree.log_turns(x))[-1].argmax(dim=1)]


def balance_penalty(tree: SoftTree, images: Tensor) -> Tensor:
    """Return how far the inner nodes are from sending half of what reaches them either way: equations 4 and 5.

    -Σ 2^-level·(log a + log(1 - a))/2, where a is a node's mean probability of going right, weighed by how probably
    each image (N, 1, 28, 28) gets there. Without it, nodes that send all digits one way leave half a tree unused.
    """
    check_soft_tree(tree)
    check_tensors(images=images)
    predict(tree, example_images(images, 1))  # names images that it can't read
    turns = tree.log_turns(images)
    reached = torch.cat(tree.log_levels(turns)[:-1], dim=1)  # (N, nodes)
    shares = torch.logsumexp(reached.unsqueeze(2) + turns, dim=0) - torch.logsumexp(reached, dim=0).unsqueeze(1)
    strength = torch.cat([turns.new_full((2**level,), 0.5**level) for level in range(tree.depth)])
    return -(strength * shares.mean(dim=1)).sum()


def check_soft_tree(tree: object) -> None:
    """Raise a ParameterError unless it is a soft tree."""
    check_kind("tree", tree, SoftTree, "a SoftTree")


class Trees(nn.Module):
    """Answer as a network does with the mean of fitted decision trees; nothing in it can be trained by gradients."""

    def __init__(self, estimators: "list[DecisionTreeRegressor]"):
        super().__init__()
        self.estimators = estimators

    def forward(self, x: Tensor) -> Tensor:
        """Return the log-probabilities (N, 10) of the mean of the leaves that images (N, 1, 28, 28) reach."""
        pixels = x.detach().flatten(1).float().contiguous().numpy()  # scikit-learn's trees take float32
        answers = np.mean([tree.predict(pixels, check_input=False) for tree in self.estimators], axis=0)
        return torch.from_numpy(answers).float().clamp(min=MIN_PROBABILITY).log()


def fit_trees(images: Tensor, answers: Tensor, *, max_leaf_nodes: int, trees: int = 1, seed: int = 0) -> Trees:
    """Return a tree, or a forest, fitted to probabilities (N, classes), whose mean each leaf then holds.

    Answers are `soft_targets` of a teacher's logits, or labels as one_hot, for which the squared error that is made
    small is Gini's impurity. The tree looks for the best of all pixels at each node; a forest's trees get each their
    own sample of the images and, at each node, of the pixels. Raises a ParameterError for answers that are not
    probabilities or not as many as the images (N, 1, 28, 28).
    """
    from sklearn.ensemble import RandomForestRegressor  # takes seconds, and is needed only here

    max_leaf_nodes = check_whole_number("max_leaf_nodes", max_leaf_nodes, "[2, 60000]")
    trees = check_whole_number("trees", trees, "[1, 1000]")
    seed = check_whole_number("seed", seed, "[0, 1000000]")
    _check_examples(images, answers)
    sampled = {"bootstrap": True, "max_features": "sqrt"} if trees > 1 else {"bootstrap": False, "max_features": 1.0}
    forest = RandomForestRegressor(trees, max_leaf_nodes=max_leaf_nodes, random_state=seed, n_jobs=1, **sampled)
    return Trees(forest.fit(images.detach().flatten(1).numpy(), answers.detach().numpy()).estimators_)


def _check_examples(images: Tensor, answers: Tensor) -> None:
    check_tensors(4, torch.float32, images=images)
    check_tensors(2, answers=answers)
    if len(images) != len(answers):
        raise ParameterError(f"'images' and 'answers' must be equally many. Got {len(images)} and {len(answers)}.")
    if answers.min() < 0 or (answers.sum(dim=1) - 1).abs().max() > 1e-3:
        raise ParameterError(
            "'answers' must be probabilities (N, classes), as soft_targets(logits, "
            "temperature) gives. Got rows that do not sum to 1."
        )
