"""The report pages of runs and sweeps, whatever their state."""

import dataclasses
import json
import logging
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from gpt_pretrain.commands.process.run_context import run_context
from gpt_pretrain.commands.report import write_report
from gpt_pretrain.config.command_schema import ReportSettings
from gpt_pretrain.errors import UserError
from gpt_pretrain.runs.report.run_page import split_blank_lines
from gpt_pretrain.runs.report.saving import report_at_end, save_run_page, try_save_page
from gpt_pretrain.runs.samples import Sample
from gpt_pretrain.sweeps.report_page import save_sweep_page
from tests.helpers.command_line import gpt_pretrain
from tests.helpers.html_page import report
from tests.helpers.made_runs import CONFIG, METADATA, make_metrics, make_run, make_sweep, make_sweep_folder

HOSTILE = """</div></pre><script>alert("1")</script><img src=x onerror='a()'>&lt;b&gt;"'{{ 7 * 7 }}<!--"""


def test_the_page_of_a_run_shows_its_results_and_settings(tmp_path: Path) -> None:
    page = report(make_run(tmp_path / "my-run"))
    sections = page.sections
    assert "my-run" in page.text and "finished" in page.text
    for shown in (
        "4.5",
        "perplexity 90.0",
        "Best bits per byte1.625",
        "epoch 2",
        "step 7",
        "1,200",
        "12 steps",
        "1 min 2 s",
        "9 of 50",
    ):
        assert shown in sections["result"], shown
    assert "overfitting" in sections["findings"] and "The validation loss rises." in sections["findings"]
    assert [len(sections["curves"].strip()) > 0, page.tags.count("img")] == [True, 4]
    for shown in ("Epoch 1, step 3, 400 tokens seen", "Every effort 3", "longest memorized span: 9 of 50 new tokens"):
        assert shown in sections["samples"], shown
    for shown in ("346", "1.5 GB"):
        assert shown in sections["throughput"], shown
    for shown in (
        *("python train.py model=tiny optimizer.lr=1e-3", "0123456789ab-dirty", "ab" * 32, "20,479 characters", "torch 2.13.0"),
        *(
            "A Processor",
            "2 cores",
            "8.0 GB",
            "32-true",
            "gpt2",
            "7,210,112 parameters",
            "2026-03-04 09:31:05 UTC",
            "betas: [0.9, 0.99]",
        ),
    ):
        assert shown in sections["setup"], shown
    assert "checkpoints/last.ckpt" in sections["files"] and "2.0 kB" in sections["files"]
    assert "generate.py checkpoint=" in sections["next"] and "trainer.max_epochs=6" in sections["next"]
    linked = [tmp_path / "my-run" / unquote(link) for link in page.values("href", "a")]
    assert len(linked) == 5 and all(file.exists() for file in linked)


def test_a_real_run_has_a_page(train: Callable[..., float], tmp_path: Path) -> None:
    train("logger=csv", run_dir=tmp_path / "run")
    page = report(tmp_path / "run")
    assert page.tags.count("img") == 4
    assert "Every effort moves you" in page.sections["samples"]
    assert "losses.png" in page.sections["files"]


@pytest.mark.parametrize("missing", ["run.json", "config.yaml", "metrics.csv", "samples.txt", "checkpoints"])
@pytest.mark.parametrize("how", ["missing", "empty", "damaged", "a folder", "alone"])
def test_every_file_may_be_missing_or_damaged(tmp_path: Path, missing: str, how: str) -> None:
    folder = make_run(tmp_path / "run", rows=None if missing == "metrics.csv" else "")
    if how == "alone":
        for path in folder.iterdir():
            if path.name != missing:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if missing == "samples.txt":
            with pytest.raises(UserError, match="neither a run nor a sweep"):
                write_report(folder)
            return
    else:
        path = folder / missing
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        if how == "a folder":
            path.mkdir()
        elif how != "missing":
            path.write_bytes(b"" if how == "empty" else b"\xff\x00{[: <b>\n,,\n--- epoch 1")
    page = report(folder)
    assert {"result", "findings", "curves", "samples", "throughput", "setup", "files", "next"} <= page.sections.keys()


