"""The page of a sweep."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from gpt_pretrain.runs.charts.curves import overlay
from gpt_pretrain.runs.folder import SWEEP_SETTINGS, display_path
from gpt_pretrain.runs.metadata import COMPLETE, FAILED
from gpt_pretrain.runs.next_commands import generate_command, sweep_resume_command, tensorboard_command
from gpt_pretrain.runs.reader import read_run
from gpt_pretrain.runs.report.page import (
    Picture,
    ending,
    facts_table,
    findings,
    href,
    joined,
    listed,
    picture,
    render,
    shorten,
    state_words,
    visible,
)
from gpt_pretrain.runs.report.run_page import setup_facts
from gpt_pretrain.sweeps.chart import sweep_figure
from gpt_pretrain.sweeps.results import Job, best_command, best_job, ranking_table, read_sweep, swept_keys
from gpt_pretrain.system.formatting import format_count

JOBS = 200  # in the table and the figure
TABLE_TEXT = 120_000  # characters of the table
SETTINGS_TEXT = 20_000
OVERLAID = 40  # curves laid over one another
DETAILED = 40  # jobs whose errors or findings are told


def sweep_page(folder: Path) -> str:
    """The page of a sweep's folder."""
    jobs = read_sweep(folder)
    best = best_job(jobs)
    first = best or jobs[0]
    run, shown = read_run(first.folder), jobs[:JOBS]
    states = Counter(job.state for job in jobs)
    head, *rows = _cells(shown)
    return render(
        "sweep.html",
        title=visible(folder.resolve().name),
        place=visible(display_path(folder)),
        jobs=format_count(len(jobs), "job"),
        left_out=len(jobs) - len(shown),
        states=joined(f"{number} {state_words(state)}" for state, number in states.items()),
        state="failed" if states[FAILED] else "finished",
        best=None if best is None else _best(best, jobs),
        best_command=shorten(best_command(jobs) or "", 4_000),
        pictures_drawn=_pictures(jobs),
        head=head,
        rows=[
            {"rank": cells[0].replace("-", "none"), "cells": cells[1:], "href": _page_of(job), "state": job.state}
            for cells, job in zip(rows, shown, strict=True)
        ],
        failed=_failed(jobs),
        findings=_noted(jobs),
        setup=[*_started(folder), *setup_facts(first.record, config=run.config)],
        command=shorten(_command(folder) or first.record.get("command") or "", 4_000),
        config_title=f"All settings of {_name(first)} (config.yaml)",
        config=shorten(run.config_text, SETTINGS_TEXT),
        files_listed=listed(folder),
        next_commands=[visible(command) for command in _commands(folder, jobs, best)],
    )


def _command(folder: Path) -> str | None:
    """What was typed to start the sweep."""
    words = _settings(folder, "hydra.overrides")
    if words is None:
        return None
    kept = [word for word in [*words.hydra, *words.task] if not word.startswith(("hydra.mode=", "hydra.sweep.dir="))]
    return shlex.join(["python", "train.py", "-m", *kept])


def _started(folder: Path) -> list[tuple[str, str]]:
    """How the jobs were chosen and run."""
    choices, sweeper = _settings(folder, "hydra.runtime.choices"), _settings(folder, "hydra.sweeper")
    if choices is None or sweeper is None:
        return []
    tried = ", ".join(f"{key}={value}" for key, value in (sweeper.get("params") or {}).items())
    return facts_table(("Sweeper", choices["hydra/sweeper"]), ("Launcher", choices["hydra/launcher"]), ("Tried by config", tried))


def _settings(folder: Path, key: str) -> Any:
    """A part of what Hydra knew when the sweep was begun; None where that is not there, or damaged."""
    try:
        return OmegaConf.select(OmegaConf.load(folder / SWEEP_SETTINGS), key)
    except (OSError, ValueError, YAMLError, OmegaConfBaseException):
        return None


def _cells(jobs: Sequence[Job]) -> list[list[str]]:
    """The table of the jobs, its head first, with cells so short that the page stays small."""
    rows = ranking_table(jobs)
    most = max(12, min(80, TABLE_TEXT // (len(rows) * len(rows[0]))))
    return [[cell if len(cell) <= most else shorten(cell[: most - 3], most) + "..." for cell in row] for row in rows]


def _best(best: Job, jobs: Sequence[Job]) -> dict[str, Any]:
    """The best job: what it reached, with which settings, and where it is."""
    keys = swept_keys(jobs)
    settings = facts_table(*((key, best.settings.get(key, "not set")) for key in keys))
    return {"loss": f"{best.val_loss:.4f}", "settings": settings, "name": _name(best), "href": _page_of(best)}


def _pictures(jobs: Sequence[Job]) -> list[Picture]:
    alt = "Validation loss of each job, one plot for each swept setting, the best marked."
    found = [picture(sweep_figure(jobs[:JOBS]), "What was found", alt, look="panels" if len(swept_keys(jobs)) > 1 else "wide")]
    runs = [read_run(job.folder) for job in jobs[:OVERLAID]]
    curves = [run.series("val/loss", "eval/val_loss") for run in runs]
    if any(curves):
        keys = swept_keys(jobs)
        labels = [
            f"{place}  " + (" ".join(f"{key}={job.settings.get(key, '-')}" for key in keys) or job.folder.name)
            for place, job in enumerate(jobs[:OVERLAID], start=1)
        ]
        title = "Validation curves" if len(jobs) <= OVERLAID else f"Validation curves of the best {OVERLAID}"
        alt = "Validation losses of the jobs by tokens seen, laid over one another; the best have colours."
        found.append(picture(overlay({"validation": curves}, labels), title, alt, look="wide"))
    return found


def _failed(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """The errors of jobs, each once, and the jobs that it ended."""
    by_error: dict[str, list[Job]] = {}
    for job in jobs:
        if error := shorten(ending(job.record), 500):
            by_error.setdefault(error, []).append(job)
    return [
        {
            "error": error,
            "jobs": [{"name": _name(job), "href": _page_of(job)} for job in ended[:DETAILED]],
            "others": max(0, len(ended) - DETAILED),
        }
        for error, ended in list(by_error.items())[:DETAILED]
    ]


def _noted(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """The jobs with findings, and a few findings of each."""
    noted = [(job, findings(job.record, most=3, text=300)) for job in jobs]
    return [
        {
            "name": _name(job),
            "href": _page_of(job),
            "signs": joined(f"{one['sign']} at step {one['step']}" for one in found),
            "noted": found,
        }
        for job, found in [(job, found) for job, found in noted if found][:DETAILED]
    ]


def _commands(folder: Path, jobs: Sequence[Job], best: Job | None) -> list[str]:
    """What to do next."""
    commands = [tensorboard_command(display_path(folder))] if any(folder.glob("*/events.out.tfevents.*")) else []
    if best is not None:
        context = read_run(best.folder).config.get("start_context", "Every effort moves you")
        commands.insert(0, generate_command(display_path(best.folder), start_context=context))
    if any(job.state not in COMPLETE for job in jobs):
        commands.append(sweep_resume_command(display_path(folder)))
    return commands


def _page_of(job: Job) -> str:
    """The address of a job's page, or of its folder where there is none."""
    there = (job.folder / "report.html").exists()
    return href(job.folder.name, "report.html") if there else href(job.folder.name) + "/"


def _name(job: Job) -> str:
    return shorten(job.folder.name, 200)
