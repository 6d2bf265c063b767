"""Several processes that train together, compared with one that trains alone: real processes, which talk by gloo."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from gpt_pretrain.checkpoints.checkpoint_file import read_checkpoint
from gpt_pretrain.checkpoints.pretrained import load_pretrained
from gpt_pretrain.data.windows import BatchOrder
from gpt_pretrain.runs.metadata import read_metadata
from gpt_pretrain.training.distributed.fsdp import remove_unused_shards
from gpt_pretrain.training.nonfinite import renumber_batches
from tests.conftest import ROOT, TINY_RUN

# 54 windows to train on: 13 batches of 4, which two ranks, or two accumulated batches, do not divide, and 2 that are left out,
# though they would make another batch of 2; 2 batches to validate.
RUN = [*TINY_RUN, "data.stride=340", "data.batch_size=4", "model.drop_rate=0.0", "eval_iter=3", "callbacks.doctor=null"]
SPY = '''
from pathlib import Path
import lightning as L
import os

class Spy(L.Callback):
    """Notes the windows that each rank trains on and validates."""
    def __init__(self, file):
        self.file = file
    def note(self, kind, batch):
        if int(batch[1].max()) >= 0:
            with open(self.file, "a") as stream:
                stream.writelines(f"{kind} {hash(tuple(row))}\\n" for row in batch[0].tolist())
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.note(f"train {trainer.current_epoch}", batch)
    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        self.note(f"val {trainer.current_epoch}", batch)

class FailsAfterTraining(L.Callback):
    def __init__(self, rank):
        self.rank = rank
    def on_fit_end(self, trainer, pl_module):
        if trainer.global_rank == self.rank:
            raise ValueError("out of luck")

class LosesANumber(L.Callback):
    """Makes the loss of one rank's batch NaN."""
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 1 and trainer.current_epoch == 0 and trainer.global_rank == trainer.world_size - 1:
            spoil = lambda module, inputs, out: out * float("nan") if module.training else out
            self.hook = pl_module.model.final_norm.register_forward_hook(spoil)
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 1 and trainer.current_epoch == 0 and trainer.global_rank == trainer.world_size - 1:
            self.hook.remove()
