"""A GPT with improvements found since GPT-2. transformers' `nanochat` class computes the same model.

- Positions are rotary instead of learned.
- RMS norms have no parameters. They also follow the embedding, and act on queries and keys.
- The activation is squared ReLU. There are no biases.
- The output head is not tied to the embedding, and tanh bounds the logits.
- There may be fewer heads of keys and values than of queries.
- There may be tables beside the matrices, which transformers' class lacks (`token_tables`).

Shapes: B batch, T time (new positions), S positions attended to, D emb_dim, H heads, G heads of keys and values, K head_dim.

Source: Karpathy's nanochat, `nanochat/gpt.py`, as in transformers' NanoChatForCausalLM; Su et al. 2021 (arXiv:2104.09864) for
rotary positions; Zhang & Sennrich 2019 (arXiv:1910.07467) for RMS norm; So et al. 2021 (arXiv:2109.08668) for squared ReLU; Henry
et al. 2020 (arXiv:2010.04245) for norms of queries and keys; Ainslie et al. 2023 (arXiv:2305.13245) for grouped queries.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.kernels.attention import causal_attention
from gpt_pretrain.model.kernels.dropout import Dropout
from gpt_pretrain.model.kv_cache import KVCache
from gpt_pretrain.model.language_model import LanguageModel
from gpt_pretrain.model.token_tables import BigramEmbedding, has_value_embedding, new_value_embedding, preceding_ids

NORM_EPS = 1e-6
ROPE_BASE = 10_000.0  # of the rotations' periods

Rotation = tuple[Tensor, Tensor]  # cosine and sine of each pair's angle at each position


def rms_norm(x: Tensor) -> Tensor:
    """Scale the last dimension to a root mean square of 1."""
    return F.rms_norm(x, (x.shape[-1],), eps=NORM_EPS)


def rotation_at(positions: Tensor, head_dim: int) -> Rotation:
    """Return the rotation of each pair of numbers in a head at these positions.

    Args:
        positions: int64, (T,) or (B, T).

    Returns:
        Cosine and sine, fp32, (T, 1, K / 2) or (B, T, 1, K / 2).
    """
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angles = positions[..., None, None].float() * ROPE_BASE**-exponents
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate each pair of numbers by its angle. A pair is a number in a head's first half and its counterpart in the second half.

    Args:
        x: (B, T, H, K).
    """
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos + second * sin, second * cos - first * sin), dim=-1)


class GroupedQueryAttention(nn.Module):
    """Causal self-attention with rotary positions, normalized queries and keys, and heads that share keys and values."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads = (config.n_heads, config.kv_heads, config.kv_heads)
        self.rows = config.qkv_rows
        self.drop_rate = config.drop_rate
        self.qkv = nn.Linear(config.emb_dim, sum(config.qkv_rows), bias=False)
        self.out_proj = nn.Linear(config.emb_dim, config.emb_dim, bias=False)
        self.value_emb = new_value_embedding(config) if has_value_embedding(config, layer) else None

    def forward(
        self,
        x: Tensor,
        *,
        token_ids: Tensor,
        rotation: Rotation,
        cache: KVCache | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        B, T, D = x.shape
        parts = self.qkv(x).split(self.rows, dim=-1)
        queries, keys, values = (part.view(B, T, n, -1) for part, n in zip(parts, self.heads, strict=True))  # (B, T, H or G, K)
        if self.value_emb is not None:
            values = values + self.value_emb(token_ids).view_as(values).to(values.dtype)
        cos, sin = (factor.to(values.dtype) for factor in rotation)
        queries, keys = (rms_norm(rotate(one, (cos, sin))).to(values.dtype) for one in (queries, keys))
        queries, keys, values = (one.transpose(1, 2) for one in (queries, keys, values))  # (B, H or G, T, K)
        if cache is not None:
            context = cache.attend(self.layer, queries, keys, values)
        else:
            if (group := self.heads[0] // self.heads[1]) > 1:
                keys, values = (one.repeat_interleave(group, dim=1) for one in (keys, values))  # (B, H, T, K)
            context = causal_attention(queries, keys, values, mask=mask, drop_rate=self.drop_rate if self.training else 0.0)
        out: Tensor = self.out_proj(context.transpose(1, 2).reshape(B, T, D))  # (B, T, D)
        return out


class SquaredReLU(nn.Module):
    """The square of ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square()


class ModernFeedForward(nn.Module):
    """Two linear layers without biases, with squared ReLU between them and a hidden layer of four times the width."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(config.emb_dim, 4 * config.emb_dim, bias=False),
            SquaredReLU(),
            nn.Linear(4 * config.emb_dim, config.emb_dim, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


class ModernBlock(nn.Module):
    """Attention and feed-forward, each with a norm before it and a residual connection around it."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.att = GroupedQueryAttention(config, layer)
        self.ff = ModernFeedForward(config)
        self.drop_shortcut = Dropout(config.drop_rate)

    def forward(
        self,
        x: Tensor,
        *,
        token_ids: Tensor,
        rotation: Rotation,
        cache: KVCache | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        attended = self.att(rms_norm(x), token_ids=token_ids, rotation=rotation, cache=cache, mask=mask)
        x = x + self.drop_shortcut(attended)
        out: Tensor = x + self.drop_shortcut(self.ff(rms_norm(x)))
        return out


class ModernModel(LanguageModel):
    """The modern model. It maps token ids to the logits of the next token at each position."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.drop_emb = Dropout(config.drop_rate)
        rows = config.bigram_rows
        self.bigram_emb = BigramEmbedding(rows, config.emb_dim, config.vocab_size) if rows else None
        self.trf_blocks = nn.ModuleList(ModernBlock(config, layer) for layer in range(config.n_layers))
        self.out_head = nn.Linear(config.emb_dim, config.vocab_size, bias=False)
        if not self.tok_emb.weight.is_meta:
            self._init_modern()

    def hidden_states(
        self,
        token_ids: Tensor,
        *,
        cache: KVCache | None = None,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        embedding: Tensor | None = None,
    ) -> Tensor:
        x = self._embed(token_ids, embedding)  # (B, T, D)
        if self.bigram_emb is not None:
            if mask is not None:
                raise ValueError("A mask does not tell which token precedes each one, which bigram_rows needs.")
            x = x + self.bigram_emb(self.bigram_emb.rows(preceding_ids(token_ids, cache, positions), token_ids))
        positions, mask = self._positions_and_mask(token_ids, cache, positions, mask)
        rotation = rotation_at(positions, self.config.head_dim)
        x = self.drop_emb(rms_norm(x))
        return rms_norm(self._run_blocks(x, cache=cache, token_ids=token_ids, rotation=rotation, mask=mask))

    def _init_modern(self) -> None:
        """Initialize so that blocks and logits are zero: the output head and the projections to the residual stream are 0.

        The embedding is normal with std 1. The other matrices have PyTorch's default, uniform with std 0.58 / sqrt(columns).
        """
        nn.init.normal_(self.tok_emb.weight)
        for name, parameter in self.named_parameters():
            if name.endswith(("att.out_proj.weight", "ff.layers.2.weight", "out_head.weight")):
                nn.init.zeros_(parameter)
