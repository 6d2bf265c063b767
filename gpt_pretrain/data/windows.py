"""Token windows and the order in which training reads them.

Shapes: B windows of a batch, T context_length.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from gpt_pretrain.data.tokens import Tokens

Batch = tuple[Tensor, Tensor]  # inputs and targets, int64, (B, T) each


class TokenWindows(Dataset[Batch]):
    """Windows of T tokens, with the same tokens one later as targets; window i begins at token i * stride.

    Args:
        tokens: the token file.
        context_length: T.
        stride: tokens from the start of one window to the next.
    """

    def __init__(self, tokens: Tokens, *, context_length: int, stride: int) -> None:
        self.tokens = tokens
        self.context_length = context_length
        self.starts = range(0, tokens.count - context_length, stride)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, windows: np.ndarray) -> Batch:
        """Inputs and targets, int64, (B, T) each, of the windows with these numbers, (B,)."""
        first = windows[:, None] * self.starts.step
        rows = self.tokens.ids[first + np.arange(self.context_length + 1)].astype(np.int64)  # (B, T + 1)
        block = torch.from_numpy(rows)
        return block[:, :-1], block[:, 1:]


class BatchOrder(Sampler[np.ndarray]):
    """The numbers of the windows in each batch of an epoch.

    The order is a function of seed and epoch alone. An iteration begins at batch `start`, once, so that a run can go on
    in the middle of an epoch; `len` counts all batches of an epoch nevertheless.

    Args:
        n_windows: windows to choose from.
        batch_size: windows a batch, B.
        seed: None keeps the windows in order and the last short batch.
    """

    def __init__(self, n_windows: int, batch_size: int, *, seed: int | None = None) -> None:
        self.n_windows = n_windows
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self.start = 0

    def __len__(self) -> int:
        full, short = divmod(self.n_windows, self.batch_size)
        return full + (self.seed is None and short > 0)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next iteration is; Lightning calls this."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def __iter__(self) -> Iterator[np.ndarray]:
        order = shuffled(self.n_windows, seed=self.seed, epoch=self.epoch) if self.seed is not None else np.arange(self.n_windows)
        start, self.start = self.start, 0
        for batch in range(start, len(self)):
            yield order[batch * self.batch_size : (batch + 1) * self.batch_size]


def shuffled(n_windows: int, *, seed: int, epoch: int) -> np.ndarray:
    """The numbers from 0 to n_windows - 1 in the order of that epoch, (n_windows,)."""
    return np.random.default_rng([seed, epoch]).permutation(n_windows)
