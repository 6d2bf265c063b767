"""The cost formulas for several devices equal what two ranks measure, and worked examples."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.scale import tables
from gpt_pretrain.model import cluster_costs, costs
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.costs import Parallelism
from gpt_pretrain.model.gpt2 import GPTModel
from tests.conftest import ROOT
from tests.helpers.fork_server import ForkServer

CONFIG = GPTConfig(vocab_size=257, context_length=64, emb_dim=128, n_heads=4, n_layers=4)
OVERRIDES = [
    *("model=tiny", "tokenizer=byte", "model.emb_dim=128", "model.n_layers=4", "model.n_heads=4", "model.context_length=64"),
    *("model.drop_rate=0", "data.stride=64", "data.batch_size=8", "trainer.accelerator=cpu", "trainer.max_steps=6"),
    *("eval_freq=1000", "eval_iter=1", "callbacks=minimal", "logger=none", "compile=false", "trainer.devices=2"),
]
GPT2 = GPTConfig(vocab_size=50257, context_length=1024, emb_dim=768, n_heads=12, n_layers=12, qkv_bias=True)


def measured(fork_server: ForkServer, folder: Path, *overrides: str) -> list[dict[str, Any]]:
    """Run two ranks and return what each rank held and sent for each batch."""
    callback = f"+callbacks.custom.measured={{_target_: tests.helpers.measured_ranks.Measured, out: '{folder / 'found'}'}}"
    command = [str(ROOT / "train.py"), *OVERRIDES, f"hydra.run.dir={folder / 'run'}", callback, *overrides]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    done = fork_server.run(command, cwd=folder, environment=environment, ranks=2)
    assert done.returncode == 0, done.stderr
    ranks = [json.loads((folder / "found" / f"rank-{rank}.json").read_text()) for rank in range(2)]
    return [row for rows in ranks for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "recompute", "precision", "accumulate", "tolerance"),
    [
        ("ddp", False, "32-true", 2, 0.01),
        ("ddp", True, "bf16-mixed", 1, 0.03),
        ("fsdp", True, "32-true", 1, 0.02),
        ("fsdp", False, "bf16-mixed", 2, 0.08),
    ],
)
def test_two_ranks_hold_and_send_what_the_formulas_say(
    fork_server: ForkServer, tmp_path: Path, strategy: str, recompute: bool, precision: str, accumulate: int, tolerance: float
) -> None:
    fsdp = strategy == "fsdp"
    rows = measured(
        fork_server,
        tmp_path,
        f"trainer={strategy}",
        f"trainer.activation_checkpointing={recompute}",
        f"trainer.precision={precision}",
        f"trainer.accumulate_grad_batches={accumulate}",
    )
    parallelism = Parallelism(devices=2, fsdp=fsdp, activation_checkpointing=recompute, accumulate_grad_batches=accumulate)
    memory = costs.training_memory(CONFIG, batch_size=8, precision=precision, device="cpu", parallelism=parallelism)
    assert max(row["weights"] for row in rows) == memory.weights
    assert max(row["moments"] for row in rows) == memory.moments
    held_before = memory.weights + memory.moments + memory.gradients * memory.gradients_persist
    # A disturbance can hide freed memory from the measurement, so the smallest peak is the undisturbed one.
    peak = min(row["peak"] for row in rows)
    assert memory.peak == pytest.approx(held_before + peak, rel=tolerance)

    traffic = cluster_costs.step_traffic(CONFIG, precision=precision, parallelism=parallelism)
    # DDP sends nothing for batches whose gradients it only accumulates.
    busy = [row["sent"] for row in rows if row["sent"] > 10_000]
    if fsdp:
        # The bytes of both ranks for one batch. An evaluation leaves the root gathered, so other batches gather less.
        gathered = max(row["_allgather_base_"] for row in rows)
        scattered = rows[0]["_reduce_scatter_base_"]
        assert (traffic.weights, traffic.gradients) == (gathered * accumulate / 2, scattered * accumulate / 2)
        assert len(busy) == len(rows)
        assert max(busy) == pytest.approx((gathered + 2 * scattered) / 2, rel=0.005)  # Gloo scatters by an all-reduce.
    else:
        assert traffic.weights == 0
        assert len(busy) == len(rows) / (1 if accumulate == 1 else 3)  # One of three batches ends a step.
        assert min(busy) == pytest.approx(traffic.gradients, rel=0.005)
        assert max(row["allreduce_"] for row in rows) == pytest.approx(traffic.gradients, abs=100)  # plus a loss and a count


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
