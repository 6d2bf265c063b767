"""Folders from strangers: nothing is written through a link, pages show files as text, and no file controls the terminal."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt_pretrain.checkpoints.pretrained import open_weights
from gpt_pretrain.commands.compare import compare_command
from gpt_pretrain.commands.report import report_command, write_report
from gpt_pretrain.errors import UserError
from gpt_pretrain.generation.config import SamplerConfig
from gpt_pretrain.generation.decoding import DecodingModel
from gpt_pretrain.generation.prompts import PromptOptions, TextModel, continue_prompt
from gpt_pretrain.runs.charts.drawing import new_figure, save_figure
from gpt_pretrain.runs.folder import WRITTEN_BY_RUNS, check_no_links
from gpt_pretrain.runs.metadata import is_running
from gpt_pretrain.runs.next_commands import repeat_command
from gpt_pretrain.runs.reader import read_run
from gpt_pretrain.sweeps.results import Job, best_command, read_sweep, write_ranking
from gpt_pretrain.system.files import open_emptied, open_for_append, remove_scratch_files
from gpt_pretrain.system.tables import format_table
from gpt_pretrain.system.terminal import ConsoleHandler, LogFileHandler, console
from tests.conftest import ROOT
from tests.helpers import corpora
from tests.helpers.hostile_files import SMALL, hostile_run, hostile_sweep

Script = Callable[..., subprocess.CompletedProcess[str]]

ESCAPES = "\x1b]0;PWNED\x07\x1b[2J\x1b]52;c;Y3VybA==\x07\x9b31m"  # title, clear the screen, clipboard, a color in one byte


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return a folder with files of the user, which no test may change."""
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    (folder / ".bashrc").write_text("# my shell settings\n")
    return folder


def is_untouched(home: Path) -> bool:
    """Return whether the user's files are as they were, and no others have appeared."""
    contents = {path.name: path.read_text() for path in home.iterdir()}
    return contents == {"thesis.tex": "years of work", ".bashrc": "# my shell settings\n"}


def has_raw_controls(text: str) -> bool:
    return any((ord(char) < 32 and char not in "\n\t") or 0x7F <= ord(char) < 0xA0 for char in text)


