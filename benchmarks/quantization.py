"""Quantize over five seeds: without training, at 2 bits with it, with one bit; recorded in results/.

Scores the record again, and measures files and the slider here and now; --rerun makes the record anew, which takes
about half an hour. Settings were chosen on the validation part; the test part is read once for each network reported.
"""

import copy
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import nn
from torch.utils.data import DataLoader, Subset

from benchmarks._campaign import Campaign, answers, campaign
from benchmarks.train import usual_images
from kd_lab.checkpoints import load_trained
from kd_lab.cost import file_bytes
from kd_lab.data import Mnist, load_mnist
from kd_lab.formats import save_network
from kd_lab.networks.layers import weighted_layers
from kd_lab.panels import QuantizationPanel
from kd_lab.quantization import quantize_model, quantize_weights
from kd_lab.results import Record, load_results
from kd_lab.training import train

NETWORKS = ("lenet300", "cnn")
CALIBRATION_IMAGES = 1000  # of the training part
EIGHT_BITS = {"weight_bits": 8, "activation_bits": 8, "calibration": "min_max"}
FOUR_BITS = {"num_bits": 4, "symmetric": False}
TWO_BITS = {"num_bits": 2}
TRAINING = {
    "lenet300": {"epochs": 3, "learning_rate": 1e-3, "batch_size": 128},
    "cnn": {"epochs": 4, "learning_rate": 2e-3, "batch_size": 128},
}
BINARY_WIDTHS = (800, 400)
BINARY_TRAINING = {"epochs": 18, "learning_rate": 3e-3, "batch_size": 128}
BITS, BATCH_SIZE = range(1, 9), 64  # of the slider; of the DataLoader, as in PyTorch's quickstart


def run(rerun: bool, workers: int | None = None, dask: str | None = None) -> dict[str, float]:
    """Print the tables and return the figures; with `rerun`, make the record first."""
    if rerun:
        with campaign("quantization", workers, dask) as running:
            for part in (networks, binary):
                running.keep(part.__name__, part(running))
    recorded = load_results("quantization")
    return {**score_networks(recorded), **score_binary(recorded), **file_figures(), **slider_figures(load_mnist())}


def networks(running: Campaign) -> dict:
    """Return for each network and seed the test answers dense, at 8, 4 and 2 bits, and at 2 bits after training."""
    settings = {"w8a8": EIGHT_BITS, "w4": FOUR_BITS, "w2": TWO_BITS, "training": TRAINING}
    return {"settings": settings, **running.grid("networks", quantized, name=NETWORKS)}


def quantized(name: str, seed: int, data: Mnist) -> dict[str, dict]:
    """Return the answers of one network from one seed, quantized in each of the ways."""
    dense = load_trained(name, seed)
    models = {
        "dense": dense,
        "w8a8": quantize_model(dense, data.train.images[:CALIBRATION_IMAGES], **EIGHT_BITS),
        "w4": quantize_weights(dense, **FOUR_BITS),
        "w2": quantize_weights(dense, **TWO_BITS),
    }
    models["w2_qat"] = train(
        models["w2"],
        data.train,
        F.cross_entropy,
        validation=data.validation,
        seed=seed,
        progress=False,
        **TRAINING[name],
    )[0]
    found = {way: answers(model, data) for way, model in models.items()}
    print(f"{name}, seed {seed}: {[each['validation_error'] for each in found.values()]} % on validation", flush=True)
    return found


def binary(running: Campaign) -> dict:
    """Return for each seed what a network of binary weights reads wrongly, and the seconds that its training took."""
    found = running.seeds("binary", binary_seed)
    return {"widths": list(BINARY_WIDTHS), "training": BINARY_TRAINING, "seeds": found}


def binary_seed(seed: int, data: Mnist) -> dict:
    """Return what the network of one seed reads wrongly; the seconds are those of the worker's one core."""
    start = time.process_time()
    model, _ = train(
        quantize_weights(binary_network(seed), 1),
        data.train,
        F.cross_entropy,
        validation=data.validation,
        seed=seed,
        progress=False,
        **BINARY_TRAINING,
    )
    return {"cpu_seconds": round(time.process_time() - start), **answers(model, data)}


