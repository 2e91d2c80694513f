"""Run a network once for all the images that clients have sent by then: one pass costs little more than one image."""

import asyncio
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
from torch import nn

from kd_lab.errors import KdLabError, reason
from kd_lab.networks.predictions import BATCH_SIZE


class RequestError(KdLabError):
    """A request that can't be answered, for a reason that its client can mend."""


class Batches:
    """Collect images in one event loop until a turn of it brings no more, and run a network on BATCH_SIZE at a time."""

    def __init__(self, network: nn.Module):
        self.network = network
        self._waiting: list[tuple[np.ndarray, asyncio.Future]] = []

    async def logits(self, images: np.ndarray) -> np.ndarray:
        """Return the logits (N, …) of images (N, …); raise a RequestError where the network gives none."""
        parts = [images[start : start + BATCH_SIZE] for start in range(0, len(images), BATCH_SIZE)]
        return np.concatenate([await self._of_part(part) for part in parts])

    async def _of_part(self, images: np.ndarray) -> np.ndarray:
        loop = asyncio.get_running_loop()
        self._waiting.append((images, answer := loop.create_future()))
        if len(self._waiting) == 1:
            loop.call_soon(self._run_next, loop, 0)
        return await answer

    def _run_next(self, loop: asyncio.AbstractEventLoop, seen: int) -> None:
        ends = list(accumulate(len(images) for images, _ in self._waiting))
        if seen < ends[-1] < BATCH_SIZE:  # others that come in the loop's next turn may share the pass
            loop.call_soon(self._run_next, loop, ends[-1])
            return
        count = sum(end <= BATCH_SIZE for end in ends)
        asked, self._waiting = self._waiting[:count], self._waiting[count:]
        if self._waiting:
            loop.call_soon(self._run_next, loop, 0)
        for (_, answer), found in zip(asked, self._answers([images for images, _ in asked]), strict=True):
            if not answer.done():  # a client may have left
                answer.set_exception(found) if isinstance(found, RequestError) else answer.set_result(found)

    def _answers(self, parts: list[np.ndarray]) -> Sequence[np.ndarray | RequestError]:
        """Return the logits of each client's images, or an error only for those that have none."""
        try:
            logits = self.run(np.concatenate(parts))
            return [logits[end - len(part) : end] for end, part in zip(accumulate(map(len, parts)), parts, strict=True)]
        except RequestError as error:
            return [error] if len(parts) == 1 else [answer for part in parts for answer in self._answers([part])]

    @torch.inference_mode()
    def run(self, images: np.ndarray) -> np.ndarray:
        """Return the logits of images that fit; raise a RequestError where there are none."""
        try:
            logits = self.network(torch.from_numpy(images)).numpy()
        except Exception as error:  # of a learner's own layer
            raise RequestError(f"The network can't read these images: {reason(error):.200}") from error
        if len(logits) != len(images) or not np.isfinite(logits).all():
            raise RequestError("The network has no finite logits for each image. Are their numbers too large?")
        return logits
