"""The course of a sweep: which jobs are still to be run, where each has its folder, and what is told at the end."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from gpt_pretrain.errors import UserError
from gpt_pretrain.runs.folder import display_path
from gpt_pretrain.runs.metadata import (
    COMPLETE,
    INTERRUPTED,
    PRUNED,
    RUNNING,
    is_running,
    read_metadata,
    stored_overrides,
    update_metadata,
)
from gpt_pretrain.runs.next_commands import sweep_resume_command, tensorboard_command
from gpt_pretrain.sweeps import results
from gpt_pretrain.sweeps.results import Job
from gpt_pretrain.sweeps.write_report import REPORT, keep_report
from gpt_pretrain.system.formatting import format_count

LONGEST_CELL = 80  # characters
LONGEST_NAME = 120  # bytes; file systems take 255

Launch = Callable[[Sequence[Sequence[str]], int], None]


def job_folder(words: Sequence[str]) -> str:
    """The name of a job's folder: its settings, and a checksum where they are too long, or not all of them can stand there."""
    text = ",".join(sorted(words))
    name = re.sub(r"[^\w.,=+~-]", "_", text)
    if name == text and 0 < len(name.encode()) <= LONGEST_NAME:
        return name
    short = name.encode()[:LONGEST_NAME].decode(errors="ignore")
    return f"{short}-{zlib.crc32(text.encode()):08x}" if words else "job"


class Jobs:
    """The jobs of a sweep.

    Args:
        folder: the sweep's.
        launch: runs jobs, given their words and the number of the first.
        common: words that every job gets.

    Attributes:
        planned: the folders of the jobs that this sweep has asked for.
    """

    def __init__(self, folder: Path, *, launch: Launch, common: Sequence[str]) -> None:
        self.folder = folder
        self.launch = launch
        self.common = common
        self.planned: list[str] = []
        self._number = 0

    def run(self, batch: Sequence[tuple[Sequence[str], str]]) -> list[float | None]:
        """Run jobs, given as their words and the names of their folders, except for those that have been done.

        Returns:
            The validation loss of each, None for those that failed.
        """
        jobs = {name: words for words, name in batch}
        self.planned += [name for name in jobs if name not in self.planned]
        left = {name: words for name, words in jobs.items() if not self._is_done(name, words)}
        for n, what in ((len(batch) - len(jobs), "are there twice"), (len(jobs) - len(left), "are done already")):
            if n:
                _say(f"{n} of {len(batch)} jobs {what} and left out.")
        if left:
            try:
                self.launch(
                    [[*words, *self.common, f"hydra.sweep.subdir='{name}'"] for name, words in left.items()], self._number
                )
            except Exception as error:  # a launcher lost one of its processes, and with it the values of the others
                _say(f"error: the launcher failed: {error}")
                for name in left:
                    if self._state(name) == RUNNING and not is_running(self.folder / name):
                        update_metadata(self.folder / name, state=INTERRUPTED)
        self._number += len(left)
        return [self._value(name) for _, name in batch]

    def was_pruned(self, name: str) -> bool:
        """Whether the job of that folder was ended early, because others were better."""
        return self._state(name) == PRUNED

    def left(self) -> list[str]:
        """The jobs asked for that have not come to their end."""
        return [name for name in self.planned if self._state(name) not in COMPLETE]

    def _is_done(self, name: str, words: Sequence[str]) -> bool:
        """Whether a job has come to its end, with these settings."""
        return self._state(name) in COMPLETE and set(words) <= set(stored_overrides(read_metadata(self.folder / name)))

    def _state(self, name: str) -> str | None:
        return read_metadata(self.folder / name).get("state")

    def _value(self, name: str) -> float | None:
        record = read_metadata(self.folder / name)
        result = record.get("result") or {}
        return result.get("best_val_loss") if record.get("state") in COMPLETE else None


@contextmanager
def run_sweep(folder: Path, *, launch: Launch, script: str, common: Sequence[str]) -> Iterator[Jobs]:
    """The jobs of a sweep in its folder, ranked when all is done, or when it ends before that.

    Raises:
        SystemExit: with 1, at the end, when a job has not come to its end.
    """
    jobs = Jobs(folder, launch=launch, common=common)
    try:
        yield jobs
    except UserError:
        raise
    except BaseException:
        tell(folder, script=script, left=jobs.left())
        raise
    tell(folder, script=script, left=jobs.left())
    if jobs.left():
        raise SystemExit(1)


def tell(folder: Path, *, script: str, left: Sequence[str] = ()) -> None:
    """Rank the jobs of a sweep on the screen and in files, and say what to do next.

    Args:
        left: folders of jobs that have not come to their end.
    """
    jobs = results.read_sweep(folder)
    if not jobs:
        return
    shown = display_path(folder)
    lines = _generations(jobs, folder) if script == "generate.py" else _ranking(jobs, folder, script=script)
    lines += [f"{job.folder.name} {job.state}: {job.record['error']}" for job in jobs if job.record.get("error")]
    if script == "train.py" and any(folder.glob("*/events.out.tfevents.*")):
        lines += ["Next:", f"  {tensorboard_command(shown)}"]
    if left:
        lines += [
            f"{format_count(len(left), 'job')} did not come to {'its' if len(left) == 1 else 'their'} end. To go on:",
            f"  {sweep_resume_command(shown, script=script)}",
        ]
    _say("\n".join(lines))


def _ranking(jobs: Sequence[Job], folder: Path, *, script: str) -> list[str]:
    """The ranked table of runs, the best, and the files that say the same."""
    from gpt_pretrain.sweeps.chart import keep_chart

    results.write_summary(jobs, folder)
    keep_chart(jobs, folder)
    keep_report(folder)
    lines = ["", results.aligned_table(results.ranking_table(jobs)), ""]
    unheard = [key for key in results.swept_keys(jobs) if key == "start_context" or key.startswith("sampler")]
    if unheard:
        lines.append(
            f"What {' and '.join(unheard)} {'changes' if len(unheard) == 1 else 'change'} is the samples, not the training."
        )
    best, command = results.best_job(jobs), results.best_command(jobs, script=script)
    if best is None or command is None:
        lines.append("No job has come to its end with a validation loss.")
    else:
        lines += [f"Best: {best.val_loss:.4f} nats a token, in {display_path(best.folder)}. To repeat it:", f"  {command}"]
    files = [name for name in (REPORT, results.SUMMARY, results.CHART) if (folder / name).exists()]
    return [*lines, f"Files in {display_path(folder)}:", f"  {', '.join(files)}"]


def _generations(jobs: Sequence[Job], folder: Path) -> list[str]:
    """The table of texts that were generated."""
    rows = results.generations_table(sorted(jobs, key=lambda job: str(job.record.get("started"))))
    results.write_summary_rows(rows, folder)
    table = results.aligned_table([[_short(cell) for cell in row] for row in rows])
    return ["", table, "", f"The whole texts: {display_path(folder / results.SUMMARY)}"]


def _short(cell: str) -> str:
    """A cell of a table that stays on a screen: one line, and of a long one its two ends, where samples differ."""
    line = " ".join(cell.split())
    return line if len(line) <= LONGEST_CELL else f"{line[: LONGEST_CELL // 4]} ... {line[-LONGEST_CELL * 3 // 4 :]}"


def _say(text: str) -> None:
    from gpt_pretrain.system.terminal import console

    console.print(text, markup=False, highlight=False, soft_wrap=True, emoji=False)
