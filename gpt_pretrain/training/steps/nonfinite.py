"""Detect NaN or infinite losses, gradients and weights, and leave out the batches that caused them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from gpt_pretrain.model.language_model import LanguageModel
from gpt_pretrain.training.distributed import ranks

MAX_WEIGHT = 1e6  # Larger weights come from updates that have gone wrong. A trained model's are below 1e3.
MAX_LEFT_OUT = 100_000  # Batches that a checkpoint may name. Each rollback adds one step's batches.
MAX_SKIPPED = 50  # Batches or steps in a row. After so many, skipping does not help.


class NonFiniteError(Exception):
    """A loss, the gradients or the weights are NaN or infinite.

    Args:
        event: A sentence about the values that are not finite, with {batches} for the batches.
        step: The optimizer step, counted from 0.
        epoch: The epoch of the batches, counted from 0.
        batches: The batches of the step, counted from 0.

    Attributes:
        step: The optimizer step, counted from 0.
        batches: Epoch and number of each of these batches, both counted from 0.
    """

    def __init__(self, event: str, *, step: int, epoch: int, batches: Sequence[int]) -> None:
        numbers = f"batch {batches[0]}" if len(batches) == 1 else f"batches {batches[0]} to {batches[-1]}"
        super().__init__(f"Step {step:06d}: {event.format(batches=f'{numbers} in epoch {epoch + 1}')}")
        self.step = step
        self.batches = [[epoch, batch] for batch in batches]


def has_usable_weights(model: LanguageModel) -> bool:
    """Return whether all weights are numbers of at most MAX_WEIGHT. All ranks must call this; all get the same answer."""
    weights = (parameter.detach() for parameter in model.parameters())
    own = [weight.to_local() if isinstance(weight, DTensor) else weight for weight in weights]
    # On a CPU, aminmax takes a sixteenth of the time of the infinity norm (PyTorch 2.13). Both are NaN if any weight is.
    largest = torch.stack([torch.stack(weight.aminmax()).abs().amax().float() for weight in own if weight.numel()]).amax()
    return not ranks.all_reduce_max(not largest.item() <= MAX_WEIGHT)


def renumber_batches(batches: Sequence[Sequence[int]], *, before: int, now: int) -> list[list[int]]:
    """Return the batches that hold the same windows after the batch size has changed.

    Args:
        batches: Epoch and batch of each, both counted from 0.
        before: Windows per batch of all devices together, for the given batches.
        now: Windows per batch of all devices together, for the result.

    Raises:
        ValueError: If they are far more than a run leaves out. The numbers in a damaged checkpoint can cause this.
    """
    first_and_last = [(epoch, batch * before // now, ((batch + 1) * before - 1) // now) for epoch, batch in batches]
    if (count := sum(last - first + 1 for _, first, last in first_and_last)) > MAX_LEFT_OUT:
        raise ValueError(f"it leaves out {count:,} batches")
    return [[epoch, number] for epoch, first, last in first_and_last for number in range(first, last + 1)]


def skipped_batch_loss(model: LanguageModel, *, device: torch.device) -> Tensor | None:
    """Return the result of `training_step` for a batch that is left out.

    In a single process it is None, so that Lightning skips the backward pass. Several ranks wait for each other's gradients, so
    each of them returns a loss of zero. It has no effect.
    """
    if not ranks.is_distributed():
        return None
    if isinstance(model, FSDPModule):
        # FSDP keeps the gathered embeddings until the next backward pass. There is none here, so they would go out of date when
        # the step changes the weights.
        model.reshard()
        return torch.zeros((), device=device, requires_grad=True)
    return torch.stack([parameter.sum() for parameter in model.parameters()]).sum() * 0.0
