"""Train every network by its recipe from five seeds and set its test error beside a published one.

Scores the record in results/ again; --rerun makes it anew, which takes about 40 minutes on one thread. What is trained
already is read from the cache.
"""

from statistics import mean

from tabulate import tabulate

from benchmarks import read, record
from benchmarks._campaign import SEEDS, TEST_IMAGES, Campaign, campaign
from kd_lab.checkpoints import RECIPES, cached_path, make_checkpoint
from kd_lab.data import Mnist
from kd_lab.storage import load_tensors, lock

PUBLISHED = {  # test error in percent, and where it stands
    "mlp128": (2.0, "TensorFlow 2 quickstart for beginners, the same 784-128-10 with dropout: about 98 % accuracy"),
    "lenet300": (1.64, "Han et al. 2015, arXiv 1506.02626, table 1"),
    "cnn": (1.0, "Keras, Simple MNIST convnet, 32 and 64 channels: about 99 % accuracy"),
    "lenet5": (0.80, "Han et al. 2015, arXiv 1506.02626, table 1"),
    "lenet5_classic": (0.95, "LeCun et al. 1998, LeNet-5 without distortions"),
    "resnet": (None, "no published figure for one of this size"),
}


def run(rerun: bool, workers: int | None = None, dask: str | None = None) -> dict[str, float]:
    """Print the table and return the test errors in percent; with `rerun`, make the record first."""
    if rerun:
        with campaign("baselines", workers, dask) as running:
            measured = {"seeds": list(SEEDS), "test_images": TEST_IMAGES, "networks": networks(running)}
            record("baselines", measured)
    recorded = read("baselines")["networks"]
    rows = [
        [name, mean(errors := network["test_error"]), min(errors), max(errors), network["published"], network["source"]]
        for name, network in recorded.items()
    ]
    print(tabulate(rows, ["network", "mean error, %", "lowest", "highest", "published", "source"], floatfmt=".2f"))
    return {
        f"baselines.{row[0]}.{figure}": value
        for row in rows
        for figure, value in zip(("mean_error", "lowest_error", "highest_error"), row[1:4], strict=True)
    }


def networks(running: Campaign) -> dict:
    """Return the recipe of each network, the test error of each seed and the published figure."""
    errors = running.grid("networks", measure, name=PUBLISHED)
    return {
        name: {"recipe": RECIPES[name], "test_error": errors[name], "published": published, "source": source}
        for name, (published, source) in PUBLISHED.items()
    }


def measure(name: str, seed: int, data: Mnist) -> float:
    """Return the test error of the network of one seed in percent; it is trained unless it is there."""
    path = cached_path(name, seed)
    with lock(path):
        if not path.exists():
            make_checkpoint(path, name, data, seed)
    return round(100 * (1 - load_tensors(path)[1]["correct"]["test"] / TEST_IMAGES), 2)
