"""Compute with few bits: weights, activations, whole models, real integers."""

from kd_lab.quantization.activations import fold_batch_norm, output_errors, quantize_activations, quantize_model
from kd_lab.quantization.codebook import CodebookQuantizer, kmeans, share_weights
from kd_lab.quantization.grids import (
    CALIBRATIONS,
    dequantize,
    fake_quantize,
    find_grid,
    integer_range,
    quantize,
    scale_and_zero_point,
)
from kd_lab.quantization.integer import (
    Dequantize,
    IntegerConv2d,
    IntegerLayer,
    IntegerLinear,
    IntegerMaxPool2d,
    QuantizeInput,
    Requantize,
    to_integer,
)
from kd_lab.quantization.weights import (
    GRANULARITIES,
    BinaryQuantizer,
    FakeQuantizer,
    Quantizer,
    TernaryQuantizer,
    quantize_weights,
    ternarize_weights,
)