def binary_network(seed: int) -> nn.Module:
    """Build a fully connected network with BatchNorm, which gives each unit back the scale that signs take away."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        widths = (784, *BINARY_WIDTHS)
        hidden = [
            module
            for inputs, outputs in zip(widths, BINARY_WIDTHS, strict=False)
            for module in (nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU(), nn.Dropout(0.2))
        ]
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.1), *hidden, nn.Linear(widths[-1], 10))


def score_networks(recorded: Record) -> dict[str, float]:
    """Print what each way costs in points of accuracy, and return that under its name."""
    rows, figures = [], {}
    for name in NETWORKS:
        dense = recorded.errors(name, "dense")
        for way in ("w8a8", "w4", "w2", "w2_qat"):
            lost = recorded.errors(name, way) - dense
            rows.append([name, way, dense.mean, recorded.errors(name, way).mean, lost.mean, *lost.interval])
            figures[f"quantization.{name}.{way}_delta"] = lost.mean
    headers = ["network", "quantized", "dense error, %", "error, %", "lost, points", "from", "to (95 %)"]
    print(tabulate(rows, headers, floatfmt=".2f"))
    return figures


def score_binary(recorded: Record) -> dict[str, float]:
    """Print the error of the network of binary weights and what its training took."""
    found, seconds = recorded.errors("binary"), median(recorded.figures("binary", "cpu_seconds").values)
    print(f"binary weights, {recorded.part('binary', 'widths')}, error in %: {found!r}; {seconds} s of training")
    return {"quantization.binary_error": found.mean, "quantization.binary_cpu_seconds": seconds}


def file_figures() -> dict[str, float]:
    """Print how many times smaller the files of quantized weights are than the dense one."""
    dense, sizes = load_trained("lenet300"), {}
    with tempfile.TemporaryDirectory() as folder:
        for bits in (8, 4, 2, 1):
            path = Path(folder) / f"{bits}.safetensors"
            save_network(path, quantize_weights(dense, bits))
            sizes[bits] = path.stat().st_size
    print(
        tabulate(
            [[bits, f"{size:,}", file_bytes(dense) / size] for bits, size in sizes.items()],
            ["bits", "bytes of lenet300", "times smaller"],
            floatfmt=".2f",
        )
    )
    return {f"quantization.w{bits}_file_ratio": file_bytes(dense) / size for bits, size in sizes.items()}


def slider_figures(data: Mnist) -> dict[str, float]:
    """Print one move of the slider of bits beside the way a user would write it, in turn, and return the figures."""
    usual = usual_images(part=1)
    figures = {name: slider(name, data, usual) for name in NETWORKS}
    print(
        tabulate([[name, *row.values()] for name, row in figures.items()], ["network", *figures["cnn"]], floatfmt=".1f")
    )
    return {f"quantization.slider.{name}.{key}": value for name, row in figures.items() for key, value in row.items()}


def slider(name: str, data: Mnist, usual: Subset) -> dict[str, float]:
    """Return medians in milliseconds over the bits, and ratios, of both ways to accuracy on all of validation.

    A user has torch's usual layout; with the kit's own, channels_last, the usual way is faster, so it is timed, too.
    """
    model = load_trained(name)
    usual_models = {"usual": copy.deepcopy(model).to(memory_format=torch.contiguous_format), "channels_last": model}
    panel = QuantizationPanel(model, data)
    panel.flush()
    rounds = list(slider_rounds(panel, usual_models, usual))
    panel.close()
    figures = {f"{key}_ms": 1000 * median(times[key] for times in rounds) for key in rounds[0]}
    return figures | {
        "ratio": figures["usual_ms"] / figures["ours_ms"],
        "channels_last_ratio": figures["channels_last_ms"] / figures["ours_ms"],
    }


def slider_rounds(
    panel: QuantizationPanel, usual_models: dict[str, nn.Module], usual: Subset
) -> Iterator[dict[str, float]]:
    """Yield the seconds of each way at each number of bits, and see that they answer alike."""
    for bits in BITS:
        seconds = {}
        for layout, model in usual_models.items():
            start = time.perf_counter()
            expected = usual_accuracy(model, bits, usual)
            seconds[layout] = time.perf_counter() - start
        start = time.perf_counter()
        shown = (answer for answer in panel.measure(**panel.setting | {"weight_bits": bits}) if answer)
        _first, found = next(shown), next(shown)  # on 1,000 images, on all
        yield seconds | {"ours": time.perf_counter() - start}
        assert bits == 1 or abs(found.comparison.accuracy.value - expected) < 0.005  # one bit is a sign with us


def usual_accuracy(model: nn.Module, bits: int, usual: Subset) -> float:
    """Quantize a copy per channel with torch's function and measure it as a user would write it."""
    quantized, largest, correct = copy.deepcopy(model), max(1, 2 ** (bits - 1) - 1), 0
    with torch.no_grad():
        for layer in weighted_layers(quantized).values():
            scale = layer.weight.flatten(1).abs().amax(1) / largest
            layer.weight.copy_(
                torch.fake_quantize_per_channel_affine(
                    layer.weight, scale, torch.zeros_like(scale, dtype=torch.int32), 0, -largest - 1, largest
                )
            )
        for images, labels in DataLoader(usual, batch_size=BATCH_SIZE):
            correct += (quantized(images).argmax(dim=1) == labels).sum().item()
    return correct / len(usual)
