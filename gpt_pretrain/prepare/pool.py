"""Work on all cores whose results come back in order."""

from __future__ import annotations

import gc
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import TypeVar

from gpt_pretrain.errors import UserError
from gpt_pretrain.prepare.encoding import tokenizer_of
from gpt_pretrain.prepare.items import BATCH

Job = TypeVar("Job")
Result = TypeVar("Result")

JOBS_EACH = 3  # that wait for a worker, so that it never waits for the reader
WAITING = 1 << 26  # bytes of jobs that are under way: many small ones, or one of the longest records alone


class Workers:
    """Processes that encode; with one worker this process does it itself.

    Args:
        count: how many.
        tokenizer: loaded before the processes are forked, so that all share its memory.
    """

    def __init__(self, count: int, tokenizer: str) -> None:
        self.count = count
        self._pool: ProcessPoolExecutor | None = None
        tokenizer_of(tokenizer)
        if count > 1:
            context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
            gc.freeze()  # a collection in a worker would copy every page that it looks at
            self._pool = ProcessPoolExecutor(count, mp_context=context, initializer=_start)
            self._pool.submit(os.getpid).result()  # the processes are forked now, while there is one thread

    def map(
        self, work: Callable[[Job], Result], jobs: Iterable[Job], *, size: Callable[[Job], int] | None = None
    ) -> Iterator[tuple[Job, Result]]:
        """Each job and what became of it, in order.

        Args:
            size: of a job in bytes, of which not too many are under way; None where they take no memory.

        Raises:
            UserError: when a worker was killed.
        """
        if self._pool is None:
            for job in jobs:
                yield job, work(job)
            return
        waiting: deque[tuple[Job, Future[Result], int]] = deque()
        under_way = 0
        most = max(WAITING, 2 * self.count * BATCH)
        try:
            for job in jobs:
                weight = 0 if size is None else size(job)
                while waiting and (len(waiting) >= JOBS_EACH * self.count or under_way + weight > most or waiting[0][1].done()):
                    first, future, done = waiting.popleft()
                    under_way -= done
                    yield first, future.result()
                waiting.append((job, self._pool.submit(work, job), weight))
                under_way += weight
            while waiting:
                first, future, _ = waiting.popleft()
                yield first, future.result()
        except BrokenProcessPool as error:
            for process in multiprocessing.active_children():
                process.kill()  # the pool waits for them, and they pay no heed to its SIGTERM
            raise UserError(
                "A worker process was killed, most likely because memory ran out. Start the same command again with fewer "
                "workers=; it goes on where it was."
            ) from error

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=kind is None, cancel_futures=True)


def _start() -> None:
    """What a worker does first: leave signals, which may go to all, to the main process, and end when that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
