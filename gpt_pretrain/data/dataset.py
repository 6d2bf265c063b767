"""Datasets of token windows: the inputs and targets of a batch.

Shapes: B windows of a batch, T context_length.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from gpt_pretrain.data.documents import DocumentBoundaries
from gpt_pretrain.data.sampler import shuffled_indices
from gpt_pretrain.data.token_stream import TokenStream
from gpt_pretrain.model.kernels.loss import IGNORED

# Token ids and target ids, int64, (B, T) each, and with data.respect_documents each token's position in its document.
Batch = tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]

SHIFT_STREAM = 1  # keeps the numbers that move the windows apart from those that shuffle them


class WindowDataset(Dataset[Batch]):
    """Windows of T tokens; an array of window indices gives a batch.

    Attributes:
        remote: Whether reads are slow enough to be worth prefetching.
    """

    remote: bool

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, indices: np.ndarray) -> Batch:
        """Return the windows with these indices, (B,), as a batch."""
        raise NotImplementedError

    def prefetch(self, indices: np.ndarray) -> None:
        """Start to fetch windows that will soon be read, without waiting for them."""
        raise NotImplementedError

    def epoch_indices(self, positions: np.ndarray, n_windows: int, *, seed: int, epoch: int) -> np.ndarray:
        """Return the indices of the windows at these positions of a shuffled epoch."""
        return shuffled_indices(positions, n_windows, seed=seed, epoch=epoch)


class TokenWindows(WindowDataset):
    """Windows of one stream of tokens; window i begins at token i * stride, and its targets are one token later.

    With `shifted`, all windows of an epoch begin up to stride - 1 tokens later, by a number drawn for the epoch. Index
    i + s * len(self) is window i moved by s tokens, or less where the stream would end within it.

    Args:
        tokens: The stream.
        context_length: Tokens per window, T.
        stride: Tokens from the start of one window to the start of the next.
        boundaries: How to separate documents, or None to ignore them.
        max_windows: Use this number of windows, spread evenly over the stream, or None to use all.
        shifted: Move the windows by another number of tokens in each epoch but the first.
    """

    def __init__(
        self,
        tokens: TokenStream,
        *,
        context_length: int,
        stride: int,
        boundaries: DocumentBoundaries | None = None,
        max_windows: int | None = None,
        shifted: bool = False,
    ) -> None:
        self.tokens = tokens
        self.context_length = context_length
        self.starts = range(0, tokens.count - context_length, stride)
        self.boundaries = boundaries
        self.n_windows = len(self.starts) if max_windows is None else min(max_windows, len(self.starts))
        self.shifted = shifted
        self.remote = tokens.remote

    def __len__(self) -> int:
        return self.n_windows

    def __getitem__(self, indices: np.ndarray) -> Batch:
        """Return the windows with these indices, (B,), as a batch.

        Without indices the batch is one window whose targets are all IGNORED.
        """
        if not len(indices):
            return self._empty_batch()
        if self.remote:
            self.prefetch(indices)
        rows = [self.tokens.read(start, self.context_length + 1) for start in self._starts_of(indices)]
        block = np.stack(rows).astype(np.int64)  # (B, T + 1)
        if self.boundaries is not None:
            return self.boundaries.separate(block)
        token_ids = torch.from_numpy(block)
        return token_ids[:, :-1], token_ids[:, 1:]

    def prefetch(self, indices: np.ndarray) -> None:
        """Start to fetch windows that will soon be read, without waiting for them."""
        for start in self._starts_of(indices):
            self.tokens.prefetch(start, self.context_length + 1)

    def epoch_indices(self, positions: np.ndarray, n_windows: int, *, seed: int, epoch: int) -> np.ndarray:
        """Return the indices of the windows at these positions of a shuffled epoch."""
        indices = shuffled_indices(positions, n_windows, seed=seed, epoch=epoch)
        if not self.shifted or epoch == 0:
            return indices
        drawn = int(np.random.SeedSequence([seed, epoch, SHIFT_STREAM]).generate_state(1)[0])
        return indices + drawn % self.starts.step * self.n_windows

    def _empty_batch(self) -> Batch:
        token_ids = torch.zeros(1, self.context_length, dtype=torch.int64)
        target_ids = torch.full_like(token_ids, IGNORED)
        return (
            (token_ids, target_ids)
            if self.boundaries is None
            else (token_ids, target_ids, torch.arange(self.context_length)[None])
        )

    def _starts_of(self, indices: np.ndarray) -> list[int]:
        """Return the position of the first token of each window."""
        shifts, indices = np.divmod(indices, self.n_windows)
        if self.n_windows < len(self.starts):
            indices = indices * len(self.starts) // self.n_windows
        last = self.tokens.count - self.context_length - 1
        starts: list[int] = np.minimum(indices * self.starts.step + shifts, last).tolist()
        return starts
