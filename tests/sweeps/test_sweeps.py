"""Sweeps from the command line: ranking, resuming, parallel jobs and searches."""

import json
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from gpt_pretrain.runs.metadata import read_metadata, update_metadata
from gpt_pretrain.sweeps.folder import job_folder_name
from gpt_pretrain.sweeps.results import read_sweep
from gpt_pretrain.sweeps.runner import print_sweep_summary
from tests.conftest import TINY_RUN
from tests.helpers.fork_server import ForkServer
from tests.helpers.sweep_files import only_sweep, read_summary

Script = Callable[..., subprocess.CompletedProcess[str]]
SHORT = [*TINY_RUN, "trainer.max_epochs=1", "callbacks=minimal"]


def test_a_sweep_ranks_its_runs_and_continues_after_a_failure(script: Script, tmp_path: Path) -> None:
    done = script("train.py", "-m", *SHORT, "optimizer.lr=1e-4,1e-9,1e-2", "scheduler.min_lr=1e-6", "seed=1,2")
    assert done.returncode == 1
    problem = "scheduler.min_lr=1e-06: must be at most optimizer.lr=1e-09"
    assert done.stderr.count(problem) == 2
    assert "Traceback" not in done.stderr + done.stdout
    sweep = only_sweep(tmp_path)
    rows = read_summary(sweep)
    assert [row["state"] for row in rows] == ["finished"] * 4 + ["failed"] * 2
    losses = [float(row["best_val_loss"]) for row in rows[:4]]
    assert losses == sorted(losses)
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4", "", ""]
    assert {row["optimizer.lr"] for row in rows[:2]} == {"0.01"}, "the higher learning rate is better in three steps"
    shown = done.stdout[done.stdout.index("\nrank ") :]
    assert [line.split()[0] for line in shown.splitlines()[2:8]] == ["1", "2", "3", "4", "-", "-"]
    assert f"optimizer.lr=1e-09,seed=1 failed: {problem}" in shown
    assert f"2 jobs did not finish. To resume:\n  python train.py sweep_resume=outputs/multirun/{sweep.name}" in shown

    (command,) = re.findall(r"To repeat it:\n  python (.*)", shown)
    again = script(*shlex.split(command))
    assert again.returncode == 0, again.stderr
    (run,) = [path for path in (tmp_path / "outputs").iterdir() if path.name != "multirun"]
    assert read_metadata(run)["result"]["best_val_loss"] == losses[0]


def test_a_job_that_exits_does_not_end_the_sweep(script: Script, tmp_path: Path) -> None:
    exits = "+callbacks.custom.odd={_target_: lightning.pytorch.callbacks.Timer},{_target_: sys.exit, _args_: [3]}"
    done = script("train.py", "-m", *SHORT, "logger=none", exits)
    assert done.returncode == 1
    (finished, failed) = read_sweep(only_sweep(tmp_path))
    assert (finished.state, failed.state) == ("finished", "failed")
    assert failed.metadata["error"] == "ended with exit code 3"
    assert "1 job did not finish" in done.stdout


