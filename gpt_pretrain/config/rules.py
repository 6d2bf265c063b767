"""Rules for settings that a type cannot express: their form, and tests that several settings share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from operator import attrgetter
from typing import Any

from gpt_pretrain.config.schema import SamplerSettings
from gpt_pretrain.errors import UserError
from gpt_pretrain.generation.config import SamplerConfig
from gpt_pretrain.system.resources import PROCESSES_PER_CORE, cores

Test = Callable[[Any], bool]
Rule = tuple[str, Test, str]  # the name of a setting, the test for its value, and the requirement, as a phrase

INFINITY = float("inf")
MAX_WORKERS = max(64, PROCESSES_PER_CORE * cores())  # More processes would only wait for each other.
WEIGHTS = ("trained", "ema", "average")
EMPTY_TEXT = '""'
LONGEST_SHOWN = 200  # characters of a value in a message


def as_typed_value(value: object) -> str:
    """Format a value as users type it."""
    if isinstance(value, list):
        return f"[{', '.join(as_typed_value(one) or EMPTY_TEXT for one in value)}]"
    if dataclasses.is_dataclass(value):
        return f"{{{', '.join(f'{name}: {as_typed_value(part)}' for name, part in vars(value).items())}}}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def one_of(*choices: object) -> tuple[Test, str]:
    """Return the test and the requirement for a value from a list of choices."""
    return lambda value: value in choices, "must be one of " + ", ".join(map(as_typed_value, choices))


def at_least(least: float, unit: str = "", *, null: str | None = None) -> tuple[Test, str]:
    """Return the test and the requirement for a finite number with a lower bound.

    Args:
        null: The meaning of null; without it, null is not allowed.
    """
    requirement = f"must be at least {least:,}{unit and ' ' + unit}" + ("" if null is None else f", or null for {null}")
    return lambda value: null is not None if value is None else least <= value < INFINITY, requirement


# Settings that allow null have a default size.
VOCABULARY_SIZE: tuple[Test, str] = (
    lambda size: size is None or 257 <= size <= 1_000_000,
    "must be between 257 tokens, which are the 256 bytes and the end of text, and 1,000,000 tokens",
)
FRACTION: tuple[Test, str] = (lambda value: 0 < value < 1, "must be above 0 and below 1")


def rule_problems(settings: object, rules: list[Rule]) -> list[str]:
    """List the settings that break a rule, each with its value and the requirement."""
    values = [(name, attrgetter(name)(settings), test, requirement) for name, test, requirement in rules]
    return [f"{name}={_shorten(value)}: {requirement}." for name, value, test, requirement in values if not test(value)]


def _shorten(value: object) -> str:
    """Return the beginning of a value as users type it."""
    typed = as_typed_value(value)
    return typed if len(typed) <= LONGEST_SHOWN else f"{typed[:LONGEST_SHOWN]}..."


def config_problems(group: str, build: Callable[[], object]) -> list[str]:
    """List the problems of a config that validates itself, with the name of its group before each setting."""
    try:
        build()
    except UserError as error:
        return [f"{group}.{problem}" for problem in error.problems]
    return []


def sampler_problems(sampler: SamplerSettings) -> list[str]:
    """List the problems of the sampler's settings."""
    return config_problems("sampler", lambda: SamplerConfig(**dataclasses.asdict(sampler)))
