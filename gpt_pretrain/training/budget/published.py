"""Choose a model for a budget far beyond the study's trainings by published rules. This program has measured none of them.

Source: karpathy/nanochat (2026), scripts/base_train.py and dev/LOG.md: the depth alone decides width, tokens, batch and learning
    rates. Muennighoff et al. 2023 (arXiv:2305.16264): four passes over a text are nearly worth fresh text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.costs import matmul_parameters, training_flops_per_token
from gpt_pretrain.training.budget import choice
from gpt_pretrain.training.budget.amount import Budget

DEPTHS = range(6, 33, 2)  # blocks; smaller models are nearer to the study's
WIDTH_PER_BLOCK, HEAD_DIM, CONTEXT = 64, 128, 1024
TOKENS_PER_PARAMETER = 12.0  # counts the matrices in the blocks and the output head
REFERENCE_DEPTH, REFERENCE_BATCH, BATCH_POWER = 12, 2**19, 0.383  # a step has 2**19 tokens at this depth
MOST_PASSES = 4  # over the text
MOST_WINDOWS = 64  # of a device's batch


@dataclass(frozen=True)
class PublishedCandidate(choice.Candidate):
    """A run by the published rules.

    Args:
        accumulate: Batches of each device in a step.
        lr_factor: Factor on all learning rates; it depends on the batch.
        most_steps: The most steps that the text is good for.
    """

    accumulate: int = 1
    lr_factor: float = 1.0
    most_steps: int = 0


def published_choice(conditions: choice.Conditions) -> PublishedCandidate | None:
    """Return the deepest model with enough tokens in the budget; None if time, text, memory or disk are too small for any.

    A budget without an end (`auto`) is left to the study's law.
    """
    if conditions.budget == Budget():
        return None
    chosen = None
    for config in _architectures(max(conditions.text.bytes_per_token)):
        found = next((one for one in _batches(config, conditions) if choice.fits(one, conditions.limits) is None), None)
        if found is None or found.steps * found.step_tokens < TOKENS_PER_PARAMETER * matmul_parameters(config):
            break
        chosen = found
    return chosen


def _architectures(vocab_size: int) -> Iterator[GPTConfig]:
    for depth in DEPTHS:
        yield _architecture(vocab_size, depth)


def _architecture(vocab_size: int, depth: int) -> GPTConfig:
    width = WIDTH_PER_BLOCK * depth
    shape = choice.architectures([vocab_size], [(width, depth)])[0]
    return replace(shape, context_length=CONTEXT, n_heads=width // HEAD_DIM)


def _batches(config: GPTConfig, conditions: choice.Conditions) -> Iterator[PublishedCandidate]:
    """Yield the run of a model with ever smaller batches per device. The batch of a whole step stays the same."""
    text, budget, limits = conditions.text, conditions.budget, conditions.limits
    parameters, length = matmul_parameters(config), text.bytes_per_token[config.vocab_size]
    reference = matmul_parameters(_architecture(config.vocab_size, REFERENCE_DEPTH))
    step_tokens = 2 ** round(math.log2(REFERENCE_BATCH * (parameters / reference) ** BATCH_POWER))
    seconds = conditions.speed.step_seconds(config, step_tokens) / limits.workers / choice.BESIDES
    most_steps = int(MOST_PASSES * text.train_bytes / length / step_tokens)
    tokens = min(budget.tokens, budget.flops / training_flops_per_token(config))
    steps = int(min(most_steps, tokens / step_tokens, max(limits.seconds, 0.0) / seconds))
    matrices = parameters - config.vocab_size * config.emb_dim
    training = text.training(matrices, config.vocab_size, max(steps * step_tokens, 1))
    windows = MOST_WINDOWS
    while windows:
        accumulate = step_tokens // (windows * CONTEXT * limits.devices)
        if accumulate:
            yield PublishedCandidate(
                config,
                windows,
                steps,
                steps * seconds,
                training,
                conditions.law.bits_per_byte(training, text.difficulty),
                accumulate * windows * CONTEXT * limits.devices,
                accumulate=accumulate,
                lr_factor=math.sqrt(step_tokens / REFERENCE_BATCH),
                most_steps=most_steps,
            )
        windows //= 2
