"""How small can a file be that still reads digits? Recipes of stages over five seeds, taught and plain.

For each target the files of one recipe are chosen by their validation errors alone: the smallest whose mean is at most
the target or, where none is, those of the smallest mean. The files are kept in results/deep_compression/, and scored
again by loading each and letting it read the test part. --rerun makes those that are missing, and goes on where it was
stopped.
"""

import base64
import time
from pathlib import Path
from statistics import mean

import torch
from tabulate import tabulate

from benchmarks import read, record
from benchmarks._campaign import SEEDS, TEST_IMAGES, Campaign, answers, campaign, error, keep
from kd_lab.checkpoints import load_trained
from kd_lab.compression import FineTune, Prune, PruneUnits, Quantize, Share, compress
from kd_lab.compression.records import enter_record
from kd_lab.compression.stages import Stage
from kd_lab.cost import count_parameters
from kd_lab.data import Mnist, Split, load_mnist
from kd_lab.errors import ParameterError
from kd_lab.formats.kdz import load_packed, pack
from kd_lab.networks.zoo import build_model
from kd_lab.results import RESULTS, PerSeed, Record, load_results
from kd_lab.storage import cache_folder, write_safely

NAME = "deep_compression"
MOVES = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]  # pixels
TEACHERS = {"lenet300": "cnn", "lenet5": "resnet"}
SETTINGS = {"temperature": 2.0, "alpha": 0.1, "batch_size": 128, "steps_per_epoch": 430}
RATES = {"lenet300": 3e-3, "lenet5": 5e-3}  # of learning
TARGETS = {"lenet300": {"1_64": 1.64, "1_90": 1.90}, "lenet5": {"0_80": 0.80, "1_00": 1.00}}  # test error, %

REMARKS = (
    "The beginning of the recipe was settled on seed 0, whose test error was printed beside its validation error; for "
    "both networks together five other ends or beginnings were tried on one or two seeds and left."
)
MORE_REMARKS = {"lenet5_taught_1_00": "This end was added after the test errors of the others had been read."}


def by_layer(*bits: int) -> dict[str, int]:
    """Return bits for each layer of lenet300 or lenet5: few in the large layers, more in the small ones."""
    layers = ("fc1", "fc2", "fc3") if len(bits) == 3 else ("conv1", "conv2", "fc1", "fc2")
    return dict(zip(layers, bits, strict=True))


BEGIN = {
    "lenet300": [PruneUnits(0.5, 8), Prune(0.967, 12, 8), FineTune(60)],
    "lenet5": [PruneUnits({"conv1": 0.7, "conv2": 0.76, "fc1": 0.94}, 12), Prune(0.78, 8, 8), FineTune(30)],
}


def rounded(*bits: int) -> list[Stage]:
    """Return the ends that round to a grid while they train, and then share what the grid has left."""
    return [Quantize(by_layer(*bits), 20), Share(by_layer(*bits), 10, 2)]


ENDS = {
    "lenet300": [
        [Share(2, 20)],
        [Share(3, 20)],
        [Share(4, 20)],
        *([Share(by_layer(*bits), 30, 2)] for bits in ((2, 2, 4), (2, 3, 4), (3, 4, 4))),
        rounded(2, 3, 4),
        rounded(3, 3, 4),
    ],
    "lenet5": [rounded(4, 3, 3, 4), rounded(5, 4, 4, 5), rounded(4, 3, 4, 4)],
}
WAYS = [
    ("lenet300", "taught", 0),
    ("lenet300", "plain", 2),  # without the first two ends, which are not chosen
    ("lenet5", "taught", 0),
    ("lenet5", "plain", 0),
]
RECIPES = {(network, way): [[*BEGIN[network], *end] for end in ENDS[network][first:]] for network, way, first in WAYS}


