"""The length of a run in tokens, trainer.max_tokens."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpt_pretrain.config.conversion import to_settings
from gpt_pretrain.config.schema import TrainerSettings, TrainSettings
from gpt_pretrain.data.datamodule import TextDataModule
from gpt_pretrain.errors import AlreadyCompleteError
from gpt_pretrain.runs.report.saving import save_run_page
from gpt_pretrain.tokenizers.build import build_tokenizer
from gpt_pretrain.training.run_length import steps_per_epoch, total_epochs, total_steps
from tests.helpers.data_settings import data_settings
from tests.helpers.training_runs import Printed, Train, checkpoint, rows, same_weights

STEP = 16 * 32  # tokens in an optimizer step of the tiny run, which has three steps in an epoch


@pytest.fixture
def trainer_settings(compose_train: Callable[..., Any]) -> Callable[..., TrainerSettings]:
    return lambda *overrides: to_settings(compose_train(*overrides), TrainSettings).trainer


def steps_by_counting(max_tokens: int, *, batches: int, accumulate: int, batch: int) -> int:
    """Count optimizer steps batch by batch, until max_tokens is reached at the end of a step."""
    steps = tokens = 0
    while True:
        for number in range(1, batches + 1):
            tokens += batch
            if number % accumulate == 0 or number == batches:
                steps += 1
                if tokens >= max_tokens:
                    return steps


@pytest.mark.parametrize("accumulate", [1, 2, 4])
@pytest.mark.parametrize("max_tokens", [1, 127, 128, 129, 1000, 5000, 20_000])
def test_the_length_in_steps_equals_a_count_batch_by_batch(
    tmp_path: Path, trainer_settings: Any, accumulate: int, max_tokens: int
) -> None:
    data = TextDataModule(data_settings(tmp_path, batch_size=4), build_tokenizer("byte"), context_length=32, seed=1)
    data.prepare_data()
    trainer = trainer_settings(
        f"trainer.max_tokens={max_tokens}", f"trainer.accumulate_grad_batches={accumulate}", "trainer.limit_train_batches=7"
    )
    steps = steps_by_counting(max_tokens, batches=7, accumulate=accumulate, batch=128)
    assert total_steps(data, trainer) == steps
    assert total_epochs(data, trainer) == -(-steps // steps_per_epoch(data, trainer))
    trainer.max_steps = 3
    assert total_steps(data, trainer) == min(steps, 3)


@pytest.mark.parametrize(("max_tokens", "steps"), [(4 * STEP - 1, 4), (6 * STEP, 6), (10 * STEP + 1, 11)])
def test_max_tokens_takes_precedence_over_max_epochs(train: Train, tmp_path: Path, max_tokens: int, steps: int) -> None:
    train("trainer.max_epochs=1", f"trainer.max_tokens={max_tokens}", "logger=none", "callbacks=minimal")
    content = checkpoint(tmp_path / "run")
    assert (content["global_step"], content["tokens_seen"]) == (steps, steps * STEP)


def test_the_schedule_ends_at_max_tokens(train: Train, tmp_path: Path) -> None:
    schedule = ["scheduler=warmup_cosine", "scheduler.warmup_steps=1", "scheduler.min_lr=0"]
    train("trainer.max_epochs=1", f"trainer.max_tokens={5 * STEP}", *schedule, "logger=csv", "callbacks=minimal")
    rates = [float(row["lr"]) for row in rows(tmp_path / "run")]
    assert len(rates) == 5
    assert rates[-1] == 0
    assert rates[1:] == sorted(rates[1:], reverse=True)


@pytest.mark.parametrize("first", [4, 6])
def test_a_run_can_be_resumed_with_a_higher_max_tokens(train: Train, tmp_path: Path, printed: Printed, first: int) -> None:
    overrides = ["logger=none"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(*overrides, f"trainer.max_tokens={8 * STEP}", run_dir=whole)
    train(*overrides, f"trainer.max_tokens={first * STEP}", run_dir=parts)
    assert any(line.endswith(f"trainer.max_tokens={2 * first * STEP}") for line in printed())
    with pytest.raises(
        AlreadyCompleteError, match=rf"max_tokens={first * STEP} ended it .*trainer\.max_tokens={2 * first * STEP}"
    ):
        train(*overrides, f"trainer.max_tokens={first * STEP}", f"resume='{parts}'", run_dir=parts)
    train(*overrides, f"trainer.max_tokens={8 * STEP}", f"resume='{parts}'", run_dir=parts)
    a, b = checkpoint(whole), checkpoint(parts)
    assert same_weights(a, b)
    assert (a["train_losses"], a["tokens_seen"]) == (b["train_losses"], b["tokens_seen"])


def test_plan_report_and_warnings_take_max_tokens_into_account(train: Train, tmp_path: Path, printed: Printed) -> None:
    train(f"trainer.max_tokens={4 * STEP}", "trainer.max_steps=9", "logger=csv")
    lines = "\n".join(printed())
    assert re.search(r"length  4 optimizer steps, 3 per epoch", lines)
    assert f"plan    {4 * STEP:,} tokens" in lines
    assert f"trainer.max_steps=9 is never reached: trainer.max_tokens={4 * STEP} ends the run after 4 steps" in lines
    assert json.loads((tmp_path / "run" / "run.json").read_text())["result"]["tokens_seen"] == 4 * STEP
    assert f"trainer.max_tokens={8 * STEP}" in save_run_page(tmp_path / "run").read_text()
