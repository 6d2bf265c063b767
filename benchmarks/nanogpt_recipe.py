"""nanoGPT's smallest example, restated: its GPT-2, its random windows, and its recipes for characters on a CPU and on a GPU.

The example is config/train_shakespeare_char.py. For a CPU, it has the options in nanoGPT's README. This file is written from
those settings, also in plain PyTorch: fp32, no compilation, the optimizer's default implementation for CPUs.

Shapes: B batch, T time, D width, V vocabulary.
"""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CONTEXT, BATCH = 64, 12  # tokens in a window, windows in a step
LR, MIN_LR, WARMUP = 1e-3, 1e-4, 100
EVAL_EVERY, EVAL_BATCHES = 250, 20
CLIP, DECAY, BETAS = 1.0, 0.1, (0.9, 0.99)
VALIDATED = 64  # windows in one batch of the final validation


@dataclass(frozen=True)
class Recipe:
    """The settings in which the two variants differ.

    Args:
        context: Tokens in a window.
        batch: Windows in a step.
    """

    layers: int
    heads: int
    width: int
    context: int
    batch: int
    dropout: float


CPU, GPU = Recipe(4, 4, 128, CONTEXT, BATCH, 0.0), Recipe(6, 6, 384, 256, 64, 0.2)
RECIPES = {"cpu": CPU, "gpu": GPU}
FIRST_STEPS = 3  # measured, after an unmeasured one, to find the number of steps in a time


@dataclass
class Learned:
    """The losses that a run has reached.

    Args:
        steps: Optimizer steps.
        tokens: Tokens trained on.
        wall_seconds: Seconds of the training loop, including its evaluations.
        cpu_seconds: Seconds of all cores in the training loop.
        loss: Loss over the whole validation text after the run, in nats per token.
    """

    steps: int
    tokens: int
    wall_seconds: float
    cpu_seconds: float
    loss: float


class Attention(nn.Module):
    """Causal self-attention without biases."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.qkv = nn.Linear(recipe.width, 3 * recipe.width, bias=False)
        self.out = nn.Linear(recipe.width, recipe.width, bias=False)
        self.dropout = nn.Dropout(recipe.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Apply attention: (B, T, D) -> (B, T, D)."""
        B, T, _ = x.shape
        q, k, v = (part.view(B, T, self.recipe.heads, -1).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=2))
        dropped = self.recipe.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropped)
        out: Tensor = self.dropout(self.out(mixed.transpose(1, 2).reshape(B, T, self.recipe.width)))
        return out


class Block(nn.Module):
    """Attention and a feed-forward network, each with a norm before it and a residual connection around it."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        width = recipe.width
        self.norm1, self.norm2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.attention = Attention(recipe)
        self.wide = nn.Linear(width, 4 * width, bias=False)
        self.out = nn.Linear(4 * width, width, bias=False)
        self.dropout = nn.Dropout(recipe.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block: (B, T, D) -> (B, T, D)."""
        x = x + self.attention(self.norm1(x))
        after: Tensor = x + self.dropout(self.out(F.gelu(self.wide(self.norm2(x)))))
        return after


