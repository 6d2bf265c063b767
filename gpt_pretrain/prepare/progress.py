"""What can be seen while a corpus is prepared: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from gpt_pretrain.prepare.pieces import Counts

SECONDS_BETWEEN_UPDATES, SECONDS_BETWEEN_LINES = 0.5, 60.0


class Progress:
    """Documents, MB/s, tokens/s and time left.

    Args:
        total: bytes to be read; None where nobody knows.
        console: where; standard error, so that what is printed can go elsewhere.
    """

    def __init__(self, total: int | None, console: Console | None = None) -> None:
        self._console = Console(stderr=True) if console is None else console
        self._total = total
        self._bar: Bar | None = None
        self._task = TaskID(0)
        self._shown = 0.0
        self._told = time.monotonic()
        self._since = (time.monotonic(), 0, 0)

    def encoding(self, counts: Counts) -> None:
        """Show that documents are read from now on, behind those that were before."""
        self._since = (time.monotonic(), counts.text_bytes, counts.tokens)

    def encoded(self, counts: Counts, *, read: int) -> None:
        """Show how far that is.

        Args:
            read: bytes of the files.
        """
        now = time.monotonic()
        if now - self._shown < SECONDS_BETWEEN_UPDATES:
            return
        self._shown = now
        if self._bar is None:
            self._start("documents", self._total, completed=read)
        seconds = max(now - self._since[0], 1e-9)
        megabytes, tokens = (counts.text_bytes - self._since[1]) / 1e6 / seconds, (counts.tokens - self._since[2]) / seconds
        done = f"{counts.records - counts.rejected - counts.empty:,}"
        speed = f"{megabytes:.1f} MB/s  {tokens:,.0f} tokens/s"
        self._update(completed=read, done=done, speed=f"{speed} ")
        if self._bar is None and now - self._told >= SECONDS_BETWEEN_LINES:
            self._told = now
            share = f"{read / self._total:.0%}  " if self._total else ""
            self._console.print(f"{share}{done} documents  {speed}", highlight=False)

    def writing(self, shards: int, *, done: int) -> None:
        """Show that shards are written from now on, and how many are there already."""
        self._start("shards", shards, completed=done)
        self._update(done=f"{shards:,}")

    def written(self) -> None:
        """Show that one shard more is done."""
        if self._bar is not None:
            self._bar.advance(self._task)

    def _update(self, **fields: Any) -> None:
        if self._bar is not None:
            self._bar.update(self._task, **fields)

    def _start(self, what: str, total: int | None, *, completed: int) -> None:
        if not self._console.is_terminal:
            return
        if self._bar is None:
            self._bar = Bar(
                TextColumn("{task.fields[done]} {task.description}"),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[speed]}"),
                TimeRemainingColumn(compact=True, elapsed_when_finished=True),
                TextColumn("left"),
                console=self._console,
                refresh_per_second=2,
                transient=True,
                expand=True,
            )
            self._bar.start()
        else:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(what, total=total, completed=completed, done="-", speed="")

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
