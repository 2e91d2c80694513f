"""The kit's networks by name, the layers of any network, and parametrizations of its weights."""

from kd_lab.networks.inputs import layer_inputs
from kd_lab.networks.layers import describe, weighted_layers, weights
from kd_lab.networks.modes import evaluation_mode
from kd_lab.networks.permanent import make_permanent
from kd_lab.networks.predictions import predict
from kd_lab.networks.transformer import SelfAttention
from kd_lab.networks.zoo import MODELS, build_model, separable_convolutions, small_convolutions, small_student
