"""Let a trained network teach another: by its answers, its insides, its parameters; and a tree."""

from kd_lab.distillation.answers import (
    DistillationLoss,
    check_teacher,
    distil,
    distillation_loss,
    logit_loss,
    soft_loss,
    soft_targets,
    with_answers,
)
from kd_lab.distillation.insides import (
    Hinted,
    InsidesLoss,
    attention_loss,
    attention_map,
    distil_insides,
    hint_loss,
    layer_outputs,
    regressor,
    similarity_loss,
    similarity_map,
    train_on_hints,
)
from kd_lab.distillation.parameters import match_parameters, used_parameters
from kd_lab.distillation.search import Trial, best_trial, quiet_optuna, search_settings, try_setting
from kd_lab.distillation.soft_tree import Paths, SingleLeaf, SoftTree, balance_penalty
from kd_lab.distillation.student import small_student, student_recipe
from kd_lab.distillation.tree_picture import draw_path, draw_soft_tree, draw_tree
from kd_lab.distillation.trees import Trees, fit_trees
