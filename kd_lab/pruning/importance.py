"""The importance of each weight: its size, its gradient, both, or chance."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lab.errors import ParameterError, check_choice, check_whole_number, saying
from kd_lab.evaluation import check_scorable
from kd_lab.networks.checks import check_tensors
from kd_lab.networks.layers import weights
from kd_lab.networks.permanent import make_permanent
from kd_lab.networks.predictions import BATCH_SIZE

Importance = Callable[[Any, Any, torch.Generator | None], Tensor]
IMPORTANCES: dict[str, Importance] = {  # of a weight, the gradient of the loss for it, and a source of chance
    "magnitude": lambda weight, _gradient, _generator: weight.abs(),  # Han et al. 2015
    "gradient": lambda _weight, gradient, _generator: gradient.abs(),
    "weight_gradient": lambda weight, gradient, _generator: (weight * gradient).abs(),  # Molchanov et al. 2017
    "random": lambda weight, _gradient, generator: torch.rand(weight.shape, generator=generator, dtype=torch.float32),
}
MIN_SUM = torch.finfo(torch.float64).tiny
NEED_DATA = ("gradient", "weight_gradient")


def importances(
    model: nn.Module, importance: str, data: tuple[Tensor, Tensor] | None = None, seed: int = 0
) -> dict[str, Tensor]:
    """Return the importance of every weight of a model (`weights`), by the name of the layer.

    `data`, (images, labels) from the training part, is what the gradients are averaged over; `seed` is for "random".
    """
    present = weights(model)
    check_choice("importance", importance, list(IMPORTANCES))
    seed = check_whole_number("seed", seed, "[0, 1000000]")
    if importance in NEED_DATA and data is None:
        raise ParameterError(
            f"importance {importance!r} needs 'data', training images and labels to "
            "average the gradients over. Got None."
        )
    for name, weight in present.items():
        if not torch.isfinite(weight.value).all():
            raise ParameterError(f"the weights must be finite numbers. Those of layer {name!r} are not.")
    gradients = average_gradients(model, data) if data is not None and importance in NEED_DATA else {}
    generator = torch.Generator().manual_seed(seed)  # its own: a panel's worker and the main thread may both draw
    with torch.no_grad():
        return {
            name: IMPORTANCES[importance](weight.value, gradients.get(name), generator)
            for name, weight in present.items()
        }


def layer_adaptive(importance: Tensor) -> Tensor:
    """Return a layer's importances so that they can be compared with another layer's, in the same shape.

    Each is its square over the sum of the squares of those in the layer that are no less important, so the last weight
    of a layer has 1: a layer of few weights is spared (LAMP: Lee et al. 2021, arXiv 2010.07611, equation 3).
    """
    check_tensors(importance=importance)
    squares, order = importance.double().square().flatten().sort(stable=True)
    left = squares.flip(0).cumsum(0).flip(0)  # of this one and all behind it
    scores = torch.empty_like(squares).index_copy_(0, order, squares / left.clamp(min=MIN_SUM))
    return scores.view(importance.shape)


@torch.inference_mode(False)
def average_gradients(model: nn.Module, data: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Return the gradient of the mean cross-entropy over all of the data for each layer's weight, by layer.

    It is that of the weight as it is used, in evaluation mode; the model and its own gradients stay as they were.
    Raises a ParameterError where no gradient can be computed.
    """
    images, labels, *_ = (part.clone() if part.is_inference() else part for part in check_scorable(model, data))
    plain = make_permanent(model).eval().requires_grad_(True)
    used = {name: weight.value for name, weight in weights(plain).items()}
    total = {name: torch.zeros_like(weight) for name, weight in used.items()}
    for x, y in zip(images.split(BATCH_SIZE), labels.split(BATCH_SIZE), strict=True):
        for name, gradient in zip(used, _gradients(plain, x, y, list(used.values())), strict=True):
            total[name] += gradient
    return {name: gradient / len(images) for name, gradient in total.items()}


def _gradients(model: nn.Module, x: Tensor, y: Tensor, used: list[Tensor]) -> tuple[Tensor, ...]:
    """Return the gradients of the cross-entropy, added up over a batch, for these weights."""
    with saying("no gradient can be computed through the model"), torch.enable_grad():
        loss = F.cross_entropy(model(x.clone()), y, reduction="sum")
        return torch.autograd.grad(loss, used, allow_unused=True, materialize_grads=True)
