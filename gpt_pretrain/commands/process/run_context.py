"""The frame around a run: error reporting, the log file, the run metadata and the report page."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from gpt_pretrain.commands.process.failures import report_failures
from gpt_pretrain.commands.process.job import start_info
from gpt_pretrain.errors import AlreadyCompleteError
from gpt_pretrain.runs.folder import METRICS, check_no_links
from gpt_pretrain.runs.metadata import metadata_section, read_metadata, track_run, update_metadata
from gpt_pretrain.runs.report.saving import report_at_end
from gpt_pretrain.system.interrupts import exit_on_signals
from gpt_pretrain.training.distributed.ranks import explain_lost_ranks, is_distributed

LOG_FILE = "train.log"


@contextmanager
def run_context(run_dir: Path, *, script: str, writes: bool) -> Iterator[None]:
    """Run a block as a run. An error that the user can fix becomes a message and an exit code, or fails one job of a sweep.

    A job of a sweep that has nothing left to train succeeds. The writing process also keeps run.json up to date, and adds the
    traceback of an error to train.log. When the run ends, with or without success, it writes report.html.

    Args:
        script: The name of the entry script, for the run metadata.
        writes: Whether this process writes the run's files. Only one process of a training does.
    """
    started = start_info(script)
    with report_failures(log_file=run_dir / LOG_FILE if writes else None), ExitStack() as stack:
        if writes:
            check_no_links(run_dir)
            stack.enter_context(report_at_end(run_dir))
            stack.enter_context(track_run(run_dir, **started))
            if not is_distributed():  # A rank that waits for another one can be ended only by being killed.
                stack.enter_context(exit_on_signals())
        stack.enter_context(explain_lost_ranks())
        try:
            yield
        except AlreadyCompleteError as complete:
            if started.get("swept") is None:
                raise
            if writes:
                update_metadata(run_dir, result=metadata_section(read_metadata(run_dir), "result") | complete.result)
        except KeyboardInterrupt:
            if writes and not (run_dir / METRICS).exists():
                print("\nStopped by Ctrl-C before the training began.", file=sys.stderr)
            raise
