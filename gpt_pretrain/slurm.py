"""Jobs of SLURM: put back into the queue before their time is up, and going on where they were when they start again.

Source: SLURM's scontrol(1) and sbatch(1), "requeue" and the environment of a job; Lightning requeues in the same way.
"""

from __future__ import annotations

import logging
import os
import subprocess
import zlib
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


def remember(run_dir: Path, *, words: list[str]) -> None:
    """Note the run that a command of this job trains, for the next time that the job starts.

    Args:
        words: what was typed; a job may have several commands.
    """
    if job() is not None:
        record = _record(words)
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(f"{run_dir.resolve()}\n", encoding="utf-8")


def interrupted_run(words: list[str]) -> Path | None:
    """The run to go on with: this command's, if its job has been started before and it got as far as a checkpoint."""
    if job() is None or os.environ.get("SLURM_RESTART_COUNT", "0") == "0" or not _record(words).is_file():
        return None
    run_dir = Path(_record(words).read_text(encoding="utf-8").strip())
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


def _record(words: list[str]) -> Path:
    digest = zlib.crc32("\0".join(words).encode(errors="surrogateescape"))
    return OUTPUTS / ".slurm" / f"{job()}-{digest:08x}"
