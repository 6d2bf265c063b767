"""Samplers: the window indices of each batch, shuffled, shared among the ranks and prefetched.

Shapes: B windows of a batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
from torch.utils.data import Sampler

ROUNDS = 6  # of the Feistel network; four already give a pseudorandom permutation
BATCHES_AT_A_TIME = 256  # whose indices are computed together


class EpochOrder(Protocol):
    """A function like `shuffled_indices`."""

    def __call__(self, positions: np.ndarray, n_windows: int, *, seed: int, epoch: int) -> np.ndarray: ...


class DistributedBatchSampler(Sampler[np.ndarray]):
    """The window indices of each batch of an epoch, for one of the ranks that share the batches.

    The order depends on seed and epoch alone. The ranks take turns: rank 0 gets the first batch, rank 1 the second, and so on,
    so that two ranks do in a step what one rank does in two accumulated batches. A rank that finds no batch left gets an empty
    one. To resume within an epoch, set `start`: the next iteration begins at that batch of this rank, and later ones begin at
    0. `len` always counts all batches of an epoch.

    Args:
        n_windows: Number of windows in the dataset.
        batch_size: Windows per batch, B.
        seed: Seed of the order. None keeps the windows in order and also yields the last, shorter batch.
        epoch_windows: Number of windows in an epoch. None means as many as there are in whole batches.
        order: Returns the windows at given positions of an epoch.
        rank: The rank that gets these batches.
        world_size: Number of ranks.
    """

    def __init__(
        self,
        n_windows: int,
        batch_size: int,
        *,
        seed: int | None = None,
        epoch_windows: int | None = None,
        order: EpochOrder | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        in_batches = n_windows if seed is None else n_windows // batch_size * batch_size
        self.epoch_windows = in_batches if epoch_windows is None else epoch_windows
        self.n_windows = n_windows
        self.batch_size = batch_size
        self.seed = seed
        self.order: EpochOrder = shuffled_indices if order is None else order
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.start = 0

    def __len__(self) -> int:
        return -(-self.epoch_windows // (self.batch_size * self.world_size))

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration. Lightning calls this."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def __iter__(self) -> Iterator[np.ndarray]:
        epoch, start, self.start = self.epoch, self.start, 0
        for first in range(start, len(self), BATCHES_AT_A_TIME):
            batches = np.arange(first, min(first + BATCHES_AT_A_TIME, len(self))) * self.world_size + self.rank
            positions = batches[:, None] * self.batch_size + np.arange(self.batch_size)  # (batches, B)
            indices = positions
            if self.seed is not None:
                indices = self.order(np.minimum(positions, self.n_windows - 1), self.n_windows, seed=self.seed, epoch=epoch)
            yield from (row[valid] for row, valid in zip(indices, positions < self.epoch_windows, strict=True))


class PrefetchingSampler(Sampler[np.ndarray]):
    """A sampler that starts to fetch the windows of later batches before it yields a batch.

    Args:
        sampler: Yields the batches.
        prefetch: Starts to fetch the windows with given indices.
        batches: Number of batches to fetch ahead.
    """

    def __init__(self, sampler: DistributedBatchSampler, prefetch: Callable[[np.ndarray], None], *, batches: int) -> None:
        self.sampler = sampler
        self.prefetch = prefetch
        self.batches = batches

    def __len__(self) -> int:
        return len(self.sampler)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration. Lightning calls this."""
        self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[np.ndarray]:
        pending: deque[np.ndarray] = deque()
        for batch in self.sampler:
            self.prefetch(batch)
            pending.append(batch)
            if len(pending) > self.batches:
                yield pending.popleft()
        yield from pending


def shuffled_indices(positions: np.ndarray, n_windows: int, *, seed: int, epoch: int) -> np.ndarray:
    """Return the window indices at these positions of a shuffled epoch.

    The order is a permutation of 0 to n_windows - 1 that can be evaluated at any position, so no list of it is stored. A
    Feistel network permutes the numbers of 2 h bits; a result that is not a window is permuted again.

    Args:
        positions: int64, each from 0 to n_windows - 1.

    Returns:
        int64, the shape of positions.

    Source: Black & Rogaway 2002, "Ciphers with Arbitrary Finite Domains", for the network and the repetition; the rounds mix
        bits as in Steele, Lea & Flood 2014 (SplitMix64).
    """
    half = np.uint64(max(1, (max(n_windows - 1, 1).bit_length() + 1) // 2))  # h
    mask = np.uint64((1 << int(half)) - 1)
    keys = np.random.SeedSequence([seed, epoch]).generate_state(ROUNDS, np.uint64)

    def permute(numbers: np.ndarray) -> np.ndarray:
        left, right = numbers >> half, numbers & mask
        for key in keys:
            left, right = right, left ^ (mix_bits(right + key) & mask)
        return left << half | right

    indices = permute(positions.astype(np.uint64))
    while (outside := indices >= n_windows).any():
        indices[outside] = permute(indices[outside])
    return indices.astype(np.int64)


def mix_bits(numbers: np.ndarray) -> np.ndarray:
    """Return uint64 numbers in which each bit depends on all bits of the input.

    Source: the finalizer of SplitMix64 (Steele, Lea & Flood 2014).
    """
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = numbers ^ (numbers >> np.uint64(31))
    return mixed
