"""Formulas for the costs of training on many devices: traffic, checkpoints and failures. They need no torch.

Symbols: W devices. `costs` has the formulas for the work and the memory of each device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gpt_pretrain.model import costs
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.costs import Parallelism

SECONDS_PER_DAY = 86_400
# Source: Grattafiori et al. 2024, arXiv:2407.21783, section 3.3.4: 419 unexpected interruptions of 16,384 H100 in 54 days.
GPU_YEARS_PER_FAILURE = 5.8


@dataclass(frozen=True)
class StepTraffic:
    """Bytes that each device sends per optimizer step in a ring. All devices send the same amount.

    Args:
        weights: Bytes sent to gather the weights.
        gradients: Bytes sent to sum the gradients.
    """

    weights: int
    gradients: int

    @property
    def total(self) -> int:
        """The sum of both."""
        return self.weights + self.gradients


def step_traffic(config: GPTConfig, *, precision: str, parallelism: Parallelism) -> StepTraffic:
    """Return the bytes that each device sends per optimizer step.

    DDP sums all gradients once per step, for any number of accumulated batches. FSDP gathers every block in the forward pass and
    again in the backward pass, and gathers the embeddings once. It sums all gradients for each batch, since Lightning cannot skip
    this during gradient accumulation. Autocast changes nothing, because weights and gradients stay in fp32.

    Source: Patarasu & Yuan 2009, "Bandwidth optimal all-reduce algorithms", for a ring's (W - 1) / W of the bytes to gather or to
        scatter, and twice that for both; Rajbhandari et al. 2020 (arXiv:1910.02054), section 7, for FSDP's 3 to DDP's 2.
    """
    n_bytes, _ = costs.dtype_bytes(precision)
    W = parallelism.devices
    if not parallelism.fsdp:
        return StepTraffic(weights=0, gradients=2 * (W - 1) * costs.num_parameters(config) * n_bytes // W)
    blocks = costs.block_numel(config, W)
    root = costs.padded_numel(costs.root_tensor_shapes(config), W)
    factor = n_bytes * parallelism.accumulate_grad_batches * (W - 1)
    return StepTraffic(weights=(2 * blocks + root) * factor // W, gradients=(blocks + root) * factor // W)


@dataclass(frozen=True)
class Cluster:
    """Machines with several GPUs each, described by their data sheets.

    Args:
        flops_per_second: Peak of one GPU.
        mfu: Fraction of the peak that the model's operations reach.
        memory: Bytes of one GPU.
        link: Bytes/s that a GPU sends to the others in its machine.
        network: Bytes/s that a GPU's own adapter sends to other machines.
        gpus_per_machine: Number of GPUs in each machine.
    """

    flops_per_second: float
    mfu: float
    memory: float
    link: float
    network: float
    gpus_per_machine: int

    def ring_bandwidth(self, devices: int) -> float:
        """Return the bytes/s that each device sends in a ring over this many devices.

        A ring leaves each machine once, and each adapter carries its own ring with a fraction of the bytes. The adapters of a
        machine therefore work together.
        """
        return self.link if devices <= self.gpus_per_machine else min(self.link, self.gpus_per_machine * self.network)


def compute_seconds(config: GPTConfig, cluster: Cluster, *, tokens: float) -> float:
    """Return the seconds that one device computes for this many tokens."""
    flops = tokens * costs.training_flops_per_token(config)
    return flops / (cluster.flops_per_second * cluster.mfu)


def traffic_seconds(config: GPTConfig, cluster: Cluster, *, precision: str, parallelism: Parallelism) -> float:
    """Return the seconds that the devices send per optimizer step. The latency of messages, which grows with W, is left out."""
    total = step_traffic(config, precision=precision, parallelism=parallelism).total
    return total / cluster.ring_bandwidth(parallelism.devices)


def seconds_to_failure(devices: int) -> float:
    """Return the mean time in seconds until one of this many GPUs interrupts the training."""
    return GPU_YEARS_PER_FAILURE * 365.25 * SECONDS_PER_DAY / devices


def best_save_interval(devices: int, *, save_seconds: float) -> float:
    """Return the seconds between checkpoints that minimize the time for saving and for repeating lost steps.

    Source: Young 1974, "A first order approximation to the optimum checkpoint interval": the square root of 2 x save x mean time
        to failure. Daly 2006 adds terms of higher order, which are small here.
    """
    return math.sqrt(2 * save_seconds * seconds_to_failure(devices))


def lost_time_fraction(devices: int, *, save_seconds: float) -> float:
    """Return the fraction of time spent on saving and on repeating lost steps at the best save interval."""
    interval = best_save_interval(devices, save_seconds=save_seconds)
    return save_seconds / interval + interval / (2 * seconds_to_failure(devices))
