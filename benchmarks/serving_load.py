"""Test the server under load: python -m benchmarks serve-load [MINUTES].

`python serve.py` runs with default settings. Each client asks for one text after another. Some clients hang up, and
some send requests that are invalid or far too long. Each text must equal generate.py's.

The test fails if a text differs or is missing, if an invalid request gets another answer than the right error, if the server's
memory grows by more than 5%, or if the server does not end cleanly.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks import report
from benchmarks.decoding import GPT2
from benchmarks.servers import CLIENT_SECONDS, RunningServer, ServedWeights, our_server, save_random_weights
from gpt_pretrain.generation.config import SamplerConfig
from gpt_pretrain.generation.prompts import PromptOptions, continue_ids
from gpt_pretrain.system.devices import keep_freed_memory

HANGING_UP, MALFORMED, TOO_LONG = 0.10, 0.05, 0.01  # shares of all requests
WARMUP = 0.2  # share of the time before the memory is first read
MAX_GROWTH = 0.05
N_KINDS, MAX_TOKENS = 12, 24
MALFORMED_BODIES: tuple[bytes, ...] = (
    b"",
    b"{",
    b"null",
    b'{"model": 1}',
    b'{"prompt": "a"}',
    b"\xff\xfe",
    b"[" * 10_000,
    b'{"model": "MODEL", "prompt": "a", "temperature": -1}',
    b'{"model": "MODEL", "prompt": "a", "no_such_field": 1}',
    b'{"model": "MODEL", "prompt": [-1]}',
)


@dataclass(frozen=True)
class Kind:
    """A kind of request, with generate.py's text for it.

    Args:
        body: Its fields.
        expected: The text.
    """

    body: dict[str, Any]
    expected: str


@dataclass
class Outcome:
    """The counts of the requests so far.

    Args:
        counts: Number of requests by their result.
        problems: Sentences about events that must not happen.
        tokens: Tokens of all complete texts.
        memory: Resident bytes of the server, with the seconds since the start.
    """

    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    tokens: int = 0
    memory: list[tuple[float, int]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, result: str, *, tokens: int = 0, problem: str | None = None) -> None:
        """Count a request."""
        with self.lock:
            self.counts[result] += 1
            self.tokens += tokens
            if problem is not None:
                self.problems.append(problem)


def main(arguments: Sequence[str]) -> None:
    """Run the test with the arguments after "serve-load".

    Raises:
        SystemExit: With code 1 if there is a problem.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks serve-load", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("minutes", nargs="?", type=float, default=5.0, help="duration (default: 5)")
    parser.add_argument("--clients", type=int, default=64, help="clients at a time (default: 64)")
    chosen = parser.parse_args(arguments)
    if chosen.minutes <= 0 or chosen.clients < 1:
        parser.error("MINUTES must be above 0, and --clients at least 1")
    with tempfile.TemporaryDirectory() as folder:
        weights = save_random_weights(Path(folder), GPT2.config(), "gpt2")
        print(f"{report.machine()}\nGPT-2 124M, {chosen.clients} clients, {chosen.minutes:g} minutes", flush=True)
        outcome = run_load(weights, seconds=60 * chosen.minutes, clients=chosen.clients)
    print(summary(outcome, seconds=60 * chosen.minutes))
    if outcome.problems:
        sys.exit(1)


def run_load(weights: ServedWeights, *, seconds: float, clients: int) -> Outcome:
    """Load a server for this time, and return the outcome."""
    keep_freed_memory()
    kinds = make_kinds(weights)
    outcome = Outcome()
    with our_server(weights) as server:
        start = time.monotonic()
        with ThreadPoolExecutor(clients + 1) as pool:
            pool.submit(_watch_memory, server, outcome, start, seconds)
            for number in range(clients):
                pool.submit(_client, server, kinds, outcome, number, start + seconds)
        outcome.problems += _problems_at_the_end(server)
    if (code := server.process.returncode) != 0:
        outcome.problems.append(f"The server ended with the exit code {code} after Ctrl-C.")
    if (growth := memory_growth(outcome)) > MAX_GROWTH:
        outcome.problems.append(f"The server's memory grew by {growth:.1%}.")
    return outcome


def make_kinds(weights: ServedWeights) -> list[Kind]:
    """Return requests of different lengths, greedy and sampled, with generate.py's texts for them."""
    model, _ = weights.text_model()
    words = ["Every", "effort", "moves", "you", "one", "step", "closer", "to", "the", "end", "of", "a", "long", "text"]
    kinds = []
    for number in range(N_KINDS):
        prompt, n_tokens = " ".join(words[: 1 + number]), 4 + number * (MAX_TOKENS - 4) // (N_KINDS - 1)
        sampled = {"temperature": 0.9, "top_k": 50, "top_p": 0.95, "seed": number} if number % 2 else {"temperature": 0}
        settings = {name: value for name, value in sampled.items() if name != "seed"}
        generator = torch.Generator().manual_seed(number)
        sampler, options = SamplerConfig(n_tokens, **settings), PromptOptions(1, seed=number)  # type: ignore[arg-type]
        made = continue_ids(model, model.tokenizer.encode(prompt), sampler, options, generator=generator)
        kinds.append(Kind({"prompt": prompt, "max_tokens": n_tokens, **sampled}, made.text))
    return kinds


