"""The settings of train.py, and the groups that other scripts share with it, as typed dataclasses.

Default values and explanations are in conf/. Only settings that no file in conf/ contains have a comment here. Hydra merges conf/
into these types, and so refuses unknown keys and wrong types. `train_rules.py` has the rules that a type cannot express.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_type_hints

from omegaconf import MISSING

from gpt_pretrain.generation.config import SamplerConfig
from gpt_pretrain.model.config import ADDED_FIELDS, GPTConfig

USUAL_BATCH = 2  # windows


def _settings_class(name: str, config: type, *, doc: str, without: tuple[str, ...] = (), **defaults: object) -> type:
    """Return a mutable dataclass with the fields of a frozen one, for OmegaConf to fill in.

    Args:
        without: Fields to leave out.
        defaults: Values of fields that conf/ may omit; the other fields have none.
    """
    hints = get_type_hints(config)
    names = [one.name for one in dataclasses.fields(config) if one.name not in without]
    fields = [(one, hints[one], field(default=defaults.get(one, MISSING))) for one in names]
    return dataclasses.make_dataclass(name, fields, namespace={"__doc__": doc, "__module__": __name__})


if TYPE_CHECKING:

    class ModelSettings(GPTConfig):
        def __init__(self) -> None: ...

    class SamplerSettings(SamplerConfig):
        def __init__(self) -> None: ...

else:
    # The vocabulary size follows from the tokenizer. gelu_approximate is tanh (GPT-2) or none (the exact function).
    ModelSettings = _settings_class(
        "ModelSettings",
        GPTConfig,
        doc="`model`: the architecture.",
        without=("vocab_size",),
        gelu_approximate="tanh",
        **ADDED_FIELDS,
    )
    SamplerSettings = _settings_class(
        "SamplerSettings",
        SamplerConfig,
        doc="`sampler`: how each next token is chosen.",
        min_p=None,
        repetition_penalty=1.0,
        window_step=None,
    )


@dataclass
class SourceSettings:
    """One entry of `data.sources`."""

    path: str = MISSING  # token shards or text
    weight: float = MISSING  # relative to the weights of the other sources


@dataclass
class RemoteSettings:
    """`data.remote`: how token shards behind a URL are read."""

    cache_bytes: int = 50_000_000_000
    prefetch_batches: int = 16
    threads: int = 32
    retries: int = 6
    timeout: float = 30.0
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class DataSettings:
    """`data`: the text to train on, and how it becomes batches."""

    name: str = MISSING
    path: str | None = MISSING
    url: str | None = MISSING
    sha256: str | None = MISSING
    cache_dir: str | None = MISSING
    batch_size: int | None = MISSING
    train_ratio: float = MISSING
    stride: int | None = MISSING
    shift_windows: bool = False
    num_workers: int = MISSING
    text_field: str = "text"
    as_text: bool = False
    format: str = "auto"
    verify: bool = False
    respect_documents: bool = False
    val_tokens: int | None = None
    sources: list[SourceSettings] = field(default_factory=list)
    remote: RemoteSettings = field(default_factory=RemoteSettings)

    @property
    def batch_windows(self) -> int:
        """Windows per batch and device; the usual number if nobody has chosen one."""
        return USUAL_BATCH if self.batch_size is None else self.batch_size


@dataclass
class TokenizerSettings:
    """`tokenizer`: how text becomes token ids."""

    name: str = MISSING
    vocab_size: int | None = None


@dataclass
class RoleSettings:
    """`optimizer.matrices`, `.embedding`, `.head` or `.vectors`: the parameters of one role."""

    lr: float | None = None  # peak learning rate; null: optimizer.lr
    weight_decay: float | None = None  # null: optimizer.weight_decay, and 0 for vectors


@dataclass
class OptimizerSettings:
    """`optimizer`: AdamW, or Muon for the matrices in the blocks and AdamW for the rest."""

    name: str = MISSING
    lr: float = MISSING
    weight_decay: float = MISSING
    betas: list[float] = MISSING
    eps: float = MISSING
    decay: str = MISSING
    momentum: float = 0.95
    matrices: RoleSettings = field(default_factory=RoleSettings)
    embedding: RoleSettings = field(default_factory=RoleSettings)
    head: RoleSettings = field(default_factory=RoleSettings)
    vectors: RoleSettings = field(default_factory=RoleSettings)


@dataclass
class SchedulerSettings:
    """`scheduler`: how the learning rate changes during the run."""

    name: str = MISSING
    warmup_steps: int = MISSING
    decay_steps: int = MISSING
    decay_fraction: float | None = None
    min_lr: float = MISSING


@dataclass
class TrainerSettings:
    """`trainer`: Lightning's Trainer, with its argument names."""

    max_epochs: int = MISSING
    max_steps: int = MISSING
    max_tokens: int | None = None
    max_time: str | None = MISSING
    precision: str = MISSING
    accelerator: str = MISSING
    strategy: str = MISSING
    devices: int | str = MISSING
    num_nodes: int = MISSING
    activation_checkpointing: bool = MISSING
    accumulate_grad_batches: int = MISSING
    gradient_clip_val: float | None = MISSING
    log_every_n_steps: int = MISSING
    limit_train_batches: int | None = MISSING
    limit_val_batches: int | None = MISSING
    deterministic: bool = MISSING
    detect_anomaly: bool = MISSING
    profiler: str | None = MISSING


