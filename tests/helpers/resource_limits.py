"""Check the time and memory that a block of a test takes."""

from __future__ import annotations

import resource
import sys
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def within(seconds: float, megabytes: float) -> Iterator[None]:
    """Check that a block needs no more processor time and no more memory than this. A slower machine has more time."""
    start, before = time.process_time(), _begin_peak()
    yield
    used = time.process_time() - start
    assert used < seconds or used < seconds * _slowness()
    assert _peak() - before < 1e6 * megabytes


@contextmanager
def allocating_at_most(*, megabytes: float) -> Iterator[None]:
    """Check that Python's objects in a block take no more memory than this at their peak, beyond what was in use before."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        yield
        assert (tracemalloc.get_traced_memory()[1] - before) / 1e6 < megabytes
    finally:
        tracemalloc.stop()


def _slowness() -> float:
    """Return the time of a short computation as a multiple of that on the machine of the limits, at least 1."""
    start, counts = time.process_time(), {}
    for number in range(60_000):
        counts[str(number)[-3:]] = number
    return max(1.0, (time.process_time() - start) / 0.010)


def _begin_peak() -> int:
    """Forget the peak of this process's memory where that is possible, and return it in bytes."""
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _peak()


def _peak() -> int:
    if sys.platform != "linux":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024