def _client(server: RunningServer, kinds: Sequence[Kind], outcome: Outcome, number: int, end: float) -> None:
    choices = random.Random(number)
    while time.monotonic() < end:
        kind, share = choices.choice(kinds), choices.random()
        try:
            if share < HANGING_UP:
                _hang_up(server, kind, choices)
                outcome.add("hung up")
            elif share < HANGING_UP + MALFORMED:
                content = choices.choice(MALFORMED_BODIES).replace(b"MODEL", server.model.encode())
                _expect_refusal(server, content, outcome, "malformed")
            elif share < HANGING_UP + MALFORMED + TOO_LONG:
                prompt = "a " * choices.choice((5_000, 3_000_000))
                _expect_refusal(server, json.dumps({"model": server.model, "prompt": prompt}).encode(), outcome, "too long")
            else:
                _ask(server, kind, outcome, streams=choices.random() < 0.5)
        except (OSError, HTTPException, ValueError) as error:
            outcome.add("failed", problem=f"A request ended with {type(error).__name__}: {error}")


def _ask(server: RunningServer, kind: Kind, outcome: Outcome, *, streams: bool) -> None:
    """Request a text, and compare it."""
    content = json.dumps({"model": server.model, "stream": streams, **kind.body}).encode()
    status, headers, received = _post(server, content)
    if status == 429:
        time.sleep(float(headers["retry-after"]))
        outcome.add("asked to wait")
        return
    if status != 200:
        outcome.add("failed", problem=f"A request got the status {status}: {received[:200]!r}")
        return
    choices = [json.loads(line)["choices"][0] for line in _events(received)] if streams else json.loads(received)["choices"]
    text = "".join(choice["text"] for choice in choices)
    is_right = text == kind.expected and choices[-1]["finish_reason"] is not None
    problem = None if is_right else f"A text is {text!r}, and not {kind.expected!r}."
    outcome.add("right" if is_right else "wrong", tokens=kind.body["max_tokens"], problem=problem)


def _events(received: bytes) -> list[bytes]:
    return [event[6:] for event in received.split(b"\n\n") if event.startswith(b"data: {")]


def _expect_refusal(server: RunningServer, content: bytes, outcome: Outcome, kind: str) -> None:
    try:
        status, _, received = _post(server, content)
    except (BrokenPipeError, ConnectionResetError):  # The server need not read a too large request to its end.
        outcome.add(kind)
        return
    problem = None if 400 <= status < 500 else f"What is {kind} got the status {status}: {received[:200]!r}"
    outcome.add(kind if problem is None else "failed", problem=problem)


def _post(server: RunningServer, content: bytes) -> tuple[int, dict[str, str], bytes]:
    connection = HTTPConnection("127.0.0.1", server.port, timeout=CLIENT_SECONDS)
    try:
        connection.request("POST", "/v1/completions", content, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def _hang_up(server: RunningServer, kind: Kind, choices: random.Random) -> None:
    """Close the connection within the headers, within the body, right after the request, or after a part of the answer."""
    content = json.dumps({"model": server.model, "stream": choices.random() < 0.5, **kind.body}).encode()
    fields = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    head = f"POST /v1/completions HTTP/1.1\r\n{fields}\r\n\r\n"
    whole = head.encode() + content
    sent = choices.choice((whole[:20], whole[: len(head) + 5], whole, whole))
    with socket.create_connection(("127.0.0.1", server.port), timeout=CLIENT_SECONDS) as connection:
        connection.sendall(sent)
        if sent == whole:
            connection.settimeout(choices.uniform(0.01, 1.0))
            try:
                connection.recv(300)
            except TimeoutError:
                return


def _watch_memory(server: RunningServer, outcome: Outcome, start: float, seconds: float) -> None:
    process = psutil.Process(server.process.pid)
    while (passed := time.monotonic() - start) < seconds:
        outcome.memory.append((passed / seconds, process.memory_info().rss))
        time.sleep(min(1.0, seconds / 20))


def memory_growth(outcome: Outcome) -> float:
    """Return the relative growth of the memory, from its peak early after the warm-up to its peak in the last tenth."""
    early = [size for share, size in outcome.memory if WARMUP <= share < 2 * WARMUP]
    late = [size for share, size in outcome.memory if share >= 0.9]
    return max(late) / max(early) - 1 if early and late else 0.0


def _problems_at_the_end(server: RunningServer) -> list[str]:
    """Return the problems after all clients have gone. The server must be idle, and ready for more requests."""
    for _ in range(100):
        connection = HTTPConnection("127.0.0.1", server.port, timeout=CLIENT_SECONDS)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        if "\ngpt_pretrain_running_texts 0\n" in text and "\ngpt_pretrain_waiting_texts 0\n" in text:
            return []
        time.sleep(0.1)
    return ["Texts of clients that have gone are still being continued."]


def summary(outcome: Outcome, *, seconds: float) -> str:
    """Return the results as lines."""
    counts = ", ".join(f"{count:,} {name}" for name, count in sorted(outcome.counts.items()))
    sizes = [size / 1e6 for _, size in outcome.memory] or [0.0]
    lines = [
        f"requests: {counts}",
        f"texts: {outcome.tokens / seconds:.1f} tokens per second",
        f"memory: {sizes[0]:,.0f} MB at the start, {max(sizes):,.0f} MB at most, {sizes[-1]:,.0f} MB at the end; "
        f"growth after the warm-up {memory_growth(outcome):+.1%} (limit {MAX_GROWTH:.0%})",
        *(f"PROBLEM: {problem}" for problem in outcome.problems[:10]),
        f"{len(outcome.problems)} problems" if outcome.problems else "no problem: every text is whole and right",
    ]
    return "\n".join(lines)
