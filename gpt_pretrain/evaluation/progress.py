"""Show the progress of scoring."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gpt_pretrain.system.terminal import escape_line, open_console, progress_bar

SECONDS_BETWEEN_LINES = 60.0


@contextmanager
def scoring_progress(label: str, *, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Yield a function that shows an amount of work on standard error: a bar in a terminal, otherwise a line per minute.

    Args:
        label: A name for the work.
        total: The amount of work in all.
        unit: The unit of the amount, in the plural.
    """
    console, printed, label = open_console(stderr=True), time.monotonic(), escape_line(label)
    if not console.is_terminal:

        def report(done: int) -> None:
            nonlocal printed
            if time.monotonic() - printed >= SECONDS_BETWEEN_LINES:
                printed = time.monotonic()
                console.print(f"{label}: {done / max(total, 1):.0%} of {total:,} {unit}", markup=False, soft_wrap=True)

        yield report
        return
    with progress_bar(console, "{task.description}", "{task.percentage:.0f}% ") as bar:
        task = bar.add_task(label, total=total)
        yield lambda done: bar.update(task, completed=done)
