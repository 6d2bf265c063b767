"""Measure this machine's speed once, and keep the result in the user's cache, so that equal commands give equal results."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import gpt_pretrain
from gpt_pretrain.system.environment import user_cache_folder
from gpt_pretrain.system.files import write_json
from gpt_pretrain.system.formatting import is_finite_number
from gpt_pretrain.system.json_files import read_json
from gpt_pretrain.system.reading import DamagedFileError
from gpt_pretrain.system.resources import cores, cpu_name

MEASUREMENTS = "measurements.json"
MAX_BYTES = 100_000
MAX_KEPT = 200  # the newest are kept

log = logging.getLogger(__name__)


def measured_once(name: str, measure: Callable[[], float]) -> float:
    """Return a positive number that describes this machine. Measure it if this version has not done so on such a machine.

    Args:
        name: The name of the measured quantity.
    """
    machine = f"{cpu_name()}, {cores()} cores, {_threads()} threads"
    key = f"{name}; {machine}; torch {version('torch')}, gpt-pretrain {gpt_pretrain.__version__}"
    try:
        file = user_cache_folder() / MEASUREMENTS
    except OSError as error:
        log.debug("%s", error)
        return measure()
    stored = _read(file).get(key)
    if is_finite_number(stored) and stored > 0:
        return float(stored)
    value = measure()
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_json(file, dict([*_read(file).items(), (key, value)][-MAX_KEPT:]))
    except OSError as error:
        log.debug("%s: %s", file, error)  # The next start measures again.
    return value


def _read(file: Path) -> dict[str, object]:
    try:
        return read_json(file, max_bytes=MAX_BYTES, within=file.parent)
    except (OSError, DamagedFileError):
        return {}


def _threads() -> int:
    import torch

    return torch.get_num_threads()
