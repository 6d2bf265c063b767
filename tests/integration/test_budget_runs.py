"""Runs with budget=: what is chosen, what stays as typed, and exact resumption."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpt_pretrain.errors import AlreadyCompleteError, UserError
from gpt_pretrain.system.yaml_files import read_yaml
from gpt_pretrain.training.budget import machine
from gpt_pretrain.training.budget.speed import Speed
from tests.helpers.training_runs import Printed, Train, checkpoint, machine_going_away, same_weights

EXACT = ["data=text", "trainer.accelerator=cpu", "trainer.precision=32-true", "callbacks=minimal", "logger=csv", "compile=false"]


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Overrides for a small text; the machine has a fixed speed."""
    monkeypatch.setattr(machine, "measure_speed", lambda *_, **__: Speed((1e5, 1e8), (1e10, 1e10), 1e-3))
    lines = [f"{number} boats lay at the shore, and {number * number % 89} more came with the wind.\n" for number in range(1900)]
    (tmp_path / "text.txt").write_text("".join(lines), encoding="utf-8")
    return [*EXACT, f"data.path={tmp_path / 'text.txt'}", f"data.cache_dir={tmp_path / 'cache'}", "trainer.deterministic=true"]


def test_what_is_typed_stays_and_the_rest_is_chosen(train: Train, tmp_path: Path, base: list[str], printed: Printed) -> None:
    train("budget=12000 tokens", "model.drop_rate=0.3", "data.batch_size=2", base=base)
    settings = read_yaml(tmp_path / "run" / "config.yaml", within=tmp_path)
    assert (settings["model"]["drop_rate"], settings["data"]["batch_size"]) == (0.3, 2)
    assert (settings["tokenizer"]["vocab_size"], settings["model"]["emb_dim"]) == (512, 96)
    assert 10_000 < checkpoint(tmp_path / "run")["tokens_seen"] <= 12_000
    shown = "\n".join(printed())
    assert "bits per byte, in nine of ten cases between" in shown
    assert "same as python train.py data.path=" in shown
    assert "model.drop_rate=" not in shown.partition("same as")[0]


def test_a_typed_size_is_kept_where_the_tokenizer_is_left_to_the_program(train: Train, tmp_path: Path, base: list[str]) -> None:
    sample = ["data=sample", *(one for one in base if not one.startswith(("data=", "data.path=")))]
    train("budget=12000 tokens", "tokenizer=auto", "tokenizer.vocab_size=384", base=sample)
    settings = read_yaml(tmp_path / "run" / "config.yaml", within=tmp_path)
    assert settings["tokenizer"]["vocab_size"] == 384
    assert checkpoint(tmp_path / "run")["architecture"]["vocab_size"] == 384


def test_a_resumed_run_equals_an_undisturbed_one(train: Train, tmp_path: Path, base: list[str]) -> None:
    train("budget=12000 tokens", base=base, run_dir=tmp_path / "whole")
    with machine_going_away(at_step=12):
        train("budget=12000 tokens", "checkpoint.every_n_steps=5", base=base, run_dir=tmp_path / "run")
    with pytest.raises(UserError, match=r"trainer\.max_steps and budget=12000 tokens both decide"):
        train(f"resume={tmp_path / 'run'}", "trainer.max_steps=5", base=base[-1:], run_dir=tmp_path / "run")
    train(f"resume={tmp_path / 'run'}", base=base[-1:], run_dir=tmp_path / "run")
    whole, resumed = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "run")
    assert whole["global_step"] == resumed["global_step"]
    assert same_weights(whole, resumed)
    with pytest.raises(AlreadyCompleteError, match="it has spent budget='12000 tokens'"):
        train(f"resume={tmp_path / 'run'}", "budget=9000 tokens", base=base[-1:], run_dir=tmp_path / "run")
    with pytest.raises(UserError, match="budget='5': the unit is missing"):
        train(f"resume={tmp_path / 'run'}", "budget=5", base=base[-1:], run_dir=tmp_path / "run")


def test_a_run_without_a_budget_gets_none_on_resume(train: Train, tmp_path: Path, base: list[str]) -> None:
    with machine_going_away(at_step=3):
        train("model=tiny", "tokenizer=byte", "checkpoint.every_n_steps=2", base=base, run_dir=tmp_path / "run")
    with pytest.raises(UserError, match="must be set when a run starts"):
        train(f"resume={tmp_path / 'run'}", "budget=20m", base=[], run_dir=tmp_path / "run")


@pytest.mark.parametrize("typed", ["trainer.max_steps=5", "trainer.max_time=00:00:01:00"])
def test_only_one_setting_decides_the_length(train: Callable[..., float], base: list[str], typed: str) -> None:
    with pytest.raises(UserError, match="both decide how long the run is"):
        train("budget=20m", typed, base=base)


