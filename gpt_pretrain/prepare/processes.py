"""Worker processes, and the signals that interrupt a preparation."""

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
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, NamedTuple, TypeVar

from gpt_pretrain.errors import UserError
from gpt_pretrain.prepare.shared_slots import Packed, SharedSlots, run_packed, share_slots
from gpt_pretrain.prepare.tokenizing import cached_encoder
from gpt_pretrain.system.terminal import print_escaped
from gpt_pretrain.texts.chunks import BATCH

Job = TypeVar("Job")
Result = TypeVar("Result")

QUEUED_PER_WORKER = 3  # Jobs in the queue per worker, so that no worker waits for the reader.
QUEUED_BYTES = 1 << 26  # Bytes of queued jobs: many small ones, or a single one with a very long record.


class _Submitted(NamedTuple):
    """A job in the queue, and the slot that it occupies until its result has been read."""

    future: Future[Packed]
    slot: int | None


class WorkerPool:
    """Processes that run jobs and return the results in order. A single worker runs in this process.

    Args:
        count: Number of workers. It becomes 1 if no process can be started.
        tokenizer: Name of the tokenizer. It is loaded before the processes are forked, so that they share its memory.
        fast: Load the fast library too.
    """

    def __init__(self, count: int, tokenizer: str, *, fast: bool = False) -> None:
        self.count = count
        self._pool: ProcessPoolExecutor | None = None
        self._slots = SharedSlots(0)
        cached_encoder(tokenizer, use_library=fast)
        if count > 1:
            try:
                self._start()
            except OSError as error:  # Some containers lack /dev/shm for locks. Or there are too many processes.
                _kill_workers()
                self.count, self._pool, self._slots = 1, None, SharedSlots(0)
                print_escaped(
                    f"No worker processes can be started here ({error.strerror or error}), so this process does all the work.",
                    file=sys.stderr,
                )

    def _start(self) -> None:
        is_forked = sys.platform == "linux"
        context = multiprocessing.get_context("fork" if is_forked else "spawn")
        self._slots = SharedSlots(QUEUED_PER_WORKER * self.count + 1 if is_forked else 0)
        gc.freeze()  # Otherwise a garbage collection in a worker would copy every page that it visits.
        self._pool = ProcessPoolExecutor(
            self.count, mp_context=context, initializer=_initialize_worker, initargs=(self._slots if is_forked else None,)
        )
        self._pool.submit(os.getpid).result()  # Fork the processes now, while there is only one thread.

    def map(
        self, function: Callable[[Job], Result], jobs: Iterable[Job], *, size: Callable[[Job], int] | None = None
    ) -> Iterator[tuple[Job, Result]]:
        """Yield each job with its result, in order.

        Args:
            size: Returns the size of a job in bytes, to limit the memory of the queue; None for jobs of negligible size.

        Raises:
            UserError: If a worker process was killed.
        """
        if self._pool is None:
            for job in jobs:
                yield job, function(job)
            return
        queue: deque[tuple[Job, _Submitted, int]] = deque()
        queued_bytes, limit = 0, max(QUEUED_BYTES, 2 * self.count * BATCH)
        try:
            for job in jobs:
                job_size = 0 if size is None else size(job)
                while queue and (
                    len(queue) >= QUEUED_PER_WORKER * self.count or queued_bytes + job_size > limit or queue[0][1].future.done()
                ):
                    first, submitted, first_size = queue.popleft()
                    queued_bytes -= first_size
                    yield first, self._result(submitted)
                queue.append((job, self._submit(function, job), job_size))
                queued_bytes += job_size
            while queue:
                first, submitted, _ = queue.popleft()
                yield first, self._result(submitted)
        except BrokenProcessPool as error:
            _kill_workers()  # The pool waits for the other workers, but they ignore its SIGTERM.
            raise UserError(
                "A worker process was killed, probably because memory ran out. Run the same command again with a smaller "
                "workers= to resume."
            ) from error
        finally:
            for _, submitted, _ in queue:  # if the caller or a job fails
                self._abandon(submitted)

    def _submit(self, function: Callable[[Job], Result], job: Job) -> _Submitted:
        assert self._pool is not None, "there are workers"
        slot = self._slots.take()
        return _Submitted(self._pool.submit(run_packed, function, self._slots.pack(job, slot), slot), slot)

    def _result(self, submitted: _Submitted) -> Any:
        try:
            return self._slots.unpack(submitted.future.result())
        finally:
            self._slots.release(submitted.slot)

    def _abandon(self, submitted: _Submitted) -> None:
        """Cancel a job. Its slot becomes free once no worker writes to it any more."""
        submitted.future.cancel()
        submitted.future.add_done_callback(lambda _: self._slots.release(submitted.slot))

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=kind is None, cancel_futures=True)


def _kill_workers() -> None:
    for process in multiprocessing.active_children():
        process.kill()


class Interrupt:
    """The signal that asked the preparation to stop, if any.

    Attributes:
        signal: Number of the signal, or 0.
    """

    def __init__(self) -> None:
        self.signal = 0

    def exit_if_requested(self) -> None:
        """Exit if a signal has arrived.

        Raises:
            SystemExit: With the code 128 + the signal's number.
        """
        if self.signal:
            print("Interrupted. Run the same command again to resume.", file=sys.stderr)
            sys.exit(128 + self.signal)


@contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Record the first Ctrl-C or SIGTERM during the block. A second one exits immediately."""
    interrupt = Interrupt()

    def handle(number: int, _: FrameType | None) -> None:
        if interrupt.signal:
            sys.exit(128 + number)
        interrupt.signal = number
        name = signal.Signals(number).name
        os.write(2, f"\n{name}: stopping as soon as the current work is saved. Interrupt again to stop immediately.\n".encode())

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupt
    except UserError:  # The signal may have reached other processes too and caused the error.
        interrupt.exit_if_requested()
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _initialize_worker(slots: SharedSlots | None) -> None:
    """Ignore signals, since the main process handles them, and exit as soon as the main process ends.

    Args:
        slots: The slots of the main process. A forked worker shares them.
    """
    if slots is not None:
        share_slots(slots)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"

    def exit_with_parent() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()
