"""Costs of the user's own model, as far as they follow from its number of parameters."""

from __future__ import annotations

from typing import Any

from gpt_pretrain.model.cluster_costs import StepTraffic
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.costs import CHECKPOINT_OVERHEAD, Parallelism, TrainingMemory, dtype_bytes

FLOPS_PER_PARAMETER = 6.0  # per token: two in the forward pass, four in the backward pass


def custom_costs(
    config: GPTConfig, parameters: int, *, batch_size: int, precision: str, parallelism: Parallelism, averages: bool
) -> dict[str, Any]:
    """Return the costs of training a model without formulas of its own, for a plan.

    Weights, gradients and two averages of AdamW follow from the number of parameters, and the logits from the vocabulary. The
    activations that the layers keep for the backward pass are unknown.

    Args:
        parameters: Trainable parameters.
        batch_size: Sequences per device.
        precision: Lightning's name of the precision.
        averages: Whether a moving average of the weights is kept.

    Source: Kaplan et al. 2020 (arXiv:2001.08361), section 2.1, for 6 operations per parameter and token.
    """
    wide, _ = dtype_bytes(precision)
    weights, average, W = wide * parameters, 4 * parameters if averages else 0, parallelism.devices
    return {
        "parameters": parameters,
        "token_flops": FLOPS_PER_PARAMETER * parameters,
        "memory": TrainingMemory(
            weights=weights,
            moments=2 * weights,
            gradients=weights,
            activations=0,
            loss=2 * 4 * batch_size * config.context_length * config.vocab_size,  # logits and their gradient
            backward=0,
            average=average,
            gradients_persist=W > 1 or parallelism.accumulate_grad_batches > 1,
        ),
        "traffic": StepTraffic(weights=0, gradients=2 * (W - 1) * weights // W),
        "checkpoint": 3 * weights + average + CHECKPOINT_OVERHEAD,
        "export": 0,
    }
