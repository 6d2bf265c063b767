"""Parse the arguments of `gpt-pretrain COMMAND`: `name=value`, `--name=value`, `--name value`, `--flag` and positional ones.

An argument that begins with dashes and names no setting is positional if a file has this name. So is everything after `--`.
"""

from __future__ import annotations

import glob
import sys
from collections.abc import Collection, Set
from typing import TypeVar, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gpt_pretrain.config.conversion import to_settings
from gpt_pretrain.config.interpolation import escape_interpolation
from gpt_pretrain.config.overrides import expand_amounts, repeated_settings, short_form
from gpt_pretrain.config.secrets import override_without_secrets
from gpt_pretrain.config.setting_names import describe_type, nearest
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.environment import user_path
from gpt_pretrain.system.formatting import shorten_middle
from gpt_pretrain.system.typed_paths import output_problem

END_OF_OPTIONS = "--"
MAX_SENTENCE = 300  # characters of a warning
# Settings for which an empty text would mean the current folder, and an example of a value.
PLACES = {"out": "PATH", "checkpoint": "PATH", "tokenizer": "NAME", "dataset": "NAME"}

Settings = TypeVar("Settings")


def wants_help(arguments: list[str]) -> bool:
    """Return whether the arguments ask for help."""
    options = arguments[: arguments.index(END_OF_OPTIONS)] if END_OF_OPTIONS in arguments else arguments
    return bool({"-h", "--help"} & set(options))


def parse_arguments(arguments: list[str], schema: type[Settings], *, usage: str, positional: str | None = None) -> Settings:
    """Parse a command's arguments into its settings. `--help` prints the usage and exits.

    Args:
        schema: The dataclass of the command's settings.
        positional: The list setting for arguments without `name=`.

    Raises:
        UserError: If a setting is unknown, missing or of the wrong type. It lists all problems together.
        SystemExit: After printing the usage.
    """
    if wants_help(arguments):
        print(usage.strip())
        raise SystemExit(0)
    hints = get_type_hints(schema)
    names = [name for name in hints if name != positional]
    overrides, files = _sort_arguments(arguments, names, flags={name for name, hint in hints.items() if hint is bool})
    config: DictConfig = OmegaConf.structured(schema)
    if positional is not None:
        # A positional argument may contain "=", like the folders of sweeps.
        values = [one for one in overrides if one.partition("=")[0] not in names and not _is_unknown_option(one, names)]
        overrides = [override for override in overrides if override not in values]
        if values or files:
            config[positional] = escape_interpolation(values + files)
    else:
        overrides += files
    warn_of_repetitions(overrides)
    _apply(config, list(map(short_form, overrides)), names, schema)
    return to_settings(config, schema)


def warn_of_repetitions(overrides: list[str]) -> None:
    """Print a warning about each setting that is typed several times."""
    for sentence in repeated_settings(map(override_without_secrets, overrides)):
        from gpt_pretrain.system.terminal import escape_line, print_escaped  # loads rich

        print_escaped(f"warning: {shorten_middle(escape_line(sentence), MAX_SENTENCE)}", file=sys.stderr)


def _sort_arguments(arguments: list[str], names: Collection[str], *, flags: Set[str]) -> tuple[list[str], list[str]]:
    """Return the arguments before `--`, with all settings written as `name=value`, and the arguments after it.

    Settings may be typed as `--name=value`, as `--name value` and, for flags, as `--name`.

    Args:
        names: The settings.
        flags: The settings that need no value.
    """
    overrides = list[str]()
    remaining = iter(arguments)
    for argument in remaining:
        name, equals, _ = argument.removeprefix("--").partition("=")
        if argument == END_OF_OPTIONS:
            break
        if not argument.startswith("--") or name not in names:
            overrides.append(argument)
        elif equals:
            overrides.append(argument[2:])
        else:
            overrides.append(f"{name}={'true' if name in flags else next(remaining, '')}")
    return overrides, list(remaining)


def _is_unknown_option(argument: str, names: Collection[str]) -> bool:
    """Return whether an argument looks like an option or begins like a setting, without being the name of a file."""
    name, equals, _ = argument.partition("=")
    is_like_setting = equals and not set(name) & set("/.*?[") and bool(nearest(name, list(names)))
    return bool(argument.startswith("--") or is_like_setting) and not user_path(argument).exists() and not glob.glob(argument)


def _nearest_names(name: str, names: list[str]) -> str:
    close = nearest(name, names)
    if close or not names:
        return f"Did you mean {' or '.join(close)}?" if close else "--help shows how to use this command."
    return f"Choose from {', '.join(names)}; --help explains them."


def _apply(config: DictConfig, overrides: list[str], names: list[str], schema: type) -> None:
    """Set the values of overrides in a config.

    OmegaConf converts each text to the type of its setting. `OmegaConf.from_dotlist` is not used, since it reads the text as YAML
    first. In YAML, the folder 010 is the number 8, and the separator "---" is nothing.

    Raises:
        UserError: If an override names no setting or has a value of the wrong type, or a setting has no value.
    """
    problems = []
    for override in overrides:
        name, equals, value = override.partition("=")
        if override in names:
            problems.append(f"{override}: this setting has no value. Type {override}=VALUE without spaces.")
            continue
        if not equals or name not in names:
            what = "setting or file" if override.startswith("--") else "setting"
            problems.append(f"{override}: there is no such {what}. {_nearest_names(name.removeprefix('--'), names)}")
            continue
        hint = get_type_hints(schema)[name]
        if value == "" and name in PLACES:
            problems.append(f"{override} has no value. Type {override}{PLACES[name]}")
            continue
        if name == "out" and (problem := output_problem(name, value)) is not None:
            problems.append(problem)
            continue
        try:
            config[name] = None if value == "null" else expand_amounts(override).partition("=")[2]
        except OmegaConfBaseException:
            problems.append(f"{override}: must be {describe_type(hint)}.")
    typed = {override.partition("=")[0] for override in overrides}
    missing = [name for name in names if OmegaConf.is_missing(config, name) and name not in typed]
    problems += [f"{name}= is missing. --help explains the settings." for name in missing]
    if problems:
        raise UserError(problems)
