"""Folders of tables with a log, of special and hidden files, links in circles, and outputs that are not where they seem."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from gpt_pretrain.commands.command_line.arguments import parse_arguments
from gpt_pretrain.commands.report import report_command
from gpt_pretrain.config.command_schema import ExportSettings
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.typed_paths import output_problem
from gpt_pretrain.texts.inputs import find_input_files
from gpt_pretrain.texts.left_out import warn_once
from gpt_pretrain.texts.text import find_text_files
from tests.helpers.training_runs import Printed, Train

Script = Callable[..., "CompletedProcess[str]"]


def problems(name: Path | str) -> list[str]:
    """Return the messages with which both ways of reading refuse a name."""
    found = []
    for find in (lambda: find_text_files(str(name)), lambda: find_input_files([str(name)], out=Path("no corpus"))):
        with pytest.raises(UserError) as caught:
            find()
        found.append(str(caught.value))
    return found


@pytest.mark.parametrize(
    ("log", "program"),
    [
        ("_delta_log/00000000000000000000.json", "Delta Lake"),
        (".hoodie/hoodie.properties", "Hudi"),
        ("metadata/v1.metadata.json", "Iceberg"),
    ],
)
@pytest.mark.parametrize("pattern", ["", "*.txt", "*/*.txt", "**/*.txt", ".."])
def test_a_table_with_a_log_is_not_read_by_its_files(tmp_path: Path, log: str, program: str, pattern: str) -> None:
    table = tmp_path / "all" / "table"
    for name in (log, "data/deleted.txt", "current.txt"):
        (table / name).parent.mkdir(parents=True, exist_ok=True)
        (table / name).write_text("a row")
    assert all(f"table is a table of {program}" in message for message in problems(table / pattern))
    named = table / "data/deleted.txt"
    assert find_text_files(str(named)) == (named,)


def test_folders_of_other_metadata_are_read(tmp_path: Path) -> None:
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata/book.metadata.json").write_text("{}")
    (tmp_path / "book.txt").write_text("text")
    assert find_text_files(str(tmp_path)) == (tmp_path / "book.txt",)


def test_special_files_in_a_folder_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("book.txt").write_text("text")
    os.mkfifo("pipe.txt")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        for pattern in (".", "*", "**"):
            caplog.clear()
            warn_once.cache_clear()
            assert [file.name for file in find_text_files(pattern)] == ["book.txt"]
            assert "2 special files left out, such as pipe.txt. Pipes, sockets and devices are not read." in caplog.text


@pytest.mark.parametrize(("name", "is_said"), [(".book.txt", True), (".git/book.txt", True), ("deep/deeper/", False)])
def test_a_folder_of_hidden_files_is_not_called_empty(tmp_path: Path, name: str, is_said: bool) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).write_text("text")
    for message in problems(tmp_path):
        assert "the folder has no files" in message
        assert ("hidden files, and the folders of runs, sweeps and caches, are left out" in message) == is_said


def test_links_in_a_circle_are_called_so(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("other")
    (tmp_path / "other").symlink_to("one")
    assert all("one is a link that leads in a circle, and to no file" in message for message in problems(tmp_path / "one"))


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("$HOME/x", "the shell has not replaced $HOME"),
        ("runs-$SLURM_JOB_ID", "the shell has not replaced $SLURM_JOB_ID"),
        ("%USERPROFILE%\\x", "the shell has not replaced %USERPROFILE%"),
        ("$(pwd)/x", "the shell has not replaced $(pwd)"),
        ("C:\\corpus", "this is a Windows path. In WSL, type /mnt/c/corpus"),
        ("s3://bucket/x", "is a URL, but a path on this machine is needed"),
        ("file:///data/x", "is a URL, but a path on this machine is needed"),
        ("price-in-$", None),
        ("cost$5", None),
        ("runs/${seed}", None),
        ("runs/${model.n_layers}-${now:%H}", None),
        ("~/x", None),
    ],
)
def test_nothing_is_written_to_a_path_that_was_not_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, reason: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    problem = output_problem("out", path)
    assert (problem is None) if reason is None else reason in str(problem)
    if reason is not None:
        with pytest.raises(UserError) as caught:
            parse_arguments([f"out={path}"], ExportSettings, usage="")
        assert reason in str(caught.value)
        Path(path).mkdir(parents=True)
        assert output_problem("out", path) is None


def test_the_newest_run_stands_for_its_sweep_on_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    reported = list[Path]()

    def write(folder: Path) -> Path:
        reported.append(folder)
        return folder

    monkeypatch.setattr("gpt_pretrain.commands.report.write_report", write)
    for folder in ("outputs/old", "outputs/multirun/sweep/seed=1"):
        (tmp_path / folder / "checkpoints").mkdir(parents=True)
        (tmp_path / folder / "checkpoints/last.ckpt").write_bytes(b"")
        (tmp_path / folder / "run.json").write_text("{}")
    (tmp_path / "outputs/multirun/sweep/multirun.yaml").write_text("{}")
    report_command(["latest", "outputs/multirun/sweep/seed=1", "outputs/old"])
    sweep = Path("outputs/multirun/sweep")
    assert reported == [sweep, sweep / "seed=1", Path("outputs/old")]


def test_a_run_resumes_when_its_last_checkpoint_is_a_link_that_leads_nowhere(
    train: Train, trained: Path, printed: Printed
) -> None:
    last = trained / "checkpoints" / "last.ckpt"
    last.unlink()
    last.symlink_to("gone.ckpt")
    train(f"resume={trained}", "trainer.max_epochs=2", run_dir=trained)
    assert last.is_file() and not last.is_symlink()
    assert any("best.ckpt" in line for line in printed())


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["train.py", "hydra.run.dir=."], "config.yaml"),
        (["train.py", "run_dir=."], "metrics.csv"),
        (["train.py", "-m", "seed=1,2", "hydra.sweep.dir=."], "report.html"),
        (["evaluate.py", "hydra.run.dir=."], "results.json"),
    ],
)
def test_files_of_the_user_are_not_replaced_by_those_of_a_run(
    script: Script, tmp_path: Path, words: list[str], name: str
) -> None:
    (tmp_path / name).write_text("mine")
    done = script(*words)
    assert f"The current folder has files that would be replaced: {name}. Choose a new folder with" in done.stderr
    assert done.returncode == 2
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("shard", ["train-00000.bin", "val.bin"])
def test_token_shards_named_as_a_text_are_answered_with_their_setting(tmp_path: Path, shard: str) -> None:
    (tmp_path / "manifest.json").write_text('{"format": "gpt-pretrain shards", "version": 1}')
    (tmp_path / shard).write_bytes(bytes(range(1, 250)) * 8)
    for problem in problems(tmp_path):
        assert problem.endswith("Token ids are trained on with data=shards data.path=FOLDER."), problem


def test_the_log_of_a_run_is_in_its_run_dir(script: Script, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a text of some words, again and again\n" * 200)
    small = ("model=tiny", "model.emb_dim=16", "model.n_layers=1", "model.n_heads=2", "model.context_length=16", "tokenizer=byte")
    small += ("trainer.accelerator=cpu", "trainer.precision=32-true", "callbacks=minimal", "logger=csv", "trainer.max_steps=1")
    done = script("train.py", *small, "data.path=text.txt", "run_dir=my run")
    assert done.returncode == 0, done.stderr
    assert "train.log" in [file.name for file in (tmp_path / "my run").iterdir()]
    assert not (tmp_path / "outputs").exists()
