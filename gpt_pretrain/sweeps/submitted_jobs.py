"""Give submitit a private folder for the files of a sweep's jobs: their pickles, results and logs."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from gpt_pretrain.runs.folder import display_path
from gpt_pretrain.runs.metadata import LOCK_FILE
from gpt_pretrain.system.locks import try_lock

FOLDER_SETTING = "submitit_folder"  # a setting of the submitit launchers
OWN_NAME = re.compile(r"\.submitit-[0-9a-f]{16}")
JOB_NUMBER = re.compile(r"[1-9][0-9_]{0,30}")  # the number of a SLURM job or of a process
SECONDS_TO_END = 5.0  # time for all interrupted jobs on this machine to end; submitit kills them after one second
MAX_LEFT_FOLDERS, MAX_JOBS = 100, 10_000  # folders of earlier starts that are looked at, and jobs in each of them

KEPT = "Jobs may still run and need {}. Delete it when they have ended: it holds their settings."


@contextmanager
def private_submission_folder(sweep: Path, params: dict[str, Any], *, on_slurm: bool) -> Iterator[None]:
    """Let submitit keep its files in a new folder within the sweep, which is deleted when all its jobs have ended.

    submitit unpickles the files that it finds under the number of a job. Its default folder has a fixed name, so a sweep from
    someone else could bring such files. Also, its own pickles hold all settings, including passwords.

    The nodes of a cluster read the files, so the folder must be on the disk of the sweep. If earlier starts of the sweep were
    killed, their folders are deleted once their jobs have ended. A folder that the user has chosen is left alone.

    Args:
        sweep: The folder of the sweep.
        params: The launcher's settings. The folder in them is replaced while the context is active.
        on_slurm: Whether the jobs are SLURM's, not processes of this machine.
    """
    default = params.get(FOLDER_SETTING)
    if default is None or Path(default).absolute() != sweep.absolute() / ".submitit" / "%j":
        yield
        return
    sweep.mkdir(parents=True, exist_ok=True)
    n_tasks = int(params.get("tasks_per_node") or 1) * int(params.get("nodes") or 1)
    _remove_left_folders(sweep.absolute(), n_tasks=n_tasks, on_slurm=on_slurm)
    folder = sweep.absolute() / f".submitit-{secrets.token_hex(8)}"
    folder.mkdir(mode=0o700)
    params[FOLDER_SETTING] = str(folder / "%j")
    try:
        with try_lock(folder / LOCK_FILE):  # shows that this start of the sweep still runs
            yield
    except BaseException as error:
        interrupted = not isinstance(error, Exception)  # A job may be submitted before its pickle is in place.
        if (interrupted and any(folder.glob("*.pkl"))) or not _have_ended(folder, n_tasks=n_tasks, on_slurm=on_slurm):
            _report_kept(folder)
        else:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    else:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        params[FOLDER_SETTING] = default


def _remove_left_folders(sweep: Path, *, n_tasks: int, on_slurm: bool) -> None:
    """Delete the folders of earlier starts of a sweep, or name those whose jobs may still run.

    A sweep from someone else may hold any number of them, so the time limit is for all together.
    """
    found = (path for path in sweep.glob(".submitit-*") if OWN_NAME.fullmatch(path.name))
    end = time.monotonic() + SECONDS_TO_END
    for folder in islice((path for path in found if path.is_dir() and not path.is_symlink()), MAX_LEFT_FOLDERS):
        try:
            with try_lock(folder / LOCK_FILE) as held:
                if held and _have_ended(folder, n_tasks=n_tasks, on_slurm=on_slurm, end=end):
                    shutil.rmtree(folder, ignore_errors=True)
                elif held:
                    _report_kept(folder)
        except Exception:  # SLURM cannot be asked, or the folder is not the program's own.
            _report_kept(folder)


def _report_kept(folder: Path) -> None:
    from gpt_pretrain.system.terminal import print_escaped  # rich takes a tenth of a second to load

    print_escaped(KEPT.format(display_path(folder)))


def _have_ended(folder: Path, *, n_tasks: int, on_slurm: bool, end: float | None = None) -> bool:
    """Return whether all jobs that were submitted with this folder have ended.

    Args:
        end: The time, by the monotonic clock, at which to stop waiting. By default, SECONDS_TO_END from now.
    """
    files = list(islice(folder.glob("*/*_submitted.pkl"), MAX_JOBS + 1))
    jobs = {file.parent.name for file in files if JOB_NUMBER.fullmatch(file.parent.name)}
    if len(files) > MAX_JOBS:
        return False
    end = time.monotonic() + SECONDS_TO_END if end is None else end
    if on_slurm:
        import submitit

        if time.monotonic() > end:
            return False
        # All job objects are made first, so that SLURM is asked once for all of them.
        submitted: list[Any] = [submitit.SlurmJob(folder / "%j", job_id=job, tasks=list(range(n_tasks))) for job in sorted(jobs)]
        return all(job.done() for job in submitted)
    while any(_is_running(int(job)) for job in jobs if job.isdecimal()):
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def _is_running(pid: int) -> bool:
    """Return whether a process is running. This process, or an earlier start of the sweep, has started it."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == 0
    except ChildProcessError:  # It has ended and its exit code has been read, or another process has started it.
        pass
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
