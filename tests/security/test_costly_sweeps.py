"""Sweeps of strangers that would fill the disk, or of which nothing is seen for long."""

from __future__ import annotations

import itertools
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest

from gpt_pretrain.errors import UserError
from gpt_pretrain.sweeps.folder import sign_sweep
from hydra_plugins.gpt_pretrain_sweepers import MAX_COMBINATIONS, different_jobs
from tests.helpers.hostile_files import hostile_sweep

Usage = namedtuple("Usage", "total used free")


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


def test_few_jobs_of_a_large_grid_are_composed_before_the_first_one() -> None:
    numbers = [[f"seed={seed}", f"optimizer.lr={lr}"] for seed in range(2000) for lr in ("1e-3", "0.1", "5")]
    assert list(different_jobs(numbers)) == [numbers[0], numbers[2]], "whole numbers and others"
    options = [
        list(job)
        for job in itertools.product(["model=tiny", "model=small"], ["seed=1", "seed=a"], ["experiment=1", "experiment=2"])
    ]
    assert list(different_jobs(options)) == options
    texts = [[f"start_context=a{one}", f"data.path=b{other}"] for one in range(60) for other in range(60)]
    chosen = list(different_jobs(texts))
    assert len(chosen) < MAX_COMBINATIONS + 60
    assert {text for job in chosen for text in job} == {text for job in texts for text in job}
