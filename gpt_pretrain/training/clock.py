"""Measure the time spent on training alone, and the time since a request to stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STOP_GRACE_SECONDS = 5.0  # for work beside the training when the run is asked to stop


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


class StopAskedError(Exception):
    """Work beside the training takes too long after the run has been asked to stop."""


class StopWatch:
    """End work beside the training that goes on for long after the run has been asked to stop."""

    def __init__(self) -> None:
        self._seen: float | None = None  # time at which the request was first noticed

    def check(self, stop_asked: bool) -> None:
        """Check that no request to stop was noticed long ago.

        Raises:
            StopAskedError: If one was.
        """
        if stop_asked:
            self._seen = time.monotonic() if self._seen is None else self._seen
            if time.monotonic() - self._seen >= STOP_GRACE_SECONDS:
                raise StopAskedError
