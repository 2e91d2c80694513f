"""Convert a network to a LiteRT file: a script for the environment of `make litert`, which doesn't have kd_lab."""

import sys
from pathlib import Path

import litert_torch
import numpy as np
import torch
from ai_edge_quantizer import quantizer, recipe


def convert(folder: Path, quantization: str) -> bytes:
    """Return the file of the network in this folder, quantized by the quantizer's recipe of this name, if any."""
    network = torch.export.load(folder / "network.pt2").module()
    images = np.load(folder / "images.npy")
    content = litert_torch.convert(network, (torch.from_numpy(images[:1]),)).model_content()
    if not quantization:
        return content
    rounded = quantizer.Quantizer(content, getattr(recipe, quantization)())
    seen = rounded.calibrate({"serving_default": [{"args_0": image[None]} for image in images]}, num_threads=1)
    return rounded.quantize(seen).quantized_model


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    (folder / "network.tflite").write_bytes(convert(folder, sys.argv[2]))
