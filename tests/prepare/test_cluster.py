"""Preparations with datatrove's executors, compared with the same ones without."""

import os
import sys
from pathlib import Path

import pytest

from gpt_pretrain.config.command_schema import PrepareSettings
from gpt_pretrain.config.corpus_rules import prepare_problems
from gpt_pretrain.errors import UserError
from gpt_pretrain.prepare.cluster import _slurm_time, group_files
from gpt_pretrain.prepare.pipeline import prepare_corpus
from gpt_pretrain.system.recognition.file_kinds import PLAIN
from gpt_pretrain.texts.inputs import InputFile

SBATCH = f"""#!{sys.executable}
import os, re, subprocess, sys
text = open(sys.argv[-1]).read()
first, last = map(int, re.search(r"--array=(\\d+)-(\\d+)", text).groups())
job = {{"SLURM_NNODES": "1", "SLURM_NODEID": "0", "SLURM_NODELIST": "localhost", "SLURM_CPUS_ON_NODE": "1"}}
for number in range(first, last + 1):
    if number not in map(int, os.environ.get("FAILING", "").split()):
        env = os.environ | job | {{"SLURM_ARRAY_TASK_ID": str(number)}}
        subprocess.run(["bash"], input=text, text=True, env=env, capture_output=True)
print("Submitted batch job 7")
"""
SRUN = """#!/usr/bin/env bash
while [ "${1:0:1}" = "-" ]; do [ "$1" = "-n" ] && shift; shift; done
exec "$@"
"""


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Seven files of different lengths, one of them not UTF-8."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.txt").write_text(f"Document {number}: " + "one more word, " * (3**number))
    (folder / "6.txt").write_bytes(b"\xff\xfe not text")
    return folder


def settings(texts: Path, out: Path, **changes: object) -> PrepareSettings:
    fields = {"tokenizer": "byte", "shard_tokens": 1000, "val_fraction": 0.3, "max_failed_files": 1, "workers": 2, **changes}
    return PrepareSettings(inputs=[str(texts)], out=str(out), **fields)  # type: ignore[arg-type]


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def expected(texts: Path, tmp_path: Path) -> dict[str, bytes]:
    """The corpus that a preparation without an executor writes."""
    prepare_corpus(settings(texts, tmp_path / "expected"))
    return content(tmp_path / "expected")


@pytest.mark.parametrize("tasks", [None, 1, 3])
def test_local_tasks_write_the_same_corpus(
    texts: Path, tmp_path: Path, expected: dict[str, bytes], tasks: int | None, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    prepare_corpus(settings(texts, tmp_path / "out", executor="local", tasks=tasks))
    assert content(tmp_path / "out") == expected
    assert "rejected.jsonl" in expected
    assert "datatrove" not in "".join(capfd.readouterr())


def test_slurm_jobs_write_the_same_corpus_and_failed_ones_are_run_again(
    texts: Path, tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    programs = {"sbatch": SBATCH, "srun": SRUN, "squeue": "#!/bin/sh\n", "scontrol": "#!/bin/sh\necho localhost\n"}
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("FAILING", "1")
    slurm = settings(texts, tmp_path / "out", executor="slurm", slurm_partition="any", tasks=3, workers=1)
    with pytest.raises(UserError, match="1 of 3 tasks have failed"):
        prepare_corpus(slurm)
    with pytest.raises(UserError, match="tasks was 3 and is now 2"):
        prepare_corpus(settings(texts, tmp_path / "out", executor="local", tasks=2))
    monkeypatch.setenv("FAILING", "")
    prepare_corpus(slurm)
    assert content(tmp_path / "out") == expected


def test_files_are_grouped_in_order_and_by_size() -> None:
    files = [InputFile(str(number), PLAIN, size, 0) for number, size in enumerate([5, 1, 1, 1, 90, 1, 1])]
    for n_groups in range(1, 10):
        groups = group_files(files, n_groups)
        assert [file for group in groups for file in group] == files
        assert len(groups) == min(n_groups, len(files)) and all(groups)
    equal = [InputFile(str(number), PLAIN, 10, 0) for number in range(12)]
    assert [len(group) for group in group_files(equal, 4)] == [3, 3, 3, 3]


def test_settings_that_an_executor_does_not_support_are_reported() -> None:
    assert prepare_problems(PrepareSettings(out="out", inputs=["a"], executor="slurm")) == [
        "executor=slurm needs the partition to use. Add slurm_partition=NAME."
    ]
    (problem,) = prepare_problems(PrepareSettings(out="out", dataset="a", executor="local"))
    assert "executor=local distributes files" in problem


@pytest.mark.parametrize(
    ("typed", "given"),
    [("20h", "20:00:00"), ("20:00:00", "20:00:00"), ("2 days", "48:00:00"), ("90s", "00:01:30"), ("1-6", "1-6")],
)
def test_a_time_limit_is_given_to_slurm_in_its_form(typed: str, given: str) -> None:
    assert _slurm_time(typed) == given
