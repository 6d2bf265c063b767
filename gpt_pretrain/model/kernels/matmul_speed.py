"""Measurements of this machine's matrix multiplication speed, which the processor's feature flags do not reveal."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch.nn import functional as F

MIN_BF16_SPEEDUP = 1.3  # A smaller speedup of bf16 products does not pay for the casts around them.


@lru_cache(maxsize=1)
def cpu_bf16_time_ratio() -> float:
    """Return the time of a bf16 matrix product on this CPU relative to fp32, for a layer of GPT-2 small and 512 tokens."""
    with torch.random.fork_rng(devices=[]):
        x, weight = torch.randn(512, 768), torch.randn(4 * 768, 768)
    x_bf16, weight_bf16 = x.bfloat16(), weight.bfloat16()
    bf16, fp32 = best_seconds([lambda: F.linear(x_bf16, weight_bf16), lambda: F.linear(x, weight)])
    return bf16 / fp32


def cpu_bf16_is_faster() -> bool:
    """Return whether bf16 makes matrix products of many rows clearly faster on this CPU."""
    return cpu_bf16_time_ratio() * MIN_BF16_SPEEDUP <= 1


def best_seconds(computations: Sequence[Callable[[], object]], *, repeats: int = 8) -> list[float]:
    """Return the shortest time of each computation in seconds, measured in alternation after one warm-up run."""
    times: list[list[float]] = [[] for _ in computations]
    for compute in computations:
        compute()
    for _ in range(repeats):
        for compute, seconds in zip(computations, times, strict=True):
            start = time.perf_counter()
            compute()
            seconds.append(time.perf_counter() - start)
    return [min(seconds) for seconds in times]
