"""Check the arguments of an entry script before Hydra reads them, so that all mistakes are explained together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, IntervalSweep, Override, OverrideType, QuotedString, RangeSweep
from hydra.errors import HydraException
from omegaconf import MISSING
from omegaconf.errors import OmegaConfBaseException

from gpt_pretrain.commands.command_line.command_words import (
    COMPLETION,
    OPEN_BRACKET,
    OTHER_CONFIGS,
    Arguments,
    explain_stray,
    schema_of,
)
from gpt_pretrain.commands.command_line.custom_options import custom_groups, is_custom_field, misread_texts, undeclared_settings
from gpt_pretrain.commands.command_line.flag_checks import flag_problems
from gpt_pretrain.commands.command_line.hydra_grammar import setting_values, to_hydra_override
from gpt_pretrain.commands.command_line.setting_messages import several_values, unknown_setting, wrong_type
from gpt_pretrain.config.conversion import to_settings
from gpt_pretrain.config.free_text import FREE_TEXTS, TEMPLATES, plain_value
from gpt_pretrain.config.inference_rules import evaluate_problems, generate_problems, serve_problems
from gpt_pretrain.config.inference_schema import EvaluateSettings, GenerateSettings, ServeSettings
from gpt_pretrain.config.other_programs import OPTION_REMEDIES, counterpart, hydra_group_problem, other_value
from gpt_pretrain.config.overrides import override_key, short_form
from gpt_pretrain.config.schema import TrainSettings
from gpt_pretrain.config.setting_names import (
    find_type,
    group_options,
    is_declared,
    is_mapping,
    nearest,
    script_groups,
    set_checked,
)
from gpt_pretrain.config.train_rules import broken_train_rules, train_problems
from gpt_pretrain.system.checkout import CONF
from gpt_pretrain.system.lookalikes import name_lookalikes, plain_characters
from gpt_pretrain.system.shell import join_words, quote_word
from gpt_pretrain.system.typed_paths import output_problem
from gpt_pretrain.system.urls import wsl_path

CURLY_MARKS = set("\u201c\u201d\u201e\u2018\u2019")
PATHS = {"data.path", "data.url", "data.cache_dir", "run_dir", "hydra.run.dir", "hydra.sweep.dir"} | {
    *("init_from", "resume", "sweep_resume", "checkpoint", "pretrained", "prompt_file", "prompts", "out", "tasks.path")
}
WRITTEN = {"data.cache_dir", "run_dir", "hydra.run.dir", "hydra.sweep.dir", "out"}


def argument_problems(arguments: Arguments, *, script: str) -> list[str]:
    """List all problems of a script's arguments, except for values that break a rule.

    Args:
        arguments: The arguments as typed, except for the name of the tokenizer's setting.
        script: "train", "generate", "evaluate" or "serve".
    """
    problems = [explain_stray(before, words, script=script) for before, words in arguments.strays]
    problems += flag_problems(arguments, script=script)
    if COMPLETION.isdisjoint(arguments.flags) and OTHER_CONFIGS.isdisjoint(arguments.flags):
        explained = {before for before, _ in arguments.strays if before.endswith(("=", ",")) or OPEN_BRACKET.search(before)}
        own = custom_groups(arguments.overrides, folders=arguments.config_folders)
        for find in (misread_texts, undeclared_settings):
            problems += find(arguments.overrides, own, folders=arguments.config_folders, script=script)
        for override in (one for one in arguments.overrides if one not in explained and not is_custom_field(one, own)):
            check = partial(override_problems, script=script, sweep=arguments.is_sweep, folders=arguments.config_folders)
            found = list(check(override))
            problems += [*_lookalike_problem(override, check)] or found if found else []
    return problems


def _lookalike_problem(override: str, check: Callable[[str], Iterable[str]]) -> Iterator[str]:
    """Yield a problem if an override becomes valid when its lookalike characters are replaced by characters of a keyboard."""
    words = plain_characters(override).split(" ")
    if words != [override] and all("=" in word and not list(check(word)) for word in words):
        names = name_lookalikes(override)
        if not names:
            yield f"{override}: these are {len(words)} settings in one argument. Type {join_words(words)}"
            return
        yield f"{override}: it has characters that cannot be seen, or look like others ({names}). Type {join_words(words)}"


def broken_rules(arguments: Arguments, *, script: str) -> list[str]:
    """List the rules that overrides without other problems break; none if they cannot be composed."""
    if arguments.is_sweep or arguments.config_folders[1:]:
        return []
    kept = [one for one in arguments.overrides if not list(override_problems(one, script=script))]
    settings = [with_prefix(one, script=script) for one in kept if not override_key(one).startswith(("hydra", "sweep_resume"))]
    overrides = [to_hydra_override(override, sweep=False) for override in settings]
    # Other errors are explained at a later start, when the known problems have been fixed.
    with suppress(Exception), initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        if script == "generate":
            return generate_problems(to_settings(compose("generate", overrides), GenerateSettings))
        if script == "evaluate":
            return evaluate_problems(to_settings(compose("evaluate", ["run_dir=outputs", *overrides]), EvaluateSettings))
        if script == "serve":
            return serve_problems(to_settings(compose("serve", overrides), ServeSettings))
        return train_problems(to_settings(compose("train", ["run_dir=outputs", *overrides]), TrainSettings))
    return []


def override_problems(override: str, *, script: str, sweep: bool = False, folders: tuple[Path, ...] = (CONF,)) -> Iterator[str]:
    """Yield the problems of an override: its name, the option of a group, or the type of its value.

    Args:
        script: "train", "generate", "evaluate" or "serve".
        sweep: Whether it may have several values.
        folders: The folders with the options of groups.
    """
    key, schema = override_key(override), schema_of(script)
    shown = short_form(override)
    is_removal = override.startswith("~")
    problem = (
        _removal_problem(override, script=script, folders=folders)
        if is_removal
        else _text_problem(key, override.partition("=")[2], shown)
    )
    if (problem := problem or hydra_group_problem(shown)) is not None:
        yield problem
        return
    if is_removal or "@" in key or key.startswith(("hydra.", "hydra/", "sweep_resume")) or _is_foreign_group(key, folders):
        return
    is_group = key in script_groups(script)
    try:
        hint = find_type(schema, key)
    except KeyError:
        if not is_group:
            yield unknown_setting(shown, schema)
            return
        hint = None
    if (other := other_value(shown, schema=schema)) is not None:
        yield f"{shown}: {other}"
        return
    yield from _typed_value_problems(override, hint, is_group=is_group, script=script, sweep=sweep, folders=folders)


def _typed_value_problems(
    override: str, hint: Any, *, is_group: bool, script: str, sweep: bool, folders: tuple[Path, ...]
) -> Iterator[str]:
    """Yield the problems of the values that an override gives an existing setting or group.

    Args:
        hint: The type of the setting; None for a group that is not a setting.
    """
    key, shown = override_key(override), short_form(override)
    try:
        parsed = OverridesParser.create().parse_override(to_hydra_override(override, sweep=sweep))
    except (HydraException, RecursionError, ValueError):  # A number with too many digits raises a ValueError.
        yield wrong_type(shown, hint, None)
        return
    if parsed.is_sweep_override() and not sweep:
        yield several_values(shown, key, hint, is_group=is_group)
        return
    for value in _values(parsed):
        if is_group and not isinstance(value, dict):
            yield from _option_problems(shown, key, value, folders=folders, script=script)
        elif isinstance(value, dict) and _is_scalar(hint):
            yield wrong_type(shown, hint, value)
        else:
            for name, leaf in setting_values(key, value):
                problems = list(_value_problems(shown, name, leaf, schema_of(script)))
                swept = script == "train" and parsed.is_sweep_override()  # A single value is checked together with all others.
                yield from problems or (broken_train_rules(name, leaf) if swept else [])


def _removal_problem(override: str, *, script: str, folders: tuple[Path, ...]) -> str | None:
    """Return the problem of an override that removes something, such as ~logger."""
    key, schema = override_key(override), schema_of(script)
    is_group = key in script_groups(script)
    if not is_declared(schema, key):
        known = "@" in key or key.startswith("hydra") or is_group or _is_foreign_group(key, folders)
        return None if known else unknown_setting(short_form(override), schema)
    if not is_group:
        return f"{override}: a setting cannot be removed. Leave it out to have its default."
    settings = find_type(schema, key)
    if is_dataclass(settings) and any(field.default == MISSING for field in fields(settings)):
        options = ", ".join(group_options(key))
        return f"{override}: a run needs this group. Leave this out to have its default, or choose from {options}."
    return None


def _text_problem(key: str, value: str, shown: str) -> str | None:
    """Return a problem of the characters of a value of any type: curly quotation marks, or an unusable path.

    Args:
        shown: The override in the form for messages.
    """
    if key not in FREE_TEXTS and not CURLY_MARKS.isdisjoint((key[:1], value[:1], shown[-1:])):
        plain = quote_word("".join(letter for letter in shown if letter not in CURLY_MARKS))
        return f"{shown}: \u201c and \u201d are not the shell's quotation marks. Type {plain}"
    if key not in PATHS:
        return None
    if plain_value(value) == "":
        return f"{shown} has no value. Give a path, or leave out {shown}"
    if key in TEMPLATES and value == "null":
        return f"{shown}: this folder is needed. Give a path, or leave out {shown}"
    if (linux := wsl_path(value)) is not None and not Path(value).exists():
        return f"{shown}: this is a Windows path. In WSL, type {quote_word(f'{short_form(key + chr(61))}{linux}')}"
    if key not in WRITTEN or output_problem(key, value) is None:  # The name of a folder may have backslashes.
        return None
    return output_problem(key, plain_value(value))


def with_prefix(override: str, *, script: str, custom: Set[str] = frozenset()) -> str:
    """Return an override with the prefix that Hydra needs.

    Hydra refuses a `+` before an existing setting. It requires one before a mapping of free names, such as callbacks.custom, and
    before the names in it.

    Args:
        custom: The groups of the user's own parts. Their fields are in no schema.
    """
    if is_custom_field(override, custom) and not override.startswith("~"):
        return f"++{override.lstrip('+')}"
    key, schema = override_key(override), schema_of(script)
    if override.startswith("~") or key.startswith(("hydra.", "hydra/")):
        return override
    is_group = key in script_groups(script)
    is_setting = is_group or is_declared(schema, key)
    if is_declared(schema, key, within_mapping=True) or (is_setting and not is_group and is_mapping(schema, key)):
        return f"++{override.lstrip('+')}"
    return override.lstrip("+") if is_setting else override


def _is_scalar(hint: Any) -> bool:
    """Return whether a setting of this type has a single value, or null."""
    options = get_args(hint) if get_origin(hint) is UnionType else (hint,)
    return all(option in (bool, int, float, str, NoneType) for option in options)


def _is_foreign_group(key: str, folders: tuple[Path, ...]) -> bool:
    """Return whether a key names a group that only the user's own config folders have."""
    return any((folder / key).is_dir() for folder in folders[1:])


