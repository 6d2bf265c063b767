"""The report page of a sweep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpt_pretrain.config.free_text import as_typed
from gpt_pretrain.config.overrides import short_form
from gpt_pretrain.config.secrets import override_without_secrets
from gpt_pretrain.errors import UserError
from gpt_pretrain.runs.charts.curves import overlay_figure, thin_series
from gpt_pretrain.runs.folder import METRICS, REPORT, display_path, without_repetitions
from gpt_pretrain.runs.metadata import COMPLETE, FAILED, metadata_section, metadata_texts
from gpt_pretrain.runs.next_commands import generate_command, page_command, sweep_resume_command, tensorboard_command
from gpt_pretrain.runs.reader import MetricSeries, first_series, read_metrics, read_settings
from gpt_pretrain.runs.report.page_parts import (
    Picture,
    describe_state,
    facts_table,
    file_href,
    join_distinct,
    list_files,
    make_picture,
    printable,
    read_findings,
    render_page,
    shorten,
)
from gpt_pretrain.runs.report.run_page import setup_facts
from gpt_pretrain.sweeps.chart import sweep_figure
from gpt_pretrain.sweeps.folder import CHART, LADDER, STUDY, SUMMARY, SWEEP_SETTINGS, SWEEP_SIGNATURE, read_hydra_settings
from gpt_pretrain.sweeps.results import BITS_PER_BYTE, Job, best_command, best_job, ranking_rows, read_sweep, swept_keys
from gpt_pretrain.system.checkout import script_command
from gpt_pretrain.system.files import write_text
from gpt_pretrain.system.formatting import format_count
from gpt_pretrain.system.shell import join_words

MAX_JOBS = 200  # jobs in the table and the chart
TABLE_CHARACTERS = 120_000
CONFIG_CHARACTERS = 20_000
COMMAND_CHARACTERS = 4_000
MAX_CURVES = 40
MAX_DETAILS = 40  # jobs whose errors or findings are shown

FILE_PURPOSES = {
    SUMMARY: "the ranking as a table",
    CHART: "one plot for each swept setting",
    SWEEP_SETTINGS: "the settings of the sweep",
    SWEEP_SIGNATURE: "shows which settings you have typed",
    STUDY: "the trials of the search",
    LADDER: "the plan and the choice of the ladder",
}


def save_sweep_page(folder: Path) -> Path:
    """Write the report page of a sweep and return its file.

    Raises:
        UserError: If it is a sweep of generate.py, which has no page, or has no job of its own.
        OSError: If the page cannot be written.
    """
    jobs = read_sweep(folder)
    if not jobs:
        raise UserError(f"{folder}: all jobs of this sweep are links, so there is nothing to report.")
    if any("texts" in job.metadata for job in jobs):
        raise UserError(f"{folder}: a sweep of generate.py has no report page. Its texts are compared in {SUMMARY}.")
    write_text(folder / REPORT, _render(folder, jobs))
    return folder / REPORT


def _render(folder: Path, jobs: Sequence[Job]) -> str:
    """Return the page as HTML.

    Args:
        jobs: At least one.
    """
    best = best_job(jobs)
    first = best or jobs[0]
    (config_text, config), shown = read_settings(first.folder), jobs[:MAX_JOBS]
    sweep_settings = _sweep_settings(folder)
    states = Counter(job.state for job in jobs)
    heading, *rows = _ranking_cells(shown)
    return render_page(
        "sweep.html",
        package="gpt_pretrain.sweeps",
        title=printable(folder.resolve().name),
        path=printable(display_path(folder)),
        jobs=format_count(len(jobs), "job"),
        left_out=len(jobs) - len(shown),
        states=join_distinct(f"{count} {describe_state(state)}" for state, count in states.items()),
        state="failed" if states[FAILED] else "finished",
        best=None if best is None else _describe_best(best, jobs),
        best_command=shorten(best_command(jobs) or "", COMMAND_CHARACTERS),
        curves=[*_ladder_pictures(folder, jobs), *_pictures(jobs)],
        heading=heading,
        rows=[
            {"rank": cells[0].replace("-", "none"), "cells": cells[1:], "href": _page_href(job), "state": job.state}
            for cells, job in zip(rows, shown, strict=True)
        ],
        failed=_failures(jobs),
        findings=_findings(jobs),
        setup=[*_sweep_facts(sweep_settings), *setup_facts(first.metadata, config=config)],
        command=shorten(_start_command(sweep_settings) or first.metadata.get("command") or "", COMMAND_CHARACTERS),
        config_title=f"All settings of {_name(first)} (config.yaml)",
        config=shorten(config_text, CONFIG_CHARACTERS),
        files_listed=list_files(folder, FILE_PURPOSES),
        next_commands=[printable(command) for command in _next_commands(folder, jobs, best, config=config)],
    )


def _start_command(settings: dict[str, Any]) -> str | None:
    """Return the command that started the sweep."""
    stored = metadata_section(settings, "overrides")
    overrides = [*metadata_texts(stored, "hydra"), *metadata_texts(stored, "task")]
    typed = [
        as_typed(short_form(override_without_secrets(override)))
        for override in overrides
        if not override.startswith(("hydra.mode=", "hydra.sweep.dir="))
    ]
    return f"{script_command('train.py')} {join_words(['-m', *typed])}" if overrides else None


def _sweep_facts(settings: dict[str, Any]) -> list[tuple[str, str]]:
    """Return how the jobs were chosen and launched."""
    choices = metadata_section(metadata_section(settings, "runtime"), "choices")
    params = metadata_section(metadata_section(settings, "sweeper"), "params")
    return facts_table(
        ("Sweeper", choices.get("hydra/sweeper")),
        ("Launcher", choices.get("hydra/launcher")),
        ("Config params", ", ".join(override_without_secrets(f"{key}={value}") for key, value in params.items())),
    )


def _sweep_settings(folder: Path) -> dict[str, Any]:
    """Return Hydra's settings of the sweep, or an empty dict if they are missing or damaged."""
    try:
        return read_hydra_settings(folder)
    except UserError:
        return {}


