"""What many devices add to the cost of a training: bytes between them, checkpoints, text, failures; formulas, without torch.

Symbols: W devices, P parameters. What each device computes and holds is in `flops.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gpt_pretrain.model import costs
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.costs import Sharing

SECONDS_A_DAY = 86_400
# 16,384 H100 for 54 days, 419 unexpected stops: Grattafiori et al. 2024, arXiv:2407.21783, section 3.3.4.
GPU_YEARS_TO_FAILURE = 5.8


@dataclass(frozen=True)
class Traffic:
    """Bytes that each device sends in an optimizer step, when all send equally much, as in a ring.

    Args:
        weights: of its part of the weights, to those who gather them.
        gradients: to sum them up.
    """

    weights: int
    gradients: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.gradients


def step_traffic(config: GPTConfig, *, precision: str, sharing: Sharing) -> Traffic:
    """What each device sends in an optimizer step.

    DDP sums up all gradients once a step, however many batches it accumulates. FSDP gathers every block on the way forward and
    again on the way back, the embeddings once, and sums up all gradients, for each batch: Lightning has no way to leave that out.
    Autocast changes none of it, since weights and gradients are fp32.

    Source: Patarasu & Yuan 2009, "Bandwidth optimal all-reduce algorithms", for a ring's (W - 1) / W of the bytes to gather or to
        scatter, and twice that for both; Rajbhandari et al. 2020 (arXiv:1910.02054), section 7, for FSDP's 3 to DDP's 2.
    """
    wide, _ = costs.number_bytes(precision)
    W = sharing.devices
    if not sharing.fsdp:
        return Traffic(weights=0, gradients=2 * (W - 1) * costs.num_parameters(config) * wide // W)
    blocks = config.n_layers * costs.padded(costs.block_shapes(config), W)
    root = costs.padded(costs.root_shapes(config), W)
    part = wide * sharing.accumulate * (W - 1)
    return Traffic(weights=(2 * blocks + root) * part // W, gradients=(blocks + root) * part // W)


@dataclass(frozen=True)
class Cluster:
    """Machines with several GPUs each, as data sheets describe them.

    Args:
        flops_per_second: of a GPU, at its peak.
        utilisation: share of it that the model's own operations reach (MFU).
        memory: bytes of a GPU.
        link: bytes/s that a GPU sends to others in its machine.
        network: bytes/s that a GPU's own adapter sends to other machines.
        gpus: in each machine.
    """

    flops_per_second: float
    utilisation: float
    memory: float
    link: float
    network: float
    gpus: int

    def wire(self, devices: int) -> float:
        """Bytes/s that each device sends in a ring over so many of them.

        A ring leaves each machine once, and there are as many rings as adapters, each with its part of the bytes: so the
        adapters of a machine together set the pace between machines.
        """
        return self.link if devices <= self.gpus else min(self.link, self.gpus * self.network)


def compute_seconds(config: GPTConfig, cluster: Cluster, *, tokens: float, recompute: bool = False) -> float:
    """How long a device computes for so many tokens, at the utilisation that is assumed; recomputation counts as operations."""
    return tokens * costs.training_flops(config, recompute=recompute) / (cluster.flops_per_second * cluster.utilisation)


def traffic_seconds(config: GPTConfig, cluster: Cluster, *, precision: str, sharing: Sharing) -> float:
    """How long the devices send in an optimizer step, without the time until a message arrives, which grows with W as well."""
    return step_traffic(config, precision=precision, sharing=sharing).total / cluster.wire(sharing.devices)


def seconds_to_failure(devices: int) -> float:
    """Mean time until one of so many GPUs stops the training."""
    return GPU_YEARS_TO_FAILURE * 365.25 * SECONDS_A_DAY / devices


def seconds_between_saves(devices: int, *, save_seconds: float) -> float:
    """Time from one checkpoint to the next at which saving, and training again what a failure has lost, cost least together.

    Source: Young 1974, "A first order approximation to the optimum checkpoint interval": the square root of 2 x save x mean time
        to failure. Daly 2006 has the terms of higher order, which are small here.
    """
    return math.sqrt(2 * save_seconds * seconds_to_failure(devices))


def lost_share(devices: int, *, save_seconds: float) -> float:
    """Share of the time that goes to saving and to what failures have lost, with checkpoints at that interval."""
    interval = seconds_between_saves(devices, save_seconds=save_seconds)
    return save_seconds / interval + interval / (2 * seconds_to_failure(devices))
