"""Threads that fetch what will be needed, and jobs that are not waited for longer than they may take."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar

BlockName = tuple[str, int]  # a file, and which block of it
Result = TypeVar("Result")


class StoppedError(Exception):
    """What is being fetched is not wanted any more."""


class FetcherThread(threading.Thread):
    """A thread that nobody waits for when the process ends, and that gives up what it does once it is told to stop."""

    def __init__(self, job: Callable[[], None], stop: threading.Event, *, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.job = job
        self.stop = stop

    def run(self) -> None:
        try:
            self.job()
        except StoppedError:
            return


class Fetchers:
    """Threads that fetch blocks in the order in which they are named.

    Args:
        fetch: gets a block.
        threads: how many.
        beside: what another thread does meanwhile, if anything.

    Attributes:
        coming: the blocks that are not there yet.
        stopped: whether they have been told to stop.
    """

    def __init__(self, fetch: Callable[[BlockName], bytes], *, threads: int, beside: Callable[[], None] | None = None) -> None:
        self.fetch = fetch
        self.coming: dict[BlockName, Future[bytes]] = {}
        self.stopped = threading.Event()
        self._named: SimpleQueue[BlockName | None] = SimpleQueue()
        self.threads = [FetcherThread(self._work, self.stopped, name="fetcher") for _ in range(threads)]
        if beside is not None:
            self.threads.append(FetcherThread(beside, self.stopped, name="whole files"))
        for thread in self.threads:
            thread.start()
        _at_work.add(self)

    def begin(self, block: BlockName) -> None:
        """Have a block fetched, if it is not on its way already."""
        if block not in self.coming:
            self.coming[block] = Future()
            self._named.put(block)

    def stop(self) -> None:
        """Have all threads end soon, whatever they do; blocks that are still coming will not come."""
        self.stopped.set()
        for _ in self.threads:
            self._named.put(None)

    def _work(self) -> None:
        while (block := self._named.get()) is not None and not self.stopped.is_set():
            try:
                self.coming[block].set_result(self.fetch(block))
            except Exception as error:  # for whoever reads it
                self.coming[block].set_exception(error)
            del self.coming[block]


_at_work: weakref.WeakSet[Fetchers] = weakref.WeakSet()  # in this process


def stop_fetching() -> None:
    """End all threads of this process that fetch ahead; who reads again begins anew."""
    for fetchers in list(_at_work):
        fetchers.stop()
    _at_work.clear()


def pause(seconds: float) -> None:
    """Wait before the next try.

    Raises:
        StoppedError: in a thread that has been told to stop.
    """
    thread = threading.current_thread()
    if not isinstance(thread, FetcherThread):
        time.sleep(seconds)
    elif thread.stop.wait(seconds):
        raise StoppedError


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
