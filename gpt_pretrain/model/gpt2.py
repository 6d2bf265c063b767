"""The GPT-2 model.

Shapes: B batch, T time (new positions), S positions attended to, D emb_dim, H heads, K head_dim, V vocab_size.

Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners". The tanh form of GELU and the initialization
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
            keys, values = cache.extend(self.layer, keys, values)  # (B, H, S, K)
            mask = cache.mask
        context = causal_attention(queries, keys, values, mask=mask, drop_rate=self.drop_rate if self.training else 0.0)
        out: Tensor = self.out_proj(context.transpose(1, 2).reshape(B, T, D))  # (B, T, D)
        return out


class FeedForward(nn.Module):
    """Two linear layers with a hidden layer of four times the width."""

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


class GPTModel(nn.Module):
    """A GPT-2 that maps token ids to the logits of the next token at each position.

    Attributes:
        activation_checkpointing: Keep only the input of each block in the forward pass, and recompute the rest in the backward
            pass.
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
        """Return the logits of the next token at each position.

        Args:
            token_ids: int64, (B, T), T at most context_length.

        Returns:
            (B, T, V).
        """
        return self.logits(self.hidden_states(token_ids))

    def hidden_states(self, token_ids: Tensor, *, cache: KVCache | None = None, positions: Tensor | None = None) -> Tensor:
        """Return the output of the last layer norm, the input of the output head.

        Args:
            token_ids: int64, (B, T).
            cache: Keys and values of the positions before token_ids; this call appends those of token_ids.
            positions: Position of each token in its document, int64, (B, T), starting at 0 in each document. Tokens attend only
                to their own document. None treats each row as one document. Cannot be combined with a cache.

        Returns:
            (B, T, D).

        Raises:
            ValueError: If the positions exceed context_length.
        """
        T = token_ids.shape[1]
        if (context_length := self.config.context_length) < T:
            raise ValueError(f"token_ids reach position {T}, but the model's context_length is {context_length}.")
        mask = None if positions is None else _document_mask(positions)  # (B, 1, T, T)
        if positions is None:
            positions = torch.arange(T, device=token_ids.device) if cache is None else cache.begin(T)
        x = self.drop_emb(self.tok_emb(token_ids) + self.pos_emb(positions))  # (B, T, D)
        recompute = self.activation_checkpointing and torch.is_grad_enabled()
        for block in self.trf_blocks:
            x = checkpoint(block, x, mask=mask, use_reentrant=False) if recompute else block(x, cache=cache, mask=mask)
        hidden: Tensor = self.final_norm(x)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Apply the output head: (..., D) -> (..., V)."""
        return F.linear(hidden, self.head_weight)

    @property
    def head_weight(self) -> Tensor:
        """The weight of the output head, (V, D)."""
        return self.tok_emb.weight if self.config.tie_embeddings else self.out_head.weight

    def num_parameters(self) -> int:
        """Return the number of trainable parameters; a tied output head counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

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
        """Initialize the embeddings with PyTorch's default; the linear layers already have theirs."""
        for embedding in (self.tok_emb, self.pos_emb):
            embedding.reset_parameters()


def empty_model(config: GPTConfig) -> GPTModel:
    """Return a model on the meta device, whose tensors have shapes but use no memory."""
    with torch.device("meta"):
        return GPTModel(config)


def _document_mask(positions: Tensor) -> Tensor:
    """Return the keys that each query sees, those of its own document up to its own position: bool, (B, 1, T, T)."""
    index = torch.arange(positions.shape[1], device=positions.device)
    distance = index[:, None] - index  # from query to key, (T, T)
    return ((distance >= 0) & (distance <= positions[:, :, None]))[:, None]
