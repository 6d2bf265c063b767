"""The benchmark cases: the measured work, the programs, and the machine's limit that applies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks import decoding, decoding_loss, limits, loading, preparing, startup, tasks, training
from benchmarks.measure import Measurement
from benchmarks.shapes import TINY, Decoding, Training, gpt2_124m
from gpt_pretrain.model import costs


@dataclass(frozen=True)
class Case:
    """A group of measurements that make one table.

    Args:
        title: Title of the table.
        subjects: The programs to measure, each in its own process. Others are compared with "ours"; "limit: ..." is an upper
            bound of the machine.
        tokens: Tokens of one measured unit. 0 leaves out tokens per second.
        product_flops: Floating-point operations of one unit in products with weights, for the fraction of the measured limit.
        flops: All floating-point operations of one unit, for the fraction of the device's peak.
        weights: Numbers that one unit must read, for the fraction of the measured memory bandwidth.
        note: Caption of the table.
        compared: Whether the subjects do the same work, so that the table shows ratios.
    """

    title: str
    subjects: dict[str, Callable[[], Measurement]]
    tokens: int = 0
    product_flops: float = 0.0
    flops: float = 0.0
    weights: int = 0
    note: str = ""
    compared: bool = True


def all_cases(*, precision: str) -> dict[str, Case]:
    """Return all cases by name, the training cases for this machine first.

    Args:
        precision: Precision in which this program trains here, chosen once for all cases.
    """
    if torch.cuda.is_available():
        big = gpt2_124m(drop_rate=0.0, batch_size=16, context_length=1024, steps=30, warmup=10)
        cases = {"train-124m": _training(big, precision)}
    else:
        cases = {
            "train-124m-dropout": _training(gpt2_124m(drop_rate=0.1), precision),
            "train-124m": _training(gpt2_124m(drop_rate=0.0), precision),
            "train-124m-b8": _training(gpt2_124m(drop_rate=0.0, batch_size=8, steps=3, warmup=2), precision),
        }
    cases["train-tiny"] = _training(TINY, precision)
    for batch_size in (1, 8):
        for n_prompt in (4, 512):
            cases[f"decode-b{batch_size}-p{n_prompt}"] = _decoding(Decoding(batch_size, n_prompt))
    return cases | {
        "int8-loss": _int8_loss(),
        "beyond-context": _beyond_context(),
        "first-token": _first_token(),
        "tasks": _tasks(),
        "load": _loading(precision),
        "prepare": _preparing(),
        "prepare-text": _preparing_text(),
        "start": _starting(),
        "whole-run": Case("`make train`, from the command to its end", {"ours": startup.whole_run}, compared=False),
    }


def _training(shape: Training, precision: str) -> Case:
    subjects: dict[str, Callable[[], Measurement]] = {
        "ours": partial(training.ours, shape, precision=precision),
        "bare loop, our model": partial(training.bare, shape, precision=precision),
        "book": partial(training.chapter, shape),
        "transformers": partial(training.transformers, shape),
        "transformers, bf16": partial(training.transformers, shape, precision="bf16-mixed"),
        "limit: products, fp32": partial(limits.products, shape, dtype=torch.float32),
        "limit: products, bf16": partial(limits.products, shape, dtype=torch.bfloat16),
    }
    name = "A tiny model" if shape.model == "tiny" else "GPT-2 124M"
    return Case(
        f"{name}: training, {shape.batch_size} x {shape.context_length} tokens per step, drop_rate {shape.drop_rate:g}",
        subjects,
        tokens=shape.tokens,
        product_flops=shape.product_flops,
        flops=shape.flops,
        note="Excludes evaluation, compilation, checkpoints and the first steps. The book's model does not tie its output head.",
    )


def _decoding(shape: Decoding) -> Case:
    bf16 = "bf16-mixed"
    few = 200 if shape.n_prompt < 100 and shape.batch_size == 1 else 10
    subjects: dict[str, Callable[[], Measurement]] = {
        "ours": partial(decoding.ours, shape),
        "ours, fp32": partial(decoding.ours, shape, precision="32-true"),
        "ours, bf16": partial(decoding.ours, shape, precision=bf16),
        "ours, int8": partial(decoding.ours, shape, precision="int8"),
        "transformers": partial(decoding.transformers, shape),
        "transformers, bf16": partial(decoding.transformers, shape, precision=bf16),
        "book": partial(decoding.chapter, shape, n_tokens=few),
        "limit: memory": limits.memory_reads,
    }
    return Case(
        f"GPT-2 124M: {shape.n_tokens} tokens from a prompt of {shape.n_prompt}, batch {shape.batch_size}",
        subjects,
        tokens=shape.batch_size,
        weights=costs.matmul_parameters(decoding.GPT2.config()),
        note="Time per token of the whole call, including the prompt."
        + ("" if few == 200 else f" The book's code, which has no cache, is timed over only {few} tokens, which favors it."),
    )


def _first_token() -> Case:
    shape = Decoding(1, 512, 1)
    subjects: dict[str, Callable[[], Measurement]] = {
        "ours": partial(decoding.first_token, shape, precision="auto"),
        "ours, fp32": partial(decoding.first_token, shape),
        "one forward pass": partial(decoding.forward_pass, shape),
    }
    return Case("GPT-2 124M: the first token of a prompt of 512", subjects)


def _int8_loss() -> Case:
    subjects: dict[str, Callable[[], Measurement]] = {
        "fp32": partial(decoding_loss.loss, "32-true"),
        "bf16": partial(decoding_loss.loss, "bf16-mixed"),
        "int8": partial(decoding_loss.loss, "int8"),
    }
    note = (
        "A small model, trained for this in the same way each time, reads the end of the documentation with its decoding layers. "
        "The time per token is for the whole text at once."
    )
    return Case("The loss with rounded weights", subjects, tokens=1, note=note, compared=False)


def _beyond_context() -> Case:
    subjects: dict[str, Callable[[], Measurement]] = {
        "ours": partial(decoding.beyond_context, window_step=None, n_tokens=8),
        "window_step=0.125": partial(decoding.beyond_context, window_step=0.125, n_tokens=128),
        "window_step=0.25": partial(decoding.beyond_context, window_step=0.25, n_tokens=256),
        "window_step=0.5": partial(decoding.beyond_context, window_step=0.5, n_tokens=512),
    }
    note = "Time per token over one step of the window, in which it is read once. The default reads it for each token."
    return Case("GPT-2 124M: tokens beyond the context of 1,024", subjects, tokens=1, note=note)


def _tasks() -> Case:
    subjects: dict[str, Callable[[], Measurement]] = {
        "ours": tasks.ours,
        "bare forward passes, same batches": tasks.forward_passes,
        "transformers": tasks.transformers,
        "LM Evaluation Harness": tasks.harness,
    }
    note = "From texts to log-probabilities. Ours reads a context once for its four choices; the bare passes read the same rows."
    return Case(f"GPT-2 124M: {tasks.N_ITEMS} questions with four choices, as long as HellaSwag's", subjects, note=note)


def _loading(precision: str) -> Case:
    load = partial(loading.ours, n_tokens=100_000_000)
    shards = partial(loading.shards, n_tokens=100_000_000, context_length=1024, batch_size=16)
    subjects: dict[str, Callable[[], Measurement]] = {
        "ours": partial(load, context_length=256, batch_size=2),
        "ours, 12 x 64": partial(load, context_length=64, batch_size=12),
        "ours, 16 x 1024": partial(load, context_length=1024, batch_size=16),
        "shards, 16 x 1024": shards,
        "shards, documents kept apart": partial(shards, documents=True),
        "shards, cache of a URL": partial(shards, remote=True),
        "np.memmap, 16 x 1024": partial(loading.memmap, n_tokens=100_000_000, context_length=1024, batch_size=16),
        "a step of GPT-2 124M, 2 x 256": partial(training.bare, gpt2_124m(drop_rate=0.0), precision=precision),
        "a step of a tiny model, 12 x 64": partial(training.bare, TINY, precision=precision),
    }
    note = "Memory is what loading adds; a step loads one batch. np.memmap reads as nanoGPT does."
    return Case("Loading a batch from 100,000,000 tokens", subjects, note=note, compared=False)


def _preparing(megabytes: float = 100) -> Case:
    subjects: dict[str, Callable[[], Measurement]] = {
        "ours": partial(preparing.ours, megabytes=megabytes),
        "tiktoken's encode_ordinary_batch": partial(preparing.tiktoken, megabytes=megabytes),
        "ours, 1 worker": partial(preparing.ours, megabytes=megabytes, workers=1),
        "tiktoken, 1 thread": partial(preparing.tiktoken, megabytes=megabytes, threads=1),
    }
    note = (
        f"Time per {preparing.UNIT:,} tokens of {megabytes:g} MB of JSON lines, with as many workers or threads as cores. Ours "
        "is the whole command up to the shards on disk; tiktoken has the text and its lists in memory."
    )
    return Case("Preparing a corpus", subjects, tokens=preparing.UNIT, note=note)


def _preparing_text(megabytes: float = 300) -> Case:
    subjects: dict[str, Callable[[], Measurement]] = {
        "ours": partial(preparing.ours, megabytes=megabytes, as_text=True),
        "tiktoken's encode_ordinary_batch": partial(preparing.tiktoken, megabytes=megabytes),
    }
    note = (
        f"Time per {preparing.UNIT:,} tokens of {megabytes:g} MB of plain text, a worker or thread for each core. The text "
        "repeats a few MB, which favors ours: it remembers words."
    )
    return Case("Preparing a corpus of plain text", subjects, tokens=preparing.UNIT, note=note)


def _starting() -> Case:
    subjects: dict[str, Callable[[], Measurement]] = {
        "ours": startup.first_step,
        "ours, generate.py's first token of a 124M run": startup.first_token,
        "ours, --help": partial(startup.command, "--help"),
        "ours, --cfg job": partial(startup.command, "--cfg", "job"),
        "python -c 'import lightning'": partial(startup.imports, "import lightning"),
        "python -c 'import torch'": partial(startup.imports, "import torch"),
    }
    return Case("From the command to the end of the first step of model=tiny; other commands", subjects, compared=False)
