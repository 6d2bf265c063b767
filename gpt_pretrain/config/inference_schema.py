"""The settings of generate.py, evaluate.py and serve.py, which use trained weights, as typed dataclasses.

As in `schema.py`, default values and explanations are in conf/. `inference_rules.py` has the rules that a type cannot express.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from gpt_pretrain.config.schema import DataSettings, SamplerSettings


@dataclass
class GenerateSettings:
    """All settings of generate.py."""

    model: dict[str, Any] = field(default_factory=dict)  # your own class, if the weights belong to one: {_target_: class, ...}
    checkpoint: str = MISSING
    weights: str = "trained"
    pretrained: str | None = MISSING
    n_heads: int | None = MISSING
    tokenizer: str | None = MISSING
    prompt: str = MISSING
    prompt_file: str | None = MISSING
    prompts: str | None = None
    out: str | None = None
    stop: list[str] = field(default_factory=list)
    logprobs: int | None = None
    interactive: bool = MISSING
    n_samples: int = MISSING
    seed: int = MISSING
    device: str = MISSING
    precision: str = MISSING
    sampler: SamplerSettings = field(default_factory=SamplerSettings)


@dataclass
class TaskSettings:
    """`tasks`: questions with known answers."""

    path: str | None = MISSING
    names: list[str] = MISSING
    n_shots: int | None = MISSING
    limit: int | None = MISSING


@dataclass
class EvaluateSettings:
    """All settings of evaluate.py."""

    model: dict[str, Any] = field(default_factory=dict)  # your own class, if the weights belong to one: {_target_: class, ...}
    checkpoint: str = MISSING
    pretrained: str | None = MISSING
    models: list[str] = MISSING
    weights: str = "trained"
    n_heads: int | None = MISSING
    tokenizer: str | None = MISSING
    stride: int | None = MISSING
    max_bytes: int | None = MISSING
    batch_tokens: int | None = MISSING
    device: str = MISSING
    precision: str = MISSING
    run_dir: str = MISSING
    data: DataSettings = field(default_factory=DataSettings)
    tasks: TaskSettings = field(default_factory=TaskSettings)


@dataclass
class ServeSettings:
    """All settings of serve.py."""

    model: dict[str, Any] = field(default_factory=dict)  # your own class, if the weights belong to one: {_target_: class, ...}
    checkpoint: str = MISSING
    pretrained: str | None = MISSING
    models: list[str] = MISSING
    timeline: int = MISSING
    weights: str = "trained"
    n_heads: int | None = MISSING
    tokenizer: str | None = MISSING
    host: str = MISSING
    port: int = MISSING
    api_key: str | None = MISSING
    cors: list[str] = MISSING
    max_rows: int = MISSING
    max_queue: int = MISSING
    max_seconds: float = MISSING
    device: str = MISSING
    precision: str = MISSING


InferenceSettings = GenerateSettings | EvaluateSettings | ServeSettings


def weight_names(settings: InferenceSettings) -> list[str]:
    """Return the names in `models`, or else in `pretrained`; empty if `checkpoint` names the weights."""
    models = [] if isinstance(settings, GenerateSettings) else settings.models
    return models or ([] if settings.pretrained is None else [settings.pretrained])
