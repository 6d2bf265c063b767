"""Find settings of `gpt-pretrain prepare` and `tokenizer` that have no effect because of another setting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gpt_pretrain.config.command_schema import InputSettings

# Names of settings, a test for whether they are used, and the reason if they are not. A command has only some of them.
USES: list[tuple[tuple[str, ...], Callable[[Any], bool], str]] = [
    (("dataset_config", "dataset_split"), lambda settings: settings.dataset is not None, "without dataset="),
    (("val_fraction",), lambda settings: getattr(settings, "val_tokens", None) is None, "together with val_tokens="),
    (("tasks",), lambda settings: settings.executor is not None, "without executor="),
    (("slurm_partition", "slurm_time"), lambda settings: settings.executor == "slurm", "without executor=slurm"),
    (("trial_minutes",), lambda settings: settings.trial is not None, "without trial="),
]


def unused_arguments(settings: InputSettings) -> list[str]:
    """Return a sentence about each setting that differs from the default and has no effect."""
    return [
        f"{name}={value} has no effect {reason}."
        for names, is_used, reason in USES
        for name in names
        if (value := getattr(settings, name, None)) != getattr(type(settings), name, None) and not is_used(settings)
    ]