@pytest.mark.parametrize("value", [None, 3, "x", [], [1], {}, {"a": 1}, True, float("nan")])
def test_the_metadata_may_hold_any_values(tmp_path: Path, value: Any) -> None:
    for field in METADATA:
        report(make_run(tmp_path / field, rows="", **{field: value}))
    report(make_run(tmp_path / "result-fields", rows="", result=dict.fromkeys(METADATA["result"], value)))
    report(make_run(tmp_path / "all", rows="", **dict.fromkeys(METADATA, value)))


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("running", "running, or killed"),
        ("failed", "failed"),
        ("interrupted", "interrupted"),
        ("pruned", "pruned"),
        ("odd", "unknown state"),
    ],
)
def test_the_state_and_the_error_are_shown(tmp_path: Path, state: str, expected: str) -> None:
    page = report(make_run(tmp_path / "run", state=state, error="The disk\nis full."))
    assert expected in page.text
    assert "The disk\nis full." in page.sections["error"]
    assert ("max_epochs=6" in page.sections["next"]) == (state == "pruned")  # Only a complete run gets a new limit.


def test_the_signal_that_ended_a_run_is_named(tmp_path: Path) -> None:
    page = report(make_run(tmp_path / "run", state="interrupted", error="stopped by SIGTERM"))
    assert "stopped by SIGTERM" in page.sections["error"]


def test_a_run_without_a_checkpoint_suggests_its_command_again(tmp_path: Path) -> None:
    shutil.rmtree(make_run(tmp_path / "run", state="failed") / "checkpoints")
    assert "python train.py model=tiny" in report(tmp_path / "run").sections["next"]


def test_the_suggested_limit_is_twice_the_reached_one(tmp_path: Path) -> None:
    make_run(tmp_path / "run", config=CONFIG.replace("max_steps: -1", "max_steps: 12"))
    assert "trainer.max_steps=24" in report(tmp_path / "run").sections["next"]


def test_markup_in_values_has_no_effect(tmp_path: Path) -> None:
    folder = tmp_path / """a"b'<i>&amp;{{ 1 }}=1,c"""
    fields = dict.fromkeys(("error", "command", "tokenizer", "precision", "state", "started"), HOSTILE)
    findings = [{"sign": HOSTILE, "step": HOSTILE, "text": HOSTILE}]
    data = {"name": HOSTILE, "sha256": HOSTILE}
    make_run(folder, text=HOSTILE, config=f"start_context: |\n  {HOSTILE}\n", findings=findings, data=data, **fields)
    (folder / "events.out.tfevents.<b>").write_text("")
    page = report(folder)
    assert page.tags == [tag for tag in page.tags if tag not in ("script", "i", "b")]
    assert page.tags.count("img") == 4
    assert not page.values("onerror")
    assert folder.name in page.text
    assert "{{ 7 * 7 }}" in page.text and "&lt;b&gt;" in page.text
    for section in ("samples", "error", "findings", "setup"):
        assert HOSTILE in page.sections[section], section
    assert "./events.out.tfevents.%3Cb%3E" in page.values("href")


def test_characters_that_html_cannot_contain_are_replaced(tmp_path: Path) -> None:
    page = report(make_run(tmp_path / "run", text="a\0b\x1b[31m\x85 \u202e naïve 東京 🙂\n\tend", error="half \ud83d of one"))
    assert "a\ufffdb\ufffd[31m\ufffd \u202e naïve 東京 🙂\n\tend" in page.sections["samples"]
    assert "half ? of one" in page.sections["error"]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", [("", 0)]),
        ("a", [("a", 0)]),
        ("a\n", [("a", 0)]),
        ("a\n\nb", [("a\n\nb", 0)]),
        ("a\n\n\nb", [("a", 0), ("", 2), ("b", 0)]),
        ("a\n \n\t\n\nb\n\nc\n\n\n", [("a", 0), ("", 3), ("b\n\nc", 0), ("", 2)]),
        ("\n\na", [("", 2), ("a", 0)]),
        ("\n\n", [("", 2)]),
    ],
)
def test_texts_are_split_at_runs_of_blank_lines(text: str, parts: list[tuple[str, int]]) -> None:
    assert split_blank_lines(text) == parts


