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
from gpt_pretrain.commands.arguments import parse_arguments
from gpt_pretrain.commands.command_words import sort_arguments
from gpt_pretrain.commands.hydra_arguments import check_arguments, to_hydra_arguments
from gpt_pretrain.config.command_schema import PrepareSettings
from gpt_pretrain.config.custom_parts import naming_overrides
from gpt_pretrain.config.overrides import full_form, short_form
from gpt_pretrain.config.schema import TrainSettings
from gpt_pretrain.config.setting_names import nearest_settings
from gpt_pretrain.errors import UserError
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
        "optimizer.lr=0,001: only a sweep tries several values. Add -m. A decimal fraction is typed with a point: "
        "optimizer.lr=0.001"
    ),
    "budget=1,5h": "budget=1,5h: only a sweep tries several values. Add -m. A decimal fraction is typed with a point: budget=1.5h",
    "trainer.max_steps=100,000": (
        "trainer.max_steps=100,000: only a sweep tries several values. Add -m. A number is typed without commas: "
        "trainer.max_steps=100000"
    ),
    "seed=1,2": "seed=1,2: only a sweep tries several values. Add -m.",
    "trainer.max_epochs=1.5": "trainer.max_epochs=1.5: must be a whole number, such as 10.",
    "trainer.max_epochs=": "trainer.max_epochs= has no value. It must be a whole number, such as 10.",
    "data.batch_size=1k": "data.batch_size=1k: must be a whole number, such as 10, or null. Write data.batch_size=1000",
    "trainer.max_tokens=10M": None,
    "checkpoint.every_n_minutes=1h30m": None,
    "model.drop_rate=10%": "model.drop_rate=10%: must be a number, such as 0.1. Write model.drop_rate=0.1",
    "model.qkv_bias=perhaps": "model.qkv_bias=perhaps: must be true or false.",
    "optimizer.betas=0.9": "optimizer.betas=0.9: must be a list of numbers, such as [0.9, 0.95].",
    "optimizer.lr=[1": "optimizer.lr=[1: must be a number, such as 0.1.",
    "model=tinny": (
        "model=tinny: the group model has no option tinny. Did you mean tiny? "
        "Its options are chapter5, custom, gpt2_124m, gpt2_1558m, gpt2_355m, gpt2_774m, "
        "modern_124m, modern_1558m, modern_355m, modern_774m, modern_small, modern_tiny, tiny."
    ),
    "data=book.txt": (
        "data=book.txt: the group data has no option book.txt. To train on a file: data=text data.path=book.txt. "
        "Its options are custom, mixture, sample, shards, text, the_verdict."
    ),
    "--max_steps=5": "--max_steps=5: settings are written without dashes. Type trainer.max_steps=5",
    "--trainer.max-steps=5": "--trainer.max-steps=5: settings are written without dashes. Type trainer.max_steps=5",
    "seed=1\u200b": "seed=1\u200b: it has characters that cannot be seen, or look like others (U+200B). Type seed=1",
    "\ufeffseed=1": "\ufeffseed=1: it has characters that cannot be seen, or look like others (U+FEFF). Type seed=1",
    "seed=1\u00a0model=tiny": (
        "seed=1\u00a0model=tiny: it has characters that cannot be seen, or look like others (U+00A0). Type seed=1 model=tiny"
    ),
    "optimizer.lr=1e\u22123": (
        "optimizer.lr=1e\u22123: it has characters that cannot be seen, or look like others (U+2212). Type optimizer.lr=1e-3"
    ),
    "seed=\uff11\u0663": "seed=\uff11\u0663: it has characters that cannot be seen, or look like others (U+FF11, U+0663). Type seed=13",
    "seed=1" + "0" * 5000: "seed=1" + "0" * 5000 + ": must be a whole number, such as 10.",
    "experiment=": "experiment= has no value. Leave it out, or choose from bytes, chapter5, gpt2_from_scratch, modern, small_text.",
    "evaluation.texts=[[a.txt]]": 'evaluation.texts=[[a.txt]]: must be a list of texts, such as ["One", "Two"].',
    "--banana": "--banana: there is no such option. Settings are written as name=value; --help shows some.",
    "--multi": "--multi: there is no such option. Did you mean --multirun?",
    "\u2013m": "\u2013m: this begins with a dash, not with a hyphen. Type -m",
    "book.txt": "book.txt: settings are written as name=value. Did you mean data.path=book.txt?",
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
    assert checked("-m", "seed=1", "2", "3") == ['2 3: several values of a setting are written as one word. Type "seed=1,2,3"']
    assert '2: several values of a setting are written as one word. Type "seed=1,2"' in checked("-m", "seed=1,", "2")
    assert checked("budget=1e9", "tokens") == ["tokens: a value with a space needs quotation marks. Type 'budget=1e9 tokens'"]
    assert checked("trainer.max_time=1h", "30m") == [
        "30m: a value with a space needs quotation marks. Type 'trainer.max_time=1h 30m'"
    ]
    assert checked("-m", "budget=1m", "5m") == ['5m: several values of a setting are written as one word. Type "budget=1m,5m"']
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


def test_one_problem_is_reported_once() -> None:
    assert UserError(["a", "b", "a"]).problems == ["a", "b"]


def test_the_commands_of_gpt_pretrain_name_the_nearest_settings() -> None:
    for typed, message in (
        (["tokeniser=byte"], "tokeniser=byte: there is no such setting. Did you mean tokenizer?"),
        (["shard_tokens=many"], "shard_tokens=many: must be a whole number, such as 10."),
        (["report=perhaps"], "report=perhaps: must be true or false."),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            parse_arguments(["out=corpus", *typed], PrepareSettings, usage="")
    assert parse_arguments(["out=corpus", "tokenizer.name=byte"], PrepareSettings, usage="").tokenizer == "byte"


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


def test_a_name_in_the_right_group_is_suggested_first() -> None:
    assert nearest_settings("evaluation.text", TrainSettings)[0] == "evaluation.texts"
    assert nearest_settings("model.dropout", TrainSettings) == ["model.drop_rate"]
    assert nearest_settings("trainer.foo", TrainSettings) == nearest_settings("model.zzz", TrainSettings) == []
    assert nearest_settings("data.steps", TrainSettings) == ["trainer.max_steps"]


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
