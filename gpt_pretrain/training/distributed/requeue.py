"""Jobs that are started again, by SLURM or by torchrun: they go on with the run that they trained before.

Source: SLURM's scontrol(1) and sbatch(1), "requeue" and the environment of a job; Lightning requeues in the same way. torchrun's
documentation for TORCHELASTIC_RESTART_COUNT and TORCHELASTIC_RUN_ID.
"""

from __future__ import annotations

import logging
import os
import subprocess
import zlib
from pathlib import Path

from gpt_pretrain.runs.folder import OUTPUTS, list_checkpoints
from gpt_pretrain.training.distributed import ranks

log = logging.getLogger(__name__)


def job() -> str | None:
    """The job that this process belongs to, if any: SLURM's as scontrol names it, else torchrun's."""
    if "TORCHELASTIC_RUN_ID" in os.environ:  # which the next job may have as well
        return f"torchrun-{os.environ[ranks.JOB]}" if ranks.JOB in os.environ else None
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
    if job() is not None and os.environ.get("TORCHELASTIC_MAX_RESTARTS") != "0":
        record = _record(words)
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(f"{run_dir.resolve()}\n", encoding="utf-8")


def interrupted_run(words: list[str]) -> Path | None:
    """The run to go on with: this command's, if its job has been started before and it got as far as a checkpoint."""
    run_dir = begun_run(words)
    return run_dir if run_dir is not None and list_checkpoints(run_dir) else None


def begun_run(words: list[str]) -> Path | None:
    """This command's run, if its job has been started before, whether or not it got as far as a checkpoint."""
    counts = [os.environ.get(name, "0") for name in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT")]
    if job() is None or counts == ["0", "0"] or not _record(words).is_file():
        return None
    return Path(_record(words).read_text(encoding="utf-8").strip())


def requeue() -> None:
    """Put this job of SLURM back into the queue; one of its processes does that for all."""
    name = job()
    if name is None or not ranks.is_main() or name.startswith("torchrun"):
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
    return OUTPUTS / ".jobs" / f"{job()}-{digest:08x}"
