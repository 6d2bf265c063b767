"""The loss curve as a picture."""

from __future__ import annotations

import logging
from pathlib import Path

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback

from gpt_pretrain.callbacks.losses import LossLines

log = logging.getLogger(__name__)


class LossCurve(Callback):
    """Draws losses.png and losses.pdf when training ends, however it ends.

    Args:
        losses: where the curves are kept.
        folder: where the pictures go.
        tokens_per_epoch: turns tokens seen into epochs.
    """

    def __init__(self, losses: LossLines, *, folder: Path, tokens_per_epoch: int) -> None:
        self.losses = losses
        self.folder = folder
        self.tokens_per_epoch = tokens_per_epoch

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._draw()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._draw()

    def _draw(self) -> None:
        if not self.losses.steps:
            return
        try:
            plot_losses(
                tokens_seen=self.losses.tokens_seen,
                train_losses=self.losses.train_losses,
                val_losses=self.losses.val_losses,
                tokens_per_epoch=self.tokens_per_epoch,
                files=[self.folder / "losses.png", self.folder / "losses.pdf"],
            )
        except OSError as error:
            log.warning("The loss curve cannot be drawn: %s.", error.strerror or error)


def plot_losses(
    *, tokens_seen: list[int], train_losses: list[float], val_losses: list[float], tokens_per_epoch: int, files: list[Path]
) -> None:
    """Write a picture of both losses, with epochs below and tokens seen above, into each of files."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    epochs = [tokens / tokens_per_epoch for tokens in tokens_seen]
    marker = "o" if len(epochs) < 3 else None  # a line of one point is not seen
    axes.plot(epochs, train_losses, label="training", color="#1f77b4", marker=marker)
    axes.plot(epochs, val_losses, label="validation", color="#d62728", linestyle="--", marker=marker)
    axes.set_xlabel("epochs")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.25)
    axes.legend()
    above = axes.secondary_xaxis(
        "top", functions=(lambda e: np.asarray(e) * tokens_per_epoch, lambda t: np.asarray(t) / tokens_per_epoch)
    )
    above.set_xlabel("tokens seen")
    above.xaxis.set_major_formatter(EngFormatter(sep=""))
    for file in files:
        figure.savefig(file, dpi=150)