def put_link(path: Path, target: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


# Writing: a run


@pytest.mark.parametrize("name", ["train.log", "metrics.csv", "samples.txt", "run.json", ".lock", "losses.pdf", "report.html"])
def test_a_run_with_a_link_to_a_file_is_not_resumed(
    script: Script, finished_run: Path, tmp_path: Path, home: Path, name: str
) -> None:
    run = hostile_run(finished_run, tmp_path / "run")
    put_link(run / name, home / "thesis.tex")
    done = script("train.py", f"resume={run}", "data.path=null")
    assert done.returncode == 2
    assert f"{run / name} is a link to {home / 'thesis.tex'}" in done.stderr
    assert is_untouched(home)


def test_all_links_are_named_dangling_ones_too(finished_run: Path, tmp_path: Path, home: Path, script: Script) -> None:
    run = hostile_run(finished_run, tmp_path / "run")
    put_link(run / "samples.txt", home / ".zshenv")
    (run / ".hydra").mkdir()
    put_link(run / ".hydra" / "config.yaml", home / "new")
    put_link(run / "wandb", home)
    done = script("train.py", f"resume={run}", f"hydra.run.dir={run}")  # typed, so that Hydra writes its files too
    assert done.returncode == 2 and done.stderr.startswith("3 errors")
    assert is_untouched(home)


def test_a_linked_folder_of_checkpoints_is_not_entered(finished_run: Path, tmp_path: Path, home: Path, script: Script) -> None:
    run = hostile_run(finished_run, tmp_path / "run")
    inner = tmp_path / "elsewhere"
    shutil.move(run / "checkpoints", inner)
    (inner / "shards-00000001-aaaa").mkdir()
    (inner / ".notes.12345678.tmp").write_text("mine")
    put_link(run / "checkpoints", inner)
    before = sorted(inner.rglob("*"))
    done = script("train.py", f"resume={run}")
    assert done.returncode == 2 and "checkpoints is a link" in done.stderr
    assert sorted(inner.rglob("*")) == before


def test_a_run_folder_that_the_user_names_may_be_a_link(finished_run: Path, tmp_path: Path, script: Script) -> None:
    run = hostile_run(finished_run, tmp_path / "disk" / "run")
    (tmp_path / "mine").symlink_to(run)
    done = script("train.py", "resume=mine")
    assert done.returncode == 0, done.stderr
    assert "Done: " in (run / "train.log").read_text()


def test_a_new_run_into_a_prepared_folder_is_refused(tmp_path: Path, home: Path, script: Script) -> None:
    (tmp_path / "run").mkdir()
    put_link(tmp_path / "run" / "train.log", home / ".bashrc")
    done = script("train.py", *SMALL, "hydra.run.dir=run")
    assert done.returncode == 2 and "is a link" in done.stderr
    assert is_untouched(home)


def test_a_training_without_a_command_line_checks_too(train: Callable[..., float], tmp_path: Path, home: Path) -> None:
    (tmp_path / "run").mkdir()
    put_link(tmp_path / "run" / "losses.pdf", home / "thesis.tex")
    with pytest.raises(UserError, match=r"losses\.pdf is a link"):
        train()
    assert is_untouched(home)


def test_files_that_grow_are_not_opened_through_links(tmp_path: Path, home: Path) -> None:
    put_link(tmp_path / "link", home / "thesis.tex")
    put_link(tmp_path / "dangling", home / "new")
    os.mkfifo(tmp_path / "fifo")
    for opened in (open_for_append, open_emptied):
        for name in ("link", "dangling", "fifo"):
            with pytest.raises(OSError):
                opened(tmp_path / name)
    with pytest.raises(OSError, match="through a link"):
        LogFileHandler(str(tmp_path / "link"))
    with pytest.raises(OSError, match="through a link"):
        is_running_with_lock(tmp_path, home)
    assert is_untouched(home)
    with open_for_append(tmp_path / "new") as stream:
        stream.write(b"12")
    with open_emptied(tmp_path / "new") as stream:
        stream.write(b"3")
    assert (tmp_path / "new").read_bytes() == b"3"


def is_running_with_lock(tmp_path: Path, home: Path) -> bool:
    put_link(tmp_path / ".lock", home / "thesis.tex")
    return is_running(tmp_path)


def test_a_picture_replaces_a_link(tmp_path: Path, home: Path) -> None:
    files = [tmp_path / "losses.png", tmp_path / "losses.PDF"]
    for file in files:
        put_link(file, home / "thesis.tex")
    save_figure(new_figure(1, 1)[0], *files)
    assert [file.read_bytes()[:4] for file in files] == [b"\x89PNG", b"%PDF"] and not any(map(Path.is_symlink, files))
    assert is_untouched(home)


def test_tidying_up_deletes_links_and_not_their_targets(tmp_path: Path, home: Path) -> None:
    put_link(tmp_path / ".last.ckpt.12345678.tmp", home)
    remove_scratch_files(tmp_path)
    assert not list(tmp_path.glob(".last*")) and is_untouched(home)


def test_every_written_file_is_checked(finished_run: Path) -> None:
    written = {path.name for path in finished_run.iterdir() if not path.name.startswith("events.out.tfevents")}
    assert written <= set(WRITTEN_BY_RUNS)
    check_no_links(finished_run)


def test_a_file_with_another_name_is_copied_before_it_grows(finished_run: Path, tmp_path: Path, home: Path) -> None:
    """An archive can hold hard links to files outside of the folder that it is unpacked to."""
    run = hostile_run(finished_run, tmp_path / "run")
    for name in ("train.log", ".lock", "losses.png"):
        (run / name).unlink(missing_ok=True)
        os.link(home / "thesis.tex", run / name)
    check_no_links(run)
    with open_for_append(run / "train.log") as stream:
        stream.write(b" and more")
    assert not is_running(run)
    assert is_untouched(home) and (run / "train.log").read_text() == "years of work and more"


# Writing: sweeps and corpora


@pytest.mark.parametrize("name", ["multirun.yaml", "summary.csv", "summary.png", "study.journal", "report.html"])
def test_a_sweep_with_a_link_is_not_resumed(script: Script, tmp_path: Path, home: Path, name: str) -> None:
    hostile_sweep(tmp_path / "sweep", task=[*SMALL, "seed=1,2"])
    put_link(tmp_path / "sweep" / name, home / "thesis.tex") if name != "multirun.yaml" else None
    if name == "multirun.yaml":
        shutil.move(tmp_path / "sweep" / name, tmp_path / name)
        put_link(tmp_path / "sweep" / name, tmp_path / name)
    done = script("train.py", "sweep_resume=sweep")
    assert done.returncode != 0
    assert is_untouched(home)
    assert not list((tmp_path / "sweep").glob("seed*"))


@pytest.mark.parametrize("name", ["seed=1", "seed=1/train.log", "seed=1/.hydra"])
def test_a_job_in_a_linked_folder_is_not_started(script: Script, tmp_path: Path, home: Path, name: str) -> None:
    (tmp_path / "sweep" / "seed=1").mkdir(parents=True)
    put_link(tmp_path / "sweep" / name, home)
    done = script("train.py", "-m", *SMALL, "seed=1,2", "hydra.sweep.dir=sweep")
    assert done.returncode != 0 and f"{name} is a link" in done.stderr
    assert is_untouched(home)


@pytest.mark.parametrize("name", ["lock", "task-00000/rejected.jsonl", "task-00000/00000.bin", "task-00000", "shards.jsonl"])
def test_a_preparation_truncates_nothing_through_a_link(script: Script, tmp_path: Path, home: Path, name: str) -> None:
    (tmp_path / "in.txt").write_text("hello world, a text")
    path = tmp_path / "corpus" / ".work" / name
    path.parent.mkdir(parents=True)
    put_link(path, home / "thesis.tex" if "." in name or name == "lock" else home)
    done = script("-m", "gpt_pretrain", "prepare", "in.txt", "out=corpus", "tokenizer=byte", "workers=1", "val_fraction=0")
    assert done.returncode == 2 and "is a link" in done.stderr
    assert is_untouched(home)


@pytest.mark.parametrize(("name", "code"), [("lock", 0), ("task-00000/rejected.jsonl", 2), ("task-00000/00000.bin", 2)])
def test_a_preparation_writes_nothing_into_files_with_other_names(
    script: Script, tmp_path: Path, home: Path, name: str, code: int
) -> None:
    (tmp_path / "in.txt").write_text("hello world, a text")
    path = tmp_path / "corpus" / ".work" / name
    path.parent.mkdir(parents=True)
    os.link(home / "thesis.tex", path)
    done = script("-m", "gpt_pretrain", "prepare", "in.txt", "out=corpus", "tokenizer=byte", "workers=1", "val_fraction=0")
    assert done.returncode == code, done.stderr
    assert code == 0 or "which would be overwritten" in done.stderr
    assert is_untouched(home)


def test_a_linked_working_folder_is_not_used(script: Script, tmp_path: Path, home: Path) -> None:
    (tmp_path / "in.txt").write_text("hello world, a text")
    (tmp_path / "corpus").mkdir()
    put_link(tmp_path / "corpus" / ".work", home)
    for more in ([], ["overwrite=true"]):
        done = script("-m", "gpt_pretrain", "prepare", "in.txt", "out=corpus", "tokenizer=byte", "workers=1", *more)
        assert done.returncode == 2 and is_untouched(home)


# Reading: reports and comparisons


def made(folder: Path, **files: str) -> Path:
    """Make a run's folder from the text of its files; _ in a keyword stands for the dot."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").touch()
    good = {
        "run_json": '{"state": "finished"}',
        "metrics_csv": "step,tokens_seen,train/loss,val/loss\n0,1,2.0,2.0\n1,2,1.0,1.5\n",
    }
    for name, text in (good | files).items():
        (folder / name.replace("_", ".")).write_text(text, encoding="utf-8")
    return folder


def compared(run: Path, other: Path) -> str:
    """Return what the comparison of two runs prints; the picture's text is checked elsewhere."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        compare_command([str(run), str(other), f"out={run.parent / 'x.svg'}"])
    return text.getvalue() + (run.parent / "x.svg").read_text(encoding="utf-8")


def test_settings_are_shown_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_SECRET")
    config = 'start_context: ${oc.env:HF_TOKEN}\nseed: "${oc.env:HF_TOKEN,none}"\ntokenizer: {name: "${oc.env:HF_TOKEN}"}\n'
    run = made(tmp_path / "run", config_yaml=config)
    page = write_report(run).read_text(encoding="utf-8")
    assert "SECRET" not in page and "${oc.env:HF_TOKEN" in page
    text = compared(run, made(tmp_path / "other"))
    assert "SECRET" not in text and "${oc.env:HF_TOKEN" in text


@pytest.mark.parametrize("name", ["config.yaml", "run.json", "samples.txt", "metrics.csv"])
@pytest.mark.parametrize("target", ["/proc/self/environ", "../home/id_rsa", "/dev/zero", "fifo"])
def test_only_regular_files_of_the_folder_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, target: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_SECRET")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "id_rsa").write_text(
        "step,tokens_seen,train/loss\n1,2,3\n--- epoch 1, step 1, 2 tokens seen\nhf_SECRET\n"
    )
    run, other = made(tmp_path / "run", config_yaml="seed: 1\n"), made(tmp_path / "other")
    (run / name).unlink(missing_ok=True)
    if target == "fifo":
        os.mkfifo(run / name)
    else:
        (run / name).symlink_to(target)
    assert "SECRET" not in write_report(run).read_text(encoding="utf-8")
    assert "SECRET" not in compared(run, other)
    contents = read_run(run)
    assert not {"config.yaml": contents.config, "run.json": contents.metadata, "metrics.csv": contents.metrics}.get(name)


