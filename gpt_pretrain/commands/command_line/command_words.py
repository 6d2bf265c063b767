"""Sort the words of a script's command line by kind: options, settings with their values, and other words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import get_type_hints

from omegaconf.errors import OmegaConfBaseException

from gpt_pretrain.config.free_text import FREE_TEXTS
from gpt_pretrain.config.inference_schema import EvaluateSettings, GenerateSettings, ServeSettings
from gpt_pretrain.config.other_programs import counterpart, explain_python_file
from gpt_pretrain.config.overrides import find_override, full_form, override_key, short_form, takes_unit
from gpt_pretrain.config.schema import TrainSettings
from gpt_pretrain.config.setting_names import (
    OTHER_NAMES,
    find_type,
    group_options,
    nearest,
    nearest_settings,
    script_groups,
    set_checked,
)
from gpt_pretrain.runs.report.saving import is_run
from gpt_pretrain.system.amounts import is_quantity
from gpt_pretrain.system.checkout import CONF
from gpt_pretrain.system.shell import quote_word

MULTIRUN_FLAGS = {"-m", "--multirun"}
SINGLE_FLAGS = MULTIRUN_FLAGS | {
    *("-h", "--help", "--hydra-help", "--version", "--resolve", "-r", "--run", "-sc", "--shell-completion")
}
VALUE_FLAGS = {"-c", "--cfg", "-p", "--package", "-cp", "--config-path", "-cn", "--config-name", "-cd", "--config-dir"} | {
    *("--experimental-rerun", "-i", "--info")
}
OPEN_BRACKET = re.compile(r"=\s*[\[{]")  # begins a list or a mapping as a value
CONFIGS = ("job", "hydra", "all")
INFOS = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
NO_RUN = {"-h", "--help", "--hydra-help", "--version", "--resolve", "-sc", "--shell-completion", "-c", "--cfg", "-i", "--info"}
OTHER_CONFIGS = {"-cp", "--config-path", "-cn", "--config-name", "--experimental-rerun"}
COMPLETION = {"-sc", "--shell-completion"}
COMPLETION_STEPS = tuple(f"{step}={shell}" for step in ("install", "uninstall", "query") for shell in ("bash", "zsh", "fish"))
DASHES = "\u2010\u2011\u2012\u2013\u2014\u2212"  # word processors replace hyphens by these
PROMPTS, PYTHONS = ("$", "%", "&&", ";"), ("python", "python3")  # what may stand before a pasted command, and begin it
TEXTS = ("prompt", "start_context")
SUGGESTED = {
    "train": "data.path",
    "generate": "prompt",
    "evaluate": "data.path",
    "serve": "checkpoint",
}  # the most likely setting for a word without a name

SCHEMAS: dict[str, type] = {
    "train": TrainSettings,
    "generate": GenerateSettings,
    "evaluate": EvaluateSettings,
    "serve": ServeSettings,
}


@dataclass
class Arguments:
    """The arguments of an entry script, by kind.

    Args:
        flags: Options such as -m, each with its value.
        overrides: `name=value`, and `~name`.
        strays: Rows of other words, each with the argument before it.
    """

    flags: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    strays: list[tuple[str, list[str]]] = field(default_factory=list)

    @property
    def is_sweep(self) -> bool:
        """Return whether the arguments ask for a new or a resumed sweep."""
        return self.has_multirun_flag or find_override(self.overrides, "sweep_resume") is not None

    @property
    def has_multirun_flag(self) -> bool:
        """Return whether -m is among the flags."""
        return not MULTIRUN_FLAGS.isdisjoint(self.flags)

    @property
    def config_folders(self) -> tuple[Path, ...]:
        """The folders with the options of groups: this program's and the user's own."""
        return (CONF, *(Path(value) for flag, value in pairwise(self.flags) if flag in ("-cd", "--config-dir")))


def clean_word(word: str) -> str:
    """Remove characters that a shell has left at the ends of an argument.

    A script with the line ends of Windows leaves a carriage return at the end of each line. cmd.exe leaves single quotation marks
    around a word.
    """
    word = word.rstrip("\r")
    quoted = len(word) > 2 and word[0] == word[-1] == "'" and "=" in word and "'" not in word[1:-1]
    return word[1:-1] if quoted else word


def sort_arguments(words: Sequence[str]) -> Arguments:
    """Sort a script's arguments by kind. Flags come first, since Hydra refuses settings on both sides of a flag."""
    found, waiting, before = Arguments(), list(words), ""
    while waiting:
        word = waiting.pop(0)
        flag, equals, _ = word.partition("=")
        if flag in SINGLE_FLAGS | VALUE_FLAGS:
            found.flags += word.split("=", 1) if equals and flag in VALUE_FLAGS else [word]
            if flag in ("-i", "--info") and not equals:
                found.flags.append(waiting.pop(0) if waiting and waiting[0] in INFOS else "all")
            elif flag in VALUE_FLAGS and not equals and waiting:
                found.flags.append(waiting.pop(0))
        elif word[:1] not in ("-", "=", *DASHES) and (equals or word.startswith("~")):
            found.overrides.append(word)
        elif found.strays and before == found.strays[-1][1][-1] and word[:1] != "-":
            found.strays[-1][1].append(word)
        else:
            found.strays.append((before, [word]))
        before = word
    return found


