"""Measure commands, each in its own process with one thread."""

from __future__ import annotations

import csv
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.growth.steps import Costs
from benchmarks.measure import ROOT, peak_bytes, run
from gpt_pretrain.data.token_stream import SAMPLE_LENGTH, SAMPLE_POSITIONS

DOCUMENT = "The sea was grey, and number {} came home in the rain.\n<|endoftext|>"
STEPS_PER_EVALUATION = 100
# A file of only zeros would look like a file with wider token ids, so the sampled positions have other values.
SAMPLE = np.arange(1, 1 + SAMPLE_LENGTH, dtype="<u2").tobytes()


def by_corpus(size: int) -> Costs:
    """Measure a run on this many tokens. Only a few of them take space on the disk."""
    with tempfile.TemporaryDirectory() as folder:
        for name, tokens in (("train.bin", size), ("val.bin", 10_000)):
            with open(Path(folder, name), "wb") as stream:
                for start in np.linspace(0, tokens - SAMPLE_LENGTH, SAMPLE_POSITIONS).astype(int).tolist():
                    stream.seek(2 * start)
                    stream.write(SAMPLE)
                stream.truncate(2 * tokens)
        return _train(folder, "data=shards", f"data.path={folder}", "trainer.max_steps=20")


def by_documents(size: int) -> Costs:
    """Measure the preparation of this many short documents, and a run that keeps them apart."""
    with tempfile.TemporaryDirectory() as folder:
        source, corpus = Path(folder, "documents.txt"), Path(folder, "corpus")
        with open(source, "w", encoding="utf-8") as stream:
            stream.writelines(DOCUMENT.format(number) for number in range(size))
        before = _child_seconds()
        run([sys.executable, "-m", "gpt_pretrain", "prepare", str(source), f"out={corpus}", "workers=1"])
        preparing = _child_seconds() - before
        settings = ["data=shards", f"data.path={corpus}", "data.respect_documents=true", "trainer.max_steps=20"]
        return {"prepare, s": preparing} | _train(folder, *settings)


def by_checkpoints(size: int) -> Costs:
    """Measure the resumption of a run with this many checkpoints. All of them are links to one checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        _train(folder, "trainer.max_steps=2", "checkpoint.keep=1")
        checkpoints = Path(folder, "run", "checkpoints")
        last = checkpoints / "last.ckpt"
        for number in range(size - len([*checkpoints.iterdir()])):
            os.link(last, checkpoints / f"step-{number + 10:08d}.ckpt")
        return _train(folder, f"resume={folder}/run", "trainer.max_steps=4", f"checkpoint.keep={size}")


def by_rows(size: int) -> Costs:
    """Measure report.html, and the reading and rewriting in a resumed run, with this many rows in metrics.csv."""
    from gpt_pretrain.runs.metrics_file import COLUMNS, MetricsFile
    from gpt_pretrain.runs.report.run_page import render_run_page
    from gpt_pretrain.runs.tensorboard import EventFiles

    with tempfile.TemporaryDirectory() as folder:
        metrics = Path(folder, "metrics.csv")
        with open(metrics, "w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, COLUMNS)
            writer.writeheader()
            writer.writerows(_row(step) for step in range(size))
        start = time.process_time()
        page = render_run_page(Path(folder))
        reporting = time.process_time() - start
        start = time.process_time()
        events = EventFiles(Path(folder), first_step=size, history=MetricsFile(metrics, first_step=size).history)
        events.log_metrics({"train/loss": 3.0, "tokens_seen": 512.0 * (size + 1)}, size)
        events.finalize("success")
        resuming = time.process_time() - start
        return {"report.html, s": reporting, "resume, s": resuming, "memory, MB": peak_bytes() / 1e6, "page, kB": len(page) / 1e3}


def _row(step: int) -> dict[str, float]:
    noise = (step * 7919 % 1000) / 1000
    row = {"step": step, "epoch": 1, "tokens_seen": 512 * (step + 1), "train/loss": 3 + noise + 7 / (1 + step / 1000)}
    row |= {"lr": 4e-4, "grad_norm": 1 + noise, "tokens_per_second": 400 + noise}
    return row | ({"val/loss": 3.1 + 7 / (1 + step / 1000), "val/perplexity": 22.2} if step % STEPS_PER_EVALUATION == 0 else {})


def _train(folder: str, *overrides: str) -> Costs:
    """Run train.py on a tiny model and return its costs."""
    costs, run_dir = Path(folder, "costs.json"), Path(folder, "run")
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    model = ["model=tiny", "tokenizer=gpt2", "trainer.accelerator=cpu", "trainer.precision=32-true", "callbacks=minimal"]
    clock = f"+callbacks.custom.clock={{_target_: benchmarks.clock.ProcessCosts, file: {costs}}}"
    settings = [] if any(override.startswith("resume=") for override in overrides) else [*model, f"hydra.run.dir={run_dir}"]
    run([sys.executable, str(ROOT / "train.py"), clock, *settings, *overrides])
    found: Costs = json.loads(costs.read_text(encoding="utf-8"))
    return found


def _child_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
