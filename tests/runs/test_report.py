"""report.html of runs and sweeps, whatever state they are in."""

import dataclasses
import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from gpt_pretrain.config.command_schema import ReportSettings
from gpt_pretrain.errors import UserError
from gpt_pretrain.runs.samples import Sample
from gpt_pretrain.sweeps.runner import tell
from gpt_pretrain.sweeps.write_report import keep_report, reported, write_report
from tests.helpers.command_line import gpt_pretrain
from tests.helpers.html_page import Page, check_self_contained
from tests.helpers.made_runs import CONFIG, RECORD, as_sweep, make_run, make_sweep, metrics

MOST_BYTES = 2_000_000
HOSTILE = """</div></pre><script>alert("1")</script><img src=x onerror='a()'>&lt;b&gt;"'{{ 7 * 7 }}<!--"""


def report(folder: Path) -> Page:
    file = write_report(folder)
    assert file == folder / "report.html"
    assert file.stat().st_size < MOST_BYTES
    page = Page(file)
    check_self_contained(page)
    return page


def test_a_run_s_page_tells_all_of_it(tmp_path: Path) -> None:
    page = report(make_run(tmp_path / "my-run"))
    parts = page.sections
    assert "my-run" in page.text and "finished" in page.text
    for shown in ("4.5", "perplexity 90.0", "epoch 2", "step 7", "1,200", "12 steps", "1 min 2 s", "9 of 50"):
        assert shown in parts["result"], shown
    assert "overfitting" in parts["findings"] and "The validation loss rises." in parts["findings"]
    assert [len(parts["curves"].strip()) > 0, page.tags.count("img")] == [True, 4]
    for shown in ("Epoch 1, step 3, 400 tokens seen", "Every effort 3", "9 of 50 new tokens in a row stand in the training text"):
        assert shown in parts["samples"], shown
    for shown in ("346", "1.5 GB"):
        assert shown in parts["throughput"], shown
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
        assert shown in parts["setup"], shown
    assert "checkpoints/last.ckpt" in parts["files"] and "2.0 kB" in parts["files"]
    assert "generate.py checkpoint=" in parts["next"] and "trainer.max_epochs=6" in parts["next"]
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
def test_any_file_may_be_missing_or_damaged(tmp_path: Path, missing: str, how: str) -> None:
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
def test_a_record_may_hold_anything(tmp_path: Path, value: Any) -> None:
    for field in RECORD:
        report(make_run(tmp_path / field, rows="", **{field: value}))
    report(make_run(tmp_path / "result-fields", rows="", result=dict.fromkeys(RECORD["result"], value)))
    report(make_run(tmp_path / "all", rows="", **dict.fromkeys(RECORD, value)))


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("running", "killed before"),
        ("failed", "failed"),
        ("interrupted", "interrupted"),
        ("pruned", "pruned"),
        ("odd", "unknown state"),
    ],
)
def test_states_and_errors_are_told(tmp_path: Path, state: str, words: str) -> None:
    page = report(make_run(tmp_path / "run", state=state, error="The disk\nis full."))
    assert words in page.text
    assert "The disk\nis full." in page.sections["error"]
    assert ("max_epochs=6" in page.sections["next"]) == (state == "pruned")  # else it is resumed to its own end


def test_a_signal_is_told_by_its_name(tmp_path: Path) -> None:
    page = report(make_run(tmp_path / "run", state="interrupted", error="stopped by SIGTERM"))
    assert "stopped by SIGTERM" in page.sections["error"]


def test_a_run_without_a_checkpoint_is_tried_again(tmp_path: Path) -> None:
    shutil.rmtree(make_run(tmp_path / "run", state="failed") / "checkpoints")
    assert "python train.py model=tiny" in report(tmp_path / "run").sections["next"]


def test_the_limit_that_ended_a_run_is_doubled(tmp_path: Path) -> None:
    make_run(tmp_path / "run", config=CONFIG.replace("max_steps: -1", "max_steps: 12"))
    assert "trainer.max_steps=24" in report(tmp_path / "run").sections["next"]


def test_text_stays_text(tmp_path: Path) -> None:
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


def test_signs_that_no_page_can_hold_are_replaced(tmp_path: Path) -> None:
    page = report(make_run(tmp_path / "run", text="a\0b\x1b[31m\x85 \u202e naïve 東京 🙂\n\tend", error="half \ud83d of one"))
    assert "a\ufffdb\ufffd[31m\ufffd \u202e naïve 東京 🙂\n\tend" in page.sections["samples"]
    assert "half ? of one" in page.sections["error"]


