"""The leaderboard: which runs are ranked together, and what a results file may hold."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from gpt_pretrain.commands.leaderboard import format_leaderboard
from gpt_pretrain.errors import UserError
from gpt_pretrain.runs.leaderboard import Entry, find_entries, group_by_text, merge
from gpt_pretrain.runs.results_file import FORMAT, read_results, write_results
from tests.helpers.command_line import gpt_pretrain
from tests.helpers.made_runs import CONFIG, METADATA, make_metrics, make_run

Command = Callable[..., str]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `gpt-pretrain leaderboard` in the test's own folder, and return what it prints."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> str:
        gpt_pretrain("leaderboard", *arguments)
        return capsys.readouterr().out

    return run


def bits(value: float) -> dict[str, Any]:
    return {"result": METADATA["result"] | {"best_bits_per_byte": value}}


def write_file(path: Path, *runs: dict[str, Any], **fields: Any) -> Path:
    path.write_text(json.dumps({"format": FORMAT, "version": 1, "runs": list(runs)} | fields), encoding="utf-8")
    return path


def test_runs_are_ranked_within_their_text_and_their_held_out_part(tmp_path: Path, command: Command) -> None:
    make_run(tmp_path / "outputs/worse", **bits(2.5))
    make_run(tmp_path / "outputs/multirun/sweep/better", **bits(2.25))
    make_run(tmp_path / "outputs/other_part", config=CONFIG.replace("0.9", "0.5"), **bits(1.5))
    make_run(tmp_path / "outputs/other_text", data=METADATA["data"] | {"sha256": "cd" * 32}, **bits(1.25))
    tables = command().split("\n\n")
    ranking = next(table for table in tables if "better" in table)
    assert [line.split()[:2] for line in ranking.splitlines()[2:]] == [["1", "2.2500"], ["2", "2.5000"]]
    assert "sample (20,479 characters, SHA-256 abababababab), validated on the last 0.1 of it" in ranking
    assert len(tables) == 4
    assert tables[-1].strip() == "machine A: A Processor, 2 cores"


def test_shards_with_a_validation_set_of_their_own_have_no_last_part(tmp_path: Path, command: Command) -> None:
    own = METADATA["data"] | {"own_validation_set": True}
    make_run(tmp_path / "outputs/one", data=own, **bits(2.5))
    make_run(tmp_path / "outputs/two", config=CONFIG.replace("0.9", "0.5"), data=own, **bits(2.25))
    ranking = command().split("\n\n")[0]
    assert [line.split()[:2] for line in ranking.splitlines()[2:]] == [["1", "2.2500"], ["2", "2.5000"]]
    assert "validated on" not in ranking


def test_runs_of_earlier_versions_are_ranked_by_their_metrics(tmp_path: Path) -> None:
    earlier = {"best_val_loss": 4.5, "best_step": 7, "steps": 12}
    make_run(tmp_path / "with_metrics", result=earlier)
    make_run(tmp_path / "without", result=earlier, rows=make_metrics().replace("val/bits_per_byte", "other"))
    make_run(tmp_path / "unknown_text", result=earlier, data={}, model={}, machine={}, rows=make_metrics())
    entries, unknown = find_entries(tmp_path)
    assert [(entry.run, entry.bits_per_byte) for entry in entries] == [("unknown_text", 1.5), ("with_metrics", 1.5)]
    assert unknown == 1
    assert len(group_by_text(entries)) == 2
    assert "its hash is unknown" in format_leaderboard(entries, own_machine="another")


def test_a_folder_without_runs_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "outputs/own", **bits(2.5))
    (tmp_path / "empty").mkdir()
    gpt_pretrain("leaderboard", "empty")
    shown = capsys.readouterr()
    assert shown.err == "empty: there is no trained run in this folder.\n"
    assert "2.5000" in shown.out


def test_a_shared_file_is_ranked_beside_the_own_runs(tmp_path: Path, command: Command) -> None:
    make_run(tmp_path / "outputs/own", **bits(2.5))
    theirs = {"run": "theirs", "bits_per_byte": 2.0, "text_sha256": "ab" * 32, "train_ratio": 0.9, "machine": "B Processor"}
    write_file(tmp_path / "theirs.json", theirs | {"validated": 1.0, "of a later version": [1]})
    shown = command("theirs.json", "out=all.json")
    assert "machine B: B Processor" in shown and "theirs.json" in shown
    assert [entry.run for entry in read_results(tmp_path / "all.json")] == ["own", "theirs"]
    assert "2 runs in all.json" in command("all.json", "theirs.json", "outputs", "out=all.json")  # no run twice


def test_a_results_file_has_no_paths_and_no_words_of_the_user(tmp_path: Path) -> None:
    config = CONFIG.replace("path: null", "path: /home/jane/secret/diary.txt")
    overrides = ["data.path=/home/jane/secret/diary.txt", "start_context=Dear diary", "seed=3", "tokenizer=~/mine"]
    make_run(tmp_path / "run", config=config, overrides=overrides, tokenizer="/home/jane/mine", **bits(2.0))
    entries, _ = find_entries(tmp_path)
    write_results(entries, tmp_path / "results.json")
    written = (tmp_path / "results.json").read_text()
    assert "jane" not in written and "Dear" not in written
    assert entries[0].settings == ("seed=3",)
    assert (entries[0].text_name, entries[0].tokenizer) == ("diary.txt", "mine")


def test_what_is_validated_on_a_part_is_marked(tmp_path: Path, command: Command) -> None:
    data = METADATA["data"] | {"val_tokens": 1000, "val_windows": 5}
    part = CONFIG.replace("train_ratio: 0.9", "train_ratio: 0.9\n  val_tokens: 50").replace(
        "emb_dim", "context_length: 10\n  emb_dim"
    )
    make_run(tmp_path / "outputs/part", config=part, data=data, **bits(2.0))
    make_run(tmp_path / "outputs/weights", config=CONFIG + "init_from: gpt2\n", **bits(1.0))
    shown = command()
    assert " 5%" in shown and "100%" in shown and "have estimates" in shown
    assert "may have seen the held-out text" in shown


def test_equal_results_have_the_same_rank_in_a_fixed_order() -> None:
    entries = [Entry(run, value, seconds=1.0) for run, value in (("b", 2.0), ("c", 3.0), ("a", 2.0))]
    assert [entry.run for entry in group_by_text(entries)[0]] == ["a", "b", "c"]
    table = format_leaderboard(entries, own_machine="x").splitlines()[2:5]
    assert [line.split()[0] for line in table] == ["1", "1", "3"]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no_bits": ({"run": "a"}, "bits_per_byte of entry 1 is None"),
    "impossible_bits": ({"run": "a", "bits_per_byte": 0}, "must be a number above 0"),
    "bits_as_text": ({"run": "a", "bits_per_byte": "1.0"}, "must be a number above 0"),
    "no_number": ({"run": "a", "bits_per_byte": float("nan")}, "must be a number above 0"),
    "bits_as_truth": ({"run": "a", "bits_per_byte": True}, "must be a number above 0"),
    "long_text": ({"run": "a" * 1000, "bits_per_byte": 1.0}, "a text of at most 200 characters"),
    "no_name": ({"bits_per_byte": 1.0}, "run of entry 1 is None"),
    "negative_time": ({"run": "a", "bits_per_byte": 1.0, "seconds": -1}, "must be null or a number of at least 0"),
    "no_time": ({"run": "a", "bits_per_byte": 1.0, "started": "soon"}, "started of entry 1 is 'soon'"),
    "no_ratio": ({"run": "a", "bits_per_byte": 1.0, "train_ratio": 9}, "a number from 0 to 1"),
    "nested": ({"run": {"a": 1}, "bits_per_byte": 1.0}, "run of entry 1"),
    "settings_as_text": ({"run": "a", "bits_per_byte": 1.0, "settings": "seed=1"}, "a list of at most 100 texts"),
    "half_a_count": ({"run": "a", "bits_per_byte": 1.0, "parameters": 1.5}, "a whole number"),
}


@pytest.mark.parametrize("name", WRONG)
def test_impossible_entries_are_refused(tmp_path: Path, name: str) -> None:
    run, message = WRONG[name]
    with pytest.raises(UserError, match="entry 1") as refused:
        read_results(write_file(tmp_path / "results.json", run))
    assert message in str(refused.value)


def test_files_that_are_no_results_are_neither_read_nor_replaced(tmp_path: Path) -> None:
    other = tmp_path / "package.json"
    other.write_text('{"name": "mine"}')
    with pytest.raises(UserError, match="not a results file"):
        read_results(other)
    with pytest.raises(UserError, match="It is not replaced"):
        write_results([Entry("a", 1.0)], other)
    assert other.read_text() == '{"name": "mine"}'
    with pytest.raises(UserError, match="its version is 2"):
        read_results(write_file(tmp_path / "later.json", version=2))
    with pytest.raises(UserError, match="not a results file"):
        read_results(_text_file(tmp_path / "a.json", "[" * 1000))


def test_what_is_written_can_be_read_again(tmp_path: Path) -> None:
    make_run(
        tmp_path / "odd", started="yesterday", seconds=-1, overrides=["seed=1"], machine={"cpu": 5, "cores": "x"}, **bits(2.0)
    )
    make_run(tmp_path / ("n" * 250), config=CONFIG.replace("0.9", "7"), **bits(2.0))
    entries, _ = find_entries(tmp_path)
    write_results(entries, tmp_path / "results.json")
    read = read_results(tmp_path / "results.json")
    assert [asdict(one) | {"source": ""} for one in read] == [asdict(one) for one in entries]
    assert merge([*entries, *read]) == entries


def test_control_characters_of_a_strangers_file_are_escaped(tmp_path: Path, command: Command) -> None:
    write_file(
        tmp_path / "a.json", {"run": "\x1b[2Jx\u202e", "bits_per_byte": 1.0, "machine": "\x1b]0;x\x07", "text_name": "\x1b[2J"}
    )
    shown = command("a.json")
    assert "\x1b" not in shown and "\u202e" not in shown


def _text_file(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_results_file_adds_no_lines_of_its_own(tmp_path: Path, command: Command) -> None:
    run = {"run": "a", "bits_per_byte": 1.5, "text_name": "a\nmachine B: x", "machine": "b\nrank", "text_sha256": "c\nd"}
    shown = command(str(write_file(tmp_path / "theirs.json", run)))
    assert "a\\nmachine B: x (SHA-256 c\\nd)" in shown
    assert shown.splitlines()[-1] == "machine A: b\\nrank"
