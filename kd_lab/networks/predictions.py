"""Run any network: its answers, what its layers read and give, and whether a rewritten one answers the same."""

import inspect
import operator
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from kd_lab.errors import ParameterError, reason
from kd_lab.networks.checks import check_network, check_not_compiled, check_shapes, conversion_hint, is_dense
from kd_lab.networks.layers import WEIGHTED
from kd_lab.networks.modes import evaluation_mode
from kd_lab.networks.permanent import computed_once

BATCH_SIZE = 125  # images in a forward pass: many more no longer fit the processor's cache
TOLERANCE = 1e-3  # of the largest logit: what rounding may change when a network is rewritten
MNIST_IMAGE = 1, 28, 28  # what a network is shown where no images of its own are given


def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Return the logits (N, classes), computed in evaluation mode and without gradients.

    Raises a ParameterError for images that the model can't read, and for answers that are not one tensor (N, …).
    """
    return torch.cat(list(predict_by_batch(model, images)))


@torch.no_grad()
def predict_by_batch(model: nn.Module, images: Tensor) -> Iterator[Tensor]:
    """Yield what `predict` returns, a batch of images at a time; the model is in evaluation mode until the last."""
    check_network(model)
    if not is_dense(images):
        got = type(images).__name__
        raise ParameterError(f"'images' must be a tensor (N, 1, 28, 28). Got {got}.{conversion_hint(images)}")
    with evaluation_mode(model):
        with _reading(model, images):
            reader = computed_once(model) if len(images) > BATCH_SIZE else model
        writes = True  # a step in place would change the caller's images, so the first batch is a copy
        for batch in images.split(BATCH_SIZE):
            given = batch.clone() if writes else batch
            with _reading(model, images):
                answer = reader(given)
            writes = writes and (given.is_inference() or given._version > 0)
            yield _one_tensor(answer, batch)


@contextmanager
def _reading(model: nn.Module, images: Tensor):
    try:
        yield
    except Exception as error:
        raise ParameterError(_unreadable(model, images, error)) from error


def _one_tensor(answer: Any, batch: Tensor) -> Tensor:
    if is_dense(answer) and answer.shape[:1] == batch.shape[:1] and answer.is_floating_point():
        return answer
    got = f"shape {tuple(answer.shape)}" if is_dense(answer) else type(answer).__name__
    real = not isinstance(answer, Tensor) or answer.is_floating_point()
    got += "" if real else f" and {answer.dtype}, which are no real numbers"
    count = len(batch)
    raise ParameterError(f"the model must answer {count} images with a tensor ({count}, …). Got {got}.")


def _unreadable(model: nn.Module, images: Tensor, error: Exception) -> str:
    """Return the sentence for images that a model can't read: theirs, what would help, and the model's own error."""
    found, read = (tuple(images.shape[1:]), images.dtype), (MNIST_IMAGE, torch.float32)
    kit = f"; the kit's networks take {read[0]} and {read[1]}, as load_mnist() gives" if found != read else ""
    known = isinstance(error, (RuntimeError, ValueError, TypeError, IndexError))
    said = reason(error) if known else f"{type(error).__name__}: {error}"
    return (
        f"the model can't read images of shape {found[0]} and {found[1]}{kit}. {_remedy(model, images)}"
        f"The layer said: {said}"
    )


def own_reason(error: Exception) -> str:
    """Return what a learner's own layer said, which `predict` keeps as the cause of its error."""
    return reason(error.__cause__ if isinstance(error.__cause__, Exception) else error)


def _remedy(model: nn.Module, images: Tensor) -> str:
    """Return the sentence that says how the model would read these images, "" where nothing known helps."""
    dtype = next((parameter.dtype for parameter in model.parameters()), images.dtype)
    bytes_ = images.dtype == torch.uint8 and dtype == torch.float32
    converted = "Give images / 255. " if bytes_ else f"Give images.to({dtype}). " * (dtype != images.dtype)
    changes: dict[str, Callable[[Tensor], Tensor]] = {
        converted: lambda few: few.to(dtype),
        "Put nn.Flatten() in front of its layers. ": lambda few: few.flatten(1),
        "Give images.unsqueeze(1), which have a channel. ": lambda few: few.unsqueeze(1),
    }
    try:
        inspect.signature(model.forward).bind(images)
    except TypeError:
        return "Its forward must take one argument, the images. "
    for sentence, change in changes.items():
        with suppress(Exception):
            model(change(images[:2].clone()))
            return sentence
    # else it was tried with these
    others = "A network that reads others needs some of its own, as 'images' or 'data'. "
    return others * (images.shape[1:] == MNIST_IMAGE)


def example_images(images: Tensor | None = None, count: int = 2) -> Tensor:
    """Return a few images to run a network on: the first of these or, without any, noise of MNIST's shape.

    Raises a ParameterError for what is no tensor of one image or more.
    """
    if images is None:
        return torch.randn(count, *MNIST_IMAGE, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    if not is_dense(images) or images.numel() == 0 or images.dim() == 0:
        got = f"shape {tuple(images.shape)}" if is_dense(images) else type(images).__name__
        raise ParameterError(
            f"'images' must be a tensor of one image or more, (N, …). Got {got}.{conversion_hint(images)}"
        )
    return images[:count]


def check_same_answers(changed: nn.Module, model: nn.Module, images: Tensor, change: str) -> None:
    """Raise a ParameterError unless a rewritten network gives the model's logits for these images, up to rounding.

    `change` says in the message what was done to it.
    """
    expected, found = (predict(each, images) for each in (model, changed))
    check_shapes(f"the network can't be {change}: its answers have another shape", operator.eq, found, expected)
    largest = float(expected.nan_to_num().abs().max()) if expected.numel() else 0.0
    if not torch.allclose(found, expected, TOLERANCE, TOLERANCE * largest, equal_nan=True):
        raise ParameterError(
            f"the network can't be {change}: its answers would not be the same, but differ by up to "
            f"{(found - expected).abs().max():.3g} where logits reach {largest:.3g}."
        )


def record(model: nn.Module, names: Iterable[str], images: Tensor, keep: Callable[..., Any]) -> dict[str, list]:
    """Return `keep(inputs, output)` for each call of these modules, by name, while `predict` runs the model on images.

    The modules come in the order in which they are run; one that is never run is left out.
    """
    check_not_compiled(model)
    modules, calls = {model.get_submodule(name): name for name in names}, defaultdict(list)
    taken: dict[nn.Module, tuple] = {}

    def take(module: nn.Module, inputs: tuple, named: dict) -> None:
        taken[module] = _own((*inputs, *named.values()))

    def note(module: nn.Module, inputs: tuple, named: dict, output: Any) -> None:
        calls[modules[module]].append(_own(keep(taken.pop(module, (*inputs, *named.values())), output)))

    with ExitStack() as hooks:
        for module in modules:
            if parametrize.type_before_parametrizations(module) not in WEIGHTED:  # it may change what it takes in place
                hooks.enter_context(module.register_forward_pre_hook(take, with_kwargs=True))
            hooks.enter_context(module.register_forward_hook(note, with_kwargs=True))
        predict(model, images)
    return calls


def _own(kept: Any) -> Any:
    """Return a copy of the tensors in nested tuples, lists and dicts: what comes next may change them in place."""
    if isinstance(kept, dict):
        return {key: _own(value) for key, value in kept.items()}
    if isinstance(kept, (tuple, list)):
        return [_own(part) for part in kept] if isinstance(kept, list) else tuple(map(_own, kept))
    return kept.clone() if isinstance(kept, Tensor) else kept
