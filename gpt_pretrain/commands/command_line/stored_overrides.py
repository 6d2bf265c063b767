"""Decide which stored overrides of a sweep are used when the sweep is resumed.

Hydra replays whatever it is given, and some of its settings run code: a class to build, an environment variable for git, a folder
to search for configs. So stored texts are parsed, compared with the table of this program's settings, and written again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, OverrideType, QuotedString, RangeSweep
from hydra.errors import HydraException

from gpt_pretrain.commands.command_line.command_words import clean_word, sort_arguments
from gpt_pretrain.commands.command_line.custom_options import custom_groups
from gpt_pretrain.commands.command_line.hydra_grammar import setting_values
from gpt_pretrain.commands.process.job import typed_arguments
from gpt_pretrain.config.override_messages import UNSIGNED, explain_locations, quote_for_message, without_shell_quotes
from gpt_pretrain.config.overrides import find_override, full_form, override_key
from gpt_pretrain.config.stored_locations import has_cut_part, is_harmless_location
from gpt_pretrain.config.stored_settings import ASKED, BOUNDED, BOUNDS, LOCAL, NEVER, is_within_bounds, override_kind
from gpt_pretrain.errors import UserError
from gpt_pretrain.sweeps.folder import SWEEP_SETTINGS, own_overrides, read_stored_choices, read_stored_overrides
from gpt_pretrain.system.checkout import CONF
from gpt_pretrain.system.reading_cost import explained_by_own_size
from gpt_pretrain.system.terminal import escape_line
from gpt_pretrain.system.urls import hide_secrets

MAX_OVERRIDES = 300
MAX_LENGTH, MAX_TOTAL_LENGTH = 10_000, 50_000  # characters of one override, and of all; Hydra's parser reads 50,000 in a second
MAX_ITEMS = 2000  # commas in all overrides; the parser's time grows with the square of a list's length
MAX_DEPTH = 20  # brackets within brackets; Hydra's parser is recursive
MAX_JOBS, MAX_COUNTED = 10_000, 10**15  # jobs; beyond the second number they are not counted
MAX_LOCATIONS = 100  # values of one setting that are looked for on the disk; the user is asked about more
DEFAULT_OPTIONS = ("model", "optimizer", "scheduler")  # groups whose default has changed between versions
REPLACED = {"hydra.mode", "hydra.sweep.dir"}  # settings that a resumed sweep sets itself

Values = list[Any]


@dataclass
class StoredOverrides:
    """The overrides of a sweep that are used, and messages about the others.

    Args:
        kept: The overrides.
        asked: The overrides that the user must type, by whether the user has typed them before, without their secrets.
        problems: Messages about other reasons why the sweep cannot be resumed.
        notices: Messages about overrides that are left out.
    """

    kept: list[str] = field(default_factory=list)
    asked: dict[bool, list[str]] = field(default_factory=lambda: {True: [], False: []})
    problems: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Stored:
    """An override of a sweep.

    Args:
        text: The stored text.
        override: The parsed text.
        values: The values that it gives its setting or group.
        settings: The name, value and kind of each setting that it sets.
        own: Whether the user has typed it before.
    """

    text: str
    override: Override
    values: Values
    settings: list[tuple[str, Any, str]]
    own: bool

    def of_kind(self, kind: str) -> list[tuple[str, Any]]:
        """Return the names and values of its settings of a kind."""
        return [(key, value) for key, value, own_kind in self.settings if own_kind == kind]


@explained_by_own_size
def admit_overrides(folder: Path, *, script: str, typed: Set[str]) -> StoredOverrides:
    """Choose the stored overrides with which a sweep is resumed.

    Args:
        script: "train" or "generate".
        typed: The names of settings that the user has typed. They are not taken from the sweep.

    Raises:
        UserError: If the sweep's settings cannot be read, or if the user must type some overrides. The message lists all of them.
    """
    texts = [full_form(text, script=script) for part in read_stored_overrides(folder) for text in part]
    known = _own_texts(folder, script=script)
    admitted, jobs = StoredOverrides(), 1
    origin = escape_line(str(folder / SWEEP_SETTINGS))
    _check_amount([text for text in texts if text not in known], n_all=len(texts), origin=origin)
    for text in texts:
        if (key := override_key(text)) in typed | REPLACED:
            if key in typed and "," in text:
                admitted.notices.append(
                    f"What you type for {key} replaces {_shown(text)}, also when this sweep is resumed again."
                )
            continue
        try:
            override = _parse(text, strict=text not in known)
            values = _values(override)
            jobs = min(jobs * _job_count(override, values), MAX_COUNTED)
        except (HydraException, ValueError, OverflowError, ArithmeticError, RecursionError, TypeError):
            admitted.problems.append(_refuse(text, origin, "cannot be an override of this program"))
            continue
        leaves = [leaf for value in values for leaf in setting_values(override.key_or_group, value)]
        settings = [(key, value, override_kind(key, value, script=script)) for key, value in leaves]
        stored = _Stored(text, override, values, settings, own=text in known)
        _admit(stored, admitted=admitted, origin=origin, folder=folder)
    if jobs > MAX_JOBS and not known.issuperset(texts):
        admitted.problems.append(f"{origin} asks for {jobs:,} jobs, more than the limit of {MAX_JOBS:,} for a sweep from a file.")
    admitted.problems += [explain_locations(words, origin=origin, own=own) for own, words in admitted.asked.items() if words]
    if admitted.problems:
        raise UserError(admitted.problems)
    return admitted


def _check_amount(foreign: Sequence[str], *, n_all: int, origin: str) -> None:
    """Check that a sweep does not hold far more overrides than somebody would type.

    Args:
        foreign: The overrides that the user has not typed.
        n_all: Number of all overrides.

    Raises:
        UserError: If it does.
    """
    if n_all > MAX_OVERRIDES:
        raise UserError(f"{origin} holds {n_all:,} overrides, more than the limit of {MAX_OVERRIDES}. The file is damaged.")
    length, items = sum(map(len, foreign)), sum(text.count(",") for text in foreign)
    for count, most, unit in ((length, MAX_TOTAL_LENGTH, "characters"), (items, MAX_ITEMS, "commas")):
        if count > most:
            raise UserError(
                f"{origin}, {UNSIGNED}, holds overrides of {count:,} {unit}, more than the limit of {most:,}. Start a new sweep."
            )


def overrides_of_user(folder: Path, overrides: Sequence[str], *, script: str) -> list[str]:
    """Return the overrides of this start of a sweep that the user has typed, now or at an earlier start.

    The others come from somebody else's sweep. They are checked again at each start, since their meaning may have changed: a path
    leads elsewhere from another working directory, and a link may have replaced a file.

    Args:
        folder: The folder of the sweep, with the settings and the signature of its earlier start.
    """
    arguments = [full_form(clean_word(word), script=script) for word in typed_arguments()]
    if find_override(arguments, "sweep_resume") is None:
        return list(overrides)
    typed, known = REPLACED.union(map(override_key, arguments)), _own_texts(folder, script=script)
    return [text for text in overrides if override_key(text) in typed or full_form(text, script=script) in known]


def _own_texts(folder: Path, *, script: str) -> set[str]:
    return {full_form(text, script=script) for text in own_overrides(folder, script=script)}


def stored_options(folder: Path, *, chosen: Set[str]) -> list[str]:
    """Return the options that a sweep had by default, since this version may have other defaults.

    With a budget, the list is empty: a budget chooses everything that is not typed, and would take these options for typed ones.

    Args:
        folder: The sweep.
        chosen: The settings and groups that its overrides, or those typed now, name.
    """
    if chosen & {"model", "experiment", "budget"}:
        return []
    choices = read_stored_choices(folder)
    return [
        f"{group}={choices[group]}"
        for group in DEFAULT_OPTIONS
        if group not in chosen and (CONF / group / f"{choices.get(group)}.yaml").is_file()
    ]


def _admit(stored: _Stored, *, admitted: StoredOverrides, origin: str, folder: Path) -> None:
    """Add an override to those that are kept, or a message to the problems or notices."""
    shown = _shown(stored.text)
    if (reason := _refusal(stored)) is not None:
        admitted.problems.append(_refuse(stored.text, origin, reason))
    elif _has_secrets(stored) if stored.own else _leads_elsewhere(stored, folder):
        admitted.asked[stored.own].append(shown)
    elif stored.own:
        admitted.kept.append(stored.text)  # The user's own override keeps its interpolations.
    elif stored.of_kind(LOCAL):
        admitted.notices.append(f"{shown} comes from {origin}, {UNSIGNED}, and is not used. To use it, add: {shown}")
    else:
        admitted.kept.append(_write(stored.override))


def _refusal(stored: _Stored) -> str | None:
    """Return why an override is never taken from a file, or None if it may be taken."""
    override, texts = stored.override, [part for value in stored.values for part, _ in _parts(value)]
    changes = override.type in (OverrideType.CHANGE, OverrideType.ADD, OverrideType.FORCE_ADD)
    if override.package is not None or not changes or stored.of_kind(NEVER) or _can_run_code(stored.text, stored.values):
        return "may run code, change Hydra itself, or is no setting of this program"
    if stored.own:
        return None
    if any("${" in text for text in (stored.text, *texts)):
        return "holds an interpolation ${...}"
    if not all(is_within_bounds(key, value) for key, value in stored.of_kind(BOUNDED)):
        limits = ", ".join(f"{key} is at most {BOUNDS[key]():,}" for key in dict(stored.of_kind(BOUNDED)))
        return f"exceeds the limit for files from elsewhere ({limits})"
    return None


def _has_secrets(stored: _Stored) -> bool:
    """Return whether secret parts of a value are missing, since they are never stored."""
    return any(has_cut_part(value) for _, value, _ in stored.settings)


def _leads_elsewhere(stored: _Stored, folder: Path) -> bool:
    """Return whether an override names a class, or a location outside of the sweep's folder and the working directory."""
    options = [f"{stored.override.key_or_group}={value}" for value in stored.values]
    if custom_groups(options, folders=sort_arguments(typed_arguments()).config_folders):
        return True
    named = stored.of_kind(ASKED)
    return len(named) > MAX_LOCATIONS or not all(is_harmless_location(key, value, folder=folder) for key, value in named)


