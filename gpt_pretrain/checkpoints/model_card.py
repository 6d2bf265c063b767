"""The page that goes with an exported model: what it is, what it learnt from, and how well."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from gpt_pretrain.checkpoints.tensor_files import tables
from gpt_pretrain.model.config import GPTConfig

HEADER = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- gpt2
- gpt-pretrain
---
"""
PRIVATE = ("run_dir", "resume", "cache_dir")  # where things were on the machine that trained


def model_card(config: GPTConfig, *, name: str, n_parameters: int, tokenizer: str | None, training: Mapping[str, Any]) -> str:
    """The text of a README.md.

    Args:
        name: of the model.
        n_parameters: numbers in it, a tied head counted once.
        tokenizer: its name, if it is known.
        training: one of this program's checkpoints, or empty where the training is not known.
    """
    parts = [
        f"{HEADER}\n# {name}\n\nA GPT-2 with {n_parameters:,} parameters, written by gpt-pretrain.",
        "## Use\n\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'folder = "."  # this one\n'
        "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        "model = AutoModelForCausalLM.from_pretrained(folder)\n"
        'ids = tokenizer("Every effort moves you", return_tensors="pt")\n'
        "print(tokenizer.decode(model.generate(**ids, max_new_tokens=50)[0]))\n```"
        if tokenizer is not None
        else "It comes without a tokenizer: none that is known has its vocabulary.",
    ]
    settings = training.get("config")
    tables(settings)  # a stranger's settings might contain themselves
    if isinstance(settings, Mapping):
        parts.append("## Training\n\n" + _table(_training(training, settings)))
    fields = config.to_dict() | {"tokenizer": tokenizer}
    parts.append("## Architecture\n\n" + _table({name: str(value) for name, value in fields.items()}))
    if isinstance(settings, Mapping):
        parts.append(f"## Settings\n\n~~~yaml\n{yaml.safe_dump(_public(settings), sort_keys=False, allow_unicode=True)}~~~")
    return "\n\n".join(parts) + "\n"


def _training(training: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, str]:
    """What a checkpoint tells of its training, in rows."""
    data = settings.get("data", {})
    rows = {"data": str(data.get("path") or data.get("url") or f"{data.get('name')} (comes with gpt-pretrain)")}
    if settings.get("init_from"):
        rows["started from"] = str(settings["init_from"])
    rows["tokens seen"] = f"{training.get('tokens_seen', 0):,}"
    rows["optimizer steps"] = f"{training.get('global_step', 0):,}"
    for name, key in (("train loss", "train_losses"), ("validation loss", "val_losses")):
        if training.get(key):
            rows[f"{name}, the last estimate"] = f"{training[key][-1]:.4f} nats a token"
    best = training.get("callbacks", {}).get("SaveRun", {})
    if best.get("best_step", -1) >= 0:
        rows["validation loss, the best"] = f"{best['best_loss']:.4f} nats a token, after epoch {best['best_epoch']}"
    return rows


def _public(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _public(value) if isinstance(value, Mapping) else value for name, value in settings.items() if name not in PRIVATE
    }


def _table(rows: Mapping[str, str]) -> str:
    cells = [(name, value.replace("|", "\\|").replace("\n", " ")) for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in cells)])
