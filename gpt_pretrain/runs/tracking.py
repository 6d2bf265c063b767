"""Loggers for Weights & Biases and MLflow. A resumed run continues its run there.

The identifiers of these runs are in the run metadata. They count only with this user's signature. Otherwise somebody else's run
folder could add to any run in the user's account, or bring its own database.
"""

from __future__ import annotations

import configparser
import importlib.util
import logging
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt_pretrain.config.override_messages import UNSIGNED, describe_override
from gpt_pretrain.config.schema import MlflowSettings, WandbSettings
from gpt_pretrain.errors import UserError
from gpt_pretrain.runs.metadata import METADATA_FILE, metadata_section, read_metadata, update_metadata
from gpt_pretrain.system.formatting import short_message
from gpt_pretrain.system.reading import read_bytes
from gpt_pretrain.system.signing import has_signature, signature
from gpt_pretrain.system.terminal import escape_line

if TYPE_CHECKING:
    from lightning.pytorch.loggers import MLFlowLogger, WandbLogger

TRACKING_FIELD = "tracking"  # field of the run metadata: the identifier of the run in each program
SIGNATURES_FIELD = "tracking_signatures"  # field of the run metadata: this user's signatures of the identifiers
MLFLOW_STORE = "mlflow_store"  # key in both: the store that this program has made in the run's folder for this user
MARK_FILE = ".tracking"  # an empty file that dates the signatures
PURPOSE = "identifier of a run in"
IDENTIFIER = re.compile(r"[A-Za-z0-9._-]{1,64}")
# The settings files that wandb reads from the current folder, and the settings allowed in them. `wandb init` writes these.
WANDB_SETTINGS, WANDB_HARMLESS = ("wandb/settings", ".wandb/settings"), ("entity", "project")
WANDB_SERVERS = ("https://api.wandb.ai", "https://api.forge.coreweave.com")  # defaults of different versions of the package
MLFLOW_DATABASE, MLFLOW_FILES = "mlflow.db", "mlruns"
MAX_WANDB_SETTINGS = 2000  # bytes; configparser's time grows with the square of a line's length
JOURNALS = ("-journal", "-wal", "-shm")  # suffixes of SQLite's files for unfinished changes
# MLflow would try for a quarter of an hour to reach a server that does not answer.
MLFLOW_PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "30", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3"}
MLFLOW_DATABASE_PACKAGES = ("sqlalchemy", "alembic")  # mlflow-skinny lacks them

log = logging.getLogger(__name__)


def wandb_logger(settings: WandbSettings, *, run_dir: Path) -> WandbLogger:
    """Start or continue the run in Weights & Biases.

    Raises:
        UserError: If that is not possible.
    """
    _check_wandb_settings(Path())
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    # wandb runs git in the run's folder, its parents and the working directory. Git runs programs that a repository's settings
    # name. The variable already holds when wandb collects its first settings, before it sees the run's.
    os.environ.setdefault("WANDB_DISABLE_GIT", "true")
    identifier = _identifier("wandb", run_dir) or secrets.token_hex(4)
    if wandb.run is not None and wandb.run.id != identifier:  # Lightning would log to an earlier job's run
        wandb.finish()
    with _explained("wandb", "Run wandb login, or keep the logs on this machine with logger.wandb.offline=true."):
        logger = WandbLogger(
            name=settings.name or run_dir.name,
            project=settings.project,
            offline=settings.offline,
            save_dir=run_dir,
            id=identifier,
            resume="allow",
            settings={"disable_git": True},
        )
        _ = logger.experiment
    _remember("wandb", identifier, run_dir)
    return logger


def _check_wandb_settings(folder: Path) -> None:
    """Check that no file in the current folder decides which server wandb uses, or what else wandb sends.

    The folder may be a stranger's. wandb 0.31 reads a settings file there, and sends the user's key to the server in the file.

    Raises:
        UserError: If there is such a file.
    """
    for file in (folder / name for name in WANDB_SETTINGS):
        if (setting := _foreign_setting(file)) is not None:
            raise UserError(
                f"{file} sets {escape_line(setting[:100])}, with which W&B could send your key and your files elsewhere, and it "
                "may be a stranger's. Move what you want of it to your own ~/.config/wandb/settings, and delete the file."
            )


