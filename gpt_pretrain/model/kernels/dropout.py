"""Dropout with cheap masks on a CPU. There, PyTorch's own dropout takes up to a quarter of a training step."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = 1 << 16  # Each element uses 16 random bits, so drop_rate is rounded to a multiple of 1 / LEVELS.


class Dropout(nn.Dropout):
    """`nn.Dropout` that uses `keep_mask` on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.p > 0 and is_eager_cpu(x):
            return x * keep_mask(x.shape, self.p, dtype=x.dtype)
        return F.dropout(x, self.p, self.training)


def is_eager_cpu(x: Tensor) -> bool:
    """Return whether operations on a tensor run on a CPU without being compiled.

    GPUs and compiled code draw random numbers in parallel. There, `keep_mask` is no faster than PyTorch's dropout.
    """
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def keep_mask(shape: tuple[int, ...], drop_rate: float, *, dtype: torch.dtype) -> Tensor:
    """Return a random mask to multiply with: 0 with probability drop_rate, elsewhere the factor that preserves the mean.

    One 64-bit number of the CPU's generator serves four elements.
    """
    size = math.prod(shape)
    bits = torch.empty(-(-size // 4), dtype=torch.int64).random_(-(2**63), None)
    dropped = min(round(drop_rate * LEVELS), LEVELS - 1)
    kept = bits.view(torch.int16)[:size].view(shape) >= dropped - LEVELS // 2
    return kept.to(dtype).mul_(LEVELS / (LEVELS - dropped))
