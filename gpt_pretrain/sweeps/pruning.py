"""Ending a run of a search early, when others have done better by then."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import lightning as L
from lightning.pytorch.callbacks import Callback

from gpt_pretrain.runs.folder import STUDY
from gpt_pretrain.runs.metadata import PRUNED, update_metadata
from gpt_pretrain.training.distributed import ranks
from gpt_pretrain.training.lit_module import GPTLitModule

if TYPE_CHECKING:
    from gpt_pretrain.sweeps.search import RunningTrial

log = logging.getLogger(__name__)


def pruning_callbacks(run_dir: Path) -> list[Callback]:
    """Return the callback that ends the run of a folder early; none outside a search, or in one that prunes nothing."""
    if not (run_dir.parent / STUDY).is_file():
        return []
    from gpt_pretrain.sweeps.search import RunningTrial

    trial = RunningTrial.find(run_dir)
    return [] if trial is None else [EndWhenBehind(trial, run_dir=run_dir)]


class EndWhenBehind(Callback):
    """Ends the run after an epoch whose validation loss is worse than the median of the others' at that epoch.

    Args:
        trial: the search, as this run sees it.
        run_dir: the run's folder.
    """

    def __init__(self, trial: RunningTrial, *, run_dir: Path) -> None:
        self.trial = trial
        self.run_dir = run_dir

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: GPTLitModule) -> None:
        epoch = trainer.current_epoch + 1
        behind = ranks.broadcast(ranks.is_main() and self.trial.falls_behind(epoch, pl_module.val_loss))
        if behind and epoch < (trainer.max_epochs or 0) and not trainer.should_stop:
            log.info(
                "Ended after epoch %d: its validation loss of %.3f is behind that of most others.", epoch, pl_module.val_loss
            )
            if ranks.is_main():
                update_metadata(self.run_dir, state=PRUNED)
            trainer.should_stop = True
