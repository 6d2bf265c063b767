"""Runs of several ranks: their settings, callbacks that watch or disturb them, and the comparison of two runs."""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpt_pretrain.checkpoints.checkpoint_file import read_checkpoint
from tests.conftest import TINY_RUN, without

RunRanks = Callable[..., subprocess.CompletedProcess[str]]  # runs train.py; see the fixture `run`
# 54 training windows make 13 batches of 4, an odd number for two ranks or two accumulated batches. The remaining 2 windows are
# dropped, although they would fill a batch of 2. There are 2 validation batches.
RUN = [
    *without(TINY_RUN, "data.stride", "data.batch_size", "eval_iter"),
    "data.stride=340",
    "data.batch_size=4",
    "model.drop_rate=0.0",
    "eval_iter=3",
    "callbacks.doctor=null",
]
SPY = '''
from pathlib import Path
import lightning as L
import os

class Spy(L.Callback):
    """Record the windows that each rank trains on and validates."""
    def __init__(self, file):
        self.file = file
    def record(self, kind, batch):
        if int(batch[1].max()) >= 0:
            with open(self.file, "a") as stream:
                stream.writelines(f"{kind} {hash(tuple(row))}\\n" for row in batch[0].tolist())
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.record(f"train {trainer.current_epoch}", batch)
    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        self.record(f"val {trainer.current_epoch}", batch)

class FailsAfterTraining(L.Callback):
    def __init__(self, rank):
        self.rank = rank
    def on_fit_end(self, trainer, pl_module):
        if trainer.global_rank == self.rank:
            raise ValueError("out of luck")

class SpoilsOneLoss(L.Callback):
    """Make the loss of one rank's batch NaN."""
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 1 and trainer.current_epoch == 0 and trainer.global_rank == trainer.world_size - 1:
            spoil = lambda module, inputs, out: out * float("nan") if module.training else out
            self.hook = pl_module.model.final_norm.register_forward_hook(spoil)
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 1 and trainer.current_epoch == 0 and trainer.global_rank == trainer.world_size - 1:
            self.hook.remove()
'''


def environment() -> dict[str, str]:
    """Return the variables of this process for a training whose ranks use one thread each."""
    return {key: value for key, value in os.environ.items() if key != "PYTEST_CURRENT_TEST"} | {"OMP_NUM_THREADS": "1"}


def content(folder: Path) -> dict[str, Any]:
    """Return the content of a run's last checkpoint."""
    return read_checkpoint(folder / "checkpoints" / "last.ckpt")


def recorded(file: Path, kind: str) -> Counter[str]:
    """Count the windows of a kind, such as "train 0", in a file of `Spy`."""
    return Counter(line for line in file.read_text().splitlines() if line.startswith(kind))


def assert_same_run(alone: Path, other: Path, *, exact: bool = False) -> None:
    """Assert that two runs have the same losses, weights and counts."""
    one, two = content(alone), content(other)
    assert (one["global_step"], one["tokens_seen"]) == (two["global_step"], two["tokens_seen"])
    assert one["track_tokens_seen"] == two["track_tokens_seen"]
    tolerance = {"rtol": 0, "atol": 0 if exact else 1e-5}
    for name in ("train_losses", "val_losses"):
        np.testing.assert_allclose(one[name], two[name], **tolerance)
    for name, tensor in one["state_dict"].items():
        torch.testing.assert_close(tensor, two["state_dict"][name], **tolerance)
    for name, tensor in one.get("ema", {}).items():
        torch.testing.assert_close(tensor, two["ema"][name], **tolerance)
    assert one["callbacks"]["SaveRun"]["best_step"] == two["callbacks"]["SaveRun"]["best_step"]
