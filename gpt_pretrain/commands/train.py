"""The work of train.py: from its composed config to a trained model."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Set
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from gpt_pretrain.checkpoints.checksum import check_early
from gpt_pretrain.commands.failures import report_failures
from gpt_pretrain.commands.job import (
    config_folder_flags,
    is_multirun,
    is_sweep_job,
    job_overrides,
    overridden_keys,
    start_info,
    typed_arguments,
)
from gpt_pretrain.commands.run_context import run_context
from gpt_pretrain.config.overrides import override_key, quote_value
from gpt_pretrain.errors import UserError
from gpt_pretrain.runs.folder import list_checkpoints
from gpt_pretrain.runs.metadata import metadata_section, read_metadata
from gpt_pretrain.system.checkout import SCRIPTS
from gpt_pretrain.system.formatting import is_finite_number
from gpt_pretrain.system.loading import loading_libraries
from gpt_pretrain.system.reading import DamagedFileError
from gpt_pretrain.system.resources import PROCESSES_PER_CORE, max_processes, process_start
from gpt_pretrain.system.yaml_files import read_yaml
from gpt_pretrain.training.distributed import launch, ranks, requeue

if TYPE_CHECKING:
    from gpt_pretrain.training.preflight import TrainingSetup

MAX_NODES = 10_000  # machines; a file with a larger number is damaged
DEVICE_KEYS = {"experiment", "trainer", "trainer.devices", "trainer.num_nodes"}

log = logging.getLogger("gpt_pretrain")


def train(config: DictConfig, *, overridden: Set[str] | None = None) -> float:
    """Train a model with the settings of a composed config.

    Args:
        overridden: The settings and groups that this job overrides; None asks Hydra.

    Returns:
        The best validation loss in nats per token; NaN after plan=true. Sweeps minimize it.

    Raises:
        SystemExit: If the run fails or is interrupted.
        SweepJobFailed: If it fails as a job of a sweep.
    """
    began = time.monotonic() if overridden is not None or is_sweep_job() else process_start(_starter())
    run_dir, overridden = Path(config.run_dir), overridden_keys() if overridden is None else overridden
    if is_multirun() and list_checkpoints(run_dir):  # the sweep is resumed
        config.resume = str(run_dir)
    with report_failures():
        n_processes = processes_to_start(config, overridden)
    writes = not (config.plan or n_processes or launch.node_rank()) and ranks.is_main()
    with run_context(run_dir, script="train.py", writes=writes):
        num_nodes = _trainer_config(config, overridden).num_nodes
        if not config.plan:  # a dry run uses only this machine
            launch.check_machines(num_nodes)
        if n_processes:
            _train_in_processes(config, n_processes, num_nodes=num_nodes)
            return _best_val_loss(run_dir)
        setup = _prepare(config, run_dir=run_dir, overridden=overridden, writes=writes, began=began)
        if setup.settings.plan:
            from gpt_pretrain.training.planning.dry_run import dry_run

            _custom_callbacks(setup.settings.callbacks.custom)  # check that they can be built
            log.info(dry_run(setup))
            return math.nan

        from gpt_pretrain.sweeps.pruning import pruning_callbacks
        from gpt_pretrain.training.fit import finish, fit
        from gpt_pretrain.training.preflight import save_config

        stored = save_config(setup.settings, setup.tokenizer, run_dir)
        # Only jobs of a sweep have a trial. Any files may lie beside a resumed run.
        pruning = pruning_callbacks(run_dir) if is_sweep_job() else []
        callbacks = [*pruning, *_custom_callbacks(setup.settings.callbacks.custom)]
        trainer, module = fit(setup, config=stored, run_dir=run_dir, extra_callbacks=callbacks)
        return finish(setup.settings, trainer, module, run_dir=run_dir)
    return _best_val_loss(run_dir)  # a job of a sweep that was already complete


def _starter() -> int | None:
    """Return the process that has started this rank; None if the user has started this process."""
    return os.getppid() if launch.launch_info() is not None else None


def _prepare(config: DictConfig, *, run_dir: Path, overridden: Set[str], writes: bool, began: float) -> TrainingSetup:
    """Join the other processes, and check the settings and load the data.

    Args:
        writes: Whether this process writes the run's files.
        began: The start of a time budget.
    """
    ranks.join_process_group()
    if writes:
        requeue.remember_run(run_dir, arguments=typed_arguments())

    if config.resume is not None and ranks.is_main():
        check_early(str(config.resume))
    with loading_libraries():
        from gpt_pretrain.system.devices import prepare_computing
        from gpt_pretrain.system.terminal import quiet_lightning
        from gpt_pretrain.training.preflight import prepare_training

    quiet_lightning(main=ranks.is_main())
    prepare_computing()
    return prepare_training(config, overridden=overridden, began=began)


def processes_to_start(config: DictConfig, overridden: Set[str]) -> int:
    """Return the number of processes that this one starts on this machine; 0 if it trains by itself."""
    if config.plan:
        return 0
    trainer = _trainer_config(config, overridden)
    devices = launch.devices_to_start(trainer.devices, accelerator=trainer.accelerator, num_nodes=trainer.num_nodes)
    if devices > (most := max_processes()):
        raise UserError(
            f"trainer.devices={devices}: a training on this machine may have at most {most} processes, {PROCESSES_PER_CORE} "
            "for each core or one for each GPU. Choose a smaller number."
        )
    return devices


def _trainer_config(config: DictConfig, overridden: Set[str]) -> Any:
    """Return the trainer's settings. A resumed run keeps its devices unless the user overrides them.

    Raises:
        UserError: If the resumed run's settings cannot be read, or ask for more devices than this machine has.
    """
    stored = Path(config.run_dir) / "config.yaml"
    if config.resume is not None and stored.is_file() and not overridden & DEVICE_KEYS:
        return _stored_devices(stored)
    return config.trainer


def _stored_devices(file: Path) -> SimpleNamespace:
    """Return the devices in a run's config.yaml."""
    try:
        trainer = read_yaml(file, within=file.parent).get("trainer")
    except (OSError, DamagedFileError) as error:
        raise UserError(f"{file} cannot be used: {error}. Add trainer.devices=N.") from error
    stored = trainer if isinstance(trainer, dict) else {}
    devices, num_nodes, accelerator = (stored.get(name) for name in ("devices", "num_nodes", "accelerator"))
    if not (isinstance(devices, int) and isinstance(num_nodes, int) and isinstance(accelerator, str)) or not (
        devices >= 1 and 1 <= num_nodes <= MAX_NODES
    ):
        raise UserError(f"{file} has no valid number of devices. Add trainer.devices=N and trainer.num_nodes=N.")
    if devices > (most := max_processes()):
        raise UserError(
            f"trainer.devices={devices} comes from {file}, but a training on this machine may have at most {most} "
            f"processes, {PROCESSES_PER_CORE} for each core or one for each GPU. Add trainer.devices=N with a smaller number."
        )
    return SimpleNamespace(devices=devices, num_nodes=num_nodes, accelerator=accelerator)


