"""How a command reports an error, and the exit codes."""

from __future__ import annotations

import sys
import time
import traceback
from pathlib import Path

from gpt_pretrain.errors import UserError
from gpt_pretrain.training.distributed.ranks import is_main, rank

EXIT_LOST_END, EXIT_USER_ERROR = 1, 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT
PATIENCE_SECONDS = 3.0


def print_error(error: UserError, *, log_file: Path | None = None) -> int:
    """Print each problem on standard error, keep the traceback in log_file, and return the exit code."""
    if not is_main():
        time.sleep(PATIENCE_SECONDS)  # the first rank most likely says the same, and this one is ended meanwhile
        print(f"rank {rank()}:", end=" ", file=sys.stderr)
    head = "error: " if len(error.problems) == 1 else f"{len(error.problems)} errors:\n  - "
    print(head + "\n  - ".join(error.problems), file=sys.stderr)
    if log_file is not None:
        with open(log_file, "a", encoding="utf-8") as stream:
            traceback.print_exception(error, file=stream)
    return EXIT_USER_ERROR
