"""Record a long campaign part by part, with the test images that each network read wrongly."""

from torch import nn

from benchmarks import read, record
from kd_lab.data import Mnist, Split
from kd_lab.evaluation import accuracy, correct_answers

SEEDS = range(5)
TEST_IMAGES = 10_000


def keep(name: str, part: str, measured: dict) -> None:
    """Record one part of a campaign as soon as it is done, beside those that were there before."""
    record(name, {**read(name), "seeds": list(SEEDS), "test_images": TEST_IMAGES, part: measured})


def scores(model: nn.Module, data: Mnist) -> dict[str, float]:
    """Return the errors in percent on both parts."""
    return {"validation_error": error(model, data.validation), "test_error": error(model, data.test)}


def answers(model: nn.Module, data: Mnist) -> dict:
    """Return the errors in percent on both parts, and the test images that a model reads wrongly."""
    wrong = (~correct_answers(model, data.test)).nonzero().flatten().tolist()
    return {**scores(model, data), "wrong": " ".join(map(str, wrong))}


def error(model: nn.Module, data: Split) -> float:
    """Return the error in percent."""
    return round(100 - 100 * accuracy(model, data).value, 2)
