"""Settings in a run's config.yaml that its checkpoint does not have, such as those that the user has edited there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gpt_pretrain.config.interpolation import escape_interpolation
from gpt_pretrain.config.secrets import settings_without_secrets
from gpt_pretrain.runs.reader import CONFIG, flatten_settings, read_settings
from gpt_pretrain.system.terminal import escape_line
from gpt_pretrain.system.urls import hide_secrets

MAX_SHOWN = 5
MAX_LENGTH = 100  # of a value

log = logging.getLogger(__name__)


def warn_of_edited_settings(folder: Path, stored: dict[str, Any], is_expected: Callable[[str], bool]) -> None:
    """Warn of settings in config.yaml that differ from the checkpoint's, since a resumed run does not use them.

    Args:
        folder: The folder of the resumed run.
        stored: The settings in the checkpoint.
        is_expected: Returns whether a setting may differ, such as one that the user types.
    """
    _, edited = read_settings(folder)
    known = flatten_settings(escape_interpolation(settings_without_secrets(stored)))
    differing = {key: value for key, value in edited.items() if known.get(key, value) != value and not is_expected(key)}
    if differing:
        log.warning("%s", _describe(differing, known))


def _describe(differing: Mapping[str, str], known: Mapping[str, str]) -> str:
    """Return the warning, with at most MAX_SHOWN of the settings."""
    shown = [f"{key}={_short(value)} instead of {_short(known[key])}" for key, value in list(differing.items())[:MAX_SHOWN]]
    if len(differing) > MAX_SHOWN:
        shown.append(f"{len(differing) - MAX_SHOWN} more")
    return (
        f"{CONFIG} has other settings than the checkpoint: {', '.join(shown)}. They have no effect, since a resumed run takes "
        f"its settings from the checkpoint. To change one, type it as SETTING=VALUE in the command; {CONFIG} is written again."
    )


def _short(value: str) -> str:
    """Return a value as a text that is safe to print."""
    line = hide_secrets(escape_line(value))
    return line if len(line) <= MAX_LENGTH else f"{line[:MAX_LENGTH]}..."
