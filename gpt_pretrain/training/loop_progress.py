"""Correct the loop progress in checkpoints where Lightning's own counts would not resume exactly.

The `loops` of a checkpoint count epochs, batches and validation batches. For each, they hold the numbers that are ready, started,
processed and completed (Lightning 2.6, `lightning.pytorch.loops.progress`).
"""

from __future__ import annotations

from typing import Any


def correct_saved_progress(loops: dict[str, Any], *, batches_per_epoch: float, before_validation: bool) -> None:
    """Correct the progress that a checkpoint is about to store.

    Args:
        loops: The `loops` of the checkpoint. They are changed in place.
        batches_per_epoch: Batches of this rank in an epoch.
        before_validation: Whether the epoch's validation has not been done yet, although Lightning may have begun it.
    """
    progress = loops["fit_loop"]
    epochs, batches = progress["epoch_progress"], progress["epoch_loop.batch_progress"]
    epoch_ended = epochs["current"]["processed"] == epochs["current"]["ready"]
    if epoch_ended and batches["current"]["processed"] < batches_per_epoch:
        # A limit ended the epoch early. Lightning counts it as processed, and would resume with the next epoch.
        for count in (epochs["current"], epochs["total"]):
            count["processed"] -= 1
    if before_validation:
        # Lightning starts a validation from its beginning only if it was saved during its first batch.
        for count in progress["epoch_loop.val_loop.batch_progress"].values():
            if isinstance(count, dict):
                count.update(ready=1, started=1, processed=0, completed=0)


def set_resumed_batch(loops: dict[str, Any], batch: int) -> None:
    """Set the number of batches that each rank has done in the epoch. It depends on the number of ranks.

    Args:
        loops: The `loops` of a checkpoint. They are changed in place.
        batch: The new number.
    """
    count = loops["fit_loop"]["epoch_loop.batch_progress"]["current"]
    more = batch - count["processed"]
    count.update({name: number + more for name, number in count.items()})
