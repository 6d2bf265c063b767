"""How several devices share a training: Lightning's strategies, as this program sets them up."""

from __future__ import annotations

from lightning.pytorch.plugins.environments import ClusterEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, Strategy

from gpt_pretrain.config.schema import TrainerSettings
from gpt_pretrain.training.distributed import ranks
from gpt_pretrain.training.distributed.fsdp import ShardedStrategy


def build_strategy(settings: TrainerSettings) -> Strategy | str:
    """What `trainer.strategy` names; Lightning's own choice where this process trains alone."""
    if not ranks.is_distributed():
        return "auto"
    if settings.strategy == "fsdp":
        return ShardedStrategy(data_parallel_size=ranks.world_size(), tensor_parallel_size=1)
    return DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)


def environments() -> list[ClusterEnvironment]:
    """The plug-in that tells Lightning which rank this is, where there are several."""
    return [TorchElasticEnvironment()] if ranks.is_distributed() else []