LONG = "9" * 5000
DAMAGED: dict[str, dict[str, str]] = {
    "deep list": {"run_json": "[" * 100_000},
    "deep object": {"run_json": '{"a":' * 100_000},
    "digits in samples": {"samples_txt": f"--- epoch {LONG}, step 1, 2 tokens seen\nx\n"},
    "digits": {"run_json": f'{{"state": "finished", "result": {{"steps": {LONG}}}}}'},
    "huge steps": {"metrics_csv": "step,tokens_seen,train/loss,val/loss\n1e308,1e308,2,2\n-1e308,1,1,1\n"},
    "huge losses": {"metrics_csv": "step,tokens_seen,train/loss,val/loss\n0,1,1e308,-1e308\n1,2,-1e308,1e308\n"},
    "large losses": {"metrics_csv": "step,tokens_seen,train/loss,val/loss,lr\n0,1,9e99,-9e99,9e99\n1,2,-9e99,9e99,1e-300\n"},
    "one long line": {"metrics_csv": "step,tokens_seen,train/loss\n" + "1" * 200_000},
    "huge numbers": {
        "run_json": json.dumps({"state": "finished", "seconds": 1e308, "result": {"steps": 10**400, "epochs": 1e308}})
    },
    "other types": {
        "run_json": json.dumps(
            {
                "state": [1],
                "overrides": {"a": 1},
                "result": [],
                "data": "x",
                "versions": 3,
                "findings": {"a": 1},
                "error": {"x": 1},
            }
            | {
                "command": ["a"],
                "program": {"git": {"a": 1}, "version": [1]},
                "tokenizer": {"a": 1},
                "seconds": "x",
                "swept": [1],
            }
        )
    },
    "not a number": {"run_json": '{"state": "finished", "seconds": NaN, "result": {"best_val_loss": NaN, "epochs": -Infinity}}'},
    "odd keys": {"config_yaml": "? [1,2]\n: 3\nnull: 4\n.nan: 5\n"},
    "recursion": {"config_yaml": "a: &a\n  b: *a\n"},
    "deep flow": {"config_yaml": "[" * 100_000},
    "deep block": {"config_yaml": "- " * 300_000},
    "aliases": {
        "config_yaml": "a0: &a0 [x,x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1},*a{i - 1}]\n" for i in range(1, 26)),
    },
    "interpolations": {
        "config_yaml": "a0: xxxxxxxxxx\n" + "".join(f"a{i}: " + f"${{a{i - 1}}}" * 10 + "\n" for i in range(1, 9))
    },
    "loop": {"config_yaml": "a: ${b}\nb: ${a}\n"},
    "hexadecimal": {"config_yaml": f"seed: 0x{'F' * 100_000}\n"},
    "base 60": {"config_yaml": f"seed: {':'.join(['59'] * 100_000)}\n"},
    "digits in text": {"config_yaml": f"trainer: {{max_steps: '{LONG[:999]}', max_epochs: '\u00b2', max_tokens: '\u0663'}}\n"},
    "scalars": {"config_yaml": "seed: [[1,{a: b}]]\nmodel: [1]\ntrainer: 5\ndata: {path: {a: b}}\ntokenizer: [1]\n"},
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_gaps_on_the_page(tmp_path: Path, name: str) -> None:
    run, other = made(tmp_path / "run", **DAMAGED[name]), made(tmp_path / "other", config_yaml="seed: 1\n")
    assert write_report(run).is_file()
    assert "best validation loss" in compared(run, other)


