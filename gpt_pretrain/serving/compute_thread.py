"""The one thread in which PyTorch computes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class ComputeThread:
    """Runs functions one after another in a thread of its own, which ends with the process.

    The thread that decodes must also load the models. OpenMP starts helper threads, one per core, for each thread that computes.
    If two threads have helpers, these sleep instead of waiting actively, and decoding takes 1.6 times as long.
    """

    def __init__(self) -> None:
        self._queue: SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = SimpleQueue()
        threading.Thread(target=self._run, name="compute", daemon=True).start()

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Run a function after all functions that were submitted before. Return a future of its result."""
        future: Future[T] = Future()
        self._queue.put((work, future))
        return future

    def _run(self) -> None:
        while True:
            work, future = self._queue.get()
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)
