"""Sign the settings in a checkpoint when it is written, and decide by the table of stored settings which ones to take from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gpt_pretrain.config.custom_parts import CUSTOM
from gpt_pretrain.config.interpolation import escape_interpolation
from gpt_pretrain.config.override_messages import UNSIGNED, describe_override, explain_locations
from gpt_pretrain.config.schema import DataSettings, OptimizerSettings, SchedulerSettings, TrainSettings
from gpt_pretrain.config.stored_locations import fix_location, has_cut_part, is_harmless_location
from gpt_pretrain.config.stored_settings import ASKED, BOUNDED, LOCAL, NAMED, NEVER, TAKEN, TRAIN_KINDS, value_kind, within_bounds
from gpt_pretrain.config.train_rules import broken_train_rules
from gpt_pretrain.errors import UserError
from gpt_pretrain.model.config import ADDED_FIELDS
from gpt_pretrain.system.nested_values import expand_aliases
from gpt_pretrain.system.reading import DamagedFileError
from gpt_pretrain.system.signing import has_signature, signature
from gpt_pretrain.system.terminal import escape_line

SIGNATURE_FIELD = "settings_signature"  # of a checkpoint, beside its "config"
MAX_STORED_VALUES = 2000  # values in stored settings; a run has fewer than 200
MAX_TEXT, MAX_TEXTS = 10_000, 50_000  # characters of one text, and of all texts, in settings without a signature
MAX_INTEGER = 2**63
PURPOSE = "settings of a checkpoint"
ADDED_GROUP = "evaluation"  # a group that earlier versions did not have, and so did not sign
ADDED = "trainer.profiler"  # a setting that earlier versions did not sign, and that is null in nearly all runs
# A resumed run has its own devices. It opens no weights but those of its checkpoint, so init_from is only recorded.
OF_THIS_START, RECORDED = ("trainer.devices", "trainer.num_nodes"), ("init_from",)

OF_THE_TEXT = ("train_ratio", "val_tokens", "format", "sources")  # settings that decide which tokens are for validation


@dataclass(frozen=True)
class AdmittedSettings:
    """The settings that are taken from a checkpoint.

    Args:
        settings: The settings that are taken, nested.
        problems: Messages about paths and URLs that the user must type.
        notices: Messages about settings that are changed or left out.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


def sign_settings(config: Mapping[str, Any]) -> str:
    """Return this user's signature of those settings in a checkpoint that are not taken from everybody."""
    return signature(_signed_content(config), purpose=PURPOSE).hex()


def has_signed_settings(content: Mapping[str, Any]) -> bool:
    """Return whether this user has signed the settings in a checkpoint."""
    signed, config = content.get(SIGNATURE_FIELD), content.get("config")
    if not isinstance(signed, str) or not isinstance(config, dict):
        return False
    try:
        _check_plain(config, own=True, origin="The checkpoint")
        return has_signature(_signed_content(config), bytes.fromhex(signed), purpose=PURPOSE)
    except (ValueError, TypeError):  # a UserError is a ValueError
        return False


def read_stored_settings(config: Any, *, own: bool, origin: str) -> dict[str, Any]:
    """Return the settings in a checkpoint that the schema has too, nested and with the types of the schema.

    Args:
        own: Whether the checkpoint has this user's signature, so that its texts may be long.
        origin: The file, for messages.

    Raises:
        UserError: If they are not plain data, name a class to build, have wrong types, or contain far too long texts.
    """
    _check_plain(config, own=own, origin=origin)
    known: dict[str, Any] = {}
    for key in (*TRAIN_KINDS, *_optional_groups()):
        if TRAIN_KINDS.get(key) != NEVER and (found := _find_value(config, key)) and (key in TRAIN_KINDS or found[0] is None):
            _insert(known, key, found[0])
    if isinstance(known.get("model"), dict):
        known["model"] = ADDED_FIELDS | known["model"]
    # A setting is missing if the version did not have it. The schema's default is what that version did; conf/ is for new runs.
    for group, kind in (("optimizer", OptimizerSettings), ("scheduler", SchedulerSettings)):
        if isinstance(known.get(group), dict):
            known[group] = _default_fields(kind) | known[group]
    try:
        merged = OmegaConf.merge(OmegaConf.structured(TrainSettings), OmegaConf.create(escape_interpolation(known)))
        typed = OmegaConf.to_container(merged, resolve=True)
    except RecursionError:
        raise UserError(f"{origin}: its settings are not valid. They are nested too deeply.") from None
    except OmegaConfBaseException as error:
        problem = escape_line(f"{error.full_key or 'config'}: {error.msg or error}".splitlines()[0])[:300]
        raise UserError(f"{origin}: its settings are not valid. {problem}") from error
    assert isinstance(typed, dict)
    return _common_part(typed, known)


