"""Run the jobs of a sweep that are not complete, and print the ranking at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from gpt_pretrain.config.free_text import plain_value
from gpt_pretrain.config.overrides import short_form, split_override
from gpt_pretrain.config.secrets import override_without_secrets
from gpt_pretrain.errors import UserError
from gpt_pretrain.runs.folder import REPORT, WRITTEN_BY_RUNS, check_folder_name, check_no_links, display_path
from gpt_pretrain.runs.metadata import (
    COMPLETE,
    INTERRUPTED,
    MAX_LISTED,
    PRUNED,
    RUNNING,
    has_different_texts,
    is_running,
    metadata_section,
    metadata_texts,
    read_metadata,
    stored_overrides,
    update_metadata,
)
from gpt_pretrain.runs.next_commands import sweep_resume_command, tensorboard_command
from gpt_pretrain.runs.report.saving import try_save_page
from gpt_pretrain.sweeps import results
from gpt_pretrain.sweeps.folder import CHART, SUMMARY
from gpt_pretrain.sweeps.results import Job
from gpt_pretrain.system.formatting import format_count, is_finite_number, shorten_middle
from gpt_pretrain.system.tables import format_table

MAX_CELL_CHARACTERS = 80

Launch = Callable[[Sequence[Sequence[str]], int], None]


class JobRunner:
    """Runs the jobs of a sweep, each in its own folder.

    Args:
        folder: The folder of the sweep.
        launch: Runs jobs. It gets their overrides and the number of the first job.
        common: The overrides that every job gets.

    Attributes:
        requested: The folder names of the jobs that this sweep has asked for.
    """

    def __init__(self, folder: Path, *, launch: Launch, common: Sequence[str]) -> None:
        self.folder = folder
        self.launch = launch
        self.common = common
        self.requested: list[str] = []
        self._next_number = 0

    def run(self, batch: Sequence[tuple[Sequence[str], str]], *, by_bits: bool = False) -> list[float | None]:
        """Run the jobs of a batch that are not complete.

        Args:
            batch: The overrides and the folder name of each job.
            by_bits: Whether jobs have different tokenizers, and are compared in bits per byte.

        Returns:
            The lowest validation loss of each job, in nats per token or bits per byte. It is None for jobs that failed.
        """
        jobs = {name: overrides for overrides, name in batch}
        self.requested += [name for name in jobs if name not in self.requested]
        left = {name: overrides for name, overrides in jobs.items() if not self._is_complete(name, overrides)}
        for skipped, reason in ((len(batch) - len(jobs), "duplicates"), (len(jobs) - len(left), "already complete")):
            if skipped:
                _print(f"Skipped {skipped} of {len(batch)} jobs: {reason}.")
        if left:
            self._launch(left)
        return [self._best_score(name, by_bits=by_bits) for _, name in batch]

    def was_pruned(self, name: str) -> bool:
        """Return whether the job in this folder was ended early because it fell behind the others."""
        return self._state(name) == PRUNED

    def unfinished(self) -> list[str]:
        """Return the folder names of the requested jobs that are not complete."""
        return [name for name in self.requested if self._state(name) not in COMPLETE]

    def _launch(self, jobs: dict[str, Sequence[str]]) -> None:
        for name in jobs:  # This must come before Hydra writes the logs of the jobs.
            check_folder_name(self.folder / name)
            check_no_links(self.folder, [name, *(f"{name}/{written}" for written in WRITTEN_BY_RUNS)])
        overrides = [[*own, *self.common, f"hydra.sweep.subdir='{name}'"] for name, own in jobs.items()]
        try:
            self.launch(overrides, self._next_number)
        except UserError:
            raise
        except Exception as error:  # A launcher that loses one of its processes raises, and the other jobs have no results.
            _print(f"error: the launcher failed: {error}")
            for name in jobs:
                if self._state(name) == RUNNING and not is_running(self.folder / name):
                    update_metadata(self.folder / name, state=INTERRUPTED)
        self._next_number += len(jobs)

    def _is_complete(self, name: str, overrides: Sequence[str]) -> bool:
        """Return whether a job was completed with these overrides."""
        stored = set(map(_without_quotes, stored_overrides(self._metadata(name))))
        asked = {_without_quotes(short_form(override_without_secrets(override))) for override in overrides}
        return self._state(name) in COMPLETE and asked <= stored

    def _state(self, name: str) -> str | None:
        return self._metadata(name).get("state")

    def _metadata(self, name: str) -> dict[str, Any]:
        """Return the metadata of a job; empty for a link, which may lead to one job thousands of times."""
        folder = self.folder / name
        return {} if folder.is_symlink() else read_metadata(folder)

    def _best_score(self, name: str, *, by_bits: bool) -> float | None:
        result = metadata_section(self._metadata(name), "result")
        loss = result.get("best_bits_per_byte" if by_bits else "best_val_loss")
        return loss if is_finite_number(loss) and self._state(name) in COMPLETE else None


@contextmanager
def open_sweep(folder: Path, *, launch: Launch, script: str, common: Sequence[str]) -> Iterator[JobRunner]:
    """Yield the runner of a sweep's jobs. Print the summary when the block ends, even if it is interrupted.

    Raises:
        SystemExit: With code 1 at the end if a job is not complete.
    """
    runner = JobRunner(folder, launch=launch, common=common)
    try:
        yield runner
    except UserError:
        raise
    except BaseException:
        print_sweep_summary(folder, script=script, unfinished=runner.unfinished(), is_interrupted=True)
        raise
    print_sweep_summary(folder, script=script, unfinished=runner.unfinished(), requested=runner.requested)
    if runner.unfinished():
        raise SystemExit(1)


def print_sweep_summary(
    folder: Path,
    *,
    script: str,
    unfinished: Sequence[str] = (),
    requested: Sequence[str] | None = None,
    is_interrupted: bool = False,
) -> None:
    """Write the summary files of a sweep, and print its ranking and the next commands.

    Args:
        script: The script that the sweep was started with: "train.py" or "generate.py".
        unfinished: The folder names of jobs that are not complete.
        requested: The folder names of all jobs that this start of the sweep has asked for; None if they are not known.
        is_interrupted: Whether the sweep was stopped, perhaps before it had chosen its next jobs.
    """
    from gpt_pretrain.system.terminal import escape_problem

    jobs = results.read_sweep(folder)
    if not jobs and not unfinished:
        return
    summarize = _summarize_generations if script == "generate.py" else partial(_summarize_runs, script=script)
    lines = summarize(jobs, folder) if jobs else []
    for job in (one for one in jobs if one.metadata.get("error")):
        first, *others = str(job.metadata["error"]).splitlines() or [""]
        more = f" (and {format_count(len(others), 'more problem')})" if others else ""
        lines.append(escape_problem(f"{job.folder.name} {shorten_middle(job.state, 100)}: {first}{more}"))
    dropped = [] if requested is None else [job for job in jobs if job.folder.name not in requested]
    dropped = [job for job in dropped if job.state not in (*COMPLETE, RUNNING)]  # Another process may run some of them.
    if dropped:
        names, place = ", ".join(job.folder.name for job in dropped[:3]), "its folder" if len(dropped) == 1 else "their folders"
        more = f" and {len(dropped) - 3:,} more" * (len(dropped) > 3)
        listed = f"No longer asked for, but still in the table: {names}{more}. To change this, delete {place}."
        lines.append(escape_problem(listed))
    if script == "train.py" and any(folder.glob("*/events.out.tfevents.*")):
        lines += ["Next:", f"  {tensorboard_command(display_path(folder))}"]
    if unfinished or is_interrupted:
        left = f"{format_count(len(unfinished), 'job')} did not finish. " if unfinished else ""
        lines += [f"{left}To resume:", f"  {sweep_resume_command(display_path(folder), script=script)}"]
    _print("\n".join(lines))


def _summarize_runs(jobs: Sequence[Job], folder: Path, *, script: str) -> list[str]:
    """Write the ranking, the chart and the report page, and return the lines to print."""
    from gpt_pretrain.sweeps.chart import save_chart
    from gpt_pretrain.sweeps.report_page import save_sweep_page

    results.write_ranking(jobs, folder)
    save_chart(jobs, folder)
    try_save_page(folder, save_sweep_page)
    lines = ["", format_table(results.ranking_rows(jobs)), ""]
    sampling = [key for key in results.swept_keys(jobs) if key == "start_context" or key.startswith("sampler")]
    if sampling:
        verb = "affects" if len(sampling) == 1 else "affect"
        lines.append(f"{' and '.join(sampling)} {verb} only the samples, not the training.")
    if results.has_different_tokenizers(jobs):
        lines.append(
            "The jobs have different tokenizers, so they are ranked by bits per byte."
            if jobs[0].by_bits
            else "The jobs have different tokenizers, so their losses per token cannot be compared."
        )
    if has_different_texts(job.metadata for job in jobs):
        lines.append(
            "The jobs are validated on different texts, of which some are easier to predict than others: a lower loss does not "
            "mean a better model."
        )
    elif keys := results.different_parts(jobs):
        lines.append(
            f"The jobs are validated on different parts of the text ({', '.join(keys)}), of which some are easier to predict "
            "than others: a lower loss does not mean a better model."
        )
    best, command = results.best_job(jobs), results.best_command(jobs, script=script)
    if best is None:
        lines.append("No job has finished with a validation loss.")
    else:
        repeat = [" To repeat it:", f"\n  {command}"] if command is not None else []
        lines.append("".join([f"Best: {best.score:.4f} {best.unit}, in {display_path(best.folder)}.", *repeat]))
    files = [name for name in (REPORT, SUMMARY, CHART) if (folder / name).exists()]
    return [*lines, f"Files in {display_path(folder)}:", f"  {', '.join(files)}"]


def _summarize_generations(jobs: Sequence[Job], folder: Path) -> list[str]:
    """Write the generated texts to summary.csv, and return the lines to print."""
    rows = results.generation_rows(sorted(jobs, key=lambda job: str(job.metadata.get("started"))))
    results.write_generations(rows, folder)
    table = format_table([[_shorten_cell(cell) for cell in row] for row in rows])
    summary = display_path(folder / SUMMARY)
    if all(len(metadata_texts(job.metadata, "texts")) < MAX_LISTED for job in jobs):
        return ["", table, "", f"The complete texts are in {summary}."]
    first = f"{summary} has the first {MAX_LISTED:,} texts of each job."
    return ["", table, "", f"{first} All of them are in samples.txt in the jobs' folders."]


def _shorten_cell(cell: str) -> str:
    """Return a cell on one line. The middle of a long cell is left out, since samples differ at the end."""
    line = " ".join(cell.split())
    limit = MAX_CELL_CHARACTERS
    return line if len(line) <= limit else f"{line[: limit // 4]} ... {line[-limit * 3 // 4 :]}"


def _without_quotes(override: str) -> tuple[str, str]:
    """Return an override in a form that does not depend on how its value is quoted for Hydra."""
    key, value = split_override(override)
    return key, plain_value(value)


def _print(text: str) -> None:
    from gpt_pretrain.system.terminal import console, escape_controls

    console.print(escape_controls(text), markup=False, highlight=False, soft_wrap=True, emoji=False)
