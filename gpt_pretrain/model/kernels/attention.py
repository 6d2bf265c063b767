"""Causal attention, with faster kernels for training on a CPU.

Shapes: B batch, H heads, T queries, S keys, K head_dim.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from gpt_pretrain.model.kernels.chunks import keeps_weights, query_blocks
from gpt_pretrain.model.kernels.dropout import is_eager_cpu, keep_mask


def causal_attention(
    queries: Tensor, keys: Tensor, values: Tensor, *, mask: Tensor | None = None, drop_rate: float = 0.0
) -> Tensor:
    """Compute softmax attention of each query over the keys up to its own position.

    Args:
        queries: (B, H, T, K).
        keys: (B, H, S, K).
        values: (B, H, S, K).
        mask: Keys that each query sees, bool, (T, S) or (B, 1, T, S). None means the keys up to the query's own position, or
            all keys for a single query.
        drop_rate: Dropout probability of the attention weights, in [0, 1).

    Returns:
        (B, H, T, K).
    """
    if _use_blocks(queries, keys, drop_rate):
        context: Tensor = _BlockAttention.apply(queries, keys, values, mask, drop_rate)  # type: ignore[no-untyped-call]
        return context
    return F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, dropout_p=drop_rate, is_causal=mask is None and queries.shape[2] > 1
    )


def single_query_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Compute softmax attention of one query per head over all keys, for decoding on a CPU.

    For 16 bits, PyTorch's fused kernel takes three times as long with a single query. Shared keys and values are not copied for
    each query head.

    Args:
        queries: (B, heads of queries, 1, K). Each head of keys and values serves the same number of them.
        keys: (B, H, S, K).
        values: (B, H, S, K).

    Returns:
        (B, heads of queries, 1, K).
    """
    dtype = torch.promote_types(queries.dtype, torch.float32)
    B, H, _, K = keys.shape
    q = queries.reshape(B * H, -1, K).to(dtype) * K**-0.5  # (B * H, queries of each, K)
    k, v = (one.to(dtype).flatten(0, 1) for one in (keys, values))  # (B * H, S, K)
    weights = torch.softmax(torch.bmm(q, k.transpose(1, 2)), dim=-1)  # (B * H, queries of each, S)
    return torch.bmm(weights, v).to(queries.dtype).view(queries.shape)


def _use_blocks(queries: Tensor, keys: Tensor, drop_rate: float) -> bool:
    """Return whether `_BlockAttention` is faster than PyTorch's kernels.

    On a CPU, PyTorch has no fused dropout, and the backward pass of its fused kernel is slow in bf16.
    """
    if not is_eager_cpu(queries):
        return False
    is_training = queries.requires_grad and queries.shape[2] == keys.shape[2] > 1
    return drop_rate > 0 or (is_training and queries.dtype == torch.bfloat16)


def _attention_weights(q: Tensor, k: Tensor, mask: Tensor | None, *, start: int, end: int) -> Tensor:
    """Return the weights of a block of queries over the keys up to its end.

    Args:
        q: All queries, scaled, (B * H, T, K).
        k: (B * H, T, K).
        mask: Keys that each query sees, bool, (T, T) or (B, 1, T, T). None means the keys up to the query's own position.

    Returns:
        (B * H, end - start, end).
    """
    future = torch.full((end - start, end), -math.inf, dtype=q.dtype).triu(start + 1)
    scores = torch.baddbmm(future, q[:, start:end], k[:, :end].transpose(1, 2))
    if mask is not None:
        B = mask.shape[0] if mask.dim() == 4 else 1
        scores.view(B, -1, end - start, end).masked_fill_(~mask[..., start:end, :end], -math.inf)
    return torch.softmax(scores, dim=-1)


def _weights_by_block(
    q: Tensor, k: Tensor, mask: Tensor | None, drop_rate: float, *, random_state: Tensor | None = None
) -> Iterator[tuple[int, int, Tensor, Tensor | None]]:
    """Yield the start and end of each block of queries, its weights, and the dropout mask to multiply them with.

    Args:
        random_state: State of the random generator for the masks. It is restored at the end. None means the current state.
    """
    with torch.random.fork_rng(devices=[], enabled=random_state is not None):
        if random_state is not None:
            torch.set_rng_state(random_state)
        for start, end in query_blocks(q.shape[1]):
            weights = _attention_weights(q, k, mask, start=start, end=end)
            yield start, end, weights, keep_mask(weights.shape, drop_rate, dtype=weights.dtype) if drop_rate > 0 else None


class _BlockAttention(torch.autograd.Function):
    """Causal attention for T = S, one block of queries at a time. Each block sees the keys up to its end.

    The weights are recomputed in the backward pass, since the memory to keep them would grow with T squared. Dropout draws the
    same numbers again. With dropout and short windows, weights and masks are kept instead, which is faster.
    """

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, drop_rate: float) -> Tensor:
        q, k, v = (x.flatten(0, 1) for x in (queries * queries.shape[3] ** -0.5, keys, values))  # (B * H, T, K)
        context = torch.empty_like(q)
        ctx.drop_rate, ctx.random_state = drop_rate, torch.get_rng_state() if drop_rate > 0 else None
        kept = []
        with torch.autocast("cpu", enabled=False):  # The weights must be the same as in the backward pass.
            for start, end, weights, dropout in _weights_by_block(q, k, mask, drop_rate):
                context[:, start:end] = torch.bmm(weights if dropout is None else weights * dropout, v[:, :end])
                if keeps_weights(q.shape[1], drop_rate):
                    kept += [weights, dropout]
        ctx.save_for_backward(q, k, v, mask, *kept)
        return context.view(queries.shape)  # (B, H, T, K)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, d_context: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, mask, *kept = ctx.saved_tensors
        d_out = d_context.flatten(0, 1)  # (B * H, T, K)
        d_q, d_k, d_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        blocks = _weights_by_block(q, k, mask, ctx.drop_rate, random_state=ctx.random_state)
        if kept:
            pairs = zip(kept[::2], kept[1::2], strict=True)
            blocks = ((*block, *pair) for block, pair in zip(query_blocks(q.shape[1]), pairs, strict=True))
        for start, end, weights, dropout in blocks:
            d_block = d_out[:, start:end]
            d_v[:, :end].baddbmm_((weights if dropout is None else weights * dropout).transpose(1, 2), d_block)
            d_weights = torch.bmm(d_block, v[:, :end].transpose(1, 2))  # (B * H, end - start, end)
            if dropout is not None:
                d_weights *= dropout
            d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            d_q[:, start:end] = torch.bmm(d_scores, k[:, :end])
            d_k[:, :end].baddbmm_(d_scores.transpose(1, 2), q[:, start:end])
        d_q *= q.shape[2] ** -0.5
        shape = d_context.shape  # (B, H, T, K)
        return d_q.view(shape), d_k.view(shape), d_v.view(shape), None, None
