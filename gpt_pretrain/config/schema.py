"""The settings that a command line may change: their names, types and units.

The values stand in `conf/`. Hydra merges them into these types, which refuses unknown keys and wrong types by itself; the
rules that a type cannot tell are in `rules.py`.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any, Optional, TypeVar, Union, get_args, get_type_hints

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gpt_pretrain.errors import UserError

# OmegaConf reads these annotations at run time: it knows Optional and Union, not every newer spelling.
# ruff: noqa: UP007, UP045

Settings = TypeVar("Settings")


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
    gelu_approximate: str = "tanh"  # tanh, none


@dataclass
class SourceSettings:
    """One of `data.sources`."""

    path: str = MISSING  # token shards, or a text
    weight: float = MISSING  # its share, beside those of the others


@dataclass
class RemoteSettings:
    """`data.remote`: how shards behind a URL are read."""

    cache_bytes: int = 50_000_000_000  # of all that is kept of such shards in data.cache_dir
    prefetch_batches: int = 16  # batches that are fetched before they are needed
    threads: int = 32  # pieces that are fetched at once
    retries: int = 6  # after the first try, each with twice the pause of the one before
    timeout: float = 30.0  # seconds that one answer may take
    options: dict[str, Any] = field(default_factory=dict)  # of the file system in fsspec, such as anon


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
    format: str = "auto"  # of shards: auto, gpt_pretrain, nanogpt, llmc
    verify: bool = False  # compare the checksums of all shards at the start
    respect_documents: bool = False  # attention and loss do not cross from one document to the next
    val_tokens: Optional[int] = None  # to validate on, spread evenly over the validation part; null: all
    sources: list[SourceSettings] = field(default_factory=list)  # of a mixture
    remote: RemoteSettings = field(default_factory=RemoteSettings)


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
    max_tokens: Optional[int] = None  # to train on, in whole optimizer steps; decides instead of max_epochs
    max_time: Optional[str] = MISSING  # DD:HH:MM:SS
    precision: str = MISSING
    accelerator: str = MISSING
    strategy: str = MISSING  # auto, ddp, fsdp: how several devices share the work
    devices: Union[int, str] = MISSING  # of each machine; auto: all GPUs
    num_nodes: int = MISSING  # machines
    activation_checkpointing: bool = MISSING  # compute them again for the backward pass instead of keeping them
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
class GridSettings:
    """`callbacks.grid`: ways of decoding to be tried after each epoch, each with each."""

    prompts: list[str] = field(default_factory=list)  # none: start_context
    temperatures: list[float] = MISSING
    top_ks: list[Optional[int]] = MISSING  # null: all tokens


@dataclass
class DoctorSettings:
    """`callbacks.doctor`: from where on something is a warning sign."""

    window: int = MISSING  # optimizer steps over which loss, gradients and loading are judged
    patience: int = MISSING  # loss lines in a row over which training and validation loss are compared
    first_loss: float = MISSING  # nats between the loss before training and ln(vocab_size)
    overfitting: float = MISSING  # nats that the validation loss has risen by, and the training loss fallen
    gap: float = MISSING  # validation loss as a multiple of the training loss
    stuck: float = MISSING  # share that a loss has to fall by within a window, while it is high
    spike: float = MISSING  # nats that the training loss rises above the highest of the window before
    clipping: float = MISSING  # share of steps whose gradients are clipped
    loading: float = MISSING  # share of the time that is spent waiting for batches


@dataclass
class CallbacksSettings:
    """`callbacks`: what happens beside the training itself."""

    progress_bar: bool = MISSING
    samples: bool = MISSING
    grid: Optional[GridSettings] = None
    loss_curve: bool = MISSING
    early_stopping: Optional[EarlyStoppingSettings] = None
    doctor: Optional[DoctorSettings] = None
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
    every_n_minutes: Optional[float] = MISSING
    keep: int = MISSING  # how many to keep beside last and best


@dataclass
class CheckSettings:
    """`doubts`: what a plan must reach for nothing to be said about it."""

    min_tokens_per_parameter: float = MISSING  # of the training text
    min_val_windows: int = MISSING
    max_ddp_memory: float = MISSING  # share of a device's memory up to which FSDP is not worth what it sends


@dataclass
class TrainSettings:
    """All of `train.py`'s settings."""

    seed: int = MISSING
    eval_freq: int = MISSING  # optimizer steps
    eval_iter: int = MISSING  # batches
    start_context: str = MISSING
    resume: Optional[str] = MISSING  # run directory or "latest"
    init_from: Optional[str] = MISSING  # whatever pretrained.load_pretrained takes
    resume_force: bool = MISSING  # go on although a setting has changed that gives the checkpoint its meaning
    on_nonfinite: str = MISSING  # stop, skip, rollback: what to do when a loss or gradient is NaN or infinite
    rollback_lr_factor: float = MISSING
    max_rollbacks: int = MISSING
    export: bool = MISSING  # write the run's last weights as a Hugging Face folder at its end
    compile: Union[bool, str] = MISSING  # true, false, auto
    plan: bool = MISSING  # say what the run will cost, and end
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
    doubts: CheckSettings = field(default_factory=CheckSettings)


