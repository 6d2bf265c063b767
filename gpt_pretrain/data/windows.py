"""Token windows and the order in which training reads them.

Shapes: B windows of a batch, T context_length.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from gpt_pretrain.data.documents import Documents
from gpt_pretrain.data.tokens import TokenText
from gpt_pretrain.model.kernels.loss import IGNORED

ROUNDS = 6  # of the shuffle; four would pass for random
BATCHES_AHEAD = 256  # whose windows are worked out together

# Inputs and targets, int64, (B, T) each; and, where documents are kept apart, the position of each token in its document.
Batch = tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]


class Windows(Dataset[Batch]):
    """Windows of T tokens, by number."""

    remote: bool  # whether `prefetch` is of use

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, windows: np.ndarray) -> Batch:
        """The windows with these numbers, (B,), as a batch."""
        raise NotImplementedError

    def prefetch(self, windows: np.ndarray) -> None:
        """Begin to fetch windows that will soon be asked for, and do not wait for them."""
        raise NotImplementedError

    def in_order(self, places: np.ndarray, n_windows: int, *, seed: int, epoch: int) -> np.ndarray:
        """Which windows stand at these places in the order of an epoch, as `shuffled` has it."""
        return shuffle_windows(places, n_windows, seed=seed, epoch=epoch)


class TokenWindows(Windows):
    """Windows of T tokens, with the same tokens one later as targets; window i begins at token i * stride.

    Args:
        tokens: where they are read from.
        context_length: T.
        stride: tokens from the start of one window to the next.
        documents: how documents are told apart; None: attention and loss take no notice of them.
        at_most: so many windows, spread evenly over the tokens, instead of all.
    """

    def __init__(
        self,
        tokens: TokenText,
        *,
        context_length: int,
        stride: int,
        documents: Documents | None = None,
        at_most: int | None = None,
    ) -> None:
        self.tokens = tokens
        self.context_length = context_length
        self.starts = range(0, tokens.count - context_length, stride)
        self.documents = documents
        self.kept = len(self.starts) if at_most is None else min(at_most, len(self.starts))
        self.remote = tokens.remote

    def __len__(self) -> int:
        return self.kept

    def __getitem__(self, windows: np.ndarray) -> Batch:
        """Inputs and targets, int64, (B, T) each, of the windows with these numbers, (B,), and positions where they count.

        Of no windows: one whose targets are all left out.
        """
        if not len(windows):
            nothing = torch.zeros(1, self.context_length, dtype=torch.int64)
            apart = () if self.documents is None else (torch.arange(self.context_length)[None],)
            return nothing, torch.full_like(nothing, IGNORED), *apart
        if self.remote:
            self.prefetch(windows)
        rows = [self.tokens.read(start, self.context_length + 1) for start in self._starts_of(windows)]
        block = np.stack(rows).astype(np.int64)  # (B, T + 1)
        if self.documents is not None:
            return self.documents.kept_apart(block)
        tokens = torch.from_numpy(block)
        return tokens[:, :-1], tokens[:, 1:]

    def prefetch(self, windows: np.ndarray) -> None:
        """Begin to fetch windows that will soon be asked for, and do not wait for them."""
        for start in self._starts_of(windows):
            self.tokens.prefetch(start, self.context_length + 1)

    def _starts_of(self, windows: np.ndarray) -> list[int]:
        """The first token of each window."""
        if self.kept < len(self.starts):
            windows = windows * len(self.starts) // self.kept
        starts: list[int] = (windows * self.starts.step).tolist()
        return starts


class WindowOrder(Protocol):
    """What `shuffled` is one of."""

    def __call__(self, places: np.ndarray, n_windows: int, *, seed: int, epoch: int) -> np.ndarray: ...


class BatchOrder(Sampler[np.ndarray]):
    """The numbers of the windows in each batch of an epoch, for one of the ranks that share them.

    The order is a function of seed and epoch alone. All ranks together read it batch by batch: rank 0 the first, rank 1 the
    second, and so on, so that two ranks do in a step what one does in two accumulated batches; where a rank finds none left, its
    batch is empty. An iteration begins at this rank's batch `start`, once, so that a run can go on in the middle of an epoch;
    `len` counts all batches of an epoch nevertheless.

    Args:
        n_windows: windows to choose from.
        batch_size: windows a batch, B.
        seed: None keeps the windows in order and the last short batch, which is left out otherwise.
        taken: how many of them an epoch takes, instead of those in whole batches.
        order: which windows stand at which places of an epoch.
        rank, world_size: which rank this is, of how many.
    """

    def __init__(
        self,
        n_windows: int,
        batch_size: int,
        *,
        seed: int | None = None,
        taken: int | None = None,
        order: WindowOrder | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        whole = n_windows if seed is None else n_windows // batch_size * batch_size
        self.n_windows = whole if taken is None else taken
        self.n_choices = n_windows
        self.batch_size = batch_size
        self.seed = seed
        self.order: WindowOrder = shuffle_windows if order is None else order
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.start = 0

    def __len__(self) -> int:
        return -(-self.n_windows // (self.batch_size * self.world_size))

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next iteration is; Lightning calls this."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def __iter__(self) -> Iterator[np.ndarray]:
        epoch, start, self.start = self.epoch, self.start, 0
        for first in range(start, len(self), BATCHES_AHEAD):
            batches = np.arange(first, min(first + BATCHES_AHEAD, len(self))) * self.world_size + self.rank
            places = batches[:, None] * self.batch_size + np.arange(self.batch_size)  # (batches, B)
            windows = places
            if self.seed is not None:
                windows = self.order(np.minimum(places, self.n_choices - 1), self.n_choices, seed=self.seed, epoch=epoch)
            yield from (row[there] for row, there in zip(windows, places < self.n_windows, strict=True))


def shuffle_windows(places: np.ndarray, n_windows: int, *, seed: int, epoch: int) -> np.ndarray:
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