def _train_in_processes(config: DictConfig, n_processes: int, *, num_nodes: int) -> None:
    """Run train.py with the same overrides in one process per device."""
    overrides = job_overrides()
    if config.resume is not None:
        overrides = [override for override in overrides if override_key(override) != "resume"]
        overrides.append(f"resume={quote_value(str(config.resume))}")
    info = start_info("train.py") | {"typed": typed_arguments(), "num_nodes": num_nodes}
    launch.run_ranks(
        SCRIPTS / "train.py",
        [*config_folder_flags(), *overrides],
        devices=n_processes,
        run_dir=Path(config.run_dir),
        launch_info=info,
    )


def _best_val_loss(run_dir: Path) -> float:
    loss = metadata_section(read_metadata(run_dir), "result").get("best_val_loss")
    return float(loss) if is_finite_number(loss) else math.nan


def _custom_callbacks(custom: dict[str, Any]) -> list[Any]:
    """Build the user's own callbacks.

    Args:
        custom: The `_target_` and arguments of each of the user's callbacks, by name.

    Raises:
        UserError: If a callback cannot be built.
    """
    from lightning import Callback

    callbacks = list[Any]()
    for name, fields in custom.items():
        try:
            callbacks.append(instantiate(fields))
        except Exception as error:  # Hydra wraps all exceptions of the class
            cause = error.__cause__ or error
            reason = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
            raise UserError(f"callbacks.custom.{name} cannot be built: {reason}") from error
        if not isinstance(callbacks[-1], Callback):
            kind = type(callbacks[-1]).__name__
            raise UserError(f"callbacks.custom.{name} is of the type {kind}, but must be a lightning.Callback.")
    return callbacks
