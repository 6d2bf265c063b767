"""Train with several real processes over gloo, and compare with a run of one process."""

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from gpt_pretrain.checkpoints.checkpoint_file import read_checkpoint
from gpt_pretrain.checkpoints.pretrained import load_pretrained
from gpt_pretrain.runs.metadata import read_metadata
from gpt_pretrain.training.distributed.fsdp import remove_unused_shards
from tests.conftest import ROOT, TINY_RUN, without
from tests.helpers.fork_server import ForkServer
from tests.helpers.waiting import wait_until

# 54 training windows make 13 batches of 4, an odd number for two ranks or two accumulated batches. The remaining 2 windows are
# dropped, although they would fill a batch of 2. There are 2 validation batches.
RUN = [
    *without(TINY_RUN, "data.stride", "data.batch_size", "eval_iter"),
    "data.stride=340",
    "data.batch_size=4",
    "model.drop_rate=0.0",
    "eval_iter=3",
    "callbacks.doctor=null",
]
SPY = '''
from pathlib import Path
import lightning as L
import os

class Spy(L.Callback):
    """Record the windows that each rank trains on and validates."""
    def __init__(self, file):
        self.file = file
    def record(self, kind, batch):
        if int(batch[1].max()) >= 0:
            with open(self.file, "a") as stream:
                stream.writelines(f"{kind} {hash(tuple(row))}\\n" for row in batch[0].tolist())
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.record(f"train {trainer.current_epoch}", batch)
    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        self.record(f"val {trainer.current_epoch}", batch)

class FailsAfterTraining(L.Callback):
    def __init__(self, rank):
        self.rank = rank
    def on_fit_end(self, trainer, pl_module):
        if trainer.global_rank == self.rank:
            raise ValueError("out of luck")

class SpoilsOneLoss(L.Callback):
    """Make the loss of one rank's batch NaN."""
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 1 and trainer.current_epoch == 0 and trainer.global_rank == trainer.world_size - 1:
            spoil = lambda module, inputs, out: out * float("nan") if module.training else out
            self.hook = pl_module.model.final_norm.register_forward_hook(spoil)
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 1 and trainer.current_epoch == 0 and trainer.global_rank == trainer.world_size - 1:
            self.hook.remove()
'''


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory, cache_dir: Path, fork_server: ForkServer
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run train.py with these overrides in a folder of this module; `before` precedes the script on the command line."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "spy.py").write_text(SPY)

    def run_script(*overrides: str, before: tuple[str, ...] = (), cwd: Path = folder) -> subprocess.CompletedProcess[str]:
        command = [*before, str(ROOT / "train.py"), *overrides, f"data.cache_dir='{cache_dir}'"]
        variables = environment() | {"PYTHONPATH": str(folder)}
        if not before:
            return fork_server.run(command, cwd=cwd, environment=variables, ranks=4)
        return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=200, check=False)

    run_script.folder = folder  # type: ignore[attr-defined]
    return run_script


def environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key != "PYTEST_CURRENT_TEST"} | {"OMP_NUM_THREADS": "1"}


def content(folder: Path) -> dict:
    return read_checkpoint(folder / "checkpoints" / "last.ckpt")


@pytest.fixture(scope="module")
def alone(run: Callable[..., subprocess.CompletedProcess[str]]) -> Path:
    """Run one process that accumulates two batches per step, for comparison with the other runs."""
    folder = run.folder  # type: ignore[attr-defined]
    done = run(
        *RUN,
        "trainer.accumulate_grad_batches=2",
        "hydra.run.dir=alone",
        f"+callbacks.custom.spy={{_target_: spy.Spy, file: '{folder}/alone.txt'}}",
    )
    assert done.returncode == 0, done.stderr
    return Path(folder / "alone")


