"""Start one process per device for a training on several devices of this machine."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from omegaconf import DictConfig

from gpt_pretrain.commands.process.job import config_folder_flags, job_overrides, start_info, typed_arguments
from gpt_pretrain.config.overrides import override_key, quote_value
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.checkout import SCRIPTS
from gpt_pretrain.system.reading import DamagedFileError
from gpt_pretrain.system.resources import PROCESSES_PER_CORE, max_processes
from gpt_pretrain.system.yaml_files import read_yaml
from gpt_pretrain.training.distributed import launch

MAX_NODES = 10_000  # machines; a file with a larger number is damaged
DEVICE_KEYS = {"experiment", "trainer", "trainer.devices", "trainer.num_nodes"}


def processes_to_start(config: DictConfig, overridden: Set[str]) -> int:
    """Return the number of processes that this one starts on this machine; 0 if it trains by itself."""
    if config.plan:
        return 0
    trainer = trainer_config(config, overridden)
    devices = launch.devices_to_start(trainer.devices, accelerator=trainer.accelerator, num_nodes=trainer.num_nodes)
    if devices > (most := max_processes()):
        raise UserError(
            f"trainer.devices={devices}: a training on this machine may have at most {most} processes, {PROCESSES_PER_CORE} "
            "for each core, as far as the memory allows, or one for each GPU. Choose a smaller number."
        )
    return devices


def trainer_config(config: DictConfig, overridden: Set[str]) -> Any:
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
        raise UserError(
            f"{file} cannot be used: {error}. Delete it, or add trainer.devices=N: the checkpoint has all other settings."
        ) from error
    stored = trainer if isinstance(trainer, dict) else {}
    devices, num_nodes, accelerator = (stored.get(name) for name in ("devices", "num_nodes", "accelerator"))
    if not (isinstance(devices, int) and isinstance(num_nodes, int) and isinstance(accelerator, str)) or not (
        devices >= 1 and 1 <= num_nodes <= MAX_NODES
    ):
        raise UserError(f"{file} has no valid number of devices. Add trainer.devices=N and trainer.num_nodes=N.")
    if devices > (most := max_processes()):
        raise UserError(
            f"trainer.devices={devices} comes from {file}, but a training on this machine may have at most {most} "
            f"processes, {PROCESSES_PER_CORE} for each core, as far as the memory allows, or one for each GPU. Add "
            "trainer.devices=N with a smaller number."
        )
    return SimpleNamespace(devices=devices, num_nodes=num_nodes, accelerator=accelerator)


def train_in_processes(config: DictConfig, n_processes: int, *, num_nodes: int) -> None:
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