@dataclass
class EarlyStoppingSettings:
    """`callbacks.early_stopping`: end the run when the validation loss stops falling."""

    patience: int = MISSING
    min_delta: float = MISSING


@dataclass
class GridSettings:
    """`callbacks.grid`: samples for each combination of sampler settings after each epoch."""

    prompts: list[str] = field(default_factory=list)
    temperatures: list[float] = MISSING
    top_ks: list[int | None] = MISSING


@dataclass
class DoctorSettings:
    """`callbacks.doctor`: the thresholds of the health monitor."""

    window: int = MISSING
    patience: int = MISSING
    first_loss: float = MISSING
    overfitting: float = MISSING
    gap: float = MISSING
    stuck: float = MISSING
    spike: float = MISSING
    clipping: float = MISSING
    loading: float = MISSING


@dataclass
class CallbacksSettings:
    """`callbacks`: what happens during a run besides the training itself."""

    progress_bar: bool = MISSING
    samples: bool = MISSING
    grid: GridSettings | None = None
    loss_curve: bool = MISSING
    early_stopping: EarlyStoppingSettings | None = None
    doctor: DoctorSettings | None = None
    custom: dict[str, Any] = field(default_factory=dict)  # your own callbacks: NAME: {_target_: class, arguments}


@dataclass
class WandbSettings:
    """`logger.wandb`: Weights & Biases."""

    project: str = MISSING
    name: str | None = None  # of the run; null: the name of its folder
    offline: bool = False  # write to the run folder only


@dataclass
class MlflowSettings:
    """`logger.mlflow`: MLflow."""

    experiment_name: str = MISSING
    tracking_uri: str | None = None  # URI of the tracking server; null: MLFLOW_TRACKING_URI, or mlflow.db in the run folder


@dataclass
class LoggerSettings:
    """`logger`: where the metrics are written."""

    csv: bool = False
    tensorboard: bool = False
    wandb: WandbSettings | None = None
    mlflow: MlflowSettings | None = None


@dataclass
class CheckpointSettings:
    """`checkpoint`: when the run is saved, in addition to the end of each epoch."""

    every_n_steps: int | None = MISSING
    every_n_minutes: float | None = MISSING
    keep: int = MISSING


@dataclass
class HeldOutSettings:
    """`evaluation`: texts and tasks that the run is evaluated on while it trains."""

    texts: list[str] = field(default_factory=list)
    tasks: str | None = None
    every_n_steps: int | None = None
    max_bytes: int | None = None
    task_limit: int | None = None


@dataclass
class CheckSettings:
    """`doubts`: the limits beyond which a check before training prints a warning."""

    min_tokens_per_parameter: float = MISSING
    min_val_windows: int = MISSING
    max_ddp_memory: float = MISSING


@dataclass
class TrainSettings:
    """All settings of train.py."""

    seed: int = MISSING
    eval_freq: int = MISSING
    eval_iter: int = MISSING
    start_context: str = MISSING
    resume: str | None = MISSING
    init_from: str | None = MISSING
    resume_force: bool = MISSING
    on_nonfinite: str = MISSING
    rollback_lr_factor: float = MISSING
    max_rollbacks: int = MISSING
    export: bool = MISSING
    compile: bool | str = MISSING
    ema_decay: float | None = None
    weights: str = "trained"
    budget: str | None = None
    plan: bool = MISSING
    run_dir: str = MISSING
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    scheduler: SchedulerSettings = field(default_factory=SchedulerSettings)
    sampler: SamplerSettings = field(default_factory=SamplerSettings)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    evaluation: HeldOutSettings = field(default_factory=HeldOutSettings)
    callbacks: CallbacksSettings = field(default_factory=CallbacksSettings)
    logger: LoggerSettings = field(default_factory=LoggerSettings)
    doubts: CheckSettings = field(default_factory=CheckSettings)
    custom: dict[str, Any] = field(default_factory=dict)  # the groups that have a _target_: {optimizer: {_target_: class, ...}}
