"""Compare budget=TIME with other ways to spend the same time: bits per byte of held-out text.

python -m benchmarks budget [TEXT ...] trains each subject on the first nine tenths of each text, in a process of its own. It
scores the last tenth, which no subject has seen, in windows side by side. The subjects:

- `python train.py budget=TIME`.
- nanoGPT's recipes for characters, for a CPU and for a GPU (`nanogpt_recipe.py`). The schedule is cut to the time, and there is
  no evaluation in between. The time excludes the start of Python and the final evaluation.
- `python train.py` with its defaults, with model=tiny and with model=gpt2_124m. trainer.max_time ends these runs, so the time
  excludes the start of the program and the end of the run.
- The best of twenty trainings of an Optuna search. Each has budget=TIME, so the search takes twenty times as long. It runs only
  if --subjects names it.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.learn import python_documentation
from benchmarks.measure import ROOT, run
from gpt_pretrain.config.overrides import quote_value
from gpt_pretrain.sweeps.results import best_job, read_sweep
from gpt_pretrain.system.formatting import format_duration
from gpt_pretrain.training.budget.amount import parse_budget

TRAINED = 0.9  # fraction of the text
BESIDES = 30.0  # seconds of a subject besides its training
EXPECTED = re.compile(r"expect  ([0-9.]+) bits per byte, in nine of ten cases between ([0-9.]+) and ([0-9.]+)")
DIAL, SEARCH = "budget=", "the best of a search"
SPACE = (  # of the search; each training's schedule follows the clock, as with budget=
    *("model.emb_dim=choice(64,96,128,192,256)", "model.n_layers=choice(2,3,4,6)", "model.n_heads=4", "model.context_length=128"),
    *("tokenizer=bpe", "tokenizer.vocab_size=choice(512,1024,2048,4096)", "data.batch_size=choice(4,8,16,32)"),
    *("optimizer.lr=tag(log,interval(5e-3,5e-2))", "optimizer.matrices.weight_decay=choice(0.0,0.1,0.2)"),
    *("optimizer.head.weight_decay=choice(0.0,1.0)", "model.drop_rate=interval(0.0,0.3)"),
)


@dataclass(frozen=True)
class Result:
    """The result of one subject.

    Args:
        seconds: Duration of its process, by the clock.
        bits: Bits per byte of the held-out text.
        expected: The bits per byte that budget= has predicted, with the bounds of its interval; empty for other subjects.
    """

    text: str
    budget: str
    subject: str
    seconds: float
    bits: float
    expected: list[float]


@dataclass(frozen=True)
class SplitText:
    """A text in two files: the training text, and the held-out text."""

    name: str
    train: Path
    held_out: Path


@dataclass(frozen=True)
class Task:
    """The text and the time for each subject's training, and its folder."""

    text: SplitText
    budget: str
    seconds: float
    seed: int
    run_dir: Path
    trials: int = 20


