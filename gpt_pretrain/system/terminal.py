"""Output to the terminal: log messages, and the console that they share with the progress bar."""

from __future__ import annotations

import logging
import unicodedata
import warnings

from rich.console import Console

console = Console(highlight=False)


class ConsoleHandler(logging.Handler):
    """Prints log messages without wrapping or markup; warnings and errors begin with their level."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
            if record.levelno >= logging.WARNING:
                text = f"{record.levelname.lower()}: {text}"
            console.print(text, soft_wrap=True, markup=False, emoji=False)
        except Exception:  # like the handlers in logging
            self.handleError(record)


def quiet_lightning(*, main: bool = True) -> None:
    """Show only Lightning's warnings, with this program's handlers, and hide those that do not apply here.

    Args:
        main: False silences this process altogether; only the first process of a training writes messages.
    """
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
        ".*ended before the epoch ended and your dataloader is not resumable.*",  # it is resumable
        ".*LeafSpec.*is deprecated.*",  # Lightning 2.6 uses it
        ".*broadcast_buffers. is deprecated.*",  # PyTorch 2.13 deprecates it, and 2.11 lacks its replacement
        ".*sync_dist=True.*",  # logged values are the same on all ranks
    ):
        warnings.filterwarnings("ignore", message=message)


def escape_controls(text: str) -> str:
    """Return a text with each character that could control a terminal written as an escape such as \\x1b.

    Line feeds and tabs stay. Use it for generated text and for whatever a file brings: names, titles, error messages.
    """
    return "".join(
        char if char in "\n\t" or not _controls(char) else char.encode("unicode_escape").decode("ascii") for char in text
    )


def escape_line(text: str) -> str:
    """Return a text on one line, for a name or a title that stands in a message: line feeds and tabs are escaped as well."""
    return escape_controls(text).replace("\n", "\\n").replace("\t", "\\t")


def _controls(char: str) -> bool:
    """Return whether a character is a control character, changes the direction of writing, or has no meaning of its own."""
    return (
        unicodedata.category(char) in ("Cc", "Cs")
        or char in "\u2028\u2029\u200e\u200f\u061c"
        or "\u202a" <= char <= "\u202e"
        or "\u2066" <= char <= "\u2069"
    )
