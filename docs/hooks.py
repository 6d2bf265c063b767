"""Build the settings page from conf/ and the schema, so that no table of settings is kept by hand."""

from __future__ import annotations

import dataclasses
import itertools
import re
import sys
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"
MARKER = "<!-- settings -->"
COMMANDS_MARKER = "<!-- commands -->"

# The groups of train.py in the order of the page, and the option that gives the defaults.
GROUPS = {
    "model": "modern_small",
    "data": "sample",
    "optimizer": "adamw",
    "scheduler": "constant",
    "sampler": "greedy",
    "trainer": "default",
    "callbacks": "default",
    "logger": "tensorboard",
}
OTHER_GROUPS = ("experiment", "hparams_search", "debug")


@dataclass(frozen=True)
class Setting:
    """A key of a YAML file, by its dotted name, with the text of its value and its comment."""

    name: str
    value: str
    comment: str


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the generated tables where a page has a marker; MkDocs calls this for each page."""
    if MARKER in markdown:
        markdown = markdown.replace(MARKER, settings_page())
    if COMMANDS_MARKER in markdown:
        markdown = markdown.replace(COMMANDS_MARKER, commands_page())
    return markdown


def settings_page() -> str:
    """Return the tables of all settings of the entry scripts as Markdown."""
    sys.path.insert(0, str(ROOT))
    from gpt_pretrain.config.inference_schema import EvaluateSettings, GenerateSettings, ServeSettings
    from gpt_pretrain.config.schema import TrainSettings

    parts = ["## train.py", _table(_own_settings(CONF / "train.yaml"), TrainSettings)]
    for group, default in GROUPS.items():
        parts += [f"### {group}", _options(group, default), _table(_group_settings(group, default), TrainSettings)]
    for group in OTHER_GROUPS:
        parts += [f"### {group}", _options(group, None)]
    parts += ["## generate.py", _table(_own_settings(CONF / "generate.yaml"), GenerateSettings)]
    parts.append("The group `sampler` is the same as in train.py.")
    parts += ["## evaluate.py", _table(_own_settings(CONF / "evaluate.yaml"), EvaluateSettings)]
    parts.append("Of the group `data`, the settings that say where the text is and how it is read have an effect.")
    parts += ["## serve.py", _table(_own_settings(CONF / "serve.yaml"), ServeSettings)]
    return "\n\n".join(parts)


def commands_page() -> str:
    """Return the help of each command of gpt-pretrain as Markdown."""
    sys.path.insert(0, str(ROOT))
    import ast

    from gpt_pretrain.commands.main import COMMANDS

    parts = []
    for name in COMMANDS:
        source = (ROOT / "gpt_pretrain" / "commands" / f"{name}.py").read_text(encoding="utf-8")
        usage = ast.get_docstring(ast.parse(source)) or ""
        parts.append(f"### gpt-pretrain {name}\n\n```text\n{usage}\n```")
    return "\n\n".join(parts)


def read_settings(file: Path) -> list[Setting]:
    """Return the settings of a YAML file in their order; the comment is at the end of the line or on the lines above it."""
    found: list[Setting] = []
    parents: list[tuple[int, str]] = []
    above: list[str] = []
    for line in _without_header(file):
        if line.lstrip().startswith("#"):
            above.append(line.strip("# ").strip())
            continue
        matched = re.match(r"^( *)([\w.]+):(?: +(.*?))?(?: *# (.*))?$", line)
        if matched is None:
            above = []
            continue
        indent, key, value, comment = len(matched[1]), matched[2], matched[3] or "", matched[4]
        if value.startswith("#"):
            value, comment = "", value.strip("# ")
        parents = [parent for parent in parents if parent[0] < indent]
        name = ".".join([*(name for _, name in parents), key])
        parents.append((indent, key))
        found.append(Setting(name, value, comment or " ".join(above) or ""))
        above = []
    return found


def _without_header(file: Path) -> list[str]:
    """Return the lines of a YAML file behind the comment that describes the whole file."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return list(itertools.dropwhile(lambda line: line.startswith("#"), lines))


def _header(file: Path) -> str:
    """Return the comment at the top of a YAML file."""
    lines = file.read_text(encoding="utf-8").splitlines()
    head = itertools.takewhile(lambda line: line.startswith("#"), lines)
    return " ".join(line.strip("# ").strip() for line in head if "@package" not in line)


def _own_settings(file: Path) -> list[Setting]:
    """Return the settings of a main config that are in no group; Hydra's own are left out."""
    return [one for one in read_settings(file) if one.name.split(".")[0] not in ("defaults", "hydra")]


def _group_settings(group: str, default: str) -> list[Setting]:
    """Return all settings of a group: those of its default option, then those that only other options have."""
    names: dict[str, Setting] = {}
    files = [CONF / group / f"{default}.yaml", *sorted((CONF / group).glob("*.yaml"))]
    for file in files:
        for one in read_settings(file):
            if one.name == "defaults" or (not one.value and not one.comment):
                continue
            known = names.get(one.name)
            if known is None:
                value = one.value if file.stem == default else f"{one.value} ({file.stem})"
                names[one.name] = Setting(one.name, value, one.comment)
            elif not known.comment and one.comment:
                names[one.name] = Setting(one.name, known.value, one.comment)
    return [Setting(f"{group}.{one.name}", one.value, one.comment) for one in names.values()]


def _options(group: str, default: str | None) -> str:
    rows = ["| option | |", "|---|---|"]
    for file in sorted((CONF / group).glob("*.yaml")):
        mark = " (default)" if file.stem == default else ""
        rows.append(f"| `{group}={file.stem}`{mark} | {_cell(_header(file))} |")
    return "\n".join(rows)


def _table(settings: list[Setting], kind: type) -> str:
    rows = ["| setting | type | default | meaning |", "|---|---|---|---|"]
    types = dict(schema_types(kind))
    for one in settings:
        if one.name in types or any(name.startswith(f"{one.name}.") for name in types):
            value = "`" + one.value.replace("|", "\\|") + "`" if one.value else ""
            rows.append(f"| `{one.name}` | {_cell(types.get(one.name, ''))} | {value} | {_cell(one.comment)} |")
    return "\n".join(rows)


def schema_types(kind: type, prefix: str = "") -> list[tuple[str, str]]:
    """Return the dotted name and the type, in words, of every setting of a schema class."""
    found = []
    for field in dataclasses.fields(kind):
        hint = typing.get_type_hints(kind)[field.name]
        options = [one for one in typing.get_args(hint) if one is not type(None)]
        inner = options[0] if len(options) == 1 and type(None) in typing.get_args(hint) else hint
        name = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(inner):
            found += schema_types(typing.cast(type, inner), f"{name}.")
        else:
            found.append((name, _type_words(hint)))
    return found


def _type_words(hint: Any) -> str:
    names = {int: "integer", float: "number", str: "text", bool: "true or false", type(None): "null", Any: "any"}
    if hint in names:
        return names[hint]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is list:
        return f"list of {_type_words(arguments[0])}"
    if origin is dict:
        return "mapping"
    if arguments:
        return " or ".join(_type_words(one) for one in arguments)
    return "mapping"


def _cell(text: str) -> str:
    """Return plain text as a cell of a Markdown table."""
    return re.sub(r"([|*_])", r"\\\1", text).replace("<", "&lt;")
