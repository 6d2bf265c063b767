"""The settings that a command line may change: their names, types, units and rules.

The values stand in `conf/`. Hydra merges them into these types, which refuses unknown keys and wrong types by itself; the rules that
a type cannot tell are checked here, all at once.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Optional, TypeVar, Union

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gpt_pretrain.config import GPTConfig, SamplerConfig
from gpt_pretrain.errors import UserError

# OmegaConf reads these annotations at run time: it knows Optional and Union, not every newer spelling.
# ruff: noqa: UP007, UP045

Settings = TypeVar("Settings")

SCHEDULES = ("constant", "warmup_cosine", "warmup_stable_decay")
DECAYS = ("matrices", "all")
PRECISIONS = ("auto", "32-true", "bf16-mixed", "bf16-true", "16-mixed")


@dataclass
class ModelSettings:
    """`model`: the architecture; vocab_size is not here, it follows from the tokenizer."""

    context_length: int = MISSING  # tokens
    emb_dim: int = MISSING
    n_heads: int = MISSING
    n_layers: int = MISSING
    drop_rate: float = MISSING  # probability
    qkv_bias: bool = MISSING
    tie_embeddings: bool = MISSING
    init: str = MISSING  # gpt2, pytorch


@dataclass
class DataSettings:
    """`data`: which text, and how it becomes batches."""

    name: str = MISSING
    path: Optional[str] = MISSING  # file, directory or glob; null: the text that name stands for
    url: Optional[str] = MISSING  # where to download the text from, once
    sha256: Optional[str] = MISSING  # of the downloaded file
    cache_dir: Optional[str] = MISSING  # null: the user's cache folder
    batch_size: int = MISSING  # sequences per device
    train_ratio: float = MISSING  # share of the characters
    stride: Optional[int] = MISSING  # tokens between window starts; null: context_length
    num_workers: int = MISSING  # processes; 0: the main one


@dataclass
class TokenizerSettings:
    """`tokenizer`: gpt2, byte, or any encoding that tiktoken knows."""

    name: str = MISSING


@dataclass
class OptimizerSettings:
    """`optimizer`: AdamW."""

    name: str = MISSING
    lr: float = MISSING
    weight_decay: float = MISSING
    betas: list[float] = MISSING
    eps: float = MISSING
    decay: str = MISSING  # matrices, all: which parameters weight_decay acts on


@dataclass
class SchedulerSettings:
    """`scheduler`: how the learning rate moves over the run."""

    name: str = MISSING
    warmup_steps: int = MISSING  # optimizer steps
    decay_steps: int = MISSING  # optimizer steps at the end (warmup_stable_decay)
    min_lr: float = MISSING  # where the decay ends


@dataclass
class SamplerSettings:
    """`sampler`: how the next token is chosen."""

    max_new_tokens: int = MISSING
    temperature: float = MISSING  # 0: greedy
    top_k: Optional[int] = MISSING  # null: all tokens
    top_p: Optional[float] = MISSING  # null: all tokens


@dataclass
class TrainerSettings:
    """`trainer`: Lightning's Trainer, under its own names."""

    max_epochs: int = MISSING
    max_steps: int = MISSING  # optimizer steps; -1: no limit
    max_time: Optional[str] = MISSING  # DD:HH:MM:SS
    precision: str = MISSING
    accelerator: str = MISSING
    devices: int = MISSING
    accumulate_grad_batches: int = MISSING
    gradient_clip_val: Optional[float] = MISSING
    log_every_n_steps: int = MISSING  # optimizer steps
    limit_train_batches: Optional[int] = MISSING  # batches per epoch; null: all
    limit_val_batches: Optional[int] = MISSING
    deterministic: bool = MISSING
    detect_anomaly: bool = MISSING
    profiler: Optional[str] = MISSING


@dataclass
class EarlyStoppingSettings:
    """`callbacks.early_stopping`: end the run when the validation loss no longer falls."""

    patience: int = MISSING  # validations without a gain
    min_delta: float = MISSING  # nats