@pytest.mark.slow
def test_duplicate_jobs_are_run_once(script: Script, tmp_path: Path) -> None:
    done = script("train.py", "-m", *SHORT, "logger=none", "seed=1,1,2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert done.returncode == 0, done.stderr
    assert "Skipped 1 of 3 jobs: duplicates." in done.stdout
    assert [row["seed"] for row in read_summary(only_sweep(tmp_path))] in (["1", "2"], ["2", "1"])


def test_a_resumed_sweep_may_get_other_values_and_a_later_end(script: Script, tmp_path: Path) -> None:
    rates = ["optimizer.lr=1e-3,1e-9", "scheduler.min_lr=1e-6"]  # the second one is refused in its jobs
    done = script("train.py", "-m", *SHORT, "logger=none", *rates, "seed=1,2", "hydra.sweep.dir=s")
    assert done.returncode == 1
    more = script("train.py", "sweep_resume=s", "optimizer.lr=1e-3", "trainer.max_epochs=2")
    assert more.returncode == 0, more.stderr
    assert "Traceback" not in more.stderr
    finished = sorted(row["folder"] for row in read_summary(tmp_path / "s") if row["state"] == "finished")
    assert finished == ["optimizer.lr=0.001,seed=1", "optimizer.lr=0.001,seed=2"]
    assert {job.result["epochs"] for job in read_sweep(tmp_path / "s") if job.state == "finished"} == {2.0}, (
        "the finished jobs are resumed"
    )
    assert "did not finish" not in more.stdout, "jobs with removed values are no longer requested"
    left = "optimizer.lr=1e-09,seed=1, optimizer.lr=1e-09,seed=2"
    assert f"No longer asked for, but still in the table: {left}. To change this, delete their folders." in more.stdout


def test_only_jobs_that_have_ended_may_be_deleted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, state in {"a\nerror: forged": "failed", "b": "running", "c": "failed", "d": "finished"}.items():
        (tmp_path / name).mkdir()
        update_metadata(tmp_path / name, state=state)
    print_sweep_summary(tmp_path, script="train.py", requested=["c"])
    said = "No longer asked for, but still in the table: a\\nerror: forged. To change this, delete its folder.\n"
    assert said in capsys.readouterr().out


def signal_when(
    server: ForkServer, ready: Callable[[], bool], signum: int, overrides: list[str], folder: Path
) -> tuple[int | None, str]:
    """Start a sweep, send it a signal when it is ready, and return its exit code and its output."""
    process = server.start(["train.py", "-m", *overrides], cwd=folder)
    deadline = time.monotonic() + 100
    while not ready() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    assert ready()
    process.send_signal(signum)
    out, _ = process.communicate(timeout=100)
    return process.returncode, out


def test_ctrl_c_in_a_sweep_prints_the_command_to_resume_it(
    script: Script, fork_server: ForkServer, tmp_path: Path, cache_dir: Path
) -> None:
    overrides = [
        *TINY_RUN,
        "trainer.max_epochs=3000",
        "logger=none",
        "callbacks=minimal",
        "seed=1,2",
        f"data.cache_dir='{cache_dir}'",
    ]
    begun = tmp_path / "s" / "seed=1" / "checkpoints" / "last.ckpt"
    code, out = signal_when(fork_server, begun.exists, signal.SIGINT, [*overrides, "hydra.sweep.dir=s"], tmp_path)
    assert code == 130
    assert "seed=1 interrupted: stopped by Ctrl-C" in out
    assert "2 jobs did not finish. To resume:\n  python train.py sweep_resume=s" in out
    assert "To repeat it" not in out, "an unfinished run is no result"


@pytest.mark.slow
def test_a_killed_search_resumes_its_trial(script: Script, fork_server: ForkServer, tmp_path: Path, cache_dir: Path) -> None:
    pytest.importorskip("optuna")
    overrides = [*TINY_RUN, "trainer.max_epochs=40", "callbacks=minimal", "logger=none", f"data.cache_dir='{cache_dir}'"]
    search = ["hparams_search=optuna", "hydra.sweeper.n_trials=3", "hydra.sweep.dir=s"]

    def second() -> bool:
        return len(list((tmp_path / "s").glob("*/checkpoints/last.ckpt"))) == 2

    signal_when(fork_server, second, signal.SIGKILL, [*overrides, *search], tmp_path)
    (lost,) = [job.folder.name for job in read_sweep(tmp_path / "s") if job.state == "running"]
    done = script("train.py", "sweep_resume=s")
    assert done.returncode == 0, done.stderr
    jobs = read_sweep(tmp_path / "s")
    assert len(jobs) == 3
    assert {job.state for job in jobs} <= {"finished", "pruned"}
    assert lost in {job.folder.name for job in jobs}
    assert done.stdout.count("Before training") == 1, "only the third trial starts from scratch"


@pytest.mark.slow
def test_a_killed_sweep_is_resumed_at_the_job_that_was_running(
    script: Script, fork_server: ForkServer, tmp_path: Path, cache_dir: Path
) -> None:
    overrides = [
        *TINY_RUN,
        "trainer.max_epochs=40",
        "callbacks=minimal",
        "logger=none",
        "seed=1,2,3",
        f"data.cache_dir='{cache_dir}'",
    ]
    sweep = tmp_path / "outputs" / "multirun" / "killed"
    second = sweep / "seed=2" / "checkpoints" / "last.ckpt"
    signal_when(fork_server, second.exists, signal.SIGKILL, [*overrides, f"hydra.sweep.dir='{sweep}'"], tmp_path)
    states = {job.folder.name: job.state for job in read_sweep(sweep)}
    assert states == {"seed=1": "finished", "seed=2": "running"}
    before = (sweep / "seed=1" / "checkpoints" / "last.ckpt").stat().st_mtime_ns

    done = script("train.py", f"sweep_resume={sweep}")
    assert done.returncode == 0, done.stderr
    assert "Skipped 1 of 3 jobs: already complete." in done.stdout
    assert (sweep / "seed=1" / "checkpoints" / "last.ckpt").stat().st_mtime_ns == before
    first_lines = re.findall(r"Before training", done.stdout)
    assert len(first_lines) == 1, "the second run is resumed, the third starts"
    assert [row["state"] for row in read_summary(sweep)] == ["finished"] * 3

    whole = script("train.py", "-m", *overrides, f"hydra.sweep.dir={tmp_path / 'whole'}")
    assert whole.returncode == 0, whole.stderr
    losses = [{row["folder"]: row["best_val_loss"] for row in read_summary(folder)} for folder in (sweep, tmp_path / "whole")]
    assert losses[0] == losses[1]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], ["hydra/launcher=submitit_local"]])
