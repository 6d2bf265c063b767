"""The model card of an export: the model, its training and its losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from gpt_pretrain.checkpoints.checkpoint_file import nested_dicts
from gpt_pretrain.config.secrets import settings_without_secrets
from gpt_pretrain.model.config import GPTConfig

HEADER = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- gpt2
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
PRIVATE = ("run_dir", "resume", "cache_dir", "options")  # paths on the machine that trained the model, and access keys


def model_card(config: GPTConfig, *, name: str, n_parameters: int, tokenizer: str | None, training: Mapping[str, Any]) -> str:
    """Return the text of the README.md.

    Args:
        name: The model's name.
        n_parameters: Trainable numbers; a tied head counts once.
        tokenizer: The tokenizer's name, if it is known.
        training: One of this program's checkpoints; empty if the training is unknown.
    """
    sections = [
        f"{HEADER}\n# {name}\n\nA GPT-2 with {n_parameters:,} parameters, exported by gpt-pretrain.",
        USAGE if tokenizer is not None else NO_TOKENIZER,
    ]
    settings = training.get("config")
    # Settings in a checkpoint from elsewhere might contain themselves.
    nested_dicts(settings)
    if isinstance(settings, Mapping):
        settings = settings_without_secrets(settings)
        sections.append("## Training\n\n" + _markdown_table(_training_rows(training, settings)))
    fields = config.to_dict() | {"tokenizer": tokenizer}
    sections.append("## Architecture\n\n" + _markdown_table({name: str(value) for name, value in fields.items()}))
    if isinstance(settings, Mapping):
        shown = yaml.safe_dump(_without_private(settings), sort_keys=False, allow_unicode=True)
        sections.append(f"## Settings\n\n~~~yaml\n{shown}~~~")
    return "\n\n".join(sections) + "\n"


def _training_rows(training: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the facts about the training in a checkpoint, by label."""
    data = settings.get("data", {})
    rows = {"data": str(data.get("path") or data.get("url") or f"{data.get('name')} (included in gpt-pretrain)")}
    if settings.get("init_from"):
        rows["initial weights"] = str(settings["init_from"])
    rows["tokens seen"] = f"{training.get('tokens_seen', 0):,}"
    rows["optimizer steps"] = f"{training.get('global_step', 0):,}"
    for label, key in (("last training loss", "train_losses"), ("last validation loss", "val_losses")):
        if training.get(key):
            rows[label] = f"{training[key][-1]:.4f} nats per token"
    best = training.get("callbacks", {}).get("SaveRun", {})
    if best.get("best_step", -1) >= 0:
        rows["best validation loss"] = f"{best['best_loss']:.4f} nats per token, in epoch {best['best_epoch']}"
    return rows


def _without_private(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _without_private(value) if isinstance(value, Mapping) else value
        for name, value in settings.items()
        if name not in PRIVATE
    }


def _markdown_table(rows: Mapping[str, str]) -> str:
    cells = [(name, value.replace("|", "\\|").replace("\n", " ")) for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in cells)])
