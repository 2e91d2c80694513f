"""When does a teacher help, and does a search find as good a setting as a grid? Five seeds each."""

from collections.abc import Callable
from functools import partial
from statistics import mean

from tabulate import tabulate
from torch import nn

from benchmarks._campaign import SEEDS, scores
from kd_lab.checkpoints import load_trained, student_recipe
from kd_lab.compression.search import SettingTrial, best_trial, search_settings, try_setting
from kd_lab.data import Mnist
from kd_lab.distillation import DistillationLoss, with_answers
from kd_lab.evaluation import mean_interval
from kd_lab.networks.zoo import small_student
from kd_lab.training import train

TEACHER, WIDTH = "lenet300", 30
IMAGES = (500, 2000, 10_000, 55_000)
TEMPERATURES, ALPHA = (1, 2.5, 4, 8, 20), 0.1
SEARCHED_IMAGES, RUNS = 2000, 12
GRID = [(temperature, alpha) for temperature in TEMPERATURES for alpha in (0.0, 0.25, 0.5, 0.75, 1.0)]


def gains(data: Mnist) -> dict:
    """Return for each number of images and each seed the errors of a student on labels and at each temperature."""
    return {
        "teacher": TEACHER,
        "width": WIDTH,
        "temperatures": TEMPERATURES,
        "alpha": ALPHA,
        "images": {str(images): [gains_of(images, seed, data) for seed in SEEDS] for images in IMAGES},
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


def search(data: Mnist) -> dict:
    """Return for each seed the setting that a grid and a search choose on validation images, and its errors."""
    return {
        "images": SEARCHED_IMAGES,
        "grid_runs": len(GRID),
        "search_runs": RUNS,
        "seeds": [search_of(seed, data) for seed in SEEDS],
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


def score_gains(recorded: dict) -> dict[str, float]:
    """Print what each temperature gains on the test part; return the gain at the one chosen on the validation part."""
    rows, figures = [], {}
    for images, seeds in recorded["images"].items():
        found = {str(t): gain(seeds, str(t)) for t in recorded["temperatures"]}
        best = min(found, key=partial(validation_error, seeds))
        rows += [[images, t, *interval, "chosen" if t == best else ""] for t, interval in found.items()]
        name = "all" if int(images) == max(IMAGES) else images
        figures |= {
            f"distillation.gain_points_{name}": found[best][0],
            f"distillation.gain_low_{name}": found[best][1],
            f"distillation.temperature_{name}": float(best),
        }
    print(tabulate(rows, ["images", "T", "points gained", "from", "to (95 %)", "on validation images"], floatfmt=".2f"))
    return figures


def validation_error(seeds: list[dict], way: str) -> float:
    """Return the mean validation error of one way over the seeds."""
    return mean(seed[way]["validation_error"] for seed in seeds)


def gain(seeds: list[dict], way: str) -> tuple[float, float, float]:
    """Return by how many points of test accuracy a way is better than labels, and the ends of its interval."""
    center, ends = mean_interval([seed["labels"]["test_error"] - seed[way]["test_error"] for seed in seeds])
    return center, *ends


def score_search(recorded: dict) -> dict[str, float]:
    """Print and return the mean test error of the settings that the grid and the search chose."""
    found = {way: mean(seed[way]["test_error"] for seed in recorded["seeds"]) for way in ("grid", "searched")}
    print(
        f"test error of what {recorded['grid_runs']} runs on a grid chose: {found['grid']:.2f} %; "
        f"{recorded['search_runs']} runs of a search: {found['searched']:.2f} %"
    )
    return {f"distillation.{way}_error": error for way, error in found.items()}
