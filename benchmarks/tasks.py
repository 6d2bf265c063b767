"""Measure the scoring of questions with four choices in fp32. Their sizes are the same as in HellaSwag."""

from __future__ import annotations

import random
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import Measurement, device, peak_bytes, repeat
from benchmarks.shapes import gpt2_124m
from benchmarks.training import transformers_config
from gpt_pretrain.evaluation.scoring import Scorer
from gpt_pretrain.evaluation.tasks.task_items import Task, TaskItem
from gpt_pretrain.evaluation.tasks.task_scoring import encode_pair, score_task
from gpt_pretrain.model.gpt2 import GPTModel
from gpt_pretrain.model.kernels.loss import token_losses
from gpt_pretrain.system.devices import keep_freed_memory
from gpt_pretrain.tokenizers.build import build_tokenizer

GPT2 = gpt2_124m(drop_rate=0.0, context_length=1024)
N_ITEMS = 2000 if torch.cuda.is_available() else 24
N_WARMUP = 2  # Items before the measured ones.
ROWS = 64 if torch.cuda.is_available() else 8  # Sequences of a batch, for programs that set the batch in sequences.
WORDS = (
    "the",
    "a",
    "of",
    "to",
    "and",
    "in",
    "man",
    "woman",
    "is",
    "then",
    "water",
    "board",
    "they",
    "it",
    "takes",
    "shows",
    "how",
)


@cache
def make_task(n_items: int = N_ITEMS) -> Task:
    """Return questions of random words. Contexts and choices have as many words as in HellaSwag."""
    chosen = random.Random(1)

    def words(least: int, most: int) -> str:
        return " ".join(chosen.choice(WORDS) for _ in range(chosen.randint(least, most)))

    items = []
    for line in range(1, n_items + 1):
        context, choices = words(15, 100), [words(5, 35) for _ in range(4)]
        sizes = tuple(map(len, choices))
        items.append(TaskItem((context,) * 4, tuple(f" {one}" for one in choices), 0, sizes, line))
    return Task("made", tuple(items))


def ours() -> Measurement:
    """Measure `score_task`, from texts to accuracies."""
    scorer, tokenizer = _scorer(), build_tokenizer("gpt2")
    score_task(scorer, make_task(N_WARMUP), tokenizer)
    seconds = repeat(lambda: score_task(scorer, make_task(), tokenizer), warmup=0, times=1)
    return Measurement(seconds, peak_bytes(), {"precision": "32-true"})


def forward_passes() -> Measurement:
    """Measure only forward passes over batches of the same shapes, with the losses of the same number of tokens."""
    scorer = _scorer()
    model, compute = scorer.model, scorer.model.hidden_states
    shapes: list[tuple[int, int]] = []

    def record(token_ids: Tensor, **arguments: Any) -> Tensor:
        shapes.append((token_ids.shape[0], token_ids.shape[1]))
        return compute(token_ids, **arguments)

    model.hidden_states = record  # type: ignore[method-assign]
    score_task(scorer, make_task(), build_tokenizer("gpt2"))
    n_scored = sum(len(after) for _, after in _pairs()) // len(shapes)
    batches = [torch.randint(0, GPT2.vocab_size, shape, device=device()) for shape in shapes]
    targets = torch.randint(0, GPT2.vocab_size, (n_scored,), device=device())

    def run() -> None:
        for token_ids in batches:
            hidden = compute(token_ids).flatten(0, 1)[:n_scored]
            token_losses(hidden, model.head_weight, targets[: len(hidden)], cap=None)

    with torch.inference_mode():
        return Measurement(repeat(run, warmup=0, times=1), peak_bytes(), {"precision": "32-true"})


def transformers() -> Measurement:
    """Measure GPT2LMHeadModel in batches of sequences sorted by length. The logits of the choices are kept."""
    from transformers import GPT2LMHeadModel

    model: Any = GPT2LMHeadModel(transformers_config(GPT2))
    model.to(device()).eval()

    def run(n_items: int = N_ITEMS) -> None:
        pairs = sorted(_pairs(n_items), key=lambda pair: -len(pair[0]) - len(pair[1]))
        for begin in range(0, len(pairs), ROWS):
            batch = pairs[begin : begin + ROWS]
            length = len(batch[0][0]) + len(batch[0][1])
            token_ids = torch.tensor([[*a, *b, *[0] * (length - len(a) - len(b))] for a, b in batch], device=device())
            losses = -model(token_ids[:, :-1]).logits.log_softmax(-1).gather(2, token_ids[:, 1:, None])[..., 0]
            [losses[row, len(a) - 1 : len(a) + len(b) - 1].sum().item() for row, (a, b) in enumerate(batch)]

    with torch.inference_mode():
        run(N_WARMUP)
        return Measurement(repeat(run, warmup=0, times=1), peak_bytes(), {"precision": "32-true"})


def harness() -> Measurement:
    """Measure the LM Evaluation Harness with its model for transformers."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer, GPT2LMHeadModel

    from gpt_pretrain.checkpoints.export.tokenizer_files import write_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(build_tokenizer("gpt2"), Path(folder), context_length=GPT2.context_length)
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = GPT2LMHeadModel(transformers_config(GPT2))
    lm = HFLM(pretrained=model.to(device()).eval(), tokenizer=tokenizer, batch_size=ROWS)
    texts = [pair for item in make_task().items for pair in zip(item.contexts, item.continuations, strict=True)]
    asked = [Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=0) for pair in texts]
    lm.loglikelihood(asked[: 4 * N_WARMUP], disable_tqdm=True)
    seconds = repeat(lambda: lm.loglikelihood(asked, disable_tqdm=True), warmup=0, times=1)
    return Measurement(seconds, peak_bytes(), {"precision": "32-true"})


def _scorer() -> Scorer:
    keep_freed_memory()
    return Scorer(GPTModel(GPT2.config()).to(device()).eval())


def _pairs(n_items: int = N_ITEMS) -> list[tuple[list[int], list[int]]]:
    tokenizer = build_tokenizer("gpt2")
    items = make_task(n_items).items
    return [encode_pair(*pair, tokenizer) for item in items for pair in zip(item.contexts, item.continuations, strict=True)]