@dataclass
class CallbacksSettings:
    """`callbacks`: what happens beside the training itself."""

    progress_bar: bool = MISSING
    samples: bool = MISSING
    loss_curve: bool = MISSING
    early_stopping: Optional[EarlyStoppingSettings] = None
    custom: dict[str, Any] = field(default_factory=dict)  # name -> {_target_: class, arguments}


@dataclass
class WandbSettings:
    """`logger.wandb`: Weights & Biases."""

    project: str = MISSING
    name: Optional[str] = None
    offline: bool = False


@dataclass
class MlflowSettings:
    """`logger.mlflow`: MLflow."""

    experiment_name: str = MISSING
    tracking_uri: Optional[str] = None  # null: a folder in the run directory


@dataclass
class LoggerSettings:
    """`logger`: where the metrics go."""

    csv: bool = False
    tensorboard: bool = False
    wandb: Optional[WandbSettings] = None
    mlflow: Optional[MlflowSettings] = None


@dataclass
class CheckpointSettings:
    """`checkpoint`: when the run is saved, beside the end of each epoch."""

    every_n_steps: Optional[int] = MISSING  # optimizer steps; null: at the end of each epoch only


@dataclass
class TrainSettings:
    """All of `train.py`'s settings."""

    seed: int = MISSING
    eval_freq: int = MISSING  # optimizer steps
    eval_iter: int = MISSING  # batches
    start_context: str = MISSING
    resume: Optional[str] = MISSING  # run directory or "latest"
    init_from: Optional[str] = MISSING  # checkpoint file, run directory or "latest"
    compile: Union[bool, str] = MISSING  # true, false, auto
    run_dir: str = MISSING
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    scheduler: SchedulerSettings = field(default_factory=SchedulerSettings)
    sampler: SamplerSettings = field(default_factory=SamplerSettings)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    callbacks: CallbacksSettings = field(default_factory=CallbacksSettings)
    logger: LoggerSettings = field(default_factory=LoggerSettings)


@dataclass
class GenerateSettings:
    """All of `generate.py`'s settings."""

    checkpoint: str = MISSING  # checkpoint file, run directory or "latest"
    prompt: str = MISSING  # "-": standard input
    prompt_file: Optional[str] = MISSING
    interactive: bool = MISSING
    n_samples: int = MISSING
    seed: int = MISSING
    device: str = MISSING  # auto, cpu, cuda, mps
    sampler: SamplerSettings = field(default_factory=SamplerSettings)


def typed(config: DictConfig, kind: type[Settings]) -> Settings:
    """The composed config as plain typed objects.

    Raises:
        UserError: when a value is missing or cannot be resolved.
    """
    try:
        settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), config))
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key or 'config'}: {error.msg or error}") from error
    assert isinstance(settings, kind)
    return settings


