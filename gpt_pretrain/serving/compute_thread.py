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

    Each thread that computes gets helpers from OpenMP, one for each core. Those of two threads have to share the cores: they
    sleep instead of waiting actively, and decoding takes 1.6 times as long. So the thread that decodes must load the models too.
    """

    def __init__(self) -> None:
        self._queue: SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = SimpleQueue()
        threading.Thread(target=self._run, name="compute", daemon=True).start()

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Run a function after those that were submitted before it, and return its future result or error."""
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
