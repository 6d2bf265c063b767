"""The GPT-2 model.

Shapes: B batch, T time (new positions), S positions attended to, D emb_dim, H heads, K head_dim, V vocab_size.

Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners". The tanh form of GELU and the initialization
follow OpenAI's released GPT-2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gpt_pretrain.errors import UserError
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.kernels.attention import causal_attention
from gpt_pretrain.model.kernels.dropout import Dropout
from gpt_pretrain.model.kv_cache import KVCache
from gpt_pretrain.model.language_model import LanguageModel


class MultiHeadAttention(nn.Module):
    """Causal self-attention with a single projection for queries, keys and values."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_heads = config.n_heads
        self.drop_rate = config.drop_rate
        self.qkv = nn.Linear(config.emb_dim, 3 * config.emb_dim, bias=config.qkv_bias)
        self.out_proj = nn.Linear(config.emb_dim, config.emb_dim)

    def forward(self, x: Tensor, *, cache: KVCache | None = None, mask: Tensor | None = None) -> Tensor:
        B, T, D = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.n_heads, D // self.n_heads)  # (B, T, 3, H, K)
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, T, K)
        if cache is not None:
            context = cache.attend(self.layer, queries, keys, values)
        else:
            context = causal_attention(queries, keys, values, mask=mask, drop_rate=self.drop_rate if self.training else 0.0)
        out: Tensor = self.out_proj(context.transpose(1, 2).reshape(B, T, D))  # (B, T, D)
        return out


class FeedForward(nn.Module):
    """Two linear layers, with a hidden layer four times as wide as the input."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(config.emb_dim, 4 * config.emb_dim),
            nn.GELU(approximate=config.gelu_approximate),
            nn.Linear(4 * config.emb_dim, config.emb_dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


class TransformerBlock(nn.Module):
    """Attention and feed-forward, each with a layer norm before it and a residual connection around it."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.emb_dim)
        self.att = MultiHeadAttention(config, layer)
        self.norm2 = nn.LayerNorm(config.emb_dim)
        self.ff = FeedForward(config)
        self.drop_shortcut = Dropout(config.drop_rate)

    def forward(self, x: Tensor, *, cache: KVCache | None = None, mask: Tensor | None = None) -> Tensor:
        x = x + self.drop_shortcut(self.att(self.norm1(x), cache=cache, mask=mask))
        out: Tensor = x + self.drop_shortcut(self.ff(self.norm2(x)))
        return out


class GPTModel(LanguageModel):
    """A GPT-2 that maps token ids to the logits of the next token at each position."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        if config.kind != "gpt2":
            raise UserError(
                f"GPTModel is a GPT-2, but the config has kind={config.kind}. Build the model with new_model(config) of "
                "gpt_pretrain.model.build, or choose a GPT-2, such as model=tiny."
            )
        self.pos_emb = nn.Embedding.from_pretrained(torch.empty(config.context_length, config.emb_dim), freeze=False)  # type: ignore[no-untyped-call]
        self.drop_emb = Dropout(config.drop_rate)
        self.trf_blocks = nn.ModuleList(TransformerBlock(config, layer) for layer in range(config.n_layers))
        self.final_norm = nn.LayerNorm(config.emb_dim)
        if not config.tie_embeddings:
            self.out_head = nn.Linear(config.emb_dim, config.vocab_size, bias=False)
        if not self.tok_emb.weight.is_meta:
            self._init_gpt2() if config.init == "gpt2" else self._init_pytorch()

    def hidden_states(
        self,
        token_ids: Tensor,
        *,
        cache: KVCache | None = None,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        embedding: Tensor | None = None,
    ) -> Tensor:
        positions, mask = self._positions_and_mask(token_ids, cache, positions, mask)
        x = self.drop_emb(self._embed(token_ids, embedding) + self.pos_emb(positions))  # (B, T, D)
        hidden: Tensor = self.final_norm(self._run_blocks(x, cache=cache, mask=mask))
        return hidden

    def _init_gpt2(self) -> None:
        """Initialize like GPT-2: normal with std 0.02, 0.01 for positions, and scaled down for the residual projections."""
        residual_std = 0.02 / math.sqrt(2 * self.config.n_layers)
        for name, parameter in self.named_parameters():
            if name.endswith(("att.out_proj.weight", "ff.layers.2.weight")):
                nn.init.normal_(parameter, std=residual_std)
            elif name == "pos_emb.weight":
                nn.init.normal_(parameter, std=0.01)
            elif parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def _init_pytorch(self) -> None:
        """Initialize the embeddings with PyTorch's default. The linear layers already have theirs."""
        for embedding in (self.tok_emb, self.pos_emb):
            embedding.reset_parameters()
