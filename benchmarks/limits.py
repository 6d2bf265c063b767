"""Measure the upper bounds of this machine: matrix products at a model's shapes, and memory bandwidth."""

from __future__ import annotations

import torch

from benchmarks.measure import Measurement, device, repeat
from benchmarks.shapes import Training
from gpt_pretrain.system.devices import keep_freed_memory


def products(shape: Training, *, dtype: torch.dtype) -> Measurement:
    """Measure only the matrix products of a training step, forward and backward, without attention's products."""
    keep_freed_memory()
    D, N = shape.emb_dim, shape.tokens
    layers = [(D, 3 * D)] * shape.n_layers + [(D, D)] * shape.n_layers
    layers += [(D, 4 * D)] * shape.n_layers + [(4 * D, D)] * shape.n_layers + [(D, shape.vocab_size)]
    x = {size: torch.randn(N, size, device=device(), dtype=dtype) for size in {size for layer in layers for size in layer}}
    weights = [torch.randn(out, inner, device=device(), dtype=dtype) for inner, out in layers]

    def step() -> None:
        for (inner, out), weight in zip(layers, weights, strict=True):
            torch.mm(x[inner], weight.T)
            torch.mm(x[out], weight)
            torch.mm(x[out].T, x[inner])

    seconds = repeat(step, warmup=1, times=3 if shape.emb_dim > 500 else 50)
    flops = 6.0 * N * sum(inner * out for inner, out in layers)
    median = sorted(seconds)[len(seconds) // 2]
    return Measurement(seconds, None, {"flops_per_second": flops / median, "precision": str(dtype).removeprefix("torch.")})


def memory_reads(*, n_bytes: int = 1 << 29) -> Measurement:
    """Measure repeated sums over half a gigabyte. All of their time is spent on reading."""
    keep_freed_memory()
    numbers = torch.randn(n_bytes // 4, device=device())
    seconds = repeat(lambda: numbers.sum(), warmup=2, times=7)
    median = sorted(seconds)[len(seconds) // 2]
    return Measurement(seconds, None, {"bytes_per_second": n_bytes / median})