def train_problems(settings: TrainSettings) -> list[str]:
    """What is wrong with the settings of a run that no type could tell; empty when all is well."""
    data, optimizer, scheduler, trainer = settings.data, settings.optimizer, settings.scheduler, settings.trainer
    rules = [
        (0 <= settings.seed < 2**32, "seed", settings.seed, "must be between 0 and 4294967295"),
        (settings.eval_freq >= 1, "eval_freq", settings.eval_freq, "must be at least 1 optimizer step"),
        (settings.eval_iter >= 1, "eval_iter", settings.eval_iter, "must be at least 1 batch"),
        (settings.compile in (True, False, "auto"), "compile", settings.compile, "must be auto, true or false"),
        (data.batch_size >= 1, "data.batch_size", data.batch_size, "must be at least 1 sequence"),
        (0 < data.train_ratio < 1, "data.train_ratio", data.train_ratio, "must be between 0 and 1, without them; 0.9 keeps a tenth for validation"),
        (data.stride is None or data.stride >= 1, "data.stride", data.stride, "must be at least 1 token, or null for context_length"),
        (data.num_workers >= 0, "data.num_workers", data.num_workers, "must be at least 0"),
        (optimizer.name == "adamw", "optimizer.name", optimizer.name, "must be adamw"),
        (optimizer.lr > 0, "optimizer.lr", optimizer.lr, "must be above 0; 4e-4 is a good start"),
        (optimizer.weight_decay >= 0, "optimizer.weight_decay", optimizer.weight_decay, "must be at least 0"),
        (
            len(optimizer.betas) == 2 and all(0 <= beta < 1 for beta in optimizer.betas),
            "optimizer.betas",
            optimizer.betas,
            "must be two numbers, each at least 0 and below 1",
        ),
        (optimizer.eps > 0, "optimizer.eps", optimizer.eps, "must be above 0"),
        (optimizer.decay in DECAYS, "optimizer.decay", optimizer.decay, f"must be one of {', '.join(DECAYS)}"),
        (scheduler.name in SCHEDULES, "scheduler.name", scheduler.name, f"must be one of {', '.join(SCHEDULES)}"),
        (scheduler.warmup_steps >= 0, "scheduler.warmup_steps", scheduler.warmup_steps, "must be at least 0 optimizer steps"),
        (scheduler.decay_steps >= 0, "scheduler.decay_steps", scheduler.decay_steps, "must be at least 0 optimizer steps"),
        (0 <= scheduler.min_lr <= optimizer.lr or optimizer.lr <= 0, "scheduler.min_lr", scheduler.min_lr, "must be between 0 and optimizer.lr"),
        (trainer.max_epochs >= 1, "trainer.max_epochs", trainer.max_epochs, "must be at least 1"),
        (trainer.max_steps == -1 or trainer.max_steps >= 1, "trainer.max_steps", trainer.max_steps, "must be at least 1, or -1 for no limit"),
        (trainer.precision in PRECISIONS, "trainer.precision", trainer.precision, f"must be one of {', '.join(PRECISIONS)}"),
        (trainer.devices >= 1, "trainer.devices", trainer.devices, "must be at least 1"),
        (trainer.accumulate_grad_batches >= 1, "trainer.accumulate_grad_batches", trainer.accumulate_grad_batches, "must be at least 1 batch"),
        (
            trainer.gradient_clip_val is None or trainer.gradient_clip_val > 0,
            "trainer.gradient_clip_val",
            trainer.gradient_clip_val,
            "must be above 0, or null for no clipping",
        ),
        (trainer.log_every_n_steps >= 1, "trainer.log_every_n_steps", trainer.log_every_n_steps, "must be at least 1 optimizer step"),
        *(
            (limit is None or limit >= 1, f"trainer.{name}", limit, "must be at least 1 batch, or null for all")
            for name, limit in (("limit_train_batches", trainer.limit_train_batches), ("limit_val_batches", trainer.limit_val_batches))
        ),
        (
            settings.checkpoint.every_n_steps is None or settings.checkpoint.every_n_steps >= 1,
            "checkpoint.every_n_steps",
            settings.checkpoint.every_n_steps,
            "must be at least 1 optimizer step, or null for the end of each epoch only",
        ),
    ]
    problems = _broken(rules) + model_problems(settings.model) + sampler_problems(settings.sampler)
    if settings.resume is not None and settings.init_from is not None:
        problems.append("resume and init_from exclude each other: resume goes on with a run, init_from starts a new one from its weights.")
    return problems


def model_problems(model: ModelSettings) -> list[str]:
    """What is wrong with the architecture; empty when all is well."""
    try:
        GPTConfig(vocab_size=1, **dataclasses.asdict(model))
    except UserError as error:
        return [f"model.{problem}" for problem in error.problems]
    return []


def sampler_problems(sampler: SamplerSettings) -> list[str]:
    """What is wrong with the way of choosing tokens; empty when all is well."""
    try:
        SamplerConfig(**dataclasses.asdict(sampler))
    except UserError as error:
        return [f"sampler.{problem}" for problem in error.problems]
    return []


def generate_problems(settings: GenerateSettings) -> list[str]:
    """What is wrong with the settings of a generation; empty when all is well."""
    return sampler_problems(settings.sampler) + _broken(
        [
            (settings.n_samples >= 1, "n_samples", settings.n_samples, "must be at least 1"),
            (0 <= settings.seed < 2**32, "seed", settings.seed, "must be between 0 and 4294967295"),
        ]
    )


def _broken(rules: list[tuple[bool, str, Any, str]]) -> list[str]:
    return [f"{name}={'null' if value is None else value}: {rule}." for holds, name, value, rule in rules if not holds]
