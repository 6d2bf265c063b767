"""Combine the loss and the number of tokens of a training batch over all ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt_pretrain.data.dataset import Batch
from gpt_pretrain.evaluation.loss import loss_sum_dtype
from gpt_pretrain.model.kernels.loss import IGNORED
from gpt_pretrain.training.distributed import ranks


@dataclass(frozen=True)
class BatchTotals:
    """A training batch, summed over all ranks.

    Args:
        tokens: The number of tokens.
        loss: The mean loss in nats per token, a scalar tensor; None for a batch that is left out.
        loss_value: The same as a number; NaN for a batch that is left out.
        stop_asked: True if any rank was asked to stop.
    """

    tokens: int
    loss: Tensor | None
    loss_value: float
    stop_asked: bool


def batch_totals(batch: Batch, loss: Tensor | None, *, wants_stop: bool) -> BatchTotals:
    """Sum a batch over all ranks, in one message that also carries the request to stop.

    Args:
        batch: This rank's batch. It has no targets if there were not enough windows for all ranks.
        loss: This rank's mean loss, a scalar; None on all ranks for a batch that is left out.
        wants_stop: Whether this rank was asked to stop.
    """
    token_ids, target_ids = batch[:2]
    tokens = token_ids.numel()
    if not ranks.is_distributed():
        if loss is None:
            return BatchTotals(tokens, None, math.nan, wants_stop)
        return BatchTotals(tokens, loss.detach(), loss.item(), wants_stop)
    if not bool((target_ids != IGNORED).any()):
        tokens = 0
    nats = torch.zeros((), device=token_ids.device, dtype=loss_sum_dtype(token_ids.device))
    if loss is not None and tokens:
        nats = loss.detach().to(nats.dtype) * tokens
    sums = torch.stack([nats, nats.new_tensor(tokens), nats.new_tensor(wants_stop)])
    total_nats, total_tokens, asking = ranks.all_reduce_sum(sums).tolist()
    if loss is None:
        return BatchTotals(int(total_tokens), None, math.nan, asking > 0)
    mean = total_nats / total_tokens
    return BatchTotals(int(total_tokens), loss.new_tensor(mean), mean, asking > 0)
