"""Compare how fast a model learns with nanoGPT's smallest example: the time and the tokens to a given loss.

python -m benchmarks learn [TEXT] trains both on the characters of one text. They take turns, each in a process of its own:

- nanoGPT's model and recipe (`nanogpt_recipe.py`): 2,000 steps of 768 tokens.
- `python train.py experiment=modern` with the same number of layers, the same width and as many tokens per step. One run takes a
  fifth of nanoGPT's time, and another one all of it. A run of a few hundred steps has twice the learning rate.

A schedule has to know its length in advance. A few steps are therefore timed first, in processor time, and the number of steps
follows from them.
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from urllib.parse import quote

import torch
from torch import Tensor

from benchmarks.measure import ROOT, run
from benchmarks.nanogpt_recipe import BATCH, CONTEXT, EVAL_BATCHES, EVAL_EVERY, Learned, validation_loss

CHARACTERS = 1_100_000  # of the default text, as in Tiny Shakespeare
TRAINED = 0.9  # fraction of the text
TRIAL_STEPS, TRIALS = (10, 100), 2
SHORT_STEPS, SHORT_RATE = 300, "optimizer.lr=0.04"  # a better rate for a short schedule; docs/log.md has the figures
PEER = "nanoGPT's recipe"


@dataclass(frozen=True)
class LearnText:
    """A text as token ids, one for each character.

    Args:
        text: The text itself.
        file: A file with the text, for train.py.
        alphabet: Its characters, in the order of their ids.
        ids: All token ids, int64.
    """

    text: str
    file: Path
    alphabet: str
    ids: Tensor

    @property
    def split(self) -> int:
        """Number of characters to train on."""
        return int(len(self.text) * TRAINED)


def main(arguments: Sequence[str]) -> None:
    """Run the comparison with the arguments after "learn"."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks learn", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", nargs="?", help="UTF-8 text (default: documentation that comes with Python)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each, in turns (default: 3)")
    parser.add_argument("--steps", type=int, default=2000, help="steps of nanoGPT's recipe (default: 2000)")
    parser.add_argument("--json", metavar="FILE", help="file to append the results to")
    chosen = parser.parse_args(arguments)
    if chosen.seeds < 1 or chosen.steps < 1:
        parser.error("--seeds and --steps must be at least 1")
    content = python_documentation() if chosen.text is None else Path(chosen.text).read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        text = learn_text(content, Path(folder))
        print(f"{len(content):,} characters, {len(text.alphabet)} different ones; the last tenth validates.", flush=True)
        found = compare(text, seeds=chosen.seeds, steps=chosen.steps, folder=Path(folder))
    print(table(found))
    if chosen.json is not None:
        with open(chosen.json, "a", encoding="utf-8") as stream:
            rows = [{"subject": name} | asdict(one) for name, learned in found.items() for one in learned]
            stream.writelines(json.dumps(row) + "\n" for row in rows)


def compare(text: LearnText, *, seeds: int, steps: int, folder: Path) -> dict[str, list[Learned]]:
    """Train all subjects with each seed, in turns, and return their results."""
    own, other = (measured_cost(train, text, folder) for train in (ours, peer))
    whole = other.fixed + steps * other.step
    shares = {"ours, a fifth of the time": whole / 5, "ours, all of the time": whole}
    lengths = {name: (seconds - own.fixed) / own.step for name, seconds in shares.items()}
    print(
        f"Processor time of a step: {1000 * own.step:.1f} ms, of nanoGPT's {1000 * other.step:.1f} ms; besides, "
        f"{own.fixed:.1f} s and {other.fixed:.1f} s.",
        flush=True,
    )
    found: dict[str, list[Learned]] = {name: [] for name in (PEER, *lengths)}
    for seed in range(1, seeds + 1):
        for name, learned in found.items():
            own_steps = max(1, round(lengths.get(name, 0)))
            train, length = (peer, steps) if name == PEER else (ours, own_steps)
            done = train(text, seed=seed, steps=length, folder=folder)
            learned.append(done)
            print(
                f"{name}, seed {seed}: {done.steps} steps, loss {done.loss:.3f}, {done.wall_seconds:.0f} s "
                f"({done.cpu_seconds:.0f} s of processors)",
                flush=True,
            )
    return found


@dataclass(frozen=True)
class Cost:
    """Seconds of all processors for the fixed work of a run, and for each step."""

    fixed: float
    step: float


def measured_cost(train: Callable[..., Learned], text: LearnText, folder: Path) -> Cost:
    """Measure short runs of two lengths, and return the cost of a run of any length."""
    fewer, more = (
        min(train(text, seed=1, steps=steps, folder=folder).cpu_seconds for _ in range(TRIALS)) for steps in TRIAL_STEPS
    )
    step = (more - fewer) / (TRIAL_STEPS[1] - TRIAL_STEPS[0])
    return Cost(fewer - TRIAL_STEPS[0] * step, step)


