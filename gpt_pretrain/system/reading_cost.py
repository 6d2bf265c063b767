"""End the reading of what a stranger has made once it takes far more time or memory than its size explains.

Each reader has limits of its own, whose messages say more. This limit holds for what they overlook.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import wraps
from types import FrameType
from typing import ParamSpec, TypeVar

from gpt_pretrain.errors import UserError
from gpt_pretrain.system.formatting import format_si
from gpt_pretrain.system.interrupts import is_importing
from gpt_pretrain.system.resources import private_memory

SECONDS, SECONDS_PER_MB = 25.0, 3.0  # of processor time; a machine ten times as slow as a common one needs a third of it
MEMORY, MEMORY_PER_BYTE = 1_000_000_000, 40  # beyond what is in use before
TICK = 0.25  # seconds of processor time between two looks
MAX_COMPRESSION = 64  # A file may state a large size of which the disk holds almost nothing.
DISK_BLOCK = 512  # the unit of st_blocks

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class _TooCostly(BaseException):
    """End a reader. This is not an Exception, since readers turn those into answers."""


@dataclass
class _Cost:
    memory_before: int | None
    measured_at: float  # on the clock of time.thread_time
    seconds: float = 0.0
    sizes: dict[object, int] = field(default_factory=dict)
    excess: str = ""

    def look(self, _signum: int, frame: FrameType | None) -> None:
        """Measure what the main thread has taken. Importing a library does not count, and an import is never interrupted."""
        now = time.thread_time()
        spent, self.measured_at = now - self.measured_at, now
        if is_importing(frame):
            return
        self.seconds += spent
        size = sum(self.sizes.values())
        allowed = SECONDS + SECONDS_PER_MB * size / 1e6
        memory, room = private_memory(), MEMORY + MEMORY_PER_BYTE * size
        if self.seconds > allowed:
            self.excess = (
                f"{self.seconds:.0f} seconds of processor time, and {format_si(size, 'B')} explain {allowed:.0f} at most"
            )
        elif memory is not None and self.memory_before is not None and memory - self.memory_before > room:
            taken, explained = format_si(memory - self.memory_before, "B"), format_si(room, "B")
            self.excess = f"{taken} of memory, and {format_si(size, 'B')} explain {explained} at most"
        else:
            return
        raise _TooCostly


_cost: _Cost | None = None  # of the reading in progress


@contextmanager
def explained_by_size(name: object, *, size: int = 0) -> Iterator[None]:
    """End the block if it takes far more processor time or memory than the files that it opens explain.

    The block is watched only in the main thread, and only where no other timer of processor time runs. A block within such a
    block belongs to the outer one. A single call of a library that is not written in Python ends before it is stopped.

    Args:
        name: What is read, for the message.
        size: Bytes that are read other than by `open_regular`.

    Raises:
        UserError: If the block takes more.
    """
    global _cost
    add_size(str(name), size)
    if threading.current_thread() is not threading.main_thread() or any(signal.getitimer(signal.ITIMER_PROF)):
        yield
        return
    earlier, handler = _cost, signal.getsignal(signal.SIGPROF)
    cost = _cost = _Cost(private_memory(), time.thread_time(), sizes={str(name): size})

    def stop() -> None:
        global _cost
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, signal.SIG_DFL if handler is None else handler)
        _cost = earlier

    signal.signal(signal.SIGPROF, cost.look)
    signal.siginterrupt(signal.SIGPROF, False)
    signal.setitimer(signal.ITIMER_PROF, TICK, TICK)  # It fires again if a reader swallows what the first look raises.
    try:
        try:
            yield
        finally:
            stop()
    except (Exception, _TooCostly):
        stop()
        if not cost.excess:
            raise
    if cost.excess:
        raise UserError(
            f"{name}: reading it took {cost.excess}. It is damaged, or was made to keep this machine busy. "
            "Get it again from where it was made, or use another one."
        )


def explained_by_own_size(read: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Make a function that reads what its first argument names a block of `explained_by_size`."""

    @wraps(read)
    def watched(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        named = args[0]
        with explained_by_size(named):
            if isinstance(named, str | os.PathLike):
                with suppress(OSError, ValueError):  # A reader may open its file other than by `open_regular`.
                    add_opened(os.stat(named))
            return read(*args, **kwargs)

    return watched


def add_opened(status: os.stat_result) -> None:
    """Note that the reading in progress has opened a file. Each file counts once."""
    add_size((status.st_dev, status.st_ino), min(status.st_size, status.st_blocks * DISK_BLOCK * MAX_COMPRESSION))


def add_size(key: object, size: int) -> None:
    """Note that the reading in progress reads this many bytes of something that counts once."""
    if _cost is not None:
        _cost.sizes[key] = max(size, _cost.sizes.get(key, 0))
