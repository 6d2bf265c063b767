"""Names and texts of megabytes, or with line feeds, in a stranger's file: they fill neither the terminal nor a log."""

from __future__ import annotations

import json
import logging
import pickle
import subprocess
from pathlib import Path

import pytest

from gpt_pretrain.checkpoints.pretrained import open_weights
from gpt_pretrain.commands.process.failures import print_error
from gpt_pretrain.commands.serve import _public_name
from gpt_pretrain.errors import UserError
from gpt_pretrain.evaluation.tasks.task_files import find_tasks
from gpt_pretrain.runs.metadata import METADATA_FILE, read_metadata, track_run
from gpt_pretrain.sweeps.results import read_sweep, swept_keys
from gpt_pretrain.sweeps.runner import print_sweep_summary
from gpt_pretrain.system.recognition.file_kinds import AS_TEXT_ADVICE, SUFFIXES
from gpt_pretrain.system.tables import format_table
from gpt_pretrain.system.terminal import ConsoleHandler, LogFileHandler, print_escaped
from gpt_pretrain.tokenizers.build import build_tokenizer
from gpt_pretrain.tokenizers.fitting import fit_to_rows
from tests.helpers.made_runs import make_sweep_folder

LONG = "name\nerror: forged\x1b" + "x" * 3_000_000
FEW = 30_000  # characters


class Unknown:
    """An object whose class has a name of a stranger's choice."""


def test_a_file_with_very_many_problems_does_not_fill_the_screen(capsys: pytest.CaptureFixture[str]) -> None:
    print_error(UserError(f"Problem {number}." for number in range(5000)))
    first, *_, before_last, last = capsys.readouterr().err.splitlines()
    assert (first, before_last, last) == ("5,000 errors:", "  - Problem 99.", "  - and 4,900 more.")


def test_an_error_that_quotes_a_file_is_one_short_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_error(UserError([f"{LONG} is no name. Remove it.", "The other problem."]))
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == 3 and sum(map(len, shown)) < FEW
    assert shown[1].startswith(r"  - name\nerror: forged\x1bxxx") and shown[1].endswith("is no name. Remove it.")


def test_arguments_of_log_messages_are_short(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    handlers = ConsoleHandler(), LogFileHandler(str(tmp_path / "train.log"))
    record = logging.makeLogRecord({"msg": "%s is read", "args": (LONG,), "levelno": logging.INFO})
    texts = [handler.format(record) for handler in handlers]
    handlers[1].close()
    assert all(len(text) < FEW and "\n" not in text and text.endswith("is read") for text in texts)


def test_lines_and_cells_are_short(capsys: pytest.CaptureFixture[str]) -> None:
    print_escaped(f"{LONG}\nend")
    print_escaped(format_table([["a", LONG], ["1", LONG]]))
    shown = capsys.readouterr().out
    assert len(shown) < 3 * FEW and "\x1b" not in shown and "\nend\n" in shown


def test_an_error_in_the_metadata_of_a_run_is_short(tmp_path: Path) -> None:
    with pytest.raises(UserError), track_run(tmp_path, command="", overrides=[]):
        raise UserError(LONG * 10)
    assert len(read_metadata(tmp_path)["error"]) < FEW


def test_the_jobs_of_a_stranger_s_sweep_are_summarized_in_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        job = {"state": LONG, "error": LONG, "overrides": [f"seed={LONG}{name}", f"{LONG}=1"], "swept": [f"{LONG}=1"]}
        (tmp_path / name).mkdir()
        (tmp_path / name / METADATA_FILE).write_text(json.dumps(job | {"texts": [LONG], "tokenizer": LONG}))
    for script in ("train.py", "generate.py"):
        print_sweep_summary(tmp_path, script=script)
        shown = capsys.readouterr().out
        assert len(shown) < 3 * FEW and "\x1b" not in shown and "\nerror: forged" not in shown


def test_tokens_that_a_model_has_no_rows_for_are_shown_in_short(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    token = "a\nb" + "x" * 1000
    added = [{"id": number, "content": f"{token}{number}", "special": True} for number in (1, 2)]
    model = {"type": "BPE", "vocab": {"a": 0}, "merges": []}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": added, "model": model}))
    assert fit_to_rows(build_tokenizer(str(tmp_path)), 1, origin="a model").vocab_size == 1
    assert len(caplog.messages[0]) < 400 and "\n" not in caplog.messages[0]


def test_names_in_a_pickle_stay_on_their_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Unknown, "__module__", "os\nerror: forged")
    data = b"\x80\x04" + b"\x8c\x10os\nerror: forged" + b"\x8c\x06system" + b"\x93)R."
    (tmp_path / "x.pth").write_bytes(pickle.dumps({"model": {}})[:2] + data[2:])
    with pytest.raises(UserError) as caught:
        open_weights(str(tmp_path / "x.pth"))
    assert "forged" in str(caught.value) and "\n" not in str(caught.value)


def test_the_name_of_a_served_model_is_one_line() -> None:
    assert _public_name("run/checkpoints/a\nKey: b\x1b.ckpt") == r"run/a\nKey: b\x1b.ckpt"


def test_a_sweep_shows_a_limited_number_of_settings(tmp_path: Path) -> None:
    folder = make_sweep_folder(tmp_path)
    for name in ("a", "b", "c"):
        (folder / name).mkdir()
        overrides = [f"{name}{number}=1" for number in range(20_000)]
        job = {"state": "finished", "result": {"best_val_loss": 1.0}, "overrides": overrides, "swept": overrides}
        (folder / name / METADATA_FILE).write_text(json.dumps(job))
    jobs = read_sweep(folder)
    assert len(swept_keys(jobs)) == 1000
    assert all(len(job.settings) == 1000 for job in jobs)


@pytest.mark.parametrize("suffix", sorted(name for name, kind in SUFFIXES.items() if "for example with: " in kind.advice))
def test_a_suggested_command_runs_nothing_of_a_file_s_name(tmp_path: Path, suffix: str) -> None:
    said = SUFFIXES[suffix].refusal(f"a' $(touch PWNED) `touch PWNED` ');x{suffix}")
    command = said.partition("for example with: ")[2].removesuffix(AS_TEXT_ADVICE)
    subprocess.run(
        ["bash", "-c", f"{command.split()[0]}() {{ true; }}\n{command}"], cwd=tmp_path, check=False, capture_output=True
    )
    assert "PWNED" not in [path.name for path in tmp_path.iterdir()]


def test_the_command_for_a_task_runs_nothing_of_a_file_s_name(tmp_path: Path) -> None:
    (tmp_path / "a;touch PWNED;$(touch PWNED).jsonl").write_text("[{}]")
    with pytest.raises(UserError, match="Convert it: ") as refused:
        find_tasks(str(tmp_path))
    command = str(refused.value).partition("Convert it: ")[2]
    subprocess.run(["bash", "-c", f"jq() {{ true; }}\n{command}"], cwd=tmp_path, check=False, capture_output=True)
    assert "PWNED" not in [path.name for path in tmp_path.iterdir()]
