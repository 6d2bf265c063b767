"""Measure the speed of this machine in training models of a few sizes, and estimate the speed of any size from that."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gpt_pretrain.config.schema import OptimizerSettings
from gpt_pretrain.evaluation.loss import next_token_loss
from gpt_pretrain.model.build import new_model
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.costs import training_flops_per_token
from gpt_pretrain.training.optimization.optimizer import build_optimizer

MOST_SECONDS = 1.0  # of each measurement, after the first step


@dataclass(frozen=True)
class Speed:
    """The speed of training, by the work per token.

    Args:
        flops: Floating-point operations per token of each measured model, ascending.
        rates: Operations per second that each model reached.
        fixed: Seconds of a step that do not depend on the model, such as the program's own work.
    """

    flops: tuple[float, ...]
    rates: tuple[float, ...]
    fixed: float = 0.0

    def rate(self, flops: float) -> float:
        """Return the operations per second of a model, interpolated between the nearest measured ones."""
        return float(np.exp(np.interp(math.log(flops), np.log(self.flops), np.log(self.rates))))

    def step_seconds(self, config: GPTConfig, tokens: int) -> float:
        """Return the seconds of an optimizer step of this many tokens."""
        flops = training_flops_per_token(config)
        return self.fixed + tokens * flops / self.rate(flops)


def measure_speed(
    configs: Sequence[GPTConfig],
    settings: OptimizerSettings,
    *,
    batch: int,
    device: torch.device,
    bf16: bool,
    fixed: float,
    seconds: float = math.inf,
) -> Speed:
    """Train each model for a moment on random tokens.

    Args:
        configs: Models, the smallest one first.
        batch: Windows of a step.
        fixed: See `Speed`.
        seconds: Approximate time limit of the measurement.
    """
    flops, rates, each = list[float](), list[float](), min(MOST_SECONDS, seconds / len(configs))
    for config in configs:
        step = _step_seconds(config, settings, batch=batch, device=device, bf16=bf16, seconds=each)
        flops.append(training_flops_per_token(config))
        rates.append(flops[-1] * batch * config.context_length / step)
    return Speed(tuple(flops), tuple(rates), fixed)


def _step_seconds(
    config: GPTConfig, settings: OptimizerSettings, *, batch: int, device: torch.device, bf16: bool, seconds: float
) -> float:
    """Return the mean duration of the optimizer steps after the first."""
    model = new_model(config).to(device).train()
    optimizer = build_optimizer(model, settings, bf16=bf16, shared=False)  # the other ranks wait
    generator = torch.Generator().manual_seed(0)
    token_ids = torch.randint(config.vocab_size, (batch, config.context_length), generator=generator).to(device)
    count, start = -1, 0.0
    while count < 1 or time.perf_counter() - start < seconds:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = next_token_loss(model, token_ids, token_ids)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # waits for the device
        count += 1
        start = time.perf_counter() if count == 0 else start
    return (time.perf_counter() - start) / count