@pytest.mark.parametrize("typed", ["tokenizer=byte", "model=tiny"])
def test_a_typed_tokenizer_or_model_is_kept(train: Train, tmp_path: Path, base: list[str], printed: Printed, typed: str) -> None:
    train("budget=12000 tokens", typed, base=base)
    settings, shown = read_yaml(tmp_path / "run" / "config.yaml", within=tmp_path), "\n".join(printed())
    if typed == "model=tiny":
        assert (settings["model"]["kind"], settings["model"]["context_length"]) == ("gpt2", 64)
        assert "rules that were not measured with model.kind=gpt2, model.context_length=64" in shown
    else:
        assert (settings["tokenizer"]["name"], settings["tokenizer"]["vocab_size"]) == ("byte", None)
        assert "bits per byte, in nine of ten cases between" in shown
    assert f" {typed.partition('=')[0]}=" in shown.partition("and the same ")[2]


def test_a_typed_shape_gets_windows_as_the_rules_were_measured_with(train: Train, tmp_path: Path, base: list[str]) -> None:
    train("budget=12000 tokens", "model.emb_dim=64", "model.n_layers=2", "model.n_heads=2", base=base)
    model = read_yaml(tmp_path / "run" / "config.yaml", within=tmp_path)["model"]
    assert (model["emb_dim"], model["n_layers"], model["context_length"]) == (64, 2, 128)


@pytest.mark.slow
def test_a_disk_or_a_memory_that_is_too_small_is_said_or_chosen_for(
    train: Train, tmp_path: Path, base: list[str], printed: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "free_disk", lambda _: 1 << 20)
    with pytest.raises(UserError, match="no model fits into the disk that this machine has left"):
        train("budget=20m", base=base)
    monkeypatch.setattr(machine, "free_disk", lambda _: 1 << 40)
    monkeypatch.setattr(machine, "available_memory", lambda: 1 << 20)
    with pytest.raises(UserError, match="no model fits into the memory"):
        train("budget=12000 tokens", base=base)
    with pytest.raises(UserError, match=r"the typed data\.batch_size does not fit into the memory"):
        train("budget=12000 tokens", "data.batch_size=4", base=base)
    with pytest.raises(UserError, match=r"20 optimizer steps of the smallest model with data\.batch_size=99"):
        train("budget=12000 tokens", "data.batch_size=99", base=base)
    monkeypatch.setattr(machine, "available_memory", lambda: 40 << 20)
    train("budget=12000 tokens", base=base)
    assert checkpoint(tmp_path / "run")["tokens_seen"] > 10_000


def test_a_short_text_has_the_vocabulary_of_the_defaults(train: Train, tmp_path: Path, base: list[str], printed: Printed) -> None:
    (tmp_path / "text.txt").write_text("".join(f"{number} boats lay at the shore.\n" for number in range(200)), encoding="utf-8")
    train("budget=12000 tokens", "model.emb_dim=16", "model.n_layers=1", "model.n_heads=1", base=base)
    assert read_yaml(tmp_path / "run" / "config.yaml", within=tmp_path)["tokenizer"] == {"name": "gpt2", "vocab_size": None}
    shown = "\n".join(printed())
    assert "tokenizer.name=gpt2: " in shown and "in nine of ten cases between" in shown


def test_a_tiny_text_gets_windows_that_fit(train: Train, tmp_path: Path, base: list[str]) -> None:
    (tmp_path / "text.txt").write_text("Ring the bells. " * 30, encoding="utf-8")
    train("budget=12000 tokens", base=base)
    assert read_yaml(tmp_path / "run" / "config.yaml", within=tmp_path)["model"]["context_length"] < 128
    assert checkpoint(tmp_path / "run")["global_step"] >= 20


@pytest.mark.slow
def test_each_job_of_a_sweep_has_the_whole_budget(script: Callable[..., Any], tmp_path: Path) -> None:
    lines = [f"{number} boats lay at the shore, and {number * number % 89} more came with the wind.\n" for number in range(1900)]
    (tmp_path / "text.txt").write_text("".join(lines), encoding="utf-8")
    data = ["data=text", f"data.path={tmp_path / 'text.txt'}", f"data.cache_dir={tmp_path / 'cache'}", "callbacks=minimal"]
    done = script("train.py", "-m", *data, "seed=1,2", "budget=12000 tokens", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert done.returncode == 0, done.stderr
    jobs = sorted((tmp_path / "sweep").glob("*/checkpoints"))
    assert len(jobs) == 2
    assert all(10_000 < checkpoint(job.parent)["tokens_seen"] <= 12_000 for job in jobs)


@pytest.mark.slow
def test_one_process_chooses_for_all(script: Callable[..., Any], tmp_path: Path) -> None:
    lines = [f"{number} boats lay at the shore, and {number * number % 89} more came with the wind.\n" for number in range(1900)]
    (tmp_path / "text.txt").write_text("".join(lines), encoding="utf-8")
    data = ["data=text", f"data.path={tmp_path / 'text.txt'}", f"data.cache_dir={tmp_path / 'cache'}", "callbacks=minimal"]
    devices = ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"]
    done = script("train.py", *data, *devices, "budget=12000 tokens", f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert 10_000 < checkpoint(tmp_path / "run")["tokens_seen"] <= 12_000
