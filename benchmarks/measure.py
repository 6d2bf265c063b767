"""The result of a measurement, and the functions that all measurements use."""

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
    """The result of one subject in one process.

    Args:
        seconds: Seconds of each step, token or run after the warm-up.
        peak_bytes: Peak memory: the device's on CUDA, otherwise the resident memory of the process. None if not meaningful.
        notes: Further numbers and choices, such as the precision.
    """

    seconds: list[float]
    peak_bytes: int | None = None
    notes: dict[str, float | str] = field(default_factory=dict)


def device() -> torch.device:
    """Return the device to measure on: the GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def now() -> float:
    """Return the seconds of a clock after all work of the device has finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_bytes() -> int:
    """Return the peak memory of this process so far; see `Measurement`."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    memory = psutil.Process().memory_info()
    if hasattr(memory, "peak_wset"):  # Windows
        return int(memory.peak_wset)
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def repeat(compute: Callable[[], object], *, warmup: int, times: int) -> list[float]:
    """Return the seconds of each run of compute after the warm-up runs."""
    for _ in range(warmup):
        compute()
    seconds = []
    for _ in range(times):
        start = now()
        compute()
        seconds.append(now() - start)
    return seconds


def run(command: list[str]) -> None:
    """Run a command and wait for it.

    Raises:
        RuntimeError: If the command fails. The message is its last line.
    """
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1])


class StepClock:
    """An iterable of batches that records the time of each request. A step lasts from one request to the next.

    Args:
        batches: Number of batches.
        make: Function that makes a batch.
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
        """Return the seconds of each step after the warm-up steps."""
        return [end - start for start, end in zip(self.stamps[warmup:], self.stamps[warmup + 1 :], strict=False)]
