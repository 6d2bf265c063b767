"""Damaged checkpoints, full disks and lost folders."""

import csv
import re
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gpt_pretrain.checkpoints.pretrained import open_checkpoint, open_weights
from gpt_pretrain.commands.process.failures import report_failures
from gpt_pretrain.errors import LostEndError, UserError
from gpt_pretrain.runs.folder import find_run_folder
from gpt_pretrain.runs.metrics_file import MetricsFile
from gpt_pretrain.training.callbacks.save import SaveRun
from gpt_pretrain.training.start.checkpoint import newest_checkpoint
from tests.helpers.crash_harness import differences
from tests.helpers.training_runs import SETTINGS, Train, checkpoint, signalled

# Bytes of the longest file on a full disk: fewer than a checkpoint has, and far more than what else a process writes by the way,
# such as the captured output of a test with many warnings, or a record of which test runs which lines.
FULL = 100_000


def test_a_run_resumes_from_an_older_checkpoint_if_the_last_is_damaged(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    overrides = [*SETTINGS, "checkpoint.every_n_steps=2", "checkpoint.keep=9"]
    train(*overrides, run_dir=tmp_path / "whole")
    parts = tmp_path / "parts"
    with signalled(signal.SIGTERM, at_step=6):
        train(*overrides, run_dir=parts)
    for name in ("last", "step-00000007"):
        path = parts / "checkpoints" / f"{name}.ckpt"
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= 16
        path.unlink()  # both may be names of one file
        path.write_bytes(data)
    (parts / "checkpoints" / ".last.ckpt.01234567.tmp").write_bytes(b"half a checkpoint")
    (parts / ".metrics.csv.01234567.tmp").write_bytes(b"half a table")
    (parts / ".huggingface.01234567.tmp").mkdir()
    train(*overrides, f"resume='{parts}'", run_dir=parts)
    assert "last.ckpt is damaged: its checksum is" in caplog.text
    assert re.search(r"The newest intact checkpoint is .*step-00000006\.ckpt", caplog.text)
    assert differences(tmp_path / "whole", parts) == []
    assert not list(parts.rglob("*.tmp"))


def test_a_missing_last_checkpoint_is_reported_with_the_steps_that_are_lost(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    train(*SETTINGS, "checkpoint.every_n_steps=4", "checkpoint.keep=9", "trainer.max_steps=10", run_dir=run)
    folder = run / "checkpoints"
    (folder / "best.ckpt").unlink()
    (folder / "step-00000010.ckpt").unlink(missing_ok=True)
    open_checkpoint(str(run))
    assert "is missing" not in caplog.text, "last.ckpt is there"
    (folder / "last.ckpt").unlink()
    for _ in (open_checkpoint(str(run)), open_weights(run), newest_checkpoint(run)):
        pass
    said = f"{folder / 'last.ckpt'} is missing, so {folder / 'step-00000008.ckpt'} is used. It is of step 7, and "
    assert caplog.text.count(f"{said}{run / 'metrics.csv'} goes up to step 9: 2 steps are lost.") == 3
    caplog.clear()
    open_checkpoint(str(folder / "step-00000008.ckpt"))
    assert "is missing" not in caplog.text, "the user has named it"
    with pytest.raises(UserError, match=r"lost\.ckpt: there is no such checkpoint\. This folder has step-00000008\.ckpt, step-0"):
        find_run_folder(str(folder / "lost.ckpt"))
    (run / "metrics.csv").unlink()
    open_checkpoint(str(run))
    assert "What the run learned after it is lost." in caplog.text


@pytest.mark.parametrize("damaged", [False, True])
def test_without_the_last_checkpoint_the_one_of_the_latest_step_is_resumed(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture, damaged: bool
) -> None:
    run = tmp_path / "run"
    train(*SETTINGS, "checkpoint.every_n_steps=4", "checkpoint.keep=9", "trainer.max_steps=10", run_dir=run)
    folder = run / "checkpoints"
    last = (folder / "last.ckpt").read_bytes()
    (folder / "step-00000010.ckpt").unlink(missing_ok=True)
    (folder / "best.ckpt").unlink()
    (folder / "best.ckpt").write_bytes(last)
    (folder / "last.ckpt").unlink()
    if damaged:
        (folder / "last.ckpt").write_bytes(last[: len(last) // 2])
    assert newest_checkpoint(run)[0] == folder / "best.ckpt"
    said = "The newest intact checkpoint is {}." if damaged else "is missing, so {} is used."
    assert damaged == (said.format(folder / "best.ckpt") in caplog.text), "no step is lost, so nothing is said"
    (folder / "best.ckpt").unlink()
    shutil.copy(folder / "step-00000004.ckpt", folder / "best.ckpt")
    assert newest_checkpoint(run)[0] == folder / "step-00000008.ckpt"
    assert said.format(folder / "step-00000008.ckpt") in caplog.text


@contextmanager
def after_saving(at_step: int, act: Callable[[], object]) -> Iterator[None]:
    """Call a function after the checkpoint of a step has been written, or writing it has failed."""
    real = SaveRun.save

    def saving(save: SaveRun, trainer: Any, module: Any, **kwargs: Any) -> None:
        real(save, trainer, module, **kwargs)
        save.finish_save()
        if trainer.global_step == at_step:
            act()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SaveRun, "save", saving)
        yield


def test_training_continues_on_a_full_disk_and_keeps_the_old_checkpoint(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    overrides = [*SETTINGS, "checkpoint.every_n_steps=2"]
    train(*overrides, run_dir=tmp_path / "whole")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    full, room = (lambda size=size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard)) for size in (FULL, soft))
    try:
        with after_saving(2, full), after_saving(4, room):
            train(*overrides, run_dir=tmp_path / "parts")
    finally:
        room()
    assert "The checkpoint of step 3, or a copy of it, could not be written" in caplog.text
    assert caplog.text.count("could not be written") == 1
    assert differences(tmp_path / "whole", tmp_path / "parts") == []


def test_a_run_fails_if_its_last_checkpoint_cannot_be_written(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with (
            after_saving(5, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (FULL, hard))),
            pytest.raises(SystemExit) as caught,
            report_failures(),
        ):
            train(*SETTINGS, run_dir=tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.code == 1
    assert "The last checkpoint could not be written" in caplog.text
    assert checkpoint(tmp_path / "run")["global_step"] == 5, "the previous checkpoint is intact"
    assert not list((tmp_path / "run").rglob("*.tmp"))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's writer
@pytest.mark.parametrize("what", ["checkpoints", "."])
def test_a_folder_that_is_deleted_during_training_is_made_again(train: Train, tmp_path: Path, what: str) -> None:
    overrides = [*SETTINGS, "logger=tensorboard", "callbacks.loss_curve=true"]
    with after_saving(5, lambda: shutil.rmtree(tmp_path / "run" / what)):
        train(*overrides, run_dir=tmp_path / "run")
    assert checkpoint(tmp_path / "run")["global_step"] == 10


def test_a_folder_that_cannot_be_written_is_reported(train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "run" / "checkpoints"

    def blocked() -> None:
        folder.rename(tmp_path / "moved")
        folder.write_text("a file where the folder was")

    with after_saving(5, blocked), pytest.raises(LostEndError, match=r"^The run has no checkpoint: it could not be written\."):
        train(*SETTINGS, run_dir=tmp_path / "run")
    assert "could not be written to" in caplog.text
    assert (tmp_path / "moved" / "last.ckpt").exists()


@pytest.mark.parametrize("count", ["inf", "nan", "1e308", "-1"])
def test_a_row_that_counts_no_tokens_is_left_out(tmp_path: Path, count: str) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(f"step,epoch,tokens_seen,train/loss\n0,1,{count},1\n1,{count},8,1\n2,1,16,nan\n")
    MetricsFile(path, first_step=3)
    with open(path, newline="") as stream:
        assert [row["step"] for row in csv.DictReader(stream)] == ["2"]


def test_a_row_of_metrics_survives_a_second_kill(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    first = MetricsFile(path)
    for step in range(4):
        first.log_metrics({"train/loss": float(step)}, step=step)
    first.flush()
    MetricsFile(path, first_step=3)  # resumed from the checkpoint of step 2, and killed before anything is logged
    again = MetricsFile(path, first_step=3)
    again.log_metrics({"val/loss": 0.5}, step=2)
    again.log_metrics({"train/loss": 9.0}, step=3)
    again.flush()
    with open(path, newline="") as stream:
        table = [(row["step"], row["train/loss"], row["val/loss"]) for row in csv.DictReader(stream)]
    assert table == [("0", "0", ""), ("1", "1", ""), ("2", "2", "0.5"), ("3", "9", "")]
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.csv"]
