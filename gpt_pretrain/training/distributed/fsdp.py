"""A model spread over devices, so that each holds a part of the weights, gradients and optimizer: PyTorch's FSDP2.

Source: Zhao et al. 2023, "PyTorch FSDP" (arXiv:2304.11277), and `torch.distributed.fsdp.fully_shard`.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
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
from gpt_pretrain.model.gpt2 import GPTModel, empty_model
from gpt_pretrain.training.distributed import ranks


def shard(model: GPTModel, mesh: DeviceMesh) -> None:
    """Spread a model over a mesh of devices: a block is gathered when it computes; the embeddings stay from then on."""
    for block in model.trf_blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    register_fsdp_forward_method(model, "hidden_states")


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """All weights of a sharded model, whole, on the first rank's device; every rank has to ask, and the others get none."""
    weights = {}
    for name, value in model.state_dict().items():
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        if ranks.is_main():
            weights[name] = whole
    return weights


def gather_model(model: GPTModel) -> GPTModel | None:
    """Return the whole model on the first rank and None on the others; every rank of a sharded model must call this."""
    if not isinstance(model, FSDPModule):
        return model if ranks.is_main() else None
    weights = whole_weights(model)
    if not ranks.is_main():
        return None
    whole = empty_model(model.config)
    whole.load_state_dict(weights, assign=True)
    return whole


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all devices, whose checkpoints are written by all ranks, each its part, and read by any number of them."""

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.model is not None
        return self.model.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return (optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer).state_dict()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write this rank's rows, and on rank 0, once all are there, the index."""
        path = Path(filepath)
        name = ranks.broadcast(SHARD_FOLDER.format(checkpoint["global_step"], secrets.token_hex(3)))
        mine: dict[str, Tensor] = {}

        def put_elsewhere(place: str, value: Any) -> Any:
            if not isinstance(value, DTensor):
                return value
            mine[place] = value.to_local()
            return {REFERENCE_KEY: place, "rows": value.shape[0]}

        tensors = {key: checkpoint[key] for key in ("state_dict", "optimizer_states")}
        index = checkpoint | map_leaves(tensors, put_elsewhere)
        self.checkpoint_io.error = problem = None  # type: ignore[attr-defined]
        sha256 = ""
        try:
            sha256 = write_rank_file(path.parent / name, self.global_rank, mine)
        except OSError as error:
            problem = error
        written = ranks.all_gather(
            (
                "" if problem is None else problem.strerror or str(problem),
                sha256,
                {place: len(rows) for place, rows in mine.items()},
            )
        )
        if problems := [text for text, _, _ in written if text]:
            self.checkpoint_io.error = problem or OSError(problems[0])  # type: ignore[attr-defined]
        elif self.is_global_zero:
            self.checkpoint_io.save_checkpoint(index | {"shards": {"folder": name, "files": _table(written)}}, path)
        if self.is_global_zero and self.checkpoint_io.error is not None:  # type: ignore[attr-defined]
            shutil.rmtree(path.parent / name, ignore_errors=True)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint, in pieces or whole, and give model and optimizer this rank's rows of it."""
        path = Path(checkpoint_path)
        content = read_checkpoint(path, assemble=False)
        shards = ShardReader(path, content, check=False) if "shards" in content else None
        with torch.no_grad():
            assert self.lightning_module is not None
            for name, parameter in self.lightning_module.named_parameters():
                _copy_rows(content["state_dict"][name], parameter, shards)
            for optimizer, state in zip(self.optimizers, content["optimizer_states"], strict=True):
                _load_optimizer(optimizer, state, shards)
        return content


def _table(written: list[tuple[str, str, dict[str, int]]]) -> list[dict[str, Any]]:
    """Which rows are in which file: each rank's follow on those of the one before."""
    files: list[dict[str, Any]] = []
    ends: dict[str, int] = {}
    for rank, (_, sha256, counts) in enumerate(written):
        rows: RowRanges = {}
        for place, count in counts.items():
            begin = ends.get(place, 0)
            rows[place] = [begin, begin + count]
            ends[place] = begin + count
        files.append({"name": rank_file_name(rank), "sha256": sha256, "rows": rows})
    return files


def _rows(stored: Any, like: DTensor, shards: ShardReader | None) -> Tensor:
    """This rank's rows of a stored tensor: FSDP gives each rank as many as `torch.chunk` does."""
    each = -(-like.shape[0] // like.device_mesh.size())
    start = min(like.device_mesh.get_local_rank() * each, like.shape[0])
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


def remove_unused_shards(folder: Path) -> None:
    """Delete the pieces in a folder that none of its checkpoints names any more."""
    there = [path for path in folder.glob("shards-*") if path.is_dir()]
    if not there:
        return
    try:
        named = {
            read_checkpoint(path, assemble=False).get("shards", {}).get("folder")
            for path in folder.glob("*.ckpt")
            if path.is_file()
        }
    except UserError:  # a damaged one, which is told when a run is resumed, may need any of them
        return
    for path in there:
        if path.name not in named:
            shutil.rmtree(path, ignore_errors=True)
