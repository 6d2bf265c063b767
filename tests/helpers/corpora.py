"""Prepare corpora in a test's process, read them back, and compute naively what they should contain."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from gpt_pretrain.config.command_schema import PrepareSettings
from gpt_pretrain.prepare.pipeline import prepare_corpus
from gpt_pretrain.tokenizers.build import build_tokenizer

cached_tokenizer = functools.cache(build_tokenizer)


def prepare(*inputs: Path | str, out: Path, **settings: Any) -> dict[str, Any]:
    """Prepare a corpus in this process and return its manifest."""
    fields = {"workers": 1, "tokenizer": "byte", "max_rejected": 1.0} | settings
    prepare_corpus(PrepareSettings(inputs=[str(path) for path in inputs], out=str(out), **fields))
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
