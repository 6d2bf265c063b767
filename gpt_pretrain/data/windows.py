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

ROUNDS = 6  # of the shuffle; four would pass for random
BATCHES_AHEAD = 256  # whose windows are worked out together

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
        rows = [self.tokens.read(window * self.starts.step, self.context_length + 1) for window in windows.tolist()]
        block = torch.from_numpy(np.stack(rows).astype(np.int64))  # (B, T + 1)
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
        epoch, start, self.start = self.epoch, self.start, 0
        for first in range(start, len(self), BATCHES_AHEAD):
            last = min(first + BATCHES_AHEAD, len(self))
            places = np.arange(first * self.batch_size, min(last * self.batch_size, self.n_windows))
            windows = places if self.seed is None else shuffled(places, self.n_windows, seed=self.seed, epoch=epoch)
            yield from np.split(windows, range(self.batch_size, len(windows), self.batch_size))


def shuffled(places: np.ndarray, n_windows: int, *, seed: int, epoch: int) -> np.ndarray:
    """Which windows stand at these places in the order of an epoch.

    The order is a permutation of 0 to n_windows - 1 that can be computed at any place, so that no list of it is kept: a
    Feistel network permutes the numbers of 2 h bits, and is applied again where the outcome is no window.

    Args:
        places: int64, each from 0 to n_windows - 1.

    Returns:
        int64, the shape of places.

    Source: Black & Rogaway 2002, "Ciphers with Arbitrary Finite Domains", for the network and the walk; the rounds mix as
        Steele, Lea & Flood 2014's SplitMix64 does.
    """
    half = np.uint64(max(1, (max(n_windows - 1, 1).bit_length() + 1) // 2))  # h
    low = np.uint64((1 << int(half)) - 1)
    keys = np.random.SeedSequence([seed, epoch]).generate_state(ROUNDS, np.uint64)

    def permute(numbers: np.ndarray) -> np.ndarray:
        left, right = numbers >> half, numbers & low
        for key in keys:
            left, right = right, left ^ (_mix(right + key) & low)
        return left << half | right

    windows = permute(places.astype(np.uint64))
    while (outside := windows >= n_windows).any():
        windows[outside] = permute(windows[outside])
    return windows.astype(np.int64)


def _mix(numbers: np.ndarray) -> np.ndarray:
    """Numbers in which each bit depends on all bits of the given ones, uint64."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = numbers ^ (numbers >> np.uint64(31))
    return mixed
