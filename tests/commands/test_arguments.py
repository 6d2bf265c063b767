"""The arguments of `gpt-pretrain COMMAND`."""

from pathlib import Path

import pytest

from gpt_pretrain.commands.command_line.arguments import parse_arguments
from gpt_pretrain.commands.command_line.hydra_arguments import to_hydra_arguments
from gpt_pretrain.commands.command_line.unused_arguments import unused_arguments
from gpt_pretrain.config.command_schema import CompareSettings, PrepareSettings, VocabularySettings
from gpt_pretrain.errors import UserError


def prepare_settings(*arguments: str) -> PrepareSettings:
    return parse_arguments(list(arguments), PrepareSettings, usage="The usage.", positional="inputs")


def test_settings_may_be_written_with_dashes() -> None:
    settings = prepare_settings("a.txt", "--out=corpus", "--tokenizer", "byte", "--report", "b.txt", "workers=2")
    assert (settings.out, settings.tokenizer, settings.report, settings.workers) == ("corpus", "byte", True, 2)
    assert settings.inputs == ["a.txt", "b.txt"]


def test_null_and_amounts_with_an_exponent_are_understood() -> None:
    settings = prepare_settings("a.txt", "out=corpus", "shard_tokens=1e9", "val_tokens=null")
    assert (settings.shard_tokens, settings.val_tokens) == (1_000_000_000, None)


def test_positional_arguments_may_contain_equals_signs() -> None:
    settings = parse_arguments(["optimizer.lr=1,b=${x}", "latest"], CompareSettings, usage="", positional="runs")
    assert settings.runs == ["optimizer.lr=1,b=${x}", "latest"]


@pytest.mark.parametrize("text", ["010", "1_000", "---", "yes", "# ", "a: b", "'"])
def test_texts_are_not_read_as_yaml(text: str) -> None:
    assert prepare_settings("a.txt", "out=corpus", f"document_separator={text}").document_separator == text


def test_all_problems_are_reported_together() -> None:
    with pytest.raises(UserError) as caught:
        parse_arguments(["workers=many", "shards=5"], PrepareSettings, usage="")
    problems = caught.value.problems
    assert [problem.split(":")[0] for problem in problems] == [
        "workers=many",
        "shards=5",
        "out= is missing. --help explains the settings.",
    ]


def test_files_may_have_names_with_dashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("--two.txt", "-x.txt", "--a=b.txt"):
        Path(name).touch()
    settings = prepare_settings("--two.txt", "-x.txt", "--a=b.txt", "--t*.txt", "--report", "out=corpus", "--", "--help", "out=y")
    assert settings.inputs == ["--two.txt", "-x.txt", "--a=b.txt", "--t*.txt", "--help", "out=y"]
    assert (settings.report, settings.out) == (True, "corpus")


@pytest.mark.parametrize("typed", [["--tokeniser=byte"], ["--tokeniser", "byte"], ["--tokeniser"]])
def test_unknown_settings_with_dashes_are_no_files(typed: list[str]) -> None:
    with pytest.raises(UserError, match=r"^--tokeniser(=byte)?: there is no such setting or file. Did you mean tokenizer\?$"):
        prepare_settings("a.txt", "out=corpus", *typed)


def test_help_prints_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        prepare_settings("a.txt", "--help")
    assert ended.value.code == 0
    assert capsys.readouterr().out == "The usage.\n"


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (["dataset_split=test"], "dataset_split=test has no effect without dataset=."),
        (["val_tokens=10", "val_fraction=0.2"], "val_fraction=0.2 has no effect together with val_tokens=."),
        (["tasks=3"], "tasks=3 has no effect without executor=."),
        (["executor=local", "slurm_time=1h"], "slurm_time=1h has no effect without executor=slurm."),
        (["val_fraction=0.2", "tokenizer=byte"], None),
    ],
)
def test_a_typed_setting_that_is_not_used_is_said(typed: list[str], sentence: str | None) -> None:
    found = unused_arguments(prepare_settings("a.txt", "out=corpus", *typed))
    assert found == ([] if sentence is None else [sentence])


def test_amounts_and_durations_may_have_units() -> None:
    settings = parse_arguments(["sample_bytes=200MB", "trial_minutes=1h", "out=own"], VocabularySettings, usage="")
    assert (settings.sample_bytes, settings.trial_minutes) == (200_000_000, 60.0)


def test_a_place_without_a_value_is_not_the_current_folder() -> None:
    with pytest.raises(UserError) as caught:
        prepare_settings("a.txt", "out=", "tokenizer=")
    assert caught.value.problems == ["out= has no value. Type out=PATH", "tokenizer= has no value. Type tokenizer=NAME"]


def test_hydra_s_help_needs_no_setting_of_this_program() -> None:
    assert to_hydra_arguments(["--hydra-help", "seed=1", "model=tiny", "hydra.verbose=true"], script="train") == [
        "--hydra-help",
        "hydra.verbose=true",
    ]
