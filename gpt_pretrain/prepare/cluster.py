"""The long part of a preparation on many machines: datatrove runs a task for each group of files, and this process the rest.

All machines share the disk that the files and the corpus are on.
"""

from __future__ import annotations

import importlib.util
import io
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from gpt_pretrain.config.command_schema import PrepareSettings
from gpt_pretrain.errors import UserError
from gpt_pretrain.prepare.encode_stage import Encoding, encode_all
from gpt_pretrain.prepare.pieces import read_journal
from gpt_pretrain.prepare.pool import Workers
from gpt_pretrain.prepare.progress import Progress
from gpt_pretrain.prepare.reading import Reading, read
from gpt_pretrain.prepare.sources import InputFile
from gpt_pretrain.prepare.stopping import Stop
from gpt_pretrain.system.resources import cores

MOST_TASKS = 1000  # as many as SLURM takes in one array, unless it is told otherwise
SECONDS_BETWEEN_LOOKS = 2.0
LOGS = "datatrove"


@dataclass(frozen=True, repr=False)
class EncodeTask:
    """A step of datatrove's: task number `rank` encodes the group of files with that number.

    Args:
        groups: of files, in the order of the corpus.
        reading, encoding: how files become items, and items tokens.
        folders: where each task's pieces go.
        workers: processes of a task.
        quiet: keep datatrove from writing to the terminal.
    """

    groups: list[list[InputFile]]
    reading: Reading
    encoding: Encoding
    folders: list[Path]
    workers: int
    quiet: bool

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begin, in a task's process, to be quiet before datatrove says anything."""
        self.__dict__.update(state)
        if self.quiet:
            from loguru import logger

            logger.disable("datatrove")

    def __call__(self, data: Any, rank: int = 0, world_size: int = 1) -> Any:
        silent = Progress(None, Console(file=io.StringIO()))
        with Workers(self.workers, self.encoding.tokenizer) as workers, silent as progress:
            encode_all(
                lambda place: read(self.groups[rank], self.reading, start=place),
                self.encoding,
                self.folders[rank],
                workers=workers,
                progress=progress,
                stop=Stop(),
            )
        return data


def grouped(sources: Sequence[InputFile], n_groups: int) -> list[list[InputFile]]:
    """Files in groups of about the same size in bytes, in their order; none is empty."""
    n_groups = min(n_groups, len(sources))
    total, passed = sum(source.size + 1 for source in sources), 0
    groups: list[list[InputFile]] = [[] for _ in range(n_groups)]
    for number, source in enumerate(sources):
        wanted = passed * n_groups // total
        filled = sum(1 for group in groups if group)
        left = len(sources) - number
        groups[max(min(wanted, filled), n_groups - left)].append(source)
        passed += source.size + 1
    return groups


def encode_on_cluster(settings: PrepareSettings, task: EncodeTask, folder: Path, *, stop: Stop) -> None:
    """Have all tasks done, and wait for them.

    Args:
        folder: of the work.

    Raises:
        UserError: when an executor is not installed, or tasks have failed.
        SystemExit: when a signal asked for that; tasks on other machines go on.
    """
    if importlib.util.find_spec("datatrove") is None:
        raise UserError(f'executor={settings.executor} needs the package datatrove: pip install -e ".[scale]".')
    executor = _executor(settings, task, folder / LOGS)
    try:
        executor.run()
    except FileNotFoundError as error:
        raise UserError(f"executor={settings.executor}: {error.filename or error} is not to be found on this machine.") from error
    if settings.executor == "slurm":
        print(f"SLURM's job {executor.job_id} encodes {len(task.folders)} groups of files.", file=sys.stderr)
    while (left := unfinished(task.folders)) and settings.executor == "slurm" and _in_queue(str(executor.job_id)):
        stop.check()
        time.sleep(SECONDS_BETWEEN_LOOKS)
    if left and unfinished(task.folders):
        raise UserError(
            f"{len(left)} of {len(task.folders)} tasks have not come to their end; {folder / LOGS} tells why. Start the same "
            "command again: what is done is not done again."
        )


def unfinished(folders: Sequence[Path]) -> list[Path]:
    """The folders whose task is not done."""
    return [folder for folder in folders if not read_journal(folder)[1].complete]


def _executor(settings: PrepareSettings, task: EncodeTask, logs: Path) -> Any:
    from loguru import logger

    logger.disable("datatrove")
    common: dict[str, Any] = {"pipeline": [task], "tasks": len(task.folders), "logging_dir": str(logs.resolve())}
    if settings.executor == "local":
        from datatrove.executor import LocalPipelineExecutor

        return LocalPipelineExecutor(**common, workers=min(len(task.folders), settings.workers or cores()))
    if settings.executor == "ray":
        if importlib.util.find_spec("ray") is None:
            raise UserError("executor=ray needs the package ray: pip install ray.")
        from datatrove.executor import RayPipelineExecutor

        return RayPipelineExecutor(**common, cpus_per_task=task.workers)
    from datatrove.executor import SlurmPipelineExecutor

    return SlurmPipelineExecutor(
        **common,
        time=settings.slurm_time,
        partition=settings.slurm_partition,
        cpus_per_task=task.workers,
        job_name="prepare",
        qos="",  # the cluster's own
        env_command=f"export PATH={Path(sys.executable).parent}:$PATH",
        slurm_logs_folder=str((logs / "slurm").resolve()),
        mail_type="NONE",
    )


def _in_queue(job_id: str) -> bool:
    """Whether SLURM still has a job of that number waiting or running."""
    try:
        done = subprocess.run(["squeue", "--noheader", "--jobs", job_id], capture_output=True, text=True, check=False)
    except OSError:
        return False
    return bool(done.stdout.strip())
