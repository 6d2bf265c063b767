"""Tables of the modern model beside its matrices: a row for each token, or for each pair of successive tokens.

Looking up a row takes no matrix product, so that a small model learns more in the same time.

Shapes: B batch, T time, D emb_dim, V vocab_size, G heads of keys and values, K head_dim.

Source: Zhou et al. 2024 (arXiv:2410.17897) and Karpathy's nanochat for value embeddings; Keller Jordan's modded-nanogpt for
hashed bigrams.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.kv_cache import NO_TOKEN, KVCache

HASH_FACTOR, HASH_SHIFT = 2_654_435_761, 15  # Knuth's multiplicative hash


class BigramEmbedding(nn.Embedding):
    """An embedding of each token together with the token before it. Pairs with the same hash share a row.

    Args:
        n_rows: Rows of the table.
        width: Numbers in each row.
        vocab_size: Number of token ids.
    """

    def __init__(self, n_rows: int, width: int, vocab_size: int) -> None:
        super().__init__(n_rows, width, _weight=torch.empty(n_rows, width))
        self.vocab_size = vocab_size
        if not self.weight.is_meta:
            nn.init.zeros_(self.weight)

    def rows(self, preceding_ids: Tensor, token_ids: Tensor) -> Tensor:
        """Return the row of each pair, int64, (B, T).

        Args:
            preceding_ids: The id before each token, int64, (B, T); `NO_TOKEN` before the first of a document.
            token_ids: int64, (B, T).
        """
        pairs = preceding_ids * self.vocab_size + token_ids
        return (pairs * HASH_FACTOR >> HASH_SHIFT) % self.num_embeddings


def has_value_embedding(config: GPTConfig, layer: int) -> bool:
    """Return whether a block has a value embedding: the last block, and every other one before it, as in nanochat."""
    return config.value_embeddings and (config.n_layers - 1 - layer) % 2 == 0


def new_value_embedding(config: GPTConfig) -> nn.Embedding:
    """Return a table of what each token adds to the values of a block's attention, (V, G K).

    Its initial weights are uniform with the standard deviation 1 / sqrt(D).
    """
    shape = (config.vocab_size, config.kv_heads * config.head_dim)
    table = nn.Embedding(*shape, _weight=torch.empty(shape))
    if not table.weight.is_meta:
        bound = (3 / config.emb_dim) ** 0.5
        nn.init.uniform_(table.weight, -bound, bound)
    return table


def preceding_ids(token_ids: Tensor, cache: KVCache | None, positions: Tensor | None) -> Tensor:
    """Return the id before each token in its document, int64, (B, T); `NO_TOKEN` before the first.

    Args:
        token_ids: int64, (B, T).
        cache: The cache of the tokens before token_ids.
        positions: Position of each token in its document, int64, (B, T); None if each row is one document.
    """
    if cache is not None:
        return cache.preceding_ids(token_ids)
    before = F.pad(token_ids[:, :-1], (1, 0), value=NO_TOKEN)
    return before if positions is None else before.masked_fill(positions == 0, NO_TOKEN)
