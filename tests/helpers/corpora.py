"""Write inputs, prepare corpora from them, interrupt preparations, and check the corpora against naive computations."""

from __future__ import annotations

import functools
import hashlib
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt_pretrain.config.command_schema import PrepareSettings
from gpt_pretrain.prepare import pipeline
from gpt_pretrain.texts.inputs import CorpusInputs, stat_input_file
from gpt_pretrain.tokenizers.build import build_tokenizer
from tests.conftest import ROOT

# The settings for `write_short_inputs`.
SHORT = {"dedup": "exact", "val_tokens": 500, "shard_tokens": 3000, "document_separator": "<>"}

PREPARE_IN_SMALL_SEGMENTS = """
import sys
from gpt_pretrain.prepare import segments
from gpt_pretrain.texts import reading
from gpt_pretrain.commands.main import main
segments.SEGMENT_BYTES, reading.BATCH = 100_000, 50_000
sys.argv.insert(1, "prepare")
main()
"""

cached_tokenizer = functools.cache(build_tokenizer)


def prepare(*inputs: Path | str, out: Path, **settings: Any) -> dict[str, Any]:
    """Prepare a corpus in this process and return its manifest."""
    fields = {"workers": 1, "tokenizer": "byte", "max_rejected": 1.0, "max_failed_files": 1000} | settings
    pipeline.prepare_corpus(PrepareSettings(inputs=[str(path) for path in inputs], out=str(out), **fields))
    return read_manifest(out)


def read_manifest(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return manifest


def contents(folder: Path) -> dict[str, bytes]:
    """Return the contents of all files of a corpus by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def tokens(folder: Path, part: str) -> np.ndarray:
    """Return all tokens of the training or validation set."""
    manifest = read_manifest(folder)
    files = [folder / shard["file"] for shard in manifest["parts"][part]["shards"]]
    return np.concatenate([np.fromfile(file, f"<u{manifest['itemsize']}") for file in files] or [np.empty(0, "<u2")])


def starts(folder: Path, part: str) -> list[int]:
    """Return the indices of the tokens that start a document."""
    found, shard_start = [], 0
    for shard in read_manifest(folder)["parts"][part]["shards"]:
        found += (np.fromfile(folder / shard["starts"], "<u8").astype(int) + shard_start).tolist()
        shard_start += shard["tokens"]
    return found


def texts(folder: Path, part: str) -> list[str]:
    """Return the documents of a corpus that was made with the tokenizer `byte`, split at their starts."""
    ids, begins = tokens(folder, part), starts(folder, part)
    documents = [ids[begin:end] for begin, end in zip(begins, [*begins[1:], len(ids)], strict=True)]
    assert all(document[-1] == 256 and (document[:-1] < 256).all() for document in documents)
    return [document[:-1].astype(np.uint8).tobytes().decode() for document in documents]


def encode_naively(documents: list[str], tokenizer: str) -> np.ndarray:
    """Encode documents one by one, each with an end-of-text token."""
    built = cached_tokenizer(tokenizer)
    ids: list[int] = []
    for document in documents:
        encoded = built._encoding.encode_ordinary(document) if tokenizer != "byte" else list(document.encode())
        ids += [*encoded, built.eos_id]
    return np.array(ids)


def is_validation(document: str, fraction: float) -> bool:
    """Return whether the hash of a document lies below a fraction of all hashes."""
    return int.from_bytes(hashlib.blake2b(document.encode(), digest_size=16).digest(), "big") < int(fraction * 2**128)


def check_manifest(folder: Path) -> None:
    """Check every number and hash in the manifest against the files."""
    manifest = read_manifest(folder)
    for name, part in manifest["parts"].items():
        for number, shard in enumerate(part["shards"]):
            data, offsets = (folder / shard["file"]).read_bytes(), (folder / shard["starts"]).read_bytes()
            assert shard["file"] == f"{name}-{number:05d}.bin" and shard["starts"] == f"{name}-{number:05d}.idx"
            assert len(data) == shard["tokens"] * manifest["itemsize"] and len(offsets) == 8 * shard["documents"]
            assert hashlib.sha256(data).hexdigest() == shard["sha256"]
            assert hashlib.sha256(offsets).hexdigest() == shard["starts_sha256"]
            if number < len(part["shards"]) - 1:
                assert shard["tokens"] == manifest["options"]["shard_tokens"]
        for key in ("tokens", "documents", "bytes"):
            assert part[key] == sum(shard[key] for shard in part["shards"])


def start_prepare(*arguments: str, code: str = PREPARE_IN_SMALL_SEGMENTS, **options: object) -> subprocess.Popen[str]:
    """Start the command in a process of its own, with small segments."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def write_inputs(folder: Path, *, megabytes: float) -> list[str]:
    """Write a file of JSON lines, and a long text that is one document."""
    rng = random.Random(5)
    vocabulary = ["".join(rng.choices("abcdefghijklmnop", k=rng.randrange(1, 6))) for _ in range(5000)]
    lines = folder / "a.jsonl"
    with open(lines, "w") as stream:
        while stream.tell() < megabytes * 0.6e6:
            text = " ".join(rng.choices(vocabulary, k=rng.randrange(1, 400)))
            stream.write((json.dumps({"text": text}) if rng.random() > 0.001 else "{broken") + "\n")
            if rng.random() < 0.1:
                stream.write(json.dumps({"text": text}) + "\n")
    long = folder / "long.txt"
    long.write_text(" ".join(rng.choices(vocabulary, k=int(megabytes * 0.4e6 / 7))))
    return [str(lines), str(long)]


class Killed(BaseException):
    """Raised to end a preparation at a chosen moment."""


def kill(*_: object, **__: object) -> None:
    raise Killed


def write_short_inputs(folder: Path) -> list[Path]:
    texts = [f"document {number} " * (number % 7 + 1) for number in [*range(60), *range(20)]]
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts) + "{broken\n")
    (folder / "b.txt").write_text("<>".join([*texts, "long " * 3000, "\n", "short"]))
    return [folder / "a.jsonl", folder / "b.txt"]


def interrupt_before_shards(inputs: list[Path], out: Path) -> None:
    """Start a preparation that ends when everything is encoded and no shard is written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "write_shards", kill)
        with pytest.raises(Killed):
            prepare(*inputs, out=out, **SHORT)


def inputs_of(*paths: Path, text_field: str = "text") -> CorpusInputs:
    """Return files as the reader of inputs takes them."""
    return CorpusInputs([stat_input_file(str(path)) for path in paths], None, text_field, None, [], [])
