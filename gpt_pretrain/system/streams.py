"""Standard input and output that work with any terminal, pipe or redirect.

A character that the output's encoding lacks is written as an escape such as \\u4eca. Output may become impossible, because its
reader has gone or its disk is full. It is then dropped, so that no work ends because of it.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
from contextlib import suppress

STANDARD_STREAMS = ("stdin", "stdout", "stderr")
ENCODING_ERRORS = "surrogateescape_or_backslashreplace"


class LossyStream(io.TextIOWrapper):
    """A text stream that drops its output once it cannot be written any longer.

    Args:
        stream: The stream to replace. The buffer, the encoding and the way of flushing stay the same.
        notice: A sentence to print to standard error when output is dropped; None prints nothing.

    Attributes:
        error: The reason that output was dropped; None if everything was written.
    """

    def __init__(self, stream: io.TextIOWrapper, *, notice: str | None) -> None:
        super().__init__(
            stream.buffer,
            encoding=stream.encoding,
            errors=_tolerant_errors(stream.errors),
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        self.error: OSError | None = None
        self._stream = stream  # If it were deleted, it would close the buffer.
        self._notice = notice

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        """Discard the remaining and all later output, also of child processes."""
        if self.error is not None:
            return
        self.error = error
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.fileno())
        os.close(null)
        if self._notice is not None and sys.stderr is not None and sys.stderr is not self:
            print(f"warning: {self._notice.format(reason=error.strerror or error)}", file=sys.stderr)


_closed: set[str] = set()  # The standard streams that were closed when the program started.


def prepare_streams(*, notice: str | None = None) -> None:
    """Replace standard output and standard error by streams that accept any text, and open closed ones.

    Args:
        notice: The sentence to print when standard output can no longer be written, with {reason} in it.
    """
    _open_closed_streams()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if type(stream) is not io.TextIOWrapper:  # a notebook's or a test's stream
            continue
        with suppress(OSError):
            os.set_blocking(stream.fileno(), True)  # Another program on the same terminal may have changed this.
        stream.flush()
        setattr(sys, name, LossyStream(stream, notice=notice if name == "stdout" else None))


def has_no_output() -> bool:
    """Return whether standard output was closed when the program started."""
    return "stdout" in _closed


def lost_output() -> OSError | None:
    """Return the reason that standard output could not be written; None if everything was written so far."""
    return sys.stdout.error if isinstance(sys.stdout, LossyStream) else None


def read_input() -> str:
    """Return all of standard input. It must be UTF-8, whatever the locale.

    Raises:
        UnicodeDecodeError: If it is not UTF-8.
    """
    buffer = getattr(sys.stdin, "buffer", None)
    return sys.stdin.read() if buffer is None else buffer.read().decode("utf-8-sig").replace("\r\n", "\n")


def _open_closed_streams() -> None:
    """Open each closed standard stream on the null device.

    Otherwise the next opened file would take the stream's number and receive the output of child processes.
    """
    for number, name in enumerate(STANDARD_STREAMS):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
            _closed.add(name)
        if getattr(sys, name) is None:
            _closed.add(name)
            setattr(sys, name, open(os.devnull, "w" if number else "r", encoding="utf-8"))  # noqa: SIM115


def _tolerant_errors(errors: str | None) -> str:
    """Return the error handler that replaces a handler that refuses some characters."""
    if errors in (None, "strict"):
        return "backslashreplace"
    return ENCODING_ERRORS if errors == "surrogateescape" else str(errors)


def _encode_surrogate_or_escape(error: UnicodeError) -> tuple[str | bytes, int]:
    """Return the byte that a lone surrogate stands for, or an escape for any other character."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    char = error.object[error.start]
    if "\udc80" <= char <= "\udcff":
        return bytes([ord(char) - 0xDC00]), error.start + 1
    return char.encode("ascii", "backslashreplace").decode("ascii"), error.start + 1


codecs.register_error(ENCODING_ERRORS, _encode_surrogate_or_escape)
