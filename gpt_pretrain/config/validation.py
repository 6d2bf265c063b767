"""The rules for settings that a type cannot express; all broken rules are reported together."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from collections.abc import Callable
from operator import attrgetter
from typing import Any

from gpt_pretrain.config.command_schema import InputSettings, PrepareSettings, VocabularySettings
from gpt_pretrain.config.schema import (
    EvaluateSettings,
    GenerateSettings,
    ModelSettings,
    SamplerSettings,
    ServeSettings,
    TrainSettings,
)
from gpt_pretrain.errors import UserError
from gpt_pretrain.generation.config import MAX_LOGPROBS, MAX_STOP_LENGTH, MAX_STOPS, SamplerConfig
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.system.amounts import parse_duration
from gpt_pretrain.system.environment import user_path
from gpt_pretrain.system.resources import PROCESSES_PER_CORE, cores

Test = Callable[[Any], bool]
Rule = tuple[str, Test, str]  # the name of a setting, the test for its value, and the requirement, as a phrase

INFINITY = float("inf")
MAX_WORKERS = max(64, PROCESSES_PER_CORE * cores())  # more would only wait for each other
MAX_SAMPLES = 1_000_000  # of one prompt, which take days even from a tiny model


def as_typed_value(value: object) -> str:
    """Format a value as users type it."""
    if isinstance(value, list):
        return f"[{', '.join(map(as_typed_value, value))}]"
    if dataclasses.is_dataclass(value):
        return f"{{{', '.join(f'{name}: {as_typed_value(part)}' for name, part in vars(value).items())}}}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def one_of(*choices: object) -> tuple[Test, str]:
    """Return the test and the requirement for a value from a list of choices."""
    return lambda value: value in choices, "must be one of " + ", ".join(map(as_typed_value, choices))


def at_least(least: float, unit: str = "", *, null: str | None = None) -> tuple[Test, str]:
    """Return the test and the requirement for a finite number with a lower bound.

    Args:
        null: The meaning of null; without it, null is not allowed.
    """
    requirement = f"must be at least {least:,}{unit and ' ' + unit}" + ("" if null is None else f", or null for {null}")
    return lambda value: null is not None if value is None else least <= value < INFINITY, requirement


# A null stands for the default size, where it is allowed.
VOCABULARY_SIZE: tuple[Test, str] = (
    lambda size: size is None or 257 <= size <= 1_000_000,
    "must be between 257 tokens, which are the 256 bytes and the end of text, and 1,000,000 tokens",
)


WEIGHTS = ("trained", "ema", "average")
OPTIMIZER_ROLES = ("matrices", "embedding", "head", "vectors")


def _role_rules(role: str) -> list[Rule]:
    return [
        (
            f"optimizer.{role}.lr",
            lambda lr: lr is None or 0 < lr < INFINITY,
            "must be a finite number above 0, or null for optimizer.lr",
        ),
        (f"optimizer.{role}.weight_decay", *at_least(0, null="optimizer.weight_decay, or 0 for vectors")),
    ]


TRAIN_RULES: list[Rule] = [
    ("seed", lambda seed: 0 <= seed < 2**32, "must be between 0 and 4,294,967,295"),
    ("eval_freq", *at_least(1, "optimizer step")),
    ("eval_iter", *at_least(1, "batch")),
    ("compile", *one_of("auto", True, False)),
    ("ema_decay", lambda decay: decay is None or 0 < decay < 1, "must be above 0 and below 1, or null for no average; try 0.99"),
    ("weights", *one_of(*WEIGHTS)),
    ("tokenizer.vocab_size", *VOCABULARY_SIZE),
    ("data.batch_size", *at_least(1, "sequence")),
    ("data.train_ratio", lambda ratio: 0 < ratio < 1, "must be above 0 and below 1; 0.9 keeps a tenth for validation"),
    ("data.stride", *at_least(1, "token", null="context_length")),
    (
        "data.num_workers",
        lambda count: 0 <= count <= MAX_WORKERS,
        f"must be between 0 and {MAX_WORKERS} processes on this machine",
    ),
    ("data.format", *one_of("auto", "gpt_pretrain", "nanogpt", "llmc", "numpy")),
    ("data.val_tokens", *at_least(1, "token", null="all")),
    ("data.sources", lambda sources: all(0 < one.weight < INFINITY for one in sources), "each weight must be above 0"),
    ("data.remote.cache_bytes", *at_least(1_000_000, "bytes")),
    ("data.remote.prefetch_batches", *at_least(0, "batches")),
    ("data.remote.threads", *at_least(1, "thread")),
    ("data.remote.retries", *at_least(0, "retries")),
    ("data.remote.timeout", lambda seconds: 0 < seconds < INFINITY, "must be above 0 seconds"),
    ("optimizer.name", *one_of("adamw", "muon")),
    ("optimizer.lr", lambda lr: 0 < lr < INFINITY, "must be a finite number above 0; 4e-4 is a good start"),
    ("optimizer.weight_decay", *at_least(0)),
    (
        "optimizer.betas",
        lambda betas: len(betas) == 2 and all(0 <= beta < 1 for beta in betas),
        "must be two numbers of at least 0 and below 1",
    ),
    ("optimizer.eps", lambda eps: 0 < eps < INFINITY, "must be a finite number above 0"),
    ("optimizer.decay", *one_of("matrices", "all", "roles")),
    ("optimizer.momentum", lambda momentum: 0 <= momentum < 1, "must be at least 0 and below 1; 0.95 is usual"),
    *(rule for role in OPTIMIZER_ROLES for rule in _role_rules(role)),
    ("scheduler.name", *one_of("constant", "warmup_cosine", "warmup_linear", "warmup_stable_decay", "warmup_stable_sqrt")),
    ("scheduler.warmup_steps", *at_least(0, "optimizer steps")),
    ("scheduler.decay_steps", *at_least(0, "optimizer steps")),
    (
        "scheduler.decay_fraction",
        lambda share: share is None or 0 <= share <= 1,
        "must be between 0 and 1, or null for decay_steps",
    ),
    ("scheduler.min_lr", *at_least(0)),
    ("trainer.max_epochs", *at_least(1, "epoch")),
    ("trainer.max_steps", lambda steps: steps == -1 or steps >= 1, "must be at least 1 optimizer step, or -1 for no limit"),
    ("trainer.max_tokens", *at_least(1, "token", null="max_epochs and max_steps only")),
    (
        "trainer.max_time",
        lambda text: text is None or parse_duration(text) not in (None, INFINITY),
        "must be a duration with its unit, such as 90m, 1h30m or 01:30:00, or null for no limit",
    ),
    ("trainer.precision", *one_of("auto", "32-true", "bf16-mixed", "bf16-true", "16-mixed")),
    ("trainer.accelerator", *one_of("auto", "cpu", "gpu", "cuda", "mps")),
    ("trainer.strategy", *one_of("auto", "ddp", "fsdp")),
    (
        "trainer.devices",
        lambda devices: devices == "auto" or (isinstance(devices, int) and devices >= 1),
        "must be at least 1 device, or auto for all GPUs",
    ),
    ("trainer.num_nodes", *at_least(1, "machine")),
    ("trainer.accumulate_grad_batches", *at_least(1, "batch")),
    ("trainer.gradient_clip_val", lambda norm: norm is None or norm > 0, "must be above 0, or null for no clipping"),
    ("trainer.log_every_n_steps", *at_least(1, "optimizer step")),
    ("trainer.limit_train_batches", *at_least(1, "batch", null="all")),
    ("trainer.limit_val_batches", *at_least(1, "batch", null="all")),
    ("trainer.profiler", *one_of(None, "simple", "advanced", "pytorch")),
    ("checkpoint.every_n_steps", *at_least(1, "optimizer step", null="the end of each epoch only")),
    (
        "checkpoint.every_n_minutes",
        lambda minutes: minutes is None or 0 < minutes < INFINITY,
        "must be above 0 minutes, or null for no such checkpoints",
    ),
    ("checkpoint.keep", *at_least(0, "checkpoints")),
    ("evaluation.texts", lambda texts: "" not in texts, "no path may be empty; leave out the empty one"),
    ("evaluation.every_n_steps", *at_least(1, "optimizer step", null="the end of each epoch")),
    ("evaluation.max_bytes", *at_least(1, "byte", null="all of each text")),
    ("evaluation.task_limit", *at_least(1, "item", null="all items")),
    ("callbacks.early_stopping", lambda stop: stop is None or stop.patience >= 0, "patience must be at least 0 validations"),
    ("callbacks.early_stopping", lambda stop: stop is None or 0 <= stop.min_delta < INFINITY, "min_delta must be at least 0"),
    ("on_nonfinite", *one_of("stop", "skip", "rollback")),
    ("rollback_lr_factor", lambda factor: 0 < factor <= 1, "must be above 0 and at most 1"),
    ("max_rollbacks", *at_least(0, "rollbacks")),
    ("doubts.min_tokens_per_parameter", *at_least(0, "tokens")),
    ("doubts.min_val_windows", *at_least(0, "windows")),
    ("doubts.max_ddp_memory", lambda share: 0 <= share <= 1, "must be between 0 and 1"),
]

FRACTION: tuple[Test, str] = (lambda value: 0 < value < 1, "must be above 0 and below 1")

DOCTOR_RULES: list[Rule] = [
    ("window", *at_least(10, "optimizer steps")),
    ("patience", *at_least(1, "evaluation")),
    ("first_loss", *at_least(0, "nats")),
    ("overfitting", *at_least(0, "nats")),
    ("gap", *at_least(1)),
    ("stuck", *FRACTION),
    ("spike", *at_least(0, "nats")),
    ("clipping", *FRACTION),
    ("loading", *FRACTION),
]

GRID_RULES: list[Rule] = [
    ("prompts", lambda texts: "" not in texts, "no prompt may be empty; leave out the empty one"),
    (
        "temperatures",
        lambda values: len(values) > 0 and all(0 <= value < INFINITY for value in values),
        "must be one or more numbers of at least 0",
    ),
    (
        "top_ks",
        lambda values: len(values) > 0 and all(k is None or k >= 1 for k in values),
        "must be one or more numbers of at least 1, or null for all tokens",
    ),
]

EXISTS: tuple[Test, str] = (lambda name: name is None or user_path(name).exists(), "no file has this path; check it")
NO_FOLDER: tuple[Test, str] = (lambda name: name is None or not user_path(name).is_dir(), "this is a folder. Give a file in it")

GENERATE_RULES: list[Rule] = [
    ("weights", *one_of(*WEIGHTS)),
    ("n_samples", lambda count: 1 <= count <= MAX_SAMPLES, f"must be between 1 and {MAX_SAMPLES:,} samples"),
    ("device", lambda name: re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name) is not None, "must be auto, cpu, cuda or mps"),
    ("precision", *one_of("auto", "32-true", "bf16-mixed", "int8")),
    ("prompt", lambda text: text != "", "must have at least one character, for example 'Every effort moves you'"),
    ("prompt_file", *EXISTS),
    ("prompt_file", *NO_FOLDER),
    ("prompts", *EXISTS),
    ("prompts", *NO_FOLDER),
    (
        "prompts",
        lambda name: name is None or user_path(name).is_file() or user_path(name).is_dir() or not user_path(name).exists(),
        "this is a pipe or a device, which cannot be read twice. Save the prompts in a file first",
    ),
    (
        "stop",
        lambda texts: len(texts) <= MAX_STOPS and all(1 <= len(text) <= MAX_STOP_LENGTH for text in texts),
        f"must be at most {MAX_STOPS} texts of 1 to {MAX_STOP_LENGTH:,} characters",
    ),
    ("logprobs", lambda count: count is None or 0 <= count <= MAX_LOGPROBS, f"must be between 0 and {MAX_LOGPROBS}, or null"),
    ("seed", lambda seed: 0 <= seed < 2**32, "must be between 0 and 4,294,967,295"),
    ("n_heads", *at_least(1, "attention head", null="the heads that the weights name")),
]

TASK_NAMES = ("lambada", "hellaswag", "piqa", "arc_easy", "arc_challenge", "winogrande", "copa")  # on the hub

EVALUATE_RULES: list[Rule] = [
    ("weights", *one_of(*WEIGHTS)),
    ("stride", *at_least(1, "token", null="the context length")),
    ("max_bytes", *at_least(1, "byte", null="the whole text")),
    ("tasks.limit", *at_least(1, "item", null="all items")),
    ("tasks.n_shots", lambda count: count is None or 0 <= count <= 100, "must be from 0 to 100, or null"),
    ("batch_tokens", *at_least(1, "token", null="what suits the device")),
    ("precision", *one_of("auto", "32-true", "bf16-mixed")),
    *(rule for rule in GENERATE_RULES if rule[0] in ("device", "n_heads")),
]

SERVE_RULES: list[Rule] = [
    ("timeline", lambda count: 0 <= count <= 100, "must be between 0 and 100 checkpoints"),
    (
        "host",
        lambda host: re.fullmatch(r"[\w.:-]{1,255}", host, re.ASCII) is not None,
        "must be a name or an address of this machine",
    ),
    ("port", lambda port: 0 <= port <= 65535, "must be between 0 and 65535; 0 takes any free port"),
    (
        "api_key",
        lambda key: key is None or re.fullmatch(r"[!-~]{8,1000}", key) is not None,
        "must have at least 8 letters, digits or symbols, without spaces",
    ),
    (
        "cors",
        lambda origins: all(re.fullmatch(r"https?://[\w.:\[\]-]+", one, re.ASCII) for one in origins),
        "must be origins such as https://example.org, without a path",
    ),
    ("max_rows", lambda count: 1 <= count <= 1024, "must be between 1 and 1024 texts"),
    ("max_queue", lambda count: 0 <= count <= 100_000, "must be between 0 and 100,000 texts"),
    ("max_seconds", lambda seconds: 0 < seconds <= 1_000_000, "must be above 0 and at most 1,000,000 seconds"),
    *(rule for rule in GENERATE_RULES if rule[0] in ("weights", "device", "precision", "n_heads")),
]

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


def train_problems(settings: TrainSettings) -> list[str]:
    """List the problems of train.py's settings."""
    rules = [rule for rule in TRAIN_RULES if rule[0].partition(".")[0] not in settings.custom]
    problems = _broken_rules(settings, rules) + _model_problems(settings.model) + _sampler_problems(settings.sampler)
    if settings.callbacks.doctor is not None:
        problems += [f"callbacks.doctor.{problem}" for problem in _broken_rules(settings.callbacks.doctor, DOCTOR_RULES)]
    if settings.callbacks.grid is not None:
        problems += [f"callbacks.grid.{problem}" for problem in _broken_rules(settings.callbacks.grid, GRID_RULES)]
    for package, chosen in (("wandb", settings.logger.wandb), ("mlflow", settings.logger.mlflow)):
        if chosen is not None and importlib.util.find_spec(package) is None:
            problems.append(f"logger={package} needs the package {package}. Run: pip install {package}, or choose logger=csv.")
    problems += _role_problems(settings)
    problems += [
        f"callbacks.custom.{name}: a callback is a mapping such as {{_target_: package.Class}}."
        for name, fields in settings.callbacks.custom.items()
        if not isinstance(fields, dict) or "_target_" not in fields
    ]
    lr, min_lr = settings.optimizer.lr, settings.scheduler.min_lr
    if min_lr > lr > 0 and not settings.custom:
        problems.append(f"scheduler.min_lr={min_lr}: must be at most optimizer.lr={lr}; a tenth of it is usual.")
    return problems