def test_a_sweep_page_reads_no_links_and_resolves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_SECRET")
    sweep = hostile_sweep(tmp_path / "sweep", task=["start_context=${oc.env:HF_TOKEN}", "seed=1,2"])
    made(
        sweep / "job", run_json='{"state": "finished", "swept": [1, "seed=1"], "overrides": ["seed=1"], "result": 5, "error": 3}'
    )
    page = write_report(sweep).read_text(encoding="utf-8")
    assert "SECRET" not in page and "${oc.env:HF_TOKEN}" in page
    put_link(sweep / "multirun.yaml", Path("/proc/self/environ"))
    report_command([str(sweep)])
    assert "SECRET" not in (sweep / "report.html").read_text(encoding="utf-8")


def test_a_sweep_shows_no_runs_from_elsewhere(tmp_path: Path) -> None:
    sweep = hostile_sweep(tmp_path / "sweep", task=["seed=1,2"])
    made(sweep / "job")
    made(
        tmp_path / "mine",
        config_yaml="start_context: private words\n",
        run_json='{"state": "finished", "error": "private words"}',
    )
    (sweep / "other").symlink_to(tmp_path / "mine")
    assert [job.folder.name for job in read_sweep(sweep)] == ["job"]
    assert "private words" not in write_report(sweep).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "override",
    [
        *("+callbacks.custom.x={_target_: os.system}", "hydra.job.env_set.A=b", "--config-dir=x", "start_context=${oc.env:HOME}"),
        *("hydra/launcher=x", "callbacks={custom: {}}", "experiment=../x", "x=1"),
    ],
)
def test_no_command_is_suggested_that_could_run_code(tmp_path: Path, override: str) -> None:
    sweep = hostile_sweep(tmp_path / "sweep", task=["seed=1,2"])
    metadata = {"state": "finished", "overrides": ["seed=1", override], "result": {"best_val_loss": 1.0}, "command": "rm -rf ~"}
    run = made(sweep / "job", run_json=json.dumps(metadata))
    assert best_command(read_sweep(sweep)) is None
    (run / "checkpoints" / "last.ckpt").unlink()
    next_commands = write_report(run).read_text(encoding="utf-8").rpartition('id="next"')[2]
    assert "rm -rf" not in next_commands and "python train.py" not in next_commands


