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
        counted: The number of tokens with a target. Only these count in the loss.
        own_counted: The number of counted tokens on this rank alone.
        loss: The mean loss over all counted tokens, in nats per token; NaN for a batch that is left out.
        stop_asked: True if any rank was asked to stop.
    """

    tokens: int
    counted: int
    own_counted: int
    loss: float
    stop_asked: bool


def batch_totals(batch: Batch, loss: Tensor | None, *, wants_stop: bool) -> BatchTotals:
    """Sum a batch over all ranks. The same message carries the request to stop.

    All numbers are read from the device together, so the host waits for it only once.

    Args:
        batch: This rank's batch. It has no targets if there were not enough windows for all ranks.
        loss: This rank's mean loss, a scalar; None on all ranks for a batch that is left out.
        wants_stop: Whether this rank was asked to stop.
    """
    token_ids, target_ids = batch[:2]
    counted = (target_ids != IGNORED).sum().to(loss_sum_dtype(token_ids.device))
    mean = torch.full_like(counted, math.nan) if loss is None else loss.detach().to(counted.dtype)
    if not ranks.is_distributed():
        own, loss_value = map(float, torch.stack([counted, mean]).tolist())
        return BatchTotals(token_ids.numel(), int(own), int(own), loss_value, wants_stop)
    nats = mean * counted if loss is not None else torch.zeros_like(counted)
    tokens = torch.where(counted > 0, token_ids.numel(), 0).to(counted)
    own_sums = torch.stack([nats, counted, tokens, counted.new_tensor(wants_stop)])
    total_nats, total_counted, total_tokens, asking, own = torch.cat([ranks.all_reduce_sum(own_sums), own_sums[1:2]]).tolist()
    loss_value = math.nan if loss is None else total_nats / total_counted if total_counted else 0.0
    return BatchTotals(int(total_tokens), int(total_counted), int(own), loss_value, asking > 0)