@dataclass
class GenerateSettings:
    """All of `generate.py`'s settings."""

    checkpoint: str = MISSING  # checkpoint file, run directory or "latest"
    pretrained: Optional[str] = MISSING  # whatever pretrained.load_pretrained takes; instead of checkpoint
    n_heads: Optional[int] = MISSING  # for pretrained weights that do not tell
    tokenizer: Optional[str] = MISSING  # likewise
    prompt: str = MISSING  # "-": standard input
    prompt_file: Optional[str] = MISSING
    interactive: bool = MISSING
    n_samples: int = MISSING
    seed: int = MISSING
    device: str = MISSING  # auto, cpu, cuda, mps
    precision: str = MISSING  # auto, 32-true, bf16-mixed: of matrix products
    sampler: SamplerSettings = field(default_factory=SamplerSettings)


@dataclass
class ExportSettings:
    """All of `gpt-pretrain export`'s settings."""

    out: str = MISSING  # folder
    checkpoint: str = "latest"  # whatever pretrained.load_pretrained takes
    n_heads: Optional[int] = None
    tokenizer: Optional[str] = None


@dataclass
class PrepareSettings:
    """All of `gpt-pretrain prepare`'s settings."""

    out: str = MISSING  # folder
    inputs: list[str] = field(default_factory=list)  # files, directories and globs
    dataset: Optional[str] = None  # a name or path that the package datasets takes; instead of inputs
    dataset_config: Optional[str] = None
    dataset_split: str = "train"
    text_field: str = "text"  # of JSON's objects, and of tables
    document_separator: Optional[str] = None  # in text files; null: each file is one document
    tokenizer: str = "gpt2"
    shard_tokens: int = 100_000_000  # tokens a shard at most
    val_fraction: float = 0.01  # share of the documents
    val_tokens: Optional[int] = None  # tokens at least; instead of val_fraction
    dedup: str = "none"  # none, exact
    max_rejected: float = 0.001  # share of the records
    workers: Optional[int] = None  # processes; null: one for each core; of each task, where a cluster does the work
    executor: Optional[str] = None  # local, slurm, ray: datatrove's; null: this process and its workers
    tasks: Optional[int] = None  # groups of files that an executor is given; null: a file each
    slurm_partition: Optional[str] = None
    slurm_time: str = "20:00:00"  # HH:MM:SS that a task may take
    report: bool = False
    overwrite: bool = False


@dataclass
class ReportSettings:
    """All of `gpt-pretrain report`'s settings."""

    folders: list[str] = field(default_factory=lambda: ["latest"])  # of runs or sweeps


@dataclass
class CompareSettings:
    """All of `gpt-pretrain compare`'s settings."""

    runs: list[str] = field(default_factory=list)  # run directories, checkpoints in one, or "latest"
    out: str = "compare.png"  # its name tells the format: png, pdf, svg


def to_settings(config: DictConfig, kind: type[Settings]) -> Settings:
    """The composed config as plain typed objects.

    Raises:
        UserError: when a key is unknown (Hydra lets `+key=value` pass), or a value is missing or cannot be resolved.
    """
    unknown = _unknown_keys(OmegaConf.to_container(config), kind)
    if unknown:
        raise UserError(f"{key}: there is no such setting. `--cfg job` shows all." for key in unknown)
    try:
        settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), config))
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key or 'config'}: {error.msg or error}") from error
    assert isinstance(settings, kind)
    return settings


def escape_interpolation(value: Any) -> Any:
    """Plain containers whose texts OmegaConf will take as they are: nothing in them is interpolated."""
    if isinstance(value, dict):
        return {name: escape_interpolation(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [escape_interpolation(inner) for inner in value]
    return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + "\\${", value) if isinstance(value, str) else value


def full_setting_names(key: str, kind: type) -> list[str]:
    """The settings within groups that have this last name, where it is not itself a setting, such as `trainer.max_steps`."""
    if "." in key or "/" in key or key in get_type_hints(kind):
        return []
    groups = {name: hint for name, hint in get_type_hints(kind).items() if dataclasses.is_dataclass(hint)}
    return [f"{name}.{key}" for name, hint in groups.items() if key in get_type_hints(hint)]


def _unknown_keys(node: object, kind: type, prefix: str = "") -> list[str]:
    """The keys of nested containers that a dataclass and those within it do not have."""
    if not isinstance(node, dict):
        return []
    hints, unknown = get_type_hints(kind), []
    for key, value in node.items():
        if key not in hints:
            unknown.append(f"{prefix}{key}")
            continue
        for inner in (hints[key], *get_args(hints[key])):  # the type itself, or that within Optional
            if dataclasses.is_dataclass(inner) and isinstance(inner, type):
                unknown += _unknown_keys(value, inner, f"{prefix}{key}.")
    return unknown
