"""What users of such programs find out only after hours is said at the start of a run, with the setting that helps."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from gpt_pretrain.errors import UserError
from gpt_pretrain.training import lit_module
from tests.field.test_step import STILL
from tests.helpers.training_runs import Printed, Train, checkpoint


def diverging(train: Train, tmp_path: Path, *overrides: str) -> str:
    """Train until the run fails, and return its message."""
    with pytest.raises(UserError) as caught:
        train(*overrides, "data.batch_size=8", base=[*STILL, "data=sample"], run_dir=tmp_path / "run")
    return str(caught.value)


@pytest.mark.parametrize("way", ["stop", "skip"])
def test_weights_that_an_earlier_step_has_ruined_are_not_said_to_be_untouched(train: Train, tmp_path: Path, way: str) -> None:
    message = diverging(train, tmp_path, "optimizer.lr=1e30", "trainer.max_steps=9", f"on_nonfinite={way}")
    assert message.startswith("Step 000001: the loss of batch 1 in epoch 1 is nan. An update has ruined the weights")
    assert "not updated" not in message
    assert "no checkpoint has been written yet" in message
    assert "rollback" not in message, "there is nothing to roll back to"


def test_a_run_that_had_diverged_before_its_first_nan_says_so(train: Train, tmp_path: Path) -> None:
    message = diverging(train, tmp_path, "optimizer.lr=3e4", "trainer.max_steps=30")
    assert "not updated" not in message
    assert "The training had diverged before: its last finite loss was " in message or "has ruined the weights" in message


def test_ruined_weights_are_never_saved(train: Train, tmp_path: Path) -> None:
    """The last update of the run ruins the weights, so that no loss shows it."""
    train("trainer.max_steps=2", "data.batch_size=8", base=[*STILL, "data=sample"], run_dir=tmp_path / "run")
    resume = ["trainer.max_steps=3", "optimizer.lr=1e30", f"resume='{tmp_path / 'run'}'"]
    with pytest.raises(UserError, match=r"Step 000002: some weights are NaN, infinite or above 1e\+06 after batch 2 in epoch 1"):
        train(*resume, base=[], run_dir=tmp_path / "run")
    content = checkpoint(tmp_path / "run")
    assert content["global_step"] == 2
    assert all(float(value.abs().max()) < 10 for value in content["state_dict"].values())


def test_ruined_weights_are_rolled_back(train: Train, tmp_path: Path, printed: Printed) -> None:
    """Three rollbacks are not enough for so high a learning rate, and the checkpoint before it stays."""
    overrides = ["optimizer.lr=1e30", "on_nonfinite=rollback", "checkpoint.every_n_steps=1", "trainer.max_steps=9"]
    message = diverging(train, tmp_path, *overrides)
    assert "3 rollbacks did not help" in message
    assert sum("Rolling back to step" in line for line in printed()) == 3


def test_skipping_ends_when_it_does_not_help(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights are sound, but each loss is NaN, as with a broken kernel or driver."""
    monkeypatch.setattr(lit_module, "next_token_loss", lambda model, *batch, **_: model.final_norm.weight.sum() * math.nan)
    monkeypatch.setattr(lit_module, "MAX_SKIPPED", 5)
    message = diverging(train, tmp_path, "on_nonfinite=skip")
    assert message.startswith("Step 000005: the loss of batch 5 in epoch 1 is nan. The weights were not updated; no checkpoint")
