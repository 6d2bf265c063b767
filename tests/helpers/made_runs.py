"""Make folders of runs and sweeps, for tests of the code that reads them."""

import json
import math
from pathlib import Path
from typing import Any

from gpt_pretrain.runs.metrics_file import COLUMNS
from gpt_pretrain.runs.samples import Sample

METADATA: dict[str, Any] = {
    "state": "finished",
    "error": None,
    "overrides": ["model=tiny", "optimizer.lr=1e-3"],
    "command": "python train.py model=tiny optimizer.lr=1e-3",
    "started": "2026-03-04T09:31:05+00:00",
    "ended": "2026-03-04T09:32:07+00:00",
    "seconds": 62.0,
    "program": {"version": "0.1.0", "git": "0123456789ab-dirty"},
    "versions": {"python": "3.11.7", "torch": "2.13.0"},
    "machine": {"system": "Linux x86_64", "cpu": "A Processor", "cores": 2, "device": "cpu", "memory_bytes": 8_000_000_000},
    "precision": "32-true",
    "compiled": False,
    "data": {"name": "sample", "path": None, "sha256": "ab" * 32, "characters": 20_479, "train_tokens": 4_600},
    "model": {"parameters": 7_210_112, "vocab_size": 50_257},
    "tokenizer": "gpt2",
    "findings": [{"sign": "overfitting", "step": 8, "text": "The validation loss rises."}],
    "result": {
        "best_val_loss": 4.5,
        "best_bits_per_byte": 1.625,
        "best_step": 7,
        "best_epoch": 2,
        "val_loss": 4.75,
        "train_loss": 2.25,
        "steps": 12,
        "epochs": 3.0,
        "tokens_seen": 1_200,
        "tokens_per_second": 345.6,
        "peak_memory_bytes": 1_500_000_000,
        "run_length": 9,
        "new_tokens": 50,
    },
}
CONFIG = """\
seed: 123
start_context: Every effort
run_dir: somewhere
model:
  n_layers: 4
  emb_dim: 128
data:
  path: null
  name: sample
  train_ratio: 0.9
tokenizer:
  name: gpt2
optimizer:
  lr: 0.001
  betas: [0.9, 0.99]
trainer:
  max_epochs: 3
  max_steps: -1
"""


SWEEP_SETTINGS = """\
hydra:
  sweeper:
    params: {optimizer.lr: "1e-3,1e-2"}
  overrides:
    hydra: [hydra.mode=MULTIRUN, hydra/launcher=joblib]
    task: [model=tiny, "seed=1,2"]
  job:
    name: train
  runtime:
    choices: {hydra/launcher: joblib, hydra/sweeper: grid}
"""


def make_metrics(steps: int = 12, *, val_every: int = 4, tokens: int = 100, level: float = 10.0) -> str:
    """Return a metrics.csv whose validation loss is lowest after two thirds of the steps."""
    lines = [",".join(COLUMNS)]
    for step in range(steps):
        row: dict[str, float] = {"step": step, "epoch": 1, "tokens_seen": (step + 1) * tokens, "lr": 1e-3}
        row |= {"train/loss": level / (step + 2), "grad_norm": 2 + math.sin(step), "tokens_per_second": 300 + step % 7}
        row |= {"eval/train_loss": level / (step + 2), "eval/val_loss": level / (step + 1)}
        if (step + 1) % val_every == 0:
            row |= {"val/loss": 4.5 + abs(step - (2 * steps // 3 - 1)) / steps, "val/bits_per_byte": 1.5}
        lines.append(",".join(str(row.get(column, "")) for column in COLUMNS))
    return "\n".join(lines) + "\n"


def make_run(folder: Path, *, text: str | None = None, config: str = CONFIG, rows: str | None = None, **fields: Any) -> Path:
    """Make a folder with all the files of a finished run.

    Args:
        text: The text of every sample.
        rows: The content of metrics.csv.
        fields: Replace fields of the run metadata.
    """
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"0" * 2_000)
    (folder / "run.json").write_text(json.dumps(METADATA | fields), encoding="utf-8")
    (folder / "config.yaml").write_text(config, encoding="utf-8")
    (folder / "metrics.csv").write_text(make_metrics() if rows is None else rows, encoding="utf-8")
    samples = [Sample(n, 4 * n - 1, 400 * n, text or f"Every effort {n}", new_tokens=50, run_length=9) for n in (1, 2, 3)]
    (folder / "samples.txt").write_text("".join(map(str, samples)), encoding="utf-8")
    return folder


def make_sweep_folder(folder: Path) -> Path:
    """Make a folder with the settings of a sweep in it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "multirun.yaml").write_text(SWEEP_SETTINGS, encoding="utf-8")
    return folder


def make_sweep(folder: Path, jobs: dict[str, dict[str, Any]]) -> Path:
    """Make the folder of a sweep.

    Args:
        jobs: The overrides of each job, separated by commas, and the fields of its run metadata.
    """
    make_sweep_folder(folder)
    for name, fields in jobs.items():
        make_run(folder / name, **({"overrides": ["model=tiny", *name.split(",")]} | fields))
    return folder