def broken_train_rules(name: str, value: Any) -> list[str]:
    """List the rules of train.py that a value of a single setting breaks, by itself; none if it is of another type."""
    try:
        return [
            f"{name}={as_typed_value(value)}: {requirement}."
            for key, test, requirement in TRAIN_RULES
            if key == name and not test(value)
        ]
    except (TypeError, AttributeError):
        return []


def generate_problems(settings: GenerateSettings) -> list[str]:
    """List the problems of generate.py's settings."""
    problems = _broken_rules(settings, GENERATE_RULES) + _sampler_problems(settings.sampler)
    if settings.pretrained is not None and settings.checkpoint != "latest":
        problems.append("checkpoint and pretrained both name the weights to use. Set only one of them.")
    if settings.interactive and settings.out is not None:
        problems.append(f"interactive=true prints its texts, so it cannot be combined with out={settings.out}.")
    return problems


def evaluate_problems(settings: EvaluateSettings) -> list[str]:
    """List the problems of the settings of evaluate.py."""
    problems = _broken_rules(settings, EVALUATE_RULES) + _several_weights(settings)
    problems += [
        f"tasks.names={name}: there is no such task. Choose from {', '.join(TASK_NAMES)}; others are files, set with tasks.path."
        for name in settings.tasks.names
        if name not in TASK_NAMES
    ]
    if settings.tasks.names and settings.tasks.path is not None:
        problems.append("tasks.path and tasks.names cannot be combined. Evaluate twice.")
    return problems


