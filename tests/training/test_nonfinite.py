"""Losses and gradients that are NaN or infinite."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt_pretrain.errors import UserError
from gpt_pretrain.training.lit_module import GPTLitModule
from tests.helpers.crash_harness import differences
from tests.integration.test_interruptions import SETTINGS
from tests.integration.test_training import checkpoint, rows

Train = Callable[..., float]
Printed = Callable[[], list[str]]


@contextmanager
def spoilt(*, steps: set[int], what: str = "loss") -> Iterator[None]:
    """The loss, or the gradients, of the first batch of these optimizer steps are NaN, whenever they come."""
    real = GPTLitModule.training_step

    def spoiling(module: GPTLitModule, batch: Any, batch_idx: int) -> Any:
        here = module.trainer.global_step in steps and batch_idx % 2 == 0
        if here and what == "loss":
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(
                    "gpt_pretrain.training.lit_module.next_token_loss",
                    lambda model, inputs, ids, **kwargs: model(inputs).mean() * torch.nan,
                )
                return real(module, batch, batch_idx)
        loss = real(module, batch, batch_idx)
        if here and loss is not None:
            loss = loss + (loss * 0).sqrt()  # zero, with an infinite slope
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GPTLitModule, "training_step", spoiling)
        yield


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_loss_or_gradient_that_is_no_number_stops_the_run_before_it_spoils_the_weights(
    train: Train, tmp_path: Path, what: str
) -> None:
    words = [*SETTINGS, "checkpoint.every_n_minutes=1e-9", "trainer.max_epochs=1"]
    with spoilt(steps={3}, what=what), pytest.raises(UserError) as caught:
        train(*words, run_dir=tmp_path / "run")
    batch = "batch 6" if what == "loss" else "batches 6 to 7"
    assert re.search(
        rf"Step 000003: the {what} of {batch} in epoch 1 is nan\. The weights were not touched; the last good checkpoint, "
        r".*last\.ckpt, is that of step 2\.",
        str(caught.value),
    )
    assert checkpoint(tmp_path / "run")["global_step"] == 3
    train(*words, run_dir=tmp_path / "whole")
    train(*words, f"resume='{tmp_path / 'run'}'", run_dir=tmp_path / "run")
    assert differences(tmp_path / "whole", tmp_path / "run") == []


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_batch_that_gives_no_number_can_be_left_out(
    train: Train, tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    with spoilt(steps={3}, what=what):
        train(*SETTINGS, "on_nonfinite=skip", run_dir=tmp_path / "run")
    assert f"Step 000003: the {what} of batch" in caplog.text
    content = checkpoint(tmp_path / "run")
    assert content["global_step"] == 10
    assert all(value.isfinite().all() for value in content["state_dict"].values())


def test_a_run_can_go_back_and_around_the_batch(train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    words = [*SETTINGS, "on_nonfinite=rollback", "checkpoint.every_n_steps=2", "scheduler=constant", "scheduler.warmup_steps=0"]
    with spoilt(steps={3, 7}):
        train(*words, run_dir=tmp_path / "run")
    assert "Going back to step 2, leaving that out, with 0.5 of the learning rate" in caplog.text
    assert "Going back to step 6, leaving that out, with 0.25 of the learning rate" in caplog.text
    content = checkpoint(tmp_path / "run")
    assert (content["lr_scale"], content["skipped"]) == (0.25, [[0, 6], [1, 4]])
    table = {int(row["step"]): row for row in rows(tmp_path / "run")}
    assert {step: float(row["lr"]) for step, row in table.items() if row["lr"]} == {0: 4e-4, 3: 2e-4, 6: 1e-4, 9: 1e-4}
    assert len(table) == len(rows(tmp_path / "run")), "no step twice"
    with spoilt(steps={1, 2, 3}), pytest.raises(UserError, match="2 rollbacks did not help"):
        train(*words, "max_rollbacks=2", run_dir=tmp_path / "other")


def test_going_back_before_the_first_checkpoint_begins_anew(train: Train, tmp_path: Path) -> None:
    with spoilt(steps={1}):
        train(*SETTINGS, "on_nonfinite=rollback", run_dir=tmp_path / "run")
    content = checkpoint(tmp_path / "run")
    assert (content["global_step"], content["lr_scale"], content["skipped"]) == (10, 0.5, [[0, 2]])
