"""Resume the run of a job that SLURM or torchrun has started again.

Lightning can requeue SLURM jobs as well, but it looks for its own `hpc_ckpt_*` files in a fixed folder. Here each run has its own
folder, so the job must remember its run. Restarts by torchrun need the same.

Source: SLURM's scontrol(1) and sbatch(1), "requeue" and the environment of a job; torchrun's documentation for
    TORCHELASTIC_RESTART_COUNT and TORCHELASTIC_RUN_ID.
"""

from __future__ import annotations

import logging
import os
import subprocess
import zlib
from pathlib import Path

from gpt_pretrain.runs.folder import OUTPUTS, list_checkpoints
from gpt_pretrain.system.files import write_text
from gpt_pretrain.system.reading import read_bytes
from gpt_pretrain.system.signing import has_signature, has_stored_key, signature
from gpt_pretrain.training.distributed import ranks, rendezvous

PURPOSE = "run of a job"
MAX_JOB_BYTES = 10_000  # a path and a signature

log = logging.getLogger(__name__)


def job_name() -> str | None:
    """Return the name of this process's batch job: scontrol's for SLURM, or torchrun's; None if there is no job."""
    # Two torchrun jobs may have the same TORCHELASTIC_RUN_ID, so the ranks agree on a random name.
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return f"torchrun-{os.environ[rendezvous.JOB]}" if rendezvous.JOB in os.environ else None
    if os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return None
    if "SLURM_ARRAY_JOB_ID" in os.environ and "SLURM_ARRAY_TASK_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


def remember_run(run_dir: Path, *, arguments: list[str]) -> None:
    """Store which run this command trains, for the next start of its job.

    Args:
        arguments: The command's arguments as typed. They identify it, since a job may run several commands.
    """
    if job_name() is not None and os.environ.get("TORCHELASTIC_MAX_RESTARTS") != "0":
        file = _job_file(arguments)
        file.parent.mkdir(parents=True, exist_ok=True)
        folder = str(run_dir.resolve())
        write_text(file, f"{folder}\n{signature(_signed_content(file, folder), purpose=PURPOSE).hex()}\n")


def interrupted_run(arguments: list[str]) -> Path | None:
    """Return the run to resume: this command's run from an earlier start of its job, if the run has a checkpoint."""
    run_dir = earlier_run(arguments)
    return run_dir if run_dir is not None and list_checkpoints(run_dir) else None


def earlier_run(arguments: list[str]) -> Path | None:
    """Return the run that this command trained in an earlier start of its job, with or without a checkpoint."""
    counts = [os.environ.get(name, "0") for name in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT")]
    if job_name() is None or counts == ["0", "0"]:
        return None
    file = _job_file(arguments)
    try:
        folder, _, signed = read_bytes(file, max_bytes=MAX_JOB_BYTES, within=OUTPUTS).decode().rstrip("\n").rpartition("\n")
        known = has_signature(_signed_content(file, folder), bytes.fromhex(signed), purpose=PURPOSE)
    except (OSError, ValueError):  # a DamagedFileError is a ValueError
        return None
    # Without a key that outlasts a process, no file has a valid signature.
    return Path(folder) if folder and (known or not has_stored_key()) else None


def requeue() -> None:
    """Put this SLURM job back into the queue. Only rank 0 does so."""
    name = job_name()
    if name is None or not ranks.is_main() or name.startswith("torchrun"):
        return
    try:
        done = subprocess.run(["scontrol", "requeue", name], capture_output=True, text=True, check=False)
        problem = done.stderr.strip() if done.returncode else None
    except OSError as error:
        problem = str(error)
    if problem is None:
        log.info("SLURM job %s is queued again and will resume this run.", name)
    else:
        log.warning("SLURM job %s could not be requeued: %s", name, problem)


def _signed_content(file: Path, folder: str) -> bytes:
    return f"{file.name}\n{folder}".encode()


def _job_file(arguments: list[str]) -> Path:
    digest = zlib.crc32("\0".join(arguments).encode(errors="surrogateescape"))
    return OUTPUTS / ".jobs" / f"{job_name()}-{digest:08x}"
