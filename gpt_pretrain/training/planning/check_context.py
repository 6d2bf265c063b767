"""The facts that the checks before a run may look at."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field

from gpt_pretrain.config.schema import TrainSettings
from gpt_pretrain.data.datamodule import TextDataModule
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.training.planning.plan import TrainingPlan
from gpt_pretrain.training.starting_point import StartingPoint


@dataclass(frozen=True)
class CheckContext:
    """Everything that a check may look at.

    Args:
        overridden: The names of the settings that the user has typed.
    """

    settings: TrainSettings
    data: TextDataModule
    config: GPTConfig
    plan: TrainingPlan
    start: StartingPoint = field(default_factory=StartingPoint)
    overridden: Set[str] = frozenset()
