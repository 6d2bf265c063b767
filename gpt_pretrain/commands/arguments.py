"""Parse the arguments of `gpt-pretrain COMMAND`: `name=value`, `--name=value`, `--name value`, `--flag` and positional ones."""

from __future__ import annotations

from collections.abc import Set
from typing import TypeVar, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gpt_pretrain.config.conversion import escape_interpolation, to_settings
from gpt_pretrain.config.overrides import expand_amounts, short_form
from gpt_pretrain.config.setting_names import describe_type, nearest
from gpt_pretrain.errors import UserError

Settings = TypeVar("Settings")


def wants_help(arguments: list[str]) -> bool:
    """Return whether the arguments ask for help."""
    return bool({"-h", "--help"} & set(arguments))


def parse_arguments(arguments: list[str], schema: type[Settings], *, usage: str, positional: str | None = None) -> Settings:
    """Parse a command's arguments into its settings; `--help` prints the usage and exits.

    Args:
        schema: The dataclass of the command's settings.
        positional: The list setting that arguments without `name=` belong to.

    Raises:
        UserError: If a setting is unknown, missing or of the wrong type; all problems together.
        SystemExit: After printing the usage.
    """
    if wants_help(arguments):
        print(usage.strip())
        raise SystemExit(0)
    hints = get_type_hints(schema)
    overrides = _without_dashes(arguments, flags={name for name, hint in hints.items() if hint is bool})
    names = [name for name in hints if name != positional]
    config: DictConfig = OmegaConf.structured(schema)
    if positional is not None:
        # A positional argument may contain "=", as the folders of sweeps do.
        values = [override for override in overrides if override.partition("=")[0] not in names]
        overrides = [override for override in overrides if override.partition("=")[0] in names]
        if values:
            config[positional] = escape_interpolation(values)
    _apply(config, list(map(short_form, overrides)), names, schema)
    return to_settings(config, schema)


def _without_dashes(arguments: list[str], *, flags: Set[str]) -> list[str]:
    """Rewrite `--name=value`, `--name value` and, for flags, `--name` as `name=value`."""
    overrides: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        name, equals, _ = argument.removeprefix("--").partition("=")
        if not argument.startswith("--"):
            overrides.append(argument)
        elif equals:
            overrides.append(argument[2:])
        else:
            overrides.append(f"{name}={'true' if name in flags else next(remaining, '')}")
    return overrides


def _nearest_names(name: str, names: list[str]) -> str:
    close = nearest(name, names)
    return f"Did you mean {' or '.join(close)}?" if close else f"Choose from {', '.join(names)}; --help explains them."


def _apply(config: DictConfig, overrides: list[str], names: list[str], schema: type) -> None:
    """Set the values of overrides in a config.

    OmegaConf converts each text to the type of its setting. `OmegaConf.from_dotlist` would read it as YAML first, in which the
    folder 010 is the number 8 and the separator "---" is nothing.

    Raises:
        UserError: If an override names no setting or has a value of the wrong type, or a setting has no value.
    """
    problems = []
    for override in overrides:
        name, equals, value = override.partition("=")
        if not equals or name not in names:
            problems.append(f"{override}: there is no such setting. {_nearest_names(name, names)}")
            continue
        try:
            config[name] = None if value == "null" else expand_amounts(override).partition("=")[2]
        except OmegaConfBaseException:
            problems.append(f"{override}: must be {describe_type(get_type_hints(schema)[name])}.")
    problems += [f"{name}= is missing. --help explains the settings." for name in names if OmegaConf.is_missing(config, name)]
    if problems:
        raise UserError(problems)