def test_blank_lines_of_a_sample_take_one_line(tmp_path: Path) -> None:
    text = "Every effort" + "\n" * 200 + "moves\n\nyou"
    samples = report(make_run(tmp_path / "run", text=text)).sections["samples"]
    assert "Every effort(199 blank lines)moves\n\nyou" in samples
    assert "\n" * 4 not in samples


def test_the_page_of_a_long_run_stays_small(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", rows=make_metrics(100_000, val_every=200), config="x: |\n" + "  <&'\">\n" * 10_000)
    text = "".join(
        str(Sample(n, 200 * n, n, f'"{n}" & <' * 1_000, sampler=f"temperature {t}", new_tokens=9, run_length=1))
        for n in range(1, 501)
        for t in (0, 1)
    )
    (folder / "samples.txt").write_text(text, encoding="utf-8")
    metadata = METADATA | {
        "error": "<" * 10**6,
        "command": "&" * 10**6,
        "findings": [{"sign": "s", "text": '"' * 10_000}] * 1_000,
    }
    (folder / "run.json").write_text(json.dumps(metadata))
    page = report(folder)
    headings = re.findall(r"Epoch (\d+)", page.sections["samples"])
    assert headings == ["1", "72", "144", "215", "286", "357", "429", "500"]
    assert "16 of 1,000 samples; samples.txt has all of them" in page.sections["samples"].replace("1000", "1,000")
    assert "(cut; " in page.sections["samples"]


def test_other_folders_have_no_page(tmp_path: Path) -> None:
    make_run(tmp_path / "outputs" / "a")
    with pytest.raises(UserError, match="neither a run nor a sweep"):
        write_report(tmp_path / "outputs")
    make_sweep(tmp_path / "generate", {"sampler.top_k=25": {"texts": ["Every effort"]}})
    with pytest.raises(UserError, match=r"compared in summary\.csv"):
        write_report(tmp_path / "generate")


def test_a_page_that_cannot_be_written_is_only_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    (make_run(tmp_path / "run") / "report.html").mkdir()
    assert try_save_page(tmp_path / "run", save_run_page) is None
    assert "report.html cannot be written: Is a directory." in caplog.text
    assert try_save_page(make_sweep_folder(tmp_path), save_sweep_page) is not None

    def without_memory(_: Path) -> Path:
        raise MemoryError

    assert try_save_page(tmp_path, without_memory) is None
    assert "report.html cannot be written: MemoryError." in caplog.text
    with pytest.raises(ZeroDivisionError), report_at_end(tmp_path / "nowhere"):
        raise ZeroDivisionError
    assert "nowhere" not in caplog.text, "a folder that holds nothing of a run, as on a full disk, needs no page"


def test_the_page_is_written_after_an_interruption(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt), report_at_end(tmp_path / "run"):
        raise KeyboardInterrupt
    assert (tmp_path / "run" / "report.html").exists()


def test_an_interruption_before_the_training_is_quick_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for error in (KeyboardInterrupt(), SystemExit(128 + signal.SIGTERM)):
        with pytest.raises(type(error)), run_context(tmp_path, script="train.py", writes=True):
            raise error
    assert not (tmp_path / "report.html").exists()
    assert capsys.readouterr().err.count("Stopped by Ctrl-C before the training began.") == 1


def test_the_command_writes_the_page_of_each_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("outputs/a", "outputs/multirun/s/optimizer.lr=1,b=${x}"):
        make_run(tmp_path / folder)
    make_sweep_folder(tmp_path / "outputs" / "multirun" / "s")

    def run(*arguments: str) -> None:
        gpt_pretrain("report", *arguments)

    run("outputs/a", "outputs/multirun/s/optimizer.lr=1,b=${x}", "outputs/multirun/s")
    assert capsys.readouterr().out.splitlines() == [
        "outputs/a/report.html",
        "outputs/multirun/s/optimizer.lr=1,b=${x}/report.html",
        "outputs/multirun/s/report.html",
    ]
    run()
    assert capsys.readouterr().out.endswith("/report.html\n")
    with pytest.raises(SystemExit) as ended:
        run("outputs/b")
    assert ended.value.code == 2
    assert "outputs/b: no such run folder" in capsys.readouterr().err
    assert [field.name for field in dataclasses.fields(ReportSettings)] == ["folders"]
