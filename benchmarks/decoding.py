"""Tokens generated one after another, greedily, and the first token of a long prompt."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import Measurement, device, now, peak_bytes, repeat
from benchmarks.shapes import Decoding, gpt2_124m
from benchmarks.training import chapter_config, transformers_config
from gpt_pretrain.generation.decoding import PRECISIONS, DecodingModel, pick_decoding_precision
from gpt_pretrain.generation.sampling import generate
from gpt_pretrain.model.gpt2 import GPTModel
from gpt_pretrain.system.devices import keep_freed_memory

GPT2 = gpt2_124m(drop_rate=0.0, context_length=1024)


def ours(shape: Decoding, *, precision: str = "auto") -> Measurement:
    """This program's `generate`, set up as `generate.py` does; making the model ready is timed apart."""
    keep_freed_memory()
    model = GPTModel(GPT2.config()).to(device()).eval()
    chosen, _ = pick_decoding_precision(precision, model)
    start = time.perf_counter()
    ready = DecodingModel(model, dtype=PRECISIONS[chosen], batch_size=shape.batch_size)
    ready_seconds = time.perf_counter() - start
    notes: dict[str, float | str] = {"precision": chosen, "ready_seconds": round(ready_seconds, 3)}
    return _timed(shape, lambda prompt, n: generate(ready, prompt, n), notes)


def transformers(shape: Decoding, *, precision: str = "32-true") -> Measurement:
    """`GPT2LMHeadModel.generate`, with its key-value cache."""
    from transformers import GPT2LMHeadModel

    model: Any = GPT2LMHeadModel(transformers_config(GPT2))
    model.to(device=device(), dtype=PRECISIONS[precision]).eval()

    def continued(prompt: Tensor, n_tokens: int) -> object:
        return model.generate(prompt, max_new_tokens=n_tokens, min_new_tokens=n_tokens, do_sample=False, pad_token_id=0)

    return _timed(shape, continued, {"precision": precision})


def chapter(shape: Decoding, *, n_tokens: int = 200) -> Measurement:
    """`generate` of llms-from-scratch, which reads the whole text for each token.

    Args:
        n_tokens: tokens to measure; fewer flatter it, since each costs more than the one before.
    """
    from llms_from_scratch import ch05
    from llms_from_scratch.ch04 import GPTModel as ChapterModel

    model = ChapterModel(chapter_config(GPT2)).to(device()).eval()
    few = Decoding(shape.batch_size, shape.n_prompt, n_tokens)
    notes: dict[str, float | str] = {"precision": "32-true", "tokens": n_tokens}
    return _timed(few, lambda prompt, n: ch05.generate(model, prompt, n, GPT2.context_length), notes, warmup=2)


def forward_pass(shape: Decoding) -> Measurement:
    """One forward pass of this program's model over the prompt, as training makes it."""
    keep_freed_memory()
    model, prompt = GPTModel(GPT2.config()).to(device()).eval(), _prompt(shape)
    with torch.inference_mode():
        return Measurement(repeat(lambda: model(prompt), warmup=2, times=5), peak_bytes(), {"precision": "32-true"})


def first_token(shape: Decoding, *, precision: str = "32-true") -> Measurement:
    """A single token of this program's `generate`."""
    keep_freed_memory()
    model = GPTModel(GPT2.config()).to(device()).eval()
    chosen, _ = pick_decoding_precision(precision, model)
    ready, prompt = DecodingModel(model, dtype=PRECISIONS[chosen]), _prompt(shape)
    return Measurement(repeat(lambda: generate(ready, prompt, 1), warmup=2, times=5), peak_bytes(), {"precision": chosen})


def _timed(
    shape: Decoding, continued: Callable[[Tensor, int], object], notes: dict[str, float | str], *, warmup: int = 40
) -> Measurement:
    """Seconds a token of one call for all of them, the prompt included."""
    prompt = _prompt(shape)
    continued(prompt, warmup)
    start = now()
    continued(prompt, shape.n_tokens)
    return Measurement([(now() - start) / shape.n_tokens], peak_bytes(), notes)


def _prompt(shape: Decoding) -> Tensor:
    return torch.randint(0, GPT2.vocab_size, (shape.batch_size, shape.n_prompt), generator=torch.Generator().manual_seed(1)).to(
        device()
    )
