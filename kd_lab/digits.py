"""Give scikit-learn's handwritten digits in MNIST's shape: a small data set, to fine-tune a network on."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from kd_lab.data import MEAN, STD, Mnist, Split

TEST, VALIDATION = 500, 300  # images, of 1,797
HIGHEST = 16  # the blackest pixel


def load_optical_digits() -> Mnist:
    """Return 997 training, 300 validation and 500 test images (N, 1, 28, 28) of other hands; needs no network.

    The 8×8 images of Alpaydin & Kaynak 1998 (UCI, optical recognition of handwritten digits) are enlarged to 20×20 and
    put in the middle of 28×28, where MNIST has its digits; MNIST's own mean and spread normalise them.
    """
    pixels, labels = load_digits(return_X_y=True)
    small = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / HIGHEST
    images = (F.pad(F.interpolate(small, size=20, mode="bilinear"), [4, 4, 4, 4]) - MEAN) / STD
    rest, test = train_test_split(range(len(labels)), test_size=TEST, random_state=0, stratify=labels)
    train, validation = train_test_split(rest, test_size=VALIDATION, random_state=0, stratify=labels[rest])
    return Mnist(*(Split(images[part], torch.tensor(labels)[part]) for part in (train, validation, test)))