def schema_of(script: str) -> type:
    """Return the class of a script's settings."""
    return SCHEMAS[script]


def explain_stray(before: str, words: list[str], *, script: str) -> str:
    """Return the message about words that are neither a setting with its value nor an option.

    Args:
        before: The argument before them.
    """
    words = [word for word in words if word.strip()]
    if not words:
        return "A blank is not a setting. A backslash that continues a command must be the last character of its line."
    word, text = words[0], " ".join(words)
    if _begins_command(words, script=script):
        return f"{text}: this is the beginning of another command. Leave it out, or start it on a line of its own."
    name = word.lstrip(f"-{DASHES}")
    if word[0] in DASHES and f"-{name}" in SINGLE_FLAGS | VALUE_FLAGS:
        return f"{word}: this begins with a dash, not with a hyphen. Type -{name}"
    if word.startswith(("-", *DASHES)):
        return _explain_flag(word, name, words, script=script)
    if (explained := _explain_equals_sign(before, words, script=script)) is not None:
        return explained
    key = override_key(before)
    if OPEN_BRACKET.search(before) and key not in FREE_TEXTS:
        return f"{before}: a list or a mapping with spaces needs quotation marks. Type {quote_word(f'{before} {text}')}"
    if word[0] != "=" and (key not in TEXTS or ":" in word):
        known, value = _exact_name(word.partition(":")[0], script), f"{word.partition(':')[2]} {' '.join(words[1:])}".strip()
        if known is not None and value:
            return f"{text}: a setting is written with an equals sign. Type {quote_word(f'{known}={value}')}"
        if known is not None:
            return f"{word}: this setting has no value. Type {known}={_example(known, script)}"
    if "=" in before and (explained := _explain_spaces(before, words, key=key, script=script)) is not None:
        return explained
    if not _is_file_name(word, script) and (known := _known_name(word, script)) is not None:
        return f"{word}: this setting has no value. Type {known}={_example(known, script)}"
    if word == "help":
        return f"{text}: settings are written as name=value. Type --help to see some."
    if script == "train" and word.endswith(".py"):
        return explain_python_file(word)
    suggested = f"{_setting_of_path(text, script)}={text}"
    return f"{text}: settings are written as name=value. Did you mean {quote_word(suggested)}?"


def _setting_of_path(text: str, script: str) -> str:
    """Return the setting that most likely takes a word without a name: by what is at this path, or the script's usual one."""
    path = Path(text)
    if text == "latest" or is_run(path):
        return "resume" if script == "train" else "checkpoint"
    if script == "generate" and path.is_file():
        return "checkpoint" if path.suffix == ".ckpt" else "prompt_file"
    return SUGGESTED[script]


def _begins_command(words: list[str], *, script: str) -> bool:
    """Return whether words begin a command that was pasted behind another one."""
    first, second, *_ = [*(words[1:] if words[0] in PROMPTS else words), "", ""]
    scripts = (f"{script}.py", f"./{script}.py")
    return first in scripts or (first in PYTHONS and second in scripts) or (first, second) == ("gpt-pretrain", script)


