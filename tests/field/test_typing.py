"""What people type: settings, texts and paths as a user of any shell would write them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import yaml

from gpt_pretrain import load_settings
from gpt_pretrain.commands.argument_checks import sort_arguments
from gpt_pretrain.commands.hydra_arguments import check_arguments
from gpt_pretrain.config.overrides import full_form, short_form
from gpt_pretrain.errors import UserError

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


def checked(*words: str, script: str = "train") -> list[str]:
    """Return what is wrong with the arguments of a script."""
    try:
        check_arguments(sort_arguments([full_form(word, script=script) for word in words]), script=script)
    except UserError as error:
        return error.problems
    return []


MISTYPED = {
    "optimizer.lrr=1": "optimizer.lrr=1: there is no such setting. Did you mean optimizer.lr?",
    "lr=1e-3": "lr=1e-3: there is no such setting. Did you mean optimizer.lr?",
    "learning_rate=1": "learning_rate=1: there is no such setting. Did you mean optimizer.lr?",
    "block_size=64": "block_size=64: there is no such setting. Did you mean model.context_length?",
    "trainer.max_stesp=4": "trainer.max_stesp=4: there is no such setting. Did you mean trainer.max_steps?",
    "modl=tiny": "modl=tiny: there is no such setting. Did you mean model?",
    "tokeniser=byte": "tokeniser=byte: there is no such setting. Did you mean tokenizer?",
    "hydra.run.dri=x": None,
    "nonsense=1": "nonsense=1: there is no such setting. --cfg job shows all settings.",
    "optimizer.lr=fast": "optimizer.lr=fast: must be a number, such as 0.1.",
    "optimizer.lr=0,001": (
        "optimizer.lr=0,001: only a sweep tries several values. Add -m. A decimal fraction is written with a point."
    ),
    "seed=1,2": "seed=1,2: only a sweep tries several values. Add -m.",
    "trainer.max_epochs=1.5": "trainer.max_epochs=1.5: must be a whole number, such as 10.",
    "trainer.max_epochs=": "trainer.max_epochs= has no value. It must be a whole number, such as 10.",
    "trainer.max_tokens=10M": (
        "trainer.max_tokens=10M: must be a whole number, such as 10, or null. Write trainer.max_tokens=10000000"
    ),
    "model.drop_rate=10%": "model.drop_rate=10%: must be a number, such as 0.1. Write model.drop_rate=0.1",
    "model.qkv_bias=perhaps": "model.qkv_bias=perhaps: must be true or false.",
    "optimizer.betas=0.9": "optimizer.betas=0.9: must be a list of numbers, such as [0.9, 0.95].",
    "optimizer.lr=[1": "optimizer.lr=[1: must be a number, such as 0.1.",
    "model=tinny": (
        "model=tinny: the group model has no option tinny. Did you mean tiny? "
        "Its options are chapter5, gpt2_124m, gpt2_1558m, gpt2_355m, gpt2_774m, tiny."
    ),
    "data=book.txt": (
        "data=book.txt: the group data has no option book.txt. To train on a file: data=text data.path=book.txt. "
        "Its options are mixture, sample, shards, text, the_verdict."
    ),
    "--max_steps=5": "--max_steps=5: settings are written without dashes. Type trainer.max_steps=5",
    "--trainer.max-steps=5": "--trainer.max-steps=5: settings are written without dashes. Type trainer.max_steps=5",
    "--multi": "--multi: there is no such option. Did you mean --multirun?",
    "\u2013m": "\u2013m: this begins with a dash, not with a hyphen. Type -m",
    "book.txt": "book.txt: this is not a setting with its value, name=value. Did you mean data.path=book.txt?",
    "resume": "resume: this setting has no value. Type resume=VALUE",
}


@pytest.mark.parametrize("word", MISTYPED)
def test_a_mistyped_word_is_explained_with_the_nearest_names(word: str) -> None:
    message = MISTYPED[word]
    assert checked(word) == ([] if message is None else [message])


def test_words_that_belong_together_are_explained_together() -> None:
    assert checked("--max_steps", "5") == ["--max_steps 5: settings are written without dashes. Type trainer.max_steps=5"]
    (problem,) = checked("data.path=", "book.txt")[1:] or checked("data.path=", "book.txt")
    assert problem.endswith("without spaces around its equals sign. Type data.path=book.txt")
    (problem,) = checked("prompt=Once", "upon", "a", "time", script="generate")
    assert problem == 'upon a time: a text with spaces needs quotation marks. Type "prompt=Once upon a time"'


def test_everything_wrong_is_said_at_once_without_a_word_of_hydra(script: Script) -> None:
    done = script("train.py", "optimizer.lrr=1", "trainer.max_steps=many", "model=huge", "optimizer.lr=-1", "seed=1,2")
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert lines[0] == "5 errors:"
    assert len(lines) == 6
    for word in ("Hydra", "hydra", "Traceback", "full_key", "Could not"):
        assert word not in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["hydra.run.dri=x"],
        ["seed=${nowhere}"],
        ["callbacks=minimal", "callbacks.early_stopping.patience=3"],
        ["-cd", "nowhere"],
        ["--cfg", "jobs"],
        ["-m", "--cfg", "job"],
        ["~nothing"],
    ],
)
def test_errors_of_hydra_itself_are_explained_too(script: Script, words: list[str]) -> None:
    done = script("train.py", *words)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    for word in ("Traceback", "full_key", "object_type", "HYDRA_FULL_ERROR", "usage:", "Error executing"):
        assert word not in done.stderr


def test_settings_and_flags_stand_in_any_order(script: Script) -> None:
    for words in (["seed=7", "--cfg", "job", "model=tiny", "-p", "seed"], ["-p", "seed", "seed=7", "-c", "job"]):
        done = script("train.py", *words)
        assert (done.returncode, done.stdout) == (0, "7\n"), done.stderr


def test_a_file_of_settings_that_overrides_the_former_group_is_explained(script: Script, tmp_path: Path) -> None:
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    file = tmp_path / "own" / "experiment" / "mine.yaml"
    file.write_text("# @package _global_\ndefaults:\n  - override /tokenizer: byte\n")
    done = script("train.py", "-cd", "own", "experiment=mine")
    assert done.returncode == 2
    assert done.stderr.startswith("error: experiment/mine overrides the group tokenizer, which has become a setting.")
    file.write_text("# @package _global_\noptimizer:\n  lrr: 1\n")
    done = script("train.py", "-cd", "own", "experiment=mine")
    assert done.returncode == 2
    assert done.stderr.startswith("error: optimizer.lrr: there is no such setting. Did you mean optimizer.lr?")
