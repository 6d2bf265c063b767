"""Measure a model's loss on a text in each precision of decoding."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.measure import ROOT, Measurement
from gpt_pretrain.generation.decoding import PRECISIONS, DecodingModel
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.gpt2 import GPTModel

CONFIG = GPTConfig(vocab_size=256, context_length=128, emb_dim=192, n_heads=6, n_layers=4, qkv_bias=True)
STEPS, BATCH_SIZE, MEASURED_WINDOWS = 400, 12, 200


def loss(precision: str) -> Measurement:
    """Train a small model on this project's documentation, and measure its loss on the end of it, in nats per byte.

    Args:
        precision: One of `PRECISIONS`.
    """
    text = b"".join(path.read_bytes() for path in sorted((ROOT / "docs").glob("*.md")))
    ids = torch.tensor(list(text), dtype=torch.int64)
    n_measured = MEASURED_WINDOWS * CONFIG.context_length + 1
    decoder = DecodingModel(_train(ids[:-n_measured]), dtype=PRECISIONS[precision])
    windows = ids[-n_measured:].unfold(0, CONFIG.context_length + 1, CONFIG.context_length)
    start = time.perf_counter()
    with torch.inference_mode():
        losses = [F.cross_entropy(torch.cat([*decoder.prompt_logits(one[None, :-1])]), one[1:]) for one in windows]
    seconds = (time.perf_counter() - start) / (n_measured - 1)
    return Measurement([seconds], None, {"precision": precision, "result": f"loss {torch.stack(losses).mean():.4f}"})


def _train(ids: torch.Tensor) -> GPTModel:
    torch.manual_seed(0)
    model: Any = GPTModel(CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(STEPS):
        starts = torch.randint(0, len(ids) - CONFIG.context_length - 1, (BATCH_SIZE, 1))
        batch = ids[starts + torch.arange(CONFIG.context_length + 1)]
        F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    trained: GPTModel = model.eval()
    return trained
