"""What the tests of several runtimes share."""

import pytest
import torch
from torch import nn


@pytest.fixture
def odd_layers():
    """Return a network of windows, strides, paddings and groups of every kind, and one ReLU in several places."""
    torch.manual_seed(0)
    relu = nn.ReLU()
    return nn.Sequential(
        nn.MaxPool2d(2),
        nn.Conv2d(1, 4, 3, stride=(2, 1), padding=(0, 2), bias=False),
        relu,
        nn.Dropout(),
        nn.Conv2d(4, 8, (3, 4), padding="same", groups=4),
        nn.Conv2d(8, 8, 1, padding="valid"),
        nn.MaxPool2d(3, 2, padding=1, ceil_mode=True),
        nn.Conv2d(8, 4, 2),
        nn.Flatten(),
        nn.Linear(4 * 3 * 8, 20),
        relu,
        nn.Linear(20, 5, bias=False),
    )
