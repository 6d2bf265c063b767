"""Reports and comparisons of runs from strangers: files are shown as text, and damaged ones are gaps."""

from __future__ import annotations

import csv
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpt_pretrain.commands.report import report_command, write_report
from gpt_pretrain.runs.next_commands import repeat_command
from gpt_pretrain.runs.reader import read_run
from gpt_pretrain.sweeps.results import Job, best_command, read_sweep, write_ranking
from tests.conftest import ROOT
from tests.helpers.hostile_files import hostile_run, hostile_sweep
from tests.helpers.shown_runs import compared, made, put_link

Script = Callable[..., subprocess.CompletedProcess[str]]


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
    "dates and bytes as names": {"config_yaml": "a: [{2020-01-01: x}, {!!binary aGk=: y}]\n"},
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
    overrides += ["callbacks.grid={top_ks: [1]}", "trainer.max_tokens=null", "experiment=quick"]
    assert repeat_command(overrides) == shlex.join(["python", "train.py", *overrides])


def test_a_suggested_command_sends_no_metrics_to_a_server_of_the_stranger() -> None:
    overrides = [
        "logger=mlflow",
        "logger.mlflow.tracking_uri=https://evil.example",
        "logger.mlflow={tracking_uri: 'https://b.c'}",
    ]
    assert repeat_command(overrides) == "python train.py logger=mlflow"


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


def test_settings_of_charts_in_the_working_directory_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\n")
    code = "import gpt_pretrain.runs.charts.drawing, matplotlib; print(matplotlib.rcParams['text.usetex'])"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
