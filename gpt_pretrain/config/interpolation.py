"""Escape `${...}` in texts, which OmegaConf and Hydra would otherwise interpolate."""

from __future__ import annotations

import re
from typing import Any


def escape_interpolation(value: Any) -> Any:
    """Escape all strings in nested containers, so that OmegaConf does not interpolate `${...}` in them."""
    if isinstance(value, dict):
        return {name: escape_interpolation(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [escape_interpolation(inner) for inner in value]
    if not isinstance(value, str):
        return value
    # The look-behind keeps a long row of backslashes from being searched once from each of them.
    return re.sub(r"(?<!\\)(\\*)\$\{", lambda match: match[1] * 2 + "\\${", value)


def unescape_interpolation(text: str) -> str:
    """Undo `escape_interpolation` in a string. A `${...}` that is not escaped stays as it is."""
    return re.sub(r"(?<!\\)((?:\\\\)*)\\\$\{", lambda match: "\\" * (len(match[1]) // 2) + "${", text)
