"""The one place that writes to the terminal: log lines, a progress bar that leaves them whole, streamed text."""

from __future__ import annotations

import logging
import warnings

from rich.console import Console

console = Console(highlight=False)


class ConsoleHandler(logging.Handler):
    """Prints log records on the terminal as they are: no wrapping, no markup; warnings and errors say that they are."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
            if record.levelno >= logging.WARNING:
                text = f"{record.levelname.lower()}: {text}"
            console.print(text, soft_wrap=True, markup=False, emoji=False)
        except Exception:  # as logging's own handlers do
            self.handleError(record)


def quiet_lightning(*, main: bool = True) -> None:
    """Let Lightning speak through our handlers alone, and only when it matters; where this is not the main process, nobody."""
    if not main:
        logging.disable(logging.ERROR)
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "lightning_utilities", "pytorch_lightning"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.WARNING)
    logging.captureWarnings(True)
    for message in (
        ".*does not have many workers.*",
        ".*is smaller than the logging interval.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*ended before the epoch ended and your dataloader is not resumable.*",  # it is: BatchOrder.start
        ".*LeafSpec.*is deprecated.*",
        ".*broadcast_buffers. is deprecated.*",  # the new name is not in every PyTorch that will do
        ".*sync_dist=True.*",  # what is logged is the same on all ranks
    ):
        warnings.filterwarnings("ignore", message=message)
