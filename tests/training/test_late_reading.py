"""Numbers of a step that are read after the next step has been queued, as on a GPU; here on the CPU."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt_pretrain.config.schema import OptimizerSettings
from gpt_pretrain.errors import UserError
from gpt_pretrain.training.lit_module import GPTLitModule
from gpt_pretrain.training.optimizer import build_optimizer, clip_gradients, gradient_norm
from tests.conftest import tiny_model
from tests.helpers.crash_harness import differences
from tests.helpers.training_runs import SETTINGS, Train, checkpoint, rows, spoilt

ONE_BATCH = [*SETTINGS, "trainer.accumulate_grad_batches=1"]
COMMON = {"lr": 0.02, "weight_decay": 0.1, "betas": [0.9, 0.95], "eps": 1e-8}
OPTIMIZERS: list[dict[str, Any]] = [COMMON | {"name": "adamw", "decay": "matrices"}, COMMON | {"name": "muon", "decay": "roles"}]


@pytest.fixture
def late() -> Iterator[None]:
    """Read late, although there is no GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GPTLitModule, "_can_read_late", lambda self, optimizer: True)
        yield


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_that_reads_late_is_the_same(train: Train, tmp_path: Path, optimizer: str) -> None:
    overrides = [*ONE_BATCH, f"optimizer={optimizer}", "checkpoint.every_n_steps=4"]
    train(*overrides, run_dir=tmp_path / "at_once")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GPTLitModule, "_can_read_late", lambda self, optimizer: True)
        train(*overrides, run_dir=tmp_path / "late")
    assert differences(tmp_path / "at_once", tmp_path / "late") == []
    assert [row["step"] for row in rows(tmp_path / "late")] == [row["step"] for row in rows(tmp_path / "at_once")]


@pytest.mark.usefixtures("late")
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_run_stops_one_step_later_and_saves_nothing_of_it(train: Train, tmp_path: Path, what: str) -> None:
    overrides = [*ONE_BATCH, "checkpoint.every_n_minutes=1e-9", "trainer.max_epochs=1"]
    expected = rf"Step 000004: the {what} of batch 4 in epoch 1 is nan\. The weights were not updated.*of step 3\."
    with spoilt(steps={4}, what=what), pytest.raises(UserError, match=expected):
        train(*overrides, run_dir=tmp_path / "run")
    assert checkpoint(tmp_path / "run")["global_step"] == 4
    train(*overrides, run_dir=tmp_path / "whole")
    train(*overrides, f"resume='{tmp_path / 'run'}'", run_dir=tmp_path / "run")
    assert differences(tmp_path / "whole", tmp_path / "run") == []


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("way", ["skip", "rollback"])
def test_skipping_and_rolling_back_end_with_the_same_weights(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture, way: str, what: str
) -> None:
    overrides = [*ONE_BATCH, f"on_nonfinite={way}", "checkpoint.every_n_steps=3", "model.drop_rate=0"]
    for name in ("at_once", "late"):
        with spoilt(steps={4}, what=what), pytest.MonkeyPatch.context() as patch:
            if name == "late":
                patch.setattr(GPTLitModule, "_can_read_late", lambda self, optimizer: True)
            train(*overrides, run_dir=tmp_path / name)
        assert f"Step 000004: the {what} of batch 4 in epoch 1 is nan" in caplog.text
        caplog.clear()
    assert differences(tmp_path / "at_once", tmp_path / "late") == []


@pytest.mark.parametrize("settings", OPTIMIZERS, ids=["adamw", "muon"])
def test_a_step_that_is_left_out_changes_neither_weights_nor_state(settings: dict[str, Any]) -> None:
    model = tiny_model()
    optimizer = build_optimizer(model, OptimizerSettings(**settings))

    def step(*, spoil: bool) -> None:
        loss = model(torch.arange(16)[None]).square().mean()
        (loss * torch.nan if spoil else loss).backward()  # type: ignore[no-untyped-call]
        norm = gradient_norm(model.parameters())
        clip_gradients(optimizer, norm, max_norm=1.0, skip=~norm.isfinite())
        optimizer.step()
        optimizer.zero_grad()

    step(spoil=False)
    before = [value.clone() for value in _state(model, optimizer)]
    step(spoil=True)
    assert all(map(torch.equal, before, _state(model, optimizer)))
    step(spoil=False)
    assert not all(map(torch.equal, before, _state(model, optimizer)))


def _state(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [*model.parameters(), *(value for state in optimizer.state.values() for value in state.values())]