def run(rerun: bool, workers: int | None = None, dask: str | None = None) -> dict[str, float]:
    """Print a table of all targets and return the figures; with `rerun`, make what is missing first and record both."""
    if rerun:
        with campaign(NAME, workers, dask) as running:
            make_missing(running)
    data = load_mnist()
    recorded, reached, figures = load_results(NAME), {}, {}
    for network, way in RECIPES:
        for target, most in TARGETS[network].items():
            found = score(network, way, choose(recorded, f"{network}_{way}", most), recorded, data)
            reached[f"{network}_{way}_{target}"] = {
                "network": network,
                "way": way,
                "limit": most,
                "met": found["error"] <= most,
                **found,
            }
            figures |= named(network, way, target, found)
    if rerun:
        keep(NAME, "settings", {**SETTINGS, "learning_rate": RATES, "teacher": TEACHERS, "moves": MOVES})
        keep(NAME, "reached", reached)
        enter_records(reached, data)
    headers = ["network", "way", "limit, %", "met", *found]
    print(tabulate([row.values() for row in reached.values()], headers, floatfmt=".4g"), flush=True)
    return figures


def make_missing(running: Campaign) -> None:
    """Make the files that are missing, then record the bytes and validation errors of all of them at once."""
    measured, trials = {}, missing()
    for trial, made in zip(trials, running.trials("files", make, trials) if trials else [], strict=True):
        part = "{network}_{way}_{seed}".format(**trial)
        for place, recipe in enumerate(made["recipes"], trial["first"]):
            path = path_of(trial["network"], trial["way"], place, trial["seed"])
            write_safely(path, base64.b64decode(recipe.pop("file")))
        measured[part] = {"dense": made["dense"], "recipes": [*_recorded(part), *made["recipes"]]}
    record(NAME, {**read(NAME), "seeds": list(SEEDS), "test_images": TEST_IMAGES, **measured})


def missing() -> list[dict]:
    """Return network, way and seed where files are missing, and the place of the first recipe that has none."""
    firsts = [
        {"network": network, "way": way, "seed": seed, "first": len(_recorded(f"{network}_{way}_{seed}"))}
        for network, way in RECIPES
        for seed in SEEDS
    ]
    return [each for each in firsts if each["first"] < len(RECIPES[each["network"], each["way"]])]


def make(network: str, way: str, seed: int, first: int, data: Mnist) -> dict:
    """Make the files of one seed from the recipe `first` on, one after another: they share their first stages.

    Minutes are of the worker's one core.
    """
    part, recipes, found = f"{network}_{way}_{seed}", RECIPES[network, way], []
    start, more = load_trained(network, seed), moved(data)
    teacher = load_trained(TEACHERS[network]) if way == "taught" else None
    for stages in recipes[first:]:
        begun = time.process_time()
        outcome = compress(
            start,
            teacher,
            more,
            stages,
            folder=cache_folder() / NAME / part,
            seed=seed,
            progress=False,
            learning_rate=RATES[network],
            **SETTINGS,
        )
        found.append(
            {
                "stages": [
                    [name, size, error(outcome.models[name], data.validation)] for name, size in outcome.bytes.items()
                ],
                "cpu_minutes": round((time.process_time() - begun) / 60, 2),
            }
        )
        print(part, found[-1], flush=True)
        found[-1]["file"] = base64.b64encode(pack(outcome.model)).decode()
    return {"dense": answers(start, data), "recipes": found}


def _recorded(part: str) -> list[dict]:
    """Return what was recorded of a seed: one recipe after another, as far as it came; refuse that of other stages."""
    found = read(NAME).get(part, {}).get("recipes", [])
    for place, stages in enumerate(RECIPES[tuple(part.split("_")[:2])][: len(found)]):
        if [name for name, *_ in found[place]["stages"][1:]] != [f"{nth} {each}" for nth, each in enumerate(stages, 1)]:
            raise ParameterError(f"results/{NAME}.json has other stages for recipe {place} of {part}. Delete it there.")
    return found


