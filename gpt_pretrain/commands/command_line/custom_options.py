"""Find the groups of a command line that are the user's own parts, by typed settings and by chosen options."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence, Set
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from gpt_pretrain.commands.command_line.command_words import schema_of
from gpt_pretrain.commands.command_line.hydra_grammar import setting_values
from gpt_pretrain.commands.command_line.setting_messages import unknown_setting
from gpt_pretrain.config.custom_parts import CUSTOM, CUSTOM_GROUPS, TARGET
from gpt_pretrain.config.overrides import override_key, split_override
from gpt_pretrain.config.setting_names import find_type, is_declared, script_groups
from gpt_pretrain.system.checkout import CONF
from gpt_pretrain.system.reading import DamagedFileError, read_bytes
from gpt_pretrain.system.yaml_files import MAX_YAML_BYTES, parse_yaml_value, read_yaml

# A file with this line at its beginning, as Hydra (1.3) reads it, may be about another group than that of its folder.
PACKAGE = re.compile(rb"^\s*#\s*@package ", re.MULTILINE)
OPTION = re.compile(r"[^\s,()\[\]{}'\"]+")  # a name in a value, also within choice(...) and quotes
EXPONENT = re.compile(r"[-+]?[0-9_.]+[eE][-+]?[0-9]+")  # what OmegaConf (2.3) takes for a number, and PyYAML (6.0) for a text


def choose_custom_options(overrides: Sequence[str]) -> list[str]:
    """Add the option `custom` of each group with a typed class, so that a built-in option does not add its arguments."""
    typed = {override_key(override) for override in overrides}
    missing = [group for group in CUSTOM_GROUPS if f"{group}.{TARGET}" in typed and group not in typed]
    return [*(f"{group}={CUSTOM}" for group in missing if (CONF / group / f"{CUSTOM}.yaml").is_file()), *overrides]


def custom_groups(overrides: Sequence[str], *, folders: Sequence[Path]) -> set[str]:
    """Return the groups that are the user's own: their class is typed, or a typed option leads to a file that names it.

    Args:
        folders: The folders with the options of groups.
    """
    typed = {override_key(override) for override in overrides}
    found = {group for group in CUSTOM_GROUPS if f"{group}.{TARGET}" in typed}
    for option, _, content in _chosen_contents(overrides, folders):
        parts = {name: content.get(name) for name in CUSTOM_GROUPS} | {option.partition("/")[0]: content}
        found.update(name for name in CUSTOM_GROUPS if isinstance(part := parts[name], dict) and TARGET in part)
    return found


def misread_texts(overrides: Sequence[str], own: Set[str], *, folders: Sequence[Path], script: str) -> list[str]:
    """List the values in files of settings that YAML changes although their settings are texts: no means false, and 12:30 is 750.

    Args:
        own: The groups that are the user's own, whose fields may have any values.
        folders: The folders with the options of groups.
        script: "train", "generate", "evaluate" or "serve".

    Raises:
        UserError: If the file of the script's defaults cannot be read.
    """
    script_groups(script)  # checks this file
    problems, schema, defaults = [], schema_of(script), CONF / f"{script}.yaml"
    for option, file, content in [(script, defaults, read_yaml(defaults)), *_chosen_contents(overrides, folders)]:
        group, slash, _ = option.partition("/")
        prefix = group if slash and is_declared(schema, group) else None
        changed = [
            key
            for key, value in _settings_of(content, prefix)
            if (isinstance(value, bool | int | float) or EXPONENT.fullmatch(str(value)))
            and not is_custom_field(key, own)
            and is_declared(schema, key)
            and find_type(schema, key) in (str, str | None)
        ]
        if not changed:
            continue
        written = dict(_settings_of(read_yaml(file, as_written=True), prefix))
        read = dict(_settings_of(_read_as_hydra(file), prefix))
        problems += [
            f"{option}.yaml: {key} is a text, but YAML reads it as {read[key]}. Put it within quotation marks."
            for key in changed
            if isinstance(read[key], bool) or str(read[key]) != written[key]
        ]
    return problems


def undeclared_settings(overrides: Sequence[str], own: Set[str], *, folders: Sequence[Path], script: str) -> list[str]:
    """List the unknown settings in the files of chosen options. A file that holds a single word sets a setting of this name.

    Args:
        own: The groups that are the user's own, whose fields may have any names.
        folders: The folders with the options of groups.
        script: "train", "generate", "evaluate" or "serve".
    """
    problems, schema = [], schema_of(script)
    for option, file, content in _chosen_contents(overrides, folders):
        group = option.partition("/")[0]
        if not is_declared(schema, group) or PACKAGE.search(file.read_bytes()):
            continue
        keys = [key for key, _ in _settings_of({name: part for name, part in content.items() if name != "defaults"}, group)]
        problems += [
            f"{file}: {unknown_setting(key, schema)}"
            for key in keys
            if not is_custom_field(key, own) and not any(is_declared(schema, key, within_mapping=free) for free in (False, True))
        ]
    return problems


def _read_as_hydra(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(file))  # type: ignore[assignment]
    return content


def _settings_of(content: dict[str, Any], group: str | None) -> Iterator[tuple[str, Any]]:
    """Yield the settings in a file of settings with their values.

    Args:
        group: The group of an option's file; None for a file with settings of several groups.
    """
    parts = content if group is None else {group: content}
    return (pair for name, part in parts.items() for pair in setting_values(name, part))


def _chosen_contents(overrides: Sequence[str], folders: Sequence[Path]) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """Yield the options that overrides choose, and those in their lists of defaults, each with its file and its content."""
    chosen = [choice for choice in map(split_override, overrides) if any((folder / choice[0]).is_dir() for folder in folders)]
    waiting = [f"{group}/{name}" for group, value in chosen for name in OPTION.findall(value)]
    seen = set[str]()
    while waiting:
        if (option := waiting.pop()) in seen:
            continue
        seen.add(option)
        for file, content in _read_options(option, folders).items():
            yield option, file, content
            waiting += _default_options(content, option.rpartition("/")[0])


def endless_defaults(folders: Sequence[Path]) -> list[str]:
    """Return a message for each option whose list of defaults leads back to itself."""
    problems = []
    for file in (file for folder in folders for file in sorted(folder.glob("*/*.yaml"))):
        option = f"{file.parent.name}/{file.stem}"
        if option in _options_behind(option, folders):
            problems.append(f"{file}: its list `defaults:` leads back to {option} itself. Remove this entry.")
    return problems


def _options_behind(option: str, folders: Sequence[Path]) -> set[str]:
    """Return the options in the defaults list of an option, and those in their lists."""
    found, waiting = set[str](), [option]
    while waiting:
        one = waiting.pop()
        listed = {
            name for content in _read_options(one, folders).values() for name in _default_options(content, one.rpartition("/")[0])
        }
        waiting += listed - found
        found |= listed
    return found


def is_custom_field(override: str, groups: Set[str]) -> bool:
    """Return whether an override sets a field of one of these groups."""
    group, dot, _ = override_key(override).partition(".")
    return bool(dot) and group in groups


def _read_options(option: str, folders: Sequence[Path]) -> dict[Path, dict[str, Any]]:
    """Return the contents of an option of a group, such as optimizer/adamw, by file. Several folders may have it."""
    contents = {}
    for file in (folder / f"{option.removesuffix('.yaml')}.yaml" for folder in folders):
        with suppress(OSError, DamagedFileError, ValueError):
            content = parse_yaml_value(read_bytes(file, max_bytes=MAX_YAML_BYTES))
            content = {content: None} if isinstance(content, str) else content  # as OmegaConf reads a word
            if isinstance(content, dict):
                contents[file] = {str(name): value for name, value in content.items()}
    return contents


def _default_options(content: dict[str, Any], folder: str) -> list[str]:
    """Return the options in the defaults list of a file in a folder of options."""
    defaults, options = content.get("defaults"), list[str]()
    for entry in defaults if isinstance(defaults, list) else []:
        for group, names in entry.items() if isinstance(entry, dict) else [("", entry)]:
            path = str(group).split(" ")[-1].partition("@")[0]  # without the words override and optional, and the package
            for name in names if isinstance(names, list) else [names]:
                option = "/".join(part for part in (path, str(name).partition("@")[0]) if part)
                options.append(option.lstrip("/") if option.startswith("/") else f"{folder}/{option}")
    return options
