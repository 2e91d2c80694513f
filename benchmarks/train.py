"""Time an epoch of training beside torchvision's DataLoader, and count the epochs that the CNN needs for 99 %.

Both ways train the same network on the same 55,000 images, on one thread, in turn. The usual way has the batch size of
PyTorch's own quickstart, the kit its default; the usual way with the kit's batch size stands beside them.
"""

import time
from statistics import mean, median

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import MNIST

from kd_lab.data import MEAN, STD, Mnist, load_mnist, mnist_folder, split_indices
from kd_lab.evaluation import accuracy
from kd_lab.networks.zoo import build_model
from kd_lab.training import train

ROUNDS = 3
USUAL_BATCH_SIZE, OUR_BATCH_SIZE = 64, 256
SEEDS = range(5)


def run() -> dict[str, float]:
    """Print both tables and return the figures."""
    data = load_mnist()
    figures = {}
    for name in ("lenet300", "cnn"):
        figures |= compare_epochs(name, data)
    return figures | epochs_to_99(data)


def compare_epochs(name: str, data: Mnist) -> dict[str, float]:
    """Time an epoch each way in turn, ROUNDS times, and give the medians and their ratios."""
    usual, same_batch = (usual_loader(size) for size in (USUAL_BATCH_SIZE, OUR_BATCH_SIZE))
    ways = {
        "usual_s": lambda: usual_epoch(name, usual),
        "same_batch_s": lambda: usual_epoch(name, same_batch),
        "ours_s": lambda: our_epoch(name, data),
    }
    rounds = [{way: seconds(work) for way, work in ways.items()} for _ in range(ROUNDS)]
    figures = {way: median(times[way] for times in rounds) for way in ways}
    figures["ratio"] = figures["usual_s"] / figures["ours_s"]
    figures["same_batch_ratio"] = figures["same_batch_s"] / figures["ours_s"]
    headers = [
        f"DataLoader, batch {USUAL_BATCH_SIZE}, s",
        f"DataLoader, batch {OUR_BATCH_SIZE}, s",
        f"kd_lab, batch {OUR_BATCH_SIZE}, s",
        "ratio",
        "ratio at the same batch size",
    ]
    print(tabulate([[name, *figures.values()]], ["one epoch of", *headers], floatfmt=".2f"), flush=True)
    return {f"train.{name}.{figure}": value for figure, value in figures.items()}


def seconds(work) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def our_epoch(name: str, data: Mnist) -> None:
    """Train one epoch as a lesson does; ten validation images, since the other way validates nothing."""
    train(
        build_model(name),
        data.train,
        F.cross_entropy,
        validation=data.validation[:10],
        epochs=1,
        batch_size=OUR_BATCH_SIZE,
        progress=False,
    )


def usual_loader(batch_size: int) -> DataLoader:
    """Load the training part as PyTorch's quickstart does."""
    return DataLoader(usual_images(part=0), batch_size=batch_size, shuffle=True)


def usual_images(part: int) -> Subset:
    """Give the training (0) or the validation (1) part as torchvision's own examples do, with a transform for each."""
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((MEAN,), (STD,))])
    dataset = MNIST(mnist_folder().parents[1], train=True, transform=transform)
    return Subset(dataset, split_indices(dataset.targets)[part])


def usual_epoch(name: str, loader: DataLoader) -> None:
    """Train one epoch with the loop that every tutorial shows."""
    model = USUAL[name]()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model.train()
    for images, labels in loader:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()


def usual_cnn() -> nn.Module:
    """Build the CNN in the order that tutorials use: convolution, ReLU, pooling."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(1568, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


USUAL = {"lenet300": lambda: build_model("lenet300"), "cnn": usual_cnn}


def epochs_to_99(data: Mnist) -> dict[str, float | None]:
    """Count the epochs after which the CNN, as the mean of five seeds, reads 99.0 % of the test part."""
    for epochs in range(1, 6):
        scores = [accuracy(trained_cnn(data, epochs, seed), data.test).value for seed in SEEDS]
        print(
            f"cnn, {epochs} epochs, test accuracy of five seeds: {', '.join(f'{score:.2%}' for score in scores)}",
            flush=True,
        )
        if mean(scores) >= 0.99:
            return {
                "train.cnn.epochs_to_99": epochs,
                "train.cnn.mean_accuracy": mean(scores),
                "train.cnn.lowest_accuracy": min(scores),
            }
    return {"train.cnn.epochs_to_99": None}


def trained_cnn(data: Mnist, epochs: int, seed: int) -> nn.Module:
    """Train the CNN for a few epochs with the settings that validation chose for two."""
    return train(
        build_model("cnn", seed),
        data.train,
        F.cross_entropy,
        validation=data.validation,
        epochs=epochs,
        learning_rate=5e-3,
        weight_decay=0.1,
        batch_size=32,
        seed=seed,
        progress=False,
    )[0]
