"""The TensorBoard event files of a run."""

from __future__ import annotations

import logging
import math
import secrets
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.summary.writer.event_file_writer import _AsyncWriterThread  # type: ignore[import-untyped]

from gpt_pretrain.config.overrides import split_override
from gpt_pretrain.runs.metrics_rows import AXES, History

CHARTS = {
    "Loss": {
        "train and validation": ["Multiline", ["train/loss", "val/loss"]],
        "every eval_freq steps": ["Multiline", ["eval/train_loss", "eval/val_loss"]],
        "by tokens seen": ["Multiline", ["tokens_seen/eval/train_loss", "tokens_seen/eval/val_loss"]],
    }
}
# The columns of the HPARAMS tab, besides the settings of a sweep.
COMPARED = ("val/best_loss", "val/loss", "eval/train_loss", "tokens_per_second")

log = logging.getLogger(__name__)


class EventFiles(TensorBoardLogger):
    """A TensorBoard logger that writes to the run's folder. It logs each metric by step and, below tokens_seen/, by tokens seen.

    The Custom Scalars tab shows both losses in one chart. The HPARAMS tab shows the overrides and the best validation loss.

    Args:
        first_step: The step at which training starts. Events of this step and later ones are hidden.
        hparams: Settings for the HPARAMS tab.
        sweep: Whether the settings are the varied ones of a sweep. They and the losses are then the columns of the table.
            Otherwise TensorBoard makes columns of all settings and metrics of all runs.
        history: The metrics before first_step. Events by tokens seen have step numbers larger than first_step, so TensorBoard
            hides the earlier ones. They are therefore written again.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        first_step: int = 0,
        hparams: dict[str, Any] | None = None,
        sweep: bool = False,
        history: History | None = None,
    ) -> None:
        started = first_step > 0 or any(run_dir.glob("events.out.tfevents.*"))
        purge: dict[str, Any] = {"purge_step": first_step} if started else {}
        # TensorBoard follows links, so its files get names that nobody can guess to prepare a link.
        suffix = f".{secrets.token_hex(4)}"
        super().__init__(save_dir=run_dir, name="", version="", default_hp_metric=False, filename_suffix=suffix, **purge)
        self._hparams = hparams or {}
        self._sweep = sweep
        self._history = history or History()
        self._best = self._history.lowest_val_loss
        self._started = False
        self._failed = False
        if threading.excepthook is threading.__excepthook__:
            threading.excepthook = _print_thread_error

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Log metrics by step and, if tokens_seen is one of them, by tokens seen."""
        self._best = min(self._best, metrics.get("val/loss", math.inf))
        best = {"val/best_loss": self._best} if "val/loss" in metrics else {}
        self._try(lambda: self._begin(step or 0))
        shown = {name: value for name, value in (metrics | best).items() if name != "epoch"}
        self._try(lambda: super(EventFiles, self).log_metrics(shown, step))
        if "tokens_seen" in metrics:  # A custom callback's metrics may lack it.
            self._try(lambda: self._by_tokens(metrics | best))

    def _begin(self, first_step: int) -> None:
        """Write the chart layout, the settings and the history before the first metrics."""
        if self._started:
            return
        self._started = True
        self.experiment.add_custom_scalars(CHARTS)
        self._add_session(end=False)
        for name, points in self._history.points.items():
            for tokens, value in points:
                if tokens >= first_step:
                    self.experiment.add_scalar(f"tokens_seen/{name}", value, tokens)

    def _add_session(self, *, end: bool) -> None:
        """Write the start or the end of this run's row in the HPARAMS tab."""
        from torch.utils.tensorboard.summary import hparams

        columns, start, stop = hparams(self._hparams, dict.fromkeys(COMPARED, 0.0))
        for summary in [stop] if end else [columns, start] if self._sweep else [start]:
            self.experiment._get_file_writer().add_summary(summary)

    def _by_tokens(self, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            if name not in AXES:
                self.experiment.add_scalar(f"tokens_seen/{name}", value, int(metrics["tokens_seen"]))

    def add_text(self, name: str, text: str, *, step: int) -> None:
        """Log a Markdown text at a step."""
        self._try(lambda: self.experiment.add_text(name, text, global_step=step))

    def add_picture(self, name: str, file: Path, *, step: int) -> None:
        """Log a PNG file at a step."""
        from matplotlib.image import imread

        self._try(lambda: self.experiment.add_image(name, imread(file)[:, :, :3], global_step=step, dataformats="HWC"))

    def save(self) -> None:
        """Flush the events. The settings are in the run's config.yaml."""
        self._try(lambda: self.experiment.flush())

    def finalize(self, status: str) -> None:
        if self._started:
            self._try(lambda: self._add_session(end=True))
        self._try(lambda: super(EventFiles, self).finalize(status))

    def _try(self, write: Callable[[], object]) -> None:
        """Call a function that writes events. After the first failure, warn and write no more events."""
        if self._failed:
            return
        try:
            write()
        except (OSError, ValueError) as error:  # Errors of the event writer arrive as a ValueError.
            self._failed = True
            reason = error.__cause__ or error.__context__ or error
            shown = (reason.strerror if isinstance(reason, OSError) else None) or reason
            log.warning("TensorBoard events cannot be written (%s). No more events will be logged.", shown)


def _print_thread_error(details: threading.ExceptHookArgs) -> None:
    """Print the traceback of a thread, unless it writes events. In that case the next event fails as well and is explained."""
    if not (isinstance(details.thread, _AsyncWriterThread) and isinstance(details.exc_value, OSError)):
        threading.__excepthook__(details)


def to_hparams(overrides: Sequence[str]) -> dict[str, Any]:
    """Return overrides as hyperparameters: numbers as floats, all other values as text."""
    values: dict[str, Any] = {}
    for override in overrides:
        key, value = split_override(override)
        try:
            values[key] = float(value)
        except ValueError:
            values[key] = value
    return values
