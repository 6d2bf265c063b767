"""Jobs of SLURM: put back into the queue before their time is up, and going on where they were when they start again.

Source: SLURM's scontrol(1) and sbatch(1), "requeue" and the environment of a job; Lightning requeues in the same way.
"""

from __future__ import annotations

import logging
import os
import subprocess
from pathlib import Path

from gpt_pretrain.runs import OUTPUTS, checkpoints

log = logging.getLogger(__name__)


def job() -> str | None:
    """The batch job that this process belongs to, if any, as scontrol names it."""
    if os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return None
    if "SLURM_ARRAY_JOB_ID" in os.environ and "SLURM_ARRAY_TASK_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


def remember(run_dir: Path) -> None:
    """Note the run that this job trains, for the next time that it starts."""
    if (name := job()) is not None:
        _record(name).parent.mkdir(parents=True, exist_ok=True)
        _record(name).write_text(f"{run_dir.resolve()}\n", encoding="utf-8")


def interrupted_run() -> Path | None:
    """The run to go on with: this job's, if it has been started before and got as far as a checkpoint."""
    name = job()
    if name is None or os.environ.get("SLURM_RESTART_COUNT", "0") == "0" or not _record(name).is_file():
        return None
    run_dir = Path(_record(name).read_text(encoding="utf-8").strip())
    return run_dir if checkpoints(run_dir) else None


def requeue() -> None:
    """Put this job back into the queue."""
    name = job()
    if name is None:
        return
    try:
        done = subprocess.run(["scontrol", "requeue", name], capture_output=True, text=True, check=False)
        problem = done.stderr.strip() if done.returncode else None
    except OSError as error:
        problem = str(error)
    if problem is None:
        log.info("SLURM's job %s is in the queue again and will go on with this run.", name)
    else:
        log.warning("SLURM's job %s could not be put into the queue again: %s", name, problem)


def _record(name: str) -> Path:
    return OUTPUTS / ".slurm" / name
