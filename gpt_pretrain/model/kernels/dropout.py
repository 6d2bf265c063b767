"""Dropout whose masks cost little on a CPU, where drawing them one by one takes up to a quarter of a training step."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = 1 << 16  # of a random number that decides on one element: a probability is rounded to a multiple of 1 / LEVELS


class Dropout(nn.Dropout):
    """`nn.Dropout`, with masks by `keep_mask` on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.p > 0 and masks_pay(x):
            return x * keep_mask(x.shape, self.p, dtype=x.dtype)
        return F.dropout(x, self.p, self.training)


def masks_pay(x: Tensor) -> bool:
    """Whether `keep_mask` is faster than PyTorch's own dropout: on GPUs and in compiled code that draws in parallel."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def keep_mask(shape: tuple[int, ...], drop_rate: float, *, dtype: torch.dtype) -> Tensor:
    """What to multiply with: 0 at a share drop_rate of the places, and elsewhere what keeps the mean as it was.

    One draw of the CPU's generator, of 64 bits, serves four elements.
    """
    size = math.prod(shape)
    bits = torch.empty(-(-size // 4), dtype=torch.int64).random_(-(2**63), None)
    dropped = min(round(drop_rate * LEVELS), LEVELS - 1)
    kept = bits.view(torch.int16)[:size].view(shape) >= dropped - LEVELS // 2
    return kept.to(dtype).mul_(LEVELS / (LEVELS - dropped))
