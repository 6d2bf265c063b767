"""A rank that is killed, raises an error or has a loss of NaN: all ranks end, or skip the same batch."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from gpt_pretrain.runs.metadata import read_metadata
from tests.helpers.fork_server import ForkServer
from tests.helpers.rank_runs import RUN, RunRanks, assert_same_run, content, environment
from tests.helpers.waiting import wait_until


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
def test_an_error_after_the_training_fails_the_run(run: RunRanks, rank: int) -> None:
    custom = f"+callbacks.custom.late={{_target_: spy.FailsAfterTraining, rank: {rank}}}"
    done = run(*RUN, "trainer.devices=2", "trainer.max_epochs=1", f"hydra.run.dir=late{rank}", custom)
    assert done.returncode == 1 and "out of luck" in done.stderr


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_nonfinite_loss_on_one_rank_stops_or_skips_on_all(run: RunRanks, ranks_folder: Path, strategy: str) -> None:
    custom = "+callbacks.custom.nan={_target_: spy.SpoilsOneLoss}"
    overrides = [*RUN, f"trainer.strategy={strategy}", "trainer.devices=2", custom]
    stopped = run(*overrides, f"hydra.run.dir=nan-{strategy}")
    assert stopped.returncode == 2 and "Step 000001: the loss of batch 1 in epoch 1 is nan" in stopped.stderr
    skipped = run(*overrides, f"hydra.run.dir=skip-{strategy}", "on_nonfinite=skip")
    assert skipped.returncode == 0, skipped.stderr
    end = content(ranks_folder / f"skip-{strategy}")
    assert all(tensor.isfinite().all() for tensor in end["state_dict"].values())
    assert np.isfinite(end["val_losses"]).all()


@pytest.mark.slow
def test_ddp_and_fsdp_skip_the_same_batch_of_a_step(run: RunRanks, ranks_folder: Path) -> None:
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
    assert_same_run(ranks_folder / "accumulated-ddp", ranks_folder / "accumulated-fsdp")
