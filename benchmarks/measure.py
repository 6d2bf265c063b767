"""What a measurement is, and the few helpers that all of them need."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]


@dataclass
class Measurement:
    """What one subject did in one process.

    Args:
        seconds: of each step, token or run, after warming up.
        peak_bytes: most memory held: of the device on CUDA, else resident memory of the process; None where it says nothing.
        notes: other numbers and choices worth knowing, such as the precision.
    """

    seconds: list[float]
    peak_bytes: int | None = None
    notes: dict[str, float | str] = field(default_factory=dict)


def device() -> torch.device:
    """Where to measure: the GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def now() -> float:
    """Seconds on a clock, once the device has done all that it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_bytes() -> int:
    """The most memory that this process has held so far; see `Measurement`."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    memory = psutil.Process().memory_info()
    if hasattr(memory, "peak_wset"):  # Windows
        return int(memory.peak_wset)
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def repeat(compute: Callable[[], object], *, warmup: int, times: int) -> list[float]:
    """Seconds of each run of compute, after some that do not count."""
    for _ in range(warmup):
        compute()
    seconds = []
    for _ in range(times):
        start = now()
        compute()
        seconds.append(now() - start)
    return seconds


def run(command: list[str]) -> None:
    """Run a command to its end.

    Raises:
        RuntimeError: with the last line of what it said, when it fails.
    """
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1])


class StepClock:
    """An iterable of batches that notes when each is asked for: the time between is that of a step.

    Args:
        batches: how many.
        make: makes one.
    """

    def __init__(self, batches: int, make: Callable[[], tuple[Tensor, Tensor]]) -> None:
        self.batches = batches
        self.make = make
        self.stamps: list[float] = []

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(self.batches):
            self.stamps.append(now())
            yield self.make()
        self.stamps.append(now())

    def seconds(self, *, warmup: int) -> list[float]:
        """Of each step but the first few."""
        return [end - start for start, end in zip(self.stamps[warmup:], self.stamps[warmup + 1 :], strict=False)]
