"""Key-value caches: the keys and values of the positions that a model has read so far.

Shapes: B batch, T time (new positions), S cached positions, H heads of keys and values, K head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.kernels.attention import causal_attention, single_query_attention

NO_TOKEN = -1  # in place of an id


class KVCache:
    """A key buffer and a value buffer for each block. Attention sees only the filled part.

    Args:
        config: The model's architecture.
        batch_size: Number of rows, B.
        capacity: Largest number of positions, at most context_length. None means context_length.
        device: Device on which the model computes keys and values.
        dtype: Dtype in which the model computes keys and values.

    Attributes:
        length: Number of cached positions, S.
        last_ids: Token id at the last cached position of each row, int64, (B, 1).
        mask: Cached positions that each new position may see, bool, (T, S). None means all positions up to its own.
    """

    def __init__(
        self, config: GPTConfig, batch_size: int, *, capacity: int | None = None, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.capacity = config.context_length if capacity is None else min(capacity, config.context_length)
        shape = (config.n_layers, batch_size, config.kv_heads, self.capacity, config.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.last_ids = torch.full((batch_size, 1), NO_TOKEN, device=device)
        self.length = 0
        self.mask: Tensor | None = None

    def preceding_ids(self, token_ids: Tensor) -> Tensor:
        """Return the id before each of these next tokens, (B, T), and keep the last of them. Call it before `begin`.

        Before the first token of a text there is none: `NO_TOKEN`.
        """
        last = self.last_ids[: len(token_ids)].clone() if self.length else torch.full_like(token_ids[:, :1], NO_TOKEN)
        self.last_ids.copy_(token_ids[:, -1:])
        return torch.cat((last, token_ids[:, :-1]), dim=1)

    def begin(self, n_positions: int) -> Tensor:
        """Reserve the next T positions and return their numbers, int64, (T,). Each block then stores its keys and values.

        Raises:
            ValueError: If the positions exceed the capacity.
        """
        past, end = self.length, self.length + n_positions
        if end > self.capacity:
            raise ValueError(f"token_ids reach position {end}, but cache and context_length end at {self.capacity}.")
        device = self.keys.device
        needs_mask = past > 0 and n_positions > 1
        self.mask = torch.ones(n_positions, end, dtype=torch.bool, device=device).tril(past) if needs_mask else None
        self.length = end
        return torch.arange(past, end, device=device)

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store a block's new keys and values, (B, H, T, K), and return all cached ones, (B, H, S, K)."""
        end = self.length
        start = end - keys.shape[2]
        self.keys[layer, :, :, start:end] = keys
        self.values[layer, :, :, start:end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Store a block's new keys and values, and compute attention over all cached ones.

        Args:
            queries: (B, heads of queries, T, K). Each head of keys and values serves the same number of them.
            keys: (B, H, T, K).
            values: (B, H, T, K).

        Returns:
            (B, heads of queries, T, K).
        """
        keys, values = self.extend(layer, keys, values)  # (B, H, S, K)
        group = queries.shape[1] // keys.shape[1]
        is_single = queries.shape[2] == 1 and self.mask is None and queries.device.type == "cpu"
        if is_single and (group > 1 or queries.dtype in (torch.bfloat16, torch.float16)):
            return single_query_attention(queries, keys, values)
        if group > 1:
            keys, values = (one.repeat_interleave(group, dim=1) for one in (keys, values))
        return causal_attention(queries, keys, values, mask=self.mask)

    def copy(self) -> KVCache:
        """Return a separate cache with the same content."""
        other = KVCache.__new__(KVCache)
        other.capacity, other.length, other.mask = self.capacity, self.length, None
        other.keys, other.values, other.last_ids = self.keys.clone(), self.values.clone(), self.last_ids.clone()
        return other


class StaticKVCache(KVCache):
    """A cache that continues another cache, one position at a time, with the same operations for each position.

    A decoding step can therefore be captured as a CUDA graph and replayed. The write position is a tensor, and attention sees the
    whole buffers through a mask.
    """

    def __init__(self, cache: KVCache) -> None:
        self.capacity = cache.capacity
        self.keys, self.values, self.last_ids, self.length = cache.keys, cache.values, cache.last_ids, cache.length
        self.position = torch.tensor([cache.length], device=self.keys.device)
        self._all_positions = torch.arange(self.capacity, device=self.keys.device)
        self.mask = None

    def begin(self, n_positions: int) -> Tensor:
        assert n_positions == 1
        self.mask = (self._all_positions <= self.position)[None]  # (1, capacity)
        return self.position

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.keys[layer].index_copy_(2, self.position, keys.to(self.keys.dtype))
        self.values[layer].index_copy_(2, self.position, values.to(self.values.dtype))
        return self.keys[layer], self.values[layer]

    def advance(self) -> None:
        """Move to the next position after a step.

        Raises:
            ValueError: If the cache is full.
        """
        self.length += 1
        if self.length > self.capacity:
            raise ValueError(f"Position {self.length} exceeds the cache and the model's context_length, {self.capacity}.")
        self.position += 1


class RowCaches(KVCache):
    """Caches of single rows at different positions. In a common step, each row reads one more token.

    Each row attends only to its own positions, with the same operations as alone. Its numbers therefore do not depend on the
    other rows.
    """

    def __init__(self, rows: Sequence[KVCache]) -> None:
        self.rows = rows
        self.mask = None

    def preceding_ids(self, token_ids: Tensor) -> Tensor:
        return torch.cat(
            [row.preceding_ids(ids) for row, ids in zip(self.rows, token_ids.tensor_split(len(self.rows)), strict=True)]
        )

    def begin(self, n_positions: int) -> Tensor:
        return torch.stack([row.begin(n_positions) for row in self.rows])  # (B, T)

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        each = zip(self.rows, *(one.tensor_split(len(self.rows)) for one in (queries, keys, values)), strict=True)
        return torch.cat([row.attend(layer, q, k, v) for row, q, k, v in each])
