"""Start the processes of one training on one machine, by hand on two, and as srun does; end and requeue them."""

import os
import signal
import socket
import time
from pathlib import Path

import pytest

from gpt_pretrain.errors import UserError
from gpt_pretrain.runs.metadata import read_metadata
from gpt_pretrain.training.distributed import launch, ranks
from tests.helpers.launched import OVERRIDES, SLOW, Start, free_port, machines, only_run, wait_for, wait_for_checkpoint


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
