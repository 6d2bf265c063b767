"""The grammar of the overrides on a command line, before Hydra reads them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Set

from gpt_pretrain.config.interpolation import escape_interpolation
from gpt_pretrain.system.amounts import parse_amount, parse_duration

# The overrides of a run that starts from existing weights and names no model. The defaults are a recipe for new weights.
FINE_TUNING = ("optimizer=adamw", "scheduler=constant", "model.drop_rate=0.1")
# The endings of settings that may be typed with a unit, each with the unit of its value: a noun, or a number of seconds.
AMOUNT_ENDINGS = {"_tokens": "tokens", "_steps": "steps", "_bytes": "bytes"}
DURATION_ENDINGS = {"_minutes": 60, "_seconds": 1, "remote.timeout": 1}
QUANTITY = re.compile(r"(?<![\w.])[0-9][\w.+:]*(?:\s+[\w.]+)*")
PLAIN_NUMBER = re.compile(r"[\d_.]+")
MAX_AMOUNT_DIGITS = 18  # more would not fit into 64 bits


def takes_unit(key: str) -> bool:
    """Return whether the value of a setting is a duration or an amount, which may have a unit."""
    return key in ("budget", "trainer.max_time") or key.endswith((*AMOUNT_ENDINGS, *DURATION_ENDINGS))


def expand_amounts(override: str) -> str:
    """Write durations and amounts such as 1h30m, 1e9 or 50GB as plain numbers in the unit of their setting."""
    name, equals, value = override.partition("=")
    key = override_key(override)
    nouns = [noun for ending, noun in AMOUNT_ENDINGS.items() if key.endswith(ending)]
    units = [seconds for ending, seconds in DURATION_ENDINGS.items() if key.endswith(ending)]

    def plain(match: re.Match[str]) -> str:
        typed = match[0]
        if nouns:
            amount = None if PLAIN_NUMBER.fullmatch(typed) else parse_amount(typed, nouns[0])
            is_whole = amount is not None and amount.adjusted() < MAX_AMOUNT_DIGITS and amount == int(amount)
            return str(int(amount)) if amount is not None and is_whole else typed
        seconds = parse_duration(typed)
        return typed if seconds is None else f"{seconds / units[0]:.12g}"

    return name + equals + QUANTITY.sub(plain, value) if nouns or units else override


def quote_value(text: str) -> str:
    """Quote a text as one string of Hydra's override grammar."""
    escaped = escape_interpolation(text)
    # The look-behind keeps a long row of backslashes from being searched once from each of them.
    quoted = re.sub(r"(?<!\\)(\\*)('|\Z)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), escaped)
    return f"'{quoted}'"


def full_form(override: str, *, script: str) -> str:
    """Write `tokenizer=X`, as users type it, with the full name of the setting in a script.

    Args:
        script: "train", where the tokenizer is a group of settings, or another script, where it is a single setting.
    """
    key, equals, value = override.partition("=")
    if not equals or key.lstrip("+") not in ("tokenizer", "tokenizer.name") or value.startswith("{"):
        return override
    return f"{'tokenizer.name' if script == 'train' else 'tokenizer'}={value}"


def short_form(override: str) -> str:
    """Write an override of the tokenizer as `tokenizer=X`, as users type it and all versions store it."""
    return full_form(override, script="generate")


def split_override(override: str) -> tuple[str, str]:
    """Return the setting or group that an override names, and the value that it gives."""
    key, _, value = override.partition("=")
    return key.lstrip("+~"), value


def override_key(override: str) -> str:
    """Return the setting or group that an override names."""
    return split_override(override)[0]


def is_within(key: str, keys: Set[str]) -> bool:
    """Return True if keys holds this setting or a group around it."""
    parts = key.split(".")
    return any(".".join(parts[: n + 1]) in keys for n in range(len(parts)))


def find_override(overrides: Iterable[str], key: str) -> str | None:
    """Return the typed value of the last override of a setting or group, or None if there is no such override."""
    values = [value for name, value in map(split_override, overrides) if name == key]
    return values[-1] if values else None


def repeated_settings(overrides: Iterable[str]) -> list[str]:
    """Return a sentence about each setting that is typed several times with different values."""
    values: dict[str, list[str]] = {}
    for key, value in map(split_override, overrides):
        values.setdefault(key, []).append(value)
    return [
        f"{key} is typed {len(typed)} times. The last value counts: {key}={typed[-1]}"
        for key, typed in values.items()
        if len(set(typed)) > 1
    ]


def with_recipe_of_weights(overrides: list[str]) -> list[str]:
    """Add the overrides of FINE_TUNING if `init_from` names weights, unless a model is typed. Typed settings are kept."""
    typed = {override_key(override) for override in overrides}
    if find_override(overrides, "init_from") in (None, "null", "") or typed & {"model", "experiment"}:
        return overrides
    return [*(override for override in FINE_TUNING if override_key(override) not in typed), *overrides]
