"""Causal attention, by PyTorch's fused kernels where they are fast, and block by block where they are not.

Shapes: B batch, H heads, T queries, S keys, K head_dim.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from gpt_pretrain.model.kernels.dropout import keep_mask, masks_pay

BLOCK = 128  # queries; smaller ones skip more of the masked half, and call more kernels


def causal_attention(
    queries: Tensor, keys: Tensor, values: Tensor, *, mask: Tensor | None = None, drop_rate: float = 0.0
) -> Tensor:
    """Softmax attention of each query to the keys up to its own position.

    Args:
        queries: (B, H, T, K).
        keys, values: (B, H, S, K).
        mask: which keys each query sees, bool, (T, S) or (B, 1, T, S); None: those up to its own, or all for a single query.
        drop_rate: share of the attention weights that are dropped.

    Returns:
        (B, H, T, K).
    """
    if drop_rate > 0 and masks_pay(queries):  # PyTorch has no fused kernel for that on a CPU
        context: Tensor = _DroppingAttention.apply(queries, keys, values, mask, drop_rate)  # type: ignore[no-untyped-call]
        return context
    return F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, dropout_p=drop_rate, is_causal=mask is None and queries.shape[2] > 1
    )


class _DroppingAttention(torch.autograd.Function):
    """Attention with dropout for T = S, no later key ever seen; each block of queries looks at the keys up to its end alone."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, drop_rate: float) -> Tensor:
        B, H, T, K = queries.shape
        q, k, v = (part.flatten(0, 1) for part in (queries * K**-0.5, keys, values))  # (B * H, T, K)
        context = torch.empty_like(q)
        saved = []
        for start, end in _blocks(T):
            future = torch.full((end - start, end), -math.inf, dtype=q.dtype).triu(start + 1)
            scores = torch.baddbmm(future, q[:, start:end], k[:, :end].transpose(1, 2))
            if mask is not None:
                scores.view(B, H, end - start, end).masked_fill_(~mask[..., start:end, :end], -math.inf)
            weights = torch.softmax(scores, dim=-1)
            kept = keep_mask(weights.shape, drop_rate, dtype=weights.dtype)
            context[:, start:end] = torch.bmm(weights * kept, v[:, :end])
            saved += [weights, kept]
        ctx.save_for_backward(q, k, v, *saved)
        return context.view(queries.shape)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, d_context: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, *saved = ctx.saved_tensors
        d_out = d_context.flatten(0, 1)
        d_q, d_k, d_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for (start, end), weights, kept in zip(_blocks(q.shape[1]), saved[::2], saved[1::2], strict=True):
            d_block = d_out[:, start:end]
            d_v[:, :end].baddbmm_((weights * kept).transpose(1, 2), d_block)
            d_weights = torch.bmm(d_block, v[:, :end].transpose(1, 2)).mul_(kept)
            d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            d_q[:, start:end] = torch.bmm(d_scores, k[:, :end])
            d_k[:, :end].baddbmm_(d_scores.transpose(1, 2), q[:, start:end])
        d_q *= q.shape[2] ** -0.5
        shape = d_context.shape
        return d_q.view(shape), d_k.view(shape), d_v.view(shape), None, None


def _blocks(n_queries: int) -> list[tuple[int, int]]:
    return [(start, min(start + BLOCK, n_queries)) for start in range(0, n_queries, BLOCK)]
