"""Draw the loss curve at the end of a run."""

from __future__ import annotations

import logging
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Callback

from gpt_pretrain.runs.tensorboard import EventFiles
from gpt_pretrain.training.callbacks.evaluation import PeriodicEvaluation
from gpt_pretrain.training.lit_module import GPTLitModule

log = logging.getLogger(__name__)


class LossCurve(Callback):
    """Draw losses.png and losses.pdf when training ends or fails, and show the picture in TensorBoard.

    Args:
        losses: The callback with the losses.
        folder: The folder of the pictures.
        tokens_per_epoch: Tokens in an epoch, to convert tokens seen into epochs.
    """

    def __init__(self, losses: PeriodicEvaluation, *, folder: Path, tokens_per_epoch: int) -> None:
        self.losses = losses
        self.folder = folder
        self.tokens_per_epoch = tokens_per_epoch

    def on_train_end(self, trainer: L.Trainer, pl_module: GPTLitModule) -> None:
        self._draw(trainer, pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: GPTLitModule, exception: BaseException) -> None:
        self._draw(trainer, pl_module)

    def _draw(self, trainer: L.Trainer, module: GPTLitModule) -> None:
        if not self.losses.steps:
            return
        from gpt_pretrain.runs.charts import curves, drawing

        figure = curves.epoch_loss_figure(
            tokens_seen=self.losses.tokens_seen,
            train_losses=self.losses.train_losses,
            val_losses=self.losses.val_losses,
            tokens_per_epoch=self.tokens_per_epoch,
        )
        try:
            drawing.save_figure(figure, self.folder / "losses.png", self.folder / "losses.pdf")
            for logger in trainer.loggers:
                if isinstance(logger, EventFiles):
                    logger.add_picture("losses", self.folder / "losses.png", step=module.step)
        except OSError as error:
            log.warning("The loss curve cannot be drawn: %s.", error.strerror or error)