'''


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run train.py with settings in a folder of the module's own; `before` stands in front of the command's words."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "spy.py").write_text(SPY)

    def ran(*words: str, before: tuple[str, ...] = (sys.executable,), cwd: Path = folder) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*before, str(ROOT / "train.py"), *words, f"data.cache_dir='{cache_dir}'"],
            cwd=cwd,
            env=environment() | {"PYTHONPATH": str(folder), "PYTHONHASHSEED": "0"},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )

    ran.folder = folder  # type: ignore[attr-defined]
    return ran


def environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key != "PYTEST_CURRENT_TEST"} | {"OMP_NUM_THREADS": "1"}


def content(folder: Path) -> dict:
    return read_checkpoint(folder / "checkpoints" / "last.ckpt")


@pytest.fixture(scope="module")
def alone(run: Callable[..., subprocess.CompletedProcess[str]]) -> Path:
    """A run of one process that accumulates two batches a step, which the others are compared with."""
    folder = run.folder  # type: ignore[attr-defined]
    done = run(
        *RUN,
        "trainer.accumulate_grad_batches=2",
        "hydra.run.dir=alone",
        f"+callbacks.custom.spy={{_target_: spy.Spy, file: '{folder}/alone.txt'}}",
    )
    assert done.returncode == 0, done.stderr
    return Path(folder / "alone")


def same_run(alone: Path, other: Path, *, exact: bool = False) -> None:
    """Whether two runs saw the same and learnt the same."""
    one, two = content(alone), content(other)
    assert (one["global_step"], one["tokens_seen"]) == (two["global_step"], two["tokens_seen"])
    assert one["track_tokens_seen"] == two["track_tokens_seen"]
    tolerance = {"rtol": 0, "atol": 0 if exact else 1e-5}
    for name in ("train_losses", "val_losses"):
        np.testing.assert_allclose(one[name], two[name], **tolerance)
    for name, tensor in one["state_dict"].items():
        torch.testing.assert_close(tensor, two["state_dict"][name], **tolerance)
    assert one["callbacks"]["SaveRun"]["best_step"] == two["callbacks"]["SaveRun"]["best_step"]


def noted(file: Path, kind: str) -> Counter:
    return Counter(line for line in file.read_text().splitlines() if line.startswith(kind))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_do_what_one_does_in_two_accumulated_batches(
    run: Callable[..., subprocess.CompletedProcess[str]], alone: Path, strategy: str
) -> None:
    folder = alone.parent
    spy = f"+callbacks.custom.spy={{_target_: spy.Spy, file: '{folder}/{strategy}.txt'}}"
    done = run(*RUN, f"trainer={strategy}", "trainer.max_epochs=2", "trainer.devices=2", f"hydra.run.dir={strategy}", spy)
    assert done.returncode == 0, done.stderr
    same_run(alone, folder / strategy)
    for kind in ("train 0", "train 1", "val 0", "val 1"):
        mine = noted(folder / f"{strategy}.txt", kind)
        assert mine == noted(folder / "alone.txt", kind), "the same windows"
    assert set(noted(folder / "alone.txt", "val 0").values()) == {1}, "each once"
    lines = done.stdout.splitlines()
    assert sum(line.startswith("Ep 1 (Step 000000)") for line in lines) == 1, "only one rank prints"
    assert "on 2 devices" in done.stdout and not done.stderr
    assert len((folder / strategy / "metrics.csv").read_text().splitlines()) == len(
        (alone / "metrics.csv").read_text().splitlines()
    )
    assert read_metadata(folder / strategy)["state"] == "finished"
    assert "trainer.devices=2" in read_metadata(folder / strategy)["command"]
    states = content(folder / strategy)["callbacks"]["Randomness"]["ranks"]
    assert len(states) == 2 and not torch.equal(states[0]["torch"], states[1]["torch"]), "ranks draw apart"


def test_a_sharded_checkpoint_is_a_model_like_any_other(
    run: Callable[..., subprocess.CompletedProcess[str]], alone: Path
) -> None:
    folder = alone.parent
    sharded = folder / "sharded"
    assert (
        run(*RUN, "trainer=fsdp", "trainer.max_epochs=1", "trainer.devices=2", "hydra.run.dir=sharded", "export=true").returncode
        == 0
    )
    pieces = sorted(path.relative_to(sharded) for path in sharded.glob("checkpoints/shards-*/*"))
    assert [path.name for path in pieces] == ["rank-00000.safetensors", "rank-00001.safetensors"], "those in use, no others"
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        logits = [load_pretrained(place)(ids) for place in (sharded, sharded / "huggingface")]
    torch.testing.assert_close(*logits)
    data = (sharded / pieces[1]).read_bytes()
    (sharded / pieces[1]).write_bytes(data[:-4] + b"\0\1\2\3")
    with pytest.raises(ValueError, match="damaged"):
        content(sharded)
    (sharded / pieces[1]).unlink()
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
def test_a_run_goes_on_with_another_number_of_ranks(
    run: Callable[..., subprocess.CompletedProcess[str]], alone: Path, tmp_path: Path, first: list[str], then: list[str]
) -> None:
    log, place = tmp_path / "seen.txt", tmp_path / "run"
    spy = f"+callbacks.custom.spy={{_target_: spy.Spy, file: '{log}'}}"
    begun = run(*RUN, *first, "trainer.max_epochs=2", "trainer.max_steps=3", f"hydra.run.dir='{place}'", spy)
    assert begun.returncode == 0, begun.stderr
    gone_on = run(f"resume={place}", *then, "trainer.max_steps=-1", spy)
    if "data.batch_size=1" in then:
        assert gone_on.returncode == 2 and "an optimizer step took 8 windows on 2 devices, and takes 6 on 3" in gone_on.stderr
        return
    assert gone_on.returncode == 0, gone_on.stderr
    same_run(alone, place)
    for kind in ("train 0", "train 1"):
        assert noted(log, kind) == noted(alone.parent / "alone.txt", kind), "no window twice, none left out"


def test_a_run_that_was_stopped_goes_on_with_its_own_devices(
    run: Callable[..., subprocess.CompletedProcess[str]], alone: Path
) -> None:
    dropping = [*RUN, "model.drop_rate=0.2", "trainer=ddp", "trainer.max_epochs=2", "trainer.devices=2"]
    assert run(*dropping, "hydra.run.dir=whole").returncode == 0
    assert run(*dropping, "hydra.run.dir=parts", "trainer.max_steps=3").returncode == 0
    assert run("resume=parts", "trainer.max_steps=-1").returncode == 0
    same_run(alone.parent / "whole", alone.parent / "parts", exact=True)


def test_torchrun_starts_one_run(run: Callable[..., subprocess.CompletedProcess[str]], alone: Path, tmp_path: Path) -> None:
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2")
    done = run(*RUN, before=torchrun, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "outputs").glob("2*")
    same_run(alone, folder)
    assert done.stdout.count("Ep 1 (Step 000000)") == 1
    wrong = run(*RUN, "trainer.devices=3", "hydra.run.dir=wrong", before=torchrun, cwd=tmp_path)
    assert wrong.returncode != 0 and "trainer.devices=3 and trainer.num_nodes=1, but 2 processes" in wrong.stderr
    swept = run("-m", *RUN, "seed=1,2", before=torchrun, cwd=tmp_path)
    assert swept.returncode != 0 and "A sweep starts the processes of each job itself" in swept.stderr


@pytest.mark.slow
def test_a_killed_worker_costs_the_steps_since_the_last_checkpoint(
    run: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, cache_dir: Path
) -> None:
    words = [*RUN, "model.drop_rate=0.1", "trainer.max_epochs=12", "checkpoint.every_n_steps=5", f"data.cache_dir='{cache_dir}'"]
    assert run(*words[:-1], "trainer.devices=2", f"hydra.run.dir='{tmp_path}/whole'").returncode == 0
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--max-restarts=3",
        str(ROOT / "train.py"),
        *words,
    ]
    with open(tmp_path / "log", "w") as log:
        agent = subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=log, stderr=log)
        wait_for(lambda: list(tmp_path.glob("outputs/2*/checkpoints/last.ckpt")))
        os.kill(children(agent.pid)[-1], signal.SIGKILL)
        assert agent.wait(timeout=200) == 0, (tmp_path / "log").read_text()
    (folder,) = tmp_path.glob("outputs/2*")
    same_run(tmp_path / "whole", folder, exact=True)


@pytest.mark.parametrize("how", ["killed", "interrupted"])
def test_the_end_of_one_is_the_end_of_all(
    run: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, cache_dir: Path, how: str
) -> None:
    words = [
        *RUN,
        "trainer.devices=2",
        "trainer.max_epochs=100000",
        f"hydra.run.dir={tmp_path / 'run'}",
        f"data.cache_dir='{cache_dir}'",
    ]
    started = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *words], cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True
    )
    assert started.stdout is not None
    for line in started.stdout:
        if line.startswith("Ep 1"):
            break
    ranks = children(started.pid)
    assert len(ranks) == 2
    os.kill(ranks[1] if how == "killed" else started.pid, signal.SIGKILL if how == "killed" else signal.SIGINT)
    rest = started.stdout.read()
    assert started.wait(timeout=60) == (137 if how == "killed" else 130), rest
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)
    record = read_metadata(tmp_path / "run")
    assert record["state"] == ("failed" if how == "killed" else "interrupted")
    if how == "killed":
        assert record["error"].startswith("process 1 of 2 was ended by SIGKILL: Another process of this training has ended")
    else:
        assert "Resume with:" in rest and content(tmp_path / "run")["global_step"] > 0


@pytest.mark.parametrize("rank", [0, 1])
def test_a_failure_after_the_training_is_one_too(run: Callable[..., subprocess.CompletedProcess[str]], rank: int) -> None:
    custom = f"+callbacks.custom.late={{_target_: spy.FailsAfterTraining, rank: {rank}}}"
    done = run(*RUN, "trainer.devices=2", "trainer.max_epochs=1", f"hydra.run.dir=late{rank}", custom)
    assert done.returncode == 1 and "out of luck" in done.stderr


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_loss_that_is_no_number_on_one_rank_is_so_on_all(
    run: Callable[..., subprocess.CompletedProcess[str]], alone: Path, strategy: str
) -> None:
    custom = "+callbacks.custom.nan={_target_: spy.LosesANumber}"
    words = [*RUN, f"trainer.strategy={strategy}", "trainer.devices=2", custom]
    stopped = run(*words, f"hydra.run.dir=nan-{strategy}")
    assert stopped.returncode == 2 and "Step 000001: the loss of batch 1 in epoch 1 is nan" in stopped.stderr
    skipped = run(*words, f"hydra.run.dir=skip-{strategy}", "on_nonfinite=skip")
    assert skipped.returncode == 0, skipped.stderr
    end = content(alone.parent / f"skip-{strategy}")
    assert all(tensor.isfinite().all() for tensor in end["state_dict"].values())
    assert np.isfinite(end["val_losses"]).all()


@pytest.mark.slow
def test_a_batch_left_out_of_a_step_is_left_out_alike(run: Callable[..., subprocess.CompletedProcess[str]], alone: Path) -> None:
    """The bad batch is the last of the two that its step accumulates."""
    words = [*RUN, "trainer.devices=2", "data.batch_size=2", "trainer.accumulate_grad_batches=2", "on_nonfinite=skip"]
    for strategy in ("ddp", "fsdp"):
        done = run(
            *words,
            f"trainer.strategy={strategy}",
            f"hydra.run.dir=accumulated-{strategy}",
            "+callbacks.custom.nan={_target_: spy.LosesANumber}",
        )
        assert done.returncode == 0 and "The batch is skipped" in done.stdout + done.stderr, done.stderr
    same_run(alone.parent / "accumulated-ddp", alone.parent / "accumulated-fsdp")


def test_batches_have_other_numbers_where_other_ranks_share_them() -> None:
    assert renumber_batches([[0, 8], [2, 1]], before=8, now=4) == [[0, 16], [0, 17], [2, 2], [2, 3]]
    assert renumber_batches([[0, 3]], before=4, now=8) == [[0, 1]]
    assert renumber_batches([[1, 1]], before=6, now=4) == [[1, 1], [1, 2]]
    assert renumber_batches([[0, 5]], before=4, now=4) == [[0, 5]]


def test_pieces_stay_where_a_checkpoint_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "shards-00000001-abcdef").mkdir()
    (tmp_path / "last.ckpt").write_bytes(b"what is left of it")
    remove_unused_shards(tmp_path)
    assert (tmp_path / "shards-00000001-abcdef").is_dir()
    (tmp_path / "last.ckpt").unlink()
    remove_unused_shards(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_sweep_starts_the_ranks_of_each_job(run: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    done = run("-m", *RUN, "trainer=ddp", "trainer.devices=2", "trainer.max_epochs=1", "optimizer.lr=1e-3,1e-2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (sweep,) = (tmp_path / "outputs" / "multirun").iterdir()
    assert len((sweep / "summary.csv").read_text().splitlines()) == 3
    jobs = sorted(path.parent for path in sweep.glob("*/run.json"))
    assert [read_metadata(job)["state"] for job in jobs] == ["finished"] * 2
    assert all(len(content(job)["callbacks"]["Randomness"]["ranks"]) == 2 for job in jobs)


@pytest.mark.parametrize(("n", "size", "world"), [(13, 4, 2), (12, 4, 3), (5, 4, 4), (1, 1, 2), (40, 3, 5)])
@pytest.mark.parametrize("seed", [None, 7])
def test_ranks_share_the_batches_of_one(n: int, size: int, world: int, seed: int | None) -> None:
    whole = [batch.tolist() for batch in BatchOrder(n, size, seed=seed)]
    shares = [[b.tolist() for b in BatchOrder(n, size, seed=seed, rank=rank, world_size=world)] for rank in range(world)]
    assert len({len(share) for share in shares}) == 1, "all ranks make as many steps"
    assert [batch for batch in chain.from_iterable(zip(*shares, strict=True)) if batch] == whole
    later = BatchOrder(n, size, seed=seed, rank=world - 1, world_size=world)
    later.start = 1
    assert [b.tolist() for b in later] == shares[-1][1:]
    assert next(iter(BatchOrder(10**12, 8, seed=1, rank=3, world_size=512))).max() < 10**12


def children(pid: int) -> list[int]:
    """Processes that a process has started, in the order of their start."""
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


def wait_for(there: Callable[[], object], seconds: float = 100) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end, "nothing came"
        time.sleep(0.1)
