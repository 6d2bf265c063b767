"""Numbers of a step that are read after the next step has been queued, as on a GPU; here on the CPU."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from gpt_pretrain.config.schema import OptimizerSettings, SchedulerSettings
from gpt_pretrain.errors import UserError
from gpt_pretrain.training.clock import TrainingClock
from gpt_pretrain.training.lit_module import GPTLitModule
from gpt_pretrain.training.optimization.optimizer import build_optimizer, clip_gradients, gradient_norm
from gpt_pretrain.training.steps.late_steps import can_read_late
from gpt_pretrain.training.steps.nonfinite import NonFiniteError
from tests.conftest import tiny_model
from tests.helpers.crash_harness import differences
from tests.helpers.training_runs import SETTINGS, Train, checkpoint, rows, signalled, spoilt

ONE_BATCH = [*SETTINGS, "trainer.accumulate_grad_batches=1"]
COMMON = {"lr": 0.02, "weight_decay": 0.1, "betas": [0.9, 0.95], "eps": 1e-8}
OPTIMIZERS: list[dict[str, Any]] = [COMMON | {"name": "adamw", "decay": "matrices"}, COMMON | {"name": "muon", "decay": "roles"}]


def always(*args: object, **kwargs: object) -> bool:
    return True


@contextmanager
def reading_late() -> Iterator[None]:
    """Read late, although there is no GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpt_pretrain.training.lit_module.can_read_late", always)
        yield


@pytest.fixture
def late() -> Iterator[None]:
    with reading_late():
        yield


@pytest.mark.parametrize(
    "settings",
    [["optimizer=adamw"], ["optimizer=muon"], ["ema_decay=0.9", "eval_freq=2", "trainer.max_steps=7"]],
    ids=["adamw", "muon", "averaged"],
)
def test_a_run_that_reads_late_is_the_same(train: Train, tmp_path: Path, settings: list[str]) -> None:
    overrides = [*ONE_BATCH, "checkpoint.every_n_steps=4", *settings]
    train(*overrides, run_dir=tmp_path / "at_once")
    with reading_late():
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
        with spoilt(steps={4}, what=what), reading_late() if name == "late" else nullcontext():
            train(*overrides, run_dir=tmp_path / name)
        assert f"Step 000004: the {what} of batch 4 in epoch 1 is nan" in caplog.text
        caplog.clear()
    assert differences(tmp_path / "at_once", tmp_path / "late") == []


@pytest.mark.parametrize("end", [["trainer.max_epochs=1"], ["trainer.max_steps=7"]], ids=["epoch", "limit"])
def test_the_last_step_of_a_run_can_be_skipped(train: Train, tmp_path: Path, end: list[str]) -> None:
    overrides = [*ONE_BATCH, "on_nonfinite=skip", "model.drop_rate=0", *end]
    for name in ("at_once", "late"):
        with spoilt(steps={6, 8}), reading_late() if name == "late" else nullcontext():
            train(*overrides, run_dir=tmp_path / name)
    assert differences(tmp_path / "at_once", tmp_path / "late") == []


@pytest.mark.usefixtures("late")
@pytest.mark.parametrize("steps", [{99}, {4}], ids=["good", "skipped"])
def test_a_run_that_is_stopped_before_it_has_read_a_step_resumes_to_the_last_bit(
    train: Train, tmp_path: Path, steps: set[int]
) -> None:
    overrides = [*ONE_BATCH, "on_nonfinite=skip", "trainer.max_epochs=1", "model.drop_rate=0"]
    with spoilt(steps=steps):
        train(*overrides, run_dir=tmp_path / "whole")
        with signalled(signal.SIGTERM, at_step=4):
            train(*overrides, run_dir=tmp_path / "parts")
        assert checkpoint(tmp_path / "parts")["global_step"] == 5
        train(*overrides, f"resume='{tmp_path / 'parts'}'", run_dir=tmp_path / "parts")
    assert differences(tmp_path / "whole", tmp_path / "parts") == []


@pytest.mark.usefixtures("late")
def test_a_signal_does_not_save_a_step_that_stops_the_run(train: Train, tmp_path: Path) -> None:
    overrides = [*ONE_BATCH, "checkpoint.every_n_steps=2", "trainer.max_epochs=1"]
    sent = False

    def send(module: GPTLitModule, *args: Any) -> None:
        nonlocal sent
        if module.trainer.global_step == 4 and not sent:
            sent = True
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch, spoilt(steps={4}), pytest.raises(UserError, match="Step 000004: the loss"):
        patch.setattr(GPTLitModule, "on_train_batch_start", send)
        train(*overrides, run_dir=tmp_path / "run")
    assert sent and checkpoint(tmp_path / "run")["global_step"] == 4


@pytest.mark.parametrize("reads", [nullcontext, reading_late], ids=["at_once", "late"])
def test_the_warning_sign_names_the_step_that_was_not_finite(train: Train, tmp_path: Path, reads: Any) -> None:
    with spoilt(steps={4}), reads(), pytest.raises(UserError):
        train(*ONE_BATCH, "eval_freq=100", run_dir=tmp_path / "run")
    findings = json.loads((tmp_path / "run" / "run.json").read_text())["findings"]
    assert [finding["step"] for finding in findings if finding["sign"] == "nonfinite"] == [4]


@pytest.mark.usefixtures("late")
def test_a_training_without_callbacks_learns_of_its_last_step() -> None:
    model = tiny_model()
    settings = OptimizerSettings(**OPTIMIZERS[0])
    schedule = SchedulerSettings(name="constant", warmup_steps=0, decay_steps=0, min_lr=0.0)
    module = GPTLitModule(model, optimizer=settings, scheduler=schedule, total_steps=3)
    batch = torch.zeros(1, 16, dtype=torch.int64)
    quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    trainer = L.Trainer(accelerator="cpu", max_epochs=1, enable_model_summary=False, **quiet)
    with spoilt(steps={2}), pytest.raises(NonFiniteError, match="Step 000002"):
        trainer.fit(module, DataLoader([(batch, batch)] * 3, batch_size=None))  # type: ignore[arg-type]


def test_the_time_of_a_step_that_is_under_way_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0

    def finish_step() -> None:
        nonlocal now
        now += 3.0

    monkeypatch.setattr("time.perf_counter", lambda: now)
    clock = TrainingClock(before_pause=finish_step)
    start = clock.seconds()
    with clock.paused():
        now += 10.0
    assert clock.seconds() - start == 3.0


def test_only_a_device_that_needs_no_help_reads_late(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = build_optimizer(tiny_model(), OptimizerSettings(**OPTIMIZERS[0]))
    trainer, gpu = SimpleNamespace(accumulate_grad_batches=1, precision="bf16-mixed"), torch.device("cuda")

    def reads(trainer: Any, device: torch.device = gpu, *, own: bool = False) -> bool:
        return can_read_late(trainer, optimizer, device, own_optimizer=own)

    assert reads(trainer)
    assert not reads(trainer, torch.device("cpu")) and not reads(trainer, own=True)
    assert not reads(SimpleNamespace(accumulate_grad_batches=2, precision="bf16-mixed"))
    assert not reads(SimpleNamespace(accumulate_grad_batches=1, precision="16-mixed"))
    with torch.autograd.set_detect_anomaly(True):
        assert not reads(trainer)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not reads(trainer)


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
