"""Measure accuracy with its interval, and compare two models on the same images."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import mean, stdev

import torch
import torch.nn.functional as F
from scipy.special import ndtri, stdtrit
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from kd_lab.errors import ParameterError, check_fields, check_that, described
from kd_lab.networks.checks import check_model, conversion_hint, is_dense
from kd_lab.networks.predictions import predict, predict_by_batch

CONFIDENCE = 0.95
Z = float(ndtri((1 + CONFIDENCE) / 2))  # a normal variable lies within so many deviations of its mean


@dataclass(frozen=True, repr=False)
class Accuracy:
    """How many of how many images were read correctly."""

    correct: int
    count: int

    def __post_init__(self):
        check_fields(self, count="[1, 1e9]", correct=f"[0, {self.count}]")

    @classmethod
    def of(cls, right: Tensor) -> "Accuracy":
        """Count the answers that are right, (N,) bool."""
        return cls(int(right.sum()), len(right))

    @property
    def value(self) -> float:
        """Return the fraction of correct answers, 0 to 1."""
        return self.correct / self.count

    @cached_property
    def interval(self) -> tuple[float, float]:
        """Return the 95 % Wilson score interval, within 0 to 1 (Wilson 1927)."""
        share, size = self.value, 2 * (self.count + Z**2)
        centre = (2 * self.count * share + Z**2) / size
        half = Z / size * math.sqrt(4 * self.count * share * (1 - share) + Z**2)
        return centre - half if self.correct else 0.0, centre + half if self.correct < self.count else 1.0

    def __repr__(self) -> str:
        low, high = (100 * end for end in self.interval)
        counts = f"{self.correct:,} of {self.count:,}"
        return f"{100 * self.value:.2f} % ({counts}; 95 % interval {low:.2f} to {high:.2f})"


@dataclass(frozen=True, repr=False)
class PairedDifference:
    """On how many of the same images only the model, and only the baseline, was right."""

    gained: int
    lost: int
    count: int

    def __post_init__(self):
        check_fields(self, count="[1, 1e9]", gained=f"[0, {self.count}]")
        check_fields(self, lost=f"[0, {self.count - self.gained}]")

    @classmethod
    def of(cls, right: Tensor, baseline_right: Tensor) -> "PairedDifference":
        """Count the disagreements between two models' right answers on the same images, both (N,) bool."""
        if right.shape != baseline_right.shape:
            raise ParameterError(
                f"both must be answers to the same images. Got {len(right)} and {len(baseline_right)}."
            )
        return cls(int((right & ~baseline_right).sum()), int((baseline_right & ~right).sum()), len(right))

    @property
    def value(self) -> float:
        """Return the accuracy of the model minus that of the baseline, -1 to 1."""
        return (self.gained - self.lost) / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval of the difference: Wald with the adjustment of Bonett & Price (2012).

        It adds one image to either kind of disagreement, so it has a width even where the models never disagree.
        """
        n = self.count + 2
        gained, lost = (self.gained + 1) / n, (self.lost + 1) / n
        half = Z * ((gained + lost - (gained - lost) ** 2) / n) ** 0.5
        return max(-1.0, float(gained - lost - half)), min(1.0, float(gained - lost + half))

    @property
    def p_value(self) -> float:
        """Return the exact two-sided p-value of McNemar's test (1947), 1 where the models never disagree."""
        from scipy.stats import binomtest  # takes a second, and is needed only here

        disagreements = self.gained + self.lost
        return float(binomtest(self.gained, disagreements).pvalue) if disagreements else 1.0

    def __repr__(self) -> str:
        low, high = (100 * end for end in self.interval)
        counts = f"{self.gained:,} gained, {self.lost:,} lost of {self.count:,}"
        return f"{100 * self.value:+.2f} points (95 % interval {low:+.2f} to {high:+.2f}; {counts})"


def mean_cross_entropy(model: nn.Module, data: tuple[Tensor, ...]) -> float:
    """Return the mean cross-entropy of a model's answers to (images, labels, …)."""
    images, labels, *_ = check_data(data)
    logits = predict(model, images)
    return F.cross_entropy(logits, check_labels(logits, labels)).item()


