"""Encode on many machines: datatrove runs one task per group of files, and this process does everything else.

All machines share the disk with the input files and the corpus.
"""

from __future__ import annotations

import importlib.util
import io
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from gpt_pretrain.config.command_schema import PrepareSettings
from gpt_pretrain.errors import UserError
from gpt_pretrain.prepare.encoding import EncodingOptions, encode_inputs
from gpt_pretrain.prepare.processes import Interrupt, WorkerPool
from gpt_pretrain.prepare.progress import PreparationProgress
from gpt_pretrain.prepare.segments import read_journal
from gpt_pretrain.system.amounts import parse_duration
from gpt_pretrain.system.formatting import format_count
from gpt_pretrain.system.resources import cores
from gpt_pretrain.texts.inputs import CorpusInputs, InputFile

MAX_TASKS = 1000  # SLURM's default limit for the tasks of one job array.
SECONDS_BETWEEN_CHECKS = 2.0
LOGS = "datatrove"


@dataclass(frozen=True, repr=False)
class EncodeTask:
    """A pipeline step for datatrove that encodes one group of files per task.

    Args:
        groups: The groups of files, in the order of the inputs.
        inputs: The options for reading the files.
        options: The options for encoding documents.
        folders: The folder for the segments of each task.
        workers: Number of worker processes per task.
        quiet: Disable datatrove's log messages.
    """

    groups: list[list[InputFile]]
    inputs: CorpusInputs
    options: EncodingOptions
    folders: list[Path]
    workers: int
    quiet: bool

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Unpickle the step in the process of a task, and disable log messages before datatrove writes any."""
        self.__dict__.update(state)
        if self.quiet:
            from loguru import logger

            logger.disable("datatrove")

    def __call__(self, data: Any, rank: int = 0, world_size: int = 1) -> Any:
        """Encode the group with the number `rank`."""
        silent = PreparationProgress(None, Console(file=io.StringIO()))
        with WorkerPool(self.workers, self.options.tokenizer, fast=self.options.fast) as workers, silent as progress:
            encode_inputs(
                replace(self.inputs, files=self.groups[rank]),
                self.options,
                self.folders[rank],
                workers=workers,
                progress=progress,
                interrupt=Interrupt(),
            )
        return data


def group_files(files: Sequence[InputFile], n_groups: int) -> list[list[InputFile]]:
    """Split files into consecutive groups of about the same size in bytes, none of them empty."""
    n_groups = min(n_groups, len(files))
    total, bytes_before = sum(file.size + 1 for file in files), 0
    groups: list[list[InputFile]] = [[] for _ in range(n_groups)]
    for index, file in enumerate(files):
        by_size = bytes_before * n_groups // total
        first_empty = sum(1 for group in groups if group)
        files_left = len(files) - index
        groups[max(min(by_size, first_empty), n_groups - files_left)].append(file)
        bytes_before += file.size + 1
    return groups


def encode_on_cluster(settings: PrepareSettings, task: EncodeTask, work: Path, *, interrupt: Interrupt) -> None:
    """Run all tasks and wait for them.

    Args:
        work: The folder for logs.

    Raises:
        UserError: If the executor is not installed or tasks have failed.
        SystemExit: If a signal has arrived. Tasks on other machines keep running.
    """
    if importlib.util.find_spec("datatrove") is None:
        raise UserError(f'executor={settings.executor} needs the package datatrove. Run: pip install "gpt-pretrain[scale]"')
    executor = _executor(settings, task, work / LOGS)
    try:
        executor.run()
    except FileNotFoundError as error:
        raise UserError(
            f"executor={settings.executor}: this machine has no {error.filename or error}. Run the command where it is "
            "installed, such as on a login node of the cluster, or choose executor=local."
        ) from error
    if settings.executor == "slurm":
        groups = format_count(len(task.folders), "group")
        print(f"SLURM job {executor.job_id} encodes {groups} of files.", file=sys.stderr)
    while (left := unfinished_tasks(task.folders)) and settings.executor == "slurm" and _is_queued(str(executor.job_id)):
        interrupt.exit_if_requested()
        time.sleep(SECONDS_BETWEEN_CHECKS)
    if left and unfinished_tasks(task.folders):
        raise UserError(
            f"{len(left)} of {len(task.folders)} tasks have failed; see {work / LOGS}. Run the same command again to resume; "
            "completed tasks are not repeated."
        )


def unfinished_tasks(folders: Sequence[Path]) -> list[Path]:
    """Return the folders whose task has not finished."""
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
            raise UserError("executor=ray needs the package ray. Run: pip install ray")
        from datatrove.executor import RayPipelineExecutor

        return RayPipelineExecutor(**common, cpus_per_task=task.workers)
    from datatrove.executor import SlurmPipelineExecutor

    return SlurmPipelineExecutor(
        **common,
        time=_slurm_time(settings.slurm_time),
        partition=settings.slurm_partition,
        cpus_per_task=task.workers,
        job_name="prepare",
        qos="",  # The cluster's default.
        env_command=f"export PATH={Path(sys.executable).parent}:$PATH",
        slurm_logs_folder=str((logs / "slurm").resolve()),
        mail_type="NONE",
    )


def _slurm_time(typed: str) -> str:
    """Return a duration as HH:MM:SS. Return any other text unchanged: it may be in one of SLURM's own forms."""
    seconds = parse_duration(typed)
    if seconds is None:
        return typed
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest:02}"


def _is_queued(job_id: str) -> bool:
    """Return whether a SLURM job is pending or running."""
    try:
        squeue = subprocess.run(["squeue", "--noheader", "--jobs", job_id], capture_output=True, text=True, check=False)
    except OSError:
        return False
    return bool(squeue.stdout.strip())
