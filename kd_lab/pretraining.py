"""Learn from images without labels: self-supervised pre-training."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lab.data import Split, split_indices
from kd_lab.errors import ParameterError, check_choice, check_number, check_that, check_whole_number
from kd_lab.evaluation import check_data
from kd_lab.networks.checks import check_shapes, check_tensors
from kd_lab.networks.copies import copied
from kd_lab.networks.layers import replace, weights
from kd_lab.networks.predictions import predict, record
from kd_lab.networks.tracing import is_plain
from kd_lab.networks.zoo import initial_weights
from kd_lab.training import History, train

ANGLE, SHEAR, STRETCH, SHIFT, BEND = 0.35, 0.3, 0.15, 0.15, 0.06  # radians; of half the image's side; see random_views
BENDS = 5  # points each way of the grid whose points are moved at random
PROJECTION = 128, 64  # units of the contrastive head
PATCHES, MASKED = 7, 0.6  # patches each way, and the share of them that is masked


def random_views(images: Tensor, strength: float = 1.0) -> Tensor:
    """Return each image (N, channels, height, width) turned, sheared, stretched, shifted and bent at random.

    By up to 20 degrees, 0.3, 15 % and 7.5 % of its side, and by what an elastic grid of 5×5 points does; `strength`, in
    [0, 1], is the part of it that is done. What comes in from outside repeats the edge. torch's global random numbers
    decide, which `train` sets by its seed.
    """
    _check_images("images", images)
    strength = check_number("strength", strength, "[0, 1]")
    angle, shear, *stretch, right, down = (strength * (2 * torch.rand(6, len(images)) - 1)).unbind()
    cosine, sine = (ANGLE * angle).cos(), (ANGLE * angle).sin()
    across, along = ((STRETCH * each).exp() for each in stretch)
    slant = SHEAR * shear
    rows = (
        torch.stack([cosine * across, cosine * slant - sine * along, SHIFT * right]),
        torch.stack([sine * across, sine * slant + cosine * along, SHIFT * down]),
    )
    grid = F.affine_grid(torch.stack(rows).movedim(2, 0), list(images.shape), align_corners=False)  # (N, H, W, 2)
    bends = strength * BEND * torch.randn(len(images), 2, BENDS, BENDS)
    grid = grid + F.interpolate(bends, images.shape[2:], mode="bicubic", align_corners=False).movedim(1, 3)
    return F.grid_sample(images, grid.to(images.dtype), padding_mode="border", align_corners=False)


def hide_patches(images: Tensor) -> Tensor:
    """Return each image (N, channels, height, width) with 60 % of its 7×7 patches, chosen at random, set to zero."""
    _check_images("images", images)
    kept = (torch.rand(len(images), 1, PATCHES, PATCHES) > MASKED).to(images.dtype)
    return images * F.interpolate(kept, images.shape[2:])


def _check_images(name: str, images: Tensor) -> None:
    check_tensors(4, **{name: images})
    check_that(name, images, images.is_floating_point(), "numbers in floating point, as load_mnist() gives")


def nt_xent(pairs: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the contrastive loss of N pairs of views (N, 2, features): Chen et al. 2020, arXiv 2002.05709, eq. 1.

    It is a cross-entropy: among the 2N - 1 other views, which one shows the same image? The logits are the cosines
    between the features, over the temperature.
    """
    temperature = check_number("temperature", temperature, "(0, 1000]")
    check_shapes("'pairs' must be (N, 2, features)", lambda shape: len(shape) == 3 and shape[1] == 2, pairs)
    views = F.normalize(pairs, dim=2).transpose(0, 1).flatten(0, 1)  # all first views, then all second ones
    own = torch.eye(len(views), dtype=torch.bool)
    likeness = (views @ views.T / temperature).masked_fill(own, -math.inf)
    return F.cross_entropy(likeness, torch.arange(len(views)).roll(len(pairs)))


class RandomViews(nn.Module):
    """Show a network random views while it trains, and the images as they are otherwise.

    nn.Sequential(RandomViews(), model) is what `train` takes; its part 1 is the trained model.
    """

    def forward(self, x: Tensor) -> Tensor:
        return random_views(x) if self.training else x


