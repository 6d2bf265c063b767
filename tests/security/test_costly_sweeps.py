"""Sweeps of strangers that would fill the disk, or of which nothing is seen for long."""

from __future__ import annotations

import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest

from gpt_pretrain.commands.command_line.stored_overrides import admit_overrides
from gpt_pretrain.errors import UserError
from gpt_pretrain.sweeps.folder import sign_sweep
from tests.helpers.hostile_files import hostile_sweep

Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize("text", ["checkpoint.keep=100", "checkpoint={keep:1}", "checkpoint.keep=1,2"])
def test_a_stranger_s_sweep_keeps_no_further_checkpoints(tmp_path: Path, text: str) -> None:
    sweep = hostile_sweep(tmp_path / "sweep", task=["seed=1,2", text])
    admitted = admit_overrides(sweep, script="train", typed=set())
    assert not any("keep" in kept for kept in admitted.kept)
    assert len(admitted.notices) == 1 and "is not used. To use it, add: " in admitted.notices[0]


@pytest.mark.parametrize(("typed", "trains"), [(None, True), (["seed=1"], False)])
def test_jobs_of_a_stranger_s_sweep_leave_a_part_of_the_disk_free(
    train: Callable[..., float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: list[str] | None, trains: bool
) -> None:
    monkeypatch.setattr("gpt_pretrain.commands.train.is_sweep_job", lambda: True)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - 5 * 10**7, 5 * 10**7))
    overrides = ["seed=1", "trainer.max_steps=1"]
    sweep = hostile_sweep(tmp_path / "sweep", task=overrides)
    sign_sweep(sweep, {"hydra": [], "task": overrides}, script="train", typed=typed)
    if trains:
        train(*overrides, run_dir=sweep / "seed=1")
        return
    with pytest.raises(UserError, match=r"but only 50 MB are free, of which 50 MB have to stay free"):
        train(*overrides, run_dir=sweep / "seed=1")
    assert not (sweep / "seed=1" / "checkpoints").exists()
