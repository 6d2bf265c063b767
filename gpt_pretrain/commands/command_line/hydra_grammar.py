"""Write typed overrides in Hydra's grammar."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from gpt_pretrain.config.free_text import quote_if_needed, quote_override
from gpt_pretrain.config.overrides import expand_amounts
from gpt_pretrain.system.reading import DamagedFileError
from gpt_pretrain.system.yaml_files import parse_yaml_value


def to_hydra_override(override: str, *, sweep: bool) -> str:
    """Write a typed override in Hydra's grammar: quote texts, paths and lists, and write out amounts such as 1e9.

    Some lists and mappings can be read only as YAML, because of their letters or apostrophes. They are rewritten as well.

    Args:
        sweep: Whether the override belongs to a sweep.
    """
    override = expand_amounts(quote_override(override, sweep=sweep))
    name, _, value = override.partition("=")
    if value[:1] not in ("[", "{"):
        return override
    try:
        OverridesParser.create().parse_override(override)
    except (HydraException, RecursionError):
        try:
            read = parse_yaml_value(value)
        except DamagedFileError:
            return override
        return f"{name}={_write(read)}" if isinstance(read, list | dict) else override
    return override


def _write(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_write, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{name}:{_write(part)}' for name, part in value.items())}}}"
    if isinstance(value, str):
        return quote_if_needed(value)
    return "null" if value is None else str(value).lower()


def setting_values(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield each setting that a value sets, with its own value. The value of a group may be a mapping of several settings."""
    if isinstance(value, dict) and value:
        for name, part in value.items():
            yield from setting_values(f"{key}.{name}", part)
    else:
        yield key, value
