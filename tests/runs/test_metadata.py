"""The run metadata in run.json."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gpt_pretrain.errors import AlreadyCompleteError, UserError
from gpt_pretrain.runs.metadata import is_running, read_metadata, track_run, update_metadata
from gpt_pretrain.system.checkout import git_revision
from gpt_pretrain.training.callbacks.evaluation import PeriodicEvaluation
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (None, "finished", None),
        (UserError("optimizer.lr=-1: must be above 0."), "failed", "optimizer.lr=-1: must be above 0."),
        (RuntimeError("broken"), "failed", "broken"),
        (RuntimeError(), "failed", "RuntimeError"),
        (KeyboardInterrupt(), "interrupted", "stopped by Ctrl-C"),
        (SystemExit(143), "interrupted", "stopped by SIGTERM"),
        (SystemExit(1), "failed", "ended with exit code 1"),
    ],
)
def test_the_state_and_the_error_are_stored(tmp_path: Path, error: BaseException | None, state: str, reason: str | None) -> None:
    def job() -> None:
        with track_run(tmp_path, command="python train.py seed=1", overrides=["seed=1"]):
            assert read_metadata(tmp_path)["state"] == "running"
            if error is not None:
                raise error

    if error is None:
        job()
    else:
        with pytest.raises(type(error)):
            job()
    metadata = read_metadata(tmp_path)
    assert metadata["state"] == state
    assert metadata["started"] <= metadata["ended"]
    assert metadata["error"] == reason


def test_a_resumed_run_keeps_its_command_and_start_time(tmp_path: Path) -> None:
    with track_run(tmp_path, command="first", overrides=["seed=1", "trainer.max_epochs=2"]):
        pass
    update_metadata(tmp_path, seconds=100.0)
    first = read_metadata(tmp_path)
    with track_run(tmp_path, command="second", overrides=["trainer.max_epochs=4"]):
        pass
    second = read_metadata(tmp_path)
    assert second["command"] == "first"
    assert second["overrides"] == ["seed=1", "trainer.max_epochs=4"]
    assert second["started"] == first["started"]
    assert 100 <= second["seconds"] < 101
    with pytest.raises(AlreadyCompleteError), track_run(tmp_path, command="third", overrides=["trainer.max_epochs=3"]):
        raise AlreadyCompleteError("complete", result={})
    assert read_metadata(tmp_path) == second  # nothing was trained with those settings


def test_rejected_settings_leave_the_metadata_unchanged(train: Callable[..., float], tmp_path: Path) -> None:
    train("callbacks=minimal", "logger=none")
    before = read_metadata(tmp_path / "run")
    with pytest.raises(UserError, match="already holds a run"):
        train("callbacks=minimal", "logger=none", "seed=2")
    assert read_metadata(tmp_path / "run") == before


def test_only_one_process_can_run_in_a_folder(tmp_path: Path) -> None:
    hold = "import sys, time; from pathlib import Path; from gpt_pretrain.runs.metadata import track_run\n" + (
        "with track_run(Path(sys.argv[1]), command='first', overrides=[]): print('begun', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", hold, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == b"begun\n"
        assert is_running(tmp_path)
        with pytest.raises(UserError, match="another process is running"), track_run(tmp_path, command="second", overrides=[]):
            raise AssertionError("two processes in one folder")
        assert read_metadata(tmp_path)["state"] == "running"
    finally:
        other.kill()
        other.wait()
    assert not is_running(tmp_path)
    with track_run(tmp_path, command="third", overrides=[]):
        pass
    assert read_metadata(tmp_path)["command"] == "first"


def test_a_pruned_run_stays_pruned(tmp_path: Path) -> None:
    with track_run(tmp_path, command="", overrides=[]):
        update_metadata(tmp_path, state="pruned")
    assert read_metadata(tmp_path)["state"] == "pruned"


def test_the_metadata_describe_the_data_and_the_results(train: Callable[..., float], tmp_path: Path, story: str) -> None:
    best = train("callbacks.loss_curve=false")
    metadata = read_metadata(tmp_path / "run")
    assert metadata["state"] == "finished"
    assert metadata["result"]["best_val_loss"] == best
    assert (metadata["result"]["steps"], metadata["result"]["epochs"], metadata["result"]["tokens_seen"]) == (6, 2.0, 3072)
    assert metadata["data"]["characters"] == len(story)
    assert metadata["data"]["train_tokens"] + metadata["data"]["val_tokens"] == len(story), "a token is a byte"
    assert metadata["model"]["vocab_size"] == 257
    assert metadata["result"]["peak_memory_bytes"] > 100e6
    assert (metadata["precision"], metadata["compiled"], metadata["machine"]["device"]) == ("32-true", False, "cpu")


def test_an_error_before_the_first_step_is_stored(
    train: Callable[..., float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError("too early")

    monkeypatch.setattr(PeriodicEvaluation, "on_train_start", broken)
    with pytest.raises(RuntimeError, match="too early"):
        train()
    assert read_metadata(tmp_path / "run")["error"] == "too early"


def test_the_stored_revision_is_the_commit() -> None:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    assert str(git_revision()).removesuffix("-dirty") == done.stdout.strip()[:12]
