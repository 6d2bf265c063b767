"""Measure training steps: this program's command, a bare loop around its model, the book's loop, and transformers."""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import get_total_norm

from benchmarks.measure import ROOT, Measurement, StepClock, device, peak_bytes, run
from benchmarks.shapes import Training

MODEL_SETTINGS = ("emb_dim", "n_heads", "n_layers", "context_length", "drop_rate")


def ours(shape: Training, *, precision: str) -> Measurement:
    """Measure `python train.py` with its default callbacks, logger and data loading, but rare evaluations."""
    with tempfile.TemporaryDirectory() as folder:
        text, result = Path(folder, "text.txt"), Path(folder, "result.json")
        text.write_text(_text(3 * shape.tokens * (shape.steps + shape.warmup)), encoding="utf-8")
        arguments = [
            f"model={shape.model}",
            f"tokenizer={shape.tokenizer}",
            *(f"model.{name}={getattr(shape, name)}" for name in MODEL_SETTINGS),
            "data=text",
            f"data.path={text}",
            f"data.cache_dir={folder}",
            f"data.batch_size={shape.batch_size}",
            f"trainer.max_steps={shape.steps + shape.warmup}",
            f"trainer.precision={precision}",
            "eval_freq=1000000",
            f"hydra.run.dir={folder}/run",
            f"+callbacks.custom.clock={{_target_: benchmarks.clock.Clock, file: {result}, warmup: {shape.warmup}}}",
        ]
        run([sys.executable, str(ROOT / "train.py"), *arguments])
        return Measurement(**json.loads(result.read_text(encoding="utf-8")))


def bare(shape: Training, *, precision: str) -> Measurement:
    """Measure a short PyTorch loop around this program's model, loss and optimizer, without a framework."""
    step = bare_step(shape, precision=precision)
    clock = StepClock(shape.steps + shape.warmup, lambda: make_batch(shape))
    for token_ids, target_ids in clock:
        step(token_ids, target_ids)
    return Measurement(clock.seconds(warmup=shape.warmup), peak_bytes(), {"precision": precision})


def bare_step(shape: Training, *, precision: str) -> Callable[[Tensor, Tensor], None]:
    """Build this program's model and optimizer. Return a function that trains them on token ids and their targets."""
    from gpt_pretrain.evaluation.loss import next_token_loss
    from gpt_pretrain.model.gpt2 import GPTModel
    from gpt_pretrain.system.devices import keep_freed_memory
    from gpt_pretrain.training.acceleration import compile_model
    from gpt_pretrain.training.optimization.optimizer import clip_gradients

    keep_freed_memory()
    model = GPTModel(shape.config()).to(device())
    model.tok_emb.sparse = device().type == "cpu"
    compiled, _ = compile_model(model, "auto", device())
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-4, weight_decay=0.1, fused=True)

    def step(token_ids: Tensor, target_ids: Tensor) -> None:
        with torch.autocast(device().type, torch.bfloat16, enabled=precision == "bf16-mixed"):
            loss = next_token_loss(model, token_ids, target_ids, compiled=compiled)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = get_total_norm([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
        clip_gradients(optimizer, norm, max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def chapter(shape: Training) -> Measurement:
    """Measure `train_model_simple` of the package llms-from-scratch without evaluation and samples."""
    from llms_from_scratch import ch05
    from llms_from_scratch.ch04 import GPTModel

    ch05.evaluate_model = lambda *_: (0.0, 0.0)
    ch05.generate_and_print_sample = lambda *_: None
    model = GPTModel(chapter_config(shape)).to(device())
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-4, weight_decay=0.1)
    clock = StepClock(shape.steps + shape.warmup, lambda: make_batch(shape))
    ch05.train_model_simple(model, clock, clock, optimizer, device(), 1, 10**9, 1, "", None)
    return Measurement(clock.seconds(warmup=shape.warmup), peak_bytes(), {"precision": "32-true"})


def transformers(shape: Training, *, precision: str = "32-true") -> Measurement:
    """Measure GPT2LMHeadModel in a PyTorch loop."""
    from transformers import GPT2LMHeadModel

    model: torch.nn.Module = GPT2LMHeadModel(transformers_config(shape))
    model.to(device()).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-4, weight_decay=0.1)
    clock = StepClock(shape.steps + shape.warmup, lambda: make_batch(shape))
    for token_ids, target_ids in clock:
        optimizer.zero_grad()
        with torch.autocast(device().type, torch.bfloat16, enabled=precision == "bf16-mixed"):
            logits = model(token_ids).logits
        F.cross_entropy(logits.flatten(0, 1).float(), target_ids.flatten()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return Measurement(clock.seconds(warmup=shape.warmup), peak_bytes(), {"precision": precision})


def chapter_config(shape: Training) -> dict[str, Any]:
    """Return the book's configuration for a shape."""
    names = ("vocab_size", "context_length", "emb_dim", "n_heads", "n_layers", "drop_rate")
    return {name: getattr(shape, name) for name in names} | {"qkv_bias": False}


def transformers_config(shape: Training) -> Any:
    """Return the configuration of transformers for a shape."""
    from transformers import GPT2Config

    return GPT2Config(
        vocab_size=shape.vocab_size,
        n_positions=shape.context_length,
        n_embd=shape.emb_dim,
        n_head=shape.n_heads,
        n_layer=shape.n_layers,
        resid_pdrop=shape.drop_rate,
        embd_pdrop=shape.drop_rate,
        attn_pdrop=shape.drop_rate,
        bos_token_id=0,
        eos_token_id=0,
    )


def make_batch(shape: Training) -> tuple[Tensor, Tensor]:
    """Return random token ids, (B, T), and their targets."""
    block = torch.randint(0, shape.vocab_size, (shape.batch_size, shape.context_length + 1)).to(device())
    return block[:, :-1], block[:, 1:]


def _text(n_words: int) -> str:
    words = ["the", "sea", "a", "lamp", "grey", "boat", "of", "night", "and", "harbour", "she", "waited", "rain", "bell", "in"]
    return " ".join(random.Random(1).choices(words, k=max(n_words, 5000)))
