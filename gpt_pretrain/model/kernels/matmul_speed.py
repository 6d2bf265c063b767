"""Measure this machine's matrix multiplication speed. The processor's feature flags do not show it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F

from gpt_pretrain.system.measurements import measured_once

MIN_BF16_SPEEDUP = 1.3  # A smaller speedup of bf16 products does not pay for the casts around them.


def cpu_bf16_speedup() -> float:
    """Return this CPU's speedup of bf16 over fp32 for a layer of GPT-2 small and 512 tokens."""

    def measure() -> float:
        with torch.random.fork_rng(devices=[]):
            x, weight = torch.randn(512, 768), torch.randn(4 * 768, 768)
        x_bf16, weight_bf16 = x.bfloat16(), weight.bfloat16()
        return speedup(lambda: F.linear(x_bf16, weight_bf16), lambda: F.linear(x, weight))

    return measured_once("layer of 512 tokens, bf16 over fp32", measure)


def speedup(fast: Callable[[], object], slow: Callable[[], object]) -> float:
    """Return the speedup of the first computation over the second, with two decimals, as in messages."""
    fast_seconds, slow_seconds = best_seconds([fast, slow], repeats=25)
    return round(slow_seconds / max(fast_seconds, 1e-9), 2)


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
