"""Build a vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929) whose attention heads can be removed.

`nn.MultiheadAttention` ties the size of a head to the width. Here the projections are Linear layers of their own, as
wide as all heads together, so that a head can go while the width stays.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lab.errors import ParameterError, check_whole_number


class Heads(nn.Module):
    """Compute scaled dot-product attention in `num_heads` heads, each on its own part of the features.

    Takes queries, keys and values (N, tokens, features), the features of one head after the other, and gives as many.
    """

    def __init__(self, num_heads: int):
        super().__init__()
        self.num_heads = num_heads

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        # (N, heads, tokens, head size)
        parts = (x.unflatten(-1, (self.num_heads, -1)).transpose(-3, -2) for x in (query, key, value))
        return F.scaled_dot_product_attention(*parts).transpose(-3, -2).flatten(-2)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}"


class SelfAttention(nn.Module):
    """Let each token (N, tokens, width) read all others, in `num_heads` heads (Vaswani et al. 2017).

    Raises a ParameterError where the heads don't divide the width.
    """

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        width = check_whole_number("width", width, "[1, 10000]")
        num_heads = check_whole_number("num_heads", num_heads, f"[1, {width}]")
        if width % num_heads:
            divisors = ", ".join(str(number) for number in range(1, width + 1) if width % number == 0)
            raise ParameterError(f"'num_heads' must divide the width of {width}: {divisors}. Got {num_heads}.")
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        self.heads = Heads(num_heads)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.heads(self.query(x), self.key(x), self.value(x)))


class TransformerBlock(nn.Module):
    """Add attention, then a feed-forward network, to tokens (N, tokens, width); each reads them normalized."""

    def __init__(self, width: int, num_heads: int, hidden: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = SelfAttention(width, num_heads)
        self.fc1, self.gelu, self.fc2 = nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(self.gelu(self.fc1(self.norm2(x))))


class Patches(nn.Module):
    """Give a token for each part of images (N, 1, 28, 28), its position added: (N, 16, width).

    Two convolutions that overlap cut the image, since a transformer learns little from so few digits of what
    neighbouring pixels have in common (Xiao et al. 2021, arXiv 2106.14881).
    """

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.conv1, self.relu = nn.Conv2d(1, channels, 4, stride=2, padding=1), nn.ReLU()  # (N, channels, 14, 14)
        self.conv2 = nn.Conv2d(channels, width, 4, stride=4, padding=1)  # (N, width, 4, 4)
        self.register_buffer("positions", waves(16, width), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.relu(self.conv1(x))).flatten(2).transpose(1, 2) + self.positions


def waves(count: int, width: int) -> Tensor:
    """Return a row (count, width) of sines and cosines for each position (Vaswani et al. 2017, section 3.5)."""
    angles = torch.arange(count)[:, None] / 10_000 ** (torch.arange(width // 2) * 2 / width)  # (count, width / 2)
    return torch.cat([angles.sin(), angles.cos()], 1)


class TokenMean(nn.Module):
    """Give the mean of all tokens: (N, tokens, width) becomes (N, width)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)
