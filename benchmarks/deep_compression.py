"""How small can a file be that still reads digits? Recipes of stages over five seeds, taught and plain.

For each target the files of one recipe are chosen by their validation errors alone: the smallest whose mean is at most
the target. The files are kept in results/deep_compression/, and scored again by loading each and letting it read the
test part. --rerun makes those that are missing, seed by seed, and goes on where it was stopped.
"""

import time
from pathlib import Path
from statistics import mean

import torch
from tabulate import tabulate

from benchmarks._campaign import SEEDS, answers, error, gain, keep
from kd_lab.checkpoints import load_trained
from kd_lab.compression import FineTune, Prune, PruneUnits, Share, compress, load_packed, save_packed
from kd_lab.cost import count_parameters
from kd_lab.data import Mnist, Split, load_mnist
from kd_lab.models import build_model
from kd_lab.results import RESULTS, load_results
from kd_lab.storage import cache_folder, lock

NAME = "deep_compression"
MOVES = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]  # pixels
TEACHER = "cnn"
SETTINGS = {"temperature": 2.0, "alpha": 0.1, "learning_rate": 3e-3, "batch_size": 128, "steps_per_epoch": 430}
TARGETS = {"lenet300": {"1_64": 1.64, "1_90": 1.90}}  # test error, %
RECIPES = {("lenet300", "taught"): [
    [PruneUnits(0.5, 8), Prune(0.967, 12, 8), FineTune(60), Share(num_bits, 20)] for num_bits in (2, 3, 4)]}


def run(rerun: bool) -> dict[str, float]:
    """Print a table of all targets and return the figures; with `rerun`, make what is missing first."""
    data = load_mnist()
    if rerun:
        for network, way in RECIPES:
            for seed in SEEDS:
                make(network, way, seed, data)
    recorded, figures, rows = load_results(NAME), {}, []
    for network, way in RECIPES:
        made = [recorded[f"{network}_{way}_{seed}"] for seed in SEEDS]
        for target, most in TARGETS[network].items():
            found = score(network, way, choose(made, most), made, data)
            rows.append([network, way, most, *found.values()])
            figures |= named(network, way, target, found)
    print(tabulate(rows, ["network", "way", "target, %", *found], floatfmt=".4g"), flush=True)
    return figures


def make(network: str, way: str, seed: int, data: Mnist) -> None:
    """Make the files of one seed, and record their bytes and validation errors, unless that is done."""
    part = f"{network}_{way}_{seed}"
    if (RESULTS / f"{NAME}.json").exists() and part in load_results(NAME):
        return
    start, more, found = load_trained(network, seed), moved(data), []
    teacher = load_trained(TEACHER) if way == "taught" else None
    for place, stages in enumerate(RECIPES[network, way]):
        begun = time.process_time()
        outcome = compress(start, network, teacher, more, stages, folder=cache_folder() / NAME / part, seed=seed,
                           progress=False, **SETTINGS)
        save_packed(path_of(network, way, place, seed), outcome.model, network)
        found.append({"stages": [[name, size, error(outcome.models[name], data.validation)]
                                 for name, size in outcome.bytes.items()],
                      "cpu_minutes": round((time.process_time() - begun) / 60, 2)})
        print(part, found[-1], flush=True)
    with lock(cache_folder() / f"{NAME}.json"):  # seeds may be made side by side
        keep(NAME, part, {"dense": answers(start, data), "recipes": found})


def moved(data: Mnist) -> Mnist:
    """Return the data with each training image nine times: where it is, and a pixel away in each direction.

    What a move pushes over the edge comes in on the other side, but ink hardly ever is there.
    """
    images = torch.cat([data.train.images.roll(move, dims=(2, 3)) for move in MOVES])
    return data._replace(train=Split(images, data.train.labels.repeat(len(MOVES))))


def path_of(network: str, way: str, place: int, seed: int) -> Path:
    """Return where the file of a recipe, by its place in the list, and of a seed is kept."""
    return RESULTS / NAME / f"{network}_{way}_{place}_{seed}.kdz"


def choose(made: list[dict], most: float) -> int:
    """Return the place of the recipe with the smallest files of those whose mean validation error is at most that."""
    ends = [[seed["recipes"][place]["stages"][-1] for seed in made] for place in range(len(made[0]["recipes"]))]
    sizes, errors = ([mean(end[column] for end in each) for each in ends] for column in (1, 2))
    fitting = [place for place in range(len(ends)) if errors[place] <= most]
    return min(fitting, key=sizes.__getitem__) if fitting else errors.index(min(errors))


def score(network: str, way: str, place: int, made: list[dict], data: Mnist) -> dict[str, float | str]:
    """Load the files of a recipe, let them read the test part, and return what they reach."""
    paths = [path_of(network, way, place, seed) for seed in SEEDS]
    found = [answers(load_packed(path), data) for path in paths]
    sizes, errors = [path.stat().st_size for path in paths], [each["test_error"] for each in found]
    center, (low, high) = gain(found, [each["dense"] for each in made])
    return {"ratio": 4 * count_parameters(build_model(network)) / mean(sizes), "bytes": mean(sizes),
            "error": mean(errors), "range": f"{min(errors):.2f} to {max(errors):.2f}",
            "validation error": mean(each["validation_error"] for each in found),
            "points to dense": f"{center:+.2f} ({low:+.2f} to {high:+.2f})",
            "CPU-minutes": max(sum(recipe["cpu_minutes"] for recipe in seed["recipes"]) for seed in made)}


def named(network: str, way: str, target: str, found: dict[str, float | str]) -> dict[str, float]:
    """Return the figures of a target under their names."""
    plain = "" if way == "taught" else "plain_"
    return {f"{NAME}.{network}.{plain}ratio_at_{target}": found["ratio"],
            **{f"{NAME}.{network}.{plain}at_{target}.{name}": value for name, value in {
                "error": found["error"], "bytes": found["bytes"], "cpu_minutes": found["CPU-minutes"],
                "seeds": len(SEEDS)}.items()}}