def serve_problems(settings: ServeSettings) -> list[str]:
    """List the problems of the settings of serve.py."""
    problems = _broken_rules(settings, SERVE_RULES) + _several_weights(settings)
    if settings.timeline and (settings.models or settings.pretrained is not None):
        problems.append(
            f"timeline={settings.timeline} adds checkpoints of the run that checkpoint= names. To choose others, list them "
            "instead: models=[outputs/RUN/checkpoints/step-00000100.ckpt,outputs/RUN]"
        )
    return problems


def _several_weights(settings: EvaluateSettings | ServeSettings) -> list[str]:
    """List the settings that name weights, if there is more than one."""
    named = {"checkpoint": settings.checkpoint != "latest", "pretrained": settings.pretrained is not None}
    several = [name for name, is_set in (named | {"models": bool(settings.models)}).items() if is_set]
    if len(several) < 2:
        return []
    return [f"{' and '.join(several)}: each names the weights to use. Set one of them; models=[...] takes several."]


def prepare_problems(settings: PrepareSettings) -> list[str]:
    """List the problems of the settings of gpt-pretrain prepare."""
    problems = _broken_rules(settings, PREPARE_RULES)
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
    problems = _broken_rules(settings, VOCABULARY_RULES) + _no_input_problems(settings)
    if settings.inputs and settings.dataset is not None:
        problems.append("Files and dataset= cannot be combined. Save the dataset as files first.")
    return problems


