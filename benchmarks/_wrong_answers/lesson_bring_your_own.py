"""Wrong answers to the exercises of bring_your_own."""

import copy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from kd_lab.data import split_data
from kd_lab.networks.layers import weights
from kd_lab.training import train


def wrong_bring_your_own_1() -> dict[str, Any]:
    """Pictures and names."""

    def split(prepare, number=lambda names: np.unique(names, return_inverse=True)[1], count=20):
        return lambda pictures, names: split_data(prepare(pictures), number(names), validation=count, test=count)

    def channel(pictures):
        return pictures[:, None] / 255

    def by_hand(pictures, names):
        images, labels = torch.tensor(channel(pictures)).float(), np.unique(names, return_inverse=True)[1]
        return [(images[part], torch.tensor(labels)[part]) for part in (slice(40, None), slice(20), slice(20, 40))]

    return {
        "divide by that": split(lambda pictures: pictures[:, None] * 1.0),
        "not 256": split(lambda pictures: pictures[:, None] / 256),
        "subtract nothing": split(lambda pictures: pictures[:, None] / 127.5 - 1),
        "Divided twice": split(lambda pictures: pictures[:, None] / 255**2),
        "the channel comes second": split(lambda pictures: pictures[..., None] / 255),
        "your function stops": split(channel, number=lambda names: names),
        "the rest trains": split(channel, count=15),
        "keeps fractions": split(lambda pictures: pictures[:, None] // 255),
        "and nothing else": split(lambda pictures: 1 - channel(pictures)),
        "takes some of each": by_hand,
        "in their order": split(channel, number=lambda names: np.unique(sorted(names), return_inverse=True)[1]),
        "Return what `split_data`": lambda pictures, names: split(channel)(pictures, names).train,
    }


class _Net(nn.Module):
    """A MyNet with channels side by side, and with mistakes: as many inputs, joined so, ended so."""

    def __init__(self, width=16, inputs=512, join=lambda x, y: torch.cat([x, y], dim=1), end=lambda x: x):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.fc1, self.fc2, self.join, self.end = nn.Linear(inputs, 64), nn.Linear(64, 10), join, end

    def forward(self, x):
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.max_pool2d(self.join(x, F.relu(self.norm2(self.conv2(x)))), 2)
        return self.end(self.fc2(F.relu(self.fc1(x.flatten(1)))))


def wrong_bring_your_own_2() -> dict[str, Any]:
    """Side by side in place of added."""
    below = _Net(join=lambda x, y: torch.cat([torch.cat([x, x], dim=1), torch.cat([y, y], dim=1)]))
    apart = _Net(join=lambda x, y: torch.cat([x, y], dim=1))
    apart.conv2 = nn.Conv2d(1, 16, 3, padding=1)
    return {
        "the 16 that conv1 gives": apart,
        "not the class": _Net,
        "`fc1` reads 512": _Net(inputs=256, join=torch.add),
        "so side by side 32": _Net(width=8, inputs=512),
        "Pool first": _Net(inputs=2048),
        "`fc1` must read them all": _Net(join=torch.add),
        "puts *images* below": below,
        "these are probabilities": _Net(end=lambda x: x.softmax(1)),
        "these are log-probabilities": _Net(end=lambda x: x.log_softmax(1)),
        "come from one convolution": _Net(join=lambda x, y: torch.cat([x, x], dim=1)),
        "not besides it": _Net(join=lambda x, y: torch.cat([x, x + y], dim=1)),
        "rows or columns": _Net(join=lambda x, y: torch.cat([x, y], dim=2)),
        "all is as in MyNet": _Net(join=lambda x, y: torch.cat([x, -y], dim=1)),
        "Keep the names": nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
    }


def right_bring_your_own_2() -> list[Any]:
    """Side by side in place of added."""
    beside = _Net(join=lambda x, y: torch.cat([y, x], dim=1))
    return [beside, copy.deepcopy(beside).double(), copy.deepcopy(beside).requires_grad_(False)]


def wrong_bring_your_own_3() -> dict[str, Any]:
    """What a fixed view costs."""
    return {
        "A list such as": "fc1, fc2",
        "all weights": ["fc1"],
        "fewer outputs": ["fc2"],
        "The convolutions are whole": ["conv1", "conv2", "fc1", "fc2"],
        "Compare after both": (),
        "not all are layers": ["fc1", "fc2", "norm1"],
    }


def wrong_bring_your_own_4() -> dict[str, Any]:
    """Small, and still good."""
    pixels, digits = load_digits(return_X_y=True)
    data = split_data(pixels.reshape(-1, 1, 8, 8) / 16, digits, validation=300, test=400)
    torch.manual_seed(0)
    masked = _Net()
    small = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    for weight in weights(masked).values():
        weight.value.detach()[::2] = 0
    settings = {"validation": data.validation, "batch_size": 64, "progress": False}
    hidden = nn.Flatten()
    hidden.forward = train(_Net(join=torch.add, inputs=256), data.train, F.cross_entropy, epochs=8, **settings)[
        0
    ].forward
    soon, later = (train(small, data.train, F.cross_entropy, epochs=epochs, **settings) for epochs in (3, 8))
    return {
        "returns a network and its history": later,
        "takes them out": masked,
        "Take more channels": _Net(),
        "hardly more than chance": small,
        "Pruning alone costs": soon[0],
        "Near": later[0],
        "parameters of layers": hidden,
    }


def wrong_bring_your_own_5() -> dict[str, Any]:
    """A teacher that harms."""
    return {
        "looks like a fraction": -0.10,
        "the gain of section 6": 7.93,
        "not the other way round": 12.5,
        "it harms less": -4.5,  # of 200 images; 10 epochs give -4.9, batches of 16 -6.3
        "Do both students start": -23.5,  # by a teacher without training
    }
