"""The losses of the first steps of four tiny runs, which are kept in a file so that a change of the mathematics is seen at once.

`python -m tests.helpers.golden_losses` writes the file again, after a change that is meant to change them.
"""

from __future__ import annotations

import csv
import json
import tempfile
from pathlib import Path

from tests.conftest import ROOT
from tests.helpers.fork_server import ForkServer
from tests.helpers.made_shards import write_shards

FILE = ROOT / "tests" / "data" / "golden_losses.json"
STEPS = 20
COMMON = [
    *("model=tiny", "model.emb_dim=32", "model.n_layers=2", "model.n_heads=4", "model.context_length=32", "tokenizer=byte"),
    *("trainer.accelerator=cpu", "trainer.devices=1", "trainer.precision=32-true", "trainer.deterministic=true", "compile=false"),
    *(f"trainer.max_steps={STEPS}", "trainer.max_epochs=100", "trainer.log_every_n_steps=1", "seed=1"),
    *("eval_freq=1000", "eval_iter=1", "callbacks=minimal", "logger=csv"),
]
RUNS = {
    "plain": ["model.drop_rate=0", "optimizer.lr=1e-3", "data.batch_size=8"],
    "dropout, schedule, clipping and accumulation": [
        *("model.drop_rate=0.1", "optimizer.lr=3e-3", "data.batch_size=4", "trainer.accumulate_grad_batches=2"),
        *("scheduler=warmup_cosine", "scheduler.warmup_steps=5", "trainer.gradient_clip_val=0.5", "model.tie_embeddings=false"),
    ],
    "the modern model with Muon": [
        *("model=modern_tiny", "model.emb_dim=32", "model.n_layers=2", "model.n_heads=4", "model.n_kv_heads=2"),
        *("model.context_length=32", "model.drop_rate=0.2", "optimizer=muon_many_epochs", "data.batch_size=8"),
        "data.shift_windows=true",
    ],
    "documents kept apart": [
        *("data=shards", "data.path=corpus", "data.respect_documents=true", "data.batch_size=8", "model.qkv_bias=true"),
        *("model.drop_rate=0", "optimizer.lr=1e-3", "optimizer.decay=all", "optimizer.weight_decay=0.3", "model.init=pytorch"),
    ],
}


def measure(name: str, folder: Path, server: ForkServer, environment: dict[str, str]) -> list[float]:
    """Train one of the runs in a folder, and return the training loss of each step."""
    documents = [[(7 * number + 13 * position * position) % 256 for position in range(5 + number % 60)] for number in range(200)]
    write_shards(folder / "corpus", train=documents[20:], val=documents[:20])
    command = ["train.py", *COMMON, *RUNS[name], "hydra.run.dir=run", "data.cache_dir=cache"]
    done = server.run(command, cwd=folder, environment=environment | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    with open(folder / "run" / "metrics.csv", newline="", encoding="utf-8") as stream:
        return [float(row["train/loss"]) for row in csv.DictReader(stream) if row["train/loss"]]


def main() -> None:
    """Write the file again."""
    import os

    server, losses = ForkServer(), {}
    for name in RUNS:
        with tempfile.TemporaryDirectory() as folder:
            losses[name] = measure(name, Path(folder), server, dict(os.environ))
    server.close()
    FILE.write_text(json.dumps(losses, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
