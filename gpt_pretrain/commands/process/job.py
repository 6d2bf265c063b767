"""Read Hydra's information about the job of this process: its mode, folder, overrides and command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from gpt_pretrain.config.free_text import as_typed
from gpt_pretrain.config.overrides import override_key, short_form
from gpt_pretrain.config.secrets import override_without_secrets
from gpt_pretrain.system.checkout import script_command
from gpt_pretrain.system.environment import without_comment
from gpt_pretrain.system.shell import join_words
from gpt_pretrain.training.distributed.launch import launch_info

if TYPE_CHECKING:
    from hydra.conf import HydraConf

COMMAND_LINE = "command-line"  # Hydra's name for the origin of --config-dir


def is_hydra_job() -> bool:
    """Return whether Hydra has started this job, instead of a test, a notebook or another command."""
    if "hydra" not in sys.modules:  # Importing it takes a fifth of a second.
        return False
    from hydra.core.hydra_config import HydraConfig

    return HydraConfig.initialized()


def _hydra() -> HydraConf:
    from hydra.core.hydra_config import HydraConfig

    return HydraConfig.get()


def is_multirun() -> bool:
    """Return whether this process runs a job of a Hydra sweep."""
    if not is_hydra_job():
        return False
    from hydra.types import RunMode

    return _hydra().mode == RunMode.MULTIRUN


def is_sweep_job() -> bool:
    """Return whether this process, or its launcher, runs a job of a sweep."""
    info = launch_info()
    return is_multirun() if info is None else "swept" in info


def output_folder() -> Path:
    """Return the folder that Hydra made for this job."""
    return Path(_hydra().runtime.output_dir)


def job_overrides() -> list[str]:
    """Return the overrides of this job, from the command line and from its sweep."""
    if not is_hydra_job():
        return []
    overrides = OmegaConf.to_container(_hydra().overrides.task, resolve=False)  # `${...}` stays as typed
    assert isinstance(overrides, list)
    return [str(override) for override in overrides]


def config_folder_flags() -> list[str]:
    """Return the typed option for the user's own config folder, with its value; empty if there is none."""
    if not is_hydra_job():
        return []
    sources = _hydra().runtime.config_sources
    return [word for one in sources if one.provider == COMMAND_LINE for word in ("--config-dir", str(one.path))]


def overridden_keys() -> set[str]:
    """Return the settings and groups that this job overrides."""
    return {override_key(override) for override in job_overrides()}


def typed_arguments() -> list[str]:
    """Return the script's arguments as the user typed them."""
    if (info := launch_info()) is not None:
        typed: list[str] = info["typed"]
        return typed
    # sys.argv is rewritten for Hydra, but sys.orig_argv is not. It begins with `python train.py` or
    # `python .../gpt-pretrain train`.
    for word in (sys.argv[0], Path(sys.argv[0]).stem):
        if word in sys.orig_argv:
            return without_comment(sys.orig_argv[sys.orig_argv.index(word) + 1 :])
    return sys.argv[1:]


def start_info(script: str) -> dict[str, Any]:
    """Return the command and overrides of this job, and its sweep's varied overrides, for the run metadata.

    Passwords and signatures are left out.
    """
    if (info := launch_info()) is not None:
        return {name: info[name] for name in ("command", "overrides", "swept") if name in info}
    kept = [override for override in job_overrides() if override_key(override) not in ("resume", "resume_force")]
    overrides = [short_form(override_without_secrets(override)) for override in kept]
    if not is_multirun():
        typed = [override_without_secrets(argument) for argument in typed_arguments()]
        return {"command": _command(script, typed), "overrides": overrides}
    fixed = _hydra().job.config.override_dirname.exclude_keys
    swept = [override for override in overrides if override_key(override) not in fixed]
    return {"command": _command(script, [*map(as_typed, overrides)]), "overrides": overrides, "swept": swept}


def _command(script: str, arguments: list[str]) -> str:
    return f"{script_command(script)} {join_words(arguments)}".strip()
