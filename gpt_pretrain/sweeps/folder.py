"""The folder of a sweep: the files in it, and how to find it by name. Importing this module loads no heavy library."""

from __future__ import annotations

import json
import re
import unicodedata
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpt_pretrain.config.secrets import override_without_secrets
from gpt_pretrain.errors import UserError
from gpt_pretrain.runs.folder import OUTPUTS, REPORT, check_folder_name, written_at
from gpt_pretrain.runs.metadata import METADATA_FILE
from gpt_pretrain.system.checkout import script_command
from gpt_pretrain.system.environment import user_path
from gpt_pretrain.system.files import write_text
from gpt_pretrain.system.json_files import parse_json_value
from gpt_pretrain.system.reading import DamagedFileError, read_bytes
from gpt_pretrain.system.signing import has_signature, signature
from gpt_pretrain.system.yaml_files import read_yaml

SWEEPS = OUTPUTS / "multirun"
SWEEP_SETTINGS = "multirun.yaml"  # Hydra's own sweepers use this name.
SWEEP_SIGNATURE = "multirun.signature"  # shows which overrides in the settings this user has typed
STUDY, SUMMARY, CHART, LADDER = "study.journal", "summary.csv", "summary.png", "ladder.json"
SIGNATURE_PURPOSE, NAME_PURPOSE = "overrides of a sweep", "name of a job"
MAX_SETTINGS_BYTES = 200_000  # A sweep's settings have about 10,000 bytes.
# The files that a sweep writes in its folder, besides the folders of its jobs.
WRITTEN_BY_SWEEPS = (SWEEP_SETTINGS, SWEEP_SIGNATURE, STUDY, SUMMARY, CHART, LADDER, REPORT)
MAX_NAME_BYTES = 120  # File systems allow 255.


def find_sweep(name: str, *, script: str) -> Path:
    """Return the folder of a script's sweep.

    Args:
        name: A sweep's folder, or "latest": the sweep that was started last.
        script: The script without its ending: "train" or "generate".

    Raises:
        UserError: If there is none, or its path contains an interpolation.
    """
    if name == "latest":
        found = [file for file in SWEEPS.glob(f"*/{SWEEP_SETTINGS}") if _script_of(file) == script]
        if not found:
            start = f"{script_command('train.py')} -m seed=1,2"
            raise UserError(f"`latest`: there is no sweep below {SWEEPS.resolve()}. Start one: {start}")
        folder = max(found, key=written_at).parent
        check_folder_name(folder)
        return folder
    folder = user_path(name)
    if not (folder / SWEEP_SETTINGS).is_file():
        raise UserError(f"{name}: this folder holds no sweep. Sweeps are folders below {SWEEPS}/; `latest` is the newest.")
    if _script_of(folder / SWEEP_SETTINGS) != script:
        raise UserError(f"{name}: this sweep was not started with {script}.py.")
    check_folder_name(folder)
    return folder


def is_sweep(folder: Path) -> bool:
    """Return whether a folder holds a sweep with at least one job."""
    return (folder / SWEEP_SETTINGS).exists() and any(folder.glob(f"*/{METADATA_FILE}"))


def job_folder_name(overrides: Sequence[str], *, any_case: bool = False) -> str:
    """Return the name of a job's folder: its overrides, with a checksum if they are too long or have characters besides a few.

    For many file systems, two names are the same if they differ only in upper and lower case, or in the way that a letter with an
    accent is stored. So a name that is not in lower case gets a checksum too.

    Secrets are left out. The names of jobs that differ only in secrets get this user's signature of the overrides, and not a
    checksum, from which a password could be guessed.

    Args:
        any_case: Leave out the checksum for upper case, as earlier versions did.
    """
    text = ",".join(sorted(overrides))
    shown = ",".join(sorted(override_without_secrets(override) for override in overrides))
    name = re.sub(r"[^\w.,=+~-]", "_", shown)
    is_unique = any_case or name == unicodedata.normalize("NFC", name).casefold()
    if name == text and is_unique and 0 < len(name.encode()) <= MAX_NAME_BYTES:
        return name
    short = name.encode()[:MAX_NAME_BYTES].decode(errors="ignore")
    checksum = f"{zlib.crc32(text.encode()):08x}" if shown == text else signature(text.encode(), purpose=NAME_PURPOSE)[:8].hex()
    return f"{short}-{checksum}" if overrides else "job"


