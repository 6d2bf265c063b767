"""Settings that are typed twice, files that a sweep lacks, and files that change while they are in use."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from gpt_pretrain.commands.command_line.arguments import parse_arguments
from gpt_pretrain.commands.command_line.hydra_arguments import to_hydra_arguments
from gpt_pretrain.config.command_schema import CompareSettings
from gpt_pretrain.data.files import LocalFiles
from gpt_pretrain.errors import UserError
from gpt_pretrain.sweeps.named_files import check_named_files
from tests.conftest import TINY_RUN

Script = Callable[..., "subprocess.CompletedProcess[str]"]


def test_the_last_of_several_values_counts_and_this_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    words = to_hydra_arguments(["optimizer.lr=1e-3", "seed=1", "seed=1", "optimizer.lr=1e-4"], script="train")
    assert words[-1] == "optimizer.lr=1e-4"
    assert capsys.readouterr().err == "warning: optimizer.lr is typed 2 times. The last value counts: optimizer.lr=1e-4\n"
    to_hydra_arguments(["prompt=a", "prompt=b", "prompt=c"], script="generate")
    assert capsys.readouterr().err == "warning: prompt is typed 3 times. The last value counts: prompt=c\n"
    settings = parse_arguments(["out=a.png", "run1", "run2", "--out", "b.png"], CompareSettings, usage="", positional="runs")
    assert (settings.out, settings.runs) == ("b.png", ["run1", "run2"])
    assert capsys.readouterr().err == "warning: out is typed 2 times. The last value counts: out=b.png\n"


def test_a_password_that_is_typed_twice_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    to_hydra_arguments(["data.url=https://me:first@host/a.txt", "data.url=https://me:second@host/b.txt"], script="train")
    shown = capsys.readouterr().err
    assert "data.url is typed 2 times" in shown
    assert "first" not in shown and "second" not in shown


def test_a_sweep_finds_a_missing_text_before_its_first_job(script: Script, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The quick brown fox jumps over the lazy dog. " * 60)
    for search in ([], ["hparams_search=random", "hydra.sweeper.n_trials=2", "hydra.sweeper.params=null"]):
        done = script("train.py", "-m", *TINY_RUN, "data=text", "data.path=a.txt,poems.txt", "hydra.sweep.dir=s", *search)
        assert done.returncode == 2
        assert done.stderr.startswith("error: data.path=poems.txt: there is no such file or folder, and as a glob it matches no")
        assert done.stderr.count("\n") == 1
        assert not list((tmp_path / "s").glob("*/run.json"))


def test_all_missing_files_of_a_sweep_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "corpus").mkdir()
    jobs = [
        ["data.path=a.txt", "init_from=latest", "seed=1"],
        ["data.path='*.txt'", "init_from=gpt2", "prompt_file=a.txt"],
        ["data.path=https://host/corpus", "pretrained=owner/name", "tasks.path=null"],
        ["data.path=corpus", "checkpoint=corpus"],
        ["data.path=${other}", "run_dir=nowhere"],
    ]
    check_named_files(jobs)
    missing = ["data.path='no, such.txt'", "init_from=runs/a/best.ckpt", "checkpoint=x.ckpt", "prompt_file=p.txt"]
    with pytest.raises(UserError) as refused:
        check_named_files([*jobs, missing, missing])
    assert [problem.partition(":")[0] for problem in refused.value.problems] == [one.replace("'", "") for one in missing]


def test_a_token_file_that_is_overwritten_in_use_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    (tmp_path / "train.bin").write_bytes(b"aabb")
    files = LocalFiles(tmp_path)
    assert files.read("train.bin", 0, 2) == files.read("train.bin", 0, 2) == b"aa"
    assert caplog.text == ""
    (tmp_path / "train.bin").write_bytes(b"ccdd")
    os.utime(tmp_path / "train.bin", ns=(1, 1))
    assert [files.read("train.bin", 0, 2) for _ in range(2)] == [b"cc", b"cc"]
    assert caplog.text.count("train.bin has been written to while it is in use.") == 1
    os.utime(tmp_path / "train.bin", ns=(2, 2))
    assert files.read("train.bin", 0, 2) == b"cc"
    (tmp_path / "new").write_bytes(b"eeff")
    (tmp_path / "new").replace(tmp_path / "train.bin")
    assert files.read("train.bin", 0, 2) == b"cc", "a file that takes its place is not read"
    assert len(caplog.records) == 1
