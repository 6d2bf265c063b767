"""What the entry scripts share: Hydra's set-up, `resume=`, and errors told in plain words."""

from __future__ import annotations

import errno
import logging
import math
import os
import secrets
import shlex
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from gpt_pretrain.commands.command_line import checked, quoted, with_resume, with_sweep_resume, without_traces
from gpt_pretrain.commands.failures import EXIT_INTERRUPTED, EXIT_LOST_END, EXIT_USER_ERROR, print_error
from gpt_pretrain.config.overrides import key_of, quote
from gpt_pretrain.config.schema import GenerateSettings, TrainSettings
from gpt_pretrain.errors import AlreadyCompleteError, LostEndError, UserError
from gpt_pretrain.runs.metadata import read_record, recorded, stopped, update_record
from gpt_pretrain.sweeps.write_report import reported
from gpt_pretrain.training.distributed.launch import QUIET, agreed, devices_to_start, node_rank, run_ranks, started
from gpt_pretrain.training.distributed.ranks import ended_at_once, launched, lost_ranks_told
from gpt_pretrain.training.distributed.requeue import begun_run

Result = TypeVar("Result")

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG)
DEVICE_WORDS = {"experiment", "trainer", "trainer.devices", "trainer.num_nodes"}  # say on what to train

TYPED: list[str] = []  # this process's words as the user typed them

log = logging.getLogger("gpt_pretrain")


def set_up_hydra() -> None:
    """Tell Hydra the types of all settings, and how to name a run."""
    store = ConfigStore.instance()
    store.store("train_schema", TrainSettings)
    store.store("generate_schema", GenerateSettings)
    OmegaConf.register_new_resolver("unique", lambda: secrets.token_hex(3), use_cache=True, replace=True)


def run(main: Callable[[], Any], *, resumes: bool = False) -> None:
    """Run an entry script's main function on this process's command line, which may ask to resume a run."""
    told = started()
    TYPED[:] = sys.argv[1:] if told is None else told["typed"]
    with ended_at_once():
        try:
            if resumes and launched():
                with lost_ranks_told():
                    sys.argv[1:] = agreed(_words, earlier_run=lambda: begun_run(TYPED))
            else:
                words = _words(resumes)
                if node_rank():  # the first machine writes for all
                    words += QUIET if "hydra.run.dir" in map(key_of, words) else [*QUIET, "hydra.run.dir=."]
                sys.argv[1:] = words
            main()
        except UserError as error:
            sys.exit(print_error(error))
        except KeyboardInterrupt:
            sys.exit(EXIT_INTERRUPTED)


def _words(resumes: bool = True) -> list[str]:
    """This process's command line as Hydra takes it."""
    script = Path(sys.argv[0]).stem
    words = checked(with_sweep_resume(sys.argv[1:], script=script), script=script)
    return quoted(without_traces(with_resume(words)) if resumes else words)


def how_started(script: str) -> dict[str, Any]:
    """What a run's record says about how it was started, as `record.recorded` takes it."""
    if (told := started()) is not None:
        return {name: told[name] for name in ("command", "overrides", "swept") if name in told}
    words = [word for word in _task_words() if key_of(word) not in ("resume", "resume_force")]
    if not is_sweep():
        return {"command": shlex.join(["python", script, *TYPED]), "overrides": words}
    fixed = HydraConfig.get().job.config.override_dirname.exclude_keys
    swept = [word for word in words if key_of(word) not in fixed]
    return {"command": shlex.join(["python", script, *words]), "overrides": words, "swept": swept}


def ranks_to_start(config: DictConfig) -> int:
    """How many processes are to be started on this machine for a training; 0 where this one does it, or its part of it."""
    trainer = trainer_of(config)
    return 0 if config.plan else devices_to_start(trainer.devices, accelerator=trainer.accelerator, num_nodes=trainer.num_nodes)


def trainer_of(config: DictConfig) -> Any:
    """The settings of the trainer: a run goes on with as many devices as it had, unless others are typed."""
    stored = Path(config.run_dir) / "config.yaml"
    if config.resume is not None and stored.is_file() and not typed_keys() & DEVICE_WORDS:
        return OmegaConf.load(stored).trainer
    return config.trainer


