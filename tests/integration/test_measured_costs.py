"""Checkpoints are as large as the cost formulas say, and two ranks hold and send what they say."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from gpt_pretrain.model import cluster_costs, costs
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.costs import Parallelism
from tests.conftest import ROOT
from tests.helpers.fork_server import ForkServer

CONFIG = GPTConfig(vocab_size=257, context_length=64, emb_dim=128, n_heads=4, n_layers=4)
OVERRIDES = [
    *("model=tiny", "tokenizer=byte", "model.emb_dim=128", "model.n_layers=4", "model.n_heads=4", "model.context_length=64"),
    *("model.drop_rate=0", "data.stride=64", "data.batch_size=8", "trainer.accelerator=cpu", "trainer.max_steps=6"),
    *("eval_freq=1000", "eval_iter=1", "callbacks=minimal", "logger=none", "compile=false", "trainer.devices=2"),
]


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


def test_checkpoint_bytes_equal_the_size_of_a_checkpoint(train: object, tmp_path: Path) -> None:
    train("model.emb_dim=128", "trainer.max_epochs=1", "logger=none", "callbacks=minimal")  # type: ignore[operator]
    size = (tmp_path / "run" / "checkpoints" / "last.ckpt").stat().st_size
    config = GPTConfig(vocab_size=257, context_length=32, emb_dim=128, n_heads=2, n_layers=2)
    assert costs.checkpoint_bytes(config, precision="32-true") == pytest.approx(size, rel=0.02)


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
