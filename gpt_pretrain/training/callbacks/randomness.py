"""Save and restore the random generators, so that a resumed run draws the same random numbers."""

from __future__ import annotations

import random
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from gpt_pretrain.training.distributed import ranks


class Randomness(Callback):
    """Store each rank's generators in every checkpoint, and restore them right before a resumed run's first batch.

    Args:
        seed: The seed of the run. Every rank but the first derives its own from it.
    """

    def __init__(self, *, seed: int) -> None:
        self.seed = seed
        self._resumed: list[dict[str, Any]] | None = None

    def state_dict(self) -> dict[str, Any]:
        own: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state().numpy().tobytes().hex()}
        if torch.cuda.is_available():
            own["cuda"] = torch.cuda.get_rng_state().numpy().tobytes().hex()
        return {"ranks": [self._stored(state) for state in ranks.all_gather(own)]}

    def _stored(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return a rank's state in the form for a checkpoint. Tensors replace the text that ranks exchange."""
        version, internal, gauss = state["python"]
        stored: dict[str, Any] = {"python": (version, tuple(internal), gauss)}
        for name in state.keys() - {"python"}:
            stored[name] = torch.frombuffer(bytearray.fromhex(state[name]), dtype=torch.uint8)
        return stored

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resumed = state_dict["ranks"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        rank, states = ranks.rank(), self._resumed
        self._resumed = None
        if states is not None and rank < len(states):
            self._restore(states[rank])
        elif rank > 0:  # A rank without a saved state must not repeat another one's random numbers.
            words = np.random.SeedSequence([self.seed, rank, trainer.global_step]).generate_state(1, np.uint64)
            torch.manual_seed(int(words[0] >> np.uint64(1)))

    def _restore(self, state: dict[str, Any]) -> None:
        version, internal, gauss = state["python"]
        random.setstate((version, tuple(internal), gauss))
        torch.set_rng_state(state["torch"].cpu())
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"].cpu())
