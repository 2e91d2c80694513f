"""Build the kit's networks by name, and run any network; each takes (N, 1, 28, 28) and gives logits (N, 10)."""

from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kd_lab.errors import ParameterError, check_choice, check_whole_number, reason

BATCH_SIZE = 125  # images in a forward pass: many more no longer fit the processor's cache


def mlp128() -> nn.Module:
    """Build 784-128-10, the smallest network of the kit."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))


def lenet300() -> nn.Module:
    """Build LeNet-300-100, the fully connected network of LeCun et al. (1998)."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )


def cnn() -> nn.Module:
    """Build a small convolutional network: 16 and 32 channels of 3×3, then 128 units."""
    return nn.Sequential(
        *_convolution(1, 16, 3, padding=1),
        *_convolution(16, 32, 3, padding=1),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def lenet5() -> nn.Module:
    """Build LeNet-5 as Caffe's example has it (20-50-500), which the pruning papers call LeNet-5."""
    return nn.Sequential(
        *_convolution(1, 20, 5),
        *_convolution(20, 50, 5),
        nn.Flatten(),
        nn.Linear(50 * 4 * 4, 500),
        nn.ReLU(),
        nn.Linear(500, 10),
    )


def lenet5_classic() -> nn.Module:
    """Build LeNet-5 with the widths of LeCun et al. (1998), 6-16-120-84, with ReLU and max-pooling."""
    return nn.Sequential(
        *_convolution(1, 6, 5, padding=2),
        *_convolution(6, 16, 5),
        nn.Flatten(),
        nn.Linear(16 * 5 * 5, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )


def resnet() -> nn.Module:
    """Build a tiny residual network (He et al. 2016): BatchNorm, two residual additions, no large Linear layer."""
    return nn.Sequential(
        *_normalised(1, 16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        Residual(16),
        *_normalised(16, 48),
        nn.ReLU(),
        nn.MaxPool2d(2),
        Residual(48),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(48, 10),
    )


class Residual(nn.Module):
    """Add what two normalised convolutions make of x to x itself; the shape (N, C, H, W) stays."""

    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.Sequential(*_normalised(channels, channels), nn.ReLU(), *_normalised(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


def _convolution(inputs: int, outputs: int, size: int, padding: int = 0) -> list[nn.Module]:
    # max(relu(x)) is relu(max(x)): pooling first gives the same numbers and leaves ReLU a quarter of the work
    return [nn.Conv2d(inputs, outputs, size, padding=padding), nn.MaxPool2d(2), nn.ReLU()]


def _normalised(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)]


MODELS: dict[str, Callable[[], nn.Module]] = {
    build.__name__: build for build in (mlp128, lenet300, cnn, lenet5, lenet5_classic, resnet)
}


def build_model(name: str, seed: int = 0) -> nn.Module:
    """Build a network by its name with the initial weights that belong to `seed`.

    Convolutions are laid out `channels_last`, which is what makes them fast on a CPU.
    """
    check_choice("name", name, list(MODELS))
    check_whole_number("seed", seed, "[0, 1000000]")
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they were
        torch.manual_seed(seed)
        return MODELS[name]().to(memory_format=torch.channels_last)


def check_model(model: object) -> None:
    """Raise a ParameterError unless `model` is a network; the usual slips are a name and what `train` returns."""
    if isinstance(model, nn.Module):
        return
    hint = {str: " Did you mean load_trained(name)?", tuple: " Did you mean model, history = train(…)?"}
    raise ParameterError(
        f"'model' must be a network (an nn.Module). Got {type(model).__name__}." + hint.get(type(model), "")
    )


def check_tensors(dimensions: int | None = None, dtype: torch.dtype | None = None, /, **tensors: Tensor) -> None:
    """Raise a ParameterError unless all are tensors of finite numbers, at least one, of these dimensions and dtype."""
    kind = (f"{dimensions} dimensions and of " if dimensions else "") + "finite numbers, at least one"
    kind += f", in {dtype}" if dtype else ""
    for name, tensor in tensors.items():
        if (
            not isinstance(tensor, Tensor)
            or tensor.dim() != (dimensions or tensor.dim())
            or tensor.numel() == 0
            or tensor.dtype != (dtype or tensor.dtype)
            or tensor.dtype == torch.bool
            or not torch.isfinite(tensor).all()
        ):
            got = f"{tensor.dtype}, {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ParameterError(f"{name!r} must be a tensor of {kind}. Got {got}.")


def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Return the logits (N, classes), computed in evaluation mode and without gradients.

    Raises a ParameterError for images that the model can't read.
    """
    check_model(model)
    if not isinstance(images, Tensor):
        raise ParameterError(f"'images' must be a tensor (N, 1, 28, 28). Got {type(images).__name__}.")
    try:
        with evaluation_mode(model), torch.no_grad():
            return torch.cat([model(batch) for batch in images.split(BATCH_SIZE)])
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ParameterError(
            f"the model can't read images of shape {tuple(images.shape[1:])} and "
            f"{images.dtype}; the kit's networks take (1, 28, 28) and torch.float32, as load_mnist() "
            f"gives. The layer said: {reason(error)}"
        ) from error


@contextmanager
def evaluation_mode(model: nn.Module):
    """Set every module to evaluation (no dropout, kept batch statistics) and restore the mode that each had."""
    training = [module for module in model.modules() if module.training]
    for module in training:  # model.eval() would take a while to set what is set already
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
