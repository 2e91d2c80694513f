"""Decide which weights can go, and take them away."""

from kd_lab.pruning.allocation import allocate, sensitivity_scan
from kd_lab.pruning.importance import IMPORTANCES, average_gradients, importances, layer_adaptive
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
    prune_layer_adaptive,
    prune_n_m,
    random_mask,
    rank,
    set_masks,
    weight_gradient_mask,
)
from kd_lab.pruning.penalties import group_lasso_penalty, l1_penalty, l2_penalty
from kd_lab.pruning.schedules import Attempt, Outcome, cubic_sparsities, prune_gradually, prune_until, rewind
from kd_lab.pruning.structure import Group, channel_groups, channel_importances, find_groups, prune_channels
from kd_lab.pruning.surgery import (
    Form,
    build_form,
    form_of,
    hard_prune,
    load_pruned,
    remove_channels,
    remove_layers,
    save_pruned,
)
