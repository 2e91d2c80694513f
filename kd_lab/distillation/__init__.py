"""Let a trained network teach another, by its answers or its features, or teach a tree."""

from kd_lab.distillation.answers import (
    DistillationLoss,
    distil,
    distillation_loss,
    logit_loss,
    soft_loss,
    soft_targets,
    with_answers,
)
from kd_lab.distillation.features import (
    FeatureLoss,
    Hinted,
    attention_loss,
    attention_map,
    distil_features,
    hint_loss,
    layer_outputs,
    regressor,
    similarity_loss,
    similarity_map,
    train_on_hints,
)
from kd_lab.distillation.tree_plots import draw_path, draw_soft_tree, draw_tree
from kd_lab.distillation.trees import Paths, SingleLeaf, SoftTree, Trees, balance_penalty, fit_trees
