"""Losses and gradients that are NaN or infinite."""

import math
import re
from pathlib import Path

import pytest
import torch

from gpt_pretrain.errors import UserError
from gpt_pretrain.training.steps.nonfinite import has_usable_weights, renumber_batches
from tests.conftest import tiny_model
from tests.helpers.crash_harness import differences
from tests.helpers.training_runs import SETTINGS, Train, checkpoint, rows, spoilt


@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf, 1e9, -1e9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_single_unusable_weight_is_found(weight: float, dtype: torch.dtype) -> None:
    model = tiny_model().to(dtype)
    assert has_usable_weights(model)
    with torch.no_grad():
        next(reversed([*model.parameters()])).flatten()[-1] = weight
    assert not has_usable_weights(model)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_nonfinite_loss_or_gradient_stops_the_run_before_the_weights_are_updated(
    train: Train, tmp_path: Path, what: str
) -> None:
    overrides = [*SETTINGS, "checkpoint.every_n_minutes=1e-9", "trainer.max_epochs=1"]
    with spoilt(steps={3}, what=what), pytest.raises(UserError) as caught:
        train(*overrides, run_dir=tmp_path / "run")
    batch = "batch 6" if what == "loss" else "batches 6 to 7"
    assert re.search(
        rf"Step 000003: the {what} of {batch} in epoch 1 is nan\. The weights were not updated; the last good checkpoint is "
        r".*last\.ckpt, of step 2\.",
        str(caught.value),
    )
    assert checkpoint(tmp_path / "run")["global_step"] == 3
    train(*overrides, run_dir=tmp_path / "whole")
    train(*overrides, f"resume='{tmp_path / 'run'}'", run_dir=tmp_path / "run")
    assert differences(tmp_path / "whole", tmp_path / "run") == []


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_batch_with_a_nonfinite_loss_or_gradient_can_be_skipped(
    train: Train, tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    with spoilt(steps={3}, what=what):
        train(*SETTINGS, "on_nonfinite=skip", run_dir=tmp_path / "run")
    assert f"Step 000003: the {what} of batch" in caplog.text
    content = checkpoint(tmp_path / "run")
    assert content["global_step"] == 10
    assert all(value.isfinite().all() for value in content["state_dict"].values())


def test_a_run_can_roll_back_and_skip_the_batch(train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    overrides = [
        *SETTINGS,
        "on_nonfinite=rollback",
        "checkpoint.every_n_steps=2",
        "scheduler=constant",
        "scheduler.warmup_steps=0",
    ]
    with spoilt(steps={3, 7}):
        train(*overrides, run_dir=tmp_path / "run")
    assert "Rolling back to step 2, without these batches and with 0.5 times the learning rate" in caplog.text
    assert "Rolling back to step 6, without these batches and with 0.25 times the learning rate" in caplog.text
    content = checkpoint(tmp_path / "run")
    assert (content["lr_scale"], content["skipped"]) == (0.25, [[0, 6], [1, 4]])
    table = {int(row["step"]): row for row in rows(tmp_path / "run")}
    assert {step: float(row["lr"]) for step, row in table.items() if row["lr"]} == {0: 4e-4, 3: 2e-4, 6: 1e-4, 9: 1e-4}
    assert len(table) == len(rows(tmp_path / "run")), "no step twice"
    with spoilt(steps={1, 2, 3}), pytest.raises(UserError, match="2 rollbacks did not help"):
        train(*overrides, "max_rollbacks=2", run_dir=tmp_path / "other")


def test_a_rollback_before_the_first_checkpoint_starts_from_the_beginning(train: Train, tmp_path: Path) -> None:
    with spoilt(steps={1}):
        train(*SETTINGS, "on_nonfinite=rollback", run_dir=tmp_path / "run")
    content = checkpoint(tmp_path / "run")
    assert (content["global_step"], content["lr_scale"], content["skipped"]) == (10, 0.5, [[0, 2]])


def test_skipped_batches_are_renumbered_for_another_number_of_ranks() -> None:
    assert renumber_batches([[0, 8], [2, 1]], before=8, now=4) == [[0, 16], [0, 17], [2, 2], [2, 3]]
    assert renumber_batches([[0, 3]], before=4, now=8) == [[0, 1]]
    assert renumber_batches([[1, 1]], before=6, now=4) == [[1, 1], [1, 2]]
    assert renumber_batches([[0, 5]], before=4, now=4) == [[0, 5]]
