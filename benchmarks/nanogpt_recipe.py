"""nanoGPT's smallest example, restated: its GPT-2, its random windows, and its recipe for characters on a CPU.

The example is config/train_shakespeare_char.py with the options for a CPU that nanoGPT's README gives. This file is written from
those settings, in plain PyTorch as well: fp32, no compilation, the optimizer's default implementation for CPUs.

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

LAYERS, HEADS, WIDTH = 4, 4, 128
CONTEXT, BATCH = 64, 12  # tokens in a window, windows in a step
LR, MIN_LR, WARMUP = 1e-3, 1e-4, 100
EVAL_EVERY, EVAL_BATCHES = 250, 20
CLIP, DECAY, BETAS = 1.0, 0.1, (0.9, 0.99)
VALIDATED = 64  # windows in one batch of the final validation


@dataclass
class Learned:
    """What a run has reached.

    Args:
        steps: Optimizer steps.
        tokens: Tokens trained on.
        wall_seconds: Seconds of the training loop with its own evaluations.
        cpu_seconds: Seconds of all cores in that loop.
        loss: Loss over the whole validation text after the run, in nats per token.
    """

    steps: int
    tokens: int
    wall_seconds: float
    cpu_seconds: float
    loss: float


class Attention(nn.Module):
    """Causal self-attention without biases."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return what each position gathers: (B, T, D) -> (B, T, D)."""
        B, T, _ = x.shape
        q, k, v = (part.view(B, T, HEADS, -1).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=2))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(B, T, WIDTH))
        return out


class Block(nn.Module):
    """Attention and a feed-forward network, each after a norm and beside the residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, bias=False), nn.LayerNorm(WIDTH, bias=False)
        self.attention = Attention()
        self.wide = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.out = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block: (B, T, D) -> (B, T, D)."""
        x = x + self.attention(self.norm1(x))
        after: Tensor = x + self.out(F.gelu(self.wide(self.norm2(x))))
        return after


class NanoGPT(nn.Module):
    """GPT-2 without biases, with a tied head.

    Args:
        vocab_size: Different characters.
    """

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab_size, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                shrink = math.sqrt(2 * LAYERS) if name.endswith("out.weight") else 1.0
                nn.init.normal_(parameter, std=0.02 / shrink)

    def forward(self, token_ids: Tensor) -> Tensor:
        """Return the logits: (B, T) -> (B, T, V)."""
        x = self.tokens(token_ids) + self.positions(torch.arange(token_ids.shape[1]))
        return F.linear(self.norm(self.blocks(x)), self.tokens.weight)


def lr_of(step: int, total_steps: int) -> float:
    """Return the learning rate of a step: a linear warm-up, then a cosine to a tenth."""
    if step < WARMUP:
        return LR * (step + 1) / (WARMUP + 1)
    done = (step - WARMUP) / max(1, total_steps - WARMUP)
    return MIN_LR + 0.5 * (1 + math.cos(math.pi * min(1.0, done))) * (LR - MIN_LR)


def random_batch(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return windows at random positions of a text and the tokens that follow each of theirs, (B, T)."""
    starts = torch.randint(len(ids) - CONTEXT, (BATCH,))
    windows = torch.stack([ids[start : start + CONTEXT + 1] for start in starts.tolist()])
    return windows[:, :-1], windows[:, 1:]


def loss_of(model: nn.Module, token_ids: Tensor, target_ids: Tensor) -> Tensor:
    """Return the mean loss of a batch in nats per token."""
    return F.cross_entropy(model(token_ids).flatten(0, 1), target_ids.flatten())


@torch.no_grad()
def validation_loss(model: nn.Module, ids: Tensor) -> float:
    """Return the loss over all whole windows of a text, side by side, in nats per token."""
    count = (len(ids) - 1) // CONTEXT
    token_ids, target_ids = ids[: count * CONTEXT].view(count, CONTEXT), ids[1 : count * CONTEXT + 1].view(count, CONTEXT)
    model.eval()
    batches = zip(torch.split(token_ids, VALIDATED), torch.split(target_ids, VALIDATED), strict=True)
    return sum(float(loss_of(model, x, y)) * len(x) for x, y in batches) / count


def train(train_ids: Tensor, val_ids: Tensor, *, vocab_size: int, seed: int, steps: int) -> Learned:
    """Train by nanoGPT's recipe, and measure the loop and its result."""
    torch.manual_seed(seed)
    model = NanoGPT(vocab_size)
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS)
    wall, cpu = time.perf_counter(), time.process_time()
    for step in range(steps):
        if step % EVAL_EVERY == 0:
            _estimate(model, train_ids, val_ids)
        for group in optimizer.param_groups:
            group["lr"] = lr_of(step, steps)
        loss_of(model, *random_batch(train_ids)).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    _estimate(model, train_ids, val_ids)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Learned(steps, steps * BATCH * CONTEXT, wall, cpu, validation_loss(model, val_ids))


@torch.no_grad()
def _estimate(model: nn.Module, *texts: Tensor) -> list[float]:
    """Return the loss on some random batches of each text, as nanoGPT's loop prints it."""
    model.eval()
    losses = [sum(float(loss_of(model, *random_batch(ids))) for _ in range(EVAL_BATCHES)) / EVAL_BATCHES for ids in texts]
    model.train()
    return losses


def main() -> None:
    """Train in a process of its own: python -m benchmarks.nanogpt_recipe IDS SEED STEPS RESULT."""
    ids_file, seed, steps, result = sys.argv[1:]
    ids = torch.load(ids_file, weights_only=True)
    learned = train(ids["train"], ids["val"], vocab_size=ids["vocab_size"], seed=int(seed), steps=int(steps))
    Path(result).write_text(json.dumps(asdict(learned)), encoding="utf-8")


if __name__ == "__main__":
    main()
