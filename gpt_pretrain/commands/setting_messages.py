"""Messages about an override: an unknown setting, a value of the wrong type, or several values."""

from __future__ import annotations

import re
from typing import Any, get_origin

from gpt_pretrain.config.other_programs import counterpart
from gpt_pretrain.config.overrides import override_key, short_form, split_override, takes_unit
from gpt_pretrain.config.setting_names import describe_type, names_within, nearest_settings
from gpt_pretrain.system.shell import quote_word

TOGETHER = {"logger", "callbacks"}  # groups that can have several options at once
AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([kmbg])", re.IGNORECASE)
FRACTION = re.compile(r"\d+,\d+(e-?\d+)?\s*[a-z]*", re.IGNORECASE)  # with a decimal comma
GROUPED = re.compile(r"\d{1,3}(,\d{3})+")  # with commas between thousands


def unknown_setting(override: str, schema: type) -> str:
    """Return the message about an override whose setting does not exist."""
    if (other := counterpart(*split_override(override), schema=schema)) is not None:
        return f"{override}: there is no such setting. {other}"
    names = [short_form(f"{name}=")[:-1] for name in nearest_settings(override_key(override), schema)]
    if names:
        return f"{override}: there is no such setting. Did you mean {' or '.join(names)}?"
    key = override_key(override)
    siblings = names_within(key, schema)
    shown = "hydra" if key.startswith("hydra.") else "job"
    remedy = f"{key.rpartition('.')[0]} has {', '.join(siblings)}." if siblings else f"--cfg {shown} shows all settings."
    return f"{override}: there is no such setting. {remedy}"


def several_values(shown: str, key: str, hint: Any, *, is_group: bool) -> str:
    """Return the message about several values outside of a sweep."""
    listed = quote_word("{}=[{}]".format(*shown.split("=", 1)))
    if get_origin(hint) is list:
        return f"{shown}: must be {describe_type(hint)}. Type {listed}"
    name, _, typed = shown.partition("=")
    grouped = bool(GROUPED.fullmatch(typed)) and hint not in (float, float | None)
    number = f" A number is typed without commas: {name}={typed.replace(',', '')}" * grouped
    fraction = (hint in (float, float | None) or takes_unit(key)) and FRACTION.fullmatch(typed) and not grouped
    point = f" A decimal fraction is typed with a point: {quote_word(shown.replace(',', '.'))}" * bool(fraction)
    single = f" All of them in one run: {listed}" if key in TOGETHER else " A single run has one of them." * is_group
    return f"{shown}: only a sweep tries several values. Add -m.{point}{number}{single}"


def wrong_type(override: str, hint: Any, value: Any) -> str:
    """Return the message about a value that cannot be read as the type of its setting."""
    if value is None and hint is None:
        return f"{override}: this is not the name of an option."
    key, _, typed = override.partition("=")
    if not typed:
        return f"{key}= has no value. It must be {describe_type(hint)}."
    remedy = ""
    if isinstance(value, str) and (amount := AMOUNT.fullmatch(value)):
        number = float(amount[1]) * {"k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9}[amount[2].lower()]
        remedy = f" Write {key}={number:.0f}"
    elif isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?%", value):
        remedy = f" Write {key}={float(value[:-1]) / 100:g}"
    elif re.fullmatch(r"[\[({][^\[\](){}:]+[\])}]", typed) and get_origin(hint) is not list:
        remedy = f" To try several values: -m {key}={typed[1:-1].replace(' ', '')}"
    elif isinstance(value, float) and value.is_integer():
        remedy = f" Write {key}={value:.0f}"
    return f"{override}: must be {describe_type(hint)}.{remedy}"
