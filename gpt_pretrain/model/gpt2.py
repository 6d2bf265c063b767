"""GPT-2, from attention upwards.

Shapes: B batch, T time (positions given now), S positions attended to, D emb_dim, H heads, K head_dim, V vocab_size.

Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; the tanh form of GELU and the initialisation
follow OpenAI's released GPT-2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.kernels.attention import causal_attention
from gpt_pretrain.model.kernels.dropout import Dropout
from gpt_pretrain.model.kv_cache import KVCache


class MultiHeadAttention(nn.Module):
    """Causal self-attention with queries, keys and values from one projection."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_heads = config.n_heads
        self.drop_rate = config.drop_rate
        self.qkv = nn.Linear(config.emb_dim, 3 * config.emb_dim, bias=config.qkv_bias)
        self.out_proj = nn.Linear(config.emb_dim, config.emb_dim)

    def forward(self, x: Tensor, cache: KVCache | None = None, mask: Tensor | None = None) -> Tensor:
        B, T, D = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.n_heads, D // self.n_heads)
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, T, K)
        if cache is not None:
            keys, values = cache.extend(self.layer, keys, values)  # (B, H, S, K)
            mask = cache.mask
        context = causal_attention(queries, keys, values, mask=mask, drop_rate=self.drop_rate if self.training else 0.0)
        out: Tensor = self.out_proj(context.transpose(1, 2).reshape(B, T, D))
        return out


class FeedForward(nn.Module):
    """Two linear layers, four times as wide in the middle."""

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
    """Attention and feed-forward, each behind a layer norm and added back to its input."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.emb_dim)
        self.att = MultiHeadAttention(config, layer)
        self.norm2 = nn.LayerNorm(config.emb_dim)
        self.ff = FeedForward(config)
        self.drop_shortcut = Dropout(config.drop_rate)

    def forward(self, x: Tensor, cache: KVCache | None = None, mask: Tensor | None = None) -> Tensor:
        x = x + self.drop_shortcut(self.att(self.norm1(x), cache, mask))
        out: Tensor = x + self.drop_shortcut(self.ff(self.norm2(x)))
        return out


class GPTModel(nn.Module):
    """A GPT-2: token ids in, logits for the next token at each position out.

    Attributes:
        activation_checkpointing: whether blocks keep only what they are given, and compute the rest again for the backward pass.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        self.tok_emb = nn.Embedding.from_pretrained(torch.empty(config.vocab_size, config.emb_dim), freeze=False)  # type: ignore[no-untyped-call]
        self.pos_emb = nn.Embedding.from_pretrained(torch.empty(config.context_length, config.emb_dim), freeze=False)  # type: ignore[no-untyped-call]
        self.drop_emb = Dropout(config.drop_rate)
        self.trf_blocks = nn.ModuleList(TransformerBlock(config, layer) for layer in range(config.n_layers))
        self.final_norm = nn.LayerNorm(config.emb_dim)
        if not config.tie_embeddings:
            self.out_head = nn.Linear(config.emb_dim, config.vocab_size, bias=False)
        if not self.tok_emb.weight.is_meta:
            self._init_gpt2() if config.init == "gpt2" else self._init_pytorch()

    def forward(self, token_ids: Tensor) -> Tensor:
        """Logits of the next token after each position.

        Args:
            token_ids: int64, (B, T), T at most context_length.

        Returns:
            (B, T, V).
        """
        return self.logits(self.hidden_states(token_ids))

    def hidden_states(self, token_ids: Tensor, cache: KVCache | None = None, *, positions: Tensor | None = None) -> Tensor:
        """What the blocks make of the tokens, before the output head.

        Args:
            token_ids: int64, (B, T).
            cache: the positions read before these, to which these are added.
            positions: of each token in its document, int64, (B, T), counted from 0 in each: documents see nothing of each
                other; None: each row is one document. Not with a cache.

        Returns:
            (B, T, D).

        Raises:
            ValueError: when the positions would not fit into context_length.
        """
        T = token_ids.shape[1]
        if (most := self.config.context_length) < T:
            raise ValueError(f"token_ids reach position {T}, but the model's context_length is {most}.")
        mask = None if positions is None else _within_documents(positions)  # (B, 1, T, T)
        if positions is None:
            positions = torch.arange(T, device=token_ids.device) if cache is None else cache.begin(T)
        x = self.drop_emb(self.tok_emb(token_ids) + self.pos_emb(positions))  # (B, T, D)
        recompute = self.activation_checkpointing and torch.is_grad_enabled()
        for block in self.trf_blocks:
            x = checkpoint(block, x, None, mask, use_reentrant=False) if recompute else block(x, cache, mask)
        hidden: Tensor = self.final_norm(x)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """The output head: (..., D) -> (..., V)."""
        return F.linear(hidden, self.head_weight)

    @property
    def head_weight(self) -> Tensor:
        """The output head's weight, (V, D)."""
        return self.tok_emb.weight if self.config.tie_embeddings else self.out_head.weight

    def num_parameters(self) -> int:
        """Trainable numbers, a tied head counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def _init_gpt2(self) -> None:
        """GPT-2's: normal, 0.02 (0.01 for positions), and smaller where two branches a block add up in the residual stream."""
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
        """Each layer's own default; the linear layers have theirs already."""
        for embedding in (self.tok_emb, self.pos_emb):
            embedding.reset_parameters()


def _within_documents(positions: Tensor) -> Tensor:
    """Which keys each query sees: those of its own document up to its own position; bool, (B, 1, T, T)."""
    places = torch.arange(positions.shape[1], device=positions.device)
    back = places[:, None] - places  # from a query to a key, (T, T)
    return ((back >= 0) & (back <= positions[:, :, None]))[:, None]
