"""The state of the random generators, so that a resumed run draws what it would have drawn."""

from __future__ import annotations

import random
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from gpt_pretrain.training.distributed import ranks


class Randomness(Callback):
    """Keeps each rank's generators behind dropout in each checkpoint and sets them when a resumed run begins its first batch.

    Args:
        seed: of the run; all ranks but the first draw from seeds made of it.
    """

    def __init__(self, *, seed: int) -> None:
        self.seed = seed
        self._resumed: list[dict[str, Any]] | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"ranks": ranks.all_gather(self._state())}

    def _state(self) -> dict[str, Any]:
        state: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resumed = state_dict["ranks"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        rank, states = ranks.rank(), self._resumed
        self._resumed = None
        if states is None or rank >= len(states):  # a rank that was not there before draws what no other does
            if rank > 0:
                words = np.random.SeedSequence([self.seed, rank, trainer.global_step]).generate_state(1, np.uint64)
                torch.manual_seed(int(words[0] >> np.uint64(1)))
            return
        version, internal, gauss = states[rank]["python"]
        random.setstate((version, tuple(internal), gauss))
        torch.set_rng_state(states[rank]["torch"].cpu())
        if "cuda" in states[rank] and torch.cuda.is_available():
            torch.cuda.set_rng_state(states[rank]["cuda"].cpu())