def _values(parsed: Override) -> list[Any]:
    """Return the values that an override gives its setting, as plain data."""
    value = parsed.value()
    if parsed.type == OverrideType.DEL:
        return []
    if isinstance(value, ChoiceSweep):
        return [_plain(one) for one in value.list]
    if isinstance(value, RangeSweep | IntervalSweep | Glob):
        ends = (value.start, value.stop) if isinstance(value, RangeSweep) else ()
        return [end for end in ends if isinstance(end, float) and not end.is_integer()]
    return [_plain(value)]


def _plain(value: Any) -> Any:
    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, dict):
        return {str(_plain(name)): _plain(part) for name, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list) else value


def _option_problems(override: str, group: str, value: Any, *, folders: tuple[Path, ...], script: str) -> Iterator[str]:
    """Yield a problem if a group lacks an option, or one of a list of options."""
    options = group_options(group, folders)
    if value is None:
        yield f"{override}: null is not an option of the group {group}. Leave it out, or choose from {', '.join(options)}."
        return
    for one in value if isinstance(value, list) else [value]:
        name = str(one)
        if not name:
            yield f"{group}= has no value. Leave it out, or choose from {', '.join(options)}."
            continue
        if one is None or name.removesuffix(".yaml") in options or "${" in name:
            continue
        close = nearest(name, options)
        remedy = f"Did you mean {' or '.join(close)}? " if close else ""
        if group == "data" and ("/" in name or Path(name).suffix):
            remedy = f"To train on a file: data=text {quote_word(f'data.path={name}')}. "
        other = OPTION_REMEDIES.get(f"{group}={name}")
        if group == "model" and script != "train":  # there, an option names the user's own class
            other = counterpart(group, name, schema=schema_of(script))
        if other is not None:
            yield f"{override}: the group {group} has no option {name}. {other}"
            continue
        yield f"{override}: the group {group} has no option {name}. {remedy}Its options are {', '.join(options)}."


def _value_problems(override: str, key: str, value: Any, schema: type) -> Iterator[str]:
    """Yield a problem if a value does not have the type of its setting."""
    if isinstance(value, str) and "${" in value:
        return
    try:
        hint = find_type(schema, key)
    except KeyError:
        yield unknown_setting(f"{key}={value}", schema)
        return
    try:
        set_checked(schema, key, value)
    except OmegaConfBaseException:
        yield wrong_type(override, hint, value)
        return
    if (
        isinstance(value, list)
        and get_args(hint)[:1] in ((str,), (float,), (int,))
        and any(isinstance(one, list | dict) for one in value)
    ):
        yield wrong_type(override, hint, value)
