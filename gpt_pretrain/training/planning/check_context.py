"""The facts about a run that the checks before it may use."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field

from gpt_pretrain.config.schema import TrainSettings
from gpt_pretrain.data.datamodule import TextDataModule
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.training.planning.plan import TrainingPlan
from gpt_pretrain.training.start.starting_point import StartingPoint


@dataclass(frozen=True)
class CheckContext:
    """All facts that a check may use.

    Args:
        overridden: The names of the settings that the user has typed.
    """

    settings: TrainSettings
    data: TextDataModule
    config: GPTConfig
    plan: TrainingPlan
    start: StartingPoint = field(default_factory=StartingPoint)
    overridden: Set[str] = frozenset()
