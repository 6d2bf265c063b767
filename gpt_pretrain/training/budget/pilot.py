"""Train a small model on a text for a moment, to measure the text's difficulty."""

from __future__ import annotations

import copy
import math
import time

import numpy as np
import torch

from gpt_pretrain.config.schema import OptimizerSettings, RoleSettings, SchedulerSettings
from gpt_pretrain.data.sampler import shuffled_indices
from gpt_pretrain.evaluation.loss import next_token_loss
from gpt_pretrain.model.build import new_model
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.language_model import LanguageModel
from gpt_pretrain.tokenizers.base import Tokenizer
from gpt_pretrain.training.budget.law import Training
from gpt_pretrain.training.optimization.optimizer import build_optimizer, clip_gradients, gradient_norm
from gpt_pretrain.training.optimization.schedule import lr_at

WIDTH, LAYERS, HEADS, CONTEXT, BATCH = 64, 2, 2, 128, 4
TRAINED_BYTES = 500_000
VOCAB_SIZE = 1024
MOST_PASSES = 4
MEASURED_STEPS, FEWEST_STEPS = 3, 16  # steps to time, after the first one, which is slow; steps of the shortest pilot
SEED = 1
OPTIMIZER = OptimizerSettings(
    name="muon",
    lr=0.02,
    weight_decay=0.0,
    betas=[0.8, 0.95],
    eps=1e-10,
    decay="roles",
    momentum=0.9,
    embedding=RoleSettings(lr=0.3),
    head=RoleSettings(lr=0.01),
    vectors=RoleSettings(lr=4e-3),
)  # always the settings of optimizer=muon_modern, since the law compares pilots
SCHEDULE = SchedulerSettings(name="warmup_stable_decay", warmup_steps=0, decay_steps=0, decay_fraction=0.75, min_lr=0.0)


def run_pilot(
    tokenizer: Tokenizer, train: str, held_out: str, *, unique_bytes: int, seconds: float = math.inf
) -> tuple[Training, float]:
    """Train on windows of a text, and return the training and the bits per byte of held-out text after it.

    Args:
        unique_bytes: Bytes of the whole training set. `train` may be a part of it.
        seconds: Approximate time limit. A slow machine gets a shorter pilot.
    """
    tokens, asked = (np.array(tokenizer.encode_ordinary(text)) for text in (train, held_out))
    length = len(train.encode()) / len(tokens)
    trained_bytes = float(min(TRAINED_BYTES, MOST_PASSES * unique_bytes))
    steps = max(1, round(trained_bytes / length / (BATCH * CONTEXT)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = new_model(
            GPTConfig(tokenizer.vocab_size, CONTEXT, WIDTH, HEADS, LAYERS, tie_embeddings=False, init="modern", kind="modern")
        )
        steps = _train(model, _windows(tokens), steps=steps, seconds=seconds)
        matrices = model.num_parameters() - 2 * tokenizer.vocab_size * WIDTH
        with torch.no_grad():
            held = torch.from_numpy(_windows(asked))
            nats = next_token_loss(model.eval(), held[:, :-1], held[:, 1:]).item()
    bits = nats / math.log(2) * len(asked) / max(len(held_out.encode()), 1)
    trained_bytes = min(trained_bytes, steps * BATCH * CONTEXT * length)
    return Training(matrices, tokenizer.vocab_size, unique_bytes, trained_bytes, length), bits


def _train(model: LanguageModel, windows: np.ndarray, *, steps: int, seconds: float) -> int:
    """Train on windows, (N, T + 1), for this number of steps, or for fewer where a limit of time allows no more.

    Returns:
        The number of steps.
    """
    optimizer = build_optimizer(model, copy.deepcopy(OPTIMIZER), shared=False)  # the other ranks wait
    rates = [group["lr"] for group in optimizer.param_groups]
    start, step = time.monotonic(), 0
    while step < steps:
        if step == 1:
            start = time.monotonic()
        if step == 1 + MEASURED_STEPS:  # The rate is still constant, so a shorter schedule causes no jump.
            affordable = seconds * MEASURED_STEPS / max(time.monotonic() - start, 1e-9)
            steps = int(min(steps, max(affordable, FEWEST_STEPS)))
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = lr_at(step, lr=rate, settings=SCHEDULE, total_steps=steps)
        batch = torch.from_numpy(windows[_chosen(step, len(windows))])
        next_token_loss(model, batch[:, :-1], batch[:, 1:]).backward()  # type: ignore[no-untyped-call]
        clip_gradients(optimizer, gradient_norm(model.parameters()), max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
    return steps


def _windows(tokens: np.ndarray) -> np.ndarray:
    """Return the windows of a text, each with the target of its last token, int64, (N, T + 1). A short text is repeated."""
    tokens = np.resize(tokens, max(len(tokens), CONTEXT + 1)).astype(np.int64)
    starts = np.arange(0, len(tokens) - CONTEXT, CONTEXT)
    windows: np.ndarray = tokens[starts[:, None] + np.arange(CONTEXT + 1)]
    return windows


def _chosen(step: int, n_windows: int) -> np.ndarray:
    """Return the windows of a step. Each pass has its own shuffled order."""
    batch = min(BATCH, n_windows)
    per_epoch = n_windows // batch
    positions = step % per_epoch * batch + np.arange(batch)
    return shuffled_indices(positions, n_windows, seed=SEED, epoch=step // per_epoch)