def admit_settings(
    stored: Mapping[str, Any],
    present: Mapping[str, Any],
    *,
    is_typed: Callable[[str], bool],
    own: bool,
    origin: str,
    folder: Path | None,
) -> AdmittedSettings:
    """Choose the settings that are taken from a checkpoint, and explain the others.

    Args:
        stored: The settings that `read_stored_settings` returned.
        present: The settings of this start. They replace the settings that are not taken.
        is_typed: Returns whether the user has typed the setting of a name.
        own: Whether the checkpoint has this user's signature.
        origin: The file, for messages.
        folder: The folder of the run; None if it is unknown.
    """
    admitted = AdmittedSettings()
    if not own:
        admitted.notices.append(f"This run continues {origin}, {UNSIGNED}.")
    asked: dict[bool, list[str]] = {True: [], False: []}  # overrides to type, by whether their setting is signed
    for key, kind in (TRAIN_KINDS | dict.fromkeys(_optional_groups(), TAKEN)).items():
        found = _find_value(stored, key)
        if not found or key in OF_THIS_START or (key not in TRAIN_KINDS and found[0] is not None):
            continue
        value, now = found[0], next(iter(_find_value(present, key)), None)
        typed = is_typed(key) and now != "auto"  # with auto, a resumed run keeps the stored value
        # A checkpoint holds its tokenizer, and never says where it came from, so the signature does not cover its name.
        signed, kind = own and kind != NAMED, value_kind(kind, value)
        if value == now or typed or key in RECORDED or (own and kind == BOUNDED):
            kind = TAKEN
        if kind == TAKEN or (signed and not has_cut_part(value)):
            _insert(admitted.settings, key, value)
        elif kind == BOUNDED:
            taken = within_bounds(key, value)
            _insert(admitted.settings, key, taken)
            if taken != value:
                admitted.notices.append(_describe_limit(key, value, taken, origin=origin))
        elif kind == LOCAL and not own:
            shown = describe_override(key, value)
            admitted.notices.append(f"{shown} comes from {origin} and is not used. To use it, add: {shown}")
        elif kind == ASKED and is_harmless_location(key, value, folder=folder):
            _insert(admitted.settings, key, fix_location(key, value))
        else:
            asked[signed].append(describe_override(key, value))
    admitted.problems.extend(explain_locations(words, origin=origin, own=signed) for signed, words in asked.items() if words)
    return admitted


def _describe_limit(key: str, value: Any, taken: Any, *, origin: str) -> str:
    shown = describe_override(key, value)
    used = f"the first {len(taken)} of them" if isinstance(taken, list) else taken
    return f"{shown} comes from {origin}. This run uses {used}. To change it: {shown}"


def read_data_settings(content: Mapping[str, Any]) -> DataSettings | None:
    """Return the `data` settings in a checkpoint, by which its text is found again. Return None if a location must be typed.

    Raises:
        UserError: If the settings are not valid.
    """
    own = has_signed_settings(content)
    stored = read_stored_settings(content["config"], own=own, origin="The checkpoint")
    admitted = admit_settings(
        {"data": stored.get("data", {})},
        {},
        is_typed=lambda _: False,
        own=own,
        origin="the checkpoint",
        folder=None,
    )
    if admitted.problems:
        return None
    data: DictConfig = OmegaConf.structured(DataSettings)
    for name in ("path", "url", "sha256", "cache_dir"):
        data[name] = None
    merged = OmegaConf.merge(data, OmegaConf.create(escape_interpolation(admitted.settings.get("data", {}))))
    try:
        settings = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise UserError(f"The checkpoint's data settings are not complete: {error.full_key} is missing.") from error
    assert isinstance(settings, DataSettings)
    if broken := [one for key in OF_THE_TEXT for one in broken_train_rules(f"data.{key}", getattr(settings, key))]:
        raise UserError([f"The checkpoint's settings cannot be used: {problem}" for problem in broken])
    return settings