class _Pretext(nn.Module):
    """Show a network what a pretext task makes of the images."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network


class _Contrastive(_Pretext):
    """Answer each image with the features of two views of it, (N, 2, features)."""

    @staticmethod
    def head(inputs: int, pixels: int) -> nn.Module:
        hidden, features = PROJECTION
        return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, features))

    def forward(self, x: Tensor) -> Tensor:
        return self.network(torch.cat([random_views(x), random_views(x)])).unflatten(0, (2, -1)).transpose(0, 1)

    @staticmethod
    def loss(pairs: Tensor, images: Tensor) -> Tensor:
        return nt_xent(pairs)


class _Masked(_Pretext):
    """Answer each image, most of which is masked, with all of its pixels, (N, pixels)."""

    @staticmethod
    def head(inputs: int, pixels: int) -> nn.Module:
        return nn.Linear(inputs, pixels)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(hide_patches(x))

    @staticmethod
    def loss(pixels: Tensor, images: Tensor) -> Tensor:
        return F.mse_loss(pixels, images.flatten(1))


TASKS: dict[str, Any] = {"contrastive": _Contrastive, "masked": _Masked}


def pretrain(
    model: nn.Module,
    images: Tensor,
    task: str = "contrastive",
    *,
    validation: Tensor,
    epochs: int,
    seed: int = 0,
    **settings,
) -> tuple[nn.Module, History]:
    """Return a new network whose weights have learned from images alone, and the history of its losses.

    In the network's place of its last layer, which must be a Linear one that gives its answers, a head for the task is
    trained: "contrastive" learns which of many views show the same image (`nt_xent`), "masked" to paint what is missing
    (mean squared error). Then a last layer takes its place again, with initial weights: for fine-tuning on labels.
    `images` and `validation` are (N, channels, height, width); `settings` are those of `train`. The same seed gives the
    same network. Raises a ParameterError for a network that can't be trained so.
    """
    check_choice("task", task, list(TASKS))
    for name, each in {"images": images, "validation": validation}.items():
        _check_images(name, each)
    seed, pretext = check_whole_number("seed", seed, "[0, 1000000]"), TASKS[task]
    name, network = _last_layer(model, images), copied(model)
    last = network.get_submodule(name)
    with initial_weights(seed):
        fresh = nn.Linear(last.in_features, last.out_features, last.bias is not None)
        replace(network, last, pretext.head(last.in_features, images[0].numel()))
    data, judged = ((part, part) for part in (images, validation))
    trained, history = train(
        pretext(network), data, pretext.loss, validation=judged, epochs=epochs, seed=seed, **settings
    )
    replace(trained.network, trained.network.get_submodule(name), fresh)
    return trained.network.eval(), history


def _last_layer(model: nn.Module, images: Tensor) -> str:
    """Return the name of the Linear layer that gives the network's answers (N, classes)."""
    answers = predict(model, images[:2])
    names = [name for name, weight in weights(model).items() if is_plain(weight.module, nn.Linear) and not weight.tied]
    for name, outputs in record(model, filter(None, names), images[:2], lambda inputs, output: output).items():
        if answers.dim() == 2 and len(outputs) == 1 and torch.equal(outputs[0], answers):
            return name
    raise ParameterError(
        "'model' must have layers before a last Linear one, without masks or quantizers, which gives its answers. Got "
        f"none among {', '.join(weights(model))}."
    )


def few_labels(data: Split, count: int, seed: int = 0) -> Split:
    """Return a Split of `count` images with their labels, as many of each class, up to one; `seed` draws them.

    Raises a ParameterError for fewer than there are classes, or more than there are of a class.
    """
    images, labels, *_ = check_data(data)
    whole = labels.dim() == 1 and not labels.is_floating_point() and int(labels.min()) >= 0
    check_that("labels", labels, whole, "a row of whole numbers from 0")
    count = check_whole_number("count", count, f"[{int(labels.max()) + 1}, {len(labels)}]")
    taken = split_indices(labels, count, check_whole_number("seed", seed, "[0, 1000000]"))[1]
    return Split(images[taken], labels[taken])
