"""Try as a stranger to reach the processes that train together, and to harm one by a message."""

import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from gpt_pretrain.errors import UserError
from gpt_pretrain.training.distributed import launch, ranks, rendezvous
from tests.conftest import ROOT, TINY_RUN

SECONDS = 100
VARIABLES = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "GLOO_", "NCCL_", "SLURM_")
# Joins the other ranks, exchanges a value, and writes the addresses at which this process listens.
RANK = """
import json, os, psutil, sys
from pathlib import Path
from gpt_pretrain.training.distributed import ranks
with ranks.exit_without_teardown():
    ranks.join_process_group()
    assert ranks.all_gather({"rank": ranks.rank(), "text": "ä\\udc80" * ranks.rank()}) == [
        {"rank": n, "text": "ä\\udc80" * n} for n in range(2)
    ]
    assert ranks.broadcast([ranks.rank(), (1, None)]) == [0, [1, None]]
    listening = [c.laddr.ip for c in psutil.Process().net_connections("inet") if c.status == "LISTEN"]
    Path(f"{os.environ['RANK']}.json").write_text(json.dumps(listening))
    ranks.broadcast(None)
"""
# What a stranger does who has come before rank 0.
STRANGER = """
import datetime, os, sys
import torch.distributed as dist
class Evil:
    def __reduce__(self):
        return os.mkdir, ("pwned",)
wait = datetime.timedelta(seconds=30)
store = dist.TCPStore("127.0.0.1", int(sys.argv[1]), 2, is_master=False, timeout=wait)
dist.init_process_group("gloo", store=store, rank=0, world_size=2, timeout=wait)
dist.broadcast_object_list([Evil()], src=0)
os._exit(0)
"""
# train.py, in which nothing that another rank has sent can be unpickled.
WITHOUT_PICKLES = f"""
import runpy, sys
import torch.distributed.distributed_c10d as c10d
def refuse(*_):
    raise AssertionError("a message is unpickled")
c10d._tensor_to_object = refuse
sys.argv[0] = {str(ROOT / "train.py")!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def plain_environment() -> dict[str, str]:
    """Return the environment without what describes ranks."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(VARIABLES)}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "GPT_PRETRAIN_TIMEOUT": "60"}


