"""Try what people type: settings, texts and paths as a user of any shell would write them."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from gpt_pretrain import load_settings
from gpt_pretrain.commands.command_line.hydra_arguments import to_hydra_arguments
from gpt_pretrain.config.custom_parts import naming_overrides
from gpt_pretrain.config.overrides import full_form, short_form
from gpt_pretrain.system.shell import quote_word
from tests.conftest import ROOT

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


def test_settings_and_flags_stand_in_any_order(script: Script) -> None:
    for words in (["seed=7", "--cfg", "job", "model=tiny", "-p", "seed"], ["-p", "seed", "seed=7", "-c", "job"]):
        done = script("train.py", *words)
        assert (done.returncode, done.stdout) == (0, "7\n"), done.stderr


@pytest.mark.parametrize("name", ["train.py", "evaluate.py"])
def test_settings_are_shown_without_references(script: Script, name: str) -> None:
    done = script(name, "--cfg", "job", "--resolve")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^run_dir: outputs/\S+$", done.stdout, re.MULTILINE)
    assert "${" not in done.stdout


def test_a_group_of_the_users_own_is_added(script: Script, tmp_path: Path) -> None:
    (tmp_path / "own" / "habits").mkdir(parents=True)
    (tmp_path / "own" / "habits" / "mine.yaml").write_text("# @package _global_\nseed: 7\n")
    done = script("train.py", "-cd", "own", "habits=mine")
    assert (done.returncode, done.stderr) == (
        2,
        "error: habits=: no default names this group. Add it with a plus sign: +habits=OPTION\n",
    )
    assert "seed: 7" in script("train.py", "-cd", "own", "+habits=mine", "--cfg", "job").stdout


def test_a_file_of_settings_that_overrides_the_former_group_is_explained(script: Script, tmp_path: Path) -> None:
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    file = tmp_path / "own" / "experiment" / "mine.yaml"
    file.write_text("# @package _global_\ndefaults:\n  - override /tokenizer: byte\n")
    done = script("train.py", "-cd", "own", "experiment=mine")
    assert done.returncode == 2
    assert done.stderr.startswith("error: experiment/mine overrides the group tokenizer, which has become a setting.")
    file.write_text("# @package _global_\ndefaults:\n  - override /optimiser: adamw\n")
    done = script("train.py", "-cd", "own", "experiment=mine")
    assert done.returncode == 2
    assert done.stderr == (
        "error: experiment/mine overrides the group optimiser, which does not exist here. `--help` lists the groups.\n"
    )
    file.write_text("# @package _global_\noptimizer:\n  lrr: 1\n")
    done = script("train.py", "-cd", "own", "experiment=mine")
    assert done.returncode == 2
    assert done.stderr.startswith("error: optimizer.lrr: there is no such setting. Did you mean optimizer.lr?")


@pytest.mark.parametrize(
    ("command", "library"),
    [(["train.py"], "hydra"), (["generate.py"], "hydra"), (["-m", "gpt_pretrain", "prepare"], "filelock")],
    ids=["train", "generate", "command"],
)
def test_ctrl_c_while_the_libraries_load_leaves_no_traceback(tmp_path: Path, command: list[str], library: str) -> None:
    stub = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nimport time\ntime.sleep(9)\n"
    (tmp_path / f"{library}.py").write_text(stub)
    done = subprocess.run(
        [sys.executable, *command],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # which a job in the background ignores
    )
    assert done.returncode == -signal.SIGINT
    assert done.stdout + done.stderr == ""


def test_a_prompt_that_cannot_be_read_is_refused_before_the_weights_are_loaded(script: Script, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    for name, message in (("missing.txt", "no file has this path"), ("latin.txt", "is not UTF-8 text")):
        done = script("generate.py", f"prompt_file={name}", "pretrained=nowhere")
        assert done.returncode == 2
        assert f"prompt_file={name}" in done.stderr
        assert message in done.stderr
        assert "nowhere" not in done.stderr


def test_settings_without_effect_are_said(script: Script, text: Path) -> None:
    assert script("train.py", *SMALL, "tokenizer=byte", "hydra.run.dir=run").returncode == 0
    done = script("generate.py", "checkpoint=run", "sampler.top_k=3", "sampler.max_new_tokens=1", "n_samples=2")
    assert done.returncode == 0
    assert "sampler.top_k=3 has no effect at sampler.temperature=0" in done.stderr
    assert "n_samples=2 makes the same text 2 times" in done.stderr


def test_a_folder_with_earlier_runs_is_read_without_them(script: Script, text: Path) -> None:
    words = [word for word in SMALL if not word.startswith("data.path")]
    counts = []
    for run in ("outputs/one", "outputs/two"):
        done = script("train.py", *words, "tokenizer=byte", "data=text", "data.path=.", f"hydra.run.dir={run}")
        assert done.returncode == 0, done.stderr
        counts.append(re.findall(r"([\d,]+) characters", done.stdout))
    assert counts[0] == counts[1] != []
    assert "2 folders of runs or sweeps left out, such as" in done.stdout + done.stderr


def test_what_shells_leave_at_the_ends_of_words_is_taken_off() -> None:
    for typed in ("optimizer.betas=[0.9,0.95]\r", "'optimizer.betas=[0.9,0.95]'"):
        assert to_hydra_arguments([typed, "--cfg", "job"], script="train")[2:] == ["optimizer.betas=[0.9,0.95]"]
    assert to_hydra_arguments(["prompt='quoted'"], script="generate") == ["prompt='quoted'"]


def test_printed_words_can_be_pasted_into_several_shells() -> None:
    for word in ("prompt=It's late", "a b", "a,b", "$HOME", "it's $5", 'say "no"', "it\u2019s", "plain"):
        assert shlex.split(quote_word(word)) == [word]
    assert quote_word("prompt=It's late") == '"prompt=It\'s late"'


def test_printed_commands_name_arguments_that_a_checkpoint_does_not_store() -> None:
    config = {"_target_": "transformers.GPT2Config", "n_layer": 1, "names": ["a b"], "activation": "gelu"}
    fields = {"_target_": "transformers.GPT2LMHeadModel", "config": config, "context_length": 32}
    assert naming_overrides({"model": {"_target_": "mine.Model", "width": 8}}) == ["model._target_=mine.Model"]
    words = naming_overrides({"model": fields})
    assert words[:3] == [
        "model._target_=transformers.GPT2LMHeadModel",
        "model.config._target_=transformers.GPT2Config",
        "model.config.n_layer=1",
    ]
    read: dict[str, Any] = {one.key_or_group: one.value() for one in OverridesParser.create().parse_overrides(words)}
    assert read["model.config.names"] == ["a b"] and read["model.config.activation"] == "gelu"


def test_a_sweep_over_texts_shows_and_repeats_them_as_typed(script: Script, text: Path) -> None:
    folder = text.with_name("my sweeps")
    words = [*SMALL, "tokenizer=byte", "start_context=It's late, 你好", "seed=1,2", "hydra.sweep.dir=my sweeps/a=1, b"]
    done = script("train.py", "-m", *words)
    assert done.returncode == 0, done.stderr
    assert len(list((folder / "a=1, b").glob("seed=*"))) == 2
    (repeat,) = re.findall(r"To repeat it:\n  (.*)", done.stdout)
    typed = shlex.split(repeat)
    assert "start_context=It's late, 你好" in typed
    assert "data.path=text.txt" in typed
    again = script(*typed[1:], "hydra.run.dir=again")
    assert again.returncode == 0, again.stderr
    assert "Skipped 2 of 2 jobs" in script("train.py", "sweep_resume=my sweeps/a=1, b").stdout
    assert "Skipped 2 of 2 jobs" in script("train.py", "-m", *words).stdout