def test_commands_with_plain_settings_are_suggested() -> None:
    overrides = ["model=tiny", "optimizer.lr=1e-3", "data.path=a b", "~callbacks.doctor", "data.remote.options.anon=true"]
    overrides += ["callbacks.grid={top_ks: [1]}", "trainer.max_tokens=null", "experiment=quick", "hparams_search=random"]
    assert repeat_command(overrides) == shlex.join(["python", "train.py", *overrides])


def test_a_table_of_jobs_holds_no_formulas(tmp_path: Path) -> None:
    metadata = {
        "state": "finished",
        "overrides": ["a==cmd|' /C calc'!A0", "b=@x", "c=-1e-3", "d=+y"],
        "result": {"best_val_loss": -1.0},
    }
    made(tmp_path / "sweep" / "job", run_json=json.dumps(metadata))
    write_ranking(read_sweep(tmp_path / "sweep"), tmp_path)
    (row,) = csv.DictReader((tmp_path / "summary.csv").read_text().splitlines())
    assert row["best_val_loss"] == "-1.0"
    jobs = [Job(Path("job"), {"a": "=cmd|' /C calc'!A0", "b": "@x", "c": "-1e-3"}, "x", {}), Job(Path("k"), {}, "x", {})]
    write_ranking(jobs, tmp_path)
    (row, _) = csv.DictReader((tmp_path / "summary.csv").read_text().splitlines())
    assert (row["a"], row["b"], row["c"]) == ("'=cmd|' /C calc'!A0", "'@x", "-1e-3")