def _parse(text: str, *, strict: bool) -> Override:
    """Parse an override.

    Args:
        strict: Whether to refuse control characters, and texts for which the parser needs very long.

    Raises:
        HydraException: If the text is not an override.
        ValueError: If it is refused.
    """
    depth = deepest = 0
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        deepest = max(deepest, depth)
    if text.startswith("-") or (strict and (len(text) > MAX_LENGTH or deepest > MAX_DEPTH or not text.isprintable())):
        raise ValueError
    return OverridesParser.create().parse_override(text)


def _values(override: Override) -> Values:
    """Return the values that an override gives its setting, as plain data. For a range, return its ends."""
    value = override.value()
    if isinstance(value, ChoiceSweep):
        return [_plain(one) for one in value.list]
    if isinstance(value, RangeSweep):
        return [_plain(value.start), _plain(value.stop)]
    if isinstance(value, IntervalSweep):
        return [_plain(value.start), _plain(value.end)]
    return [_plain(value)]


def _plain(value: Any) -> Any:
    """Return a parsed value without Hydra's own types.

    Raises:
        ValueError: If there is a type that no setting of this program has, such as a glob.
    """
    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, dict):
        return {str(_plain(name)): _plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError


def _job_count(override: Override, values: Values) -> int:
    """Return the factor by which an override multiplies the number of jobs. The values of a range are not computed."""
    value = override.value()
    if not isinstance(value, RangeSweep):
        return len(values) if isinstance(value, ChoiceSweep) else 1
    start, stop, step = float(value.start or 0), float(value.stop or 0), float(value.step or 1)
    return max(1, math.ceil((stop - start) / step))


def _parts(value: Any) -> Iterator[tuple[str, bool]]:
    """Yield all texts in a value, each with whether it is the name of a field."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield name, True
            yield from _parts(part)
    elif isinstance(value, list):
        for part in value:
            yield from _parts(part)
    elif isinstance(value, str):
        yield value, False


def _can_run_code(text: str, values: Values) -> bool:
    """Return whether an override names a class or a function to call, as Hydra's `_target_` does."""
    return "_target_" in text or any(is_name and part.startswith("_") for value in values for part, is_name in _parts(value))


def _write(override: Override) -> str:
    """Write a parsed override again.

    Raises:
        UserError: If the written text would mean something else.
    """
    text = f"{override.get_key_element()}={_write_value(override)}"
    again = OverridesParser.create().parse_override(text)
    if (again.key_or_group, again.type, _values(again)) != (override.key_or_group, override.type, _values(override)):
        raise UserError(f"{_shown(text)} cannot be read unambiguously. Type it again.")
    return text


def _write_value(override: Override) -> str:
    """Write a value again, as Hydra writes the values of a sweep's jobs. A choice among values stays a choice."""
    value = override.value()
    if isinstance(value, ChoiceSweep):
        values = [replace(override, value_type=None, _value=one).get_value_element_as_str() for one in value.list]
        text = f"choice({','.join(values)})"
    elif isinstance(value, RangeSweep):
        text = f"range({','.join(map(str, (value.start, value.stop, value.step)))})"
    elif isinstance(value, IntervalSweep):
        text = f"interval({value.start},{value.end})"
    else:
        return override.get_value_element_as_str()
    if getattr(value, "shuffle", False):
        text = f"shuffle({text})"
    return f"tag({','.join(sorted(value.tags))},{text})" if value.tags else text


def _refuse(text: str, origin: str, reason: str) -> str:
    shown = _shown(text)
    return (
        f"{without_shell_quotes(shown)} comes from {origin} and {reason}, so it is not taken from a file. To use it, add: {shown}"
    )


def _shown(text: str) -> str:
    return quote_for_message(hide_secrets(escape_line(text)))
