"""How fast this machine multiplies matrices, measured in a moment, since the processor's feature flags do not tell."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch.nn import functional as F

BF16_GAIN = 1.3  # how much faster bf16 products must be to pay for the casts around them


@lru_cache(maxsize=1)
def cpu_bf16_share() -> float:
    """Time of a bf16 product on this CPU, as a share of the time in fp32: a linear layer of GPT-2 small, of 512 tokens."""
    with torch.random.fork_rng(devices=[]):
        x, weight = torch.randn(512, 768), torch.randn(4 * 768, 768)
    small_x, small_weight = x.bfloat16(), weight.bfloat16()
    bf16, fp32 = best_seconds([lambda: F.linear(small_x, small_weight), lambda: F.linear(x, weight)])
    return bf16 / fp32


def cpu_bf16_pays() -> bool:
    """Whether matrix products of many rows are clearly faster in bf16 on this CPU."""
    return cpu_bf16_share() * BF16_GAIN <= 1


def best_seconds(computations: Sequence[Callable[[], object]], *, repeats: int = 8) -> list[float]:
    """The shortest of some runs of each, by turns, after one to warm up."""
    times: list[list[float]] = [[] for _ in computations]
    for compute in computations:
        compute()
    for _ in range(repeats):
        for compute, seconds in zip(computations, times, strict=True):
            start = time.perf_counter()
            compute()
            seconds.append(time.perf_counter() - start)
    return [min(seconds) for seconds in times]