def test_a_refused_resume_leaves_the_page_as_it_was(finished_run: Path, tmp_path: Path, script: Script) -> None:
    def complete(content: dict[str, Any]) -> None:
        content["config"]["trainer"]["max_steps"] = 4

    run = hostile_run(finished_run, tmp_path / "run", complete)
    (run / "report.html").write_text("as it was")
    assert script("train.py", f"resume={run}").returncode == 2
    assert (run / "report.html").read_text() == "as it was"
    (run / "report.html").unlink()
    assert script("train.py", f"resume={run}", "model.n_layers=3", "trainer.max_steps=9").returncode == 2
    assert not (run / "report.html").exists()


# The terminal and the logs


def test_a_model_cannot_control_the_terminal(finished_run: Path, tmp_path: Path) -> None:
    def says_escape(content: dict[str, Any]) -> None:
        state = content["state_dict"]
        for name in state:
            state[name] = torch.zeros_like(state[name])
            if name.endswith(("final_norm.bias", "final_norm.shift", "ln_f.bias")):
                state[name][0] = 1.0
            if "tok_emb" in name or "out_head" in name:
                state[name][27, 0] = 9.0

    weights = open_weights(hostile_run(finished_run, tmp_path / "run", says_escape))
    model, tokenizer = DecodingModel(weights.build(), dtype=torch.float32), weights.build_tokenizer()
    texts = []
    for terminal in (True, False):
        stream = io.StringIO()
        stream.isatty = lambda terminal=terminal: terminal  # type: ignore[method-assign]
        with contextlib.redirect_stdout(stream):
            continue_prompt(TextModel(model, tokenizer), "hi\x1b", SamplerConfig(4, 0.0, None, None), PromptOptions(1, 1))
        texts.append(stream.getvalue())
    assert texts == ["hi" + "\\x1b" * 5 + "\n", "hi" + "\x1b" * 5 + "\n"]  # a file gets the text as it is


def test_names_in_files_cannot_control_the_terminal(script: Script, tmp_path: Path) -> None:
    torch.save({f"a{ESCAPES}\nerror: forged": torch.zeros(1)}, tmp_path / "weights.pt")
    (tmp_path / "field.jsonl").write_text(json.dumps({f"f{ESCAPES}": "x"}) + "\n")
    (tmp_path / "ok.jsonl").write_text("".join(json.dumps({"text": f"hello {i} {ESCAPES}"}) + "\n" for i in range(30)))
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "manifest.json").write_text(json.dumps({"format": f"x{ESCAPES}", "version": 1}))
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / f"n{ESCAPES}.txt").write_bytes(b"\xff\xfe\xff")
    prepare = ("-m", "gpt_pretrain", "prepare")
    for arguments in (
        ("generate.py", "pretrained=weights.pt"),
        ("train.py", *SMALL, "data=shards", "data.path=corpus", "plan=true"),
        ("train.py", *SMALL, "data.path=texts", "plan=true"),
        (*prepare, "field.jsonl", "out=out1", "tokenizer=byte", "workers=1"),
        (*prepare, "ok.jsonl", "out=out2", "tokenizer=byte", "workers=1", "report=true"),
        (*prepare, "texts", "out=out3", "tokenizer=byte", "workers=1"),
        (*prepare, "ok.jsonl", "out=out4", "tokenizer=byte", "workers=1", f"text_field={ESCAPES}"),
    ):
        done = script(*arguments)
        assert not has_raw_controls(done.stdout + done.stderr), arguments
        assert not any(line.startswith("error: forged") for line in done.stderr.splitlines())
        assert "Traceback" not in done.stderr, arguments


