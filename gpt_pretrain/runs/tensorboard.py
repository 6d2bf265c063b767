"""TensorBoard's events of a run."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger

from gpt_pretrain.config.overrides import split_override

CHARTS = {
    "Loss": {
        "train and validation": ["Multiline", ["train/loss", "val/loss"]],
        "every eval_freq steps": ["Multiline", ["eval/train_loss", "eval/val_loss"]],
        "by tokens seen": ["Multiline", ["tokens_seen/eval/train_loss", "tokens_seen/eval/val_loss"]],
    }
}
COMPARED = ("val/best_loss", "val/loss", "eval/train_loss", "tokens_per_second")  # by HPARAMS, between runs of a sweep
AXES = ("step", "epoch", "tokens_seen")  # what metrics are plotted against

log = logging.getLogger(__name__)


class EventFiles(TensorBoardLogger):
    """TensorBoard events in the run directory itself: each metric by step and, under tokens_seen/, by tokens.

    Under Custom Scalars both losses are in one chart; under HPARAMS stands what was typed, with the best validation loss.

    Args:
        first_step: the step that training begins with; what was written from there on is hidden.
        hparams: settings for the table of HPARAMS.
        sweep: whether these settings are those that a sweep tries; then they, and the losses, are the table's columns. Without
            that, TensorBoard makes columns of all settings and metrics that it finds in any run.
        history: rows of metrics.csv before first_step: TensorBoard hides by number, tokens as well as steps.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        first_step: int = 0,
        hparams: dict[str, Any] | None = None,
        sweep: bool = False,
        history: Sequence[dict[str, str]] = (),
    ) -> None:
        begun = first_step > 0 or any(run_dir.glob("events.out.tfevents.*"))
        purge: dict[str, Any] = {"purge_step": first_step} if begun else {}  # hides what was written after the checkpoint
        super().__init__(save_dir=run_dir, name="", version="", default_hp_metric=False, **purge)
        self._hparams = hparams or {}
        self._sweep = sweep
        self._history = history
        self._best = min((float(row["val/loss"]) for row in history if row.get("val/loss")), default=math.inf)
        self._begun = False
        self._failed = False

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Log metrics, of which one is tokens_seen, by step and by tokens."""
        self._best = min(self._best, metrics.get("val/loss", math.inf))
        best = {"val/best_loss": self._best} if "val/loss" in metrics else {}
        self._try(lambda: self._begin(step or 0))
        shown = {name: value for name, value in (metrics | best).items() if name != "epoch"}
        self._try(lambda: super(EventFiles, self).log_metrics(shown, step))
        if "tokens_seen" in metrics:  # else they come from a callback of the user's own
            self._try(lambda: self._by_tokens(metrics | best))

    def _begin(self, first_step: int) -> None:
        """Write what stands before the first metrics."""
        if self._begun:
            return
        self._begun = True
        self.experiment.add_custom_scalars(CHARTS)
        self._add_session(end=False)
        for row in self._history:
            numbers = {name: float(value) for name, value in row.items() if value}
            if numbers["tokens_seen"] >= first_step:
                self._by_tokens(numbers)

    def _add_session(self, *, end: bool) -> None:
        """Write the beginning or the end of a row of HPARAMS."""
        from torch.utils.tensorboard.summary import hparams

        columns, start, stop = hparams(self._hparams, dict.fromkeys(COMPARED, 0.0))
        for summary in [stop] if end else [columns, start] if self._sweep else [start]:
            self.experiment._get_file_writer().add_summary(summary)

    def _by_tokens(self, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            if name not in AXES:
                self.experiment.add_scalar(f"tokens_seen/{name}", value, int(metrics["tokens_seen"]))

    def add_text(self, name: str, text: str, *, step: int) -> None:
        """Show a text, in Markdown, beside a step."""
        self._try(lambda: self.experiment.add_text(name, text, global_step=step))

    def add_picture(self, name: str, file: Path, *, step: int) -> None:
        """Show a picture from its PNG file beside a step."""
        from matplotlib.image import imread

        self._try(lambda: self.experiment.add_image(name, imread(file)[:, :, :3], global_step=step, dataformats="HWC"))

    def save(self) -> None:
        """Flush the events; the settings stand in the run's config.yaml."""
        self._try(lambda: self.experiment.flush())

    def finalize(self, status: str) -> None:
        if self._begun:
            self._try(lambda: self._add_session(end=True))
        self._try(lambda: super(EventFiles, self).finalize(status))

    def _try(self, write: Callable[[], object]) -> None:
        """Write; where that fails, say so once and leave TensorBoard alone from then on."""
        if self._failed:
            return
        try:
            write()
        except (OSError, ValueError) as error:  # Lightning makes a ValueError of whatever the writer raises
            self._failed = True
            reason = error.__cause__ or error.__context__ or error
            log.warning("TensorBoard's events cannot be written (%s); they end here.", reason)


def as_hparams(overrides: Sequence[str]) -> dict[str, Any]:
    """Typed settings as TensorBoard's table has them: numbers as numbers, everything else as text."""
    values: dict[str, Any] = {}
    for word in overrides:
        key, value = split_override(word)
        try:
            values[key] = float(value)
        except ValueError:
            values[key] = value
    return values
