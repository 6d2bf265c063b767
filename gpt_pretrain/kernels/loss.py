"""Next-token loss straight from hidden states: the logits of all positions never exist at once, forward or backward.

Shapes: N positions, D emb_dim, V vocab_size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_BYTES = {"cpu": 1 << 26, "cuda": 1 << 30}  # of fp32 logits in memory; more would not be faster
Softmax = Callable[[Tensor, Tensor, float], Tensor]
ALIGN = 64  # columns; an odd vocabulary such as GPT-2's 50,257 leaves rows that vector units and tensor cores read slowly


def linear_cross_entropy(hidden: Tensor, weight: Tensor, target_ids: Tensor, *, compiled: bool = False) -> Tensor:
    """Mean cross-entropy in nats of an output head without bias, like `F.cross_entropy(hidden @ weight.T, target_ids)`.

    Gradients are computed on the way forward, chunk by chunk, since the softmax is at hand there. Products are made in
    autocast's dtype where that is on; softmax and sums are fp32.

    Args:
        hidden: (N, D).
        weight: (V, D).
        target_ids: int64, (N,).
        compiled: make one kernel of all that happens to the logits between the products.

    Returns:
        A scalar, fp32.
    """
    softmax = _compiled_softmax() if compiled else _softmax_minus_target
    loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, target_ids, softmax)  # type: ignore[no-untyped-call]
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, target_ids: Tensor, softmax: Softmax) -> Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        N, V = len(hidden), len(weight)
        scale = 1.0 if dtype == torch.float16 else 1 / N  # a mean's gradients are too small for fp16
        needs_grad = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        with torch.autocast(device, enabled=False):
            x, w = hidden.to(dtype), weight.to(dtype)
            d_hidden = torch.empty_like(x) if needs_grad else None
            d_weight = torch.empty_like(weight) if needs_grad else None
            rows = chunk_rows(N, V, device)
            total = torch.zeros((), dtype=torch.float32, device=hidden.device)
            buffer = torch.empty(rows, -(-V // ALIGN) * ALIGN, dtype=dtype, device=hidden.device)
            for start in range(0, N, rows):
                chunk = slice(start, min(start + rows, N))
                logits = buffer[: chunk.stop - start, :V]
                torch.mm(x[chunk], w.T, out=logits)
                total += softmax(logits, target_ids[chunk], scale)
                if d_hidden is None or d_weight is None:
                    continue
                torch.mm(logits, w, out=d_hidden[chunk])
                if start == 0:
                    torch.mm(logits.T, x[chunk], out=d_weight) if dtype == weight.dtype else d_weight.copy_(logits.T @ x[chunk])
                elif dtype == weight.dtype:
                    d_weight.addmm_(logits.T, x[chunk])
                else:
                    d_weight += logits.T @ x[chunk]
        if d_hidden is not None and d_weight is not None:
            d_hidden = d_hidden.to(hidden.dtype)
            if dtype == torch.float16:
                d_hidden, d_weight = d_hidden / N, d_weight / N
        ctx.gradients = d_hidden, d_weight
        return total / N

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        d_hidden, d_weight = ctx.gradients
        ctx.gradients = None  # free for the optimizer once used
        if d_loss.device.type != "cpu" or d_loss.item() != 1:  # 1, unless gradients are accumulated or scaled
            d_hidden.mul_(d_loss)
            d_weight.mul_(d_loss)
        return d_hidden, d_weight, None, None


def chunk_rows(n_positions: int, vocab_size: int, device: str) -> int:
    """Positions whose logits are held at once: chunks of equal size, and never all positions where there are many."""
    most = max(1, CHUNK_BYTES.get(device, CHUNK_BYTES["cuda"]) // (4 * vocab_size))
    chunks = -(-n_positions // most)
    return -(-n_positions // chunks)


def _softmax_minus_target(logits: Tensor, target_ids: Tensor, scale: float) -> Tensor:
    """Turn logits in place into the gradient of the summed loss times scale, and return that sum."""
    at = target_ids[:, None]
    chosen = logits.gather(1, at).float()
    highest = logits.amax(dim=1, keepdim=True)
    probabilities = logits.sub_(highest).exp_() if logits.dtype == torch.float32 else (logits.float() - highest).exp_()
    sums = probabilities.sum(dim=1, keepdim=True)
    loss = (sums.log() + highest - chosen).sum()
    probabilities.mul_(scale / sums)
    probabilities.scatter_add_(1, at, probabilities.new_full(at.shape, -scale))
    if probabilities is not logits:
        logits.copy_(probabilities)
    return loss


@lru_cache(maxsize=1)
def _compiled_softmax() -> Softmax:
    return torch.compile(_softmax_minus_target, dynamic=False)
