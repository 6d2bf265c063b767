"""How fast this machine multiplies matrices, measured in a moment, since the processor's feature flags do not tell."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache

import torch
from torch.nn import functional as F

BF16_GAIN = 1.3  # how much faster bf16 products must be to pay for the casts around them


@lru_cache(maxsize=1)
def cpu_bf16_share() -> float:
    """Time of a bf16 product on this CPU, as a share of the time in fp32: a linear layer of GPT-2 small, of 512 tokens."""

    def seconds(dtype: torch.dtype) -> float:
        x, weight = torch.randn(512, 768).to(dtype), torch.randn(4 * 768, 768).to(dtype)
        return best_seconds(lambda: F.linear(x, weight))

    with torch.random.fork_rng(devices=[]):
        return seconds(torch.bfloat16) / seconds(torch.float32)


def cpu_bf16_pays() -> bool:
    """Whether matrix products of many rows are clearly faster in bf16 on this CPU."""
    return cpu_bf16_share() * BF16_GAIN <= 1


def best_seconds(compute: Callable[[], object], *, repeats: int = 4) -> float:
    """The shortest of some runs, after one to warm up."""
    compute()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        compute()
        times.append(time.perf_counter() - start)
    return min(times)
