"""Write a run's checkpoints: last.ckpt, best.ckpt and the periodic copies."""

from __future__ import annotations

import copy
import os
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from torch import Tensor
from torch.nn import Parameter

from gpt_pretrain.checkpoints.checkpoint_file import copy_checkpoint, read_checkpoint, write_checkpoint
from gpt_pretrain.runs.folder import BEST, LAST
from gpt_pretrain.runs.loggers import flush_loggers
from gpt_pretrain.system.resources import available_memory
from gpt_pretrain.training.distributed import ranks
from gpt_pretrain.training.distributed.fsdp import ShardedStrategy, remove_unused_shards

CONTAINERS = (dict, OrderedDict, defaultdict, list, tuple)
SPARE_MEMORY = 1.5  # free memory that a copy of a checkpoint requires, in sizes of the checkpoint
PERIODIC = "step-{:08d}.ckpt"


class SafeCheckpointIO(CheckpointIO):
    """Write Lightning's checkpoints so that a complete one always exists, and read them as plain data only.

    Attributes:
        in_background: Take a snapshot of the next checkpoint instead of writing it, if its content and the memory allow it.
        taken: The snapshot. The caller must write it.
        error: The reason why the last checkpoint could not be written. It is not raised: all ranks must learn of it before any
            rank acts on it.
    """

    in_background = False
    taken: dict[str, Any] | None = None
    error: OSError | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None) -> None:
        self.error = None
        self.taken = take_snapshot(checkpoint) if self.in_background else None
        if self.taken is not None:
            return
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


class Save:
    """A save that may go on in a thread while training continues.

    Args:
        write: Writes the files.
        in_background: Whether to write in a thread. The process waits for the thread before it ends.
    """

    def __init__(self, write: Callable[[], None], *, in_background: bool) -> None:
        self._write = write
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="save", daemon=False) if in_background else None
        if self._thread is not None:
            self._thread.start()
        else:
            self._run()

    @property
    def done(self) -> bool:
        """True if all files are written, or one could not be."""
        return self._thread is None or not self._thread.is_alive()

    def wait(self) -> OSError | None:
        """Wait for the end. Return the reason if a file could not be written, otherwise None."""
        if self._thread is not None:
            self._thread.join()
        if self._error is not None and not isinstance(self._error, OSError):
            raise self._error
        return self._error

    def _run(self) -> None:
        try:
            self._write()
        # `wait` raises any other error, such as a lack of memory.
        except BaseException as error:
            self._error = error


def write_checkpoints(trainer: L.Trainer, folder: Path, *, best: bool, keep: int, in_background: bool) -> Save:
    """Write last.ckpt together with the other ranks. The first rank then copies it.

    In the background, a snapshot is written while training continues. A sharded model is always written at once, since its ranks
    must agree on each file.

    Args:
        folder: The folder of the checkpoints.
        best: Whether to copy it to best.ckpt.
        keep: The number of periodic copies to keep.
        in_background: Whether to return before the files are written. No other save may be under way.
    """
    checkpoint_io = trainer.strategy.checkpoint_io
    assert isinstance(checkpoint_io, SafeCheckpointIO)
    problem = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        flush_loggers(trainer.loggers)  # The logs must reach at least as far as the checkpoint.
    except OSError as error:
        problem = error
    if ranks.all_reduce_max(problem is not None):  # Saving needs all ranks. If one has a problem, none begins.
        return _failed_save(problem or OSError("another process could not begin to write"))
    checkpoint_io.in_background = in_background and not isinstance(trainer.strategy, ShardedStrategy)
    trainer.save_checkpoint(folder / LAST)
    if checkpoint_io.error is not None:
        return _failed_save(checkpoint_io.error)
    taken, checkpoint_io.taken = checkpoint_io.taken, None
    is_main, step = trainer.is_global_zero, trainer.global_step

    def write() -> None:
        if not is_main:
            return
        try:
            if taken is not None:
                write_checkpoint(taken, folder / LAST)
            if best:
                copy_checkpoint(folder / LAST, folder / BEST)
            if keep:
                _keep_periodic(folder, step=step, keep=keep)
        finally:
            remove_unused_shards(folder)

    return Save(write, in_background=taken is not None)


def take_snapshot(content: dict[str, Any]) -> dict[str, Any] | None:
    """Copy a checkpoint into memory of its own, or return None if it must be written at once.

    Other content than plain data is written at once, so that the user sees its errors immediately. So is a checkpoint whose copy
    could fill the memory.
    """
    tensors = list[Tensor]()
    if not _collect_plain(content, tensors):
        return None
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    available = available_memory()
    if available is None or available < SPARE_MEMORY * sum(storages.values()):
        return None
    on_cpu = {id(tensor): tensor.detach().cpu() for tensor in tensors if tensor.device.type != "cpu"}
    copied: dict[str, Any] = copy.deepcopy(content, on_cpu)  # type: ignore[arg-type]
    return copied


def _collect_plain(node: Any, tensors: list[Tensor]) -> bool:
    """Add the tensors within nested containers to a list, and return whether everything else in them is plain data."""
    if isinstance(node, dict):
        return type(node) in CONTAINERS and all(_collect_plain(part, tensors) for pair in node.items() for part in pair)
    if isinstance(node, list | tuple):
        return type(node) in CONTAINERS and all(_collect_plain(part, tensors) for part in node)
    if type(node) in (Tensor, Parameter):
        tensors.append(node)
        return bool(node.layout == torch.strided)
    return node is None or type(node) in (bool, int, float, str, bytes)


def _failed_save(error: OSError) -> Save:
    def fail() -> None:
        raise error

    return Save(fail, in_background=False)


def _keep_periodic(folder: Path, *, step: int, keep: int) -> None:
    """Copy last.ckpt to a file named after its step, and delete the oldest copies that exceed the number to keep."""
    new = folder / PERIODIC.format(step)
    copy_checkpoint(folder / LAST, new)
    copies = sorted(folder.glob(PERIODIC.format(0).replace("0" * 8, "*")))
    index = copies.index(new)
    # Copies of later steps are damaged, or date from before the run was resumed at an earlier step.
    for path in [*copies[: max(0, index + 1 - keep)], *copies[index + 1 :]]:
        path.unlink(missing_ok=True)
