"""Small networks of every kind of layer, as a learner may bring them; each has its seed, and images that it reads."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Heads(nn.Module):
    """A transformer's encoder layer over the rows of an image."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.encoder(x).mean(1))


class Recurrent(nn.Module):
    """A recurrent layer over the rows of an image, and an answer by its last state."""

    def __init__(self, layer: nn.Module, width: int):
        super().__init__()
        self.layer, self.fc = layer, nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer(x)[0][:, -1])


class Pairs(nn.Module):
    """A Bilinear layer, whose weight of three dimensions is no matrix."""

    def __init__(self):
        super().__init__()
        self.pairs, self.fc = nn.Bilinear(9, 9, 6), nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pairs(x, x))


class TiedEmbedding(nn.Module):
    """An embedding whose weight gives the answers as well, as language models have it."""

    def __init__(self):
        super().__init__()
        self.words, self.out = nn.Embedding(12, 6), nn.Linear(6, 12, bias=False)
        self.out.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.words(x).mean(1))


class Added(nn.Module):
    """A convolution with an in-place ReLU behind it, and an addition in place."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 1, 3, padding=1), nn.Linear(36, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x), inplace=True)
        x += self.conv(x)
        return self.fc(x.view(-1, 36))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {  # and the shape of an image
    "Linear": (lambda: nn.Sequential(nn.Linear(9, 8), nn.ReLU(inplace=True), nn.Linear(8, 10)), (9,)),
    "Conv1d": (lambda: nn.Sequential(nn.Conv1d(2, 6, 3), nn.Flatten(), nn.Linear(42, 10)), (2, 9)),
    "Conv2d": (lambda: nn.Sequential(nn.Conv2d(2, 6, (3, 2)), nn.Flatten(), nn.Linear(6 * 4 * 5, 10)), (2, 6, 6)),
    "Conv3d": (lambda: nn.Sequential(nn.Conv3d(1, 3, 2), nn.Flatten(), nn.Linear(81, 10)), (1, 4, 4, 4)),
    "ConvTranspose1d": (lambda: nn.Sequential(nn.ConvTranspose1d(2, 5, 3), nn.Flatten(), nn.Linear(40, 10)), (2, 6)),
    "ConvTranspose2d": (
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 2, groups=2), nn.Flatten(), nn.Linear(96, 10)),
        (4, 3, 3),
    ),
    "ConvTranspose3d": (
        lambda: nn.Sequential(nn.ConvTranspose3d(1, 3, 2), nn.Flatten(), nn.Linear(81, 10)),
        (1, 2, 2, 2),
    ),
    "depthwise": (
        lambda: nn.Sequential(
            nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 1), nn.Flatten(), nn.Linear(54, 10)
        ),
        (4, 5, 5),
    ),
    "grouped": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.Flatten(), nn.Linear(54, 10)), (4, 5, 5)),
    "LayerNorm": (
        lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm([5, 8]), nn.Flatten(), nn.Linear(40, 10)),
        (5, 6),
    ),
    "GroupNorm": (
        lambda: nn.Sequential(nn.Conv2d(2, 6, 3), nn.GroupNorm(2, 6), nn.Flatten(), nn.Linear(54, 10)),
        (2, 5, 5),
    ),
    "BatchNorm1d": (lambda: nn.Sequential(nn.Linear(9, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10)), (9,)),
    "Embedding": (lambda: nn.Sequential(nn.Embedding(12, 5, padding_idx=0), nn.Flatten(), nn.Linear(20, 10)), (4,)),
    "EmbeddingBag": (lambda: nn.Sequential(nn.EmbeddingBag(12, 5), nn.Linear(5, 10)), (4,)),
    "tied": (TiedEmbedding, (4,)),
    "in place": (Added, (1, 6, 6)),
    "transformer": (Heads, (5, 8)),
    "LSTM": (lambda: Recurrent(nn.LSTM(6, 7, 2, batch_first=True, bidirectional=True), 14), (5, 6)),
    "Bilinear": (Pairs, (9,)),
    "GRU": (lambda: Recurrent(nn.GRU(6, 7, batch_first=True), 7), (5, 6)),
    "RNN": (lambda: Recurrent(nn.RNN(6, 7, batch_first=True), 7), (5, 6)),
}
WHOLE = {"Bilinear"}  # those with weights that compression can't transform
WORDS = {"Embedding", "EmbeddingBag", "tied"}  # those that read whole numbers


def own_network(name: str, count: int = 7) -> tuple[nn.Module, Tensor]:
    """Build one of these networks, and images (count, …) that it reads."""
    build, shape = NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        images = torch.randint(12, (count, *shape)) if name in WORDS else torch.randn(count, *shape)
        return build(), images


class Tied(nn.Module):
    """Two layers that share a weight, of 64 numbers in and out."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder, self.head = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)
        self.decoder.weight = self.encoder.weight

    def forward(self, x):
        return self.head(self.decoder(self.encoder(x).relu()).relu())
