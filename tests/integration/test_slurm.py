"""Trainings whose processes SLURM starts."""

import os
import signal
from pathlib import Path

import pytest

from gpt_pretrain.runs.metadata import read_metadata
from gpt_pretrain.training.distributed import ranks
from tests.helpers.crash_harness import differences
from tests.helpers.launched import OVERRIDES, SLOW, Process, Start, only_run, wait_for, wait_for_checkpoint


def tasks(start: Start, *overrides: str, **environment: str) -> list[Process]:
    """Start two processes as `srun --ntasks=2` does on one node."""
    common = {
        **{"SLURM_JOB_ID": str(700_000 + os.getpid() % 10_000), "SLURM_JOB_NAME": "train", "SLURM_STEP_ID": "0"},
        **{"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1", "SLURM_NNODES": "1"},
        **{"SLURM_NODELIST": "127.0.0.1", "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NODEID": "0"},
    }
    return [start(*overrides, SLURM_PROCID=str(n), SLURM_LOCALID=str(n), **common | environment) for n in range(2)]


def scontrol(folder: Path) -> dict[str, str]:
    """Write a scontrol command that records its arguments, and return the PATH that finds it."""
    folder.mkdir()
    command = folder / "scontrol"
    command.write_text(f'#!/bin/sh\necho "$@" >> "{folder}/asked"\n')
    command.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


@pytest.mark.slow
def test_slurm_tasks_train_one_run_and_resume_it_when_the_job_is_requeued(start: Start, tmp_path: Path) -> None:
    undisturbed = tasks(start, *OVERRIDES, *SLOW, "hydra.run.dir=undisturbed")
    codes, texts = wait_for(*undisturbed)
    assert codes == [0, 0], texts
    assert "on 2 devices" in texts[0]
    assert texts[1] == ""
    both = tasks(start, *OVERRIDES, *SLOW, **scontrol(tmp_path / "bin"))
    run = wait_for_checkpoint(tmp_path)
    for process in both:
        process.send_signal(signal.SIGUSR1)  # as --signal=USR1@120 does in all tasks
    codes, texts = wait_for(*both)
    assert codes == [128 + signal.SIGUSR1] * 2, texts
    assert (tmp_path / "bin" / "asked").read_text().count("requeue") == 1, "one task requeues the job for all"
    codes, texts = wait_for(*tasks(start, *OVERRIDES, *SLOW, SLURM_RESTART_COUNT="1"))
    assert codes == [0, 0], texts
    assert only_run(tmp_path) == run
    assert differences(tmp_path / "undisturbed", run) == []


def test_slurm_tasks_derive_a_common_address_and_port(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    given = {"SLURM_PROCID": "9", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "16", "SLURM_STEP_NUM_NODES": "2"}
    given |= {"SLURM_NTASKS": "16", "SLURM_NODEID": "1", "SLURM_NODELIST": "gpu[01-09]", "SLURM_STEP_NODELIST": "gpu[07-08]"}

    def of_step(job: int, step: int) -> dict[str, str]:
        for name, value in (given | {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)}).items():
            monkeypatch.setenv(name, value)
        return ranks._from_slurm()

    found = of_step(123456, 0)
    expected = {"RANK": "9", "LOCAL_RANK": "1", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8", "GROUP_RANK": "1"}
    assert found == expected | {"MASTER_ADDR": "gpu07", "MASTER_PORT": "18456"}
    ports = {of_step(job, step)["MASTER_PORT"] for job in range(19_990, 20_010) for step in range(4)}
    assert len(ports) == 80, "jobs that may share a node have different ports"
    assert all(1024 < int(port) < 32768 for port in ports)
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert of_step(123456, 0)["MASTER_PORT"] == "29500"


@pytest.mark.slow
def test_a_sweep_job_run_by_a_launcher_starts_its_own_ranks(start: Start, tmp_path: Path) -> None:
    sweep = start("-m", *OVERRIDES, "hydra/launcher=submitit_local", "hydra.sweep.dir=sweep", "trainer.devices=2", "seed=1")
    codes, texts = wait_for(sweep)
    (record,) = tmp_path.glob("sweep/*/run.json")
    assert codes == [0], texts
    assert read_metadata(record.parent)["state"] == "finished"
    assert "on 2 devices" in (record.parent / "train.log").read_text()
    assert not list(tmp_path.glob("sweep/.submitit*")), "the pickles of the jobs hold all settings"


SBATCH = """#!/bin/bash
for script; do :; done
grep -q -- --array "$script" && export SLURM_ARRAY_JOB_ID=4711 SLURM_ARRAY_TASK_ID=0
SLURM_JOB_ID=4711 bash "$script" > /dev/null 2>&1 &
echo "Submitted batch job 4711"
"""
SRUN = """#!/bin/bash
while [[ $1 == -* ]]; do [[ $1 == --unbuffered ]] || shift; shift; done
export SLURM_NTASKS=2 SLURM_STEP_NUM_TASKS=2 SLURM_STEP_NUM_NODES=1 SLURM_JOB_NUM_NODES=1 SLURM_NODELIST=127.0.0.1 SLURM_NODEID=0
SLURM_PROCID=0 SLURM_LOCALID=0 "$@" > "$(dirname "$0")/0.out" 2>&1 &
SLURM_PROCID=1 SLURM_LOCALID=1 "$@" > "$(dirname "$0")/1.out" 2>&1 &
wait
"""
SACCT = """#!/bin/bash
echo "JobID|State|NodeList"; echo "4711|RUNNING|here"; echo "4711_0|RUNNING|here"
"""


@pytest.mark.slow
def test_a_sweep_job_may_have_several_slurm_tasks(start: Start, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("sacct", SACCT)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    overrides = ["hydra/launcher=submitit_slurm", "hydra.launcher.tasks_per_node=2", "hydra.sweep.dir=sweep", "seed=1"]
    codes, texts = wait_for(
        start("-m", *OVERRIDES, *overrides, "trainer.devices=2", PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    )
    outputs = [(tmp_path / "bin" / f"{n}.out").read_text() for n in range(2)]
    (record,) = tmp_path.glob("sweep/*/run.json")
    assert codes == [0], texts + outputs
    assert read_metadata(record.parent)["state"] == "finished"
    assert ["Done: 2 epochs" in text for text in outputs] == [True, False], outputs
    assert "on 2 devices" in outputs[0]
    assert not list(tmp_path.glob("sweep/.submitit*"))