def peer(text: LearnText, *, seed: int, steps: int, folder: Path) -> Learned:
    """Train by nanoGPT's recipe in a separate process."""
    ids_file, result = folder / "ids.pt", folder / "peer.json"
    content = {"train": text.ids[: text.split], "val": text.ids[text.split :], "vocab_size": len(text.alphabet)}
    torch.save(content, ids_file)
    run([sys.executable, "-m", "benchmarks.nanogpt_recipe", str(ids_file), str(seed), str(steps), str(result)])
    return Learned(**json.loads(result.read_text(encoding="utf-8")))


def ours(text: LearnText, *, seed: int, steps: int, folder: Path) -> Learned:
    """Train by `train.py experiment=modern`, with as many evaluations as in nanoGPT's loop."""
    from gpt_pretrain.checkpoints.pretrained import load_pretrained

    run_dir, result = folder / f"run-{time.monotonic_ns()}", folder / "ours.json"
    arguments = [
        "experiment=modern",
        f"tokenizer=alphabet:{quote(text.alphabet, safe='')}",
        "data=text",
        f"data.path={text.file}",
        f"data.cache_dir={folder / 'cache'}",
        f"data.train_ratio={TRAINED}",
        f"data.batch_size={BATCH}",
        f"model.context_length={CONTEXT}",
        f"seed={seed}",
        f"trainer.max_steps={steps}",
        "trainer.max_epochs=1000",
        "trainer.precision=32-true",
        f"eval_freq={EVAL_EVERY}",
        f"eval_iter={EVAL_BATCHES}",
        f"data.val_tokens={EVAL_BATCHES * BATCH * CONTEXT}",
        "callbacks.samples=false",
        "logger=csv",
        f"hydra.run.dir={run_dir}",
        f"+callbacks.custom.timing={{_target_: benchmarks.clock.TrainingTime, file: {result}}}",
    ]
    run([sys.executable, str(ROOT / "train.py"), *arguments, *[SHORT_RATE] * (steps <= SHORT_STEPS)])
    timing = json.loads(result.read_text(encoding="utf-8"))
    loss = validation_loss(load_pretrained(run_dir / "checkpoints" / "last.ckpt"), text.ids[text.split :])
    return Learned(steps, steps * BATCH * CONTEXT, timing["wall_seconds"], timing["cpu_seconds"], loss)


def table(found: dict[str, list[Learned]]) -> str:
    """Return the results as a Markdown table."""
    lines = ["| | steps | tokens | wall time | processor time | validation loss |", "|---|---|---|---|---|---|"]
    peers = found[PEER]
    for name, learned in found.items():
        wall, cpu = (
            mean(getattr(one, field) / getattr(other, field) for one, other in zip(learned, peers, strict=True))
            for field in ("wall_seconds", "cpu_seconds")
        )
        losses = [one.loss for one in learned]
        spread = f" ± {stdev(losses):.3f}" if len(losses) > 1 else ""
        seconds = [mean(getattr(one, field) for one in learned) for field in ("wall_seconds", "cpu_seconds")]
        lines.append(
            f"| {name} | {learned[0].steps:,} | {learned[0].tokens:,} | {seconds[0]:.0f} s ({wall:.2f}) "
            f"| {seconds[1]:.0f} s ({cpu:.2f}) | {mean(losses):.3f}{spread} |"
        )
    return "\n".join(lines)


def learn_text(content: str, folder: Path) -> LearnText:
    """Write a text for train.py, and return it with its token ids."""
    content = content.replace("\r\n", "\n").replace("<|endoftext|>", "")
    alphabet = "".join(sorted(set(content)))
    number = {character: index for index, character in enumerate(alphabet)}
    file = folder / "text.txt"
    file.write_text(content, encoding="utf-8", newline="")
    return LearnText(content, file, alphabet, torch.tensor([number[character] for character in content]))


def python_documentation() -> str:
    """Return documentation that comes with every Python: the topics of `help()`, and docstrings of the standard library.

    The pieces are in a fixed random order, so that the last tenth is like the rest.
    """
    from pydoc_data.topics import topics

    pieces, length = list(topics.values()), sum(map(len, topics.values()))
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        if length >= CHARACTERS:
            break
        tree = ast.parse(file.read_bytes())
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
        found = "\n\n".join(filter(None, map(ast.get_docstring, nodes)))
        pieces.append(found)
        length += len(found)
    random.Random(1).shuffle(pieces)
    text = "\n\n".join(pieces)[:CHARACTERS]
    return "".join(character for character in text if character.isascii())
