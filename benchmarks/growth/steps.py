"""Measure a training step in this process, with one thread."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from benchmarks import training
from benchmarks.shapes import Training
from gpt_pretrain.system.devices import keep_freed_memory
from gpt_pretrain.system.resources import peak_memory, reset_peak_memory, resident_memory

Costs = dict[str, float]

SMALL = Training(
    "tiny",
    "gpt2",
    vocab_size=4096,
    emb_dim=256,
    n_heads=4,
    n_layers=4,
    context_length=256,
    batch_size=4,
    drop_rate=0.0,
    steps=3,
    warmup=1,
)


def by_batch(size: int) -> Costs:
    """Measure steps of this many windows."""
    return _step(replace(SMALL, batch_size=size))


def by_context(size: int) -> Costs:
    """Measure steps of one window of this many tokens."""
    return _step(replace(SMALL, batch_size=1, context_length=size))


def by_context_with_dropout(size: int) -> Costs:
    """Measure steps of one window of this many tokens, with dropout of the attention's weights."""
    return _step(replace(SMALL, batch_size=1, context_length=size, drop_rate=0.1))


def by_layers(size: int) -> Costs:
    """Measure steps of a model with this many layers."""
    return _step(replace(SMALL, n_layers=size))


def by_vocabulary(size: int) -> Costs:
    """Measure steps of a model with this many tokens in its vocabulary."""
    return _step(replace(SMALL, vocab_size=size))


def _step(shape: Training) -> Costs:
    """Return the least processor seconds of a step, and the megabytes of the model and its steps."""
    torch.set_num_threads(1)
    keep_freed_memory()
    device = torch.device("cpu")
    before = resident_memory() or 0
    reset_peak_memory(device)
    step, seconds = training.bare_step(shape, precision="32-true"), []
    for _ in range(shape.warmup + shape.steps):
        batch = training.make_batch(shape)
        start = time.process_time()
        step(*batch)
        seconds.append(time.process_time() - start)
    added = (peak_memory(device) or before) - before
    return {"step, s": min(seconds[shape.warmup :]), "memory, MB": added / 1e6}
