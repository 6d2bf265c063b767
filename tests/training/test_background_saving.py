"""Checkpoints that are written from a snapshot while training continues."""

import threading
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt_pretrain.training import saving
from gpt_pretrain.training.lit_module import GPTLitModule
from tests.helpers.crash_harness import differences
from tests.helpers.training_runs import SETTINGS, Printed, Train, checkpoint


def test_a_snapshot_stays_as_it_was_taken() -> None:
    shared = torch.arange(4.0)
    weights: dict[str, Any] = OrderedDict(a=shared, b=shared[1:3])
    weights._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    content = {"state_dict": weights, "states": [defaultdict(dict, {0: {"step": torch.tensor(3)}})], "numbers": (1, None, "x")}
    taken = saving.take_snapshot(content)
    assert taken is not None
    shared.zero_()
    content["states"][0][0]["step"] += 1  # type: ignore[index]
    assert taken["state_dict"]["a"].tolist() == [0, 1, 2, 3]
    assert taken["state_dict"]["b"].tolist() == [1, 2]
    assert taken["state_dict"]["a"].untyped_storage().data_ptr() == taken["state_dict"]["b"].untyped_storage().data_ptr()
    assert taken["state_dict"]._metadata == {"": {"version": 1}}
    assert int(taken["states"][0][0]["step"]) == 3
    assert taken["numbers"] == (1, None, "x")


@pytest.mark.parametrize("available", [None, 0, 149])
def test_without_memory_for_a_copy_a_checkpoint_is_written_at_once(
    available: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "available_memory", lambda: available)
    assert saving.take_snapshot({"a": torch.zeros(25)}) is None


def test_what_is_no_plain_data_is_written_at_once() -> None:
    assert saving.take_snapshot({"a": [{"b": Path("x")}]}) is None
    assert saving.take_snapshot({"a": torch.zeros(2).to_sparse()}) is None


def test_training_continues_while_a_checkpoint_is_written(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, printed: Printed
) -> None:
    train(*SETTINGS, run_dir=tmp_path / "a")
    real_write, real_step, more, active = saving.write_checkpoint, GPTLitModule.training_step, threading.Event(), list[int]()

    def write(content: dict[str, Any], target: Path) -> None:
        active.append(len(active) + 1)
        assert content["global_step"] == 10 or more.wait(60), "training waits for the checkpoint"
        real_write(content, target)
        active.append(0)

    def step(module: GPTLitModule, *batch: Any) -> Any:
        if module.trainer.global_step >= 7:  # two steps after the first checkpoint
            more.set()
        return real_step(module, *batch)

    monkeypatch.setattr(saving, "write_checkpoint", write)
    monkeypatch.setattr(GPTLitModule, "training_step", step)
    train(*SETTINGS, run_dir=tmp_path / "b")
    assert [bool(entry) for entry in active] == [True, False, True, False], "one at a time"
    assert differences(tmp_path / "a", tmp_path / "b") == []


def test_a_failure_in_the_background_is_reported_within_steps_and_the_save_is_repeated(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, printed: Printed
) -> None:
    real, failed = saving.write_checkpoint, list[int]()

    def write(content: dict[str, Any], target: Path) -> None:
        if len(failed) < 2:
            failed.append(content["global_step"])
            raise OSError(28, "No space left on device")
        real(content, target)

    monkeypatch.setattr(saving, "write_checkpoint", write)
    train(*SETTINGS, run_dir=tmp_path / "run")
    assert failed == [5, 10]
    assert checkpoint(tmp_path / "run")["global_step"] == checkpoint(tmp_path / "run", "best")["global_step"] == 10
    text = "".join(printed())
    assert "The checkpoint of step 4, or a copy of it, could not be written" in text
    assert "No space left on device" in text
    assert "The checkpoint of step 9 could not be written either" in text


def test_an_error_of_another_kind_ends_the_run_when_the_save_is_waited_for() -> None:
    def write() -> None:
        raise MemoryError

    save = saving.Save(write, in_background=True)
    with pytest.raises(MemoryError):
        save.wait()
