"""Loggers for Weights & Biases and MLflow. A resumed run continues the run that it has there.

The identifiers of these runs are in the run metadata.
"""

from __future__ import annotations

import importlib.util
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gpt_pretrain.config.schema import MlflowSettings, WandbSettings
from gpt_pretrain.errors import UserError
from gpt_pretrain.runs.metadata import metadata_section, read_metadata, update_metadata
from gpt_pretrain.system.urls import hide_secrets

if TYPE_CHECKING:
    from lightning.pytorch.loggers import MLFlowLogger, WandbLogger

TRACKING_FIELD = "tracking"  # of the run metadata: the identifier of the run in each program
IDENTIFIER = re.compile(r"[A-Za-z0-9_-]{1,64}")
MLFLOW_DATABASE, MLFLOW_FILES = "mlflow.db", "mlruns"
JOURNALS = ("-journal", "-wal", "-shm")  # endings of the files in which SQLite keeps unfinished changes
MLFLOW_DATABASE_PACKAGES = ("sqlalchemy", "alembic")  # the small package mlflow-skinny comes without them


def wandb_logger(settings: WandbSettings, *, run_dir: Path) -> WandbLogger:
    """Start or continue the run in Weights & Biases.

    Raises:
        UserError: If that is not possible.
    """
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    identifier = _identifier("wandb", run_dir) or secrets.token_hex(4)
    if wandb.run is not None and wandb.run.id != identifier:  # Lightning would send this run's metrics to an earlier job's run
        wandb.finish()
    with _explained("wandb", "Run wandb login, or keep the logs on this machine with logger.wandb.offline=true."):
        logger = WandbLogger(
            name=settings.name or run_dir.name,
            project=settings.project,
            offline=settings.offline,
            save_dir=run_dir,
            id=identifier,
            resume="allow",
        )
        _ = logger.experiment
    _remember("wandb", identifier, run_dir)
    return logger


def mlflow_logger(settings: MlflowSettings, *, run_dir: Path) -> MLFlowLogger:
    """Start or continue the run in MLflow.

    Raises:
        UserError: If that is not possible.
    """
    from lightning.pytorch.loggers import MLFlowLogger

    uri, artifacts = settings.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI"), None
    if not uri:
        uri, artifacts = _local_store(run_dir)
    with _explained("mlflow", "Check logger.mlflow.tracking_uri, or choose logger=csv."):
        logger = MLFlowLogger(
            experiment_name=settings.experiment_name,
            run_name=run_dir.name,
            tracking_uri=uri,
            artifact_location=artifacts,
            run_id=_existing_mlflow_run(uri, run_dir),
        )
        _remember("mlflow", str(logger.run_id), run_dir)
    return logger


def _local_store(run_dir: Path) -> tuple[str, str | None]:
    """Return the URI of the run's own store, and where it keeps further files: the database that new versions of MLflow use.

    Raises:
        UserError: If a package is missing.
    """
    folder = run_dir.resolve()
    _check_store(folder)
    if (folder / MLFLOW_FILES).is_dir() and not (folder / MLFLOW_DATABASE).exists():  # of version 0.1.0
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        return (folder / MLFLOW_FILES).as_uri(), None
    if missing := [name for name in MLFLOW_DATABASE_PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(
            f"logger=mlflow needs {' and '.join(missing)} for the database in the run's folder. Run: pip install mlflow, or name "
            "a server with logger.mlflow.tracking_uri=URI."
        )
    from sqlalchemy.engine import URL

    database = URL.create("sqlite", database=str(folder / MLFLOW_DATABASE))  # which quotes the path as this version reads it
    return database.render_as_string(), (folder / MLFLOW_FILES).as_uri()


def _check_store(folder: Path) -> None:
    """Check that opening a run's own store changes nothing outside of the run's folder.

    SQLite finishes what a journal beside a database asks for, which includes deleting the file that the journal names.

    Raises:
        UserError: If it might.
    """
    journals = [f"{MLFLOW_DATABASE}{suffix}" for suffix in JOURNALS if os.path.lexists(f"{folder / MLFLOW_DATABASE}{suffix}")]
    paths = [os.path.join(parent, name) for parent, *lists in os.walk(folder / MLFLOW_FILES) for part in lists for name in part]
    links = [path for path in paths if os.path.islink(path)]
    if found := [*journals, *links]:
        raise UserError(
            f"{folder}: {found[0]} stands beside the data of MLflow, and could make it write or delete other files. If this run "
            "was interrupted on this machine, open mlflow.db once with sqlite3. Otherwise remove that file, or use logger=csv."
        )


def _existing_mlflow_run(uri: str, run_dir: Path) -> str | None:
    """Return the identifier of this run in MLflow, if this store has such a run."""
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    if (identifier := _identifier("mlflow", run_dir)) is None:
        return None
    try:
        run = MlflowClient(uri).get_run(identifier)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return identifier if run.info.lifecycle_stage == "active" else None


def _identifier(program: str, run_dir: Path) -> str | None:
    found = metadata_section(read_metadata(run_dir), TRACKING_FIELD).get(program)
    return found if isinstance(found, str) and IDENTIFIER.fullmatch(found) else None


def _remember(program: str, identifier: str, run_dir: Path) -> None:
    known = metadata_section(read_metadata(run_dir), TRACKING_FIELD)
    if known.get(program) != identifier:
        update_metadata(run_dir, **{TRACKING_FIELD: known | {program: identifier}})


@contextmanager
def _explained(program: str, remedy: str) -> Iterator[None]:
    """Turn any error of these programs into a message.

    Raises:
        UserError: If the block fails.
    """
    try:
        yield
    except Exception as error:  # each has errors of its own, and those of its network libraries
        reason = next(iter(hide_secrets(str(error)).strip().splitlines()), type(error).__name__)
        raise UserError(f"logger={program} cannot be used: {reason[:300].rstrip('.')}. {remedy}") from error
