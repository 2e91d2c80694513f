"""Compare what a deployed network answers with what torch answers, on real images, before it is handed over."""

import warnings
from functools import cache

import torch
from torch import Tensor, nn

from kd_lab.data import load_mnist
from kd_lab.errors import KdLabError, ParameterError, check_that, reason
from kd_lab.networks.checks import is_dense
from kd_lab.networks.predictions import TOLERANCE, example_images, predict
from kd_lab.quantization.weights import FakeQuantizer

COUNTS = 1, 3, 130  # of images in a batch, any of which a file may be asked for
DIGITS = 1_000  # that are compared where a learner gives no images
MEAN_TOLERANCE = 1e-2  # of the largest logit, for the same integers, some of which are rounded to their other neighbour
MAX_DIFFERING = 0.1  # of the answers of a network in other integers; beyond, it is another network
NAMED = 10  # images that a warning names


def real_images(images: Tensor | None, count: int = DIGITS) -> Tensor:
    """Return the first of these images or, without any, of the validation digits of MNIST."""
    return example_images(_digits() if images is None else images, count)


@cache
def _digits() -> Tensor:
    """Return the digits that are compared, a copy, so that the rest of MNIST needs no memory."""
    return load_mnist().validation.images[:DIGITS].clone()


def check_calibration(calibration: Tensor | None, few: Tensor) -> None:
    """Raise a ParameterError unless there are none, or images like those on which the file will be compared."""
    if calibration is None:
        return
    alike = is_dense(calibration) and (calibration.shape[1:], calibration.dtype) == (few.shape[1:], few.dtype)
    allowed = f"a tensor of some hundred images, (N, {', '.join(map(str, few.shape[1:]))}) of {few.dtype}"
    check_that("calibration", calibration, alike and len(calibration), allowed)


def check_not_simulated(model: nn.Module) -> None:
    """Raise a ParameterError for a network that rounds its activations in floating point."""
    if any(isinstance(module, FakeQuantizer) for module in model.modules()):
        raise ParameterError(
            "'model' must not round its activations in floating point. Got one that does; call to_integer(model) first."
        )


def check_parity(deployed: nn.Module, model: nn.Module, images: Tensor | None, runtime: str, rounds: str = "") -> None:
    """Raise a ParameterError unless a deployed network answers as `model` does, for these images or for real digits.

    `runtime` says in the message who runs it. `rounds` is "" for a network in fp32, whose logits must be the same but
    for the last digits, "same" for one in the model's own integers, and "other" for one that the runtime has quantized.
    Answers that differ in spite of that are named in a warning, by their count and their images.
    """
    for count in COUNTS:
        some = real_images(images, count)
        _compare(deployed, model, some[torch.arange(count) % len(some)], runtime, rounds)
    found, expected = _compare(deployed, model, real_images(images), runtime, rounds)
    if places := _differing(found, expected).nonzero().flatten().tolist():
        named = ", ".join(map(str, places[:NAMED])) + ", …" * (len(places) > NAMED)
        warnings.warn(
            f"{runtime} answers {len(places)} of {len(found)} images otherwise than torch: images {named}.",
            stacklevel=3,
        )


def _compare(deployed: nn.Module, model: nn.Module, images: Tensor, runtime: str, rounds: str) -> tuple[Tensor, Tensor]:
    """Return both networks' logits, or raise a ParameterError where they are not the same."""
    expected = predict(model, images)
    try:
        found = predict(deployed, images)
    except KdLabError as error:
        raise ParameterError(
            f"'model' must give logits for any number of images in {runtime}. For {len(images)}: {reason(error)}"
        ) from error
    same = (found.shape, found.dtype) == (expected.shape, expected.dtype)
    if not same or not _is_near(found.double(), expected.double(), rounds):
        far = (found - expected).abs().max() if same else torch.inf
        raise ParameterError(
            f"'model' must be one that {runtime} computes alike. In a batch of {len(images)} its logits, "
            f"{tuple(found.shape)} of {found.dtype}, differ by up to {far:.3g}."
        )
    return found, expected


def _differing(found: Tensor, expected: Tensor) -> Tensor:
    """Return for each image whether the two answer otherwise, (N,)."""
    differ = (found.argmax(1) != expected.argmax(1)) if found.dim() > 1 else torch.zeros(len(found))
    return differ.view(len(found), -1).any(1)


def _is_near(found: Tensor, expected: Tensor, rounds: str) -> bool:
    wrong = (found - expected).abs()
    if rounds == "other":
        return int(_differing(found, expected).sum()) <= max(MAX_DIFFERING * len(found), 1)
    far, allowed = (wrong.mean(), MEAN_TOLERANCE) if rounds else (wrong.max(), TOLERANCE)
    return bool(far <= allowed * expected.abs().max())
