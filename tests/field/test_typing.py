"""What people type: settings, texts and paths as a user of any shell would write them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import yaml

from gpt_pretrain import load_settings
from gpt_pretrain.config.overrides import full_form, short_form

Script = Callable[..., "CompletedProcess[str]"]

SMALL = [
    *("model=tiny", "model.emb_dim=16", "model.n_layers=1", "model.n_heads=2", "model.context_length=16"),
    *("data.path=text.txt", "data.batch_size=4", "data.cache_dir=cache", "trainer.accelerator=cpu", "trainer.precision=32-true"),
    *("callbacks=minimal", "logger=csv", "trainer.max_steps=1"),
]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Write a small text into the folder of the test."""
    file = tmp_path / "text.txt"
    file.write_text("The quick brown fox jumps over the lazy dog. " * 60)
    (tmp_path / "cache").mkdir()
    return file


@pytest.mark.parametrize("typed", ["tokenizer=byte", "tokenizer.name=byte", "+tokenizer=byte", "++tokenizer.name=byte"])
def test_the_tokenizer_is_one_setting_in_all_programs(typed: str) -> None:
    assert full_form(typed, script="train") == "tokenizer.name=byte"
    assert full_form(typed, script="generate") == short_form(typed) == "tokenizer=byte"
    assert load_settings(typed).tokenizer.name == "byte"


def test_a_trained_model_generates_with_a_typed_tokenizer(script: Script, text: Path) -> None:
    assert script("train.py", *SMALL, "tokenizer=byte", "hydra.run.dir=run").returncode == 0
    for typed in ("tokenizer=byte", "tokenizer.name=byte"):
        done = script("generate.py", "checkpoint=run", typed, "prompt=Hi", "sampler.max_new_tokens=2")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("Hi")


def test_tokenizers_are_swept_and_the_sweep_resumed_as_both_versions_store_them(script: Script, text: Path) -> None:
    sweep = text.with_name("sweep")
    done = script("train.py", "-m", *SMALL, "tokenizer=byte,gpt2", "hydra.sweep.dir=sweep")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in sweep.glob("*=*")) == ["tokenizer=byte", "tokenizer=gpt2"]
    stored = json.loads((sweep / "tokenizer=byte" / "run.json").read_text())
    assert "tokenizer=byte" in stored["overrides"]
    assert stored["swept"] == ["tokenizer=byte"]
    assert "Skipped 2 of 2 jobs" in script("train.py", "sweep_resume=sweep").stdout

    # Version 0.1.0 stored the words as typed.
    settings = sweep / "multirun.yaml"
    old = yaml.safe_load(settings.read_text())
    old["hydra"]["overrides"]["task"] = [short_form(one) for one in old["hydra"]["overrides"]["task"]]
    settings.write_text(yaml.safe_dump(old, sort_keys=False))
    assert "Skipped 2 of 2 jobs" in script("train.py", "sweep_resume=sweep").stdout

    (sweep / "tokenizer=byte").rename(sweep / "tokenizer.name=byte")
    assert "Skipped 2 of 2 jobs" in script("train.py", "sweep_resume=sweep").stdout
