"""Check the folder of a run or a sweep before Hydra writes into it."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from gpt_pretrain.commands.process.failures import print_error
from gpt_pretrain.commands.process.hydra_files import cut_hydra_files
from gpt_pretrain.errors import UserError
from gpt_pretrain.runs.folder import (
    FILES_OF_RUNS,
    WRITTEN_BY_EVALUATIONS,
    WRITTEN_BY_RUNS,
    check_folder_name,
    check_no_links,
    list_checkpoints,
)
from gpt_pretrain.runs.metadata import METADATA_FILE, RUNS_ALREADY, is_running
from gpt_pretrain.sweeps.folder import SWEEP_SETTINGS, WRITTEN_BY_SWEEPS
from gpt_pretrain.system.environment import user_path
from gpt_pretrain.system.files import make_writable_folder
from gpt_pretrain.system.reading import open_regular
from gpt_pretrain.system.shell import join_words
from gpt_pretrain.training.distributed.ranks import is_main

HYDRA_FOLDER = ".hydra"
WITHOUT_FILE = ("terminal", "stderr")  # options of hydra/job_logging for processes that write no run
RESULTS_START = re.compile(rb'\{\s*"settings":\s*\{')  # the beginning of an evaluation's results.json
_made_folders: list[Path] = []  # folders made by this process, the innermost first


class CheckRunFolder(Callback):
    """Check that a run's folder can be written and contains no links in the way. Remove secrets from Hydra's files there."""

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        if is_main():
            cut_hydra_files(config)

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.run.dir)
        if _writes(config):
            _check_no_tilde(config.hydra.run.dir, setting="hydra.run.dir")
            resumed = config.get("resume") is not None
            _check_writable(folder, setting=None if resumed else "hydra.run.dir")
            _check_no_links(folder, WRITTEN_BY_RUNS)
            _check_not_running(folder)
            if not resumed:
                _check_keeps_files(folder, _replaced(config), setting="hydra.run.dir")
            if "run_dir" in config and not OmegaConf.is_interpolation(config, "run_dir"):
                _check_writable(user_path(config.run_dir), setting="run_dir")
                _check_keeps_files(user_path(config.run_dir), _replaced(config), setting="run_dir")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        _check_no_tilde(config.hydra.sweep.dir, setting="hydra.sweep.dir")
        if _holds_run(folder):
            problem = (
                f"{folder} holds a run, so it cannot hold a sweep as well. Choose another folder with hydra.sweep.dir=FOLDER."
            )
            sys.exit(print_error(UserError(problem)))
        _check_writable(folder, setting="hydra.sweep.dir")
        _check_no_links(folder, WRITTEN_BY_SWEEPS)
        _check_keeps_files(folder, WRITTEN_BY_SWEEPS, setting="hydra.sweep.dir")


def _holds_run(folder: Path) -> bool:
    """Return whether a folder has checkpoints. End the program if it cannot be read."""
    try:
        return bool(list_checkpoints(folder))
    except OSError as error:
        problem = f"{error.filename or folder} cannot be read ({error.strerror or error})."
        sys.exit(print_error(UserError(f"{problem} Choose another folder with hydra.sweep.dir=FOLDER.")))


def _writes(config: DictConfig) -> bool:
    """Return whether this process writes into its folder. A plan, another machine of a training and generate.py do not."""
    job_logging = config.hydra.runtime.choices.get("hydra/job_logging")
    return job_logging not in WITHOUT_FILE or config.hydra.job.config_name == "evaluate"


def _check_no_tilde(folder: str, *, setting: str) -> None:
    """End the program if a file of settings names a folder by `~`, which Hydra would make in the current folder."""
    if folder.startswith("~") and (path := user_path(folder)) != Path(folder):
        sys.exit(
            print_error(UserError(f"{setting}={folder}: Hydra does not expand ~ in a file of settings. Write {path} there."))
        )


def _check_writable(folder: Path, *, setting: str | None) -> None:
    """End the program if a folder cannot be written.

    Args:
        setting: The setting that names another folder; None for a resumed run, which keeps its own folder.
    """
    try:
        check_folder_name(folder)
        _made_folders.extend(one for one in (folder, *folder.parents) if not one.exists())
        make_writable_folder(folder)
    except UserError as error:
        sys.exit(print_error(error))
    except OSError as error:
        remedy = f"Choose another one with {setting}=FOLDER."
        if setting is None:
            copy = join_words(["cp", "-r", str(folder), "FOLDER"])
            remedy = f"A resumed run continues in its own folder. Copy it first: {copy}, then resume=FOLDER."
        problem = f"{folder}: this folder cannot be written ({error.strerror or error}). {remedy}"
        sys.exit(print_error(UserError(problem)))


def remove_empty_folders() -> None:
    """Remove folders that this process has made and that are still empty, for example after a mistake in the settings."""
    while _made_folders:
        with suppress(OSError):
            _made_folders.pop(0).rmdir()


def _check_no_links(folder: Path, names: Sequence[str]) -> None:
    try:
        check_no_links(folder, names)
    except UserError as error:
        sys.exit(print_error(error))


def _replaced(config: DictConfig) -> Sequence[str]:
    """Return the files that a script writes anew in its folder."""
    if config.hydra.job.config_name == "evaluate":
        return WRITTEN_BY_EVALUATIONS
    return [name for name in FILES_OF_RUNS if not name.endswith(".log") and not name.startswith(".")]


def _check_keeps_files(folder: Path, names: Sequence[str], *, setting: str) -> None:
    """End the program if it would replace files in a folder that was not made by a run, a sweep or an evaluation.

    Args:
        names: The files that it writes anew.
        setting: The setting that names the folder.
    """
    if any((folder / name).exists() for name in (HYDRA_FOLDER, METADATA_FILE, SWEEP_SETTINGS)):
        return
    if names == WRITTEN_BY_EVALUATIONS and _holds_evaluation(folder):
        return
    if found := [name for name in names if (folder / name).is_file()]:
        here = "The current folder" if folder.samefile(".") else str(folder)
        problem = f"{here} has files that would be replaced: {', '.join(found)}. Choose a new folder with {setting}=FOLDER."
        sys.exit(print_error(UserError(problem)))


def _holds_evaluation(folder: Path) -> bool:
    """Return whether an earlier evaluation has written its results into a folder."""
    with suppress(OSError), open_regular(folder / WRITTEN_BY_EVALUATIONS[0]) as stream:
        return RESULTS_START.match(stream.read(100)) is not None
    return False


def _check_not_running(folder: Path) -> None:
    """End the program if another one trains in this folder, before its settings and its log change there."""
    with suppress(OSError):  # The run itself reports a lock that cannot be opened.
        if is_main() and (folder / METADATA_FILE).exists() and is_running(folder):
            sys.exit(print_error(UserError(RUNS_ALREADY.format(folder))))
