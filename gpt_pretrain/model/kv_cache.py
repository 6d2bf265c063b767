"""Keys and values of the positions that a model has read so far.

Shapes: B batch, T positions given now, S positions held, H heads, K head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpt_pretrain.model.config import GPTConfig


class KVCache:
    """One pair of buffers for each block; attention sees as much of them as is filled.

    Args:
        config: the model's architecture.
        batch_size: rows, B.
        capacity: the most positions to hold; None is context_length, which more would be cut to.
        device, dtype: where and how the model computes keys and values.

    Attributes:
        length: positions held, S.
        mask: which of the positions held each one given now may see, bool, (T, S); None: those up to its own.
    """

    def __init__(
        self, config: GPTConfig, batch_size: int, *, capacity: int | None = None, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.capacity = config.context_length if capacity is None else min(capacity, config.context_length)
        shape = (config.n_layers, batch_size, config.n_heads, self.capacity, config.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.length = 0
        self.mask: Tensor | None = None

    def begin(self, n_positions: int) -> Tensor:
        """The numbers of the next T positions, int64, (T,), which are then stored block by block.

        Raises:
            ValueError: when they do not fit.
        """
        past, end = self.length, self.length + n_positions
        if end > self.capacity:
            raise ValueError(f"token_ids reach position {end}, but cache and context_length end at {self.capacity}.")
        device = self.keys.device
        later = past > 0 and n_positions > 1
        self.mask = torch.ones(n_positions, end, dtype=torch.bool, device=device).tril(past) if later else None
        self.length = end
        return torch.arange(past, end, device=device)

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store a block's (B, H, T, K) and return all that are held, (B, H, S, K)."""
        end = self.length
        start = end - keys.shape[2]
        self.keys[layer, :, :, start:end] = keys
        self.values[layer, :, :, start:end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


class StaticKVCache(KVCache):
    """A cache that goes on from another, one position at a time, by operations that are the same each time.

    So a step can be recorded once, as a CUDA graph, and played again: where it writes stands in a tensor, and attention
    sees the whole buffers through a mask.
    """

    def __init__(self, cache: KVCache) -> None:
        self.capacity = cache.capacity
        self.keys, self.values, self.length = cache.keys, cache.values, cache.length
        self.position = torch.tensor([cache.length], device=self.keys.device)
        self._all = torch.arange(self.capacity, device=self.keys.device)
        self.mask = None

    def begin(self, n_positions: int) -> Tensor:
        assert n_positions == 1
        self.mask = (self._all <= self.position)[None]  # (1, capacity)
        return self.position

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.keys[layer].index_copy_(2, self.position, keys.to(self.keys.dtype))
        self.values[layer].index_copy_(2, self.position, values.to(self.values.dtype))
        return self.keys[layer], self.values[layer]

    def advance(self) -> None:
        """Move on to the next position, once a step is done.

        Raises:
            ValueError: when there is none.
        """
        self.length += 1
        if self.length > self.capacity:
            raise ValueError(f"Position {self.length} lies beyond the cache and the model's context_length, {self.capacity}.")
        self.position += 1
