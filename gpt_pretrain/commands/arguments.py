"""The arguments of `gpt-pretrain COMMAND`: `setting=value`, `--setting=value`, `--setting value` and positional ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Set
from typing import TypeVar, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gpt_pretrain.config.conversion import escape_interpolation, to_settings
from gpt_pretrain.config.overrides import expand_amounts
from gpt_pretrain.errors import UserError

Settings = TypeVar("Settings")


def wants_help(arguments: list[str]) -> bool:
    """Return whether the arguments ask for help."""
    return bool({"-h", "--help"} & set(arguments))


def parse_arguments(arguments: list[str], kind: type[Settings], *, usage: str, positional: str | None = None) -> Settings:
    """Parse a command's arguments into its settings; `--help` prints the usage and exits.

    Args:
        kind: The dataclass of the command's settings.
        positional: The list setting that arguments without `name=` belong to.

    Raises:
        UserError: If a setting is unknown, missing or of the wrong type; all problems together.
        SystemExit: After printing the usage.
    """
    if wants_help(arguments):
        print(usage.strip())
        raise SystemExit(0)
    words = _without_dashes(arguments, flags={name for name, hint in get_type_hints(kind).items() if hint is bool})
    return to_settings(_from_words(words, kind, positional), kind)


def _without_dashes(words: list[str], *, flags: Set[str]) -> list[str]:
    """Settings as other programs have them, `--name=value`, `--name value` or, for flags, `--name`, as `name=value`."""
    kept: list[str] = []
    rest = iter(words)
    for word in rest:
        name, equals, _ = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            kept.append(word)
        elif equals:
            kept.append(word[2:])
        else:
            kept.append(f"{name}={'true' if name in flags else next(rest, '')}")
    return kept


def _from_words(words: list[str], kind: type, plain: str | None) -> DictConfig:
    """The settings that words name, the others at their defaults.

    Raises:
        UserError: when a word is no setting, or a value is missing or of another type.
    """
    known = [field.name for field in dataclasses.fields(kind) if field.name != plain]
    config: DictConfig = OmegaConf.structured(kind)
    if plain is not None and (others := [word for word in words if word.partition("=")[0] not in known]):
        words = [word for word in words if word not in others]
        config[plain] = escape_interpolation(others)  # folders of sweeps have "=" in their names
    problems = []
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in known:
            problems.append(f"{word}: no such setting. There are {', '.join(known)}; --help tells more.")
            continue
        try:
            config[name] = None if value == "null" else expand_amounts(word).partition("=")[2]
        except OmegaConfBaseException as error:
            problems.append(f"{word}: {str(error).splitlines()[0]}")
    problems += [f"{name}= is missing; --help tells more." for name in known if OmegaConf.is_missing(config, name)]
    if problems:
        raise UserError(problems)
    return config
