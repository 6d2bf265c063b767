"""Build Lightning's strategy for several devices by its name in `trainer.strategy`."""

from __future__ import annotations

from typing import TypeVar

from lightning.pytorch.plugins.environments import ClusterEnvironment, LightningEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, Strategy

from gpt_pretrain.config.schema import TrainerSettings
from gpt_pretrain.training.distributed import ranks
from gpt_pretrain.training.distributed.fsdp import ShardedStrategy

Value = TypeVar("Value")


class ReplicatedStrategy(DDPStrategy):
    """DDP with ranks that exchange JSON. Lightning's own broadcast unpickles the received bytes."""

    def broadcast(self, obj: Value, src: int = 0) -> Value:
        assert src == 0
        value: Value = ranks.broadcast(obj)
        return value


def build_strategy(settings: TrainerSettings, *, own_model: bool = False) -> Strategy | str:
    """Return the strategy that the settings name, or "auto" if this process trains alone.

    Args:
        own_model: Whether the model is the user's own. It may leave some of its weights unused at times, and change its buffers.
    """
    if not ranks.is_distributed():
        return "auto"
    if settings.strategy == "fsdp":
        return ShardedStrategy(data_parallel_size=ranks.world_size(), tensor_parallel_size=1)
    return ReplicatedStrategy(broadcast_buffers=own_model, find_unused_parameters=own_model, gradient_as_bucket_view=True)


def cluster_environments() -> list[ClusterEnvironment]:
    """Return the plugin that tells Lightning the rank. With several ranks, it reads torchrun's environment variables.

    A process that trains alone gets a plugin that reads no variables of a cluster. Otherwise, in a SLURM job of several tasks,
    Lightning would refuse a script that srun has not started.
    """
    return [TorchElasticEnvironment() if ranks.is_distributed() else LightningEnvironment()]
