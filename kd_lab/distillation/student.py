"""The settings that train a small student, by how many images it sees."""

from kd_lab.errors import check_whole_number

CURVE_POINTS = 20  # of the curve that a training draws


def student_recipe(images: int) -> dict[str, float]:
    """Return the settings of `train` and `train_live` for a small student that learns from this number of images.

    Its "epochs" are the points of a curve, of which the one with the smallest validation loss is kept. Chosen on the
    validation part, at 30 hidden units, by the students that learn from labels alone.
    """
    check_whole_number("images", images, "[1, 1e9]")
    batch_size, steps, learning_rate = next(recipe for most, recipe in RECIPES.items() if images <= most)
    return {
        "epochs": CURVE_POINTS,
        "steps_per_epoch": steps // CURVE_POINTS,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
    }


RECIPES = {1000: (128, 500, 1e-2), 5000: (64, 300, 2e-2), 20_000: (128, 1000, 2e-2), float("inf"): (256, 1080, 2e-2)}
