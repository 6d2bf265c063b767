"""Where a run keeps its files, and how to find one again. Light: nothing here loads torch."""

from __future__ import annotations

import os
import re
from pathlib import Path

from gpt_pretrain.errors import UserError

OUTPUTS = Path("outputs")


LAST, BEST = "last.ckpt", "best.ckpt"


EXPORTED = "huggingface"


SWEEPS = OUTPUTS / "multirun"


STUDY = "study.journal"  # of a search


SWEEP_SETTINGS = "multirun.yaml"  # as Hydra's own sweepers call what a sweep was started with


def display_path(path: Path) -> str:
    """A path as short as it can be typed from here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def checkpoint_dir(run_dir: Path) -> Path:
    """The folder of a run's checkpoints."""
    return run_dir / "checkpoints"


def find_run(name: str) -> Path:
    """The run directory that a user means.

    Args:
        name: a run directory, a checkpoint in one, or "latest": the run below outputs/ whose checkpoint is newest.

    Raises:
        UserError: when there is no such run, or it has no checkpoint.
    """
    run_dir = find_run_folder(name)
    if not list_checkpoints(run_dir):
        raise UserError(
            f"{name}: this run has no checkpoint yet, so there is nothing to go on from. The first is written after an epoch."
        )
    return run_dir


def find_run_folder(name: str) -> Path:
    """The folder that a user means, as `find_run` has it, with a checkpoint or without.

    Raises:
        UserError: when there is no such folder.
    """
    if name == "latest":
        return _latest_run()
    path = Path(name).expanduser()
    folder = path.parent.parent if path.is_file() and path.parent.name == "checkpoints" else path
    if not folder.is_dir():
        raise UserError(f"{name}: there is no such run directory. Runs are folders below {OUTPUTS}/; `latest` names the newest.")
    return folder


def find_sweep(name: str, *, script: str) -> Path:
    """The folder of a script's sweep that a user means; "latest" is the one that was begun last.

    Raises:
        UserError: when there is none.
    """
    if name == "latest":
        found = [file for file in SWEEPS.glob(f"*/{SWEEP_SETTINGS}") if _script_of(file) == script]
        if not found:
            raise UserError(f"`latest`: there is no sweep below {SWEEPS.resolve()} yet. Start one: python train.py -m seed=1,2")
        return max(found, key=lambda file: file.stat().st_mtime_ns).parent
    folder = Path(name).expanduser()
    if not (folder / SWEEP_SETTINGS).is_file():
        raise UserError(
            f"{name}: there is no sweep in this folder. Sweeps are folders below {SWEEPS}/; `latest` names the newest."
        )
    if _script_of(folder / SWEEP_SETTINGS) != script:
        raise UserError(f"{name}: this is no sweep of {script}.py.")
    return folder


def find_checkpoints(name: str) -> list[Path]:
    """The checkpoint files that a user may mean, the newest first: one file, or those of a run ("latest": the newest run).

    Raises:
        UserError: when there is none.
    """
    path = Path(name).expanduser()
    if name != "latest" and path.is_file():
        return [path]
    if name != "latest" and not path.exists():
        raise UserError(
            f"checkpoint={name}: there is no such file or run directory. `latest` names the newest run below {OUTPUTS}/."
        )
    return list_checkpoints(find_run(name))


def list_checkpoints(run_dir: Path) -> list[Path]:
    """A run's checkpoints: last.ckpt, then those with a step in their name, the newest first, then best.ckpt."""
    found = [file for file in checkpoint_dir(run_dir).glob("*.ckpt") if file.is_file()]
    return sorted(found, key=lambda file: (file.name == LAST, file.name != BEST, file.name), reverse=True)


def _latest_run() -> Path:
    places = [f"{pattern}/checkpoints/*.ckpt" for pattern in ("*", "multirun/*/*")]
    found = [file for place in places for file in OUTPUTS.glob(place) if file.is_file()]
    if not found:
        raise UserError(
            f"`latest`: there is no run with a checkpoint below {OUTPUTS.resolve()} yet. "
            "Train one first: python train.py model=tiny"
        )
    return max(found, key=lambda file: file.stat().st_mtime_ns).parent.parent


def _script_of(settings: Path) -> str | None:
    """The script whose sweep has these settings."""
    found = re.search(
        r"^    name: (\w+)$", settings.read_text(encoding="utf-8"), re.MULTILINE
    )  # of hydra.job, before any package
    return found[1] if found else None
