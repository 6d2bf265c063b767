"""Convert between OmegaConf configs and the dataclasses of the settings."""

from __future__ import annotations

import dataclasses
import re
from typing import TypeVar, get_args, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException, ValidationError

from gpt_pretrain.config.custom_parts import CUSTOM, take_custom_parts
from gpt_pretrain.config.setting_names import describe_type, find_type, is_declared
from gpt_pretrain.errors import UserError

Settings = TypeVar("Settings")
WRONG_VALUE = re.compile(r"Value '(.*?)'", re.DOTALL)
NOT_A_LIST = re.compile("is not a (?:ListConfig|DictConfig)|is not a subclass of")
MISSING_REFERENCE = re.compile(r"Interpolation key '(.*?)' not found")


def to_settings(config: DictConfig, schema: type[Settings]) -> Settings:
    """Return a composed config as typed settings.

    Raises:
        UserError: If a key is unknown (Hydra accepts any `+key=value`), or a value is missing, invalid or cannot be resolved.
    """
    try:
        config = take_custom_parts(config) if CUSTOM in get_type_hints(schema) else config
        unknown = _unknown_keys(OmegaConf.to_container(config), schema)
        if unknown:
            raise UserError(f"{key}: there is no such setting. --cfg job shows all settings." for key in unknown)
        settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), config))
    except MissingMandatoryValue as error:
        group = str(error.full_key).rpartition(".")[0]
        remedy = f"Choose an option of the group {group}, or set it" if group.isidentifier() else "Set it"
        raise UserError(f"{error.full_key} has no value. {remedy}.") from error
    except OmegaConfBaseException as error:
        raise UserError(explain_value(error, schema) or f"{error.full_key or 'config'}: {_first_line(error)}.") from error
    assert isinstance(settings, schema)
    return settings


def explain_value(error: OmegaConfBaseException, schema: type) -> str | None:
    """Return the message about a value of the wrong type or a reference to nothing, or None for any other error."""
    key, text = str(error.full_key), str(error.msg or error)
    if (reference := MISSING_REFERENCE.match(text)) is not None:
        return f"{key} refers to ${{{reference[1]}}}, which does not exist. --cfg job shows all settings."
    if NOT_A_LIST.search(text) is not None and is_declared(schema, key):
        return f"{key}: must be {describe_type(find_type(schema, key))}."
    if not isinstance(error, ValidationError) or (value := WRONG_VALUE.match(text)) is None:
        return None
    try:
        return f"{key}={value[1]}: must be {describe_type(find_type(schema, key))}."
    except KeyError:
        return f"{key}={value[1]}: {_first_line(error)}."


def _first_line(error: OmegaConfBaseException) -> str:
    return str(error.msg or error).splitlines()[0].rstrip(".")


def _unknown_keys(node: object, schema: type, prefix: str = "") -> list[str]:
    """List the keys of nested dicts that the nested dataclasses do not have."""
    if not isinstance(node, dict):
        return []
    hints, unknown = get_type_hints(schema), []
    for key, value in node.items():
        if key not in hints:
            unknown.append(f"{prefix}{key}")
            continue
        for hint in (hints[key], *get_args(hints[key])):  # the type itself, or the types in `X | None`
            if dataclasses.is_dataclass(hint) and isinstance(hint, type):
                unknown += _unknown_keys(value, hint, f"{prefix}{key}.")
    return unknown
