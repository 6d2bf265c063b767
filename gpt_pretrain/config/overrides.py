"""The grammar of the overrides on a command line, before Hydra reads them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal

from gpt_pretrain.config.conversion import escape_interpolation

# What a run from existing weights overrides if it names no model: the defaults are the recipe of a new one.
FINE_TUNING = ("optimizer=adamw", "scheduler=constant", "model.drop_rate=0.1")
AMOUNT_ENDINGS = ("_tokens", "_steps", "_bytes")  # of settings whose integer may be typed as 1e9
AMOUNT = re.compile(r"(?<![\w.])\d+(\.\d+)?[eE]\+?\d+(?![\w.])")
MAX_AMOUNT_DIGITS = 18  # more would not fit into 64 bits


def expand_amounts(override: str) -> str:
    """Write amounts of tokens, steps or bytes such as 1e9 as integers, because OmegaConf refuses a float there."""
    key, equals, value = override.partition("=")
    if not override_key(override).endswith(AMOUNT_ENDINGS):
        return override

    def digits(match: re.Match[str]) -> str:
        number = Decimal(match[0])
        return str(int(number)) if number.adjusted() < MAX_AMOUNT_DIGITS and number == int(number) else match[0]

    return key + equals + AMOUNT.sub(digits, value)


def quote_value(text: str) -> str:
    """Quote a text as one string of Hydra's override grammar."""
    escaped = escape_interpolation(text)
    # As in `escape_interpolation`, a row of backslashes is searched once.
    quoted = re.sub(r"(?<!\\)(\\*)('|\Z)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), escaped)
    return f"'{quoted}'"


def full_form(override: str, *, script: str) -> str:
    """Write `tokenizer=X`, which is how users type it, with the name of the setting in the schema of a script.

    Args:
        script: "train", whose settings of the tokenizer are a group, or another one, where it is one setting.
    """
    key, equals, value = override.partition("=")
    if not equals or key.lstrip("+") not in ("tokenizer", "tokenizer.name") or value.startswith("{"):
        return override
    return f"{'tokenizer.name' if script == 'train' else 'tokenizer'}={value}"


def short_form(override: str) -> str:
    """Write the tokenizer of an override as `tokenizer=X`: as users type it, and as all versions store it."""
    return full_form(override, script="generate")


def split_override(override: str) -> tuple[str, str]:
    """Return the setting or group that an override names, and the value that it gives."""
    key, _, value = override.partition("=")
    return key.lstrip("+~"), value


def override_key(override: str) -> str:
    """Return the setting or group that an override names."""
    return split_override(override)[0]


def find_override(overrides: Iterable[str], key: str) -> str | None:
    """Return the value that the last override of a setting or group gives it, as typed; None if there is no override of it."""
    values = [value for name, value in map(split_override, overrides) if name == key]
    return values[-1] if values else None


def with_recipe_of_weights(overrides: list[str]) -> list[str]:
    """Add the optimizer, schedule and dropout of a run whose weights `init_from` names, unless they or a model are typed."""
    typed = {override_key(override) for override in overrides}
    if find_override(overrides, "init_from") in (None, "null", "") or typed & {"model", "experiment"}:
        return overrides
    return [*(override for override in FINE_TUNING if override_key(override) not in typed), *overrides]
