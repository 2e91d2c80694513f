"""Decide which weights can go, and take them away."""

from kd_lab.pruning.channels import hard_prune, prune_channels, remove_channels, remove_layers
from kd_lab.pruning.groups import Group, channel_groups
from kd_lab.pruning.importance import IMPORTANCES, average_gradients, importances, layer_adaptive
from kd_lab.pruning.least_squares import (
    compensated_weight,
    damped_hessian,
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
    prune_layer_adaptive,
    prune_n_m,
    random_mask,
    rank,
    set_masks,
    weight_gradient_mask,
)
from kd_lab.pruning.schedules import Attempt, Attempts, cubic_sparsities, prune_gradually, prune_until, rewind
