"""Which groups of a command line are the user's own parts, by what is typed and by the options that are chosen."""

from __future__ import annotations

from collections.abc import Sequence, Set
from contextlib import suppress
from pathlib import Path
from typing import Any

from gpt_pretrain.config.custom_parts import CUSTOM, CUSTOM_GROUPS, TARGET
from gpt_pretrain.config.overrides import find_override, override_key
from gpt_pretrain.config.setting_names import CONF
from gpt_pretrain.system.reading import DamagedFileError, read_yaml


def choose_custom_options(overrides: Sequence[str]) -> list[str]:
    """Add the option `custom` of each group whose class is typed, so that a built-in option does not add its arguments."""
    typed = {override_key(override) for override in overrides}
    missing = [group for group in CUSTOM_GROUPS if f"{group}.{TARGET}" in typed and group not in typed]
    return [*(f"{group}={CUSTOM}" for group in missing if (CONF / group / f"{CUSTOM}.yaml").is_file()), *overrides]


def custom_groups(overrides: Sequence[str], *, folders: Sequence[Path]) -> set[str]:
    """Return the groups that are the user's own: their class is typed, or an option or experiment that is typed names it.

    Args:
        folders: The folders with the options of groups.
    """
    typed = {override_key(override) for override in overrides}
    experiment = _read_options("experiment", find_override(overrides, "experiment"), folders)
    found = set()
    for group in CUSTOM_GROUPS:
        options = _read_options(group, find_override(overrides, group), folders)
        for content in experiment:
            options += [content[group]] if isinstance(content.get(group), dict) else []
            options += _read_options(group, _default_option(content, group), folders)
        if f"{group}.{TARGET}" in typed or any(TARGET in content for content in options):
            found.add(group)
    return found


def is_custom_field(override: str, groups: Set[str]) -> bool:
    """Return whether an override sets a field of one of these groups."""
    group, dot, _ = override_key(override).partition(".")
    return bool(dot) and group in groups


def _read_options(group: str, value: str | None, folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the contents of the options that a value names, several in a sweep."""
    contents = []
    for name in (value or "").split(","):
        for folder in folders:
            file = folder / group / f"{name.strip().removesuffix('.yaml')}.yaml"
            with suppress(OSError, DamagedFileError, ValueError):
                contents.append(read_yaml(file))
    return [content for content in contents if isinstance(content, dict)]


def _default_option(content: dict[str, Any], group: str) -> str | None:
    """Return the option of a group that the defaults list of a file chooses."""
    defaults = content.get("defaults")
    for entry in defaults if isinstance(defaults, list) else []:
        for name in (f"override /{group}", f"/{group}"):
            if isinstance(entry, dict) and isinstance(entry.get(name), str):
                return str(entry[name])
    return None
