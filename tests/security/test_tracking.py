"""Folders from strangers in the hands of Weights & Biases and MLflow: no database, repository or run of theirs is used unasked."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from gpt_pretrain.config.schema import MlflowSettings, WandbSettings
from gpt_pretrain.errors import UserError
from gpt_pretrain.runs.folder import check_no_links
from gpt_pretrain.runs.metadata import read_metadata, update_metadata
from gpt_pretrain.runs.tracking import _remember, mlflow_logger, outlive_failures, wandb_logger
from gpt_pretrain.system.checkout import CHECKOUT
from gpt_pretrain.system.signing import signature


class RecordedLogger:
    """Stands for Lightning's loggers: notes what it is made with."""

    made: list[RecordedLogger]

    def __init__(self, *, run_id: str | None = None, **arguments: object) -> None:
        self.arguments = arguments
        self.run_id = run_id or f"made-here-{len(self.made)}"
        self.experiment = None
        self.made.append(self)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[RecordedLogger]:
    """Replace the packages wandb and mlflow, whose server knows every run; return the loggers that are made."""
    run = SimpleNamespace(info=SimpleNamespace(lifecycle_stage="active"))
    RecordedLogger.made = []
    wandb = ModuleType("wandb")
    wandb.run = None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", ModuleType("mlflow"))
    monkeypatch.setitem(sys.modules, "mlflow.exceptions", SimpleNamespace(MlflowException=RuntimeError))
    client = SimpleNamespace(get_run=lambda identifier: run)
    monkeypatch.setitem(sys.modules, "mlflow.tracking", SimpleNamespace(MlflowClient=lambda uri: client))
    monkeypatch.setattr("lightning.pytorch.loggers.WandbLogger", RecordedLogger)
    monkeypatch.setattr("lightning.pytorch.loggers.MLFlowLogger", RecordedLogger)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return RecordedLogger.made


@pytest.mark.parametrize("signatures", [{}, {"wandb": "00" * 32, "mlflow": "zz"}, ["wandb"]], ids=["none", "false", "no mapping"])
def test_a_stranger_names_no_run_in_the_user_s_account(made: list[RecordedLogger], tmp_path: Path, signatures: object) -> None:
    update_metadata(tmp_path, tracking={"wandb": "mine", "mlflow": "mine"}, tracking_signatures=signatures)
    for _ in range(2):
        wandb_logger(WandbSettings(project="p"), run_dir=tmp_path)
        mlflow_logger(MlflowSettings("x", "http://server"), run_dir=tmp_path)
    assert "mine" not in [made[0].arguments["id"], made[1].run_id]
    assert (made[0].arguments["id"], made[1].run_id) == (made[2].arguments["id"], made[3].run_id), "continued once it is signed"


@pytest.mark.parametrize("identifier", ["a" * 1_000_000, "../../x"], ids=["long", "path"])
def test_a_server_writes_no_odd_identifier_to_the_metadata(made: list[RecordedLogger], tmp_path: Path, identifier: str) -> None:
    made_here = mlflow_logger(MlflowSettings("x", "http://server"), run_dir=tmp_path)
    known = read_metadata(tmp_path)["tracking"]
    _remember("mlflow", identifier, tmp_path)
    assert read_metadata(tmp_path)["tracking"] == known == {"mlflow": made_here.run_id}


def test_a_signature_for_one_program_is_none_for_another(made: list[RecordedLogger], tmp_path: Path) -> None:
    wandb_logger(WandbSettings(project="p"), run_dir=tmp_path)
    metadata = read_metadata(tmp_path)
    known, signed = metadata["tracking"]["wandb"], metadata["tracking_signatures"]["wandb"]
    update_metadata(tmp_path, tracking={"mlflow": known}, tracking_signatures={"mlflow": signed})
    mlflow_logger(MlflowSettings("x", "http://server"), run_dir=tmp_path)
    assert made[-1].run_id != known


def test_a_signature_for_one_run_is_none_for_another(made: list[RecordedLogger], tmp_path: Path) -> None:
    for name in ("mine", "theirs"):
        (tmp_path / name).mkdir()
    wandb_logger(WandbSettings(project="p"), run_dir=tmp_path / "mine")
    known = read_metadata(tmp_path / "mine")["tracking"]["wandb"]
    shutil.copytree(tmp_path / "mine", tmp_path / "theirs", dirs_exist_ok=True)
    (tmp_path / "mine").rename(tmp_path / "moved")
    for name in ("moved", "theirs"):
        wandb_logger(WandbSettings(project="p"), run_dir=tmp_path / name)
    assert made[-2].arguments["id"] == known
    assert made[-1].arguments["id"] != known


