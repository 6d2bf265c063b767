"""Measure greedy decoding, and the first token after a long prompt."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import Measurement, device, now, peak_bytes, repeat
from benchmarks.shapes import Decoding, gpt2_124m
from benchmarks.training import chapter_config, transformers_config
from gpt_pretrain.generation.config import SamplerConfig
from gpt_pretrain.generation.decoding import PRECISIONS, DecodingModel, pick_decoding_precision
from gpt_pretrain.generation.sampling import generate, generate_stream
from gpt_pretrain.model.gpt2 import GPTModel
from gpt_pretrain.system.devices import keep_freed_memory

GPT2 = gpt2_124m(drop_rate=0.0, context_length=1024)


def ours(shape: Decoding, *, precision: str = "auto") -> Measurement:
    """Measure this program's `generate`, set up as in `generate.py`. The preparation of the model is timed separately."""
    keep_freed_memory()
    model = GPTModel(GPT2.config()).to(device()).eval()
    picked, _ = pick_decoding_precision(precision, model)
    start = time.perf_counter()
    decoder = DecodingModel(model, dtype=PRECISIONS[picked], batch_size=shape.batch_size)
    prepare_seconds = time.perf_counter() - start
    notes: dict[str, float | str] = {"precision": picked, "ready_seconds": round(prepare_seconds, 3)}
    return _timed(shape, lambda prompt, n: generate(decoder, prompt, n), notes)


def transformers(shape: Decoding, *, precision: str = "32-true") -> Measurement:
    """Measure `GPT2LMHeadModel.generate` with its key-value cache."""
    from transformers import GPT2LMHeadModel

    model: Any = GPT2LMHeadModel(transformers_config(GPT2))
    model.to(device=device(), dtype=PRECISIONS[precision]).eval()

    def continue_text(prompt: Tensor, n_tokens: int) -> object:
        return model.generate(prompt, max_new_tokens=n_tokens, min_new_tokens=n_tokens, do_sample=False, pad_token_id=0)

    return _timed(shape, continue_text, {"precision": precision})


def chapter(shape: Decoding, *, n_tokens: int = 200) -> Measurement:
    """Measure `generate` of llms-from-scratch. It reads the whole text for each token.

    Args:
        n_tokens: Tokens to generate. A small number favors this code, because each token takes longer than the one before.
    """
    from llms_from_scratch import ch05
    from llms_from_scratch.ch04 import GPTModel as ChapterModel

    model = ChapterModel(chapter_config(GPT2)).to(device()).eval()
    few = Decoding(shape.batch_size, shape.n_prompt, n_tokens)
    notes: dict[str, float | str] = {"precision": "32-true", "tokens": n_tokens}
    return _timed(few, lambda prompt, n: ch05.generate(model, prompt, n, GPT2.context_length), notes, warmup=2)


def beyond_context(*, window_step: float | None, n_tokens: int) -> Measurement:
    """Measure this program's seconds per token after a prompt that fills the context."""
    keep_freed_memory()
    model = GPTModel(GPT2.config()).to(device()).eval()
    picked, _ = pick_decoding_precision("auto", model)
    decoder, prompt = DecodingModel(model, dtype=PRECISIONS[picked]), _prompt(Decoding(1, GPT2.context_length))
    sampler = SamplerConfig(1 + n_tokens, window_step=window_step)
    steps = generate_stream(decoder, prompt, sampler)
    next(steps)
    start = now()
    for _ in steps:
        pass
    return Measurement([(now() - start) / n_tokens], peak_bytes(), {"precision": picked})


def forward_pass(shape: Decoding) -> Measurement:
    """Measure one forward pass of this program's model over the prompt, as in training."""
    keep_freed_memory()
    model, prompt = GPTModel(GPT2.config()).to(device()).eval(), _prompt(shape)
    with torch.inference_mode():
        return Measurement(repeat(lambda: model(prompt), warmup=2, times=5), peak_bytes(), {"precision": "32-true"})


def first_token(shape: Decoding, *, precision: str = "32-true") -> Measurement:
    """Measure a single token of this program's `generate`."""
    keep_freed_memory()
    model = GPTModel(GPT2.config()).to(device()).eval()
    picked, _ = pick_decoding_precision(precision, model)
    decoder, prompt = DecodingModel(model, dtype=PRECISIONS[picked]), _prompt(shape)
    return Measurement(repeat(lambda: generate(decoder, prompt, 1), warmup=2, times=5), peak_bytes(), {"precision": picked})


def _timed(
    shape: Decoding, continue_text: Callable[[Tensor, int], object], notes: dict[str, float | str], *, warmup: int = 40
) -> Measurement:
    """Measure the seconds per token of one call for all tokens, including the prompt."""
    prompt = _prompt(shape)
    continue_text(prompt, warmup)
    start = now()
    continue_text(prompt, shape.n_tokens)
    return Measurement([(now() - start) / shape.n_tokens], peak_bytes(), notes)


def _prompt(shape: Decoding) -> Tensor:
    return torch.randint(0, GPT2.vocab_size, (shape.batch_size, shape.n_prompt), generator=torch.Generator().manual_seed(1)).to(
        device()
    )