def test_parallel_runs_have_the_same_results(script: Script, tmp_path: Path, launcher: list[str]) -> None:
    settings = [*SHORT, "scheduler.min_lr=1e-6", "optimizer.lr=1e-3,1e-9,1e-2", "logger=none"]
    done = script("train.py", "-m", *settings, *launcher)
    assert done.returncode == 1, done.stderr
    rows = read_summary(only_sweep(tmp_path))
    assert [row["state"] for row in rows] == ["finished", "finished", "failed"]
    alone = script("train.py", *settings[:-2], "optimizer.lr=1e-2", "logger=none", "hydra.run.dir=outputs/alone")
    assert alone.returncode == 0, alone.stderr
    assert float(rows[0]["best_val_loss"]) == read_metadata(tmp_path / "outputs" / "alone")["result"]["best_val_loss"]


@pytest.mark.slow
def test_a_parallel_run_may_use_data_workers(script: Script, tmp_path: Path) -> None:
    overrides = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "data.num_workers=1", "seed=1,2"]
    done = script("train.py", "-m", *SHORT, *overrides)
    assert done.returncode == 0, done.stderr
    assert [row["state"] for row in read_summary(only_sweep(tmp_path))] == ["finished"] * 2


@pytest.mark.slow
def test_memory_is_released_between_runs(script: Script, tmp_path: Path) -> None:
    # The state of one run takes 300 MB.
    overrides = [*SHORT, "logger=none", "model.emb_dim=512", "model.n_layers=6", "trainer.limit_train_batches=2"]
    done = script("train.py", "-m", *overrides, "seed=1,2,3")
    assert done.returncode == 0, done.stderr
    jobs = sorted(read_sweep(only_sweep(tmp_path)), key=lambda job: job.folder.name)
    peaks = [job.result["peak_memory_bytes"] for job in jobs]
    assert max(peaks[1:]) < peaks[0] + 100e6, peaks


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["-m", "optimizer.lr=interval(1e-4,1e-3)"], "a grid needs a list of values"),
        (["-m", "seed=range(5,1)"], "seed=range(5,1): this range has no values, so the sweep would have no job."),
        (["-m", "hparams_search=random", "hydra.sweeper.params=null"], "A search needs a setting to vary"),
        (["-m", "hparams_search=random", "hydra.sweeper.sampler=cmaes"], "must be one of tpe, random"),
        (["-m", "hparams_search=random", "hydra.sweeper.n_trials=many"], "hydra.sweeper.n_trials=many: must be a whole number"),
        (["-m", "hparams_search=random", "hydra.sweeper.seed=abc"], "hydra.sweeper.seed=abc: must be a whole number from 0"),
        (["-m", "hparams_search=random", "hydra.sweeper.seed=-5"], "hydra.sweeper.seed=-5: must be a whole number from 0"),
        (["-m", "hparams_search=random", "hydra.sweeper.sampler=[tpe]"], "must be one of tpe, random"),
        (["hparams_search=optuna"], "hparams_search=optuna needs a sweep. Add -m"),
        (["sweep_resume=nowhere"], "this folder holds no sweep"),
        (["sweep_resume=latest"], "there is no sweep below"),
    ],
)
def test_mistakes_are_reported_without_a_traceback(script: Script, overrides: list[str], message: str) -> None:
    done = script("train.py", *overrides)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_the_hparams_table_has_the_swept_settings_and_the_results(script: Script, tmp_path: Path) -> None:
    done = script("train.py", "-m", *TINY_RUN, "optimizer.lr=1e-3,1e-2", "sampler.top_k=null,25")
    assert done.returncode == 0, done.stderr
    jobs = read_sweep(only_sweep(tmp_path))
    assert len(jobs) == 4
    for job in jobs:
        events = EventAccumulator(str(job.folder)).Reload()
        stored = events.PluginTagToContent("hparams")
        columns = plugin_data_pb2.HParamsPluginData.FromString(stored["_hparams_/experiment"]).experiment
        assert [info.name for info in columns.hparam_infos] == ["optimizer.lr", "sampler.top_k"]
        assert {info.name.tag for info in columns.metric_infos} >= {"val/best_loss", "val/loss", "eval/train_loss"}
        session = plugin_data_pb2.HParamsPluginData.FromString(stored["_hparams_/session_start_info"]).session_start_info
        assert session.hparams["optimizer.lr"].number_value == float(job.settings["optimizer.lr"])
        top_k = session.hparams["sampler.top_k"]
        assert (top_k.string_value or f"{top_k.number_value:g}") == job.settings["sampler.top_k"]
        assert events.Scalars("val/best_loss")[-1].value == pytest.approx(job.val_loss, rel=1e-6)
        assert "_hparams_/session_end_info" in stored