@contextmanager
def processes(commands: list[list[str]], environments: list[dict[str, str]], cwd: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Start processes side by side, and kill those that are left at the end."""
    started = [
        subprocess.Popen(command, env=plain_environment() | own, cwd=cwd, text=True, stderr=subprocess.PIPE)
        for command, own in zip(commands, environments, strict=True)
    ]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def free_ports(count: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def addresses(folder: Path) -> set[str]:
    """Return the addresses at which the two ranks have listened."""
    found = [json.loads((folder / f"{n}.json").read_text()) for n in range(2)]
    assert all(found), "each rank listens for the others"
    return {address for addresses in found for address in addresses}


def test_ranks_that_this_program_starts_listen_on_loopback_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rank.py").write_text(RANK)
    monkeypatch.chdir(tmp_path)
    for name in os.environ.keys() - plain_environment().keys():
        monkeypatch.delenv(name)
    for name, value in plain_environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", socket.gethostname())  # a leftover of another training
    launch.run_ranks(tmp_path / "rank.py", [], devices=2, run_dir=tmp_path, launch_info={"num_nodes": 1})
    assert addresses(tmp_path) <= {"127.0.0.1", "::1"}


def test_a_loopback_interface_that_is_down_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", unreachable)
    with pytest.raises(UserError, match=r"127\.0\.0\.1 does not answer \(Network is unreachable\)\. .*ip link set lo up"):
        rendezvous.listen_on_loopback(0)


@pytest.mark.parametrize(
    "environment",
    [{"MASTER_ADDR": "127.0.0.1"}, {"MASTER_ADDR": "the-name-of-a-node", "LOCAL_WORLD_SIZE": "2"}],
    ids=["by hand", "as srun does"],
)
def test_ranks_that_others_start_on_one_machine_listen_on_loopback_only(tmp_path: Path, environment: dict[str, str]) -> None:
    common = environment | {"WORLD_SIZE": "2", "MASTER_PORT": str(free_ports(1)[0])}
    each = [common | {"RANK": str(n), "LOCAL_RANK": str(n)} for n in range(2)]
    with processes([[sys.executable, "-c", RANK]] * 2, each, tmp_path) as both:
        errors = [process.communicate(timeout=SECONDS)[1] for process in both]
        assert [process.returncode for process in both] == [0, 0], errors
    assert addresses(tmp_path) <= {"127.0.0.1", "::1"}


def test_nothing_that_a_stranger_sends_in_rank_0s_place_is_run(tmp_path: Path) -> None:
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=SECONDS))
    code = "from gpt_pretrain.training.distributed import ranks\nranks.join_process_group()\nprint(ranks.broadcast(None))"
    victim = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    commands = [[sys.executable, "-c", code], [sys.executable, "-c", STRANGER, str(store.port)]]
    with processes(commands, [victim, {}], tmp_path) as (rank, stranger):
        error = rank.communicate(timeout=SECONDS)[1]
        assert stranger.wait(SECONDS) == 0, stranger.communicate()[1]
    assert "All processes must run the same version of gpt-pretrain" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_training_unpickles_no_message(tmp_path: Path, cache_dir: Path, strategy: str) -> None:
    (tmp_path / "wrapped.py").write_text(WITHOUT_PICKLES)
    overrides = [*TINY_RUN, f"trainer={strategy}", "data.batch_size=4", "trainer.max_steps=2"]
    overrides += [
        "checkpoint.every_n_steps=1",
        "callbacks.loss_curve=false",
        "hydra.run.dir=run",
        f"data.cache_dir='{cache_dir}'",
    ]
    for arguments in (overrides, ["resume=run", "trainer.max_steps=3"]):
        common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1)[0])}
        each = [common | {"RANK": str(n), "LOCAL_RANK": str(n)} for n in range(2)]
        with processes([[sys.executable, "wrapped.py", *arguments]] * 2, each, tmp_path) as both:
            errors = [process.communicate(timeout=SECONDS)[1] for process in both]
            assert [process.returncode for process in both] == [0, 0], errors
    assert list((tmp_path / "run" / "checkpoints").glob("*.ckpt"))


@pytest.mark.parametrize(
    ("environment", "one"),
    [
        ({"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}, True),
        ({"MASTER_ADDR": "localhost", "WORLD_SIZE": "2"}, True),
        ({"MASTER_ADDR": "::1", "WORLD_SIZE": "2"}, True),
        ({"MASTER_ADDR": "gpu07", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8"}, True),
        ({"MASTER_ADDR": "gpu07", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"}, False),
        ({"MASTER_ADDR": "10.0.0.7", "WORLD_SIZE": "2"}, False),
        ({"WORLD_SIZE": "2"}, False),
    ],
)
def test_one_machine_is_recognized(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], one: bool) -> None:
    for name in ("MASTER_ADDR", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert rendezvous.on_one_machine() is one


def test_interfaces_that_the_user_has_chosen_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "")
    monkeypatch.delenv("NCCL_SOCKET_IFNAME")
    rendezvous.use_loopback()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "ib0"
    assert os.environ["NCCL_SOCKET_IFNAME"] in rendezvous.LOOPBACK_INTERFACES


def test_an_occupied_port_is_reported_before_a_rank_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        monkeypatch.setenv("MASTER_PORT", str(other.getsockname()[1]))
        with pytest.raises(UserError, match=r"MASTER_PORT=\d+ is in use by another program on this machine"):
            launch.run_ranks(tmp_path / "none.py", [], devices=2, run_dir=tmp_path, launch_info={"num_nodes": 1})


@pytest.mark.parametrize("size", [0, -1, ranks.MAX_MESSAGE_BYTES + 1, 2**60])
def test_no_memory_is_allocated_for_a_message_that_is_announced_too_large(size: int) -> None:
    import torch

    with pytest.raises(UserError, match="All processes must run the same version"):
        ranks._checked_size(torch.tensor(size))


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\x80\x05.", b"{", b"\xff"])
def test_a_message_that_is_no_json_is_an_error(content: bytes) -> None:
    import torch

    with pytest.raises(UserError, match="All processes must run the same version"):
        ranks._decode(torch.frombuffer(bytearray(content), dtype=torch.uint8))


def test_strategies_send_what_lightning_broadcasts_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    from gpt_pretrain.config.schema import TrainerSettings
    from gpt_pretrain.training.distributed import strategy

    sent: list[Any] = []
    monkeypatch.setattr(ranks, "broadcast", lambda value: sent.append(value) or value)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("ddp", "fsdp"):
        built = strategy.build_strategy(TrainerSettings(strategy=name))
        assert not isinstance(built, str)
        assert built.broadcast(f"a folder of {name}") == sent.pop() == f"a folder of {name}"


OWN = ["trainer=ddp", "optimizer.lr=1e-3", "data.path=my text.txt", "+callbacks.custom.x._target_=my.Callback", "resume=latest"]


@pytest.mark.parametrize(
    "received",
    [
        [*OWN, "hydra.run.dir='outputs/a run'", "hydra.output_subdir=null"],
        [*OWN[:2], "data.path='my text.txt'", *OWN[3:], "run_dir=outputs/x", "hydra/job_logging=terminal"],
        [*OWN, r"start_context='It costs \${5}'"],
    ],
)
def test_rank_0_may_name_the_run_of_all(received: list[str]) -> None:
    launch._check_received(received, own=[*OWN, "start_context=It costs ${5}"])


@pytest.mark.parametrize(
    "override",
    [
        "+callbacks.custom.y._target_=os.system",
        "callbacks.custom.x._target_=os.system",
        "+callbacks.custom.x._target_=os.system",
        "++callbacks.custom={y:{_target_:os.system,command:ls}}",
        "+hydra.job.env_set={A:b}",
        "hydra.searchpath=[/tmp/strange]",
        "hydra.run.dir={_target_:os.system}",
        "hydra.run.dir=${oc.env:HOME}",
        "optimizer.lr=${oc.env:HOME}",
        "--config-dir=/tmp/strange",
        "-cd=/tmp/strange",
        "-m",
        "data.cache_dir=/tmp/strange",
    ],
)
def test_a_stranger_in_rank_0s_place_adds_no_other_argument(override: str) -> None:
    with pytest.raises(UserError, match="which this process was not started with"):
        launch._check_received([*OWN, override], own=OWN)
