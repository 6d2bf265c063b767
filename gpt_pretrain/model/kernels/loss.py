"""Next-token loss, computed from hidden states without the logits of all positions in memory at once.

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
from torch.nn import functional as F

from gpt_pretrain.model.kernels.chunks import chunk_rows, loss_block_rows
from gpt_pretrain.model.kernels.loss_gradients import LossGradients
from gpt_pretrain.model.kernels.native_loss import load_loss_code, native_softmax_loss

IGNORED = -100  # The target id of a position that does not count, as in PyTorch's own losses.
# The columns of the logits buffer are padded to a multiple of this number. Vector units and tensor cores are slow at reading rows
# of an odd length, such as GPT-2's 50,257.
COLUMN_ALIGNMENT = 64
LOG2_E = math.log2(math.e)
LARGEST_CAP = 30.0  # of logits; exp(2 * cap), summed over any vocabulary, is far below fp32's largest number

SoftmaxGradient = Callable[[Tensor, int, Tensor, Tensor, float | None], Tensor]


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, target_ids: Tensor, *, cap: float | None = None, compiled: bool = False
) -> Tensor:
    """Compute the mean cross-entropy of an output head without bias, in nats.

    The result equals `F.cross_entropy(hidden @ weight.T, target_ids)`. The forward pass also computes the gradients, chunk by
    chunk, because the softmax is available there. Under `torch.no_grad` it computes only the loss. Matrix products use autocast's
    dtype if autocast is on. Softmax and sums use fp32.

    Args:
        hidden: (N, D).
        weight: (V, D).
        target_ids: int64, (N,). Positions with the target IGNORED do not count.
        cap: Bend the logits to cap * tanh(logits / cap) before the softmax; None leaves them.
        compiled: Fuse all operations on the logits between the matrix products into one kernel.

    Returns:
        A scalar in fp32 or wider; 0 if all targets are IGNORED.
    """
    if not torch.is_grad_enabled():
        return _mean_loss(hidden, weight, target_ids, cap)
    softmax_gradient = _compiled_softmax_gradient() if compiled else _softmax_gradient
    loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, target_ids, cap, softmax_gradient)  # type: ignore[no-untyped-call]
    return loss


@torch.no_grad()
def token_losses(hidden: Tensor, weight: Tensor, target_ids: Tensor, *, cap: float | None = None) -> tuple[Tensor, Tensor]:
    """Compute the cross-entropy of each position of an output head without bias, without gradients.

    Matrix products use autocast's dtype if autocast is on. The softmax uses fp32 or wider.

    Args:
        hidden: (N, D).
        weight: (V, D).
        target_ids: int64, (N,).
        cap: Bend the logits to cap * tanh(logits / cap) before the softmax; None leaves them.

    Returns:
        The losses in nats, fp32 or wider, (N,); and whether each target is the most likely token, bool, (N,).
    """
    N, V = len(hidden), len(weight)
    wide = torch.promote_types(weight.dtype, torch.float32)
    losses = torch.empty(N, dtype=wide, device=hidden.device)
    is_top = torch.empty(N, dtype=torch.bool, device=hidden.device)
    rows = chunk_rows(N, V, hidden.device.type)
    for start in range(0, N, rows):
        chunk = slice(start, min(start + rows, N))
        logits = F.linear(hidden[chunk], weight).to(wide)  # (up to rows, V)
        if cap is not None:
            logits = logits.div_(cap).tanh_().mul_(cap)
        losses[chunk], is_top[chunk] = logit_losses(logits, target_ids[chunk])
    return losses, is_top


def logit_losses(logits: Tensor, target_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss of each position in nats, fp32 or wider, (N,), and whether each target is the most likely token, (N,).

    Args:
        logits: (N, V).
        target_ids: int64, (N,).
    """
    logits, targets = logits.to(torch.promote_types(logits.dtype, torch.float32)), target_ids[:, None]
    return logits.logsumexp(dim=1) - logits.gather(1, targets)[:, 0], logits.argmax(dim=1) == targets[:, 0]


def _mean_loss(hidden: Tensor, weight: Tensor, target_ids: Tensor, cap: float | None) -> Tensor:
    """Compute `linear_cross_entropy` without gradients, in blocks that fit into a cache and with few passes over the logits."""
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    wide = torch.promote_types(dtype, torch.float32)
    N, V = len(hidden), len(weight)
    with torch.autocast(device, enabled=False):
        x, w = hidden.to(dtype), _aligned_weight(weight, dtype)
        rows = chunk_rows(N, V, device)
        buffer = _logits_buffer(rows, V, dtype=dtype, device=hidden.device)[:, : len(w)]
        total = torch.zeros((), dtype=wide, device=hidden.device)
        for start in range(0, N, rows):
            chunk = slice(start, min(start + rows, N))
            logits = buffer[: chunk.stop - start]  # (up to rows, V or more)
            torch.mm(x[chunk], w.T, out=logits)
            total += _loss_sum(logits[:, :V], target_ids[chunk], cap)
    return total / (target_ids != IGNORED).sum().clamp(min=1)


