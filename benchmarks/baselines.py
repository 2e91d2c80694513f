"""Train every network by its recipe from five seeds and set its test error beside a published one.

Takes about 40 minutes on one thread; what is trained already is read from the cache. Recorded in results/.
"""

from statistics import mean

from tabulate import tabulate

from benchmarks import record
from kd_lab.checkpoints import RECIPES, cached_path, make_checkpoint
from kd_lab.data import load_mnist
from kd_lab.storage import load_tensors

SEEDS = range(5)
TEST_IMAGES = 10_000
PUBLISHED = {  # test error in percent, and where it stands
    "mlp128": (2.0, "TensorFlow 2 quickstart for beginners, the same 784-128-10 with dropout: about 98 % accuracy"),
    "lenet300": (1.64, "Han et al. 2015, arXiv 1506.02626, table 1"),
    "cnn": (1.0, "Keras, Simple MNIST convnet, 32 and 64 channels: about 99 % accuracy"),
    "lenet5": (0.80, "Han et al. 2015, arXiv 1506.02626, table 1"),
    "lenet5_classic": (0.95, "LeCun et al. 1998, LeNet-5 without distortions"),
    "resnet": (None, "no published figure for one of this size"),
}


def run() -> dict[str, float]:
    """Print the table, record it, and return mean, lowest and highest test error in percent."""
    networks = {name: measure(name) for name in RECIPES}
    record("baselines", {"seeds": list(SEEDS), "test_images": TEST_IMAGES, "networks": networks})
    rows = [
        [name, mean(errors := network["test_error"]), min(errors), max(errors), network["published"], network["source"]]
        for name, network in networks.items()
    ]
    print(tabulate(rows, ["network", "mean error, %", "lowest", "highest", "published", "source"], floatfmt=".2f"))
    return {
        f"baselines.{row[0]}.{figure}": value
        for row in rows
        for figure, value in zip(("mean_error", "lowest_error", "highest_error"), row[1:4], strict=True)
    }


def measure(name: str) -> dict:
    """Return the recipe, the test error of each seed and the published figure."""
    errors = []
    for seed in SEEDS:
        path = cached_path(name, seed)
        if not path.exists():
            make_checkpoint(path, name, load_mnist(), seed)
        correct = load_tensors(path)[1]["correct"]["test"]
        errors.append(round(100 * (1 - correct / TEST_IMAGES), 2))
        print(f"{name}, seed {seed}: {errors[-1]:.2f} % test error", flush=True)
    published, source = PUBLISHED[name]
    return {"recipe": RECIPES[name], "test_error": errors, "published": published, "source": source}
