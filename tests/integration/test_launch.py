"""Start the processes of one training on one machine, by hand on two, and as srun does; end and requeue them."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpt_pretrain.errors import UserError
from gpt_pretrain.runs.metadata import read_metadata
from gpt_pretrain.training.distributed import launch, ranks, rendezvous, requeue
from tests.conftest import ROOT, TINY_RUN
from tests.helpers.crash_harness import differences
from tests.helpers.fork_server import ForkedCommand, ForkServer

OVERRIDES = [*TINY_RUN, "trainer=ddp", "data.batch_size=4", "callbacks.loss_curve=false", "logger=csv"]
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


@pytest.fixture
def start(tmp_path: Path, cache_dir: Path, fork_server: ForkServer) -> Iterator[Start]:
    """Start train.py in forked processes with the environment given, and kill those that remain at the end of the test."""
    processes: list[ForkedCommand] = []

    def start_process(*overrides: str, ranks: int = 2, **environment: str) -> ForkedCommand:
        command = ["train.py", *overrides]
        processes.append(fork_server.start(command, cwd=tmp_path, environment=variables(cache_dir, **environment), ranks=ranks))
        return processes[-1]

    yield start_process
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def start_python(tmp_path: Path, cache_dir: Path) -> Iterator[Start]:
    """Start Python in new processes, which run train.py by default; kill those that remain at the end of the test."""
    processes: list[subprocess.Popen[str]] = []

    def start_process(*overrides: str, script: str = str(ROOT / "train.py"), **environment: str) -> subprocess.Popen[str]:
        processes.append(
            subprocess.Popen(
                [sys.executable, *script.split(" ", 1), *overrides],
                cwd=tmp_path,
                env=variables(cache_dir, **environment),
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )
        return processes[-1]

    yield start_process
    for process in processes:
        process.kill()
        process.communicate()


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
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        for file in folder.glob("outputs/*/checkpoints/last.ckpt"):
            return file.parents[1]
        time.sleep(0.05)
    raise AssertionError("no checkpoint")


def only_run(folder: Path) -> Path:
    (run,) = (file.parent for file in folder.glob("outputs/*/run.json"))
    assert list(folder.glob("outputs/[!.]*")) == [run], "no other folder"
    return run


@pytest.mark.slow
def test_two_machines_started_by_hand_train_and_resume_one_run(start: Start, tmp_path: Path) -> None:
    codes, texts = wait_for(*machines(start, *OVERRIDES, "trainer.devices=1", "trainer.num_nodes=2"))
    assert codes == [0, 0], texts
    assert "on 2 devices" in texts[0]
    assert texts[1] == ""
    run = only_run(tmp_path)
    assert read_metadata(run)["state"] == "finished"
    codes, texts = wait_for(*machines(start, "resume=latest", "trainer.max_epochs=3"))
    assert codes == [0, 0], texts
    assert (only_run(tmp_path), texts[1]) == (run, "")
    assert "on 2 devices" in texts[0], "a resumed run has the devices it had"
    assert "Done: 3 epochs" in texts[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outputs"], "the second machine leaves nothing in its folder"


@pytest.mark.slow
def test_when_one_machine_fails_the_other_ends_as_well(start: Start, tmp_path: Path) -> None:
    codes, texts = wait_for(*machines(start, *OVERRIDES, "trainer.num_nodes=2", "trainer.devices=1", "data.path=nowhere"))
    assert codes == [2, 2]
    assert "nowhere" in texts[0]
    both = machines(start, *OVERRIDES, *SLOW, "trainer.max_epochs=40", "trainer.num_nodes=2", "trainer.devices=1")
    run = wait_for_checkpoint(tmp_path)
    (worker,) = Path(f"/proc/{both[1].pid}/task/{both[1].pid}/children").read_text().split()
    os.kill(int(worker), signal.SIGKILL)
    began = time.monotonic()
    codes, texts = wait_for(*both)
    assert codes == [2, 128 + signal.SIGKILL]
    assert "Another process of this training has ended or cannot be reached" in texts[0]
    assert time.monotonic() - began < 30
    assert read_metadata(run)["state"] == "failed"


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ({"NODE_RANK": "0"}, "trainer.num_nodes=2 needs MASTER_ADDR, MASTER_PORT in the environment"),
        ({"NODE_RANK": "2"}, "NODE_RANK=2 must be below trainer.num_nodes=2"),
        ({"NODE_RANK": "-1"}, "NODE_RANK=-1 must be this machine's number, counted from 0."),
    ],
)
def test_a_machine_without_the_addresses_of_the_others_is_an_error(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], problem: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=problem):
        launch.check_machines(2)


def test_a_machine_starts_one_process_per_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launch.devices_to_start("auto", accelerator="cpu", num_nodes=1) == 0
    assert launch.devices_to_start(2, accelerator="cpu", num_nodes=1) == 2
    for name, value in (("NODE_RANK", "1"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(name, value)
    assert launch.devices_to_start("auto", accelerator="cpu", num_nodes=2) == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launch.devices_to_start(2, accelerator="cpu", num_nodes=2) == 0, "this process is one of them"


@pytest.mark.slow
def test_missing_settings_of_a_machine_are_reported_in_one_line(start: Start, tmp_path: Path) -> None:
    codes, texts = wait_for(start(*OVERRIDES, "trainer.num_nodes=2"), start(*OVERRIDES, NODE_RANK="1"))
    assert codes == [2, 2], texts
    assert texts[0].startswith("error: trainer.num_nodes=2 needs NODE_RANK, MASTER_ADDR, MASTER_PORT in the environment"), texts[
        0
    ]
    assert texts[1] == "error: NODE_RANK=1 must be below trainer.num_nodes=1: machines are counted from 0.\n"
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]


@pytest.mark.parametrize("text", ["soon", "0", "inf", "nan", "-3", "1e300"])
def test_a_timeout_is_a_duration(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("GPT_PRETRAIN_TIMEOUT", "90")
    assert ranks.timeout().total_seconds() == 90
    monkeypatch.setenv("GPT_PRETRAIN_TIMEOUT", "15m")
    assert ranks.timeout().total_seconds() == 900
    monkeypatch.setenv("GPT_PRETRAIN_TIMEOUT", text)
    with pytest.raises(UserError, match=f"GPT_PRETRAIN_TIMEOUT={text}: must be between 1 s and 1 year"):
        ranks.timeout()


@pytest.mark.slow
def test_a_lonely_rank_gives_up_and_an_occupied_port_is_reported(start: Start) -> None:
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        port = str(other.getsockname()[1])
        alone = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        taken = start(*OVERRIDES, **alone, MASTER_PORT=port)
        lonely = start(*OVERRIDES, **alone, MASTER_PORT=str(free_port()), GPT_PRETRAIN_TIMEOUT="2")
        codes, texts = wait_for(taken, lonely)
    assert codes == [2, 2], texts
    assert f"MASTER_PORT={port} is in use by another program on this machine" in texts[0]
    assert "Another process of this training has ended or cannot be reached" in texts[1]


@pytest.mark.slow
def test_ranks_restarted_by_torchrun_agree_although_its_restart_counts_differ(start_python: Start) -> None:
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    store.set("here/1", "the token of a rank that no longer exists")
    code = """import os; from gpt_pretrain.training.distributed import ranks, rendezvous
