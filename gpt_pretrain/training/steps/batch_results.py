"""The numbers of training batches: loss, counted tokens and gradient norm.

Reading a number from a GPU waits until the GPU has done all its work. The GPU would then idle while the next step is prepared. A
step's numbers are therefore copied to the host as part of the GPU's work, and read once the following step has been queued.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class BatchOrigin:
    """The position of a batch in the run, with the learning rate and the token count there.

    Args:
        epoch: Counted from 0.
        batch: Number in the epoch, counted from 0.
        step: The batch's optimizer step, counted from 0.
        ends_step: Whether it is the last batch of the step.
        lr: Learning rate of the first parameter group in this step.
        tokens_seen: Tokens trained on by the end of the batch, by all devices together.
    """

    epoch: int
    batch: int
    step: int
    ends_step: bool
    lr: float
    tokens_seen: int


@dataclass(frozen=True)
class BatchResult:
    """The numbers of a training batch.

    Args:
        origin: Which batch it is.
        loss: The mean loss over the counted tokens of all devices, in nats per token; None for a batch that is left out.
        counted: The number of counted tokens of all devices; 0 if the batch is skipped.
        norm: The norm of the step's gradient before clipping; None before the step ends, and under 16-mixed.
    """

    origin: BatchOrigin
    loss: float | None
    counted: int
    norm: float | None


class PendingResults:
    """The numbers of optimizer steps that the device may not have computed yet, oldest first. Each step has one batch."""

    def __init__(self) -> None:
        self._pending: deque[tuple[BatchOrigin, Tensor, torch.cuda.Event | None]] = deque()

    def add(self, origin: BatchOrigin, *, loss: Tensor, counted: Tensor, norm: Tensor) -> None:
        """Begin to copy the numbers of a step, all scalars, to the host."""
        numbers = torch.stack([loss.double(), counted.double(), norm.double()])
        if not numbers.is_cuda:
            self._pending.append((origin, numbers, None))
            return
        copied = torch.empty(3, dtype=torch.float64, pin_memory=True).copy_(numbers, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._pending.append((origin, copied, event))

    def take(self, *, keep: int) -> Iterator[BatchResult]:
        """Wait for the results of all steps but the newest ones. Yield them and forget them.

        Args:
            keep: The number of newest steps to keep.
        """
        while len(self._pending) > keep:
            origin, numbers, event = self._pending.popleft()
            if event is not None:
                event.synchronize()
            loss, counted, norm = numbers.tolist()
            yield BatchResult(origin, loss, int(counted), norm)


def unusable_step(*, loss: Tensor, counted: Tensor, norm: Tensor) -> Tensor:
    """Return whether a step must leave the weights as they are, without waiting for the device.

    It must if its loss or its gradient is NaN or infinite, or if no token counts.

    Returns:
        A scalar of type bool on the device.
    """
    return ~(loss.isfinite() & norm.isfinite()) | (counted == 0)