def assert_same_run(alone: Path, other: Path, *, exact: bool = False) -> None:
    """Assert that two runs have the same losses, weights and counts."""
    one, two = content(alone), content(other)
    assert (one["global_step"], one["tokens_seen"]) == (two["global_step"], two["tokens_seen"])
    assert one["track_tokens_seen"] == two["track_tokens_seen"]
    tolerance = {"rtol": 0, "atol": 0 if exact else 1e-5}
    for name in ("train_losses", "val_losses"):
        np.testing.assert_allclose(one[name], two[name], **tolerance)
    for name, tensor in one["state_dict"].items():
        torch.testing.assert_close(tensor, two["state_dict"][name], **tolerance)
    for name, tensor in one.get("ema", {}).items():
        torch.testing.assert_close(tensor, two["ema"][name], **tolerance)
    assert one["callbacks"]["SaveRun"]["best_step"] == two["callbacks"]["SaveRun"]["best_step"]


def recorded(file: Path, kind: str) -> Counter:
    return Counter(line for line in file.read_text().splitlines() if line.startswith(kind))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_equal_one_rank_with_two_accumulated_batches(
    run: Callable[..., subprocess.CompletedProcess[str]], alone: Path, strategy: str
) -> None:
    folder = alone.parent
    spy = f"+callbacks.custom.spy={{_target_: spy.Spy, file: '{folder}/{strategy}.txt'}}"
    done = run(*RUN, f"trainer={strategy}", "trainer.max_epochs=2", "trainer.devices=2", f"hydra.run.dir={strategy}", spy)
    assert done.returncode == 0, done.stderr
    assert_same_run(alone, folder / strategy)
    for kind in ("train 0", "train 1", "val 0", "val 1"):
        mine = recorded(folder / f"{strategy}.txt", kind)
        assert mine == recorded(folder / "alone.txt", kind), "the same windows"
    assert set(recorded(folder / "alone.txt", "val 0").values()) == {1}, "each once"
    lines = done.stdout.splitlines()
    assert sum(line.startswith("Ep 1 (Step 000000)") for line in lines) == 1, "only one rank prints"
    assert "on 2 devices" in done.stdout and not done.stderr
    assert len((folder / strategy / "metrics.csv").read_text().splitlines()) == len(
        (alone / "metrics.csv").read_text().splitlines()
    )
    assert read_metadata(folder / strategy)["state"] == "finished"
    assert "trainer.devices=2" in read_metadata(folder / strategy)["command"]
    states = content(folder / strategy)["callbacks"]["Randomness"]["ranks"]
    assert len(states) == 2 and not torch.equal(states[0]["torch"], states[1]["torch"]), "each rank has its own random state"


def test_a_sharded_checkpoint_loads_like_any_other(run: Callable[..., subprocess.CompletedProcess[str]], alone: Path) -> None:
    folder = alone.parent
    sharded = folder / "sharded"
    assert (
        run(*RUN, "trainer=fsdp", "trainer.max_epochs=1", "trainer.devices=2", "hydra.run.dir=sharded", "export=true").returncode
        == 0
    )
    shards = sorted(path.relative_to(sharded) for path in sharded.glob("checkpoints/shards-*/*"))
    assert [path.name for path in shards] == ["rank-00000.safetensors", "rank-00001.safetensors"], "only the shards in use"
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        logits = [load_pretrained(path)(ids) for path in (sharded, sharded / "huggingface")]
    torch.testing.assert_close(*logits)
    data = (sharded / shards[1]).read_bytes()
    (sharded / shards[1]).write_bytes(data[:-4] + b"\0\1\2\3")
    with pytest.raises(ValueError, match="damaged"):
        content(sharded)
    (sharded / shards[1]).unlink()
    with pytest.raises(ValueError, match="is incomplete"):
        content(sharded)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "then"),
    [
        (["trainer=ddp", "trainer.devices=2"], ["trainer.devices=1"]),
        (["trainer=ddp", "trainer.devices=2"], ["trainer.devices=4"]),
        (["trainer=fsdp", "trainer.devices=2"], ["trainer.devices=1"]),
        (["trainer=fsdp", "trainer.devices=2"], ["trainer.devices=3", "data.batch_size=1", "trainer.accumulate_grad_batches=2"]),
        (["trainer.devices=1", "trainer.accumulate_grad_batches=2"], ["trainer.strategy=fsdp", "trainer.devices=2"]),
    ],
    ids=["2-to-1", "2-to-4", "sharded-to-1", "another-step", "1-to-sharded"],
)
def test_a_run_resumes_with_another_number_of_ranks(
    run: Callable[..., subprocess.CompletedProcess[str]], alone: Path, tmp_path: Path, first: list[str], then: list[str]
) -> None:
    log, run_dir = tmp_path / "seen.txt", tmp_path / "run"
    spy = f"+callbacks.custom.spy={{_target_: spy.Spy, file: '{log}'}}"
    started_run = run(*RUN, *first, "trainer.max_epochs=2", "trainer.max_steps=3", f"hydra.run.dir='{run_dir}'", spy)
    assert started_run.returncode == 0, started_run.stderr
    resumed = run(f"resume={run_dir}", *then, "trainer.max_steps=-1", spy)
    if "data.batch_size=1" in then:
        assert resumed.returncode == 2 and "an optimizer step took 8 windows on 2 devices, and takes 6 on 3" in resumed.stderr
        return
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(alone, run_dir)
    for kind in ("train 0", "train 1"):
        assert recorded(log, kind) == recorded(alone.parent / "alone.txt", kind), "each window once"