def _foreign_setting(file: Path) -> str | None:
    """Return a harmful setting of wandb in a file; None if there is none, or no such file."""
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(read_bytes(file, max_bytes=MAX_WANDB_SETTINGS).decode())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, configparser.Error):
        return "something that cannot be read"
    found = [(name, value) for section in parser.values() for name, value in section.items()]
    return next(
        (
            name
            for name, value in found
            if name not in WANDB_HARMLESS and not (name == "base_url" and value.rstrip("/") in WANDB_SERVERS)
        ),
        None,
    )


def mlflow_logger(settings: MlflowSettings, *, run_dir: Path) -> MLFlowLogger:
    """Start or continue the run in MLflow.

    Raises:
        UserError: If that is not possible.
    """
    from lightning.pytorch.loggers import MLFlowLogger

    for name, value in MLFLOW_PATIENCE.items():
        os.environ.setdefault(name, value)
    uri, artifacts = settings.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI"), None
    if not uri:
        uri, artifacts = _local_store(run_dir)
    elif uri.startswith("file:"):  # a store of version 0.1.0; MLflow 3 opens it only on request
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
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


def outlive_failures(logger: MLFlowLogger) -> MLFlowLogger:
    """Make a logger warn and send nothing more when its server fails, so that the run continues."""
    has_failed = False

    def guarded(send: Callable[..., None]) -> Callable[..., None]:
        def attempt(*arguments: Any, **named: Any) -> None:
            nonlocal has_failed
            if has_failed:
                return
            try:
                send(*arguments, **named)
            except Exception as error:  # whatever MLflow and its network libraries raise
                has_failed = True
                log.warning(
                    "MLflow refuses the metrics (%s). The run continues and sends no more.",
                    _first_line(error),
                )

        return attempt

    for name in ("log_metrics", "finalize"):
        setattr(logger, name, guarded(getattr(logger, name)))
    return logger


