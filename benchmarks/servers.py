"""Servers to measure, each in its own process, and a client that records the arrival of tokens."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import IO, Any

import torch

from benchmarks.measure import ROOT
from gpt_pretrain.generation.decoding import PRECISIONS, decoding_model, pick_decoding_precision
from gpt_pretrain.generation.prompts import TextModel
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.gpt2 import GPTModel
from gpt_pretrain.tokenizers.build import build_tokenizer

START_SECONDS, CLIENT_SECONDS, END_SECONDS = 300, 300, 60
ADDRESS = "http://127.0.0.1:"


@dataclass(frozen=True)
class ServedWeights:
    """Random weights in a file.

    Args:
        file: Their state dict.
        config: Their architecture.
        tokenizer: The name of their tokenizer.
    """

    file: Path
    config: GPTConfig
    tokenizer: str

    def text_model(self) -> tuple[TextModel, str]:
        """Return the model, prepared as in generate.py, and its precision."""
        model = GPTModel(self.config).eval()
        model.load_state_dict(torch.load(self.file, weights_only=True))
        precision, _ = pick_decoding_precision("auto", model)
        return TextModel(decoding_model(model, dtype=PRECISIONS[precision]), build_tokenizer(self.tokenizer)), precision


@dataclass(frozen=True)
class RunningServer:
    """A server that listens on this machine.

    Args:
        port: Its port.
        model: The name of its model.
        process: Its process.
    """

    port: int
    model: str
    process: subprocess.Popen[str]


@dataclass(frozen=True)
class Streamed:
    """A text received from a server.

    Args:
        text: The text.
        first: Seconds until its first token.
        seconds: Seconds until its end.
        finish_reason: The server's finish_reason.
    """

    text: str
    first: float
    seconds: float
    finish_reason: str | None


def save_random_weights(folder: Path, config: GPTConfig, tokenizer: str) -> ServedWeights:
    """Save a model with random weights from a fixed seed."""
    torch.manual_seed(1)
    file = folder / "random.pth"
    torch.save(GPTModel(config).state_dict(), file)
    return ServedWeights(file, config, tokenizer)


@contextmanager
def our_server(weights: ServedWeights) -> Iterator[RunningServer]:
    """Run `python serve.py` with default settings, except for its weights and its port."""
    settings = [f"pretrained={weights.file}", f"n_heads={weights.config.n_heads}", f"tokenizer={weights.tokenizer}", "port=0"]
    with _running([sys.executable, str(ROOT / "serve.py"), *settings]) as server:
        yield server


@contextmanager
def transformers_server() -> Iterator[RunningServer]:
    """Run transformers' `generate` behind FastAPI and uvicorn."""
    with _running([sys.executable, "-m", "benchmarks.transformers_server"]) as server:
        yield server


@contextmanager
def _running(command: list[str]) -> Iterator[RunningServer]:
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            port = _port_of(process, errors)
            yield RunningServer(port, _first_model(port), process)
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _port_of(process: subprocess.Popen[str], errors: IO[str]) -> int:
    """Wait until a server prints its address, and return its port.

    Raises:
        RuntimeError: If it ends before that. The message is its output.
    """
    assert process.stdout is not None
    timer = threading.Timer(START_SECONDS, process.kill)
    timer.start()
    try:
        for line in process.stdout:
            if ADDRESS in line:
                return int(line.partition(ADDRESS)[2].partition("/")[0])
    finally:
        timer.cancel()
    errors.seek(0)
    raise RuntimeError(f"The server did not start: {errors.read()[-2000:]}")


def _first_model(port: int) -> str:
    connection = HTTPConnection("127.0.0.1", port, timeout=CLIENT_SECONDS)
    connection.request("GET", "/v1/models")
    name: str = json.load(connection.getresponse())["data"][0]["id"]
    connection.close()
    return name


def stream(server: RunningServer, prompt: str, n_tokens: int, **fields: Any) -> Streamed:
    """Request a text over a separate connection. It is greedy unless the fields change that.

    Raises:
        RuntimeError: If the server refuses, or the text does not end.
    """
    body = {"model": server.model, "prompt": prompt, "max_tokens": n_tokens, "temperature": 0, "stream": True} | fields
    start, first, text, reason = time.perf_counter(), 0.0, "", None
    connection = HTTPConnection("127.0.0.1", server.port, timeout=CLIENT_SECONDS)
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    if answer.status != 200:
        raise RuntimeError(f"The server answers {answer.status}: {answer.read(500)!r}")
    for line in answer:
        if not line.startswith(b"data: {"):
            continue
        first = first or time.perf_counter() - start
        choice = json.loads(line[6:])["choices"][0]
        text, reason = text + choice["text"], choice["finish_reason"]
    connection.close()
    if reason is None:
        raise RuntimeError("The text has no end.")
    return Streamed(text, first, time.perf_counter() - start, reason)


def stream_together(server: RunningServer, prompt: str, n_tokens: int, *, clients: int) -> float:
    """Request the same text with several clients at once, and return the seconds until all have received it."""
    with ThreadPoolExecutor(clients) as pool:
        start = time.perf_counter()
        texts = list(pool.map(lambda _: stream(server, prompt, n_tokens), range(clients)))
        seconds = time.perf_counter() - start
    assert len({one.text for one in texts}) == 1, "All clients get the same text."
    return seconds