def test_job_folders_are_named_after_their_overrides() -> None:
    assert job_folder_name(["sampler.top_k=25", "optimizer.lr=0.001"]) == "optimizer.lr=0.001,sampler.top_k=25"
    strange, other = job_folder_name(["data.path=a/b c.txt"]), job_folder_name(["data.path=a_b_c.txt"])
    assert re.fullmatch(r"data\.path=a_b_c\.txt-[0-9a-f]{8}", strange)
    assert strange != other
    assert len(job_folder_name(["start_context=" + "x" * 500])) < 150
    assert len(job_folder_name(["start_context=" + "\u8a9e" * 500]).encode()) < 150, "file systems limit bytes, not characters"
    assert job_folder_name([]) == "job"


def test_damaged_run_metadata_count_as_missing(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "run.json").write_text('{"state": "fini')
    assert read_metadata(tmp_path / "a") == {}
    (job,) = read_sweep(tmp_path)
    assert job.state == "unknown"
    update_metadata(tmp_path / "a", result={"best_val_loss": 2.5, "note": "na\u00efve"})
    assert json.loads((tmp_path / "a" / "run.json").read_text(encoding="utf-8"))["result"]["best_val_loss"] == 2.5


@pytest.mark.parametrize("count", [999, 1000])
def test_the_summary_says_where_all_texts_are(tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        update_metadata(tmp_path / name, state="finished", texts=["text"] * (count if name == "a" else 1), measures={})
    print_sweep_summary(tmp_path, script="generate.py")
    shown = capsys.readouterr().out
    assert ("The complete texts are in " in shown) == (count < 1000)
    assert ("summary.csv has the first 1,000 texts of each job. All of them are in samples.txt" in shown) == (count == 1000)


def test_generated_texts_are_compared_in_one_table(script: Script, train: Callable[..., Any], tmp_path: Path) -> None:
    train("trainer.max_epochs=20", "optimizer.lr=3e-3", "logger=none", run_dir=tmp_path / "outputs" / "a")
    done = script("generate.py", "-m", "sampler.temperature=0,0.7,1.2", "sampler.top_k=null,25")
    assert done.returncode == 0, done.stderr
    rows = read_summary(next(tmp_path.glob("outputs/multirun/*-generate")))
    assert [(row["sampler.temperature"], row["sampler.top_k"]) for row in rows] == [
        (temperature, top_k) for temperature in ("0", "0.7", "1.2") for top_k in ("null", "25")
    ]
    assert all(row["text"].startswith("Every effort moves you") for row in rows)
    assert all(re.fullmatch(r"\d+ of 50", row["memorised"]) for row in rows), "the sample story is the training text"
    assert rows[0]["text"] == rows[1]["text"], "greedy decoding ignores top_k"
    shown = done.stdout[done.stdout.index("\nsampler.temperature") :].splitlines()
    assert len(shown) >= 8
    assert "memorized" in shown[1]
    assert script("train.py", "sweep_resume=latest").returncode == 2, "the sweep belongs to generate.py"
    assert float(rows[0]["mean log p"]) > float(rows[4]["mean log p"]), "greedy texts are more probable than sampled ones"
