"""A DataLoader that measures how long training waits for batches, and the setup of its worker processes."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Iterator

from torch.utils.data import DataLoader

from gpt_pretrain.data.dataset import Batch
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.interrupts import stop_signals


class TimedLoader(DataLoader[Batch]):
    """A DataLoader that measures the seconds spent waiting for its batches."""

    seconds_waited = 0.0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        return TimedBatches(super().__iter__(), self)


class TimedBatches(Iterator[Batch]):
    """One iteration of a `TimedLoader`."""

    def __init__(self, batches: Iterator[Batch], loader: TimedLoader) -> None:
        self.batches = batches
        self.loader = loader

    def __next__(self) -> Batch:
        start = time.perf_counter()
        try:
            return next(self.batches)
        finally:
            self.loader.seconds_waited += time.perf_counter() - start


def check_locks(workers: int) -> None:
    """Check that processes can share a lock.

    Raises:
        UserError: If they cannot, as in a container without /dev/shm.
    """
    try:
        multiprocessing.Lock()
    except OSError as error:
        raise UserError(
            f"data.num_workers={workers}: no worker process can be started here, since locks cannot be made in /dev/shm "
            f"({error.strerror}). Set data.num_workers=0."
        ) from error


def start_method() -> str | None:
    """Return the start method of worker processes, or None for the current one.

    In joblib's processes the current method is joblib's own, loky, which workers of a DataLoader cannot use.
    """
    return multiprocessing.get_all_start_methods()[0] if multiprocessing.get_start_method() == "loky" else None


def ignore_signals(_worker: int) -> None:
    """Ignore the signals that ask a run to stop, which reach the whole process group, so that the run can end its workers."""
    for signum in stop_signals():
        signal.signal(signum, signal.SIG_IGN)
