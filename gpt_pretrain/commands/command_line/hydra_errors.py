"""Explain the errors of Hydra and OmegaConf that no check of the arguments finds, such as mistakes in a file of conf/."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import yaml
from hydra.errors import CompactHydraException, HydraException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from gpt_pretrain.commands.command_line.command_words import schema_of, sort_arguments
from gpt_pretrain.commands.command_line.custom_options import endless_defaults
from gpt_pretrain.commands.command_line.setting_messages import unknown_setting
from gpt_pretrain.config.conversion import explain_value
from gpt_pretrain.config.overrides import override_key, split_override
from gpt_pretrain.config.setting_names import all_types, describe_type, group_options, is_declared, settings_class
from gpt_pretrain.config.settings_files import FORM, settings_file_problems
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.checkout import CONF
from gpt_pretrain.system.yaml_files import read_yaml

ADVICE = re.compile(
    r"(?m)^\s*(?:See https?:|Set the environment variable|To append to your|Hydra |Config search path|\t?provider=).*\n?"
)
NOT_LISTED = re.compile(r"In '([^']+)': Could not override '([^']+)'")
NO_OPTION = re.compile(r"(?:In '[^']+': )?Could not find '([^']+)/([^'/]+)'\s*Available options in '[^']+':\s*(.*)", re.DOTALL)
NO_DEFAULT = re.compile(r"Could not override '([^'@]+)'\. No match in the defaults list")
NOT_SETTINGS = re.compile(
    r"In '([^']+)': \w+ raised while composing config:\s*"
    r"(?:Cannot merge DictConfig with ListConfig|Merge error: \w+ is not a subclass of (\w+)\. value: (.*))"
)
NO_FILE = re.compile(r"In '([^']+)': Could not (?:find|load) '([^']+)'")
NO_FOLDER = re.compile(r"Additional config directory '(.*)' not found")
GLOBAL = "# @package _global_"
ITEM = re.compile(r"(.+)\[(\d+)\]")
HYDRA_ERRORS = (HydraException, CompactHydraException, OmegaConfBaseException)
UNREADABLE = (yaml.YAMLError, UnicodeDecodeError, RecursionError, OSError)  # about the content of a file of settings


def explain_hydra_error(error: Exception, *, script: str, arguments: list[str] | None = None) -> UserError | None:
    """Turn an error of Hydra into a message of this program; None for a defect.

    Args:
        script: "train", "generate", "evaluate" or "serve".
        arguments: What was typed; None for the arguments of this process.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    found = [one for one in chain if isinstance(one, HYDRA_ERRORS)]
    if isinstance(error, AssertionError | AttributeError) and "NoneType" in str(error):  # OmegaConf sets nothing within null
        return _explain_null(arguments)
    folders = sort_arguments(arguments).config_folders
    if any(isinstance(one, UNREADABLE) for one in chain) and (
        problems := settings_file_problems(folders) or endless_defaults(folders)
    ):
        return UserError(problems)
    if not found:
        return None
    typed = next((one for one in found if isinstance(one, OmegaConfBaseException) and one.full_key), None)
    explained = typed and _explain_setting(typed, schema_of(script), arguments)
    explained = explained or _explain_group(str(error), schema_of(script))
    return UserError(explained or _explain_defaults(str(error), folders) or _first_lines(found[0]))


def _explain_setting(error: OmegaConfBaseException, schema: type, arguments: list[str]) -> str | None:
    """Return the message about a setting in a file of conf/ that does not exist, or has a value of the wrong type.

    Args:
        arguments: What was typed.
    """
    key, text = str(error.full_key), str(error.msg or error)
    file = _typed_option(key, arguments)
    if (explained := explain_value(error, schema)) is not None:
        return explained
    if "index out of range" in text and (item := ITEM.fullmatch(key)) is not None:
        return f"{item[1]}.{item[2]}: this list has no item {item[2]}. A list is set as a whole: '{item[1]}=[ITEM,ITEM]'"
    if isinstance(error, ConfigKeyError | ConfigAttributeError) and is_declared(schema, key):
        where = file or "the file of the chosen option"
        return f"{key}: {where} lacks this setting, so no value can be typed for it. Add it to the file."
    if isinstance(error, ConfigKeyError | ConfigAttributeError) and group_options(key):  # such as experiment
        where = file or "the file of the chosen option"
        return f"{key}: {where} contains settings of all groups, so it must begin with the line `{GLOBAL}`."
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        is_there = file is not None and key.split(".")[-1] in file.read_text(encoding="utf-8")
        return f"{file}: " * is_there + unknown_setting(key, schema)
    return f"{key}: {text.splitlines()[0]}."