with ranks.exit_without_teardown():
    ranks.join_process_group(); print(ranks.all_gather(os.environ['TORCHELASTIC_RESTART_COUNT']))"""
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "GPT_PRETRAIN_TIMEOUT": "60"}
    for number, counts in enumerate([("0", "0"), ("0", "1"), ("1", "1")]):
        both = [
            start_python(
                script=f"-c {code}",
                RANK=str(rank),
                LOCAL_RANK="0",
                TORCHELASTIC_USE_AGENT_STORE="True",
                TORCHELASTIC_RESTART_COUNT=count,
                **common,
            )
            for rank, count in enumerate(counts)
        ]
        codes, texts = wait_for(*both)
        assert (codes, texts) == ([0, 0], [f"['{number}', '{number}']\n"] * 2)


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


@pytest.mark.parametrize(
    ("end", "code", "stderr"),
    [
        ("pass", 0, ""),
        ("sys.exit(130)", 130, ""),
        ("sys.exit('no room')", 1, "no room\n"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero\n"),
    ],
)
def test_a_rank_exits_without_finalizing_the_interpreter(
    start_python: Start, tmp_path: Path, end: str, code: int, stderr: str
) -> None:
    """Finalization may abort a rank in a gloo thread, but too rarely to show it here."""
    script = f"""