def forgotten_options(config: Mapping[str, Any], present: Mapping[str, Any]) -> list[str]:
    """Return the names of the remote file system's options that the checkpoint's run had, but this start does not."""
    before, now = (next(iter(_find_value(settings, "data.remote.options")), None) for settings in (config, present))
    names = before if isinstance(before, dict) else {}
    return [escape_line(str(name))[:100] for name in names if not isinstance(now, dict) or name not in now]


def _check_plain(config: Any, *, own: bool, origin: str) -> None:
    """Check that stored settings are plain data of a plausible size. The user's own settings may hold long texts.

    Raises:
        UserError: If they are not, or name a class to build.
    """
    try:
        waiting = [expand_aliases(config, max_values=MAX_STORED_VALUES)]
    except DamagedFileError:
        raise UserError(
            f"{origin}: the stored settings have far too many parts: more than {MAX_STORED_VALUES:,}. The file is damaged."
        ) from None
    characters = 0
    while waiting:
        node = waiting.pop()
        if isinstance(node, str) and node == MISSING:  # OmegaConf accepts this text for any type, as a value still to be set.
            raise UserError(f"{origin}: the stored settings contain a value that is missing ({MISSING}). The file is damaged.")
        if isinstance(node, str) and not own:
            characters += len(node)
            if len(node) > MAX_TEXT or characters > MAX_TEXTS:
                raise UserError(
                    f"{origin}, {UNSIGNED}, stores a text of more than {MAX_TEXT:,} characters, or more than {MAX_TEXTS:,} "
                    "characters in all, in its settings, so it is not read. Start a new run from its weights with init_from="
                )
        if isinstance(node, dict):
            if "_target_" in node:
                raise UserError(
                    f"{origin}: the stored settings contain a _target_, which could run any code. This program never stores one."
                )
            waiting += [*node, *node.values()]
        elif isinstance(node, list | tuple):
            waiting += node
        elif not (node is None or type(node) in (str, bool, float) or (type(node) is int and abs(node) < MAX_INTEGER)):
            raise UserError(f"{origin}: the stored settings contain an invalid {type(node).__name__}. The file is damaged.")


def _signed_content(config: Mapping[str, Any]) -> bytes:
    kinds = {key: kind for key, kind in TRAIN_KINDS.items() if not key.startswith(f"{ADDED_GROUP}.")}
    covered = {key: _find_value(config, key) for key, kind in kinds.items() if kind in (BOUNDED, ASKED, LOCAL)}
    if covered[ADDED] in ([], [None]):
        del covered[ADDED]
    for added in (CUSTOM, ADDED_GROUP):
        if config.get(added):  # earlier versions had no such parts
            covered[added] = [config[added]]
    return json.dumps(covered, sort_keys=True).encode()


def _optional_groups() -> list[str]:
    """Return the names of all groups within groups, since some of them may be null."""
    return sorted({key.rpartition(".")[0] for key in TRAIN_KINDS if key.count(".") > 1})


def _find_value(config: Any, key: str) -> list[Any]:
    """Return a list with the value of a setting in nested settings, or an empty list if there is none."""
    for name in key.split("."):
        if not isinstance(config, Mapping) or name not in config:
            return []
        config = config[name]
    return [config]


def _insert(config: dict[str, Any], key: str, value: Any) -> None:
    """Set a setting in nested settings."""
    *groups, name = key.split(".")
    for group in groups:
        config = config.setdefault(group, {})
    config[name] = value


def _default_fields(kind: type) -> dict[str, Any]:
    """Return the fields of a settings class that have a default, as plain values."""
    defaults = OmegaConf.to_container(OmegaConf.structured(kind))
    assert isinstance(defaults, dict)
    return {str(name): value for name, value in defaults.items() if value != MISSING}


def _common_part(typed: dict[Any, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of nested settings whose names are in `known` too."""
    return {
        name: _common_part(typed[name], value) if isinstance(value, dict) and isinstance(typed[name], dict) else typed[name]
        for name, value in known.items()
    }
