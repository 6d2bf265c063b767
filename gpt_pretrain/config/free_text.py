"""Quote texts, paths and names on a command line for Hydra, so that users can type them as they are.

The rules, with and without -m:

- Any character may be in a text or a path.
- In a sweep, commas separate paths and names, as they separate numbers. A comma is part of a name if the whole value names an
  existing file, or if the name has quotation marks of its own, which the shell must keep: `'data.path="a, b.txt",c.txt'`.
- In a text, commas separate nothing. Several texts are typed with quotation marks of their own: `"prompt='One, two','Three'"`.
"""

from __future__ import annotations

import os
import re

from gpt_pretrain.config.interpolation import unescape_interpolation
from gpt_pretrain.config.overrides import quote_value, split_override
from gpt_pretrain.system.environment import user_path

# Settings that have only one value even in a sweep: texts, and folders to write or to resume.
SINGLE_TEXTS = {"prompt", "start_context"} | {
    *("api_key", "data.cache_dir", "host", "out", "resume", "sweep_resume", "run_dir", "hydra.run.dir", "hydra.sweep.dir")
}
# Names, paths and URLs, several of which a sweep may try.
LISTED_NAMES = {
    "data.path",
    "data.url",
    "checkpoint",
    "pretrained",
    "init_from",
    "prompt_file",
    "prompts",
    "tasks.path",
    "tokenizer",
    "tokenizer.name",
} | {*("logger.wandb.project", "logger.wandb.name", "logger.mlflow.experiment_name", "logger.mlflow.tracking_uri")}
FREE_TEXTS = SINGLE_TEXTS | LISTED_NAMES
NULLABLE = FREE_TEXTS - {"prompt", "start_context"}  # settings for which null means no value, not the text "null"
TEMPLATES = {"hydra.run.dir", "hydra.sweep.dir"}  # folders whose names may contain settings: ${...}
MADE_BY_HYDRA = {"run_dir", *TEMPLATES}  # folders in whose names Hydra takes ~ for a letter

# The repetitions are possessive. Others would take a hundred bytes of memory for each character, to be able to step back.
QUOTED = r"""(?:'(?:[^'\\]++|\\.)*+'|"(?:[^"\\]++|\\.)*+")"""
ONE_QUOTED, SEVERAL_QUOTED = (re.compile(text, re.DOTALL) for text in (QUOTED, rf"{QUOTED}(?:\s*+,\s*+{QUOTED})++"))
HYDRA_FUNCTION = re.compile(r"(?:choice|shuffle|tag|glob)\(.*\)", re.DOTALL)
# A text that Hydra reads in the same way without quotation marks.
PLAIN = re.compile(r"(?!(?:true|false|null|inf|nan)\Z)(?:[A-Za-z_/]|\.\.?/)[\w./:@%+-]*", re.ASCII | re.IGNORECASE)
# Names between commas. A comma in quotation marks or in ${a,b} is part of a name.
NAMES = re.compile(rf"\s*+{QUOTED}\s*+(?=,|\Z)|(?:\$\{{[^}}$]*\}}|[^,])+", re.DOTALL)
ESCAPED = re.compile(r"\\([\\()\[\]{}:=, \t])")  # an escape that Hydra writes in a text of a sweep's job


def quote_override(override: str, *, sweep: bool) -> str:
    """Quote the text or path in an override for Hydra, if it needs that.

    Args:
        sweep: Whether the command line asks for a sweep (-m).
    """
    name, equals, value = override.partition("=")
    key = split_override(override)[0]
    if not equals:
        return override
    if key not in FREE_TEXTS or (key == "tokenizer" and value[:1] == "{"):
        return override
    if value == "" or (value == "null" and key in NULLABLE) or ONE_QUOTED.fullmatch(value):
        return override
    if key in TEMPLATES and "${" in value:
        return override
    if sweep and (SEVERAL_QUOTED.fullmatch(value) or HYDRA_FUNCTION.fullmatch(value)):
        return override
    values = _names(value) if sweep and key in LISTED_NAMES else [value]
    return f"{name}={','.join(map(quote_if_needed, values))}"


def expand_home(override: str) -> str:
    """Write out a `~` at the start of a folder that Hydra makes. Other paths are expanded where they are used."""
    key, value = split_override(override)
    text = plain_value(value)
    return f"{key}={user_path(text)}" if key in MADE_BY_HYDRA and text.startswith("~") else override


def plain_value(value: str) -> str:
    """Return the value of an override without Hydra's quotation marks and escapes."""
    if not ONE_QUOTED.fullmatch(value):
        return ESCAPED.sub(r"\1", value)
    quote, text = value[0], value[1:-1]
    # The look-behind keeps a long row of backslashes from being searched once from each of them.
    text = re.sub(rf"(?<!\\)(\\++)({quote}|\Z)", lambda match: "\\" * (len(match[1]) // 2) + match[2], text)
    return unescape_interpolation(text)


def as_typed(override: str) -> str:
    """Write an override that was quoted for Hydra as a user types it."""
    name, _, value = override.partition("=")
    text = plain_value(value)
    keeps_meaning = text not in ("", "null") and not ONE_QUOTED.fullmatch(text) and not SEVERAL_QUOTED.fullmatch(text)
    if not ONE_QUOTED.fullmatch(value) or split_override(override)[0] not in FREE_TEXTS or not keeps_meaning or "${" in text:
        return override
    return f"{name}={text}"


def _names(value: str) -> list[str]:
    """Split the value of a sweep's path or name at its commas."""
    if os.path.exists(os.path.expanduser(value)):  # pathlib raises an error for a name that is too long
        return [value]
    return [part.strip() for part in NAMES.findall(value) if part.strip()]


def quote_if_needed(text: str) -> str:
    """Quote a text for Hydra, unless it reads the same without."""
    return text if PLAIN.fullmatch(text) or ONE_QUOTED.fullmatch(text) else quote_value(text)
