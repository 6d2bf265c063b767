"""The work of train.py: from its composed config to a trained model."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Set
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from gpt_pretrain.checkpoints.serialization.checksum import check_early
from gpt_pretrain.commands.process.failures import report_failures
from gpt_pretrain.commands.process.job import is_multirun, is_sweep_job, overridden_keys, typed_arguments
from gpt_pretrain.commands.process.rank_processes import processes_to_start, train_in_processes, trainer_config
from gpt_pretrain.commands.process.run_context import run_context
from gpt_pretrain.runs.folder import has_checkpoint
from gpt_pretrain.runs.metadata import metadata_section, read_metadata
from gpt_pretrain.sweeps.folder import has_foreign_overrides
from gpt_pretrain.system.environment import user_path
from gpt_pretrain.system.formatting import is_finite_number
from gpt_pretrain.system.loading import loading_libraries
from gpt_pretrain.system.resources import process_start
from gpt_pretrain.training.distributed import launch, ranks, requeue

if TYPE_CHECKING:
    from gpt_pretrain.training.preflight import TrainingSetup

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
    began = time.monotonic() if overridden is not None or is_sweep_job() else _program_start()
    run_dir, overridden = user_path(config.run_dir), overridden_keys() if overridden is None else overridden
    config.run_dir = str(run_dir)
    if is_multirun() and has_checkpoint(run_dir):  # the sweep is resumed
        config.resume = str(run_dir)
    with report_failures():
        n_processes = processes_to_start(config, overridden)
    writes = not (config.plan or n_processes or launch.node_rank()) and ranks.is_main()
    with run_context(run_dir, script="train.py", writes=writes):
        num_nodes = trainer_config(config, overridden).num_nodes
        if not config.plan:  # a dry run uses only this machine
            launch.check_machines(num_nodes)
        if n_processes:
            train_in_processes(config, n_processes, num_nodes=num_nodes)
            return _best_val_loss(run_dir)
        setup = _prepare(config, run_dir=run_dir, overridden=overridden, writes=writes, began=began)
        if setup.settings.plan:
            return _plan(setup)

        from gpt_pretrain.commands.custom_callbacks import build_custom_callbacks
        from gpt_pretrain.sweeps.pruning import pruning_callbacks
        from gpt_pretrain.training.fit import finish, fit
        from gpt_pretrain.training.planning.disk import check_disk_of_foreign_job
        from gpt_pretrain.training.preflight import save_config

        if is_sweep_job() and has_foreign_overrides(run_dir.parent, script="train"):
            check_disk_of_foreign_job(setup)
        stored = save_config(setup.settings, setup.tokenizer, run_dir)
        # Only jobs of a sweep have a trial. Any files may lie beside a resumed run.
        pruning = pruning_callbacks(run_dir) if is_sweep_job() else []
        callbacks = [*pruning, *build_custom_callbacks(setup.settings.callbacks.custom)]
        trainer, module = fit(setup, config=stored, run_dir=run_dir, extra_callbacks=callbacks)
        return finish(setup.settings, trainer, module, run_dir=run_dir)
    return _best_val_loss(run_dir)  # a job of a sweep that was already complete


def _program_start() -> float:
    """Return the time at which the user started the program, in seconds of `time.monotonic`. A budget counts from there."""
    launcher = os.getppid() if launch.launch_info() is not None else None
    return process_start(launcher)


def _prepare(config: DictConfig, *, run_dir: Path, overridden: Set[str], writes: bool, began: float) -> TrainingSetup:
    """Join the other processes, and check the settings and load the data.

    Args:
        writes: Whether this process writes the run's files.
        began: The start of a time budget, in seconds of `time.monotonic`.
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


def _plan(setup: TrainingSetup) -> float:
    """Print what the run would cost, and return NaN in place of a loss."""
    from gpt_pretrain.commands.custom_callbacks import build_custom_callbacks
    from gpt_pretrain.training.planning.dry_run import dry_run

    build_custom_callbacks(setup.settings.callbacks.custom)  # check that they can be built
    log.info(dry_run(setup))
    return math.nan


def _best_val_loss(run_dir: Path) -> float:
    loss = metadata_section(read_metadata(run_dir), "result").get("best_val_loss")
    return float(loss) if is_finite_number(loss) else math.nan
