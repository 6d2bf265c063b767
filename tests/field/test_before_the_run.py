"""Check that a run says at its start what users of other programs find out after hours, with the setting that helps."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from gpt_pretrain.checkpoints.checkpoint_file import write_checkpoint
from gpt_pretrain.config.conversion import to_settings
from gpt_pretrain.config.schema import CheckpointSettings, TrainSettings
from gpt_pretrain.errors import UserError
from gpt_pretrain.training import lit_module
from gpt_pretrain.training.callbacks import time_left
from gpt_pretrain.training.planning import checks, time_checks
from gpt_pretrain.training.planning.check_context import CheckContext
from gpt_pretrain.training.steps import batch_record
from tests.field.test_step import STILL
from tests.helpers.plans import plan_run
from tests.helpers.training_runs import Printed, Train, checkpoint, machine_going_away, rows
from tests.training.test_checks import SOUND


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
    monkeypatch.setattr(batch_record, "MAX_SKIPPED", 5)
    message = diverging(train, tmp_path, "on_nonfinite=skip")
    assert message.startswith("Step 000005: the loss of batch 5 in epoch 1 is nan. The weights were not updated; no checkpoint")


# Five optimizer steps in an epoch, a schedule that ends with the run.
COSINE = [
    *("scheduler=warmup_cosine", "scheduler.warmup_steps=2", "scheduler.min_lr=4e-5", "optimizer.lr=4e-4", "data.batch_size=8"),
    *("trainer.max_epochs=100", "trainer.max_steps=10", "trainer.limit_train_batches=5"),
]


def resumed(train: Train, printed: Printed, run_dir: Path, *changes: str) -> tuple[list[str], list[str]]:
    """Resume a run with these changes, and return the warnings about its learning rate and the lines on how that moves."""
    before = len(printed())
    train(*changes, f"resume='{run_dir}'", base=[], run_dir=run_dir)
    lines = printed()[before:]
    lines = lines[: next(n for n, line in enumerate(lines) if line.startswith("Ep "))]  # before the first step
    return [one for one in lines if "The learning rate rises" in one], [one for one in lines if one.startswith("lr ")]


def rates(run_dir: Path) -> dict[int, float]:
    return {int(row["step"]): float(row["lr"]) for row in rows(run_dir) if row["lr"]}


def test_a_learning_rate_that_jumps_on_resuming_is_said_before_the_first_step(
    train: Train, tmp_path: Path, printed: Printed
) -> None:
    train(*COSINE, "eval_freq=1", base=STILL, run_dir=tmp_path / "run")
    ((warning,), (line,)) = resumed(train, printed, tmp_path / "run", "trainer.max_steps=20")
    assert (
        "rises from 4e-05 to 0.000237 when the run resumes at step 10, since scheduler=warmup_cosine now ends at step 19."
        in warning
    )
    assert warning.endswith("scheduler=constant optimizer.lr=4e-05 keeps it low.")
    assert line == "lr      0.000237 at step 10, where the schedule of the checkpoint has 4e-05"
    assert rates(tmp_path / "run")[10] == pytest.approx(0.000237, rel=2e-3)


def test_the_setting_that_is_said_to_keep_the_learning_rate_low_does(train: Train, tmp_path: Path, printed: Printed) -> None:
    train(*COSINE, "eval_freq=1", base=STILL, run_dir=tmp_path / "run")
    advice = ["scheduler=constant", "optimizer.lr=4e-05", "trainer.max_steps=13"]
    assert resumed(train, printed, tmp_path / "run", *advice) == ([], [])
    assert [rates(tmp_path / "run")[step] for step in (10, 11, 12)] == pytest.approx([4e-5] * 3)
    assert resumed(train, printed, tmp_path / "run", "trainer.max_steps=15") == ([], []), "and goes on doing so"


@pytest.mark.parametrize(
    ("first", "changes", "jumps", "moves"),
    [
        (["scheduler=constant", "scheduler.min_lr=0"], ["trainer.max_steps=20"], False, False),
        (["trainer.max_steps=4"], ["trainer.max_steps=9"], True, True),
        ([], ["trainer.max_epochs=300", "trainer.max_steps=13"], True, True),
        ([], ["trainer.max_steps=14", "scheduler=constant"], True, True),  # as if it had never decayed
        ([], ["trainer.max_steps=14", "scheduler=constant", "optimizer.lr=1e-4"], True, True),
        (
            ["scheduler=constant", "scheduler.min_lr=0"],
            ["trainer.max_steps=14", "optimizer.lr=1e-3"],
            False,
            True,
        ),  # as was asked
        (["scheduler=constant", "scheduler.min_lr=0"], ["trainer.max_steps=14", "scheduler=warmup_cosine"], False, True),
        (
            ["scheduler=warmup_stable_decay", "scheduler.decay_steps=4", "scheduler.min_lr=0"],
            ["trainer.max_steps=20"],
            True,
            True,
        ),
    ],
)
def test_only_an_unasked_rise_is_a_warning(
    train: Train, tmp_path: Path, printed: Printed, first: list[str], changes: list[str], jumps: bool, moves: bool
) -> None:
    train(*COSINE, *first, "eval_freq=1", base=STILL, run_dir=tmp_path / "run")
    warnings, lines = resumed(train, printed, tmp_path / "run", *changes)
    assert (len(warnings), len(lines)) == (int(jumps), int(moves))
    for warning in warnings:
        (advised,) = [word for word in warning.split() if word.startswith("optimizer.lr=")]
        assert float(advised.partition("=")[2]) > 0


def test_a_run_that_resumes_in_the_middle_without_changes_says_nothing(train: Train, tmp_path: Path, printed: Printed) -> None:
    for at_step in (1, 4, 7):
        with machine_going_away(at_step=at_step):
            train(*COSINE, "checkpoint.every_n_steps=1", "eval_freq=1", base=STILL, run_dir=tmp_path / f"run-{at_step}")
        assert resumed(train, printed, tmp_path / f"run-{at_step}") == ([], [])


Warnings = Callable[..., list[str]]


@pytest.fixture
def warnings_for(compose_train: Callable[..., DictConfig], tmp_path: Path) -> Warnings:
    """Return the warnings about a tiny model on 40,000 training and as many validation tokens."""
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 1956)

    def find(*overrides: str) -> list[str]:
        settings = to_settings(compose_train(*SOUND, f"data.path='{tmp_path / 'text.txt'}'", *overrides), TrainSettings)
        data, config, plan = plan_run(settings)
        context = CheckContext(settings, data, config, plan)
        return checks.find_warnings(context) + time_checks.time_warnings(context, time_checks.estimated_times(context))

    return find


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["scheduler=warmup_stable_decay", "scheduler.decay_steps=0"],
            "scheduler.decay_steps=0: the learning rate never decays in a run of 462 steps. A fifth of the run is usual: "
            "scheduler.decay_steps=92.",
        ),
        (
            ["scheduler=warmup_stable_decay", "scheduler.decay_steps=5"],
            "scheduler.decay_steps=5: the learning rate decays only in the last 5 of 462 steps",
        ),
        (
            ["scheduler=warmup_cosine", "optimizer.lr=4e-5"],
            "The learning rate never decays: it goes from optimizer.lr=4e-05 to scheduler.min_lr=4e-05. A tenth is usual: "
            "scheduler.min_lr=4e-06.",
        ),
        (["scheduler=warmup_cosine", "optimizer.lr=5e-5"], "The learning rate hardly decays: it goes from optimizer.lr=5e-05 to"),
        (
            ["trainer.max_epochs=70"],
            "optimizer.lr=0.0004 stays the same for all 10,780 steps. In so long a run a decay lowers the final loss: "
            "scheduler=warmup_cosine scheduler.min_lr=4e-05.",
        ),
        (["trainer.precision=bf16-true"], "trainer.precision=bf16-true stores weights in bf16, where updates with optimizer.lr"),
        (
            ["data.train_ratio=0.1", "data.batch_size=1", "checkpoint.every_n_steps=2", "trainer.max_steps=100"],
            "Validation takes longer than the training: 50 times 2,475 batches",
        ),
        (
            ["eval_freq=1", "eval_iter=100", "trainer.max_epochs=3"],
            "The evaluations every eval_freq=1 steps take about 15 times as long as the training: 118 batches each. eval_freq=74 ",
        ),
    ],
)
def test_a_schedule_without_decay_and_long_validations_are_said(
    warnings_for: Warnings, overrides: list[str], expected: str
) -> None:
    assert any(warning.startswith(expected) for warning in warnings_for(*overrides)), warnings_for(*overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["scheduler=warmup_stable_decay"],
        ["scheduler=warmup_cosine", "optimizer.lr=8e-5"],
        ["trainer.max_steps=10"],
        ["trainer.max_steps=1", "data.train_ratio=0.5"],
        ["checkpoint.every_n_steps=20"],
        ["eval_freq=1"],
        ["trainer.precision=bf16-true", "optimizer.lr=1e-2"],
    ],
)
def test_ordinary_runs_give_no_warning(warnings_for: Warnings, overrides: list[str]) -> None:
    assert warnings_for(*overrides) == []


def test_no_schedule_is_advised_for_a_run_whose_steps_nobody_knows(warnings_for: Warnings) -> None:
    said = warnings_for("trainer.max_epochs=70", "trainer.max_time=20s")
    assert not any("a decay lowers the final loss" in warning for warning in said)


def test_the_advised_validation_set_is_short_enough(warnings_for: Warnings) -> None:
    overrides = ["data.train_ratio=0.1", "data.batch_size=1", "checkpoint.every_n_steps=20", "trainer.max_steps=1000"]
    overrides += ["trainer.max_epochs=9"]
    (warning,) = [one for one in warnings_for(*overrides) if one.startswith("Validation")]
    (advised,) = [word for word in warning.split() if word.startswith("data.val_tokens=")]
    assert not [one for one in warnings_for(*overrides, advised) if "alidation" in one], advised


def test_a_long_validation_is_said_by_a_dry_run(script: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "big.txt").write_text("The quick brown fox jumps over the lazy dog. " * 60_000)
    overrides = ["model=tiny", "model.emb_dim=32", "model.n_layers=1", "model.n_heads=2", "model.context_length=16"]
    overrides += ["tokenizer=byte", "data.path=big.txt", "data.batch_size=1", "data.cache_dir=cache", "trainer.accelerator=cpu"]
    overrides += ["checkpoint.every_n_steps=2", "trainer.max_steps=20", "trainer.precision=32-true", "start_context=A"]
    done = script("train.py", *overrides, "plan=true")
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"^ +- Validation takes longer than the training: 10 times 16,\d{3} batches, in all about [\d,]+ times", done.stdout, re.M
    )
    assert re.search(r"data\.val_tokens=\d+ validates on [\d,]+ of the 16,\d{3} windows", done.stdout)


def test_a_gpu_that_pytorch_cannot_use_is_said(warnings_for: Warnings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert warnings_for("trainer.accelerator=auto") == []
    monkeypatch.setattr(checks, "NVIDIA_GPU", tmp_path)
    assert warnings_for("trainer.accelerator=cpu") == []
    (warning,) = warnings_for("trainer.accelerator=auto")
    assert "This machine has an NVIDIA GPU, but PyTorch" in warning
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert warnings_for("trainer.accelerator=auto") == []


@pytest.mark.parametrize(
    ("steps", "minutes", "expected"),
    [
        (None, None, "The next checkpoint is written at the end of the epoch, after about 2 h 46 min."),
        (900, None, "The next checkpoint is written by checkpoint.every_n_steps=900, after about 2 h 30 min."),
        (100, None, None),
        (None, 30.0, None),
    ],
)
def test_hours_without_a_checkpoint_are_said(steps: int | None, minutes: float | None, expected: str | None) -> None:
    text = time_checks.late_checkpoint(CheckpointSettings(steps, minutes, keep=1), per_epoch=1000, left=5000, step_seconds=10.0)
    assert (text is None) == (expected is None)
    assert text is None or expected is None or text.startswith(expected)
    assert (
        time_checks.late_checkpoint(CheckpointSettings(None, None, keep=1), per_epoch=1000, left=100, step_seconds=10.0) is None
    )


def test_a_time_limit_before_the_end_of_the_schedule_is_said_while_it_matters(
    train: Train, printed: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time_left, "SECONDS", 0.0)
    monkeypatch.setattr(time_checks, "LATE", 0.0)
    run = [*COSINE, "data=sample", "trainer.max_time=00:00:00:02", "trainer.max_steps=100000", "trainer.max_epochs=100000"]
    train(*run, base=STILL)
    (early,) = [line for line in printed() if line.startswith("trainer.max_time=00:00:00:02 ends the run at about step ")]
    assert "of 100,000, before its learning rate has decayed. trainer.max_steps=" in early
    assert any(line.startswith("The next checkpoint is written at the end of the epoch") for line in printed())
    assert any(line.endswith("; trainer.max_time=00:00:00:02 ends the run earlier") for line in printed())
    assert "trainer.max_time=00:00:00:02 ended the run. If resumed, it trains for as long again." in printed()
    (resume,) = [line for line in printed() if line.strip().startswith("python train.py resume=")]
    assert "trainer.max" not in resume


def test_loaded_weights_far_worse_than_guessing_are_a_warning(train: Train, printed: Printed, tmp_path: Path) -> None:
    """As with the vocabulary of another tokenizer."""
    base = [*STILL, "data=sample", "data.batch_size=8", "trainer.max_steps=2", "callbacks=default", "callbacks.samples=false"]
    train(base=base, run_dir=tmp_path / "run")
    content = checkpoint(tmp_path / "run")
    for name, value in content["state_dict"].items():
        if "emb" in name or "head" in name:
            value *= 100
    write_checkpoint(content, tmp_path / "bad.ckpt")
    for name, expected in (("run", 0), ("bad.ckpt", 1)):
        before = len(printed())
        train(f"init_from='{tmp_path / name}'", base=base, run_dir=tmp_path / f"from-{name}")
        found = [
            one for one in printed()[before:] if one.startswith("doctor: step 0, first_loss: Before training the losses are")
        ]
        assert len(found) == expected
        assert all("name it with tokenizer=." in one for one in found)
