"""Folders from strangers: nothing is written through a link, and no checkpoint is read through one."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from gpt_pretrain.errors import UserError
from gpt_pretrain.runs.charts.drawing import new_figure, save_figure
from gpt_pretrain.runs.folder import WRITTEN_BY_RUNS, check_no_links
from gpt_pretrain.runs.metadata import is_running
from gpt_pretrain.system.files import open_emptied, open_for_append, remove_scratch_files
from gpt_pretrain.system.terminal import LogFileHandler
from tests.helpers import corpora
from tests.helpers.hostile_files import SMALL, hostile_run, hostile_sweep
from tests.helpers.shown_runs import put_link

Script = Callable[..., subprocess.CompletedProcess[str]]


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


@pytest.mark.parametrize("name", [".lock", "metrics.csv", "train.log", "checkpoints/last.ckpt", "checkpoints/best.ckpt"])
def test_a_folder_in_place_of_a_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"{name} is a folder, but a run writes a file of this name"):
        check_no_links(tmp_path)


@pytest.mark.parametrize("name", ["checkpoints", ".hydra", "huggingface"])
def test_a_file_in_place_of_a_folder_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=f"{name} is a file, but a run has a folder of this name"):
        check_no_links(tmp_path)


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
