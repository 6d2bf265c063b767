"""Fully sharded data parallel training with PyTorch's FSDP2: each device holds a part of the model.

With DDP every device holds all weights, gradients and optimizer state. With `trainer.strategy=fsdp` this changes as follows:

- Weights: each parameter is a DTensor that is split by rows. Each of W devices holds 1/W of the rows. A block's weights are
  gathered just before it computes, in the forward and in the backward pass, and freed afterwards. The embeddings stay gathered
  from the forward to the backward pass.
- Gradients: they are summed and split in the backward pass of each batch, even during gradient accumulation.
- Optimizer: each device updates its own rows only, so AdamW's moments are split as well.
- Gradient clipping: the norm is computed over the rows of all devices.
- Samples: `gather_model` collects the whole weights on rank 0. Rank 0 then generates alone.
- Checkpoints: each rank writes its rows into a file of its own and rank 0 writes the index (`checkpoints.sharded`). Any number of
  devices, with either strategy, can resume from it.

Everything else, including the batches, is the same as with DDP, and the trained weights are equal up to rounding.

Source: Zhao et al. 2023, "PyTorch FSDP" (arXiv:2304.11277), and `torch.distributed.fsdp.fully_shard`.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from gpt_pretrain.checkpoints.checkpoint_file import read_checkpoint
from gpt_pretrain.checkpoints.sharded import (
    REFERENCE_KEY,
    SHARD_FOLDER,
    RowRanges,
    ShardReader,
    map_leaves,
    rank_file_name,
    write_rank_file,
)
from gpt_pretrain.errors import UserError
from gpt_pretrain.model.build import empty_model
from gpt_pretrain.model.language_model import LanguageModel
from gpt_pretrain.runs.folder import without_repetitions
from gpt_pretrain.training.distributed import ranks

Value = TypeVar("Value")


def shard_model(model: LanguageModel, mesh: DeviceMesh) -> None:
    """Split a model over a mesh of devices, block by block."""
    for block in model.trf_blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    register_fsdp_forward_method(model, "hidden_states")


def gather_model(model: LanguageModel) -> LanguageModel | None:
    """Return the whole model on rank 0 and None on the others. Every rank of a sharded model must call this."""
    if not isinstance(model, FSDPModule):
        return model if ranks.is_main() else None
    weights = {}
    for name, value in model.state_dict().items():
        full = value.full_tensor() if isinstance(value, DTensor) else value  # needs every rank
        if ranks.is_main():
            weights[name] = full
    if not ranks.is_main():
        return None
    gathered = empty_model(model.config)
    gathered.load_state_dict(weights, assign=True)
    return gathered


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all devices. Each rank writes its part of a checkpoint, and any number of ranks can read it."""

    def broadcast(self, obj: Value, src: int = 0) -> Value:
        """Return rank 0's value, sent as JSON. Lightning's own method unpickles the received bytes."""
        assert src == 0
        value: Value = ranks.broadcast(obj)
        return value

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.model is not None
        return self.model.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return (optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer).state_dict()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write this rank's rows. Rank 0 writes the index once all ranks have written their rows.

        An error is kept in `checkpoint_io.error` on all ranks, so that they agree on whether the checkpoint exists.
        """
        path = Path(filepath)
        name = SHARD_FOLDER.format(checkpoint["global_step"], f"{int(ranks.broadcast(secrets.randbits(24))):06x}")
        own_rows: dict[str, Tensor] = {}

        def take_rows(key: str, value: Any) -> Any:
            if not isinstance(value, DTensor):
                return value
            own_rows[key] = value.to_local()
            return {REFERENCE_KEY: key, "rows": value.shape[0]}

        tensors = {key: checkpoint[key] for key in ("state_dict", "optimizer_states", "ema") if key in checkpoint}
        index = checkpoint | map_leaves(tensors, take_rows)
        self.checkpoint_io.error = error = None  # type: ignore[attr-defined]
        sha256 = ""
        try:
            sha256 = write_rank_file(path.parent / name, self.global_rank, own_rows)
        except OSError as failure:
            error = failure
        message = "" if error is None else error.strerror or str(error)
        written = ranks.all_gather([message, sha256, {key: len(rows) for key, rows in own_rows.items()}])
        if messages := [message for message, _, _ in written if message]:
            self.checkpoint_io.error = error or OSError(messages[0])  # type: ignore[attr-defined]
        elif self.is_global_zero:
            index["shards"] = {"folder": name, "files": _rank_files(written)}
            self.checkpoint_io.save_checkpoint(index, path)
        if self.is_global_zero and self.checkpoint_io.error is not None:  # type: ignore[attr-defined]
            shutil.rmtree(path.parent / name, ignore_errors=True)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint, sharded or not, and load this rank's rows of it into the model and the optimizer."""
        path = Path(checkpoint_path)
        content = read_checkpoint(path, assemble=False)
        shards = ShardReader(path, content, check=False) if "shards" in content else None
        with torch.no_grad():
            assert self.lightning_module is not None
            for name, parameter in self.lightning_module.named_parameters():
                _copy_rows(content["state_dict"][name], parameter, shards)
                if "ema" in content:
                    average = torch.zeros_like(parameter, dtype=torch.float32)
                    _copy_rows(content["ema"][name], average, shards)
                    content["ema"][name] = average
            for optimizer, state in zip(self.optimizers, content["optimizer_states"], strict=True):
                _load_optimizer(optimizer, state, shards)
        return content