def test_a_resumed_run_keeps_its_devices(run: Callable[..., subprocess.CompletedProcess[str]], alone: Path) -> None:
    overrides = [*RUN, "model.drop_rate=0.2", "trainer=ddp", "trainer.max_epochs=2", "trainer.devices=2"]
    assert run(*overrides, "hydra.run.dir=whole").returncode == 0
    assert run(*overrides, "hydra.run.dir=parts", "trainer.max_steps=3").returncode == 0
    assert run("resume=parts", "trainer.max_steps=-1").returncode == 0
    assert_same_run(alone.parent / "whole", alone.parent / "parts", exact=True)


@pytest.mark.slow
def test_muon_gives_all_numbers_of_ranks_the_same_weights(
    run: Callable[..., subprocess.CompletedProcess[str]], alone: Path
) -> None:
    overrides = [*RUN, "optimizer=muon", "optimizer.weight_decay=0.1", "trainer.max_epochs=1", "trainer.precision=32-true"]
    overrides += ["ema_decay=0.5"]
    one = run(*overrides, "trainer.accumulate_grad_batches=2", "hydra.run.dir=muon")
    assert one.returncode == 0, one.stderr
    for strategy in ("ddp", "fsdp"):
        done = run(*overrides, f"trainer={strategy}", "trainer.devices=2", f"hydra.run.dir=muon-{strategy}")
        assert done.returncode == 0, done.stderr
        assert_same_run(alone.parent / "muon", alone.parent / f"muon-{strategy}")
    first = run(*overrides, "trainer=fsdp", "trainer.devices=2", "trainer.max_steps=3", "hydra.run.dir=muon-parts")
    assert first.returncode == 0, first.stderr
    second = run("resume=muon-parts", "trainer.max_steps=-1")
    assert second.returncode == 0, second.stderr
    assert_same_run(alone.parent / "muon", alone.parent / "muon-parts")


@pytest.mark.slow
def test_torchrun_starts_a_single_run(run: Callable[..., subprocess.CompletedProcess[str]], alone: Path, tmp_path: Path) -> None:
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
def test_torchrun_restarts_a_killed_worker_from_the_last_checkpoint(
    run: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, cache_dir: Path
) -> None:
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


