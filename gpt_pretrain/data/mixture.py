"""Several sources of windows as one, read in given proportions.

An epoch of a mixture has as many windows as all its sources together. Each place of an epoch belongs to one source, a share of
them as large as its weight, scattered by the same kind of permutation that shuffles one source. The places of a source, counted
through all epochs, read its windows in a permutation of its own, and in another one each time that all have been read: so no
window comes twice before every other of its source has come once. Nothing of this is kept in memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from gpt_pretrain.data.windows import Batch, Windows, shuffle_windows


class MixedWindows(Windows):
    """The windows of several sources, numbered one source after another.

    Args:
        sources: all of the same length and kind.
        weights: of each, above 0; their sum is of no matter.
    """

    def __init__(self, sources: Sequence[Windows], weights: Sequence[float]) -> None:
        self.sources = list(sources)
        self.ends = np.cumsum([len(source) for source in sources])
        self.remote = any(source.remote for source in sources)
        self.places = windows_per_source(weights, len(self))  # of an epoch, of each source

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, windows: np.ndarray) -> Batch:
        """The windows with these numbers, (B,), as a batch."""
        if not len(windows):
            return self.sources[0][windows]
        by_source = self._by_source(windows)
        parts = [self.sources[number][windows[places] - self._first(number)] for number, places in by_source]
        back = torch.from_numpy(np.argsort(np.concatenate([places for _, places in by_source])))  # to where each stood
        return tuple(torch.cat(columns)[back] for columns in zip(*parts, strict=True))  # type: ignore[return-value]

    def prefetch(self, windows: np.ndarray) -> None:
        """Begin to fetch windows that will soon be asked for, and do not wait for them."""
        for number, places in self._by_source(windows):
            self.sources[number].prefetch(windows[places] - self._first(number))

    def in_order(self, places: np.ndarray, n_windows: int, *, seed: int, epoch: int) -> np.ndarray:
        """Which windows stand at these places in the order of an epoch: of each source as many as its weight says."""
        scattered = shuffle_windows(places, n_windows, seed=seed, epoch=epoch)
        ends, windows = np.cumsum(self.places), np.empty_like(scattered)
        for number, share in enumerate(self.places):
            mine = (scattered >= ends[number] - share) & (scattered < ends[number])
            passed = scattered[mine] - (ends[number] - share) + epoch * share  # of this source's places, in all epochs
            windows[mine] = self._first(number) + self._own_order(number, passed, seed=seed)
        return windows

    def _own_order(self, number: int, passed: np.ndarray, *, seed: int) -> np.ndarray:
        """The windows that a source reads after it has read so many."""
        size, windows = len(self.sources[number]), np.empty_like(passed)
        own_seed = int(np.random.SeedSequence([seed, number + 1]).generate_state(1)[0])
        for time in np.unique(passed // size).tolist():
            now = passed // size == time
            windows[now] = shuffle_windows(passed[now] % size, size, seed=own_seed, epoch=time)
        return windows

    def _first(self, number: int) -> int:
        """The number of a source's first window."""
        return int(self.ends[number]) - len(self.sources[number])

    def _by_source(self, windows: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """The sources that some windows are of, and which of them are."""
        numbers = np.searchsorted(self.ends, windows, side="right")
        return [(int(number), np.flatnonzero(numbers == number)) for number in np.unique(numbers)]


def windows_per_source(weights: Sequence[float], total: int) -> list[int]:
    """Whole numbers in the proportions of weights, that sum up to total."""
    bounds = np.rint(np.cumsum(weights) / np.sum(weights) * total).astype(np.int64)
    parts: list[int] = np.diff(bounds, prepend=0).tolist()
    return parts


def most_in_proportion(sizes: Sequence[int], weights: Sequence[float], *, at_most: int | None) -> list[int]:
    """How many windows of each source to validate on: in the proportions of their weights, none twice, and one at least.

    Args:
        sizes: windows that each source has.
        at_most: of all together; None: as many as there are.
    """
    total = min(size / weight for size, weight in zip(sizes, weights, strict=True)) * sum(weights)
    total = int(total) if at_most is None else min(int(total), at_most)
    return [max(1, min(size, share)) for size, share in zip(sizes, windows_per_source(weights, total), strict=True)]
