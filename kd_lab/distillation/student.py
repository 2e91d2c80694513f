"""Build the small student that a teacher shall teach, and say how it is trained by how many images it sees."""

import torch
from torch import nn

from kd_lab.errors import check_whole_number

POINTS = 20  # of the curve that a training draws


def small_student(width: int = 30, seed: int = 0) -> nn.Module:
    """Build 784-width-10, of 1 to 10,000 hidden units, with the initial weights that belong to `seed`.

    They are those that torch itself would draw, but no global random numbers are used, so that it may be built in the
    background.
    """
    check_whole_number("width", width, "[1, 10000]")
    check_whole_number("seed", seed, "[0, 1000000]")
    hidden, output = (nn.utils.skip_init(nn.Linear, *sizes) for sizes in ((784, width), (width, 10)))
    generator = torch.Generator().manual_seed(seed)
    for layer in (hidden, output):
        bound = layer.in_features**-0.5
        for parameter in layer.parameters():
            nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return nn.Sequential(nn.Flatten(), hidden, nn.ReLU(), output)


def student_recipe(images: int) -> dict[str, float]:
    """Return the settings of `train` and `train_live` for a small student that sees so many images, at least 1.

    Its "epochs" are the points of a curve, of which the one with the smallest validation loss is kept. Chosen on the
    validation part, at 30 hidden units, by the students that learn from labels alone.
    """
    check_whole_number("images", images, "[1, 1e9]")
    batch_size, steps, learning_rate = next(recipe for most, recipe in RECIPES.items() if images <= most)
    return {
        "epochs": POINTS,
        "steps_per_epoch": steps // POINTS,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
    }


RECIPES = {1000: (128, 500, 1e-2), 5000: (64, 300, 2e-2), 20_000: (128, 1000, 2e-2), float("inf"): (256, 1080, 2e-2)}