class NanoGPT(nn.Module):
    """GPT-2 without biases, with a tied head.

    Args:
        vocab_size: Different characters.
    """

    def __init__(self, vocab_size: int, recipe: Recipe = CPU) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab_size, recipe.width), nn.Embedding(recipe.context, recipe.width)
        self.blocks = nn.Sequential(*(Block(recipe) for _ in range(recipe.layers)))
        self.dropout = nn.Dropout(recipe.dropout)
        self.norm = nn.LayerNorm(recipe.width, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                shrink = math.sqrt(2 * recipe.layers) if name.endswith("out.weight") else 1.0
                nn.init.normal_(parameter, std=0.02 / shrink)

    def forward(self, token_ids: Tensor) -> Tensor:
        """Return the logits: (B, T) -> (B, T, V)."""
        x = self.dropout(self.tokens(token_ids) + self.positions(torch.arange(token_ids.shape[1])))
        return F.linear(self.norm(self.blocks(x)), self.tokens.weight)


def lr_of(step: int, total_steps: int) -> float:
    """Return the learning rate of a step: a linear warm-up, then a cosine down to a tenth."""
    if step < WARMUP:
        return LR * (step + 1) / (WARMUP + 1)
    done = (step - WARMUP) / max(1, total_steps - WARMUP)
    return MIN_LR + 0.5 * (1 + math.cos(math.pi * min(1.0, done))) * (LR - MIN_LR)


def random_batch(ids: Tensor, recipe: Recipe = CPU) -> tuple[Tensor, Tensor]:
    """Return windows at random positions of a text, and the next token of each of their tokens, (B, T)."""
    starts = torch.randint(len(ids) - recipe.context, (recipe.batch,))
    windows = torch.stack([ids[start : start + recipe.context + 1] for start in starts.tolist()])
    return windows[:, :-1], windows[:, 1:]


def loss_of(model: nn.Module, token_ids: Tensor, target_ids: Tensor) -> Tensor:
    """Return the mean loss of a batch in nats per token."""
    return F.cross_entropy(model(token_ids).flatten(0, 1), target_ids.flatten())


@torch.no_grad()
def validation_loss(model: nn.Module, ids: Tensor, recipe: Recipe = CPU) -> float:
    """Return the loss over all whole windows of a text, side by side, in nats per token."""
    context = recipe.context
    count = (len(ids) - 1) // context
    token_ids, target_ids = ids[: count * context].view(count, context), ids[1 : count * context + 1].view(count, context)
    model.eval()
    batches = zip(torch.split(token_ids, VALIDATED), torch.split(target_ids, VALIDATED), strict=True)
    return sum(float(loss_of(model, x, y)) * len(x) for x, y in batches) / count


def train(train_ids: Tensor, val_ids: Tensor, *, vocab_size: int, seed: int, steps: int) -> Learned:
    """Train by nanoGPT's recipe for a CPU, and measure the loop and its result."""
    torch.manual_seed(seed)
    model = NanoGPT(vocab_size)
    optimizer = _optimizer(model)
    wall, cpu = time.perf_counter(), time.process_time()
    for step in range(steps):
        if step % EVAL_EVERY == 0:
            _estimate(model, train_ids, val_ids)
        _step(model, optimizer, train_ids, lr=lr_of(step, steps), recipe=CPU)
    _estimate(model, train_ids, val_ids)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Learned(steps, steps * BATCH * CONTEXT, wall, cpu, validation_loss(model, val_ids))


def train_for(seconds: float, train_ids: Tensor, val_ids: Tensor, *, vocab_size: int, seed: int, recipe: Recipe) -> Learned:
    """Train by a recipe for a time, without evaluations before the end. The schedule is cut to the steps that fit.

    The first step is always done, even if it takes longer.
    """
    torch.manual_seed(seed)
    model, done, start, cpu = NanoGPT(vocab_size, recipe), 0, time.perf_counter(), time.process_time()
    optimizer, measured, steps = _optimizer(model), start, 10**9
    while done < steps and (done == 0 or time.perf_counter() - start < seconds):
        _step(model, optimizer, train_ids, lr=lr_of(done, steps), recipe=recipe)
        done += 1
        if done == 1:
            measured = time.perf_counter()
        if done == 1 + FIRST_STEPS:
            now = time.perf_counter()
            steps = done + max(0, int((seconds - (now - start)) / max((now - measured) / FIRST_STEPS, 1e-9)))
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    return Learned(done, done * recipe.batch * recipe.context, wall, cpu, validation_loss(model, val_ids, recipe))


def _optimizer(model: NanoGPT) -> torch.optim.AdamW:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=LR, betas=BETAS)


def _step(model: NanoGPT, optimizer: torch.optim.AdamW, ids: Tensor, *, lr: float, recipe: Recipe) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
    loss_of(model, *random_batch(ids, recipe)).backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@torch.no_grad()
def _estimate(model: nn.Module, *texts: Tensor) -> list[float]:
    """Return the loss on some random batches of each text, like nanoGPT's loop."""
    model.eval()
    losses = [sum(float(loss_of(model, *random_batch(ids))) for _ in range(EVAL_BATCHES)) / EVAL_BATCHES for ids in texts]
    model.train()
    return losses


def main() -> None:
    """Train in a separate process: python -m benchmarks.nanogpt_recipe IDS SEED LENGTH RESULT.

    LENGTH is a number of steps, or RECIPE:SECONDS.
    """
    ids_file, seed, length, result = sys.argv[1:]
    ids = torch.load(ids_file, weights_only=True)
    if ":" in length:
        name, seconds = length.split(":")
        learned = train_for(
            float(seconds), ids["train"], ids["val"], vocab_size=ids["vocab_size"], seed=int(seed), recipe=RECIPES[name]
        )
    else:
        learned = train(ids["train"], ids["val"], vocab_size=ids["vocab_size"], seed=int(seed), steps=int(length))
    Path(result).write_text(json.dumps(asdict(learned)), encoding="utf-8")


if __name__ == "__main__":
    main()
