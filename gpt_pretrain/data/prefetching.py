"""Batches fetched before they are needed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from gpt_pretrain.data.windows import BatchOrder, Windows


class PrefetchingSampler(Sampler[np.ndarray]):
    """A `BatchOrder` that has the windows of the next batches fetched meanwhile.

    Args:
        order: of the batches.
        windows: what is fetched.
        batches: how many batches ahead.
    """

    def __init__(self, order: BatchOrder, windows: Windows, *, batches: int) -> None:
        self.order = order
        self.windows = windows
        self.batches = batches

    def __len__(self) -> int:
        return len(self.order)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next iteration is; Lightning calls this."""
        self.order.set_epoch(epoch)

    def __iter__(self) -> Iterator[np.ndarray]:
        waiting: deque[np.ndarray] = deque()
        for batch in self.order:
            self.windows.prefetch(batch)
            waiting.append(batch)
            if len(waiting) > self.batches:
                yield waiting.popleft()
        yield from waiting
