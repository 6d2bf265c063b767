"""A dataset that mixes the windows of several sources in given proportions.

An epoch of a mixture has as many windows as all its sources together. Each position of an epoch belongs to one source. A source
gets positions in proportion to its weight, and the permutation that shuffles a single source scatters them over the epoch.

The positions of a source are counted through all epochs. They read its windows in an order of the source's own, and in a new
order each time that all windows have been read. So no window repeats before all others of its source have been read. The orders
are computed position by position and never stored.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from gpt_pretrain.data.dataset import Batch, WindowDataset
from gpt_pretrain.data.sampler import shuffled_indices


class MixedWindows(WindowDataset):
    """The windows of several sources; indices count through one source after another.

    A source may number moved windows from its length on, as `TokenWindows` does. Here their numbers begin at len(self).

    Args:
        sources: The sources, all with the same context_length.
        weights: Weight of each source, above 0. They need not sum to 1.

    Attributes:
        windows_per_epoch: How many windows of each source an epoch reads.
    """

    def __init__(self, sources: Sequence[WindowDataset], weights: Sequence[float]) -> None:
        self.sources = list(sources)
        self.ends = np.cumsum([len(source) for source in sources])
        self.remote = any(source.remote for source in sources)
        self.windows_per_epoch = allocate_windows(weights, len(self))

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, indices: np.ndarray) -> Batch:
        """Return the windows with these indices, (B,), as a batch."""
        if not len(indices):
            return self.sources[0][indices]
        groups = self._group_by_source(indices)
        batches = [self.sources[number][own] for number, _, own in groups]
        order = torch.from_numpy(np.argsort(np.concatenate([rows for _, rows, _ in groups])))
        return tuple(torch.cat(columns)[order] for columns in zip(*batches, strict=True))  # type: ignore[return-value]

    def prefetch(self, indices: np.ndarray) -> None:
        """Start to fetch windows that will soon be read, without waiting for them."""
        for number, _, own in self._group_by_source(indices):
            self.sources[number].prefetch(own)

    def epoch_indices(self, positions: np.ndarray, n_windows: int, *, seed: int, epoch: int) -> np.ndarray:
        """Return the indices of the windows at these positions of an epoch, in the proportions of the weights."""
        scattered = shuffled_indices(positions, n_windows, seed=seed, epoch=epoch)
        ends, indices = np.cumsum(self.windows_per_epoch), np.empty_like(scattered)
        for number, share in enumerate(self.windows_per_epoch):
            start = ends[number] - share
            own = (scattered >= start) & (scattered < ends[number])
            positions_over_epochs = scattered[own] - start + epoch * share
            moved, windows = np.divmod(self._source_indices(number, positions_over_epochs, seed=seed), len(self.sources[number]))
            indices[own] = self._offset(number) + windows + moved * len(self)
        return indices

    def _source_indices(self, number: int, positions: np.ndarray, *, seed: int) -> np.ndarray:
        """Return the windows that a source reads at some of its positions, which are counted through all epochs."""
        size, indices = len(self.sources[number]), np.empty_like(positions)
        source_seed = int(np.random.SeedSequence([seed, number + 1]).generate_state(1)[0])
        passes = positions // size
        for current in np.unique(passes).tolist():
            rows = passes == current
            order = self.sources[number].epoch_indices
            indices[rows] = order(positions[rows] % size, size, seed=source_seed, epoch=current)
        return indices

    def _offset(self, number: int) -> int:
        """Return the index of a source's first window."""
        return int(self.ends[number]) - len(self.sources[number])

    def _group_by_source(self, indices: np.ndarray) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """Group indices by their source.

        Returns:
            For each source: its number, the rows of its indices, and the indices of its windows.
        """
        moved, windows = np.divmod(indices, len(self))
        numbers = np.searchsorted(self.ends, windows, side="right")
        groups = []
        for number in np.unique(numbers).tolist():
            rows = np.flatnonzero(numbers == number)
            own = windows[rows] - self._offset(number) + moved[rows] * len(self.sources[number])
            groups.append((number, rows, own))
        return groups


def allocate_windows(weights: Sequence[float], total: int) -> list[int]:
    """Return whole numbers in the proportions of the weights that sum to `total`."""
    bounds = np.rint(np.cumsum(weights) / np.sum(weights) * total).astype(np.int64)
    counts: list[int] = np.diff(bounds, prepend=0).tolist()
    return counts


def allocate_validation_windows(sizes: Sequence[int], weights: Sequence[float], *, max_windows: int | None) -> list[int]:
    """Return how many windows of each source to validate on: in the proportions of the weights, and at least one.

    Args:
        sizes: Number of windows in each source.
        max_windows: Upper limit for all sources together, or None for no limit.
    """
    total = int(min(size / weight for size, weight in zip(sizes, weights, strict=True)) * sum(weights))
    total = total if max_windows is None else min(total, max_windows)
    return [max(1, min(size, share)) for size, share in zip(sizes, allocate_windows(weights, total), strict=True)]
