"""Resuming after a stop at an awkward moment, and from checkpoints that are damaged or incomplete."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf

from gpt_pretrain.checkpoints import checkpoint_file as module
from gpt_pretrain.checkpoints.checkpoint_file import read_checkpoint, write_checkpoint
from gpt_pretrain.checkpoints.serialization.checksum import SummedStream
from gpt_pretrain.config.interpolation import escape_interpolation
from gpt_pretrain.errors import UserError
from gpt_pretrain.runs.folder import find_checkpoints
from gpt_pretrain.training import saving
from gpt_pretrain.training.callbacks import save
from gpt_pretrain.training.lit_module import GPTLitModule
from gpt_pretrain.training.start.checkpoint import read_resumable
from tests.helpers.crash_harness import differences
from tests.helpers.training_runs import SETTINGS, Train, checkpoint, signalled, spoilt, with_stored


class Stop(BaseException):
    """Ends a process like a kill, since nothing catches it."""


@given(text=st.text(alphabet="\\${}a:. "))
def test_escaped_text_is_never_interpolated(text: str) -> None:
    config = OmegaConf.create(escape_interpolation({"a": text, "b": [text, {"c": text}]}))
    assert OmegaConf.to_container(config, resolve=True) == {"a": text, "b": [text, {"c": text}]}


def test_a_checkpoint_cannot_read_environment_variables(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    train(*SETTINGS, "trainer.max_epochs=1", run_dir=tmp_path / "run")
    with_stored(tmp_path / "run", lambda config: config.update(start_context="\\${oc.env:SECRET_TOKEN}"))
    train("trainer.max_epochs=2", f"resume='{tmp_path / 'run'}'", base=[], run_dir=tmp_path / "run")
    assert "hunter2" not in (tmp_path / "run" / "config.yaml").read_text() + (tmp_path / "run" / "samples.txt").read_text()


def test_a_checkpoint_of_empty_batches_is_refused(train: Train, tmp_path: Path) -> None:
    train(*SETTINGS, "trainer.max_epochs=1", run_dir=tmp_path / "run")
    with_stored(tmp_path / "run", lambda config: config["data"].update(batch_size=0))
    with pytest.raises(UserError, match=r"last\.ckpt is not a valid checkpoint: its data\.batch_size, .* must be at least 1\."):
        read_resumable(tmp_path / "run" / "checkpoints" / "last.ckpt")


class OddState(Callback):
    """Has a state that no checkpoint may hold."""

    def state_dict(self) -> dict[str, Any]:
        return {"path": Path("x")}


def test_a_state_that_could_not_be_loaded_is_not_written(train: Train, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"could never be loaded\. The state_dict"):
        train(*SETTINGS, f"+callbacks.custom.odd={{_target_: {OddState.__module__}.OddState}}", run_dir=tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.ckpt"))


def test_resuming_writes_a_best_checkpoint_that_a_kill_prevented(train: Train, tmp_path: Path) -> None:
    run_dir, real = tmp_path / "run", saving.copy_checkpoint

    def killed(source: Path, target: Path) -> None:
        if torch.load(source, weights_only=True)["global_step"] == 10:
            raise Stop
        real(source, target)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(saving, "copy_checkpoint", killed)
        train(*SETTINGS, run_dir=run_dir)
    assert (checkpoint(run_dir)["global_step"], checkpoint(run_dir, "best")["global_step"]) == (10, 5)
    with pytest.raises(UserError, match="is complete"):
        train(*SETTINGS, f"resume='{run_dir}'", run_dir=run_dir)
    assert checkpoint(run_dir, "best")["global_step"] == 10


def test_a_best_checkpoint_that_could_not_be_written_is_tried_again(train: Train, tmp_path: Path) -> None:
    calls, real = [], saving.copy_checkpoint

    def failing(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        real(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saving, "copy_checkpoint", failing)
        train(*SETTINGS, run_dir=tmp_path / "run")
    assert len(calls) == 3
    assert checkpoint(tmp_path / "run", "best")["global_step"] == 10
    assert checkpoint(tmp_path / "run")["callbacks"]["SaveRun"]["best_step"] == 9


def test_a_run_is_complete_after_early_stopping(train: Train, tmp_path: Path) -> None:
    overrides = [
        *SETTINGS,
        "callbacks=early_stopping",
        "callbacks.early_stopping.patience=1",
        "callbacks.early_stopping.min_delta=9",
    ]
    train(*overrides, "trainer.max_epochs=8", run_dir=tmp_path / "run")
    assert checkpoint(tmp_path / "run")["global_step"] == 10, "one epoch to compare with, and one without an improvement"
    resume = f"resume='{tmp_path / 'run'}'"
    with pytest.raises(UserError, match=r"is complete: early stopping .*callbacks\.early_stopping\.patience=3"):
        train(resume, base=[], run_dir=tmp_path / "run")
    train(resume, "callbacks=early_stopping", "callbacks.early_stopping.patience=3", base=[], run_dir=tmp_path / "run")
    assert checkpoint(tmp_path / "run")["global_step"] > 10


@pytest.mark.parametrize("every", ["null", "4"])
def test_a_signal_in_the_last_step_before_a_limit_does_not_stop_the_run_early(train: Train, tmp_path: Path, every: str) -> None:
    overrides = [*SETTINGS, "trainer.max_steps=8", f"checkpoint.every_n_steps={every}"]
    train(*overrides, run_dir=tmp_path / "whole")
    real = GPTLitModule.training_step

    def sending(module: GPTLitModule, batch: Any, batch_idx: int) -> Any:
        if module.trainer.global_step == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(module, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GPTLitModule, "training_step", sending)
        train(*overrides, run_dir=tmp_path / "parts")
    assert differences(tmp_path / "whole", tmp_path / "parts") == []


@pytest.mark.parametrize("every", ["null", "4"])
def test_the_logs_of_a_run_extended_past_its_limit_equal_those_of_an_uninterrupted_run(
    train: Train, tmp_path: Path, every: str
) -> None:
    overrides = [*SETTINGS, "scheduler=constant", f"checkpoint.every_n_steps={every}"]  # other schedules end where the run does
    train(*overrides, run_dir=tmp_path / "whole")
    train(*overrides, "trainer.max_steps=8", run_dir=tmp_path / "parts")
    train(*overrides, "trainer.max_steps=-1", f"resume='{tmp_path / 'parts'}'", run_dir=tmp_path / "parts")
    assert [text for text in differences(tmp_path / "whole", tmp_path / "parts") if "SaveRun" not in text] == []


def test_a_stop_during_validation_and_a_kill_after_it_leave_no_duplicate_rows(train: Train, tmp_path: Path) -> None:
    train(*SETTINGS, run_dir=tmp_path / "whole")
    parts = tmp_path / "parts"
    with signalled(signal.SIGTERM, at_step=5, validating=True):
        train(*SETTINGS, run_dir=parts)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(save.SaveRun, "on_train_epoch_end", lambda *args: (_ for _ in ()).throw(Stop))
        train(*SETTINGS, f"resume='{parts}'", run_dir=parts)
    train(*SETTINGS, f"resume='{parts}'", run_dir=parts)
    assert differences(tmp_path / "whole", parts) == []


def test_resuming_without_the_text_file_is_an_error(train: Train, tmp_path: Path, story: str) -> None:
    (tmp_path / "text.txt").write_text(story)
    train(*SETTINGS, f"data.path='{tmp_path / 'text.txt'}'", "trainer.max_epochs=1", run_dir=tmp_path / "run")
    (tmp_path / "text.txt").unlink()
    with pytest.raises(UserError, match=r"text\.txt: there is no such file or folder"):
        train("trainer.max_epochs=2", f"resume='{tmp_path / 'run'}'", base=[], run_dir=tmp_path / "run")


def test_a_run_resumes_from_a_named_checkpoint_and_deletes_later_ones(train: Train, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    overrides = [*SETTINGS, "checkpoint.every_n_steps=2", "checkpoint.keep=9"]
    train(*overrides, run_dir=run_dir)
    folder = run_dir / "checkpoints"
    os.utime(folder / "step-00000002.ckpt")
    names = [path.name for path in find_checkpoints(str(run_dir))]
    assert names[:3] == ["last.ckpt", "step-00000010.ckpt", "step-00000008.ckpt"], "by step, not by age"
    train("trainer.max_steps=5", f"resume='{folder / 'step-00000004.ckpt'}'", base=[], run_dir=run_dir)
    assert checkpoint(run_dir)["global_step"] == 5
    assert sorted(path.name for path in folder.glob("step-*")) == [f"step-0000000{step}.ckpt" for step in (2, 4, 5)]


def test_a_signal_during_a_rollback_stops_the_run(train: Train, tmp_path: Path) -> None:
    overrides = [*SETTINGS, "on_nonfinite=rollback", "checkpoint.every_n_steps=2"]
    with spoilt(steps={3}), signalled(signal.SIGTERM, at_step=3):
        train(*overrides, run_dir=tmp_path / "run")
    assert checkpoint(tmp_path / "run")["global_step"] == 2


@pytest.mark.parametrize("damage", ["field", "model", "sizes", "loops"])
def test_a_run_resumes_from_an_older_checkpoint_if_newer_ones_cannot_be_resumed(
    train: Train, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    run_dir = tmp_path / "run"
    train(*SETTINGS, "trainer.max_steps=8", "checkpoint.every_n_steps=4", "checkpoint.keep=3", run_dir=run_dir)
    content = checkpoint(run_dir)
    if damage == "field":
        del content["skipped"]
    elif damage == "model":
        content["config"]["model"]["n_layers"] = 10**7
    elif damage == "sizes":
        content["architecture"]["emb_dim"] = content["config"]["model"]["emb_dim"] = 60_000
    else:
        content["loops"] = {}
    for name in ("last", "step-00000008"):
        write_checkpoint(content, run_dir / "checkpoints" / f"{name}.ckpt")
    train("trainer.max_steps=9", f"resume='{run_dir}'", base=[], run_dir=run_dir)
    assert "The newest intact checkpoint is" in caplog.text
    assert checkpoint(run_dir)["global_step"] == 9


def test_a_checkpoint_that_cannot_be_read_back_does_not_replace_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = tmp_path / "x.ckpt", torch.save
    content = {"state_dict": {}, "architecture": {}, "tokenizer": "byte"}
    write_checkpoint(content, path)

    def cut(content: Any, target: SummedStream) -> None:
        real(content, target)
        target.stream.truncate(target.stream.tell() // 2)

    monkeypatch.setattr(module.torch, "save", cut)
    with pytest.raises(OSError, match="cannot be read back"):
        write_checkpoint(content | {"step": 2}, path)
    assert "step" not in read_checkpoint(path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").symlink_to(tmp_path / "gone.ckpt")
    with pytest.raises(UserError, match="holds no checkpoint of a run yet"):
        find_checkpoints(str(tmp_path))