def start_ranks(script: Path, config: DictConfig) -> float:
    """Train with a process for each device, and return the best validation loss in nats a token.

    Raises:
        SystemExit: when one of them fails.
    """
    run_dir = Path(config.run_dir)
    resume = [] if config.resume is None else [f"resume={quote(str(config.resume))}"]
    words = [*(word for word in _task_words() if not resume or key_of(word) != "resume"), *resume]
    told = how_started(script.name) | {"typed": TYPED, "num_nodes": trainer_of(config).num_nodes}
    run_ranks(script, words, devices=ranks_to_start(config), run_dir=run_dir, started=told)
    loss = read_record(run_dir).get("result", {}).get("best_val_loss")
    return math.nan if loss is None else float(loss)


def on_record(job: Callable[[], float], run_dir: Path, *, script: str) -> float:
    """Train, note in the run's folder how that goes, and return the best validation loss.

    Of a sweep's job that has nothing left to do it is the one that the run has.
    """
    how = how_started(script)
    try:
        with recorded(run_dir, **how), lost_ranks_told():
            return job()
    except AlreadyCompleteError as done:
        if how.get("swept") is None:
            raise
        update_record(run_dir, result=read_record(run_dir).get("result", {}) | done.result)
        return float(done.result["best_val_loss"])


def typed_keys() -> set[str]:
    """The settings and groups that were typed on the command line."""
    return {key_of(word) for word in _task_words()}


def _task_words() -> list[str]:
    """The settings and groups that this run was given on the command line, or by its sweep, as words."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def guarded(job: Callable[[DictConfig], Result], config: DictConfig, *, run_dir: Path | None = None) -> Result:
    """Run a job; what the user can mend becomes a short message and exit code 2.

    In a sweep whatever goes wrong ends the job alone, and what it leaves in memory is given back.

    Args:
        run_dir: the run's folder, whose train.log gets the traceback, and which has its page written at the end.
    """
    try:
        with nullcontext() if run_dir is None else reported(run_dir):
            return job(config)
    except LostEndError as error:
        log.error("%s", error)
        if is_sweep():
            raise SweepJobFailed(str(error)) from None
        sys.exit(EXIT_LOST_END)
    except SystemExit as error:
        if is_sweep() and not stopped(error):
            raise SweepJobFailed(f"The job ended with exit code {error.code}.") from None
        raise
    except BrokenPipeError:  # whoever read the output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        told = _told(error)
        if told is None:
            if not is_sweep():
                raise
            told = UserError(f"{type(error).__name__}: {error}")
            told.__cause__ = error
        print_error(told, log_file=None if isinstance(error, OSError) or run_dir is None else run_dir / "train.log")
        if is_sweep():
            raise SweepJobFailed(told.problems[0]) from None
        sys.exit(EXIT_USER_ERROR)
    finally:
        if is_sweep() and "torch" in sys.modules:
            from gpt_pretrain.system.devices import release_memory

            release_memory()


def _told(error: Exception) -> UserError | None:
    """An error as a user is told it; None for one that is the program's own."""
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        return UserError(f"{error.filename or 'A file'} cannot be written: {error.strerror}.")
    return error if isinstance(error, UserError) else None


class SweepJobFailed(RuntimeError):
    """A job of a sweep failed for a reason already told; the others go on."""


def is_sweep() -> bool:
    """Whether this process runs a Hydra sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def custom_callbacks(settings: dict[str, Any]) -> list[Any]:
    """The user's own callbacks: `+callbacks.custom.NAME={_target_: CLASS, argument: value}`.

    Raises:
        UserError: when one cannot be built.
    """
    callbacks = []
    for name, fields in settings.items():
        try:
            callbacks.append(instantiate(fields))
        except Exception as error:  # Hydra wraps whatever the class raises
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise UserError(f"callbacks.custom.{name} cannot be built: {reason}") from error
    return callbacks


def job_dir() -> Path:
    """The folder that Hydra made for this job."""
    return Path(HydraConfig.get().runtime.output_dir)


class RunFolder(Callback):
    """Makes sure, before Hydra does anything there, that a run's folder can be written."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        _check_writable(Path(config.hydra.run.dir), setting="hydra.run.dir")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        _check_writable(Path(config.hydra.sweep.dir), setting="hydra.sweep.dir")


def _check_writable(folder: Path, *, setting: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{secrets.token_hex(4)}.tmp"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        problem = f"{folder}: this folder cannot be written ({error.strerror or error}). Choose another with {setting}=FOLDER."
        sys.exit(print_error(UserError(problem)))
