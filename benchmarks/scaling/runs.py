"""Check the law on whole runs of `budget=`, on texts and orders of files that it was not fitted to.

python -m benchmarks.scaling.runs [--budget TIME] FILE ... trains on each file, and adds a line to `runs.jsonl`: the facts of the
text, the run's numbers, and the loss on its validation set. `benchmarks.scaling.fit` predicts these losses with each new law.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT, run
from gpt_pretrain import load_settings
from gpt_pretrain.config.overrides import quote_value
from gpt_pretrain.training.budget.law import Difficulty, Training
from gpt_pretrain.training.budget.text_facts import describe_text

RUNS = Path(__file__).with_name("runs.jsonl")
SHAPE = re.compile(r"(\d+) layers, \d+ heads, emb_dim (\d+), context \d+, vocabulary ([\d,]+)")
READ = re.compile(r"([\d,]+) training tokens")
SEEN = re.compile(r"([\d,]+) tokens seen")
REACHED = re.compile(r"([\d.]+) bits per byte\), in epoch")


def main() -> None:
    """Train on each file, and append the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling.runs", description=__doc__)
    parser.add_argument("files", metavar="FILE", nargs="+", type=Path, help="a text of about 1 MB")
    parser.add_argument("--budget", default="2m", metavar="TIME", help="the budget of each run (default: 2m)")
    arguments = parser.parse_args()
    for file in arguments.files:
        with tempfile.TemporaryDirectory() as folder:
            run_dir, data = Path(folder, "run"), _data_settings(file, Path(folder))
            run([sys.executable, str(ROOT / "train.py"), *data, f"budget={arguments.budget}", f"hydra.run.dir={run_dir}"])
            row = describe_run(file, run_dir, budget=arguments.budget)
        with RUNS.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


def describe_run(file: Path, run_dir: Path, *, budget: str) -> dict[str, Any]:
    """Return the facts of a text, and the numbers and the loss of a run on it, which are read from its log."""
    with tempfile.TemporaryDirectory() as cache:
        text = describe_text(load_settings(*_data_settings(file, Path(cache))).data, [])
    log = (run_dir / "train.log").read_text(encoding="utf-8")
    layers, width, vocab_size = (_number(one) for one in SHAPE.findall(log)[0])
    bytes_per_token = text.train_bytes / _number(READ.findall(log)[0])
    read = _number(SEEN.findall(log)[-1]) * bytes_per_token
    training = Training(12 * layers * width**2, vocab_size, text.train_bytes, read, bytes_per_token)
    facts = asdict(text.difficulty)
    for one in (facts["pilot"], found := asdict(training)):
        del one["distinct_tokens"]  # infinite: a vocabulary of the text has no others
    reached = float(REACHED.findall(log)[-1])
    return {"text": file.stem, "budget": budget, "training": found, "difficulty": facts, "bits_per_byte": reached}


def read_runs() -> list[tuple[str, Training, Difficulty, float]]:
    """Return the name, the training, the difficulty and the reached bits per byte of each run."""
    rows = [json.loads(line) for line in RUNS.read_text(encoding="utf-8").splitlines()]
    return [(row["text"], Training(**row["training"]), _difficulty(row["difficulty"]), row["bits_per_byte"]) for row in rows]


def _data_settings(file: Path, cache: Path) -> list[str]:
    return [f"data.path={quote_value(str(file.resolve()))}", f"data.cache_dir={quote_value(str(cache / 'cache'))}"]


def _difficulty(facts: dict[str, Any]) -> Difficulty:
    ngrams = {int(size): bits for size, bits in facts["ngrams"].items()}
    return Difficulty(Training(**facts["pilot"]), facts["bits"], ngrams, facts["frequencies"])


def _number(text: str) -> int:
    return int(text.replace(",", ""))


if __name__ == "__main__":
    main()
