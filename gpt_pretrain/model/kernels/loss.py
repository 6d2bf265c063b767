"""Next-token loss straight from hidden states: the logits of all positions never exist at once, forward or backward.

Shapes: N positions, D emb_dim, V vocab_size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_BYTES = {"cpu": 1 << 26, "cuda": 1 << 30}  # of fp32 logits in memory; more would not be faster
IGNORED = -100  # the target of a position that has none, as PyTorch's own losses have it
Softmax = Callable[[Tensor, Tensor, Tensor], Tensor]
ALIGN = 64  # columns; an odd vocabulary such as GPT-2's 50,257 leaves rows that vector units and tensor cores read slowly


def linear_cross_entropy(hidden: Tensor, weight: Tensor, target_ids: Tensor, *, compiled: bool = False) -> Tensor:
    """Mean cross-entropy in nats of an output head without bias, like `F.cross_entropy(hidden @ weight.T, target_ids)`.

    Gradients are computed on the way forward, chunk by chunk, since the softmax is at hand there. Products are made in
    autocast's dtype where that is on; softmax and sums are fp32.

    Args:
        hidden: (N, D).
        weight: (V, D).
        target_ids: int64, (N,); positions whose target is IGNORED count for nothing.
        compiled: make one kernel of all that happens to the logits between the products.

    Returns:
        A scalar, fp32 or wider; 0 where all targets are ignored.
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
        with torch.autocast(device, enabled=False):
            x, w = hidden.to(dtype), weight.to(dtype)
            rows = chunk_rows(N, V, device)
            buffer = torch.empty(rows, -(-V // ALIGN) * ALIGN, dtype=dtype, device=hidden.device)
            total = torch.zeros((), dtype=torch.promote_types(dtype, torch.float32), device=hidden.device)
            kept = (target_ids != IGNORED).to(total.dtype)
            count = kept.sum().clamp(min=1)
            weights = kept if dtype == torch.float16 else kept / count
            gradients = _Gradients(x, w, rows, count) if ctx.needs_input_grad[0] or ctx.needs_input_grad[1] else None
            for start in range(0, N, rows):
                chunk = slice(start, min(start + rows, N))
                logits = buffer[: chunk.stop - start, :V]
                torch.mm(x[chunk], w.T, out=logits)
                total += softmax(logits, target_ids[chunk], weights[chunk])
                if gradients is not None:
                    gradients.add(logits, chunk)
        ctx.gradients = None if gradients is None else gradients.finish(hidden.dtype, weight.dtype)
        return total / count

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor, Tensor, None, None]:
        if ctx.gradients is None:
            raise RuntimeError("linear_cross_entropy: backward can be called once, since it gives its gradients away.")
        d_hidden, d_weight = ctx.gradients
        ctx.gradients = None
        if d_loss.device.type != "cpu" or d_loss.item() != 1:  # 1, unless gradients are accumulated or scaled
            d_hidden.mul_(d_loss)
            d_weight.mul_(d_loss)
        return d_hidden, d_weight, None, None


class _Gradients:
    """The gradients of hidden states x, (N, D), and weights w, (V, D), summed up chunk by chunk.

    Half precision is summed in fp32. What fp16 cannot hold is kept out of it: a mean's small gradients by coming as those of
    the sum, and large sums over the rows of a chunk by shrinking x before them.
    """

    def __init__(self, x: Tensor, w: Tensor, rows: int, count: Tensor) -> None:
        self.x, self.w, self.count = x, w, count  # the last is how many positions the mean is over
        self.fp16 = x.dtype == torch.float16
        self.shrink = 0.5 ** math.ceil(math.log2(rows)) if self.fp16 else 1.0
        self.d_hidden = torch.empty_like(x)
        self.d_weight: Tensor | None = None

    def add(self, d_logits: Tensor, chunk: slice) -> None:
        torch.mm(d_logits, self.w, out=self.d_hidden[chunk])
        x = self.x[chunk] * self.shrink if self.fp16 else self.x[chunk]
        if self.d_weight is None:
            self.d_weight = (d_logits.T @ x).to(torch.promote_types(x.dtype, torch.float32))
        elif self.d_weight.dtype == x.dtype:
            self.d_weight.addmm_(d_logits.T, x)
        else:
            self.d_weight += d_logits.T @ x

    def finish(self, hidden_dtype: torch.dtype, weight_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        assert self.d_weight is not None
        d_hidden = self.d_hidden.to(hidden_dtype)
        if self.fp16:
            d_hidden = d_hidden / self.count.to(hidden_dtype)
            self.d_weight /= self.shrink * self.count
        return d_hidden, self.d_weight.to(weight_dtype)


def chunk_rows(n_positions: int, vocab_size: int, device: str) -> int:
    """Positions whose logits are held at once: chunks of equal size, and never all positions where there are many."""
    most = max(1, CHUNK_BYTES.get(device, CHUNK_BYTES["cuda"]) // (4 * vocab_size))
    chunks = -(-n_positions // most)
    return -(-n_positions // chunks)


def _softmax_minus_target(logits: Tensor, target_ids: Tensor, weights: Tensor) -> Tensor:
    """Turn logits in place into the gradient of the weighted sum of losses, and return the sum over those of a weight above 0."""
    at, weights, wide = target_ids.clamp(min=0)[:, None], weights[:, None], torch.promote_types(logits.dtype, torch.float32)
    chosen = logits.gather(1, at).to(wide)
    highest = logits.amax(dim=1, keepdim=True)
    probabilities = logits.sub_(highest).exp_() if logits.dtype == wide else (logits.to(wide) - highest).exp_()
    sums = probabilities.sum(dim=1, keepdim=True)
    loss = (sums.log() + highest - chosen).where(weights > 0, 0.0).sum()
    probabilities.mul_(weights / sums)
    probabilities.scatter_add_(1, at, -weights)
    if probabilities is not logits:
        logits.copy_(probabilities)
    return loss


@lru_cache(maxsize=1)
def _compiled_softmax() -> Softmax:
    return torch.compile(_softmax_minus_target, dynamic=False)
