"""Jobs with different tokenizers are compared in bits per byte: in the ranking, on the chart, on the page, in a search."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpt_pretrain.runs.metadata import OF_VALIDATION, has_different_texts, update_metadata
from gpt_pretrain.sweeps.chart import sweep_figure
from gpt_pretrain.sweeps.report_page import save_sweep_page
from gpt_pretrain.sweeps.results import best_job, ranking_rows, read_sweep, search_by_bits, write_ranking
from gpt_pretrain.sweeps.runner import JobRunner, open_sweep, print_sweep_summary
from tests.conftest import TINY_RUN

Script = Callable[..., "subprocess.CompletedProcess[str]"]


def make_sweep(folder: Path, jobs: dict[str, tuple[str, float, float | None]]) -> Path:
    """Write the metadata of jobs: their tokenizer, loss and bits per byte."""
    for name, (tokenizer, loss, bits) in jobs.items():
        result: dict[str, Any] = {"best_val_loss": loss} | ({} if bits is None else {"best_bits_per_byte": bits})
        words = [f"tokenizer.vocab_size={name}"]
        metadata = {"state": "finished", "overrides": words, "swept": words, "tokenizer": tokenizer, "result": result}
        (folder / name).mkdir(parents=True)
        (folder / name / "run.json").write_text(json.dumps(metadata))
    return folder


JOBS = {"512": ("bpe-512@000000000000", 4.0, 2.5), "1024": ("bpe-1024@000000000000", 4.5, 2.25)}


def test_bits_per_byte_decide_and_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_sweep(tmp_path, JOBS)
    jobs = read_sweep(folder)
    assert [job.folder.name for job in jobs] == ["1024", "512"]
    assert best_job(jobs) is jobs[0] and (jobs[0].score, jobs[0].unit) == (2.25, "bits per byte")
    rows = ranking_rows(jobs)
    assert rows[0][:4] == ["rank", "tokenizer.vocab_size", "bits per byte", "val loss"]
    assert [row[:4] for row in rows[1:]] == [["1", "1024", "2.2500", "4.5000"], ["2", "512", "2.5000", "4.0000"]]
    assert "bits per byte" in sweep_figure(jobs).axes[0].get_ylabel()
    write_ranking(jobs, folder)
    assert (folder / "summary.csv").read_text().splitlines()[1].startswith("1,1024,4.5,2.25,")
    save_sweep_page(folder)
    assert "bits per byte" in (folder / "report.html").read_text(encoding="utf-8")
    print_sweep_summary(folder, script="train.py")
    shown = capsys.readouterr().out
    assert "The jobs have different tokenizers, so they are ranked by bits per byte." in shown
    assert "Best: 2.2500 bits per byte" in shown


def test_jobs_of_earlier_versions_are_ranked_by_their_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_sweep(tmp_path, JOBS | {"300": ("byte", 1.0, None)})
    jobs = read_sweep(folder)
    assert [job.folder.name for job in jobs] == ["300", "512", "1024"]
    assert "bits per byte" not in ranking_rows(jobs)[0]
    print_sweep_summary(folder, script="train.py")
    assert "so their losses per token cannot be compared" in capsys.readouterr().out


def test_jobs_on_different_texts_are_said_to_be_no_ranking(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, texts in (("one", ["aa", "aa"]), ("two", ["aa", "bb"])):
        folder = make_sweep(tmp_path / name, {"1": ("byte", 2.0, 1.0), "2": ("byte", 1.0, math.pi)})
        for job, sha256 in zip(("1", "2"), texts, strict=True):
            update_metadata(folder / job, data={"sha256": sha256})
        print_sweep_summary(folder, script="train.py")
        shown = capsys.readouterr().out
        assert ("The jobs are validated on different texts" in shown) == (name == "two")


@pytest.mark.parametrize("setting", OF_VALIDATION)
def test_jobs_on_different_parts_of_a_text_are_said_to_be_no_ranking(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str
) -> None:
    for name, values in (("one", (5, 5)), ("two", (5, 9))):
        folder = make_sweep(tmp_path / name, {"1": ("byte", 2.0, 1.0), "2": ("byte", 1.0, math.pi)})
        for job, value in zip(("1", "2"), values, strict=True):
            update_metadata(folder / job, data={"sha256": "aa"}, overrides=[f"{setting}={value}"], swept=["seed=1"])
        print_sweep_summary(folder, script="train.py")
        shown = capsys.readouterr().out
        assert (f"The jobs are validated on different parts of the text ({setting})" in shown) == (name == "two")


def test_shards_with_different_vocabularies_may_have_one_text() -> None:
    def run(tokenizer: str, sha256: str, name: str = "shards", **size: int) -> dict[str, Any]:
        return {"tokenizer": tokenizer, "data": {"name": name, "sha256": sha256, **size}}

    assert not has_different_texts([run("gpt2", "aa"), run("byte", "bb")])
    assert has_different_texts([run("gpt2", "aa"), run("byte", "bb"), run("byte", "cc")])
    sizes = {"documents": 5, "bytes": 700}
    assert not has_different_texts([run("gpt2", "aa", **sizes), run("byte", "bb", **sizes)])
    assert has_different_texts([run("gpt2", "aa", **sizes), run("byte", "bb", documents=5, bytes=701)])
    assert has_different_texts([run("gpt2", "aa"), run("gpt2", "aa", name="text")]), "they are divided in different ways"


def test_jobs_with_one_tokenizer_are_ranked_by_their_loss(tmp_path: Path) -> None:
    jobs = read_sweep(make_sweep(tmp_path, {"1": ("byte", 2.0, 1.0), "2": ("byte", 1.0, math.pi)}))
    assert [job.folder.name for job in jobs] == ["2", "1"]
    assert not jobs[0].by_bits


def test_a_search_over_tokenizers_minimizes_bits_per_byte(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path / "a", JOBS)
    runner = JobRunner(folder, launch=lambda jobs, number: None, common=[])
    batch = [([f"tokenizer.vocab_size={name}"], name) for name in JOBS]
    assert runner.run(batch, by_bits=search_by_bits(["tokenizer.vocab_size"], folder)) == [2.5, 2.25]
    assert runner.run(batch, by_bits=search_by_bits(["optimizer.lr"], folder)) == [4.0, 4.5]
    assert not search_by_bits(["tokenizer.vocab_size"], make_sweep(tmp_path / "b", {"1": ("byte", 1.0, None)}))


def test_a_sweep_over_vocabulary_sizes_says_how_it_ranks(script: Script, tmp_path: Path) -> None:
    base = [word for word in TINY_RUN if not word.startswith("tokenizer")]
    done = script("train.py", "-m", *base, "trainer.max_steps=2", "tokenizer=bpe", "tokenizer.vocab_size=260,300")
    assert done.returncode == 0, done.stderr
    assert "so they are ranked by bits per byte" in done.stdout
    (sweep,) = (tmp_path / "outputs" / "multirun").iterdir()
    jobs = read_sweep(sweep)
    assert sorted(job.settings["tokenizer.vocab_size"] for job in jobs) == ["260", "300"]
    assert all(0 < job.score < 12 for job in jobs) and jobs[0].by_bits


def test_a_sweep_that_is_stopped_before_its_first_job_says_how_to_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyboardInterrupt), open_sweep(Path("sweep"), launch=stop, script="train.py", common=[]) as runner:
        runner.run([(["seed=1"], "seed=1"), (["seed=2"], "seed=2")])
    assert capsys.readouterr().out == "2 jobs did not finish. To resume:\n  python train.py sweep_resume=sweep\n"


def test_a_sweep_that_is_stopped_between_its_jobs_says_how_to_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_sweep(Path("sweep"), {"seed=1": ("byte", 2.0, None)})
    with pytest.raises(KeyboardInterrupt), open_sweep(Path("sweep"), launch=print, script="train.py", common=[]):
        raise KeyboardInterrupt
    assert capsys.readouterr().out.endswith("\nTo resume:\n  python train.py sweep_resume=sweep\n")
