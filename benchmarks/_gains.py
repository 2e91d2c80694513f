"""When does a teacher help, and does a search find as good a setting as a grid? Five seeds each."""

from collections.abc import Callable

from tabulate import tabulate
from torch import nn

from benchmarks._campaign import Campaign, scores
from kd_lab.checkpoints import load_trained, student_recipe
from kd_lab.compression.search import SettingTrial, best_trial, search_settings, try_setting
from kd_lab.data import Mnist
from kd_lab.distillation import DistillationLoss, with_answers
from kd_lab.networks.zoo import small_student
from kd_lab.results import PerSeed, Record
from kd_lab.training import train

TEACHER, WIDTH = "lenet300", 30
IMAGES = (500, 2000, 10_000, 55_000)
TEMPERATURES, ALPHA = (1, 2.5, 4, 8, 20), 0.1
SEARCHED_IMAGES, RUNS = 2000, 12
GRID = [(temperature, alpha) for temperature in TEMPERATURES for alpha in (0.0, 0.25, 0.5, 0.75, 1.0)]


def gains(running: Campaign) -> dict:
    """Return for each number of images and each seed the errors of a student on labels and at each temperature."""
    return {
        "teacher": TEACHER,
        "width": WIDTH,
        "temperatures": TEMPERATURES,
        "alpha": ALPHA,
        "images": running.grid("gains", gains_of, images=IMAGES),
    }


def gains_of(images: int, seed: int, data: Mnist) -> dict[str, dict]:
    """Return the errors of one seed's students, all from the same initial weights and on the same batches."""
    fit = student_of(images, seed, data)
    found = {"labels": scores(fit(1.0, 1.0), data)}
    found |= {str(temperature): scores(fit(temperature, ALPHA), data) for temperature in TEMPERATURES}
    print(f"{images} images, seed {seed}: {[each['validation_error'] for each in found.values()]} %", flush=True)
    return found


def student_of(images: int, seed: int, data: Mnist) -> Callable[[float, float], nn.Module]:
    """Return the function that trains a student by its temperature and alpha."""
    teacher = load_trained(TEACHER)
    part, validation = with_answers(teacher, data.train[:images]), with_answers(teacher, data.validation)

    def fit(temperature: float, alpha: float) -> nn.Module:
        return train(
            small_student(WIDTH, seed),
            part,
            DistillationLoss(temperature, alpha),
            validation=validation,
            seed=seed,
            progress=False,
            **student_recipe(images),
        )[0]

    return fit


def search(running: Campaign) -> dict:
    """Return for each seed the setting that a grid and a search choose on validation images, and its errors."""
    return {
        "images": SEARCHED_IMAGES,
        "grid_runs": len(GRID),
        "search_runs": RUNS,
        "seeds": running.seeds("search", search_of),
    }


def search_of(seed: int, data: Mnist) -> dict[str, dict]:
    """Return what one seed chooses in both ways."""
    fit = student_of(SEARCHED_IMAGES, seed, data)
    found = {
        "grid": [try_setting(fit, *setting, data.validation) for setting in GRID],
        "searched": search_settings(fit, data.validation, runs=RUNS, seed=seed),
    }
    chosen = {way: choice(best_trial(trials), fit, data) for way, trials in found.items()}
    print(f"seed {seed}: {chosen}", flush=True)
    return chosen


def choice(trial: SettingTrial, fit: Callable[[float, float], nn.Module], data: Mnist) -> dict[str, float]:
    """Return a setting and the errors of its student."""
    return {
        "temperature": round(trial.temperature, 2),
        "alpha": round(trial.alpha, 2),
        **scores(fit(trial.temperature, trial.alpha), data),
    }


def score_gains(recorded: Record) -> dict[str, float]:
    """Print what each temperature gains on the test part; return the gain at the one chosen on the validation part."""
    rows, figures = [], {}
    for images in recorded.names("gains", "images"):
        best = chosen_temperature(recorded, images)
        for temperature in recorded.part("gains", "temperatures"):
            found = gain(recorded, images, temperature)
            note = "chosen" if temperature == best else ""
            rows.append([images, temperature, found.mean, *found.interval, note])
        name, found = "all" if int(images) == max(IMAGES) else images, gain(recorded, images, best)
        figures |= {
            f"distillation.gain_points_{name}": found.mean,
            f"distillation.gain_low_{name}": found.interval[0],
            f"distillation.temperature_{name}": float(best),
        }
    print(tabulate(rows, ["images", "T", "points gained", "from", "to (95 %)", "on validation images"], floatfmt=".2f"))
    return figures


def chosen_temperature(recorded: Record, images: str) -> float:
    """Return the temperature of the smallest mean validation error."""
    return min(
        recorded.part("gains", "temperatures"),
        key=lambda temperature: recorded.figures("gains", images, temperature, "validation_error").mean,
    )


def gain(recorded: Record, images: str, temperature: float) -> PerSeed:
    """Return by how many points of test accuracy a taught student is better than one on labels."""
    return recorded.errors("gains", images, "labels") - recorded.errors("gains", images, temperature)


def score_search(recorded: Record) -> dict[str, float]:
    """Print and return the mean test error of the settings that the grid and the search chose."""
    found = {way: recorded.errors("search", way).mean for way in ("grid", "searched")}
    print(
        f"test error of what {recorded.part('search', 'grid_runs')} runs on a grid chose: {found['grid']:.2f} %; "
        f"{recorded.part('search', 'search_runs')} runs of a search: {found['searched']:.2f} %"
    )
    return {f"distillation.{way}_error": error for way, error in found.items()}