def read_stored_overrides(folder: Path) -> tuple[list[str], list[str]]:
    """Return the overrides that a sweep was started with: those of Hydra's settings, and those of the script's settings.

    Raises:
        UserError: If they cannot be read.
    """
    file = folder / SWEEP_SETTINGS
    stored = read_hydra_settings(folder).get("overrides")
    parts = [stored.get(name) for name in ("hydra", "task")] if isinstance(stored, dict) else []
    texts = [[text for text in part if isinstance(text, str)] for part in parts if isinstance(part, list)]
    if texts != parts or len(texts) != 2:
        raise UserError(f"{file} does not contain the settings of a sweep: it lists no overrides.")
    return texts[0], texts[1]


def read_stored_choices(folder: Path) -> dict[str, str]:
    """Return the options that a sweep had chosen, by group. An option whose name is not a word is left out.

    Raises:
        UserError: If the sweep's settings cannot be read.
    """
    runtime = read_hydra_settings(folder).get("runtime")
    choices = runtime.get("choices") if isinstance(runtime, dict) else None
    found = choices if isinstance(choices, dict) else {}
    return {str(group): name for group, name in found.items() if isinstance(name, str) and re.fullmatch(r"\w{1,100}", name)}


def read_hydra_settings(folder: Path) -> dict[str, Any]:
    """Return Hydra's settings of a sweep; empty if they are no mapping.

    Raises:
        UserError: If they cannot be read.
    """
    file = folder / SWEEP_SETTINGS
    try:
        hydra = read_yaml(file, max_bytes=MAX_SETTINGS_BYTES, within=file.parent).get("hydra")
    except (OSError, DamagedFileError) as error:
        raise UserError(f"{file} cannot be used: {error}.") from error
    return hydra if isinstance(hydra, dict) else {}


def sign_sweep(folder: Path, overrides: Mapping[str, Any], *, script: str, typed: Sequence[str] | None = None) -> None:
    """Sign the overrides of a sweep, and the list of those that the user has typed.

    Args:
        overrides: The lists "hydra" and "task".
        script: The script without its ending: "train" or "generate".
        typed: The overrides that the user has typed, if others come from somebody else's sweep. None stands for all.
    """
    content = _signed_content((list(overrides["hydra"]), list(overrides["task"])), script=script, typed=typed)
    lines = [signature(content, purpose=SIGNATURE_PURPOSE).hex(), *([] if typed is None else [json.dumps(typed)])]
    write_text(folder / SWEEP_SIGNATURE, "".join(f"{line}\n" for line in lines))


def own_overrides(folder: Path, *, script: str) -> list[str]:
    """Return the stored overrides of a sweep that this user has typed. The signature of the sweep lists them."""
    try:
        lines = read_bytes(folder / SWEEP_SIGNATURE, max_bytes=MAX_SETTINGS_BYTES, within=folder).decode().splitlines()
        overrides = read_stored_overrides(folder)
        typed = None if len(lines) == 1 else parse_json_value(lines[1])
        content = _signed_content(overrides, script=script, typed=typed)
        if not has_signature(content, bytes.fromhex(lines[0]), purpose=SIGNATURE_PURPOSE):
            return []
    except (OSError, ValueError, IndexError):  # a DamagedFileError and a UserError are ValueErrors
        return []
    return [*overrides[0], *overrides[1]] if typed is None else typed


def has_foreign_overrides(folder: Path, *, script: str) -> bool:
    """Return whether a sweep has overrides that this user has not typed."""
    try:
        hydra, task = read_stored_overrides(folder)
    except UserError:
        return False
    return not set(own_overrides(folder, script=script)).issuperset([*hydra, *task])


def _signed_content(overrides: tuple[list[str], list[str]], *, script: str, typed: Any = None) -> bytes:
    return json.dumps([script, *overrides, *([] if typed is None else [typed])]).encode()


def _script_of(settings: Path) -> str | None:
    """Return the script that a sweep was started with, from the `hydra.job` section of its settings."""
    try:
        text = read_bytes(settings, max_bytes=MAX_SETTINGS_BYTES, within=settings.parent).decode(errors="replace")
    except (OSError, DamagedFileError):
        return None
    found = re.search(r"^ +name: (\w+)$", text, re.MULTILINE)
    return found[1] if found else None
