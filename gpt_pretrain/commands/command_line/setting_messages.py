"""Messages about an override: an unknown setting, a value of the wrong type, or several values."""

from __future__ import annotations

import re
from dataclasses import is_dataclass
from typing import Any, get_args, get_origin

from gpt_pretrain.commands.command_line.command_words import SCHEMAS
from gpt_pretrain.config.command_schema import PrepareSettings
from gpt_pretrain.config.other_programs import counterpart
from gpt_pretrain.config.overrides import override_key, quote_value, short_form, split_override, takes_unit
from gpt_pretrain.config.setting_names import (
    describe_type,
    group_options,
    is_declared,
    names_within,
    nearest_settings,
    same_names,
)
from gpt_pretrain.system.shell import quote_word

TOGETHER = {"logger", "callbacks"}  # groups that can have several options at once
AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([kmbg])", re.IGNORECASE)
FRACTION = re.compile(r"\d+,\d+(e-?\d+)?\s*[a-z]*", re.IGNORECASE)  # with a decimal comma
MAX_INTEGER = 2**63
ADD_MULTIRUN, TRY_SEVERAL = "only a sweep tries several values. Add -m.", "To try several values: -m "
GROUPED = re.compile(r"\d{1,3}(,\d{3})+(\s*(tok|tokens?|steps?|flops?))?", re.IGNORECASE)  # with commas between thousands


def unknown_setting(override: str, schema: type) -> str:
    """Return the message about an override whose setting does not exist."""
    if (other := counterpart(*split_override(override), schema=schema)) is not None:
        return f"{override}: there is no such setting. {other}"
    if (commands := _other_commands(override_key(override), schema)) is not None:
        return f"{override}: there is no such setting here. It is a setting of {commands}."
    names = [short_form(f"{name}=")[:-1] for name in nearest_settings(override_key(override), schema)]
    if names:
        return f"{override}: there is no such setting. Did you mean {' or '.join(names)}?"
    key = override_key(override)
    siblings = names_within(key, schema)
    shown = "hydra" if key.startswith("hydra.") else "job"
    remedy = f"{key.rpartition('.')[0]} has {', '.join(siblings)}." if siblings else f"--cfg {shown} shows all settings."
    return f"{override}: there is no such setting. {remedy}"


def _other_commands(key: str, schema: type) -> str | None:
    """Name the commands that have a setting which a schema lacks. Return None if none has it, or the schema has a similar one."""
    if "." not in key and same_names(key, schema):
        return None
    found = [f"{name}.py" for name, other in SCHEMAS.items() if is_declared(other, key)]
    found = found or ["gpt-pretrain prepare"] * is_declared(PrepareSettings, key)
    return " and ".join(filter(None, (", ".join(found[:-1]), *found[-1:]))) or None


def several_values(shown: str, key: str, hint: Any, *, is_group: bool) -> str:
    """Return the message about several values outside of a sweep."""
    listed = quote_word("{}=[{}]".format(*shown.split("=", 1)))
    if get_origin(hint) is list:
        return f"{shown}: must be {describe_type(hint)}. Type {listed}"
    typed = shown.partition("=")[2]
    grouped = bool(GROUPED.fullmatch(typed)) and hint not in (float, float | None)
    number = f" A number is typed without commas: {quote_word(shown.replace(',', ''))}" * grouped
    fraction = (hint in (float, float | None) or takes_unit(key)) and FRACTION.fullmatch(typed) and not grouped
    point = f" A decimal fraction is typed with a point: {quote_word(shown.replace(',', '.'))}" * bool(fraction)
    single = f" All of them in one run: {listed}" if key in TOGETHER else " A single run has one of them." * is_group
    return f"{shown}: {ADD_MULTIRUN}{point}{number}{single}"


def wrong_type(override: str, hint: Any, value: Any) -> str:
    """Return the message about a value that cannot be read as the type of its setting."""
    if value is None and hint is None:
        return f"{override}: this is not the name of an option."
    key, _, typed = override.partition("=")
    if not typed:
        return f"{key}= has no value. It must be {describe_type(hint)}."
    if is_dataclass(hint) and isinstance(value, str) and group_options(key):
        return f"{override}: the list `defaults:` in conf/ has no line for this group. Restore the line `- {key}: OPTION`."
    remedy = ""
    if value is None and hint in (str, str | None) and typed != "null":  # Hydra reads some characters only within quotation marks
        if takes_unit(key):
            return f"{override}: must be a number with a unit, such as {key}=20m"
        remedy = f" These characters need quotation marks: {quote_word(f'{key}={quote_value(typed)}')}"
    elif isinstance(value, str) and (amount := AMOUNT.fullmatch(value)):
        number = float(amount[1]) * {"k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9}[amount[2].lower()]
        remedy = f" Write {key}={number:.0f}"
    elif isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?%", value):
        remedy = f" Write {key}={float(value[:-1]) / 100:g}"
    elif re.fullmatch(r"[\[({][^\[\](){}:]+[\])}]", typed) and get_origin(hint) is not list:
        remedy = f" {TRY_SEVERAL}{key}={typed[1:-1].replace(' ', '')}"
    elif get_origin(hint) is list and get_args(hint) == (str,) and isinstance(value, str):
        remedy = f" Type {quote_word(f'{key}=[{typed}]')}"
    elif override_key(override) == "checkpoint" and isinstance(value, str):
        remedy = f" To continue a run: {quote_word(f'resume={value}')}"
    elif isinstance(value, float) and value.is_integer() and abs(value) < MAX_INTEGER:
        remedy = f" Write {key}={value:.0f}"
    return f"{override}: must be {describe_type(hint)}.{remedy}"
