"""Prune a network live: what a sparsity costs in accuracy and saves in bytes."""

import copy
from collections.abc import Iterator
from dataclasses import replace

import ipywidgets as widgets
import torch
from torch import Tensor, nn

from kd_lab.cost import file_bytes, zip_stepwise
from kd_lab.data import Mnist
from kd_lab.networks.layers import describe, weighted_layers
from kd_lab.panels.measurement import Measurement, dense_network, quietly, scores, side_by_side, table
from kd_lab.panels.panel import Panel, Shown
from kd_lab.panels.pruning_picture import SIZE, PruningAnswer, PruningPicture, title
from kd_lab.panels.slider import FractionSlider
from kd_lab.pruning import IMPORTANCES, SCOPES, Ranking, importances, rank

MOST = 0.99  # the end of the slider
CURVE = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99)
GRADIENT_IMAGES = 1000
TABLES_HEIGHT = 220


class PruningPanel(Panel):
    """Prune any network live by sparsity, importance and scope.

    `data` is what load_mnist() gives: gradients are averaged over the first 1,000 training images, accuracy is measured
    on the validation part, first on 1,000 images, then on all; only the button "Reveal test" reads the test part.
    """

    def __init__(self, model: nn.Module, data: Mnist):
        self._dense = dense_network(model, data)
        self._pruned = copy.deepcopy(self._dense)
        self._layers = weighted_layers(self._dense)
        self._data = data
        self._validation, self._test = (Measurement(self._dense, part) for part in (data.validation, data.test))
        self._bytes = file_bytes(self._dense)
        self._rankings: dict[tuple[str, str], Ranking] = {}
        self._curves: dict[tuple[str, str], dict[float, float]] = {}
        self._tests = {}  # by setting
        weights = torch.cat([layer.weight.detach().flatten() for layer in self._layers.values()])
        self._drawing = PruningPicture(weights, data.validation.images)
        controls = {
            "sparsity": FractionSlider(label="sparsity", max=MOST, value=0.5),
            "importance": widgets.Dropdown(options=list(IMPORTANCES), description="importance"),
            "scope": widgets.Dropdown(options=list(SCOPES), description="scope"),
        }
        super().__init__(controls, SIZE, TABLES_HEIGHT, reveals=True)

    def measure(
        self, sparsity: float, importance: str, scope: str, reveal: bool = False
    ) -> Iterator[PruningAnswer | None]:
        """Yield what this setting gives on 1,000 images, on all, and with bytes and curve."""
        setting = sparsity, importance, scope
        masks = self._ranking(importance, scope).masks(sparsity)
        curve = self._curves.setdefault((importance, scope), {})
        thresholds = self._thresholds(masks, scope) if importance == "magnitude" and sparsity > 0 else []
        for comparison in self._validation.compare(self._masked(masks)):
            answer = comparison and PruningAnswer(
                *setting, comparison, masks, thresholds, curve, test=self._tests.get(setting)
            )
            yield answer
        if reveal and setting not in self._tests:
            comparison = yield from quietly(self._test.compare(self._pruned))
            self._tests[setting] = comparison.accuracy
            answer = replace(answer, test=comparison.accuracy)
            yield answer
        zipped = yield from quietly(zip_stepwise(self._pruned))
        answer = replace(answer, zipped=zipped)
        yield answer
        ranking = self._ranking(importance, scope)
        yield from self._validation.complete(curve, CURVE, lambda place: self._masked(ranking.masks(place)), answer)

    def _ranking(self, importance: str, scope: str) -> Ranking:
        if (importance, scope) not in self._rankings:
            values = importances(self._dense, importance, self._data.train[:GRADIENT_IMAGES])
            self._rankings[importance, scope] = rank(values, scope)
        return self._rankings[importance, scope]

    def _masked(self, masks: dict[str, Tensor]) -> nn.Module:
        """Return the dense network under these masks, in one that is used again and again."""
        pruned = weighted_layers(self._pruned)
        with torch.no_grad():
            for name, mask in masks.items():
                torch.mul(self._layers[name].weight, mask, out=pruned[name].weight)
        return self._pruned

    def _thresholds(self, masks: dict[str, Tensor], scope: str) -> list[float]:
        """Return the smallest |w| that is kept, of all layers or of each that keeps one."""
        kept = [
            torch.where(mask, self._layers[name].weight.abs(), torch.inf).min().item()
            for name, mask in masks.items()
            if mask.any()
        ]
        return [min(kept)] if scope == "global" else kept

    def draw(self, answer: PruningAnswer) -> Shown:
        """Draw the picture and write the tables."""
        return Shown(
            title(answer), self._drawing.png(answer), side_by_side(self._scores(answer), self._layer_table(answer))
        )

    def _scores(self, answer: PruningAnswer) -> str:
        dense = f"{self._bytes:,} bytes"
        costs = {
            "file, dense": dense,
            "file, with zeros": dense,  # as many numbers as before
            "the same, zipped": "…" if answer.zipped is None else f"{answer.zipped:,} bytes",
        }
        return scores(answer.comparison, costs, answer.test, len(self._tests))

    def _layer_table(self, answer: PruningAnswer) -> str:
        """Return how much of each layer is pruned; one that has nothing left is named so."""
        rows = []
        for name, mask in answer.masks.items():
            pruned = 1 - mask.float().mean().item()
            rows.append(
                [
                    name,
                    describe(self._layers[name]),
                    f"{mask.numel():,}",
                    f"{100 * pruned:.1f} %" if pruned < 1 else "100 %: nothing left",
                ]
            )
        return table(rows, ["layer", "", "weights", "pruned"], left=2)
