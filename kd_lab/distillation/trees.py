"""Fit ordinary decision trees to a teacher's answers, and let them teach in turn: Breiman 2001, Random Forests."""

import numpy as np
import torch
from sklearn.ensemble import RandomForestRegressor
from sklearn.tree import DecisionTreeRegressor
from torch import Tensor, nn

from kd_lab.errors import ParameterError, check_whole_number
from kd_lab.models import check_tensors

LEAST = 1e-6  # the smallest probability in an answer: the logarithm of zero would not be finite


class Trees(nn.Module):
    """Answer as a network does with the mean of fitted decision trees; nothing in it can be trained by gradients."""

    def __init__(self, estimators: list[DecisionTreeRegressor]):
        super().__init__()
        self.estimators = estimators

    def forward(self, x: Tensor) -> Tensor:
        """Return the log-probabilities (N, 10) of the mean of the leaves that images (N, 1, 28, 28) reach."""
        pixels = x.flatten(1).contiguous().numpy()
        answers = np.mean([tree.predict(pixels, check_input=False) for tree in self.estimators], axis=0)
        return torch.from_numpy(answers).float().clamp(min=LEAST).log()


def fit_trees(images: Tensor, answers: Tensor, *, max_leaf_nodes: int, trees: int = 1, seed: int = 0) -> Trees:
    """Return a tree, or a forest, fitted to probabilities (N, classes), whose mean each leaf then holds.

    Answers are `soft_targets` of a teacher's logits, or labels as one_hot, for which the squared error that is made
    small is Gini's impurity. The tree looks for the best of all pixels at each node; a forest's trees get each their
    own sample of the images and, at each node, of the pixels. Raises a ParameterError for answers that are not
    probabilities or not as many as the images (N, 1, 28, 28).
    """
    check_whole_number("max_leaf_nodes", max_leaf_nodes, "[2, 60000]")
    check_whole_number("trees", trees, "[1, 1000]")
    check_whole_number("seed", seed, "[0, 1000000]")
    _check_examples(images, answers)
    sampled = {"bootstrap": True, "max_features": "sqrt"} if trees > 1 else {"bootstrap": False, "max_features": 1.0}
    forest = RandomForestRegressor(trees, max_leaf_nodes=max_leaf_nodes, random_state=seed, n_jobs=1, **sampled)
    return Trees(forest.fit(images.flatten(1).numpy(), answers.detach().numpy()).estimators_)


def _check_examples(images: Tensor, answers: Tensor) -> None:
    check_tensors(4, torch.float32, images=images)
    check_tensors(2, answers=answers)
    if len(images) != len(answers):
        raise ParameterError(f"'images' and 'answers' must be equally many. Got {len(images)} and {len(answers)}.")
    if answers.min() < 0 or not torch.allclose(answers.sum(dim=1).float(), torch.ones(len(answers)), atol=1e-3):
        raise ParameterError(
            "'answers' must be probabilities (N, classes), as soft_targets(logits, "
            "temperature) gives. Got rows that do not sum to 1."
        )
