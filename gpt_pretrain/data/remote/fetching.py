"""Background threads that fetch blocks before they are read.

Executors of the standard library are not used here: Python waits for their threads at exit, and a read that hangs would block
it.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue

Block = tuple[str, int]  # the name of a file and the number of a block in it


class StoppedError(Exception):
    """Raised in a fetcher thread that has been stopped."""


class FetcherThread(threading.Thread):
    """A daemon thread that ends at its next pause once its `stop` event is set."""

    def __init__(self, job: Callable[[], None], stop: threading.Event, *, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.job = job
        self.stop = stop

    def run(self) -> None:
        try:
            self.job()
        except StoppedError:
            return


class BlockFetcher:
    """Threads that fetch blocks in the order of the requests.

    Args:
        fetch: Returns the bytes of a block.
        threads: Number of threads.
        background_job: A job for one more thread, or None.

    Attributes:
        pending: The blocks that have been requested but not fetched yet.
        stopped: Set once the threads have been asked to stop.
    """

    def __init__(
        self, fetch: Callable[[Block], bytes], *, threads: int, background_job: Callable[[], None] | None = None
    ) -> None:
        self.fetch = fetch
        self.pending: dict[Block, Future[bytes]] = {}
        self.stopped = threading.Event()
        self._requests: SimpleQueue[Block | None] = SimpleQueue()
        self.threads = [FetcherThread(self._work, self.stopped, name="block fetcher") for _ in range(threads)]
        if background_job is not None:
            self.threads.append(FetcherThread(background_job, self.stopped, name="file fetcher"))
        for thread in self.threads:
            thread.start()
        _active.add(self)

    def request(self, block: Block) -> None:
        """Queue a block to be fetched, unless it is pending already."""
        if block not in self.pending:
            self.pending[block] = Future()
            self._requests.put(block)

    def stop(self) -> None:
        """Ask all threads to end soon; blocks that are still in the queue are not fetched."""
        self.stopped.set()
        for _ in self.threads:
            self._requests.put(None)

    def _work(self) -> None:
        while (block := self._requests.get()) is not None and not self.stopped.is_set():
            try:
                self.pending[block].set_result(self.fetch(block))
            except Exception as error:  # raised again by the future, for the reader of the block
                self.pending[block].set_exception(error)
            del self.pending[block]


_active: weakref.WeakSet[BlockFetcher] = weakref.WeakSet()  # of this process


def stop_fetching() -> None:
    """Stop all fetcher threads of this process. A later read starts new ones."""
    for fetcher in list(_active):
        fetcher.stop()
    _active.clear()


def pause(seconds: float) -> None:
    """Wait, but not longer than until the current fetcher thread is stopped.

    Raises:
        StoppedError: If this is a fetcher thread that has been stopped.
    """
    thread = threading.current_thread()
    if not isinstance(thread, FetcherThread):
        time.sleep(seconds)
    elif thread.stop.wait(seconds):
        raise StoppedError
