"""Processes of a training: how they end, and what they say before."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gpt_pretrain.runs.metadata import read_metadata
from gpt_pretrain.training.distributed import rendezvous, requeue
from tests.helpers.launched import OVERRIDES, TIMEOUT_SECONDS, Start, wait_for
from tests.helpers.waiting import wait_until


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
    wait_until(lambda: len(children.read_text().split()) >= 2, seconds=TIMEOUT_SECONDS)
    ranks = [Path(f"/proc/{pid}/cmdline") for pid in children.read_text().split()]
    parent.kill()
    wait_until(lambda: not any(rank.exists() and rank.read_bytes() for rank in ranks), seconds=TIMEOUT_SECONDS)


def test_a_signal_before_the_first_step_counts_as_interruption(start_python: Start, tmp_path: Path) -> None:
    parent = start_python(*OVERRIDES, "trainer.devices=2")
    wait_until(lambda: any(tmp_path.glob("outputs/*/run.json")), seconds=TIMEOUT_SECONDS)
    parent.terminate()
    assert parent.wait(TIMEOUT_SECONDS) == 128 + signal.SIGTERM
    (record,) = tmp_path.glob("outputs/*/run.json")
    assert read_metadata(record.parent)["state"] == "interrupted"


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