def moved(data: Mnist) -> Mnist:
    """Return the data with each training image nine times: where it is, and a pixel away in each direction.

    What a move pushes over the edge comes in on the other side, but ink hardly ever is there.
    """
    images = torch.cat([data.train.images.roll(move, dims=(2, 3)) for move in MOVES])
    return data._replace(train=Split(images, data.train.labels.repeat(len(MOVES))))


def path_of(network: str, way: str, place: int, seed: int) -> Path:
    """Return where the file of a recipe, by its place in the list, and of a seed is kept."""
    return RESULTS / NAME / f"{network}_{way}_{place}_{seed}.kdz"


def choose(recorded: Record, made: str, most: float) -> int:
    """Return the place of the recipe with the smallest files of those whose mean validation error is at most that."""
    places = range(len(recorded.names(made, "recipes")))
    sizes = [at_end(recorded, made, place, "bytes").mean for place in places]
    errors = [at_end(recorded, made, place, "validation_error").mean for place in places]
    fitting = [place for place in places if errors[place] <= most]
    return min(fitting, key=sizes.__getitem__) if fitting else errors.index(min(errors))


def at_end(recorded: Record, made: str, place: int, figure: str) -> PerSeed:
    """Return the bytes, or the validation errors, behind the last stage of a recipe."""
    *_, last = recorded.names(made, "recipes", place, "stages")
    return recorded.figures(made, "recipes", place, "stages", last, figure)


def score(network: str, way: str, place: int, recorded: Record, data: Mnist) -> dict[str, float | str]:
    """Load the files of a recipe, let them read the test part, and return what they reach."""
    paths, made = [path_of(network, way, place, seed) for seed in SEEDS], f"{network}_{way}"
    found = [answers(load_packed(path), data) for path in paths]
    sizes, errors = [path.stat().st_size for path in paths], PerSeed([each["test_error"] for each in found])
    return {
        "files": f"{made}_{place}",
        "ratio": 4 * count_parameters(build_model(network)) / mean(sizes),
        "bytes": mean(sizes),
        "error": errors.mean,
        "range": f"{errors.low:.2f} to {errors.high:.2f}",
        "validation error": mean(each["validation_error"] for each in found),
        "points to dense": f"{recorded.errors(made, 'dense') - errors:+.2f}",
        "CPU-minutes": cpu_minutes(recorded, made, place).high,
    }


def enter_records(reached: dict[str, dict], data: Mnist) -> None:
    """Enter the taught files of each limit as a record, unless they stand there already."""
    for key, row in reached.items():
        network, limit = row["network"], row["limit"]
        if row["way"] == "taught":
            place = int(row["files"].rpartition("_")[2])
            stages = ", ".join(map(str, RECIPES[network, "taught"][place]))
            enter_record(
                network,
                limit,
                [path_of(network, "taught", place, seed) for seed in SEEDS],
                data,
                recipe=f"taught by {TEACHERS[network]} on images moved by a pixel: {stages}",
                command=f"python -m benchmarks {NAME} --rerun",
                chosen_on="validation",
                trials=len(ENDS[network]),
                remarks=f"{REMARKS} {MORE_REMARKS.get(key, '')}".strip(),
            )


def cpu_minutes(recorded: Record, made: str, place: int) -> PerSeed:
    """Return what a recipe took: the stages before its last were made, and timed, with the first recipe."""
    timed = [recorded.figures(made, "recipes", each, "cpu_minutes").values for each in {0, place}]
    return PerSeed([sum(each) for each in zip(*timed, strict=True)])


def named(network: str, way: str, target: str, found: dict[str, float | str]) -> dict[str, float]:
    """Return the figures of a target under their names."""
    plain = "" if way == "taught" else "plain_"
    return {
        f"{NAME}.{network}.{plain}ratio_at_{target}": found["ratio"],
        **{
            f"{NAME}.{network}.{plain}at_{target}.{name}": value
            for name, value in {
                "error": found["error"],
                "bytes": found["bytes"],
                "cpu_minutes": found["CPU-minutes"],
                "seeds": len(SEEDS),
            }.items()
        },
    }