def _explain_equals_sign(before: str, words: list[str], *, script: str) -> str | None:
    """Return the message about an equals sign with spaces around it or without a name, or None."""
    word, text = words[0], " ".join(words)
    if not before and word[0] == "=":
        return f"{text}: the name of the setting is missing. Settings are written as name=value."
    pair = None
    if word[0] == "=" or before.endswith("="):
        pair = f"{before}{text}".replace("= ", "=").replace(" =", "=")
    elif words[1:] and words[1][0] == "=" and (known := _known_name(word, script)) is not None:
        pair = f"{known}={' '.join(words[1:])[1:].strip()}"
    return pair and f"{text}: a setting is written without spaces around its equals sign. Type {quote_word(pair)}"


def _explain_spaces(before: str, words: list[str], *, key: str, script: str) -> str | None:
    """Return the message about parts of a value that are separated by spaces, or None if the words cannot be values.

    Args:
        key: The name of the setting.
    """
    text = " ".join(words)
    if takes_unit(key) and is_quantity(f"{before.partition('=')[2]} {text}"):
        return f"{text}: a value with a space needs quotation marks. Type {quote_word(f'{before} {text}')}"
    values = ",".join([before.partition("=")[2], *words]).split(",")
    if key in ("budget", "trainer.max_time") and not all(is_quantity(one) or one in ("", "auto") for one in values):
        other = " or 'budget=1e9 tokens'" * (key == "budget")
        return f"{before} {text}: must be a number with a unit, such as {key}=20m{other}"
    if key not in FREE_TEXTS and not all(_can_be_value(key, one.strip(","), script) for one in words):
        return None
    if key not in FREE_TEXTS:
        whole = f"{before.rstrip(',')},{','.join(one.strip(',') for one in words)}"
        return f'{text}: several values of a setting are written as one word. Type "{whole}"'
    whole = before.replace('"', '\\"') + " " + text
    return f'{text}: a text with spaces needs quotation marks. Type "{whole}"'


def _can_be_value(key: str, word: str, script: str) -> bool:
    """Return whether a setting or group can have a word as its value."""
    if key in script_groups(script):
        return word in group_options(key)
    with suppress(OmegaConfBaseException, KeyError):
        set_checked(schema_of(script), key, word)
        return True
    return takes_unit(key) and is_quantity(word)


def _explain_flag(word: str, name: str, words: list[str], *, script: str) -> str:
    """Return the message about an option that does not exist. It may be a setting written with dashes."""
    key, _, value = name.partition("=")
    value = value or " ".join(words[1:])
    if (other := counterpart(key, value, schema=schema_of(script))) is not None:
        return f"{' '.join(words)}: there is no such option. {other}"
    known = _known_name(key.replace("-", "_"), script)
    if known is None:
        close = nearest(word.partition("=")[0], sorted(SINGLE_FLAGS | VALUE_FLAGS))
        remedy = f"Did you mean {' or '.join(close)}?" if close else "Settings are written as name=value; --help shows some."
        return f"{word}: there is no such option. {remedy}"
    value = value or _example(known, script)
    return f"{' '.join(words)}: settings are written without dashes. Type {quote_word(f'{known}={value}')}"


def _is_file_name(word: str, script: str) -> bool:
    """Return whether a word names a file, such as book.txt, rather than a setting with its group."""
    group, dot, _ = word.partition(".")
    return Path(word).exists() or bool(dot and group not in get_type_hints(schema_of(script)))


def _exact_name(name: str, script: str) -> str | None:
    """Return the setting of this name, or of this last part of its name; None for any other word."""
    known = _known_name(name, script) if name.replace(".", "").replace("_", "").isalpha() else None
    is_exact = known is not None and (known in (name, OTHER_NAMES.get(name)) or known.endswith(f".{name}"))
    return known if is_exact else None


def _example(known: str, script: str) -> str:
    """Return an example of a setting's value."""
    try:
        hint = find_type(schema_of(script), override_key(full_form(f"{known}=", script=script)))
    except KeyError:
        hint = None
    return "true" if hint in (bool, bool | str) else "VALUE"


def _known_name(name: str, script: str) -> str | None:
    """Return the setting or group of this name, or the only setting that it can mean."""
    name = override_key(full_form(f"{name}=", script=script))
    try:
        find_type(schema_of(script), name)
    except KeyError:
        close = [name] if name in script_groups(script) else nearest_settings(name, schema_of(script))
        return short_form(f"{close[0]}=")[:-1] if len(close) == 1 else None
    return short_form(f"{name}=")[:-1]