def main(arguments: Sequence[str]) -> None:
    """Run the comparison with the arguments after "budget"."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks budget", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="UTF-8 texts (default: documentation that comes with Python)")
    parser.add_argument("--budgets", default="2m", metavar="TIMES", help="times, separated by commas (default: 2m)")
    parser.add_argument("--seed", type=int, default=1, help="seed of all subjects (default: 1)")
    parser.add_argument(
        "--subjects", metavar="NAMES", help=f"a part of the subjects, by number: {_numbered()} (default: all but the search)"
    )
    parser.add_argument("--trials", type=int, default=20, help="trainings of the search (default: 20)")
    parser.add_argument("--json", metavar="FILE", help="file to append the results to, one JSON object a line")
    chosen = parser.parse_args(arguments)
    budgets = [(name, parse_budget(name).seconds) for name in chosen.budgets.split(",")]
    if not all(math.isfinite(seconds) for _, seconds in budgets):
        parser.error("--budgets must be times, such as 2m,5m")
    numbers = chosen.subjects.split(",") if chosen.subjects is not None else []
    names = [[*SUBJECTS][int(number) - 1] for number in numbers] or [name for name in SUBJECTS if name != SEARCH]
    trainings = len(names) + (SEARCH in names) * (chosen.trials - 1)
    total = max(len(chosen.texts), 1) * trainings * sum(seconds + BESIDES for _, seconds in budgets)
    print(f"{len(names)} subjects; this takes about {format_duration(total)}.", flush=True)
    results = list[Result]()
    with tempfile.TemporaryDirectory() as folder:
        for text in _texts(chosen.texts, Path(folder)):
            for name, seconds in budgets:
                for subject in names:
                    task = Task(text, name, seconds, chosen.seed, Path(folder) / f"run-{time.monotonic_ns()}", chosen.trials)
                    found = measure(subject, task)
                    if found is not None:
                        results.append(found)
                        _append(found, chosen.json)
    print(table(results))


def _numbered() -> str:
    return ", ".join(f"{number} {name}" for number, name in enumerate(SUBJECTS, start=1))


def _append(result: Result, file: str | None) -> None:
    print(
        f"{result.text}, {result.budget}, {result.subject}: {result.bits:.3f} bits per byte, {result.seconds:.1f} s", flush=True
    )
    if file is not None:
        with open(file, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(asdict(result)) + "\n")


def _texts(files: Sequence[str], folder: Path) -> Iterator[SplitText]:
    contents = [(Path(file).name, Path(file).read_text(encoding="utf-8")) for file in files]
    for name, content in contents or [("Python's documentation", python_documentation())]:
        yield split_text(name, content, folder)


def split_text(name: str, content: str, folder: Path) -> SplitText:
    """Write the first nine tenths of a text and the rest into files."""
    content = content.replace("\r\n", "\n").replace("<|endoftext|>", "")
    cut = int(TRAINED * len(content))
    text = SplitText(name, *(folder / f"{part}-{time.monotonic_ns()}.txt" for part in ("train", "held-out")))
    text.train.write_text(content[:cut], encoding="utf-8", newline="")
    text.held_out.write_text(content[cut:], encoding="utf-8", newline="")
    return text


def measure(subject: str, task: Task) -> Result | None:
    """Train one subject and score it. If it fails, print the reason and return None."""
    try:
        spent, bits = SUBJECTS[subject](task)
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        print(f"{task.text.name}, {task.budget}, {subject}: failed: {error}", flush=True)
        return None
    expected = expected_by(task.run_dir) if subject == DIAL else []
    return Result(task.text.name, task.budget, subject, spent, bits, expected)


def by_budget(task: Task) -> tuple[float, float]:
    """Train with budget=, and return the seconds and the bits per byte of the held-out text."""
    return _by_train(task, [f"budget={task.budget}"])


def by_defaults(task: Task) -> tuple[float, float]:
    """Train with the defaults."""
    return _by_train(task, [_max_time(task.seconds)])


def by_tiny(task: Task) -> tuple[float, float]:
    """Train model=tiny."""
    return _by_train(task, ["model=tiny", _max_time(task.seconds)])


def by_gpt2(task: Task) -> tuple[float, float]:
    """Train model=gpt2_124m."""
    return _by_train(task, ["model=gpt2_124m", _max_time(task.seconds)])


def by_search(task: Task) -> tuple[float, float]:
    """Search with Optuna, and score the training with the lowest validation loss."""
    search = [f"hydra.sweeper.n_trials={task.trials}", f"hydra.sweeper.seed={task.seed}", "hydra.sweeper.pruning=false"]
    fixed = ["-m", "hparams_search=optuna", "hydra.sweeper.params=null", *search, *SPACE, f"budget={task.budget}"]
    start = time.monotonic()
    try:
        _train(task, [*fixed, f"hydra.sweep.dir={task.run_dir}"])
    except RuntimeError:  # A training that is too slow for its time fails. The others count.
        if best_job(read_sweep(task.run_dir)) is None:
            raise
    spent, best = time.monotonic() - start, best_job(read_sweep(task.run_dir))
    assert best is not None
    return spent, _score(task, best.folder)


def _max_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"trainer.max_time='00:{hours:02d}:{minutes:02d}:{rest:02d}'"


def _by_train(task: Task, overrides: Sequence[str]) -> tuple[float, float]:
    return _train(task, [*overrides, f"hydra.run.dir={task.run_dir}"]), _score(task, task.run_dir)


def _train(task: Task, overrides: Sequence[str]) -> float:
    """Run train.py, and return the seconds of its process."""
    data = ["data=text", f"data.path={task.text.train}", f"data.cache_dir={task.run_dir.parent / 'cache'}"]
    start = time.monotonic()
    run([sys.executable, str(ROOT / "train.py"), *data, *overrides, f"seed={task.seed}", "logger=csv"])
    return time.monotonic() - start


def _score(task: Task, run_dir: Path) -> float:
    """Return the bits per byte of the held-out text by a run's best checkpoint."""
    scored = task.run_dir.with_name(f"{task.run_dir.name}-scored")
    checkpoint = run_dir / "checkpoints" / "best.ckpt"
    data = ["data=text", f"data.path={task.text.held_out}", f"data.cache_dir={task.run_dir.parent / 'cache'}"]
    run(
        [
            sys.executable,
            str(ROOT / "evaluate.py"),
            f"checkpoint={quote_value(str(checkpoint))}",
            *data,
            f"hydra.run.dir={scored}",
        ]
    )
    content = json.loads((scored / "results.json").read_text(encoding="utf-8"))
    return float(content["models"][0]["bits_per_byte"]["value"])


