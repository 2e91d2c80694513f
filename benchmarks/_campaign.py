"""Record a long campaign part by part, with the test images that each network read wrongly."""

from torch import nn

from benchmarks import record
from kd_lab.data import Mnist, Split
from kd_lab.errors import ParameterError
from kd_lab.evaluation import PairedDifference, accuracy, correct_answers, mean_interval
from kd_lab.results import load_results

SEEDS = range(5)
TEST_IMAGES = 10_000


def keep(name: str, part: str, measured: dict) -> None:
    """Record one part of a campaign as soon as it is done, beside those that were there before."""
    try:
        earlier = load_results(name)
    except ParameterError:  # none yet; a damaged one is not written over
        earlier = {}
    record(name, {**earlier, "seeds": list(SEEDS), "test_images": TEST_IMAGES, part: measured})


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


def paired(found: dict, dense: dict) -> PairedDifference:
    """Return the difference in accuracy to the dense network on the same test images."""
    wrong, dense_wrong = (set(each["wrong"].split()) for each in (found, dense))
    return PairedDifference(len(dense_wrong - wrong), len(wrong - dense_wrong), TEST_IMAGES)


def gain(found: list[dict], dense: list[dict]) -> tuple[float, tuple[float, float]]:
    """Return the mean difference in points over the seeds, and its interval."""
    return mean_interval([100 * paired(*pair).value for pair in zip(found, dense, strict=True)])


def errors(found: list[dict]) -> list[float]:
    """Return the test error of each in percent."""
    return [100 * len(each["wrong"].split()) / TEST_IMAGES for each in found]
