"""Output to the terminal and to log files, free of characters that could control a terminal.

All printed or logged text passes through `escape_controls`, here or where it is printed. Logged text also passes through
`hide_secrets`. In log messages, line feeds are kept only in the message itself. Arguments are shown on one line and shortened,
since their text may come from a file.
"""

from __future__ import annotations

import io
import logging
import sys
import unicodedata
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from rich.console import Console

from gpt_pretrain.system.files import open_for_append
from gpt_pretrain.system.formatting import short_message, shorten_middle
from gpt_pretrain.system.urls import hide_secrets

if TYPE_CHECKING:
    from rich.progress import Progress

INDENT = "    "  # before the second and further lines of a message
MAX_ARGUMENT, MAX_LINE = 2000, 20_000  # characters of an argument of a log message, and of any other line


def open_console(*, stderr: bool = False) -> Console:
    """Return a console on standard output or standard error. With COLUMNS=0, rich would print nothing."""
    console = Console(highlight=False, stderr=stderr)
    if console.width < 1:
        console.width = 80
    return console


console = open_console()


def progress_bar(shown_on: Console, before: str, after: str) -> Progress:
    """Return a bar between two texts, with the time left. It vanishes when it ends.

    Args:
        before: A format for rich's `task`, like `after`.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    texts = TextColumn(before, markup=False), BarColumn(bar_width=None), TextColumn(after, markup=False)
    remaining = TimeRemainingColumn(compact=True, elapsed_when_finished=True), TextColumn("left")
    return Progress(*texts, *remaining, console=shown_on, refresh_per_second=2, transient=True, expand=True)


class ConsoleHandler(logging.Handler):
    """Print log messages without wrapping or markup. Warnings and errors begin with their level.

    Args:
        stderr: Print to standard error, since standard output is the command's result.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__()
        self._console = open_console(stderr=True) if stderr else console

    def format(self, record: logging.LogRecord) -> str:
        return hide_secrets(escape_controls(super().format(_with_escaped_arguments(record))))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
            if record.levelno >= logging.WARNING:
                text = f"{record.levelname.lower()}: {text}"
            self._console.print(text, soft_wrap=True, markup=False, emoji=False)
        except Exception:  # like the handlers in logging
            self.handleError(record)


class LogFileHandler(logging.FileHandler):
    """Append log messages to a regular file, never through a link. All lines of a message except the first are indented.

    A line that begins with a time is therefore always the beginning of a message, whatever text is logged.

    Args:
        filename: The file.
    """

    def __init__(self, filename: str) -> None:
        super().__init__(filename, encoding="utf-8")
        self._failed = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Report once that the file cannot be written, as on a full disk. The messages themselves also appear on the screen."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._failed:
            self._failed = True
            reason = error.strerror or error
            with suppress(OSError, ValueError):  # the terminal may also be gone
                print_escaped(
                    f"warning: {self.baseFilename} cannot be written ({reason}). It will lack messages.", file=sys.stderr
                )

    def _open(self) -> io.TextIOWrapper:
        return open_log(Path(self.baseFilename))

    def format(self, record: logging.LogRecord) -> str:
        return indent_lines(hide_secrets(escape_controls(super().format(_with_escaped_arguments(record)))))


def open_log(path: Path) -> io.TextIOWrapper:
    """Open a log file to append text to it.

    Raises:
        OSError: If the path is a link or no regular file, or cannot be opened.
    """
    return io.TextIOWrapper(open_for_append(path), encoding="utf-8", errors="backslashreplace")


def indent_lines(text: str) -> str:
    """Return a text with all lines but the first indented."""
    return text.rstrip("\n").replace("\n", f"\n{INDENT}")


def print_escaped(text: str, *, file: TextIO | None = None) -> None:
    """Print a text that may contain names or texts from files. Escape control characters, even in a pipe, and cut long lines."""
    lines = (escape_controls(shorten_middle(line, MAX_LINE)) for line in text.split("\n"))
    print("\n".join(lines), file=sys.stdout if file is None else file)


def quiet_lightning(*, main: bool = True) -> None:
    """Show only Lightning's warnings, with this program's handlers, and hide those that do not apply here.

    Args:
        main: False silences this process altogether. Only the first process of a training writes messages.
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

    Line feeds and tabs stay. Use it for generated text and for all text from files: names, titles, error messages.
    """
    return "".join(
        char if char in "\n\t" or not _controls(char) else char.encode("unicode_escape").decode("ascii") for char in text
    )


def escape_line(text: str) -> str:
    """Return a text on one line, for a name or a title within a message. Line feeds and tabs are escaped as well."""
    return escape_controls(text).replace("\n", "\\n").replace("\t", "\\t")


def escape_problem(text: str) -> str:
    """Return an error message on one line and without secrets. If it quotes long names, its middle is left out."""
    return escape_line(short_message(text))


def _with_escaped_arguments(record: logging.LogRecord) -> logging.LogRecord:
    """Return a copy of a log record with its arguments on one line. The record itself also goes to other handlers."""
    copied = logging.makeLogRecord(record.__dict__)
    if isinstance(record.args, Mapping):
        copied.args = {name: _escape_argument(value) for name, value in record.args.items()}
    elif record.args:
        copied.args = tuple(map(_escape_argument, record.args))
    return copied


def _escape_argument(value: object) -> object:
    """Return an argument of a log message unchanged, or as text if this text is long or contains control characters."""
    if isinstance(value, int | float):
        return value
    text = str(value)
    return value if (escaped := escape_line(shorten_middle(text, MAX_ARGUMENT))) == text else escaped


def _controls(char: str) -> bool:
    """Return whether a character is a control character, changes the direction of writing, or has no meaning of its own."""
    return (
        unicodedata.category(char) in ("Cc", "Cs")
        or char in "\u2028\u2029\u200e\u200f\u061c"
        or "\u202a" <= char <= "\u202e"
        or "\u2066" <= char <= "\u2069"
    )
