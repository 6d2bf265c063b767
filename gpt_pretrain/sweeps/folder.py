"""The folder of a sweep: the files in it, and how to find it by name. Importing this module loads no heavy library."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from pathlib import Path

from gpt_pretrain.config.secrets import override_without_secrets
from gpt_pretrain.errors import UserError
from gpt_pretrain.runs.folder import OUTPUTS
from gpt_pretrain.runs.metadata import METADATA_FILE

SWEEPS = OUTPUTS / "multirun"
SWEEP_SETTINGS = "multirun.yaml"  # The name that Hydra's own sweepers use.
STUDY, SUMMARY, CHART = "study.journal", "summary.csv", "summary.png"
MAX_NAME_BYTES = 120  # File systems allow 255.


def find_sweep(name: str, *, script: str) -> Path:
    """Return the folder of a script's sweep.

    Args:
        name: A sweep's folder, or "latest": the sweep that was started last.
        script: The script without its ending: "train" or "generate".

    Raises:
        UserError: If there is none.
    """
    if name == "latest":
        found = [file for file in SWEEPS.glob(f"*/{SWEEP_SETTINGS}") if _script_of(file) == script]
        if not found:
            raise UserError(f"`latest`: there is no sweep below {SWEEPS.resolve()}. Start one: python train.py -m seed=1,2")
        return max(found, key=lambda file: file.stat().st_mtime_ns).parent
    folder = Path(name).expanduser()
    if not (folder / SWEEP_SETTINGS).is_file():
        raise UserError(f"{name}: this folder holds no sweep. Sweeps are folders below {SWEEPS}/; `latest` is the newest.")
    if _script_of(folder / SWEEP_SETTINGS) != script:
        raise UserError(f"{name}: this sweep was not started with {script}.py.")
    return folder


def is_sweep(folder: Path) -> bool:
    """Return whether a folder holds a sweep with at least one job."""
    return (folder / SWEEP_SETTINGS).exists() and any(folder.glob(f"*/{METADATA_FILE}"))


def job_folder_name(overrides: Sequence[str]) -> str:
    """Return the name of a job's folder: its overrides, with a checksum if they are too long or contain other characters."""
    text = ",".join(sorted(overrides))
    shown = ",".join(sorted(override_without_secrets(override) for override in overrides))
    name = re.sub(r"[^\w.,=+~-]", "_", shown)
    if name == text and 0 < len(name.encode()) <= MAX_NAME_BYTES:
        return name
    short = name.encode()[:MAX_NAME_BYTES].decode(errors="ignore")
    return f"{short}-{zlib.crc32(text.encode()):08x}" if overrides else "job"


def _script_of(settings: Path) -> str | None:
    """Return the script that a sweep was started with, from the `hydra.job` section of its settings."""
    found = re.search(r"^    name: (\w+)$", settings.read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else None
