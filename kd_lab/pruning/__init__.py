"""Decide which weights can go, and take them away."""

from kd_lab.pruning.allocation import allocate, sensitivity_scan
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
from kd_lab.pruning.penalties import group_lasso_penalty, l1_penalty, l2_penalty
from kd_lab.pruning.schedules import Attempt, Outcome, cubic_sparsities, prune_gradually, prune_until, rewind

__all__ = ["IMPORTANCES", "SCOPES", "Attempt", "Mask", "Outcome", "Ranking", "allocate", "average_gradients",
           "cubic_sparsities", "gradient_mask", "group_lasso_penalty", "importances", "l1_penalty", "l2_penalty",
           "magnitude_mask", "prune", "prune_gradually", "prune_until", "random_mask", "rank", "rewind",
           "sensitivity_scan", "set_masks", "weight_gradient_mask"]