def expected_by(run_dir: Path) -> list[float]:
    """Return the bits per byte that a run with a budget has predicted, and the bounds; empty if its log has none."""
    found = EXPECTED.search((run_dir / "train.log").read_text(encoding="utf-8"))
    return [] if found is None else [float(one) for one in found.groups()]


def by_cpu_recipe(task: Task) -> tuple[float, float]:
    """Train by nanoGPT's recipe for a CPU."""
    return _by_recipe("cpu", task)


def by_gpu_recipe(task: Task) -> tuple[float, float]:
    """Train by nanoGPT's recipe for a GPU."""
    return _by_recipe("gpu", task)


def _by_recipe(name: str, task: Task) -> tuple[float, float]:
    text, run_dir = task.text, task.run_dir
    train, held_out = (file.read_text(encoding="utf-8") for file in (text.train, text.held_out))
    number = {character: index for index, character in enumerate(sorted({*train, *held_out}))}
    ids = {part: torch.tensor([number[one] for one in content]) for part, content in (("train", train), ("val", held_out))}
    run_dir.mkdir()
    ids_file, result = run_dir / "ids.pt", run_dir / "result.json"
    torch.save(ids | {"vocab_size": len(number)}, ids_file)
    start = time.monotonic()
    run([sys.executable, "-m", "benchmarks.nanogpt_recipe", str(ids_file), str(task.seed), f"{name}:{task.seconds}", str(result)])
    spent = time.monotonic() - start
    nats = json.loads(result.read_text(encoding="utf-8"))["loss"]
    return spent, nats / math.log(2) * len(held_out) / len(held_out.encode())


SUBJECTS: dict[str, Callable[[Task], tuple[float, float]]] = {
    DIAL: by_budget,
    "nanoGPT's recipe for a CPU": by_cpu_recipe,
    "nanoGPT's recipe for a GPU": by_gpu_recipe,
    "defaults": by_defaults,
    "model=tiny": by_tiny,
    "model=gpt2_124m": by_gpt2,
    SEARCH: by_search,
}


def table(results: Sequence[Result]) -> str:
    """Return the results as a Markdown table."""
    lines = ["| text | time | subject | wall time | bits per byte | of budget= | expected |", "|---|---|---|---|---|---|---|"]
    dial = {(one.text, one.budget): one.bits for one in results if one.subject == DIAL}
    for one in results:
        reference = dial.get((one.text, one.budget))
        ratio = "" if reference is None else f"{one.bits / reference:.2f}"
        expected = "" if not one.expected else "{:.2f} ({:.2f} to {:.2f})".format(*one.expected)
        lines.append(
            f"| {one.text} | {one.budget} | {one.subject} | {one.seconds:.0f} s | {one.bits:.3f} | {ratio} | {expected} |"
        )
    return "\n".join(lines)
