"""The state of the random generators, so that a resumed run draws what it would have drawn."""

from __future__ import annotations

import random
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback


class Randomness(Callback):
    """Keeps the generators behind dropout in each checkpoint and sets them when a resumed run begins its first batch."""

    def __init__(self) -> None:
        self._resumed: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resumed = state_dict

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._resumed is None:
            return
        version, internal, gauss = self._resumed["python"]
        random.setstate((version, tuple(internal), gauss))
        torch.set_rng_state(self._resumed["torch"].cpu())
        if "cuda" in self._resumed and torch.cuda.is_available():
            torch.cuda.set_rng_state(self._resumed["cuda"].cpu())
        self._resumed = None
