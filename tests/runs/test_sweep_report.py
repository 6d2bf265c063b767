"""The report pages of sweeps, whatever their state."""

from pathlib import Path
from urllib.parse import unquote

import pytest

from gpt_pretrain.commands.report import write_report
from gpt_pretrain.sweeps.runner import print_sweep_summary
from tests.helpers.html_page import Page, report
from tests.helpers.made_runs import make_run, make_sweep, make_sweep_folder


def test_the_page_of_a_sweep_ranks_its_jobs(tmp_path: Path) -> None:
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
    sections = page.sections
    assert "python train.py model=tiny optimizer.lr=1e-4 model.drop_rate=0.1" in sections["best"]
    assert "4.2500" in sections["best"]
    assert sections["jobs"].index(best) < sections["jobs"].index("optimizer.lr=1e-3") < sections["jobs"].index("optimizer.lr=9.0")
    assert "It has <diverged>." in sections["failed"] and "optimizer.lr=9.0" in sections["failed"]
    assert sections["findings"].count("overfitting at step 8") == 2
    assert "1 failed" in page.text and "2 finished" in page.text
    assert page.tags.count("img") == 2
    linked = {(folder / unquote(link)) for link in page.values("href", "a")}
    assert linked >= {folder / best / "report.html", *(folder / name for name in jobs if name != best)}
    assert all(file.exists() for file in linked)
    assert "./optimizer.lr%3D1e-4%2Cmodel.drop_rate%3D0.1/report.html" in page.values("href")


def test_a_sweep_ends_with_a_page_and_a_chart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_sweep(tmp_path / "sweep", {"seed=1": {}, "seed=2": {"state": "interrupted", "result": None}})
    print_sweep_summary(folder, script="train.py")
    assert "report.html, summary.csv, summary.png" in capsys.readouterr().out
    assert (folder / "summary.png").read_bytes().startswith(b"\x89PNG")
    page = Page(folder / "report.html")
    assert "./summary.png" in page.values("href")
    assert f"python train.py sweep_resume={folder}" in page.sections["next"]


def test_the_page_of_a_sweep_shows_how_it_was_started(tmp_path: Path) -> None:
    page = report(make_sweep(tmp_path / "sweep", {"seed=1": {}, "seed=2": {}}))
    assert "python train.py -m hydra/launcher=joblib model=tiny seed=1,2" in page.sections["setup"]
    assert "optimizer.lr=1e-3,1e-2" in page.sections["setup"]


def test_a_sweep_of_failed_jobs_has_a_page(tmp_path: Path) -> None:
    page = report(make_sweep(tmp_path / "sweep", {"seed=1": {"state": "failed", "result": None}, "seed=2": {"overrides": None}}))
    assert "seed=1" in page.sections["jobs"]
    (tmp_path / "one" / "0").mkdir(parents=True)
    (tmp_path / "one" / "0" / "run.json").write_text("{")
    assert "No job has finished with a validation loss." in report(make_sweep_folder(tmp_path / "one")).sections["best"]


def test_the_page_of_a_large_sweep_stays_small(tmp_path: Path) -> None:
    long = "<&>" * 1_000
    findings = [{"sign": "overfitting", "step": 8, "text": long}] * 9
    folder = tmp_path / "sweep"
    for n in range(200):
        overrides = [f"a{key}.<setting>={n * 0.37 + key}" for key in range(15)] + [f"start_context={'&' * 500}{n}"]
        fields = {"overrides": overrides, "result": {"best_val_loss": 4 + n / 100}, "findings": findings, "error": f"{n} {long}"}
        make_run(folder / f"optimizer.lr={n},{'&' * 80}", **fields)
    page = report(make_sweep_folder(folder))
    assert page.sections["jobs"].count("finished") == 200
    assert "are not shown" not in page.sections["jobs"]
