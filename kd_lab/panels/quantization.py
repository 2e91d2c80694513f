"""Quantize a network live: what few bits cost in accuracy and save in bytes."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from kd_lab.cost import file_bytes
from kd_lab.data import Mnist
from kd_lab.formats.network_file import network_file_bytes
from kd_lab.networks.layers import Weight, describe, weighted_layers
from kd_lab.panels.measurement import Measurement, dense_network, quietly, scores, side_by_side, table
from kd_lab.panels.panel import Panel, Shown, dropdown
from kd_lab.panels.quantization_picture import BITS, SIZE, Quantization, QuantizationAnswer, QuantizationPicture, title
from kd_lab.panels.slider import BitSlider
from kd_lab.quantization import (
    CALIBRATIONS,
    GRANULARITIES,
    Quantizer,
    fold_batch_norm,
    output_errors,
    quantize_activations,
    quantize_weights,
)

CALIBRATION_IMAGES, ERROR_IMAGES = 1000, 250  # from the training and from the validation part
SIGN = "At 1 bit a weight keeps only its sign: its grid and calibration change nothing."


class QuantizationPanel(Panel):
    """Quantize any network live, by bits of weights and activations, granularity, grid and calibration.

    `data` is what load_mnist() gives: activations are calibrated on the first 1,000 training images, accuracy is
    measured on the validation part, first on 1,000 images, then on all; only the button "Reveal test" reads the test
    part. BatchNorm is folded in both networks; `grid` is that of the weights, since activations have affine ones.
    """

    def __init__(self, model: nn.Module, data: Mnist):
        self._dense = fold_batch_norm(dense_network(model, data))
        self._quantized = quantize_activations(self._dense, data.train.images[:1])  # with a place for every quantizer
        self._layers = weighted_layers(self._dense)
        self._data = data
        self._validation, self._test = (Measurement(self._dense, part) for part in (data.validation, data.test))
        self._bytes = file_bytes(self._dense)
        self._quantizers: dict[Quantization, dict[str, tuple[nn.Module | None, ...]]] = {}
        self._reports: dict[Quantization, dict[str, Any]] = {}
        self._curves: dict[tuple[str, ...], dict[int, float]] = {}
        self._tests = {}  # by setting
        self._pictures: dict[str, QuantizationPicture] = {}
        largest = max(self._layers, key=lambda name: self._layers[name].weight.numel())
        controls = {
            "weight_bits": BitSlider(label="weight_bits", value=4),
            "activation_bits": dropdown("activation_bits", ["fp32", *map(str, reversed(BITS))], "fp32"),
            "granularity": dropdown("granularity", GRANULARITIES, "per_channel"),
            "grid": dropdown("grid", ["symmetric", "affine"], "symmetric"),
            "calibration": dropdown("calibration", CALIBRATIONS, "min_max"),
            "layer": dropdown("layer", self._layers, largest),
        }
        super().__init__(controls, SIZE, max(220, 84 + 22 * len(self._layers)), reveals=True)  # a row for each layer

    def measure(
        self,
        weight_bits: int,
        activation_bits: str,
        granularity: str,
        grid: str,
        calibration: str,
        layer: str,
        reveal: bool = False,
    ) -> Iterator[QuantizationAnswer | None]:
        """Yield what this setting gives on 1,000 images, on all, and with bytes, errors and curve."""
        setting = Quantization(weight_bits, activation_bits, granularity, grid, calibration)
        curve, network = self._curves.setdefault(setting[1:], {}), self._network(setting)
        quantizer, _ = self._quantizers[setting][layer]
        for comparison in self._validation.compare(network):
            answer = comparison and QuantizationAnswer(
                setting, layer, quantizer, comparison, curve, self._tests.get(setting), **self._reports.get(setting, {})
            )
            yield answer
        if reveal and setting not in self._tests:
            comparison = yield from quietly(self._test.compare(network))
            self._tests[setting] = comparison.accuracy
            answer = replace(answer, test=comparison.accuracy)
            yield answer
        answer = replace(answer, **self._report(setting))
        yield answer
        others = {bits: setting._replace(weight_bits=bits) for bits in BITS}
        yield from self._validation.complete(curve, BITS, lambda bits: self._network(others[bits]), answer)

    def _network(self, setting: Quantization) -> nn.Module:
        """Return the quantized network, in one that is used again and again, with its weights computed once for all.

        The quantizers of every setting are kept: they are small, and some take a second to find.
        """
        if setting not in self._quantizers:
            self._quantizers[setting] = {
                name: (Weight(layer).parametrization(Quantizer), getattr(layer, "input_quantizer", None))
                for name, layer in weighted_layers(self._quantize(setting)).items()
            }
        quantized = weighted_layers(self._quantized)
        with torch.no_grad():
            for name, (weights, inputs) in self._quantizers[setting].items():
                quantized[name].weight.copy_(weights(self._layers[name].weight))
                quantized[name].input_quantizer = inputs
        return self._quantized

    def _quantize(self, setting: Quantization) -> nn.Module:
        bits, activation_bits, granularity, grid, calibration = setting
        model = quantize_weights(self._dense, bits, granularity, grid == "symmetric", calibration)
        if activation_bits == "fp32":
            return model
        images = self._data.train.images[:CALIBRATION_IMAGES]
        return quantize_activations(model, images, int(activation_bits), calibration)

    def _report(self, setting: Quantization) -> dict[str, Any]:
        """Return bytes, different weights and errors; the network in use is that of this setting."""
        if setting not in self._reports:
            errors = output_errors(self._quantized, self._dense, self._data.validation.images[:ERROR_IMAGES])
            layers = {
                name: (len(layer.weight.unique()), errors[name])
                for name, layer in weighted_layers(self._quantized).items()
            }
            self._reports[setting] = {"packed": network_file_bytes(self._quantize(setting)), "layers": layers}
        return self._reports[setting]

    def draw(self, answer: QuantizationAnswer) -> Shown:
        """Draw the picture and write the tables."""
        name, layer = answer.layer, self._layers[answer.layer]
        if name not in self._pictures:
            self._pictures[name] = QuantizationPicture(
                f"{name}, {describe(layer)}", layer.weight.detach(), self._data.validation.images
            )
        packed = f"{answer.packed:,} bytes, {self._bytes / answer.packed:.1f} ×" if answer.packed else "…"
        costs = {"file, dense": f"{self._bytes:,} bytes", "file, quantized, factor": packed}
        return Shown(
            title(answer),
            self._pictures[name].png(answer),
            side_by_side(scores(answer.comparison, costs, answer.test, len(self._tests)), self._layer_table(answer)),
        )

    def _layer_table(self, answer: QuantizationAnswer) -> str:
        """Return how many values each layer's weights have, and how wrong its output is."""
        rows = []
        for name, layer in self._layers.items():
            values, error = answer.layers.get(name, (None, None))
            measured = [f"{values:,}", f"{100 * error:.1f}\u00a0%"] if values else ["…", "…"]
            rows.append([name, describe(layer), answer.setting.weight_bits, *measured])
        html = table(rows, ["layer", "", "bits", "values in use", "output error"], left=2)
        note = SIGN if answer.setting.weight_bits == 1 else ""
        return html.replace("<td>", "<td style='white-space: nowrap'>") + note
