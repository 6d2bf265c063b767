"""The cost formulas for several devices, and worked examples."""

import pytest
import torch

from benchmarks.scale import tables
from gpt_pretrain.model import cluster_costs, costs
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.costs import Parallelism
from gpt_pretrain.model.gpt2 import GPTModel
from tests.conftest import ROOT

CONFIG = GPTConfig(vocab_size=257, context_length=64, emb_dim=128, n_heads=4, n_layers=4)
GPT2 = GPTConfig(vocab_size=50257, context_length=1024, emb_dim=768, n_heads=12, n_layers=12, qkv_bias=True)


@pytest.mark.parametrize("config", [CONFIG, GPT2])
def test_block_and_root_tensors_are_the_whole_model(config: GPTConfig) -> None:
    with torch.device("meta"):
        model = GPTModel(config)
    shapes = [tuple(parameter.shape) for parameter in model.trf_blocks[0].parameters()]
    assert sorted(shapes) == sorted(shape if shape[1] > 1 else shape[:1] for shape in costs.block_tensor_shapes(config))
    blocks, root = (
        costs.padded_numel(costs.block_tensor_shapes(config), 1),
        costs.padded_numel(costs.root_tensor_shapes(config), 1),
    )
    assert config.n_layers * blocks + root == costs.num_parameters(config) == model.num_parameters()


def test_fsdp_holds_a_shard_and_sends_half_as_much_again_as_ddp() -> None:
    def memory(devices: int, fsdp: bool) -> costs.TrainingMemory:
        parallelism = Parallelism(devices=devices, fsdp=fsdp)
        return costs.training_memory(GPT2, batch_size=1, precision="bf16-mixed", device="cuda", parallelism=parallelism)

    assert memory(8, True).weights == pytest.approx(memory(8, False).weights / 8, rel=1e-4)
    assert memory(512, False).weights == memory(1, False).weights
    ddp = cluster_costs.step_traffic(GPT2, precision="bf16-mixed", parallelism=Parallelism(devices=8))
    assert ddp.total == 7 * 2 * 4 * 124_439_808 // 8
    fsdp = cluster_costs.step_traffic(GPT2, precision="bf16-mixed", parallelism=Parallelism(devices=8, fsdp=True))
    embeddings = 4 * (50257 + 1024 + 2) * 768 * 7 / 8  # gathered only once per step
    assert fsdp.total == pytest.approx(1.5 * ddp.total - embeddings, rel=1e-4)
    assert cluster_costs.step_traffic(GPT2, precision="bf16-true", parallelism=Parallelism(devices=8)).total == ddp.total // 2
    assert cluster_costs.step_traffic(GPT2, precision="32-true", parallelism=Parallelism()).total == 0


def test_the_adapters_of_a_machine_carry_a_ring_together() -> None:
    cluster = cluster_costs.Cluster(flops_per_second=1, mfu=1, memory=1, link=450, network=50, gpus_per_machine=8)
    assert [cluster.ring_bandwidth(devices) for devices in (8, 16, 512)] == [450, 400, 400]


def test_indivisible_rows_are_padded() -> None:
    assert costs.padded_numel([(768, 768)], 8) == 768 * 768
    assert costs.padded_numel([(768, 768)], 512) == 1024 * 768  # 384 devices hold two rows each, the others none.


def test_recomputation_adds_a_third_to_the_blocks_and_nothing_to_the_head() -> None:
    head = 2 * 50257 * 768
    blocks = costs.forward_flops_per_token(GPT2) - head
    assert costs.training_flops_per_token(GPT2, activation_checkpointing=True) == 4 * blocks + 3 * head


def test_the_best_save_interval_minimizes_the_cost_of_saves_and_failures() -> None:
    best = cluster_costs.best_save_interval(512, save_seconds=30)
    failure = cluster_costs.seconds_to_failure(512)
    assert failure / 86_400 == pytest.approx(4.1, rel=0.01)

    def cost(interval: float) -> float:
        return 30 / interval + interval / (2 * failure)

    assert cluster_costs.lost_time_fraction(512, save_seconds=30) == pytest.approx(cost(best))
    assert cost(best) < min(cost(0.9 * best), cost(1.1 * best))


def test_the_scale_page_has_the_tables_of_the_formulas() -> None:
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    assert tables() in page, "run python -m benchmarks.scale --update-docs"
