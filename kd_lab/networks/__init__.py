"""The kit's networks by name, the layers of any network, and parametrizations of its weights."""

from kd_lab.networks.layers import describe, evaluation_mode, make_permanent, predict, weighted_layers, weights
from kd_lab.networks.zoo import MODELS, build_model, small_student