def test_compare_shows_no_control_characters(tmp_path: Path) -> None:
    metadata = json.dumps({"state": f"finished{ESCAPES}", "precision": f"p{ESCAPES}\nx", "machine": {"device": ESCAPES}})
    run = made(tmp_path / "run", run_json=metadata, config_yaml=json.dumps({"start_context": f"x{ESCAPES}", f"k{ESCAPES}": 1}))
    text = compared(run, made(tmp_path / f"o{ESCAPES[1:8]}"))
    assert not has_raw_controls(text) and "\\x1b" in text


def test_tables_stay_tables() -> None:
    assert format_table([["a", "b"], ["x\ny\t", "\x1b[2J"]]).splitlines() == ["a       b", "x\\ny\\t  \\x1b[2J"]


def logged(handler: logging.Handler, *message: object, **more: Any) -> None:
    handler.setFormatter(logging.Formatter("DATE %(levelname)s %(message)s"))
    handler.handle(logging.LogRecord("name", logging.WARNING, "file", 1, message[0], message[1:], None, **more))  # type: ignore[arg-type]


def test_a_log_line_is_one_message(tmp_path: Path) -> None:
    handler = LogFileHandler(str(tmp_path / "train.log"))
    logged(handler, "the tensor %s of %d at %s", f"x\n touch PWNED{ESCAPES}\nDATE INFO forged", 3, Path("a\nb"))
    logged(handler, "two\nlines\x1b")
    logged(handler, "%(name)s", {"name": "x\ny"})
    handler.close()
    first, second, third, last = (tmp_path / "train.log").read_text().splitlines()
    assert first.startswith(r"DATE WARNING the tensor x\n touch PWNED\x1b") and first.endswith(r"\nDATE INFO forged of 3 at a\nb")
    assert (second, third, last) == ("DATE WARNING two", r"    lines\x1b", r"DATE WARNING x\ny")


def test_the_console_escapes_what_it_logs() -> None:
    with console.capture() as captured:
        logged(ConsoleHandler(), "read %s", f"x{ESCAPES}\nwarning: forged")
    assert not has_raw_controls(captured.get()) and len(captured.get().splitlines()) == 1


def test_recorded_control_characters_stay_data(tmp_path: Path) -> None:
    run = made(tmp_path / "run", run_json=json.dumps({"state": f"x{ESCAPES}"}))
    assert read_run(run).metadata["state"] == f"x{ESCAPES}"


def test_work_without_a_plan_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("own text")
    task = tmp_path / "out" / ".work" / "task-00000"
    task.mkdir(parents=True)
    (task / "journal.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"contains \.work/task-00000, which would be overwritten"):
        corpora.prepare(tmp_path / "a.txt", out=tmp_path / "out")


# Checkpoints that are links


@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
def test_a_link_in_place_of_a_checkpoint_is_not_followed(finished_run: Path, tmp_path: Path, script: Script, name: str) -> None:
    checkpoints = hostile_run(finished_run, tmp_path / "theirs") / "checkpoints"
    private = tmp_path / "private.ckpt"
    (checkpoints / "last.ckpt").rename(private)
    (checkpoints / name).symlink_to(private)
    refused = script("train.py", "resume=theirs")
    assert refused.returncode == 2 and "is a link that leads out of the run's folder" in refused.stderr
    assert [file.name for file in checkpoints.iterdir()] == [name]
    script("train.py", f"resume=theirs/checkpoints/{name}", "model.n_layers=7")
    assert [file.name for file in checkpoints.iterdir()] == [name], "nothing is copied from a link"


def test_checkpoints_that_lightning_would_load_by_itself_are_refused(finished_run: Path, tmp_path: Path, script: Script) -> None:
    sweep = hostile_sweep(tmp_path / "sweep", task=[*SMALL, "seed=1,2"])
    (sweep / "seed=1").mkdir()
    shutil.copy(finished_run / "checkpoints" / "last.ckpt", sweep / "seed=1" / "hpc_ckpt_1.ckpt")
    done = script("train.py", "sweep_resume=sweep")
    assert "Lightning would resume from it unchecked" in done.stdout + done.stderr
    assert not (sweep / "seed=1" / "checkpoints").exists() and (sweep / "seed=2" / "checkpoints" / "last.ckpt").exists()


def test_settings_of_charts_in_the_working_directory_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\n")
    code = "import gpt_pretrain.runs.charts.drawing, matplotlib; print(matplotlib.rcParams['text.usetex'])"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
