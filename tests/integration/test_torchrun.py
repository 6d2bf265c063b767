"""Train with ranks that torchrun starts and restarts."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.helpers.rank_runs import RUN, RunRanks, assert_same_run, environment
from tests.helpers.waiting import wait_until


@pytest.mark.slow
def test_torchrun_starts_a_single_run(run: RunRanks, alone: Path, tmp_path: Path) -> None:
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2")
    done = run(*RUN, before=torchrun, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "outputs").glob("2*")
    assert_same_run(alone, folder)
    assert done.stdout.count("Ep 1 (Step 000000)") == 1
    wrong = run(*RUN, "trainer.devices=3", "hydra.run.dir=wrong", before=torchrun, cwd=tmp_path)
    assert wrong.returncode != 0 and "trainer.devices=3 and trainer.num_nodes=1 do not match the 2 processes" in wrong.stderr
    swept = run("-m", *RUN, "seed=1,2", before=torchrun, cwd=tmp_path)
    assert swept.returncode != 0 and "A sweep starts the processes of each job itself" in swept.stderr


@pytest.mark.slow
def test_torchrun_restarts_a_killed_worker_from_the_last_checkpoint(run: RunRanks, tmp_path: Path, cache_dir: Path) -> None:
    overrides = [
        *RUN,
        "model.drop_rate=0.1",
        "trainer.max_epochs=12",
        "checkpoint.every_n_steps=5",
        f"data.cache_dir='{cache_dir}'",
    ]
    assert run(*overrides[:-1], "trainer.devices=2", f"hydra.run.dir='{tmp_path}/whole'").returncode == 0
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--max-restarts=3",
        str(ROOT / "train.py"),
        *overrides,
    ]
    with open(tmp_path / "log", "w") as log:
        agent = subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=log, stderr=log)
        wait_until(lambda: list(tmp_path.glob("outputs/2*/checkpoints/last.ckpt")))
        os.kill(children(agent.pid)[-1], signal.SIGKILL)
        assert agent.wait(timeout=200) == 0, (tmp_path / "log").read_text()
    (folder,) = tmp_path.glob("outputs/2*")
    assert_same_run(tmp_path / "whole", folder, exact=True)


def children(pid: int) -> list[int]:
    """Return the child processes that run train.py, in the order of their start."""
    return sorted(
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/stat")
        if parent_of(path) == pid and "train.py" in (path.parent / "cmdline").read_text(errors="replace")
    )


def parent_of(stat: Path) -> int:
    try:
        return int(stat.read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return -1