def _loss_sum(logits: Tensor, target_ids: Tensor, cap: float | None) -> Tensor:
    """Return the sum of the losses of all rows with a target.

    Args:
        logits: (rows, V).
    """
    if (library := load_loss_code(logits)) is not None:
        counted = target_ids != IGNORED
        return native_softmax_loss(library, logits, target_ids, counted, cap=cap, with_gradient=False).sum()
    wide = torch.promote_types(logits.dtype, torch.float32)
    sums = [_block_loss_sum(logits[block].to(wide), target_ids[block], cap) for block in _blocks(logits)]
    return torch.stack(sums).sum()


def _blocks(logits: Tensor) -> list[slice]:
    """Divide the rows of logits, (rows, V), into blocks that fit into a cache."""
    size = loss_block_rows(len(logits), logits.shape[1], logits.device.type)
    return [slice(first, first + size) for first in range(0, len(logits), size)]


def _block_loss_sum(logits: Tensor, target_ids: Tensor, cap: float | None) -> Tensor:
    """Return the sum of the losses of all rows with a target. Overwrite logits, (rows, V), in fp32 or wider."""
    index = target_ids.clamp(min=0)[:, None]
    losses = _row_losses(logits, index) if cap is None else _capped_row_losses(logits, index, cap)
    return losses[:, 0].where(target_ids != IGNORED, 0.0).sum()


def _row_losses(logits: Tensor, index: Tensor) -> Tensor:
    target_logits = logits.gather(1, index)
    highest = logits.amax(dim=1, keepdim=True)
    sums = _exp_in_place(logits.sub_(highest)).sum(dim=1, keepdim=True)
    return sums.log() + highest - target_logits


def _capped_row_losses(logits: Tensor, index: Tensor, cap: float) -> Tensor:
    """Return the loss of each row, (rows, 1), in six passes over the logits instead of eleven.

    The softmax of cap * tanh(x / cap) equals the softmax of 2 * cap * sigmoid(2 * x / cap). The latter's values lie between 0 and
    2 * cap and cannot overflow.
    """
    assert cap <= LARGEST_CAP
    ratios = logits.mul_(2 / cap).sigmoid_()
    target_ratios = ratios.gather(1, index)
    sums = ratios.mul_(2 * cap * LOG2_E).exp2_().sum(dim=1, keepdim=True)
    return sums.log() - 2 * cap * target_ratios


def _tanh_of_ratio(x: Tensor, cap: float) -> Tensor:
    """Replace x in place by tanh(x / cap), with an absolute error of about 1e-7 in fp32.

    PyTorch's tanh takes ten times as long as its sigmoid on a CPU (2.13), a third of a small model's loss.
    """
    if x.device.type != "cpu":
        return x.div_(cap).tanh_()
    return x.mul_(2 / cap).sigmoid_().mul_(2).sub_(1)


def _exp_in_place(x: Tensor) -> Tensor:
    """Replace x in place by exp(x), where x is at most 0.

    On a CPU, PyTorch's exp calls MKL (2.13). On an AMD EPYC, MKL takes four times as long as PyTorch's own exp2.
    """
    return x.exp_() if x.device.type != "cpu" else x.mul_(LOG2_E).exp2_()


