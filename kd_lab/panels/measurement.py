"""Measure a changed network against the dense one: on 1,000 images at once, then on all while nothing changes."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kd_lab.data import Split
from kd_lab.evaluation import Accuracy, PairedDifference, predict_classes
from kd_lab.models import BATCH_SIZE

FIRST = 1000  # images of the first answer; they are balanced, since the parts go through the digits in turn


@dataclass(frozen=True)
class Comparison:
    """Hold the digits that both networks answered on the same images, and the labels, each (N,)."""

    answers: Tensor
    dense_answers: Tensor
    labels: Tensor

    @property
    def accuracy(self) -> Accuracy:
        """Return the accuracy of the changed network."""
        return Accuracy.of(self.answers == self.labels)

    @property
    def difference(self) -> PairedDifference:
        """Return how much the changed network is better than the dense one on these images."""
        return PairedDifference.of(self.answers == self.labels, self.dense_answers == self.labels)

    @property
    def lost(self) -> Tensor:
        """Return the indices of the images that only the dense network reads, (M,)."""
        return ((self.answers != self.labels) & (self.dense_answers == self.labels)).nonzero().flatten()


class Measurement:
    """Hold the images and what the dense network answers, so that it is asked only once."""

    def __init__(self, dense: nn.Module, data: Split):
        self._dense, self._data = dense, data
        self._dense_answers: list[Tensor] = []  # batch by batch, as far as they were needed

    def compare(self, model: nn.Module, count: int | None = None) -> Iterator[Comparison | None]:
        """Yield the comparison on the first 1,000 images and on the first `count` (all), None after the others."""
        images, labels = self._data[:count]
        answers = []
        for batch, x in enumerate(images.split(BATCH_SIZE)):
            if batch == len(self._dense_answers):
                self._dense_answers.append(predict_classes(self._dense, x))
            answers.append(predict_classes(model, x))
            seen = batch * BATCH_SIZE + len(x)
            done = seen in (FIRST, len(images))
            yield self._comparison(answers, labels[:seen]) if done else None

    def _comparison(self, answers: list[Tensor], labels: Tensor) -> Comparison:
        return Comparison(torch.cat(answers), torch.cat(self._dense_answers[:len(answers)]), labels)
