"""Threads that fetch what will be needed, and jobs that are not waited for longer than they may take."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar

BlockName = tuple[str, int]  # a file, and which block of it
Result = TypeVar("Result")


class Fetchers:
    """Threads that fetch blocks in the order in which they are named, and that nobody waits for at the end.

    Args:
        fetch: gets a block.
        threads: how many.

    Attributes:
        coming: the blocks that are not there yet.
    """

    def __init__(self, fetch: Callable[[BlockName], bytes], *, threads: int) -> None:
        self.fetch = fetch
        self.coming: dict[BlockName, Future[bytes]] = {}
        self._named: SimpleQueue[BlockName] = SimpleQueue()
        for _ in range(threads):
            threading.Thread(target=self._work, name="fetcher", daemon=True).start()

    def begin(self, block: BlockName) -> None:
        """Have a block fetched, if it is not on its way already."""
        if block not in self.coming:
            self.coming[block] = Future()
            self._named.put(block)

    def _work(self) -> None:
        while True:
            block = self._named.get()
            try:
                self.coming[block].set_result(self.fetch(block))
            except Exception as error:  # for whoever reads it
                self.coming[block].set_exception(error)
            del self.coming[block]


def within(seconds: float, job: Callable[[], Result]) -> Result:
    """What a job gives, if it does so in time.

    Raises:
        TimeoutError: when it does not; the job goes on in its thread, and nobody waits for it.
    """
    done: Future[Result] = Future()

    def run() -> None:
        try:
            done.set_result(job())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return done.result(seconds)
    except TimeoutError:
        raise TimeoutError(f"no answer within {seconds:g} seconds (data.remote.timeout)") from None
