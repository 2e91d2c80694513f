"""Decide which weights can go, and take them away."""

from kd_lab.pruning.importance import IMPORTANCES, average_gradients, importances
from kd_lab.pruning.masks import (
    SCOPES,
    Mask,
    Ranking,
    gradient_mask,
    magnitude_mask,
    prune,
    random_mask,
    rank,
    set_masks,
    weight_gradient_mask,
)

__all__ = ["IMPORTANCES", "SCOPES", "Mask", "Ranking", "average_gradients", "gradient_mask", "importances",
           "magnitude_mask", "prune", "random_mask", "rank", "set_masks", "weight_gradient_mask"]
