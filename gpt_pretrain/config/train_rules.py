"""The rules for the settings of train.py that a type cannot express. All broken rules are reported together."""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import Any

from gpt_pretrain.config.rules import (
    FRACTION,
    INFINITY,
    MAX_WORKERS,
    VOCABULARY_SIZE,
    WEIGHTS,
    Rule,
    as_typed_value,
    at_least,
    config_problems,
    one_of,
    rule_problems,
    sampler_problems,
)
from gpt_pretrain.config.schema import ModelSettings, TrainSettings
from gpt_pretrain.model.config import INITIALIZATIONS, GPTConfig
from gpt_pretrain.system.amounts import parse_duration

OPTIONS_OF_KIND = {"gpt2": "model=tiny or model=gpt2_124m", "modern": "model=modern_tiny or model=modern_124m"}
OPTIMIZER_ROLES = ("matrices", "embedding", "head", "vectors")
ON_NONFINITE = ("stop", "skip", "rollback")


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
    ("data.batch_size", *at_least(1, "sequence", null="the usual number")),
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
    ("on_nonfinite", *one_of(*ON_NONFINITE)),
    ("rollback_lr_factor", lambda factor: 0 < factor <= 1, "must be above 0 and at most 1"),
    ("max_rollbacks", *at_least(0, "rollbacks")),
    ("doubts.min_tokens_per_parameter", *at_least(0, "tokens")),
    ("doubts.min_val_windows", *at_least(0, "windows")),
    ("doubts.max_ddp_memory", lambda share: 0 <= share <= 1, "must be between 0 and 1"),
]

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


def train_problems(settings: TrainSettings) -> list[str]:
    """List the problems of train.py's settings."""
    rules = [rule for rule in TRAIN_RULES if rule[0].partition(".")[0] not in settings.custom]
    model = settings.model if settings.init_from is None else _with_width_of_weights(settings.model)
    problems = rule_problems(settings, rules) + _model_problems(model) + sampler_problems(settings.sampler)
    if settings.callbacks.doctor is not None:
        problems += [f"callbacks.doctor.{problem}" for problem in rule_problems(settings.callbacks.doctor, DOCTOR_RULES)]
    if settings.callbacks.grid is not None:
        problems += [f"callbacks.grid.{problem}" for problem in rule_problems(settings.callbacks.grid, GRID_RULES)]
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
    """List the rules of train.py that the value of a single setting breaks. The list is empty for a value of a wrong type."""
    try:
        return [
            f"{name}={as_typed_value(value)}: {requirement}."
            for key, test, requirement in TRAIN_RULES
            if key == name and not test(value)
        ]
    except (TypeError, AttributeError):
        return []


def _role_problems(settings: TrainSettings) -> list[str]:
    """List settings of single roles (optimizer.matrices and the like) if the optimizer has no groups by role."""
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
    own = INITIALIZATIONS.get(model.kind, ())
    if own and model.init not in own and any(model.init in others for others in INITIALIZATIONS.values()):
        return [
            f"model.kind={model.kind} and model.init={model.init} do not go together. Type neither, and choose an option with "
            f"model.kind={model.kind} and an optimizer that suits it, such as {OPTIONS_OF_KIND[model.kind]}."
        ]
    return config_problems("model", lambda: GPTConfig(vocab_size=1, **dataclasses.asdict(model)))


def _with_width_of_weights(model: ModelSettings) -> ModelSettings:
    """Return the settings with a width that suits their heads, since the width of the weights is not known yet."""
    return dataclasses.replace(model, emb_dim=2 * max(1, model.n_heads), n_kv_heads=None)
