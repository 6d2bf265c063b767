"""The course of a sweep: which jobs are still to be run, where each has its folder, and what is told at the end."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from gpt_pretrain import sweep_results
from gpt_pretrain.errors import UserError
from gpt_pretrain.record import COMPLETE, FAILED, INTERRUPTED, PRUNED, RUNNING, read_record, update_record
from gpt_pretrain.report import REPORT, keep_report
from gpt_pretrain.runs import place
from gpt_pretrain.wording import sweep_resume_command, tensorboard_command

LONGEST_CELL = 80  # characters
LONGEST_NAME = 120  # characters; file systems take 255 bytes

Launch = Callable[[Sequence[Sequence[str]], int], list[float | None]]


def job_folder(words: Sequence[str]) -> str:
    """The name of a job's folder: its settings, and a checksum where they are too long, or not all of them can stand there."""
    text = ",".join(sorted(words))
    name = re.sub(r"[^\w.,=+~-]", "_", text)
    if name == text and 0 < len(name) <= LONGEST_NAME:
        return name
    return f"{name[:LONGEST_NAME]}-{zlib.crc32(text.encode()):08x}" if words else "job"


class Jobs:
    """The jobs of a sweep.

    Args:
        folder: the sweep's.
        launch: runs jobs, given their words and the number of the first, and returns their values, None for those that failed.
        common: words that every job gets.
    """

    def __init__(self, folder: Path, *, launch: Launch, common: Sequence[str]) -> None:
        self.folder = folder
        self.common = common
        self.launch = launch
        self._number = 0

    def run(self, batch: Sequence[tuple[Sequence[str], str]]) -> list[float | None]:
        """Run jobs, given as their words and the names of their folders, except for those that have been done.

        Returns:
            The validation loss of each, None for those that failed.
        """
        left = [(words, name) for words, name in batch if self._state(name) not in COMPLETE]
        if len(left) < len(batch):
            _say(f"{len(batch) - len(left)} of {len(batch)} jobs are done already and left out.")
        if left:
            try:
                self.launch([[*words, *self.common, f"hydra.sweep.subdir='{name}'"] for words, name in left], self._number)
            except Exception as error:  # a launcher lost one of its processes, and with it the values of the others
                _say(f"error: the launcher failed: {error}")
                for _, name in left:
                    if self._state(name) == RUNNING:
                        update_record(self.folder / name, state=INTERRUPTED)
        self._number += len(left)
        return [self._value(name) for _, name in batch]

    def was_pruned(self, name: str) -> bool:
        """Whether the job of that folder was ended early, because others were better."""
        return self._state(name) == PRUNED

    def _state(self, name: str) -> str | None:
        return read_record(self.folder / name).get("state")

    def _value(self, name: str) -> float | None:
        record = read_record(self.folder / name)
        result = record.get("result") or {}
        return result.get("best_val_loss") if record.get("state") in COMPLETE else None


@contextmanager
def sweep(folder: Path, *, launch: Launch, script: str, common: Sequence[str]) -> Iterator[Jobs]:
    """The jobs of a sweep in its folder, ranked when all is done, or when it ends before that.

    Raises:
        SystemExit: with 1, at the end, when a job failed.
    """
    try:
        yield Jobs(folder, launch=launch, common=common)
    except UserError:
        raise
    except BaseException:
        tell(folder, script=script)
        raise
    tell(folder, script=script)
    if any(job.state == FAILED for job in sweep_results.read_sweep(folder)):
        raise SystemExit(1)


def tell(folder: Path, *, script: str) -> None:
    """Rank the jobs of a sweep on the screen and in files, and say what to do next."""
    jobs = sweep_results.read_sweep(folder)
    if not jobs:
        return
    if script == "generate.py":
        jobs = sorted(jobs, key=lambda job: str(job.record.get("started")))
        sweep_results.write_rows(sweep_results.generations(jobs), folder)
        rows = [[_short(cell) for cell in row] for row in sweep_results.generations(jobs)]
        _say(f"\n{sweep_results.aligned(rows)}\n\nThe whole texts: {place(folder / sweep_results.SUMMARY)}")
        return
    from gpt_pretrain.charts.sweep import keep_chart

    sweep_results.write_summary(jobs, folder)
    keep_chart(jobs, folder)
    keep_report(folder)
    files = [name for name in (REPORT, sweep_results.SUMMARY, sweep_results.CHART) if (folder / name).exists()]
    shown = place(folder)
    lines = ["", sweep_results.aligned(sweep_results.table(jobs)), ""]
    if drawing := [key for key in sweep_results.swept_keys(jobs) if key.partition(".")[0] == "sampler"]:
        lines.append(f"{' and '.join(drawing)} changes the samples only, not the training.")
    lines += [f"{job.folder.name} {job.state}: {job.record['error']}" for job in jobs if job.record.get("error")]
    command = sweep_results.best_command(jobs)
    if command is not None:
        best = jobs[0]
        lines += [f"Best: {best.val_loss:.4f} nats a token, in {place(best.folder)}. To repeat it:", f"  {command}"]
    else:
        lines.append("No job came as far as a validation loss.")
    lines += [f"Files in {shown}:", f"  {', '.join(files)}"]
    lines += ["Next:", f"  {tensorboard_command(shown)}"]
    if left := sweep_results.unfinished(jobs):
        lines += [
            f"{len(left)} of {len(jobs)} jobs did not come to their end. To go on with those:",
            f"  {sweep_resume_command(shown, script=script)}",
        ]
    _say("\n".join(lines))


def _short(cell: str) -> str:
    """A cell of a table that stays on a screen: one line, and of a long one its two ends, where samples differ."""
    line = " ".join(cell.split())
    return line if len(line) <= LONGEST_CELL else f"{line[: LONGEST_CELL // 4]} ... {line[-LONGEST_CELL * 3 // 4 :]}"


def _say(text: str) -> None:
    from gpt_pretrain.console import console

    console.print(text, markup=False, highlight=False, soft_wrap=True, emoji=False)
