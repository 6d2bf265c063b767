"""Cut passwords and signatures out of settings and overrides before they are recorded or published."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gpt_pretrain.config.overrides import split_override
from gpt_pretrain.system.formatting import shorten_middle
from gpt_pretrain.system.urls import SECRET, hide_secrets, secret_parts, without_secrets

# Options of a file system may be access keys. Their names are kept, to say later what to type again.
OPTIONS = "data.remote.options"
_OPTION_WORD = re.compile(rf"({re.escape(OPTIONS)}[\w.]{{0,200}})=(?!(?:true|false|null)\b)\S+")
MAX_SEARCHED = 10_000  # characters of a text in run metadata; the middle of a longer text is left out
_TEXTS = ("start_context", "callbacks.grid.prompts", "prompt")  # Nothing is cut out of these: a model continues them as they are.


def settings_without_secrets(settings: Mapping[Any, Any], *, prefix: str = "") -> dict[Any, Any]:
    """Return nested settings without the secrets of their URLs, and without the values of `data.remote.options`.

    Args:
        prefix: The name of the group of these settings, with a dot at its end.
    """
    return {name: _without_secrets(value, f"{prefix}{name}") for name, value in settings.items()}


def override_without_secrets(override: str) -> str:
    """Return an override `key=value` without secrets in its value."""
    key, value = split_override(override)
    before = override[: len(override) - len(value)]
    if key == OPTIONS or key.startswith(f"{OPTIONS}.") or (key in ("data", "data.remote") and "options" in value):
        return f"{before}{value if _says_nothing(value) else SECRET}" if value else override
    return override if key in _TEXTS else before + hide_secrets(value)


def metadata_without_secrets(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return run metadata without the secrets that an earlier version recorded in the command, the overrides and the path."""
    cut: dict[str, Any] = dict(metadata)
    for name in ("overrides", "swept"):
        if isinstance(texts := cut.get(name), list):
            cut[name] = [override_without_secrets(_shorten(text)) if isinstance(text, str) else text for text in texts]
    if isinstance(command := cut.get("command"), str):
        # The words of a command are quoted for a shell, so options are found by a pattern.
        cut["command"] = _OPTION_WORD.sub(rf"\1={SECRET}", hide_secrets(_shorten(command)))
    if isinstance(error := cut.get("error"), str):
        cut["error"] = hide_secrets(_shorten(error))
    if isinstance(data := cut.get("data"), Mapping):
        cut["data"] = settings_without_secrets(data)
    return cut


def _shorten(text: str) -> str:
    return shorten_middle(text, MAX_SEARCHED)


def secret_values(settings: Mapping[Any, Any]) -> list[str]:
    """List the secret texts in nested settings, which have to be cut out."""
    found = []
    for key, text in _leaves(settings, ""):
        if key.startswith(f"{OPTIONS}.") and not _says_nothing(text):
            found.append(text)
        elif key not in _TEXTS and without_secrets(text) != text:
            found += secret_parts(text)
    return found


def _without_secrets(value: Any, key: str) -> Any:
    if isinstance(value, Mapping):
        return settings_without_secrets(value, prefix=f"{key}.")
    if isinstance(value, list | tuple):
        return [_without_secrets(part, key) for part in value]
    if key.startswith(f"{OPTIONS}."):
        return value if _says_nothing(value) else SECRET
    return without_secrets(value) if isinstance(value, str) and key not in _TEXTS else value


def _says_nothing(value: object) -> bool:
    """Return whether a value is too plain to be a secret, such as true in anon=true."""
    return str(value).lower() in ("true", "false", "null", "none", "{}", SECRET)


def _leaves(value: Any, key: str) -> list[tuple[str, str]]:
    """List the texts in nested settings with the dotted names of their settings."""
    if isinstance(value, Mapping):
        return [leaf for name, part in value.items() for leaf in _leaves(part, f"{key}.{name}".removeprefix("."))]
    if isinstance(value, list | tuple):
        return [leaf for part in value for leaf in _leaves(part, key)]
    return [(key, value)] if isinstance(value, str) else []
