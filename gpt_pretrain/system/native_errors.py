"""Hide messages of Rust libraries about a failure. The libraries also raise an exception with the same content.

They write directly to the process's standard error instead of `sys.stderr`, and have no setting for it.
"""

from __future__ import annotations

import os
import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

STANDARD_ERROR = 2
PANIC = re.compile(rb"\n?thread '[^\n]*panicked at .*", re.DOTALL)


@contextmanager
def without_panic_messages() -> Iterator[None]:
    """Hold back the output to standard error during the block. Afterwards, write it up to the message of a panic.

    The calls of several threads may overlap. The last one writes the held-back output.
    """
    _errors.hold()
    try:
        yield
    finally:
        _errors.release()


class _HeldErrors:
    def __init__(self) -> None:
        self._lock, self._holders = threading.Lock(), 0
        self._terminal: int | None = None
        self._held: IO[bytes] | None = None

    def hold(self) -> None:
        with self._lock:
            self._holders += 1
            if self._holders > 1:
                return
            try:
                if self._held is None:
                    self._held = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
                self._terminal = os.dup(STANDARD_ERROR)
                os.dup2(self._held.fileno(), STANDARD_ERROR)
            except OSError:  # Standard error is closed, or no file can be written.
                self._terminal = None

    def release(self) -> None:
        with self._lock:
            self._holders -= 1
            if self._holders or self._terminal is None or self._held is None:
                return
            os.dup2(self._terminal, STANDARD_ERROR)
            os.close(self._terminal)
            if self._held.tell():
                self._held.seek(0)
                text = PANIC.sub(b"", self._held.read())
                self._held.seek(0)
                self._held.truncate()
                with open(STANDARD_ERROR, "wb", closefd=False) as terminal:
                    terminal.write(text)

    def forget(self) -> None:
        """Restore standard error in a forked process. No other thread continues there."""
        if self._holders and self._terminal is not None:
            os.dup2(self._terminal, STANDARD_ERROR)
        self._lock, self._holders, self._terminal, self._held = threading.Lock(), 0, None, None


_errors = _HeldErrors()
os.register_at_fork(after_in_child=_errors.forget)
