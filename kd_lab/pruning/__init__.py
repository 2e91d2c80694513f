"""Decide which weights can go, and take them away."""

from kd_lab.pruning.allocation import allocate, sensitivity_scan
from kd_lab.pruning.importance import IMPORTANCES, average_gradients, importances
from kd_lab.pruning.least_squares import (
    compensated_weight,
    damped_hessian,
    layer_inputs,
    least_squares_importance,
    prune_least_squares,
)
from kd_lab.pruning.masks import (
    SCOPES,
    Mask,
    Ranking,
    gradient_mask,
    magnitude_mask,
    n_m_mask,
    prune,
    prune_n_m,
    random_mask,
    rank,
    set_masks,
    weight_gradient_mask,
)
from kd_lab.pruning.penalties import group_lasso_penalty, l1_penalty, l2_penalty
from kd_lab.pruning.schedules import Attempt, Outcome, cubic_sparsities, prune_gradually, prune_until, rewind
from kd_lab.pruning.structure import Group, channel_groups, channel_importances, find_groups, prune_channels
from kd_lab.pruning.surgery import hard_prune, load_pruned, remove_channels, remove_layers, save_pruned

__all__ = ["IMPORTANCES", "SCOPES", "Attempt", "Group", "Mask", "Outcome", "Ranking", "allocate", "average_gradients",
           "channel_groups", "channel_importances", "compensated_weight", "cubic_sparsities", "damped_hessian",
           "find_groups", "gradient_mask", "group_lasso_penalty", "hard_prune", "importances", "l1_penalty",
           "l2_penalty", "layer_inputs", "least_squares_importance", "load_pruned", "magnitude_mask", "n_m_mask",
           "prune", "prune_channels", "prune_gradually", "prune_least_squares", "prune_n_m", "prune_until",
           "random_mask", "rank", "remove_channels", "remove_layers", "rewind", "save_pruned", "sensitivity_scan",
           "set_masks", "weight_gradient_mask"]