def remove_unused_shards(folder: Path) -> None:
    """Delete the shard folders that no checkpoint in this folder refers to."""
    shard_folders = [path for path in folder.glob("shards-*") if path.is_dir()]
    if not shard_folders:
        return
    files = (path for path in folder.glob("*.ckpt") if path.is_file())
    try:
        checkpoints = (read_checkpoint(path, assemble=False) for path in without_repetitions(files))
        entries = [content["shards"] for content in checkpoints if "shards" in content]
    except UserError:  # A damaged checkpoint may need any of them. Resuming the run reports the damage.
        return
    used = [entry.get("folder") if isinstance(entry, Mapping) else None for entry in entries]
    if not all(isinstance(name, str) for name in used):  # damaged as well
        return
    for path in shard_folders:
        if path.name not in used:
            shutil.rmtree(path, ignore_errors=True)


def _rank_files(written: list[Any]) -> list[dict[str, Any]]:
    """Return the index entries of the ranks' files: name, checksum and row ranges, in the order of the ranks."""
    files: list[dict[str, Any]] = []
    ends: dict[str, int] = {}
    for rank, (_, sha256, counts) in enumerate(written):
        rows: RowRanges = {}
        for key, count in counts.items():
            begin = ends.get(key, 0)
            rows[key] = [begin, begin + count]
            ends[key] = begin + count
        files.append({"name": rank_file_name(rank), "sha256": sha256, "rows": rows})
    return files


def _rows(stored: Any, like: DTensor, shards: ShardReader | None) -> Tensor:
    """Return this rank's rows of a stored tensor. FSDP splits rows like `torch.chunk`."""
    rows_per_rank = -(-like.shape[0] // like.device_mesh.size())
    start = min(like.device_mesh.get_local_rank() * rows_per_rank, like.shape[0])
    stop = start + len(like.to_local())
    if isinstance(stored, Mapping):
        assert shards is not None
        return shards.rows(stored[REFERENCE_KEY], start, stop)
    rows: Tensor = stored[start:stop]
    return rows


def _copy_rows(stored: Any, target: Tensor, shards: ShardReader | None) -> None:
    assert isinstance(target, DTensor)
    rows = _rows(stored, target, shards)
    if len(rows):
        target.to_local().copy_(rows)


def _load_optimizer(optimizer: Optimizer, stored: dict[str, Any], shards: ShardReader | None) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for number, values in stored["state"].items():
        like = parameters[int(number)]
        state[int(number)] = {}
        for key, value in values.items():
            if isinstance(value, Mapping) or (isinstance(value, Tensor) and value.shape == like.shape and value.ndim):
                own = torch.zeros_like(like)
                _copy_rows(value, own, shards)
                state[int(number)][key] = own
            else:
                state[int(number)][key] = value
    optimizer.load_state_dict({"state": state, "param_groups": stored["param_groups"]})
