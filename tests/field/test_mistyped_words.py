"""Mistyped settings are explained together, before anything starts."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace

import pytest

from gpt_pretrain.commands.command_line.arguments import parse_arguments
from gpt_pretrain.commands.command_line.command_words import sort_arguments
from gpt_pretrain.commands.command_line.hydra_arguments import check_arguments
from gpt_pretrain.config.command_schema import PrepareSettings
from gpt_pretrain.config.overrides import full_form
from gpt_pretrain.config.rules import rule_problems
from gpt_pretrain.config.schema import TrainSettings
from gpt_pretrain.config.setting_names import nearest_settings
from gpt_pretrain.errors import UserError

Script = Callable[..., "CompletedProcess[str]"]


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
    "budget=1,000 tokens": (
        "budget=1,000 tokens: only a sweep tries several values. Add -m. A number is typed without commas: 'budget=1000 tokens'"
    ),
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
    "model.qkv_bias=2": "model.qkv_bias=2: must be true or false.",
    "plan=-1": "plan=-1: must be true or false.",
    "export=1": None,
    "evaluation.texts=a.txt": (
        'evaluation.texts=a.txt: must be a list of texts, such as ["One", "Two"]. Type \'evaluation.texts=[a.txt]\''
    ),
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
    "--config-name=generate": (
        "--config-name=generate: this file has the settings of another script. Run generate.py, or leave out --config-name."
    ),
    "--config-name=train": None,
    "--multi": "--multi: there is no such option. Did you mean --multirun?",
    "\u2013m": "\u2013m: this begins with a dash, not with a hyphen. Type -m",
    "book.txt": "book.txt: settings are written as name=value. Did you mean data.path=book.txt?",
    "resume": "resume: this setting has no value. Type resume=VALUE",
}


@pytest.mark.parametrize("word", MISTYPED)
def test_a_mistyped_word_is_explained_with_the_nearest_names(word: str) -> None:
    message = MISTYPED[word]
    assert checked(word) == ([] if message is None else [message])


HERE = "there is no such setting here. It is a setting of"


@pytest.mark.parametrize(
    ("script", "word", "message"),
    [
        ("train", "prompt=hello", f"{HERE} generate.py."),
        ("train", "pretrained=gpt2", f"{HERE} generate.py, evaluate.py and serve.py."),
        ("train", "tasks.path=x", f"{HERE} evaluate.py."),
        ("train", "val_fraction=0.1", f"{HERE} gpt-pretrain prepare."),
        ("train", "stride=64", "there is no such setting. Did you mean data.stride?"),
        ("train", "checkpoint=runs/one", "every_n_steps, every_n_minutes, keep. To continue a run: resume=runs/one"),
        ("generate", "trainer.max_steps=5", f"{HERE} train.py."),
        ("generate", "data.path=book.txt", f"{HERE} train.py and evaluate.py."),
        ("generate", "resume=latest", "there is no such setting. Type checkpoint=latest"),
        ("evaluate", "out=answers.jsonl", f"{HERE} generate.py."),
        ("serve", "prompt=x", f"{HERE} generate.py."),
    ],
)
def test_a_setting_of_another_command_is_named(script: str, word: str, message: str) -> None:
    (problem,) = checked(word, script=script)
    assert problem.startswith(f"{word}: ")
    assert problem.endswith(message)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("config/train_x.py", "config/train_x.py: settings are not read from Python files."),
        ("learning_rate: 3e-4", "a setting is written with an equals sign. Type optimizer.lr=3e-4"),
        ("help", "settings are written as name=value. Type --help to see some."),
        ("trainer.max_step", "trainer.max_step: this setting has no value. Type trainer.max_steps=VALUE"),
        ("book.txt", "Did you mean data.path=book.txt?"),
        ("5k", 'several values of a setting are written as one word. Type "trainer.max_steps=1,5k"'),
    ],
)
def test_a_word_that_cannot_be_a_value_is_explained_by_itself(word: str, message: str) -> None:
    (problem,) = checked("trainer.max_steps=1", word)
    assert message in problem


def test_a_file_of_settings_after_the_option_c_is_explained() -> None:
    (problem,) = checked("-c", "train.yaml")
    assert problem.startswith(
        "-c train.yaml: must be job, hydra or all. Settings that belong together are in a file experiment/NAME.yaml"
    )


def test_two_settings_within_one_pair_of_quotation_marks_are_explained() -> None:
    said = "seed=3 eval_iter=2: these are 2 settings in one argument. Type seed=3 eval_iter=2"
    assert checked("seed=3 eval_iter=2") == [said]


def test_a_huge_number_is_not_suggested() -> None:
    assert checked("trainer.max_tokens=1e99") == ["trainer.max_tokens=1e99: must be a whole number, such as 10, or null."]
    assert checked("compile=1") == ["compile=1: must be true or false, or a word such as auto."]


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


def test_a_command_that_was_pasted_twice_or_cut_is_explained() -> None:
    for words in (["python", "train.py"], ["train.py"], ["$", "python3", "./train.py"], ["gpt-pretrain", "train"]):
        said = "this is the beginning of another command. Leave it out, or start it on a line of its own."
        assert checked(*words, "model=tiny") == [f"{' '.join(words)}: {said}"]
    blank = "A blank is not a setting. A backslash that continues a command must be the last character of its line."
    assert checked("data.path=book.txt", " ") == [blank]
    assert checked("", "book.txt") == ["book.txt: settings are written as name=value. Did you mean data.path=book.txt?"]
    assert "another command" not in "".join(checked("python", "is", "fun", script="generate"))


def test_everything_wrong_is_said_at_once_without_a_word_of_hydra(script: Script) -> None:
    done = script("train.py", "optimizer.lrr=1", "trainer.max_steps=many", "model=huge", "optimizer.lr=-1", "seed=1,2")
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert lines[0] == "5 errors:"
    assert len(lines) == 6
    for word in ("Hydra", "hydra", "Traceback", "full_key", "Could not"):
        assert word not in done.stderr


def test_a_time_in_words_and_an_option_with_a_value_are_explained() -> None:
    advice = "must be a number with a unit, such as"
    assert checked("budget=ten", "minutes") == [f"budget=ten minutes: {advice} budget=20m or 'budget=1e9 tokens'"]
    assert f"trainer.max_time=20 bananas: {advice} trainer.max_time=20m" in checked("trainer.max_time=20", "bananas")
    assert checked("-m", "budget=2m,5m", "10m")[0].endswith('Type "budget=2m,5m,10m"')
    assert checked("--multirun=1") == ["--multirun=1: this option takes no value. Type --multirun"]


def test_a_long_value_that_breaks_a_rule_is_shown_by_its_beginning() -> None:
    (problem,) = rule_problems(SimpleNamespace(stop=["ab" * 900]), [("stop", lambda texts: not texts, "must be empty")])
    assert problem == f"stop=[{('ab' * 100)[:-1]}...: must be empty."


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


def test_a_name_in_the_right_group_is_suggested_first() -> None:
    assert nearest_settings("evaluation.text", TrainSettings)[0] == "evaluation.texts"
    assert nearest_settings("model.dropout", TrainSettings) == ["model.drop_rate"]
    assert nearest_settings("trainer.foo", TrainSettings) == nearest_settings("model.zzz", TrainSettings) == []
    assert nearest_settings("data.steps", TrainSettings) == ["trainer.max_steps"]


@pytest.mark.parametrize(
    ("script", "word", "setting"),
    [
        *(("train", word, "resume") for word in ("run", "latest")),
        *((script, word, "checkpoint") for script in ("generate", "evaluate", "serve") for word in ("run", "latest")),
        ("generate", "run/checkpoints/last.ckpt", "checkpoint"),
        ("generate", "start.txt", "prompt_file"),
        ("train", "start.txt", "data.path"),
        ("train", "folder", "data.path"),
    ],
)
def test_the_path_of_a_run_or_a_file_is_answered_with_its_setting(
    script: str, word: str, setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "last.ckpt").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "start.txt").write_text("It was")
    monkeypatch.chdir(tmp_path)
    assert checked(word, script=script) == [f"{word}: settings are written as name=value. Did you mean {setting}={word}?"]