@pytest.mark.parametrize("how", ["killed", "interrupted"])
def test_all_processes_end_when_one_is_killed_or_the_run_is_interrupted(
    fork_server: ForkServer, tmp_path: Path, cache_dir: Path, how: str
) -> None:
    overrides = [
        *RUN,
        "trainer.devices=2",
        "trainer.max_epochs=100000",
        f"hydra.run.dir={tmp_path / 'run'}",
        f"data.cache_dir='{cache_dir}'",
    ]
    started = fork_server.start(["train.py", *overrides], cwd=tmp_path, environment=environment(), ranks=2)
    wait_until(lambda: "Ep 1" in started.printed("stdout"))
    ranks = [int(pid) for pid in Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()]
    assert len(ranks) == 2
    os.kill(max(ranks) if how == "killed" else started.pid, signal.SIGKILL if how == "killed" else signal.SIGINT)
    out, err = started.communicate(timeout=60)
    assert started.returncode == (137 if how == "killed" else 130), out + err
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)
    metadata = read_metadata(tmp_path / "run")
    assert metadata["state"] == ("failed" if how == "killed" else "interrupted")
    if how == "killed":
        assert metadata["error"].startswith("process 1 of 2 was ended by SIGKILL: Another process of this training has ended")
    else:
        assert "Resume with:" in out and content(tmp_path / "run")["global_step"] > 0


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_after_the_training_fails_the_run(run: Callable[..., subprocess.CompletedProcess[str]], rank: int) -> None:
    custom = f"+callbacks.custom.late={{_target_: spy.FailsAfterTraining, rank: {rank}}}"
    done = run(*RUN, "trainer.devices=2", "trainer.max_epochs=1", f"hydra.run.dir=late{rank}", custom)
    assert done.returncode == 1 and "out of luck" in done.stderr


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_nonfinite_loss_on_one_rank_stops_or_skips_on_all(
    run: Callable[..., subprocess.CompletedProcess[str]], alone: Path, strategy: str
) -> None:
    custom = "+callbacks.custom.nan={_target_: spy.SpoilsOneLoss}"
    overrides = [*RUN, f"trainer.strategy={strategy}", "trainer.devices=2", custom]
    stopped = run(*overrides, f"hydra.run.dir=nan-{strategy}")
    assert stopped.returncode == 2 and "Step 000001: the loss of batch 1 in epoch 1 is nan" in stopped.stderr
    skipped = run(*overrides, f"hydra.run.dir=skip-{strategy}", "on_nonfinite=skip")
    assert skipped.returncode == 0, skipped.stderr
    end = content(alone.parent / f"skip-{strategy}")
    assert all(tensor.isfinite().all() for tensor in end["state_dict"].values())
    assert np.isfinite(end["val_losses"]).all()


@pytest.mark.slow
def test_ddp_and_fsdp_skip_the_same_batch_of_a_step(run: Callable[..., subprocess.CompletedProcess[str]], alone: Path) -> None:
    """The bad batch is the last of the two that its step accumulates."""
    overrides = [*RUN, "trainer.devices=2", "data.batch_size=2", "trainer.accumulate_grad_batches=2", "on_nonfinite=skip"]
    for strategy in ("ddp", "fsdp"):
        done = run(
            *overrides,
            f"trainer.strategy={strategy}",
            f"hydra.run.dir=accumulated-{strategy}",
            "+callbacks.custom.nan={_target_: spy.SpoilsOneLoss}",
        )
        assert done.returncode == 0 and "The batch is skipped" in done.stdout + done.stderr, done.stderr
    assert_same_run(alone.parent / "accumulated-ddp", alone.parent / "accumulated-fsdp")


def test_shards_are_kept_while_a_checkpoint_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "shards-00000001-abcdef").mkdir()
    (tmp_path / "last.ckpt").write_bytes(b"truncated")
    remove_unused_shards(tmp_path)
    assert (tmp_path / "shards-00000001-abcdef").is_dir()
    (tmp_path / "last.ckpt").unlink()
    remove_unused_shards(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_sweep_starts_ranks_for_each_job(run: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    done = run("-m", *RUN, "trainer=ddp", "trainer.devices=2", "trainer.max_epochs=1", "optimizer.lr=1e-3,1e-2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (sweep,) = (tmp_path / "outputs" / "multirun").iterdir()
    assert len((sweep / "summary.csv").read_text().splitlines()) == 3
    jobs = sorted(path.parent for path in sweep.glob("*/run.json"))
    assert [read_metadata(job)["state"] for job in jobs] == ["finished"] * 2
    assert all(len(content(job)["callbacks"]["Randomness"]["ranks"]) == 2 for job in jobs)


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
