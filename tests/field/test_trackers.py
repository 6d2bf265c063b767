"""Weights & Biases and MLflow: a resumed run goes on in the same run of the tracker."""

import os
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from gpt_pretrain.config.schema import MlflowSettings, WandbSettings
from gpt_pretrain.errors import UserError
from gpt_pretrain.runs.metadata import read_metadata
from gpt_pretrain.runs.tracking import mlflow_logger, wandb_logger
from tests.helpers.training_runs import Train


class FakeLogger:
    """Stands for Lightning's loggers of Weights & Biases and MLflow."""

    made: list["FakeLogger"]

    def __init__(self, *, run_id: str | None = None, **arguments: object) -> None:
        self.arguments = arguments
        self.run_id = run_id or f"new-{len(self.made)}"
        self.experiment = None
        self.made.append(self)


@pytest.fixture
def trackers(monkeypatch: pytest.MonkeyPatch) -> type[FakeLogger]:
    """Replace the packages wandb and mlflow, whose store knows the runs in `known`."""

    class NotFound(Exception):
        error_code = "RESOURCE_DOES_NOT_EXIST"

    class Client:
        def __init__(self, uri: str) -> None:
            pass

        def get_run(self, identifier: str) -> object:
            if identifier not in [logger.run_id for logger in FakeLogger.made]:
                raise NotFound
            return SimpleNamespace(info=SimpleNamespace(lifecycle_stage="active"))

    FakeLogger.made = []
    wandb = ModuleType("wandb")
    wandb.run = None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", ModuleType("mlflow"))
    monkeypatch.setitem(sys.modules, "mlflow.exceptions", SimpleNamespace(MlflowException=NotFound))
    monkeypatch.setitem(sys.modules, "mlflow.tracking", SimpleNamespace(MlflowClient=Client))
    monkeypatch.setattr("lightning.pytorch.loggers.WandbLogger", FakeLogger)
    monkeypatch.setattr("lightning.pytorch.loggers.MLFlowLogger", FakeLogger)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return FakeLogger


def test_weights_and_biases_continues_the_same_run(trackers: type[FakeLogger], tmp_path: Path) -> None:
    for _ in range(2):
        wandb_logger(WandbSettings(project="p"), run_dir=tmp_path)
    first, second = [logger.arguments for logger in trackers.made]
    assert first["id"] == second["id"] == read_metadata(tmp_path)["tracking"]["wandb"]
    assert second["resume"] == "allow"


def test_each_job_of_a_sweep_has_a_run_of_its_own(trackers: type[FakeLogger], tmp_path: Path) -> None:
    ended = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        wandb_logger(WandbSettings(project="p"), run_dir=tmp_path / name)
        sys.modules["wandb"].run = SimpleNamespace(id=trackers.made[-1].arguments["id"])  # type: ignore[attr-defined]
        sys.modules["wandb"].finish = lambda: ended.append(name)  # type: ignore[attr-defined]  # noqa: B023
    assert trackers.made[0].arguments["id"] != trackers.made[1].arguments["id"]
    assert ended == ["b"]


def test_mlflow_continues_the_same_run_in_a_database(trackers: type[FakeLogger], tmp_path: Path) -> None:
    pytest.importorskip("sqlalchemy")
    folder = tmp_path / "é 'q' #1 %20"
    folder.mkdir()
    ids = [mlflow_logger(MlflowSettings("x"), run_dir=folder).run_id for _ in range(2)]
    assert ids[0] == ids[1] == read_metadata(folder)["tracking"]["mlflow"]
    uri = str(trackers.made[0].arguments["tracking_uri"])
    from sqlalchemy.engine import make_url

    assert make_url(uri).database == str(folder / "mlflow.db")


def test_mlflow_starts_a_new_run_where_it_has_none(trackers: type[FakeLogger], tmp_path: Path) -> None:
    mlflow_logger(MlflowSettings("x", "http://a"), run_dir=tmp_path)
    trackers.made.clear()
    trackers.made.append(FakeLogger(run_id="of somebody else"))
    mlflow_logger(MlflowSettings("x", "http://b"), run_dir=tmp_path)
    assert read_metadata(tmp_path)["tracking"]["mlflow"] == trackers.made[-1].run_id


def test_mlflow_keeps_the_files_of_an_earlier_version(
    trackers: type[FakeLogger], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "")
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE")
    (tmp_path / "mlruns").mkdir()
    uri = (tmp_path / "mlruns").as_uri()
    with pytest.raises(UserError, match=re.escape(f"add: logger=mlflow logger.mlflow.tracking_uri={uri}. ")):
        mlflow_logger(MlflowSettings("x"), run_dir=tmp_path)
    mlflow_logger(MlflowSettings("x", uri), run_dir=tmp_path)
    assert trackers.made[0].arguments["tracking_uri"] == uri
    assert os.environ["MLFLOW_ALLOW_FILE_STORE"] == "true"


def test_a_tracker_that_cannot_be_reached_is_a_message(
    trackers: type[FakeLogger], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: object) -> None:
        raise ConnectionError("no route to host\nand more")

    monkeypatch.setattr("lightning.pytorch.loggers.WandbLogger", fail)
    with pytest.raises(UserError, match=r"logger=wandb cannot be used: no route to host\. Run wandb login"):
        wandb_logger(WandbSettings(project="p"), run_dir=tmp_path)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_the_packages_themselves_continue_a_run(train: Train, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    train("trainer.max_epochs=1", f"logger={name}")
    before = read_metadata(tmp_path / "run")["tracking"][name]
    train(f"resume='{tmp_path / 'run'}'", "trainer.max_epochs=2", f"logger={name}")
    assert read_metadata(tmp_path / "run")["tracking"][name] == before
    shutil.rmtree(tmp_path / "run")
