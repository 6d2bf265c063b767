"""Write a run's checkpoints: last.ckpt, best.ckpt and the periodic copies."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from gpt_pretrain.checkpoints.checkpoint_file import copy_checkpoint, read_checkpoint, write_checkpoint
from gpt_pretrain.runs.folder import BEST, LAST
from gpt_pretrain.runs.loggers import flush_loggers
from gpt_pretrain.training.distributed import ranks
from gpt_pretrain.training.distributed.fsdp import remove_unused_shards

PERIODIC = "step-{:08d}.ckpt"


class SafeCheckpointIO(CheckpointIO):
    """Write Lightning's checkpoints so that a complete one always exists, and read them as plain data only.

    Attributes:
        error: The reason that the last checkpoint could not be written. It is not raised, since all ranks must learn of it
            before any of them acts on it.
    """

    error: OSError | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None) -> None:
        self.error = None
        try:
            write_checkpoint(checkpoint, Path(path))
        except OSError as error:
            self.error = error

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        Path(path).unlink(missing_ok=True)


def write_checkpoints(trainer: L.Trainer, folder: Path, *, best: bool, keep: int) -> None:
    """Write last.ckpt together with the other ranks; the first rank then copies it.

    Args:
        folder: The folder of the checkpoints.
        best: Whether to copy it to best.ckpt.
        keep: How many periodic copies to keep.

    Raises:
        OSError: If this or another rank fails to write.
    """
    checkpoint_io = trainer.strategy.checkpoint_io
    assert isinstance(checkpoint_io, SafeCheckpointIO)
    problem = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        flush_loggers(trainer.loggers)  # the logs must not end before the checkpoint does
    except OSError as error:
        problem = error
    if ranks.all_reduce_max(problem is not None):  # saving needs all ranks, so none of them begins
        raise problem or OSError("another process could not begin to write")
    trainer.save_checkpoint(folder / LAST)
    try:
        if checkpoint_io.error is not None:
            raise checkpoint_io.error
        if trainer.is_global_zero:
            if best:
                copy_checkpoint(folder / LAST, folder / BEST)
            if keep:
                _keep_periodic(folder, step=trainer.global_step, keep=keep)
    finally:
        if trainer.is_global_zero:
            remove_unused_shards(folder)


def _keep_periodic(folder: Path, *, step: int, keep: int) -> None:
    """Copy last.ckpt to a file named after its step, and delete the oldest copies beyond the number to keep."""
    new = folder / PERIODIC.format(step)
    copy_checkpoint(folder / LAST, new)
    copies = sorted(folder.glob(PERIODIC.format(0).replace("0" * 8, "*")))
    index = copies.index(new)
    # Copies of later steps are damaged, or come from before the run was resumed at an earlier step.
    for path in [*copies[: max(0, index + 1 - keep)], *copies[index + 1 :]]:
        path.unlink(missing_ok=True)