def _typed_option(key: str, arguments: list[str]) -> Path | None:
    """Return the file of the option that is typed for the group of a setting; None if there is none."""
    group = key.partition(".")[0]
    options = [split_override(word)[1].removesuffix(".yaml") for word in arguments if override_key(word) == group]
    folders = sort_arguments(arguments).config_folders
    files = (folder / group / f"{option}.yaml" for option in options for folder in folders)
    return next((file for file in files if file.is_file()), None)


def _explain_group(text: str, schema: type) -> str | None:
    """Return the message about a file of conf/ that holds a list, or a group that is a single value there."""
    if (found := NOT_SETTINGS.search(text)) is None:
        return None
    where, name, value = found.groups()
    if name is None:
        return f"{where}: this file holds a list in place of settings. {FORM}"
    groups = ((group, hint) for group, hint in all_types(schema) if getattr(settings_class(hint), "__name__", None) == name)
    if (found_group := next(groups, None)) is None:
        return None
    group, hint = found_group
    if value not in group_options(group):
        return f"{where}: {group}: {value} must be {describe_type(hint)}."
    entry = f"override /{group}" if "/" in where else group  # the list of an option would look for the group in its own folder
    remedy = f"To choose an option, write `- {entry}: {value}` in the list `defaults:`."
    return f"{where}: {group} is a group of settings, but here it is the word {value}. {remedy}"


def _explain_null(arguments: list[str]) -> UserError | None:
    """Return the message about settings within a group that is null. It names the options that set the group."""
    problems = []
    for override in arguments:
        key = override_key(override)
        part = key if override.partition("=")[2].startswith("{") else key.rpartition(".")[0]
        group, _, name = part.partition(".")
        files = {option: read_yaml(CONF / group / f"{option}.yaml") for option in group_options(group)}
        options = [option for option, content in files.items() if name and content.get(name) is not None]
        if options and "=" in override:
            chosen = " or ".join(f"{group}={option}" for option in options)
            problems.append(f"{override}: {group}.{name} is null here, so it has no settings. Choose {chosen} as well.")
    return UserError(problems) if problems else None


def _explain_defaults(text: str, folders: tuple[Path, ...]) -> str | None:
    """Return the message about a folder of configs, an option or a group that does not exist.

    Args:
        folders: The folders with the options of groups.
    """
    if (missing := NO_FOLDER.search(text)) is not None:
        return f"--config-dir={missing[1]}: there is no such folder."
    if (option := NO_OPTION.search(ADVICE.sub("", text))) is not None:
        group, name, options = option.groups()
        if misnamed := [file for folder in folders if (file := folder / group / f"{name}.yml").is_file()]:
            return f"{group}={name}: {misnamed[0]} must have the ending .yaml. Rename it."
        return f"{group}={name}: the group {group} has no option {name}. Its options are {', '.join(options.split())}."
    if (entry := NO_FILE.search(text)) is not None:
        return _explain_entry(*entry.groups(), folders=folders)
    if (found := NOT_LISTED.search(text)) is None:
        typed = NO_DEFAULT.search(text)
        return f"{typed[1]}=: no default names this group. Add it with a plus sign: +{typed[1]}=OPTION" if typed else None
    where, group = found[1], found[2].lstrip("/")
    if group == "tokenizer":
        return (
            f"{where} overrides the group tokenizer, which has become a setting. In place of `override /tokenizer: NAME` in its "
            "defaults, write below them: tokenizer: {name: NAME}"
        )
    if (name := group.partition("@")[0]) != group and group_options(name, folders):
        return f"{where} overrides the group {name}. Only a file that begins with `{GLOBAL}` can do so: add this line."
    return f"{where} overrides the group {group}, which does not exist here. `--help` lists the groups."


def _explain_entry(where: str, entry: str, *, folders: tuple[Path, ...]) -> str:
    """Return the message about an entry of a list of defaults that names no file.

    Args:
        where: The option with the list, such as experiment/mine.
        entry: The option that is named.
    """
    message = f"{where}: its list `defaults:` names {entry}, which does not exist."
    group, _, name = entry.removeprefix(f"{where.rpartition('/')[0]}/").rpartition("/")
    if group and name in (options := group_options(group, folders)):
        remedy = f"write `- override /{group}: {name}`, and begin the file with `{GLOBAL}`."
        return f"{message} To choose an option of the group {group}, {remedy}"
    options = group_options(group or where.rpartition("/")[0], folders)
    return f"{message} The options are {', '.join(options)}." if options else message


def _first_lines(error: BaseException) -> str:
    """Return the text of an error, without Hydra's advice about Hydra."""
    text = ADVICE.sub("", str(error)).strip() or type(error).__name__
    return " ".join(line.strip() for line in text.splitlines() if line.strip())