def _ranking_cells(jobs: Sequence[Job]) -> list[list[str]]:
    """Return the ranking, the heading first. Long cells are cut to keep the page small."""
    rows = ranking_rows(jobs)
    limit = max(12, min(80, TABLE_CHARACTERS // (len(rows) * len(rows[0]))))
    return [[printable(cell if len(cell) <= limit else cell[: limit - 3] + "...") for cell in row] for row in rows]


def _describe_best(best: Job, jobs: Sequence[Job]) -> dict[str, Any]:
    keys = swept_keys(jobs)
    settings = facts_table(*((key, best.settings.get(key, "not set")) for key in keys))
    return {"loss": f"{best.score:.4f}", "unit": best.unit, "settings": settings, "name": _name(best), "href": _page_href(best)}


def _ladder_pictures(folder: Path, jobs: Sequence[Job]) -> list[Picture]:
    """Return a list with the picture of a ladder if the sweep is one, or an empty list."""
    if not (folder / LADDER).is_file():
        return []
    from gpt_pretrain.sweeps import ladder_chart, ladder_file  # loads torch

    try:
        ladder = ladder_file.read_ladder(folder)
    except UserError:
        return []
    if ladder is None:
        return []
    bits = ladder_chart.measured_bits(ladder, {job.folder.name: job.result for job in jobs if job.state in COMPLETE})
    return [make_picture(ladder_chart.ladder_figure(ladder, bits), "Ladder", ladder_chart.ALT, width="wide")]


def _pictures(jobs: Sequence[Job]) -> list[Picture]:
    keys = swept_keys(jobs)
    alt = "Validation loss of each job, one plot for each swept setting, with the best job marked."
    figure = sweep_figure(jobs[:MAX_JOBS])
    found = [make_picture(figure, "Loss by setting", alt, width="panels" if len(keys) > 1 else "wide")]
    by_bits = any(job.by_bits for job in jobs)
    columns = ("val/bits_per_byte",) if by_bits else ("val/loss", "eval/val_loss")
    curves = _read_curves([job.folder / METRICS for job in jobs[:MAX_CURVES]], columns)
    if any(curves):
        labels = [
            f"{number}  " + (" ".join(f"{key}={job.settings.get(key, '-')}" for key in keys) or job.folder.name)
            for number, job in enumerate(jobs[:MAX_CURVES], start=1)
        ]
        unit = {"unit": BITS_PER_BYTE} if by_bits else {}
        title = "Validation loss" if len(jobs) <= MAX_CURVES else f"Validation loss of the best {MAX_CURVES} jobs"
        alt = "Validation loss of the jobs by tokens seen. The best jobs are in color."
        found.append(make_picture(overlay_figure({"validation": curves}, labels, **unit), title, alt, width="wide"))
    return found


def _read_curves(files: Sequence[Path], columns: Sequence[str]) -> list[MetricSeries]:
    """Return the first of these metrics of each file, with as many points as a chart shows; none of a file that is repeated."""
    own = set(without_repetitions(files))
    series = (first_series(read_metrics(file, columns=columns), *columns) if file in own else MetricSeries() for file in files)
    return [thin_series(one) for one in series]


def _failures(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Return the distinct errors, each with the jobs that failed with it."""
    by_error: dict[str, list[Job]] = {}
    for job in jobs:
        if error := shorten(job.metadata.get("error") or "", 500):
            by_error.setdefault(error, []).append(job)
    return [
        {
            "error": error,
            "jobs": [{"name": _name(job), "href": _page_href(job)} for job in failed[:MAX_DETAILS]],
            "others": max(0, len(failed) - MAX_DETAILS),
        }
        for error, failed in list(by_error.items())[:MAX_DETAILS]
    ]


def _findings(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Return the first findings of each job that has any."""
    by_job = [(job, found) for job in jobs if (found := read_findings(job.metadata, limit=3, text_limit=300))]
    return [
        {
            "name": _name(job),
            "href": _page_href(job),
            "signs": join_distinct(f"{finding['sign']} at step {finding['step']}" for finding in found),
            "findings": found,
        }
        for job, found in by_job[:MAX_DETAILS]
    ]


def _next_commands(folder: Path, jobs: Sequence[Job], best: Job | None, *, config: dict[str, str]) -> list[str]:
    """Return the commands that the page suggests.

    Args:
        config: The settings of the best job.
    """
    commands = [tensorboard_command(display_path(folder))] if any(folder.glob("*/events.out.tfevents.*")) else []
    if best is not None:
        context = config.get("start_context", "Every effort moves you")
        commands.insert(0, generate_command(display_path(best.folder), start_context=context))
        if config.get("model.kind") != "custom":
            commands.insert(1, page_command(display_path(best.folder)))
    if any(job.state not in COMPLETE for job in jobs):
        commands.append(sweep_resume_command(display_path(folder)))
    return commands


def _page_href(job: Job) -> str:
    """Return a link to a job's report page, or to its folder if it has none."""
    return file_href(job.folder.name, REPORT) if (job.folder / REPORT).exists() else file_href(job.folder.name) + "/"


def _name(job: Job) -> str:
    return shorten(job.folder.name, 200)
