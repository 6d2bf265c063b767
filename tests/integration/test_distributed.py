"""Train with several real processes over gloo, and compare with a run of one process."""

from pathlib import Path

import pytest
import torch

from gpt_pretrain.checkpoints.pretrained import load_pretrained
from gpt_pretrain.runs.metadata import read_metadata
from gpt_pretrain.training.distributed.fsdp import remove_unused_shards
from tests.helpers.rank_runs import RUN, RunRanks, assert_same_run, content, recorded


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_equal_one_rank_with_two_accumulated_batches(run: RunRanks, alone: Path, strategy: str) -> None:
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
    run: RunRanks, alone: Path, tmp_path: Path, first: list[str], then: list[str]
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


def test_a_resumed_run_keeps_its_devices(run: RunRanks, ranks_folder: Path) -> None:
    overrides = [*RUN, "model.drop_rate=0.2", "trainer=ddp", "trainer.max_epochs=2", "trainer.devices=2"]
    assert run(*overrides, "hydra.run.dir=whole").returncode == 0
    assert run(*overrides, "hydra.run.dir=parts", "trainer.max_steps=3").returncode == 0
    assert run("resume=parts", "trainer.max_steps=-1").returncode == 0
    assert_same_run(ranks_folder / "whole", ranks_folder / "parts", exact=True)


@pytest.mark.slow
def test_muon_gives_all_numbers_of_ranks_the_same_weights(run: RunRanks, ranks_folder: Path) -> None:
    overrides = [*RUN, "optimizer=muon", "optimizer.weight_decay=0.1", "trainer.max_epochs=1", "trainer.precision=32-true"]
    overrides += ["ema_decay=0.5"]
    one = run(*overrides, "trainer.accumulate_grad_batches=2", "hydra.run.dir=muon")
    assert one.returncode == 0, one.stderr
    for strategy in ("ddp", "fsdp"):
        done = run(*overrides, f"trainer={strategy}", "trainer.devices=2", f"hydra.run.dir=muon-{strategy}")
        assert done.returncode == 0, done.stderr
        assert_same_run(ranks_folder / "muon", ranks_folder / f"muon-{strategy}")
    first = run(*overrides, "trainer=fsdp", "trainer.devices=2", "trainer.max_steps=3", "hydra.run.dir=muon-parts")
    assert first.returncode == 0, first.stderr
    second = run("resume=muon-parts", "trainer.max_steps=-1")
    assert second.returncode == 0, second.stderr
    assert_same_run(ranks_folder / "muon", ranks_folder / "muon-parts")


def test_a_sharded_checkpoint_loads_like_any_other(run: RunRanks, ranks_folder: Path) -> None:
    sharded = ranks_folder / "sharded"
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


def test_shards_are_kept_while_a_checkpoint_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "shards-00000001-abcdef").mkdir()
    (tmp_path / "last.ckpt").write_bytes(b"truncated")
    remove_unused_shards(tmp_path)
    assert (tmp_path / "shards-00000001-abcdef").is_dir()
    (tmp_path / "last.ckpt").unlink()
    remove_unused_shards(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_sweep_starts_ranks_for_each_job(run: RunRanks, tmp_path: Path) -> None:
    done = run("-m", *RUN, "trainer=ddp", "trainer.devices=2", "trainer.max_epochs=1", "optimizer.lr=1e-3,1e-2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (sweep,) = (tmp_path / "outputs" / "multirun").iterdir()
    assert len((sweep / "summary.csv").read_text().splitlines()) == 3
    jobs = sorted(path.parent for path in sweep.glob("*/run.json"))
    assert [read_metadata(job)["state"] for job in jobs] == ["finished"] * 2
    assert all(len(content(job)["callbacks"]["Randomness"]["ranks"]) == 2 for job in jobs)
