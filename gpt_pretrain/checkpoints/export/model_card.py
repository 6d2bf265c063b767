"""The model card of an export: the model, its training and its losses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from gpt_pretrain.checkpoints.checkpoint_file import nested_dicts
from gpt_pretrain.config.custom_parts import CUSTOM
from gpt_pretrain.config.secrets import settings_without_secrets
from gpt_pretrain.config.stored_settings import TRAIN_KINDS
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.system.formatting import is_finite_number
from gpt_pretrain.system.terminal import escape_controls, escape_line

HEADER = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- {tag}
- gpt-pretrain
---
"""
USAGE = """## Usage

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # the folder with this file
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
ids = tokenizer("Every effort moves you", return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=50)[0]))
```"""
NO_TOKENIZER = "This folder has no tokenizer, because no known tokenizer has the model's vocabulary."
# Such a text is shown as it is. Any other is shown as code, where no markup has an effect: www.example.org would become a link.
PLAIN = re.compile(r"(?!.*www\.)\w[\w .,+=-]*", re.ASCII | re.IGNORECASE)
PRIVATE = ("run_dir", "resume", "cache_dir", "options")  # paths on the machine that trained the model, and access keys


def model_card(config: GPTConfig, *, name: str, n_parameters: int, tokenizer: str | None, training: Mapping[str, Any]) -> str:
    """Return the text of the README.md.

    Args:
        name: The model's name.
        n_parameters: Trainable numbers; a tied head counts once.
        tokenizer: The tokenizer's name, if it is known.
        training: One of this program's checkpoints; empty if the training is unknown.
    """
    tag, kind = ("nanochat", "A GPT with nanochat's layers") if config.kind == "modern" else ("gpt2", "A GPT-2")
    sections = [
        f"{HEADER.format(tag=tag)}\n# {_markdown_text(name)}\n\n"
        f"{kind} with {n_parameters:,} parameters, exported by gpt-pretrain.",
        USAGE if tokenizer is not None else NO_TOKENIZER,
    ]
    settings = training.get("config")
    # Settings in a checkpoint from elsewhere might contain themselves.
    nested_dicts(settings)
    if isinstance(settings, Mapping):
        settings = settings_without_secrets(settings)
        sections.append("## Training\n\n" + _markdown_table(_training_rows(training, settings)))
    fields = config.to_dict() | {"tokenizer": tokenizer}
    shown = {name: _markdown_text(str(value)) for name, value in fields.items()}
    sections.append("## Architecture\n\n" + _markdown_table(shown))
    if isinstance(settings, Mapping):
        sections += _settings_section(settings)
    return "\n\n".join(sections) + "\n"


def _training_rows(training: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the facts about the training in a checkpoint, by label, as Markdown. Values of wrong types are left out."""
    data = _mapping(settings.get("data"))
    path, initial = _text(data.get("path")) or _text(data.get("url")), _text(settings.get("init_from"))
    own = _text(_mapping(_mapping(settings.get(CUSTOM)).get("data")).get("class"))
    included = (
        f"{_markdown_text(own or _text(data.get('name')) or 'unknown')} ({'own class' if own else 'included in gpt-pretrain'})"
    )
    rows = {"data": _markdown_text(path) if path else included}
    if initial:
        rows["initial weights"] = _markdown_text(initial)
    for label, key in (("tokens seen", "tokens_seen"), ("optimizer steps", "global_step")):
        if isinstance(number := training.get(key, 0), int) and is_finite_number(number):
            rows[label] = f"{number:,}"
    for label, key in (("last training loss", "train_losses"), ("last validation loss", "val_losses")):
        if isinstance(losses := training.get(key), list) and losses and is_finite_number(losses[-1]):
            rows[label] = f"{losses[-1]:.4f} nats per token"
    best = _mapping(_mapping(training.get("callbacks")).get("SaveRun"))
    loss, step, epoch = (best.get(f"best_{name}") for name in ("loss", "step", "epoch"))
    if isinstance(step, int) and step >= 0 and isinstance(epoch, int) and is_finite_number(epoch) and is_finite_number(loss):
        rows["best validation loss"] = f"{loss:.4f} nats per token, in epoch {epoch}"
    return rows


def _settings_section(settings: Mapping[str, Any]) -> list[str]:
    """Return the section with the settings in a list, or an empty list if they are not plain data."""
    try:
        shown = escape_controls(yaml.safe_dump(_public_settings(settings), sort_keys=False, allow_unicode=True))
    except (yaml.YAMLError, ValueError):  # a number of thousands of digits
        return []
    fence = "~" * (max(map(len, re.findall("~+", shown)), default=2) + 1)  # longer than any that could end the block
    fence = max(fence, "~~~", key=len)
    return [f"## Settings\n\n{fence}yaml\n{shown}{fence}"]


def _mapping(value: object) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}


def _public_settings(settings: Mapping[str, Any], *, path: str = "") -> dict[str, Any]:
    """Return the settings that this program knows, without the private ones."""
    shown = {}
    for name, value in settings.items():
        full_name = f"{path}{name}"
        if name in PRIVATE or not isinstance(name, str):
            continue
        if full_name in TRAIN_KINDS:
            shown[name] = value
        elif any(known.startswith(f"{full_name}.") for known in TRAIN_KINDS):
            shown[name] = _public_settings(value, path=f"{full_name}.") if isinstance(value, Mapping) else value
    return shown


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _markdown_text(text: str) -> str:
    """Return a text from a file as Markdown on one line: unchanged if it is plain, otherwise as code."""
    if PLAIN.fullmatch(text):
        return text
    # A pipe ends a table cell even within code, so it is escaped. A backslash before the pipe would undo that escape.
    line = re.sub(r"(?<=\\)\|", " |", escape_line(text)).replace("|", "\\|")
    fence = "`" * (max(map(len, re.findall("`+", line)), default=0) + 1)
    return f"{fence} {line} {fence}" if "`" in line or not line.strip() else f"{fence}{line}{fence}"


def _markdown_table(rows: Mapping[str, str]) -> str:
    """Return a table in Markdown. The values are Markdown already."""
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])
