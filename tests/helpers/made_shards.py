"""Corpora of token shards, written independently of the code under test."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gpt_pretrain.tokenizers.base import Tokenizer, fingerprint
from gpt_pretrain.tokenizers.byte import ByteTokenizer

BYTE = ByteTokenizer()


def stream(documents: Sequence[Sequence[int]], eos_id: int = BYTE.eos_id, *, eos_first: bool = False) -> list[int]:
    """Return the tokens of documents, with an end of text after or before each."""
    return [token for document in documents for token in ([eos_id, *document] if eos_first else [*document, eos_id])]


def write_shards(
    folder: Path,
    *,
    train: Sequence[Sequence[int]],
    val: Sequence[Sequence[int]] = (),
    shard_tokens: int = 1000,
    tokenizer: Tokenizer = BYTE,
    itemsize: int = 2,
) -> Path:
    """Write a corpus in this program's format; the documents are given without their end of text."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = {
        part: _write_part(folder, part, stream(documents, tokenizer.eos_id), len(documents), shard_tokens, itemsize)
        for part, documents in (("train", train), ("val", val))
        if documents
    }
    described_tokenizer = {
        "name": tokenizer.name,
        "vocab_size": tokenizer.vocab_size,
        "sha256": fingerprint(tokenizer),
        "end_of_text": tokenizer.eos_id,
    }
    manifest = {
        "format": "gpt-pretrain shards", "version": 1, "tokenizer": described_tokenizer, "itemsize": itemsize, "parts": parts,
        "source": {}, "options": {}, "rejected": {}, "duplicates": 0,
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def _write_part(folder: Path, part: str, ids: list[int], documents: int, shard_tokens: int, itemsize: int) -> dict[str, object]:
    shards = []
    for number, start in enumerate(range(0, len(ids), shard_tokens)):
        data = np.array(ids[start : start + shard_tokens], f"<u{itemsize}").tobytes()
        name = f"{part}-{number:05d}.bin"
        (folder / name).write_bytes(data)
        shards.append(
            {"file": name, "tokens": len(data) // itemsize, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        )
    return {"documents": documents, "tokens": len(ids), "bytes": len(ids), "shards": shards}


def write_nanogpt(folder: Path, *, train: Sequence[int], val: Sequence[int] = ()) -> Path:
    """Write train.bin and val.bin as nanoGPT's prepare.py does."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, ids in (("train.bin", train), ("val.bin", val)):
        if ids:
            np.array(ids, np.uint16).tofile(folder / name)
    return folder


def write_llmc(folder: Path, *, train: Sequence[Sequence[int]], val: Sequence[int]) -> Path:
    """Write shards as llm.c's write_datafile does."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, ids in [("tale_val_000000.bin", val), *((f"tale_train_{n + 1:06d}.bin", ids) for n, ids in enumerate(train))]:
        header = np.zeros(256, np.int32)
        header[:3] = 20240520, 1, len(ids)
        (folder / name).write_bytes(header.tobytes() + np.array(ids, np.uint16).tobytes())
    return folder


def random_documents(count: int, *, seed: int = 0, longest: int = 60, vocab_size: int = 256) -> list[list[int]]:
    """Return documents of random tokens; none is empty."""
    random = np.random.default_rng(seed)
    return [random.integers(0, vocab_size, random.integers(1, longest)).tolist() for _ in range(count)]