def _aligned(n_columns: int) -> int:
    return -(-n_columns // COLUMN_ALIGNMENT) * COLUMN_ALIGNMENT


def _head_rows(vocab_size: int, device: str) -> int:
    """Return the rows of the weight in products: on a GPU with rows of zeros, since only aligned products are fast."""
    return vocab_size if device == "cpu" else _aligned(vocab_size)


def _logits_buffer(rows: int, vocab_size: int, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    buffer = torch.empty(rows, _aligned(vocab_size), dtype=dtype, device=device)
    # oneDNN's bf16 product on Intel's AMX units (PyTorch 2.13) also multiplies the columns after V, by 0. NaN would stay NaN.
    buffer[:, vocab_size:] = 0
    return buffer


def _aligned_weight(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the weight in a dtype, with the rows of zeros of `_head_rows`.

    A row of zeros gives a logit of 0. No softmax reads that logit, so it adds nothing to any gradient.
    """
    V, D = weight.shape
    if (n_rows := _head_rows(V, weight.device.type)) == V:
        return weight.to(dtype)
    aligned = weight.new_zeros(n_rows, D, dtype=dtype)
    aligned[:V] = weight
    return aligned


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, target_ids: Tensor, cap: float | None, softmax_gradient: SoftmaxGradient
    ) -> Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        N, V = len(hidden), len(weight)
        with torch.autocast(device, enabled=False):
            x, rows = hidden.to(dtype), chunk_rows(N, V, device)
            total = torch.zeros((), dtype=torch.promote_types(dtype, torch.float32), device=hidden.device)
            counted = (target_ids != IGNORED).to(total.dtype)
            count = counted.sum().clamp(min=1)
            row_weights = counted if dtype == torch.float16 else counted / count
            # The largest tensor first, so that glibc gives it the memory that it had in the last step.
            gradients = (
                LossGradients(x, _head_rows(len(weight), x.device.type), rows, count)
                if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
                else None
            )
            w = _aligned_weight(weight, dtype)
            buffer = _logits_buffer(rows, V, dtype=dtype, device=hidden.device)[:, : len(w)]
            for start in range(0, N, rows):
                chunk = slice(start, min(start + rows, N))
                logits = buffer[: chunk.stop - start]  # (up to rows, V or more); columns from V on are and stay 0
                torch.mm(x[chunk], w.T, out=logits)
                total += softmax_gradient(logits, V, target_ids[chunk], row_weights[chunk], cap)
                if gradients is not None:
                    gradients.add(logits, w, chunk)
        ctx.gradients = None if gradients is None else gradients.finish(hidden.dtype, weight)
        return total / count

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        if ctx.gradients is None:
            raise RuntimeError("linear_cross_entropy supports a single backward pass, because backward reuses its buffers.")
        d_hidden, d_weight = ctx.gradients
        ctx.gradients = None
        # d_loss is 1 unless gradients are accumulated or scaled. On a GPU, reading it would wait for the device.
        if d_loss.device.type != "cpu" or d_loss.item() != 1:
            d_hidden.mul_(d_loss)
            d_weight.mul_(d_loss)
        return d_hidden, d_weight, None, None, None


def _softmax_gradient(logits: Tensor, vocab_size: int, target_ids: Tensor, row_weights: Tensor, cap: float | None) -> Tensor:
    """Replace logits in place by the gradient of the weighted sum of losses.

    Args:
        logits: (rows, V or more). Columns from V on are 0 and stay 0.
        vocab_size: V.
        target_ids: int64, (rows,).
        row_weights: (rows,).
        cap: The logits are bent to cap * tanh(logits / cap); None leaves them.

    Returns:
        The unweighted sum of the losses of all rows with a weight above 0.
    """
    logits = logits[:, :vocab_size]
    if (library := load_loss_code(logits)) is not None:
        return native_softmax_loss(library, logits, target_ids, row_weights, cap=cap, with_gradient=True).sum()
    sums = [_block_gradient(logits[block], target_ids[block], row_weights[block], cap) for block in _blocks(logits)]
    return torch.stack(sums).sum()


def _block_gradient(logits: Tensor, target_ids: Tensor, row_weights: Tensor, cap: float | None) -> Tensor:
    """Compute `_softmax_gradient` of logits, (rows, V), by PyTorch's operators."""
    index, row_weights = target_ids.clamp(min=0)[:, None], row_weights[:, None]  # (rows, 1)
    wide = torch.promote_types(logits.dtype, torch.float32)
    values, ratio = logits, None
    if cap is not None:
        ratio = _tanh_of_ratio(logits.to(wide, copy=True), cap)
        values = logits.copy_(ratio).mul_(cap) if logits.dtype == wide else ratio * cap
    target_logits = values.gather(1, index).to(wide)
    highest = values.amax(dim=1, keepdim=True)
    probabilities = _exp_in_place(values.sub_(highest) if values.dtype == wide else values.to(wide) - highest)
    sums = probabilities.sum(dim=1, keepdim=True)
    loss = (sums.log() + highest - target_logits).where(row_weights > 0, 0.0).sum()
    probabilities.mul_(row_weights / sums)
    probabilities.scatter_add_(1, index, -row_weights)
    if ratio is not None:
        probabilities.addcmul_(probabilities, ratio.square_(), value=-1)  # times the derivative of tanh
    if probabilities is not logits:
        logits.copy_(probabilities)
    return loss


def _fused_softmax_gradient(
    logits: Tensor, vocab_size: int, target_ids: Tensor, row_weights: Tensor, cap: float | None
) -> Tensor:
    """Compute `_softmax_gradient` with operations that a compiler fuses into two passes over whole, aligned rows.

    A scatter would make the compiled code write all probabilities in fp32 and read them again.
    """
    index, row_weights = target_ids.clamp(min=0)[:, None], row_weights[:, None]  # (rows, 1)
    columns = torch.arange(logits.shape[1], device=logits.device)
    values, ratio = logits.to(torch.promote_types(logits.dtype, torch.float32)), None
    if cap is not None:
        ratio = torch.tanh(values / cap)
        values = ratio * cap
    target_logits = values.gather(1, index)
    if logits.shape[1] > vocab_size:
        values = values.masked_fill(columns >= vocab_size, -math.inf)
    highest = values.amax(dim=1, keepdim=True)
    powers = (values - highest).exp()
    sums = powers.sum(dim=1, keepdim=True)
    loss = (sums.log() + highest - target_logits).where(row_weights > 0, 0.0).sum()
    gradient = powers * (row_weights / sums) - torch.where(columns == index, row_weights, 0.0)  # (rows, V or more)
    logits.copy_(gradient if ratio is None else gradient * (1 - ratio.square()))
    return loss


@lru_cache(maxsize=1)
def _compiled_softmax_gradient() -> SoftmaxGradient:
    return torch.compile(_fused_softmax_gradient, dynamic=False)