def test_a_signature_ends_with_its_folder(made: list[RecordedLogger], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, copy = tmp_path / "run", tmp_path / "copy"
    run.mkdir()
    number = run.stat().st_ino
    wandb_logger(WandbSettings(project="p"), run_dir=run)
    known = read_metadata(run)["tracking"]["wandb"]
    shutil.copytree(run, copy)
    shutil.rmtree(run)
    time.sleep(0.05)  # more than a tick of the clock of the file system
    shutil.copytree(copy, run)
    status = Path.stat

    def same_number(path: Path, **options: bool) -> object:  # as file systems do that give numbers again
        return SimpleNamespace(st_ino=number) if path == run and not options else status(path, **options)

    monkeypatch.setattr(Path, "stat", same_number)
    wandb_logger(WandbSettings(project="p"), run_dir=run)
    assert made[-1].arguments["id"] != known


def test_a_run_of_an_earlier_version_continues_without_its_database(made: list[RecordedLogger], tmp_path: Path) -> None:
    pytest.importorskip("sqlalchemy")
    known, content = {"wandb": "mine", "mlflow_store": "mlflow.db"}, str(tmp_path.stat().st_ino)
    signed = {
        name: signature(f"{value} {content}".encode(), purpose=f"identifier of a run in {name}").hex()
        for name, value in known.items()
    }
    update_metadata(tmp_path, tracking=known, tracking_signatures=signed)
    sqlite3.connect(tmp_path / "mlflow.db").close()
    for _ in range(2):
        wandb_logger(WandbSettings(project="p"), run_dir=tmp_path)
    assert [one.arguments["id"] for one in made] == ["mine", "mine"]
    with pytest.raises(UserError, match="is not opened"):
        mlflow_logger(MlflowSettings("x"), run_dir=tmp_path)


@pytest.mark.parametrize("store", ["mlflow.db", "mlruns"])
def test_a_store_of_a_stranger_is_not_opened(made: list[RecordedLogger], tmp_path: Path, store: str) -> None:
    pytest.importorskip("sqlalchemy")
    if store == "mlruns":
        (tmp_path / store).mkdir()
    else:
        sqlite3.connect(tmp_path / store).close()
    update_metadata(tmp_path, tracking={"mlflow_store": store, "mlflow": "theirs"})
    with pytest.raises(UserError, match=rf"{re.escape(store)} is not opened.*add: logger=mlflow logger\.mlflow\.tracking_uri="):
        mlflow_logger(MlflowSettings("x"), run_dir=tmp_path)
    # Nor after this user has logged that run to a server.
    mlflow_logger(MlflowSettings("x", "http://server"), run_dir=tmp_path)
    with pytest.raises(UserError, match="is not opened"):
        mlflow_logger(MlflowSettings("x"), run_dir=tmp_path)
    assert len(made) == 1


def test_the_user_s_own_store_is_opened_again(made: list[RecordedLogger], tmp_path: Path) -> None:
    pytest.importorskip("sqlalchemy")
    mlflow_logger(MlflowSettings("x"), run_dir=tmp_path)
    sqlite3.connect(tmp_path / "mlflow.db").close()
    (tmp_path / "mlruns").mkdir()
    mlflow_logger(MlflowSettings("x"), run_dir=tmp_path)
    assert made[0].run_id == made[1].run_id


@pytest.mark.parametrize("ending", ["-journal", "-wal", "-shm"])
def test_a_database_with_unfinished_changes_is_not_opened(made: list[RecordedLogger], tmp_path: Path, ending: str) -> None:
    pytest.importorskip("sqlalchemy")
    mlflow_logger(MlflowSettings("x"), run_dir=tmp_path)
    (tmp_path / f"mlflow.db{ending}").write_bytes(b"x")
    with pytest.raises(UserError, match=f"mlflow.db{ending} stands beside the data of MLflow"):
        mlflow_logger(MlflowSettings("x"), run_dir=tmp_path)


def test_a_link_within_the_files_of_mlflow_is_not_followed(made: list[RecordedLogger], tmp_path: Path) -> None:
    pytest.importorskip("sqlalchemy")
    mlflow_logger(MlflowSettings("x"), run_dir=tmp_path)
    (tmp_path / "mlruns" / "1" / "metrics").mkdir(parents=True)
    (tmp_path / "mlruns" / "1" / "metrics" / "loss").symlink_to(tmp_path / "thesis.tex")
    with pytest.raises(UserError, match=r"loss stands beside the data of MLflow"):
        mlflow_logger(MlflowSettings("x"), run_dir=tmp_path)


def test_wandb_is_told_to_run_no_git(made: list[RecordedLogger], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_DISABLE_GIT", raising=False)
    wandb_logger(WandbSettings(project="p"), run_dir=tmp_path)
    assert made[0].arguments["settings"] == {"disable_git": True}
    assert os.environ["WANDB_DISABLE_GIT"] == "true"


@pytest.mark.parametrize("where", [".", "run"])
def test_wandb_runs_no_git_in_a_stranger_s_repository(tmp_path: Path, where: str) -> None:
    """The package itself, with a program in place of git; it is tested where the package is installed."""
    pytest.importorskip("wandb")
    run, recorder = tmp_path / "run", tmp_path / "bin" / "git"
    run.mkdir()
    recorder.parent.mkdir()
    recorder.write_text(f'#!/bin/sh\necho "$PWD $*" >> {tmp_path}/calls\nexec {shutil.which("git") or "false"} "$@"\n')
    recorder.chmod(0o755)
    subprocess.run(["git", "init", "-q", str(tmp_path / where)], check=True)
    with (tmp_path / where / ".git" / "config").open("a") as stream:
        stream.write(f'[core]\n\tfsmonitor = "touch {tmp_path}/ran; false"\n\tpager = touch {tmp_path}/ran\n')
    code = (
        "import sys; from pathlib import Path; from gpt_pretrain.config.schema import WandbSettings\n"
        "from gpt_pretrain.runs.tracking import wandb_logger\n"
        "wandb_logger(WandbSettings(project='p', offline=True), run_dir=Path(sys.argv[1])).experiment.finish()"
    )
    environment = os.environ | {"PATH": f"{recorder.parent}:{os.environ['PATH']}", "PYTHONPATH": str(CHECKOUT)}
    subprocess.run([sys.executable, "-c", code, str(run)], check=True, env=environment, cwd=run.parent, timeout=100)
    assert list(run.glob("wandb/offline-run-*")), "the run was logged"
    assert not (tmp_path / "calls").exists() and not (tmp_path / "ran").exists()


def test_the_other_folder_of_wandb_is_no_link_either(tmp_path: Path) -> None:
    (tmp_path / ".wandb").symlink_to(tmp_path.parent)
    with pytest.raises(UserError, match=r"\.wandb is a link"):
        check_no_links(tmp_path)


@pytest.mark.parametrize("place", ["wandb/settings", ".wandb/settings"])
@pytest.mark.parametrize(
    "line",
    ["base_url = https://example.org", "api_key = x", "code_dir = /home", "[", "\xff"],
    ids=["host", "key", "code", "cut", "bytes"],
)
def test_a_folder_does_not_say_where_wandb_sends_the_run(
    made: list[RecordedLogger], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).write_bytes(f"[default]\nproject = p\n{line}\n".encode("latin-1"))
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match=rf"{place} sets .*, with which W&B could send your key"):
        wandb_logger(WandbSettings(project="p"), run_dir=Path("run"))
    assert made == []


def test_what_wandb_itself_writes_into_a_folder_is_read(
    made: list[RecordedLogger], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "settings").write_text("[default]\nentity = me\nproject = p\nbase_url = https://api.wandb.ai\n")
    wandb_logger(WandbSettings(project="p"), run_dir=tmp_path)
    assert len(made) == 1


def test_a_run_outlives_a_server_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    sent = list[object]()

    def send(metrics: object, step: int | None = None) -> None:
        sent.append(metrics)
        if step == 2:
            raise RuntimeError("INTERNAL_ERROR: \x1b]0;PWNED\x07 http://me:secret@host\nsecond line")

    logger = outlive_failures(SimpleNamespace(log_metrics=send, finalize=sent.append))  # type: ignore[arg-type]
    for step in range(1, 5):
        logger.log_metrics({"step": step}, step=step)
    logger.finalize("success")
    assert sent == [{"step": 1}, {"step": 2}]
    (message,) = caplog.messages
    assert "http://***@host" in message and "second line" not in message
    assert message.startswith("MLflow refuses the metrics (INTERNAL_ERROR")