import atexit, sys, threading, time
from gpt_pretrain.training.distributed.ranks import exit_without_teardown
class Leftover:
    def __del__(self):
        print("finalized")
def late():
    time.sleep(0.2)
    print("thread")
leftover = Leftover()
with exit_without_teardown():
    atexit.register(print, "exit function")
    threading.Thread(target=late).start()
    {end}
"""
    file = tmp_path / "rank.py"
    file.write_text(script)
    rank = start_python(script=str(file), RANK="1", WORLD_SIZE="2")
    out, err = rank.communicate(timeout=TIMEOUT_SECONDS)
    assert (rank.returncode, out) == (code, "thread\nexit function\n")
    assert err.endswith(stderr) and bool(err) == bool(stderr)
    alone = start_python(script=str(file))
    assert "finalized" in alone.communicate(timeout=TIMEOUT_SECONDS)[0]
    assert alone.returncode == code


@pytest.mark.slow
def test_torchrun_shows_why_all_ranks_refuse_although_rank_0_is_the_slowest(tmp_path: Path) -> None:
    """Torchrun ends all ranks as soon as the first one has ended, so that one may not be a rank without the message."""
    file = tmp_path / "rank.py"
    file.write_text("""
import sys, time
from gpt_pretrain.training.distributed import ranks
with ranks.exit_without_teardown():
    if ranks.is_main():
        time.sleep(1.5)
        print("error: refused", file=sys.stderr)
    sys.exit(ranks.USER_ERROR_CODE)
""")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(file)]
    done = subprocess.run(torchrun, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    assert done.returncode != 0 and "error: refused" in done.stderr


def test_missing_variables_of_a_rank_are_reported(start: Start) -> None:
    codes, texts = wait_for(start(*OVERRIDES, WORLD_SIZE="2", RANK="0", MASTER_ADDR="127.0.0.1"))
    assert codes == [2]
    assert "WORLD_SIZE=2 makes this process one of several, but LOCAL_RANK, MASTER_PORT must be set as well" in texts[0]


def test_ranks_end_when_their_parent_is_killed_however_early(start_python: Start) -> None:
    parent = start_python(*OVERRIDES, "trainer.devices=2", "trainer.max_epochs=100000")
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while len(pids := children.read_text().split()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    parent.kill()
    while any(Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids):
        assert time.monotonic() < deadline, "a rank is still alive"
        time.sleep(0.1)


def test_a_signal_before_the_first_step_counts_as_interruption(start_python: Start, tmp_path: Path) -> None:
    parent = start_python(*OVERRIDES, "trainer.devices=2")
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not (records := list(tmp_path.glob("outputs/*/run.json"))):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    parent.terminate()
    assert parent.wait(TIMEOUT_SECONDS) == 128 + signal.SIGTERM
    assert read_metadata(records[0].parent)["state"] == "interrupted"


def test_torchrun_jobs_of_the_same_name_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in (("RUN_ID", "my-run"), ("RESTART_COUNT", "1"), ("MAX_RESTARTS", "3")):
        monkeypatch.setenv(f"TORCHELASTIC_{name}", value)
    monkeypatch.setenv(rendezvous.JOB, "first")
    requeue.remember_run(tmp_path / "run", arguments=["a=1"])
    assert requeue.earlier_run(["a=1"]) == tmp_path / "run"
    assert requeue.earlier_run(["a=2"]) is None
    monkeypatch.setenv(rendezvous.JOB, "second")
    assert requeue.earlier_run(["a=1"]) is None, "another job of the same name"
