"""Show the progress of a preparation: a bar in a terminal, a line every minute elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID

from gpt_pretrain.prepare.segments import RecordCounts
from gpt_pretrain.system.terminal import open_console, progress_bar

SECONDS_BETWEEN_UPDATES, SECONDS_BETWEEN_LINES = 0.5, 60.0


class PreparationProgress:
    """Show the number of documents, MB/s, tokens/s and the time left.

    Args:
        total: Total size of the inputs in bytes; None if unknown.
        console: The console to print to; standard error by default, so that standard output can be redirected.
    """

    def __init__(self, total: int | None, console: Console | None = None) -> None:
        self._console = open_console(stderr=True) if console is None else console
        self._total = total
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._updated = 0.0
        self._printed = time.monotonic()
        self._start = (time.monotonic(), 0, 0)

    def start_encoding(self, counts: RecordCounts) -> None:
        """Start measuring the rate of encoding.

        Args:
            counts: The records that an interrupted preparation has already encoded.
        """
        self._start = (time.monotonic(), counts.text_bytes, counts.tokens)

    def update_encoding(self, counts: RecordCounts, *, bytes_read: int) -> None:
        """Show the progress of encoding.

        Args:
            bytes_read: Bytes read from the files.
        """
        now = time.monotonic()
        if now - self._updated < SECONDS_BETWEEN_UPDATES:
            return
        self._updated = now
        if self._bar is None:
            self._start_task("documents", self._total, completed=bytes_read)
        started, text_bytes, tokens = self._start
        seconds = max(now - started, 1e-9)
        megabytes_per_second = (counts.text_bytes - text_bytes) / 1e6 / seconds
        encoded = counts.tokens - tokens
        rate = f"{megabytes_per_second:.1f} MB/s" + (f"  {encoded / seconds:,.0f} tokens/s" if encoded else "")
        done = f"{counts.records - counts.rejected - counts.empty:,}"
        self._update(completed=bytes_read, done=done, rate=f"{rate} ")
        if self._bar is None and now - self._printed >= SECONDS_BETWEEN_LINES:
            self._printed = now
            share = f"{bytes_read / self._total:.0%}  " if self._total else ""
            self._console.print(f"{share}{done} documents  {rate}", highlight=False)

    def start_writing(self, shards: int, *, done: int) -> None:
        """Show that shards are being written.

        Args:
            done: Number of shards that an interrupted preparation has already written.
        """
        self._start_task("shards", shards, completed=done)
        self._update(done=f"{shards:,}")

    def advance_writing(self) -> None:
        """Count one more shard."""
        if self._bar is not None:
            self._bar.advance(self._task)

    def _update(self, **fields: Any) -> None:
        if self._bar is not None:
            self._bar.update(self._task, **fields)

    def _start_task(self, description: str, total: int | None, *, completed: int) -> None:
        if not self._console.is_terminal:
            return
        if self._bar is None:
            self._bar = progress_bar(self._console, "{task.fields[done]} {task.description}", "{task.fields[rate]}")
            self._bar.start()
        else:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(description, total=total, completed=completed, done="-", rate="")

    def __enter__(self) -> PreparationProgress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