def test_a_long_run_s_page_stays_small(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", rows=metrics(100_000, val_every=200), config="x: |\n" + "  <&'\">\n" * 10_000)
    text = "".join(
        str(Sample(n, 200 * n, n, f'"{n}" & <' * 1_000, sampler=f"temperature {t}", new_tokens=9, run_length=1))
        for n in range(1, 501)
        for t in (0, 1)
    )
    (folder / "samples.txt").write_text(text, encoding="utf-8")
    record = RECORD | {"error": "<" * 10**6, "command": "&" * 10**6, "findings": [{"sign": "s", "text": '"' * 10_000}] * 1_000}
    (folder / "run.json").write_text(json.dumps(record))
    page = report(folder)
    heads = re.findall(r"Epoch (\d+)", page.sections["samples"])
    assert heads == ["1", "72", "144", "215", "286", "357", "429", "500"]
    assert "16 of 1,000 samples; samples.txt has all" in page.sections["samples"].replace("1000", "1,000")
    assert "cut here; " in page.sections["samples"]


def test_a_sweep_s_page_ranks_its_jobs(tmp_path: Path) -> None:
    result = {"best_step": 7, "train_loss": 2.0}
    jobs = {
        "optimizer.lr=1e-3,model.drop_rate=0.1": {"result": result | {"best_val_loss": 4.5}},
        "optimizer.lr=1e-4,model.drop_rate=0.1": {"result": result | {"best_val_loss": 4.25}},
        "optimizer.lr=9.0,model.drop_rate=0.2": {
            "result": None,
            "state": "failed",
            "error": "It has <diverged>.",
            "findings": [],
        },
    }
    folder = make_sweep(tmp_path / "sweep", jobs)
    best = "optimizer.lr=1e-4,model.drop_rate=0.1"
    write_report(folder / best)
    page = report(folder)
    parts = page.sections
    assert "python train.py model=tiny optimizer.lr=1e-4 model.drop_rate=0.1" in parts["best"]
    assert "4.2500" in parts["best"]
    assert parts["jobs"].index(best) < parts["jobs"].index("optimizer.lr=1e-3") < parts["jobs"].index("optimizer.lr=9.0")
    assert "It has <diverged>." in parts["failed"] and "optimizer.lr=9.0" in parts["failed"]
    assert parts["findings"].count("overfitting at step 8") == 2
    assert "1 failed" in page.text and "2 finished" in page.text
    assert page.tags.count("img") == 2
    linked = {(folder / unquote(link)) for link in page.values("href", "a")}
    assert linked >= {folder / best / "report.html", *(folder / name for name in jobs if name != best)}
    assert all(file.exists() for file in linked)
    assert "./optimizer.lr%3D1e-4%2Cmodel.drop_rate%3D0.1/report.html" in page.values("href")


def test_a_sweep_ends_with_its_page_and_its_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_sweep(tmp_path / "sweep", {"seed=1": {}, "seed=2": {"state": "interrupted", "result": None}})
    tell(folder, script="train.py")
    assert "report.html, summary.csv, summary.png" in capsys.readouterr().out
    assert (folder / "summary.png").read_bytes().startswith(b"\x89PNG")
    page = Page(folder / "report.html")
    assert "./summary.png" in page.values("href")
    assert f"python train.py sweep_resume={folder}" in page.sections["next"]


def test_a_sweep_s_page_says_how_it_was_started(tmp_path: Path) -> None:
    page = report(make_sweep(tmp_path / "sweep", {"seed=1": {}, "seed=2": {}}))
    assert "python train.py -m hydra/launcher=joblib model=tiny seed=1,2" in page.sections["setup"]
    assert "optimizer.lr=1e-3,1e-2" in page.sections["setup"]


def test_what_is_no_sweep_of_runs_has_no_page(tmp_path: Path) -> None:
    make_run(tmp_path / "outputs" / "a")
    with pytest.raises(UserError, match="neither a run nor a sweep"):
        write_report(tmp_path / "outputs")
    make_sweep(tmp_path / "generate", {"sampler.top_k=25": {"texts": ["Every effort"]}})
    with pytest.raises(UserError, match=r"summary\.csv compares"):
        write_report(tmp_path / "generate")


def test_a_sweep_in_which_all_jobs_failed_has_a_page(tmp_path: Path) -> None:
    page = report(make_sweep(tmp_path / "sweep", {"seed=1": {"state": "failed", "result": None}, "seed=2": {"overrides": None}}))
    assert "seed=1" in page.sections["jobs"]
    (tmp_path / "one" / "0").mkdir(parents=True)
    (tmp_path / "one" / "0" / "run.json").write_text("{")
    assert "No job has come to its end with a validation loss." in report(as_sweep(tmp_path / "one")).sections["best"]


def test_a_large_sweep_s_page_stays_small(tmp_path: Path) -> None:
    long = "<&>" * 1_000
    findings = [{"sign": "overfitting", "step": 8, "text": long}] * 9
    folder = tmp_path / "sweep"
    for n in range(200):
        overrides = [f"a{key}.<setting>={n * 0.37 + key}" for key in range(15)] + [f"start_context={'&' * 500}{n}"]
        fields = {"overrides": overrides, "result": {"best_val_loss": 4 + n / 100}, "findings": findings, "error": f"{n} {long}"}
        make_run(folder / f"optimizer.lr={n},{'&' * 80}", **fields)
    page = report(as_sweep(folder))
    assert page.sections["jobs"].count("finished") == 200
    assert "are not shown" not in page.sections["jobs"]


def test_a_page_that_cannot_be_written_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    (make_run(tmp_path / "run") / "report.html").mkdir()
    assert keep_report(tmp_path / "run") is None
    assert "report.html cannot be written: Is a directory." in caplog.text
    assert keep_report(as_sweep(tmp_path)) is not None
    with pytest.raises(ZeroDivisionError), reported(tmp_path / "nowhere"):
        raise ZeroDivisionError
    assert "neither a run nor a sweep" in caplog.text


def test_the_page_is_written_however_the_work_ends(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt), reported(tmp_path / "run"):
        raise KeyboardInterrupt
    assert (tmp_path / "run" / "report.html").exists()


def test_the_command_takes_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("outputs/a", "outputs/multirun/s/optimizer.lr=1,b=${x}"):
        make_run(tmp_path / folder)
    as_sweep(tmp_path / "outputs" / "multirun" / "s")

    def run(*words: str) -> None:
        gpt_pretrain("report", *words)

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
    assert "outputs/b: there is no such run directory" in capsys.readouterr().err
    assert [field.name for field in dataclasses.fields(ReportSettings)] == ["folders"]
