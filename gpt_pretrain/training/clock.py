"""Measure the time spent on training alone, for tokens per second."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class TrainingClock:
    """A clock that is paused during evaluation, sampling and saving.

    Args:
        before_pause: Called before each pause. It finishes the pending training work, whose time still counts.
    """

    def __init__(self, before_pause: Callable[[], None] = lambda: None) -> None:
        self._before_pause = before_pause
        self._paused_seconds = 0.0
        self._paused_at = 0.0

    def seconds(self) -> float:
        """Return the seconds of training since an arbitrary moment."""
        return time.perf_counter() - self._paused_seconds

    def pause(self) -> None:
        """Stop the clock until `resume` is called."""
        self._before_pause()
        self._paused_at = time.perf_counter()

    def resume(self) -> None:
        """Restart the clock after `pause`."""
        self._paused_seconds += time.perf_counter() - self._paused_at

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock for the duration of a block."""
        self.pause()
        try:
            yield
        finally:
            self.resume()