def _no_input_problems(settings: InputSettings) -> list[str]:
    if settings.inputs or settings.dataset is not None:
        return []
    return ["There is no input. Give files, directories or globs, or dataset=NAME; --help explains the settings."]


def _role_problems(settings: TrainSettings) -> list[str]:
    """List the settings of single roles that AdamW's usual groups cannot follow."""
    optimizer = settings.optimizer
    if optimizer.name == "muon" or optimizer.decay == "roles" or "optimizer" in settings.custom:
        return []
    given = [
        f"optimizer.{role}.{name}={value:g}"
        for role in OPTIMIZER_ROLES
        for name, value in vars(getattr(optimizer, role)).items()
        if value is not None
    ]
    needs = f"optimizer.decay={optimizer.decay} has no groups by role. Add optimizer.decay=roles, or choose optimizer=muon."
    return [f"{' and '.join(given)}: {needs}"] if given else []


def _model_problems(model: ModelSettings) -> list[str]:
    return _config_problems("model", lambda: GPTConfig(vocab_size=1, **dataclasses.asdict(model)))


def _sampler_problems(sampler: SamplerSettings) -> list[str]:
    return _config_problems("sampler", lambda: SamplerConfig(**dataclasses.asdict(sampler)))


def _config_problems(group: str, build: Callable[[], object]) -> list[str]:
    """List the problems of a config that validates itself, with the names that its settings have in a group."""
    try:
        build()
    except UserError as error:
        return [f"{group}.{problem}" for problem in error.problems]
    return []


def _broken_rules(settings: object, rules: list[Rule]) -> list[str]:
    values = [(name, attrgetter(name)(settings), test, requirement) for name, test, requirement in rules]
    return [f"{name}={as_typed_value(value)}: {requirement}." for name, value, test, requirement in values if not test(value)]
