"""Convert a network to a LiteRT file: a script for the environment of `make litert`, which doesn't have kd_lab."""

import sys
from pathlib import Path

import litert_torch
import numpy as np
import torch
import torch.ao.quantization.fx._decomposed  # which defines the operations of a network on integers
from ai_edge_quantizer import quantizer, recipe
from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
from litert_torch.quantize.quant_config import QuantConfig


def convert(folder: Path, quantization: str) -> bytes:
    """Return the file of the network in this folder: as it is, on its "integers", or quantized by a recipe."""
    network = torch.export.load(folder / "network.pt2").module()
    images = np.load(folder / "images.npy")
    static = QuantConfig(PT2EQuantizer().set_global(get_symmetric_quantization_config()))  # as PyTorch would have it
    config = static if quantization == "integers" else None
    content = litert_torch.convert(network, (torch.from_numpy(images[:1]),), quant_config=config).model_content()
    if quantization in ("", "integers"):
        return content
    rounded = quantizer.Quantizer(content, getattr(recipe, quantization)())
    seen = rounded.calibrate({"serving_default": [{"args_0": image[None]} for image in images]}, num_threads=1)
    return rounded.quantize(seen).quantized_model


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    (folder / "network.tflite").write_bytes(convert(folder, sys.argv[2]))
