"""Ctrl-C and SIGTERM: the work ends where it can be gone on with."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from gpt_pretrain.errors import UserError


class Stop:
    """Whether the work is to end, and by which signal."""

    def __init__(self) -> None:
        self.signal = 0

    def check(self) -> None:
        """Leave the work, if that was asked for.

        Raises:
            SystemExit: with 128 + the signal's number.
        """
        if self.signal:
            print("Interrupted. The same command goes on where it was.", file=sys.stderr)
            sys.exit(128 + self.signal)


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Note the first Ctrl-C or SIGTERM; a second one ends the process at once."""
    stop = Stop()

    def note(number: int, _: FrameType | None) -> None:
        if stop.signal:
            sys.exit(128 + number)
        stop.signal = number
        os.write(2, f"\n{signal.Signals(number).name}: ending once what is under way is safe. Once more ends at once.\n".encode())

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    except UserError:  # most likely of what the signal, which all processes may have got, has brought about
        stop.check()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
