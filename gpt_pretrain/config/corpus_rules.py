"""The rules for the settings of gpt-pretrain prepare and tokenizer, which read a corpus."""

from __future__ import annotations

from gpt_pretrain.config.command_schema import InputSettings, PrepareSettings, VocabularySettings
from gpt_pretrain.config.rules import MAX_WORKERS, VOCABULARY_SIZE, Rule, at_least, one_of, rule_problems

INPUT_RULES: list[Rule] = [
    ("text_field", lambda name: name != "", "must name the field that holds the text, such as text"),
    ("document_separator", lambda text: text != "", "must have at least one character, or be null for one document per file"),
    ("val_fraction", lambda share: 0 <= share < 1, "must be at least 0 and below 1"),
    ("max_rejected", lambda share: 0 <= share <= 1, "must be between 0 and 1; 0.001 allows one record in a thousand"),
]

PREPARE_RULES: list[Rule] = [
    *INPUT_RULES,
    ("shard_tokens", *at_least(1, "token")),
    ("val_tokens", *at_least(1, "token", null="val_fraction")),
    ("dedup", *one_of("none", "exact")),
    (
        "max_failed_files",
        lambda count: count >= 0,
        "must be at least 0; 0 stops at the first damaged file",
    ),
    (
        "workers",
        lambda count: count is None or 1 <= count <= MAX_WORKERS,
        f"must be between 1 and {MAX_WORKERS} processes on this machine, or null for one process per core",
    ),
    ("executor", *one_of(None, "local", "slurm", "ray")),
    ("tasks", *at_least(1, "task", null="one task per file")),
]


VOCABULARY_RULES: list[Rule] = [
    *INPUT_RULES,
    ("vocab_size", *VOCABULARY_SIZE),
    ("pattern", *one_of("cl100k", "gpt2")),
    ("sample_bytes", *at_least(1_000_000, "bytes")),
    ("trial_minutes", *at_least(0.1, "minutes")),
]


def prepare_problems(settings: PrepareSettings) -> list[str]:
    """List the problems of the settings of gpt-pretrain prepare."""
    problems = rule_problems(settings, PREPARE_RULES)
    if not settings.report:
        problems += _no_input_problems(settings)
    if settings.inputs and settings.dataset is not None:
        problems.append("Files and dataset= cannot be combined. Prepare one corpus from each.")
    if settings.executor is not None and settings.dataset is not None:
        problems.append(f"executor={settings.executor} distributes files, but dataset= is a single stream. Leave out executor=.")
    if settings.executor == "slurm" and settings.slurm_partition is None:
        problems.append("executor=slurm needs the partition to use. Add slurm_partition=NAME.")
    return problems


def vocabulary_problems(settings: VocabularySettings) -> list[str]:
    """List the problems of the settings of gpt-pretrain tokenizer."""
    problems = rule_problems(settings, VOCABULARY_RULES) + _no_input_problems(settings)
    if settings.inputs and settings.dataset is not None:
        problems.append("Files and dataset= cannot be combined. Save the dataset as files first.")
    return problems


def _no_input_problems(settings: InputSettings) -> list[str]:
    if settings.inputs or settings.dataset is not None:
        return []
    return ["There is no input. Give files, directories or globs, or dataset=NAME; --help explains the settings."]
