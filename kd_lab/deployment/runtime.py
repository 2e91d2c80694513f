"""Run what another runtime loaded as if it were a network: model(images) gives the logits."""

from abc import abstractmethod

import numpy as np
import torch
from torch import Tensor, nn

from kd_lab.errors import ParameterError


class RuntimeModel(nn.Module):
    """Check what comes, give it to a runtime, and give back its answers as a tensor.

    A file that takes so many images at a time is given as many, filled up with zeros. What is in the file shows only as
    its bytes: weights and MACs are not counted.
    """

    runtime: str  # its name, as errors say it
    shape: list  # of what the file takes, a whole number for each size that is fixed and a name or None for the others
    dtype: torch.dtype  # of what the file takes

    def keep_file(self, content: bytes) -> None:
        """Keep the bytes of the file, which are what the model costs."""
        self.register_buffer("file", torch.frombuffer(bytearray(content), dtype=torch.uint8))

    @abstractmethod
    def answers(self, images: np.ndarray) -> np.ndarray:
        """Return the runtime's answers; raise its own error where it has none."""

    @abstractmethod
    def said(self, error: Exception) -> str:
        """Return what the runtime's own error says, without the places in its code."""

    def __deepcopy__(self, _memo: dict) -> "RuntimeModel":
        return self  # nothing in it changes, and a session can't be copied

    def forward(self, images: Tensor) -> Tensor:
        if not self._fits(images):
            raise ParameterError(f"expected (N, {', '.join(map(str, self.shape[1:]))}) and {self.dtype}.")
        if self.shape and isinstance(batch := self.shape[0], int):  # it takes so many at a time, no more and no fewer
            return torch.cat([self._run(_filled(part, batch))[: len(part)] for part in images.split(batch)])
        return self._run(images)

    def _fits(self, images: Tensor) -> bool:
        sizes = zip(self.shape[1:], images.shape[1:], strict=False)
        same = all(size == known or not isinstance(known, int) for known, size in sizes)  # the others are names
        rank = not self.shape or images.dim() == len(self.shape)  # a file may leave it open
        return images.dtype == self.dtype and rank and same

    def _run(self, images: Tensor) -> Tensor:
        try:
            given = self.answers(images.detach().contiguous().numpy())
        except Exception as error:  # of the runtime's own kinds, which share no parent
            raise ParameterError(f"{self.runtime} can't read {len(images)} images: {self.said(error)}") from error
        if len(given) != len(images):
            raise ParameterError(f"the file gives {len(given)} answers to {len(images)} images.")
        return torch.from_numpy(given)


def _filled(images: Tensor, count: int) -> Tensor:
    return torch.cat([images, images.new_zeros(count - len(images), *images.shape[1:])])