def mean_interval(values: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """Return the mean of one figure a seed, and its 95 % t interval; of differences, it is the paired interval.

    Raises a ParameterError for fewer than two values or for one that is not finite.
    """
    try:
        numbers = [float(value) for value in values]  # those of NumPy would be rounded to their own precision
    except (TypeError, ValueError):
        numbers = []
    fits = len(numbers) > 1 and all(map(math.isfinite, numbers))
    check_that("values", values, fits, "two or more finite numbers")
    center = mean(numbers)
    half = stdtrit(len(numbers) - 1, (1 + CONFIDENCE) / 2) * stdev(numbers) / len(numbers) ** 0.5
    return center, (center - float(half), center + float(half))


def accuracy(model: nn.Module, data: tuple[Tensor, Tensor]) -> Accuracy:
    """Return the accuracy of a model on images (N, 1, 28, 28) and labels (N,)."""
    return Accuracy.of(correct_answers(model, data))


def paired_difference(model: nn.Module, baseline: nn.Module, data: tuple[Tensor, Tensor]) -> PairedDifference:
    """Return by how much a model is better than a baseline on the same images."""
    data = check_data(data)
    return PairedDifference.of(*(correct_answers(each, data) for each in (model, baseline)))


def correct_answers(model: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
    """Return for each image whether the model's largest logit is that of the label, (N,) bool.

    Raises a ParameterError for data that the model can't be scored on.
    """
    images, labels, *_ = check_scorable(model, data)
    return predict_classes(model, images) == labels


def predict_classes(model: nn.Module, images: Tensor) -> Tensor:
    """Return for each image the class with the largest logit, (N,).

    Raises a ParameterError for images or weights that give no finite logits.
    """
    return torch.cat(list(predict_classes_by_batch(model, images)))


def predict_classes_by_batch(model: nn.Module, images: Tensor) -> Iterator[Tensor]:
    """Yield what `predict_classes` returns, a batch of images at a time."""
    for logits in predict_by_batch(model, images):
        if len(logits) and not all(math.isfinite(end) for end in logits.aminmax()):
            raise ParameterError("the model answers NaN or infinite logits. Did its training diverge?")
        yield logits.argmax(dim=1)


class Checked(tuple):
    """Data, (x, *targets), that `check_data` has looked at: one function hands it to the next, which need not again."""


def check_scorable(model: nn.Module, data: tuple[Tensor, ...]) -> Checked:
    """Return the data, (images, labels, …); raise a ParameterError unless the model can be scored on them."""
    data = check_data(data)
    check_model(model)
    check_labels(predict(model, data[0][:2]), data[1])
    return data


def check_data(data: tuple[Tensor, ...]) -> Checked:
    """Return the data, without history and with labels in int64.

    Raises a ParameterError unless they are (x, *targets), finite tensors of one length.
    """
    if isinstance(data, Checked):
        return data
    if not isinstance(data, (tuple, list)) or len(data) < 2 or not all(map(is_dense, data)):
        got = type(data).__name__ if isinstance(data, nn.Module) else described(data)
        raise ParameterError(f"the data must be a tuple of tensors, (images, labels). Got {got}.{_hint(data)}")
    first, second, *_ = data  # the number 0 of a Split is an image and its label
    if first.dim() == 1 and second.dim() > 2:
        raise ParameterError(f"the data must be (images, labels). Got {described(data)}. Did you swap the two?")
    lengths = [len(part) if part.dim() else 0 for part in data]
    if min(lengths) == 0 or len(set(lengths)) > 1:
        raise ParameterError(f"the data must be tensors of one length, not empty. Got lengths {lengths}.")
    for name, part in zip(("images", *["targets"] * len(data)), data, strict=False):
        if part.is_floating_point() and not all(math.isfinite(end) for end in part.detach().aminmax()):
            raise ParameterError(f"the {name} must be finite numbers. Got NaN or infinite values.")
    # a second step could not go back through what made them
    x, targets, *more = (part.detach() if part.requires_grad else part for part in data)
    return Checked((x, _as_labels(targets), *more))


def _hint(data: object) -> str:
    """Return the line that turns what came for the data into what is wanted, or "" for what can't be guessed."""
    if isinstance(data, nn.Module):
        return " Did you swap the model and the data?"
    if hasattr(data, "validation"):
        return " Give one part of it, as data.train or data.validation."
    if isinstance(data, DataLoader):
        return " Did you mean tuple(map(torch.cat, zip(*loader)))?"
    if isinstance(data, (tuple, list)) and all(isinstance(part, Tensor) for part in data):
        return "".join(map(conversion_hint, data[:2]))
    if isinstance(data, (tuple, list)) and all(isinstance(part, tuple) for part in data):
        return " Did you mean tuple(map(torch.stack, zip(*data)))?"
    if isinstance(data, (tuple, list)) and len(data) > 1:
        return " Did you mean tuple(map(torch.as_tensor, data))?"
    if isinstance(data, Dataset):
        return " Did you mean split_data(data, …) of kd_lab.data?"
    return ""


def _as_labels(targets: Tensor) -> Tensor:
    """Return whole numbers (N,), of whatever dtype, in int64, which losses take; other targets stay."""
    return targets.long() if targets.dim() == 1 and not targets.is_floating_point() else targets


def check_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the labels (N,) in int64.

    Raises a ParameterError unless they are whole numbers and logits (N, classes) have a place for each.
    """
    if logits.dim() != 2:
        raise ParameterError(f"the model must answer with logits (N, classes). Got shape {tuple(logits.shape)}.")
    if labels.dim() != 1 or labels.is_floating_point() or labels.is_complex():
        hints = {1: " Did you mean labels.long()?", 2: " Did you mean labels.argmax(1)?" * (labels.shape[-1:] != (1,))}
        raise ParameterError(
            f"the labels must be whole numbers of shape (N,). Got shape {tuple(labels.shape)} and {labels.dtype}."
            + hints.get(labels.dim(), "")
        )
    labels = _as_labels(labels)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= logits.shape[1]:
        raise ParameterError(
            f"the labels must be 0 to {logits.shape[1] - 1}, since the model has "
            f"{logits.shape[1]} outputs. Got labels from {low} to {high}."
        )
    return labels