def _local_store(run_dir: Path) -> tuple[str, str | None]:
    """Return the URI of the run's own store, a database as in new versions of MLflow, and the location of its further files.

    Raises:
        UserError: If a package is missing.
    """
    if missing := [name for name in MLFLOW_DATABASE_PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(
            f"logger=mlflow needs {' and '.join(missing)} for the database in the run's folder. Run: pip install mlflow, or name "
            "a server with logger.mlflow.tracking_uri=URI."
        )
    from sqlalchemy.engine import URL

    folder = run_dir.resolve()
    # The URI quotes the path in the way that this version reads it.
    database = URL.create("sqlite", database=str(folder / MLFLOW_DATABASE)).render_as_string()
    _check_store(run_dir, uri=database if (folder / MLFLOW_DATABASE).exists() else (folder / MLFLOW_FILES).as_uri())
    _remember(MLFLOW_STORE, MLFLOW_DATABASE, run_dir)  # before creating it, so that it is recognized after an interruption
    return database, (folder / MLFLOW_FILES).as_uri()


def _check_store(folder: Path, *, uri: str) -> None:
    """Check that a store in a run's folder was made for this user, and cannot change anything outside of the folder.

    SQLite runs the triggers and views of a database. It also carries out a journal beside a database, and may thereby delete a
    file that the journal names.

    Args:
        uri: The URI of the store, for the message.

    Raises:
        UserError: If the store was not made for this user, or might change something outside.
    """
    found = [folder / name for name in (MLFLOW_DATABASE, MLFLOW_FILES) if os.path.lexists(folder / name)]
    if found and not _stored_identifier(MLFLOW_STORE, folder)[1]:
        raise UserError(
            f"{found[0]} is not opened: it may hold commands, and it is not signed with your key (another user, another machine "
            "or an earlier version of this program made it). To use it, add: "
            f"{describe_override('logger.mlflow.tracking_uri', uri)}. To start a new one, move it out of the run's folder."
        )
    journals = [f"{MLFLOW_DATABASE}{suffix}" for suffix in JOURNALS if os.path.lexists(f"{folder / MLFLOW_DATABASE}{suffix}")]
    paths = [os.path.join(parent, name) for parent, *lists in os.walk(folder / MLFLOW_FILES) for part in lists for name in part]
    links = [path for path in paths if os.path.islink(path)]
    if harmful := [*journals, *links]:
        raise UserError(
            f"{folder}: {harmful[0]} stands beside the data of MLflow, and could make it write or delete other files. If this "
            "run was interrupted here, open mlflow.db once with sqlite3. Otherwise remove that file, or use logger=csv."
        )


def _existing_mlflow_run(uri: str, run_dir: Path) -> str | None:
    """Return the identifier of this run in MLflow, if the run exists in this store."""
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
    """Return the identifier of this run in a program; None if this user has signed none."""
    found, is_signed = _stored_identifier(program, run_dir)
    if found is not None and not is_signed:
        log.info(
            "%s run %s comes from %s, %s. This run is logged as a new one.", program, found, run_dir / METADATA_FILE, UNSIGNED
        )
    return found if is_signed else None


def _stored_identifier(program: str, run_dir: Path) -> tuple[str | None, bool]:
    """Return the identifier of this run in a program, if there is one, and whether this user has signed it."""
    metadata = read_metadata(run_dir)
    found, signed = (metadata_section(metadata, name).get(program) for name in (TRACKING_FIELD, SIGNATURES_FIELD))
    if not isinstance(found, str) or not IDENTIFIER.fullmatch(found):
        return None, False
    contents = [_signed_content(found, run_dir)] if os.path.lexists(run_dir / MARK_FILE) else []
    if program != MLFLOW_STORE:  # runs of earlier versions continue; a database, which may hold commands, is asked about
        contents.append(f"{found} {run_dir.stat().st_ino}".encode())
    try:
        sign = bytes.fromhex(str(signed))
    except ValueError:
        return found, False
    return found, any(has_signature(content, sign, purpose=f"{PURPOSE} {program}") for content in contents)


def _remember(program: str, identifier: str, run_dir: Path) -> None:
    """Write a signed identifier to the run metadata. Leave out an invalid one, since a server may send anything."""
    if not IDENTIFIER.fullmatch(identifier):
        return
    metadata = read_metadata(run_dir)
    known, signatures = (metadata_section(metadata, name) for name in (TRACKING_FIELD, SIGNATURES_FIELD))
    with suppress(FileExistsError):
        (run_dir / MARK_FILE).touch(exist_ok=False)
    signed = signature(_signed_content(identifier, run_dir), purpose=f"{PURPOSE} {program}").hex()
    if known.get(program) != identifier or signatures.get(program) != signed:
        fields = {TRACKING_FIELD: known | {program: identifier}, SIGNATURES_FIELD: signatures | {program: signed}}
        update_metadata(run_dir, **fields)


def _signed_content(identifier: str, run_dir: Path) -> bytes:
    """Return an identifier together with facts that only this folder has, so that nobody can copy a signature to another folder.

    A number of a file or folder alone is not enough: a file system reuses the numbers of deleted ones. Therefore the change time
    of a file counts as well. Only the system sets it, and files that are unpacked or copied here later have a later one.
    """
    mark = os.lstat(run_dir / MARK_FILE)
    return f"{identifier} {run_dir.stat().st_ino} {mark.st_ino} {mark.st_ctime_ns}".encode()


@contextmanager
def _explained(program: str, remedy: str) -> Iterator[None]:
    """Turn any error of these programs into a message.

    Raises:
        UserError: If the block fails.
    """
    try:
        yield
    except Exception as error:  # Each has its own errors and those of its network libraries.
        raise UserError(f"logger={program} cannot be used: {_first_line(error)}. {remedy}") from error


def _first_line(error: Exception) -> str:
    """Return the first line of another program's error, without secrets."""
    lines = short_message(str(error)).strip().splitlines()
    return lines[0][:300].rstrip(".") if lines else type(error).__name__
