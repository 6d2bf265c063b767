"""Processes of trainings that tests start by hand, as a user or a scheduler does."""

import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.conftest import ROOT, TINY_RUN, without
from tests.helpers.fork_server import ForkedCommand
from tests.helpers.waiting import wait_until

OVERRIDES = [
    *without(TINY_RUN, "data.batch_size"),
    "trainer=ddp",
    "data.batch_size=4",
    "callbacks.loss_curve=false",
    "logger=csv",
]
SLOW = ["trainer.max_epochs=4", "checkpoint.every_n_steps=2", "+callbacks.custom.pause._target_=tests.helpers.two_hosts.Pause"]
REMOVED_VARIABLES = ("SLURM_", "TORCHELASTIC_", "GPT_PRETRAIN_", "HYDRA_FULL_ERROR", "PYTEST_CURRENT_TEST")
TIMEOUT_SECONDS = 120

Process = subprocess.Popen[str] | ForkedCommand
Start = Callable[..., Process]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def variables(cache_dir: Path, **environment: str) -> dict[str, str]:
    """Return the environment of a process that a test starts."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(REMOVED_VARIABLES)}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(cache_dir)} | environment


def wait_for(*processes: Process) -> tuple[list[int], list[str]]:
    """Wait for processes, and return their exit codes and what each has printed."""
    texts = ["".join(process.communicate(timeout=TIMEOUT_SECONDS)) for process in processes]
    return [process.returncode for process in processes], texts


def machines(start: Start, *overrides: str) -> list[Process]:
    """Start the same command on each of two machines."""
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [start(*overrides, ranks=1, NODE_RANK=str(number), **common) for number in range(2)]


def wait_for_checkpoint(folder: Path) -> Path:
    """Wait until a run in this folder has a checkpoint, and return the run's folder."""
    checkpoints = "outputs/*/checkpoints/last.ckpt"
    wait_until(lambda: any(folder.glob(checkpoints)), seconds=TIMEOUT_SECONDS)
    return next(folder.glob(checkpoints)).parents[1]


def only_run(folder: Path) -> Path:
    (run,) = (file.parent for file in folder.glob("outputs/*/run.json"))
    assert list(folder.glob("outputs/[!.]*")) == [run], "no other folder"
    return run
