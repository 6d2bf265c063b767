"""The callback that ends a run of a search early when it falls behind the others."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import lightning as L
from lightning.pytorch.callbacks import Callback

from gpt_pretrain.runs.metadata import PRUNED, update_metadata
from gpt_pretrain.sweeps.folder import STUDY
from gpt_pretrain.sweeps.results import BITS_PER_BYTE, NATS_PER_TOKEN, varies_tokenizer
from gpt_pretrain.training.distributed import ranks
from gpt_pretrain.training.lit_module import GPTLitModule

if TYPE_CHECKING:
    from gpt_pretrain.sweeps.search import RunningTrial

log = logging.getLogger(__name__)


def pruning_callbacks(run_dir: Path) -> list[Callback]:
    """Return a list with the pruning callback of a run. It is empty outside a search, or if the search prunes no runs."""
    if not (run_dir.parent / STUDY).is_file():
        return []
    from gpt_pretrain.sweeps.search import RunningTrial

    trial = RunningTrial.find(run_dir)
    return [] if trial is None else [MedianPruning(trial, run_dir=run_dir)]


class MedianPruning(Callback):
    """Ends the run after an epoch in which its validation loss is worse than the median of the other runs.

    Args:
        trial: The trial of this run.
        run_dir: The folder of this run.
    """

    def __init__(self, trial: RunningTrial, *, run_dir: Path) -> None:
        self.trial = trial
        self.by_bits = varies_tokenizer(trial.keys)
        self.run_dir = run_dir

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: GPTLitModule) -> None:
        epoch = trainer.current_epoch + 1
        score = pl_module.val_bits_per_byte if self.by_bits else pl_module.val_loss
        behind = ranks.broadcast(ranks.is_main() and self.trial.should_prune(epoch, score))
        if behind and epoch < (trainer.max_epochs or 0) and not trainer.should_stop:
            log.info(
                "Pruned after epoch %d: the validation loss of %.3f %s is worse than the median of the other jobs.",
                epoch,
                score,
                BITS_PER_BYTE if self.by_bits else NATS_PER_TOKEN,
            )
            if ranks.is_main():
                update_metadata(self.run_dir, state=PRUNED)
            trainer.should_stop = True
