"""Measure the server beside generate.py and transformers: python -m benchmarks serve.

`python serve.py` and transformers' `generate` behind FastAPI and uvicorn run in processes of their own. A client asks both, and
generate.py's own function, for the same greedy texts in turns. So all figures of a round come from the same minute.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch
from rich.console import Console

from benchmarks import report
from benchmarks.cases import Case
from benchmarks.decoding import GPT2
from benchmarks.measure import Measurement
from benchmarks.servers import (
    RunningServer,
    ServedWeights,
    our_server,
    save_random_weights,
    stream,
    stream_together,
    transformers_server,
)
from gpt_pretrain.generation.config import SamplerConfig
from gpt_pretrain.generation.prompts import PromptOptions, TextModel, continue_ids
from gpt_pretrain.system.devices import keep_freed_memory

SETTLED_SECONDS = 0.05  # after this, the threads of the last computing process no longer spin
PROMPT, CLIENTS, FIRST_TOKENS = "Every effort moves you", 8, 7
OURS, GENERATE, PEER, ALONE = "ours", "generate.py", "transformers behind a server", "one client of ours"
TITLES = {
    "serve": "Serving GPT-2 124M: a text for one client",
    "serve-first": "Serving GPT-2 124M: the first token",
    "serve-together": f"Serving GPT-2 124M: {CLIENTS} clients together",
}
SUBJECTS = {"serve": (OURS, GENERATE, PEER), "serve-first": (OURS, GENERATE, PEER), "serve-together": (OURS, ALONE, PEER)}
Times = dict[str, dict[str, list[float]]]  # the seconds of one round, by case and subject


def main(arguments: Sequence[str]) -> None:
    """Run the comparison with the arguments after "serve"."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=4, help="measurements of each subject, in turns (default: 4)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of a text (default: 64)")
    parser.add_argument("--update-docs", action="store_true", help="write the tables into docs/performance.md")
    chosen = parser.parse_args(arguments)
    if chosen.rounds < 1 or not 2 <= chosen.tokens <= GPT2.context_length - 8:
        parser.error(f"--rounds must be at least 1, and --tokens between 2 and {GPT2.context_length - 8}")
    with tempfile.TemporaryDirectory() as folder:
        weights = save_random_weights(Path(folder), GPT2.config(), "gpt2")
        with our_server(weights) as own, transformers_server() as peer:
            found = compare(weights, own, peer, rounds=chosen.rounds, n_tokens=chosen.tokens)
    console = Console(highlight=False, width=150)
    console.print(report.machine(), soft_wrap=True)
    cases = serving_cases(chosen.tokens)
    for name, case in cases.items():
        rows = report.rows(name, case, found[name])
        report.show(console, case, rows)
        if chosen.update_docs:
            report.update_page(cases, {name: rows})


def serving_cases(n_tokens: int) -> dict[str, Case]:
    """Return the tables. `compare` measures all their subjects together."""
    notes = {
        "serve": f"Time per token of the whole request for {n_tokens} tokens, streamed over a new connection. generate.py is the "
        "same function in one process, without HTTP.",
        "serve-first": "From the request over a new connection to the first event, for a prompt of 4 tokens.",
        "serve-together": f"Time per token of all texts together, {n_tokens} tokens each. transformers makes one text at a time "
        f"({n_tokens // 2} tokens each).",
    }
    return {
        name: Case(title, dict.fromkeys(SUBJECTS[name], _measured_together), tokens=int(name != "serve-first"), note=notes[name])
        for name, title in TITLES.items()
    }


def _measured_together() -> Measurement:
    raise NotImplementedError


def compare(
    weights: ServedWeights, own: RunningServer, peer: RunningServer, *, rounds: int, n_tokens: int
) -> dict[str, dict[str, list[Measurement | None]]]:
    """Return the measurements by case and subject.

    Raises:
        RuntimeError: If the server's text differs from generate.py's.
    """
    keep_freed_memory()
    model, precision = weights.text_model()
    _check_texts(model, own, n_tokens=n_tokens)
    stream(peer, PROMPT, n_tokens)
    found: dict[str, dict[str, list[Measurement | None]]] = {name: defaultdict(list) for name in TITLES}
    for number in range(rounds):
        for name, subjects in _one_round(model, own, peer, n_tokens=n_tokens).items():
            for subject, seconds in subjects.items():
                kind = "32-true" if subject == PEER else precision
                found[name][subject].append(Measurement(seconds, None, {"precision": kind}))
        print(f"round {number + 1} of {rounds}: {_summary(found, number)}", flush=True)
    return found


def _check_texts(model: TextModel, own: RunningServer, *, n_tokens: int) -> None:
    """Compare the server's text with generate.py's. This also warms up both."""
    expected, got = generated(model, n_tokens), stream(own, PROMPT, n_tokens)
    if got.text != expected or got.finish_reason != "length":
        raise RuntimeError(f"The server's text is {got.text!r}, and not generate.py's, {expected!r}.")


def generated(model: TextModel, n_tokens: int) -> str:
    """Return generate.py's text. Its output, token by token, is discarded."""
    prompt_ids = model.tokenizer.encode(PROMPT)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:

        def show(text: str) -> bool:
            print(text, end="", flush=True, file=nowhere)
            return True

        options = PromptOptions(1, seed=1)
        return continue_ids(model, prompt_ids, SamplerConfig(n_tokens), options, generator=torch.Generator(), show=show).text


def _one_round(model: TextModel, own: RunningServer, peer: RunningServer, *, n_tokens: int) -> Times:
    times: Times = {name: defaultdict(list) for name in TITLES}
    for _ in range(2):
        times["serve"][GENERATE].append(_timed(lambda: generated(model, n_tokens)) / n_tokens)
        times["serve"][OURS].append(stream(own, PROMPT, n_tokens).seconds / n_tokens)
    times["serve"][PEER].append(stream(peer, PROMPT, n_tokens).seconds / n_tokens)
    for _ in range(FIRST_TOKENS):
        firsts: dict[str, Callable[[], float]] = {
            GENERATE: lambda: _timed(lambda: generated(model, 1)),
            OURS: lambda: stream(own, PROMPT, 1).first,
            PEER: lambda: stream(peer, PROMPT, 1).first,
        }
        for subject, measure in firsts.items():
            time.sleep(SETTLED_SECONDS)
            times["serve-first"][subject].append(measure())
    for _ in range(2):
        times["serve-together"][ALONE].append(stream(own, PROMPT, n_tokens).seconds / n_tokens)
        times["serve-together"][OURS].append(stream_together(own, PROMPT, n_tokens, clients=CLIENTS) / n_tokens / CLIENTS)
    n_each = n_tokens // 2
    times["serve-together"][PEER].append(stream_together(peer, PROMPT, n_each, clients=CLIENTS) / n_each / CLIENTS)
    return times


def _timed(compute: Callable[[], object]) -> float:
    start = time.perf_counter()
    compute()
    return time.perf_counter() - start


def _summary(found: dict[str, dict[str, list[Measurement | None]]], number: int) -> str:
    def seconds(name: str, subject: str) -> float:
        measured = found[name][subject][number]
        assert measured is not None
        return median(measured.seconds)

    speed = seconds("serve", GENERATE) / seconds("serve", OURS)
    first = seconds("serve-first", OURS) / seconds("serve-first", GENERATE)
    together = seconds("serve-together", ALONE) / seconds("serve-together", OURS)
    return (
        f"one client {speed:.2f} times as fast as generate.py, first token after {first:.2f} times its time, "
        f"{CLIENTS} clients together {together:.2f} times as fast as one"
    )
