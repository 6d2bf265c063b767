"""Corpora read back, and restated naively."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from gpt_pretrain.config.command_schema import PrepareSettings
from gpt_pretrain.prepare.job import prepare_corpus
from gpt_pretrain.tokenizers.build import build_tokenizer

tokenizer_of = functools.cache(build_tokenizer)


def made(*inputs: Path | str, out: Path, **settings: Any) -> dict[str, Any]:
    """Prepare a corpus in this process; its manifest."""
    fields = {"workers": 1, "tokenizer": "byte", "max_rejected": 1.0} | settings
    prepare_corpus(PrepareSettings(inputs=[str(one) for one in inputs], out=str(out), **fields))
    return manifest(out)


def manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return found


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a corpus, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def stream(folder: Path, part: str) -> np.ndarray:
    """All tokens of a part, as the manifest says where they are."""
    about = manifest(folder)
    files = [folder / shard["file"] for shard in about["parts"][part]["shards"]]
    return np.concatenate([np.fromfile(file, f"<u{about['itemsize']}") for file in files] or [np.empty(0, "<u2")])


def starts(folder: Path, part: str) -> list[int]:
    """Where the documents of a part begin in its stream."""
    found, behind = [], 0
    for shard in manifest(folder)["parts"][part]["shards"]:
        found += (np.fromfile(folder / shard["starts"], "<u8").astype(int) + behind).tolist()
        behind += shard["tokens"]
    return found


def texts(folder: Path, part: str) -> list[str]:
    """The documents of a part of a corpus of bytes, by the places where they begin."""
    tokens, places = stream(folder, part), starts(folder, part)
    documents = [tokens[begin:end] for begin, end in zip(places, [*places[1:], len(tokens)], strict=True)]
    assert all(document[-1] == 256 and (document[:-1] < 256).all() for document in documents)
    return [document[:-1].astype(np.uint8).tobytes().decode() for document in documents]


def naive(documents: list[str], tokenizer: str) -> np.ndarray:
    """The tokens of documents, each with its end, one after another."""
    built = tokenizer_of(tokenizer)
    ids: list[int] = []
    for document in documents:
        encoded = built._encoding.encode_ordinary(document) if tokenizer != "byte" else list(document.encode())
        ids += [*encoded, built.eos_id]
    return np.array(ids)


def for_validation(document: str, fraction: float) -> bool:
    """Whether the hash of a document's text lies below a fraction of all hashes."""
    return int.from_bytes(hashlib.blake2b(document.encode(), digest_size=16).digest(), "big") < int(fraction * 2**128)


def check_files(folder: Path) -> None:
    """Make sure that every number and hash in the manifest is what the files say."""
    about = manifest(folder)
    lengths = dict.fromkeys(about["parts"], 0)
    for name, part in about["parts"].items():
        for number, shard in enumerate(part["shards"]):
            data, places = (folder / shard["file"]).read_bytes(), (folder / shard["starts"]).read_bytes()
            assert shard["file"] == f"{name}-{number:05d}.bin" and shard["starts"] == f"{name}-{number:05d}.idx"
            assert len(data) == shard["tokens"] * about["itemsize"] and len(places) == 8 * shard["documents"]
            assert hashlib.sha256(data).hexdigest() == shard["sha256"]
            assert hashlib.sha256(places).hexdigest() == shard["starts_sha256"]
            lengths[name] += shard["tokens"]
            if number < len(part["shards"]) - 1:
                assert shard["tokens"] == about["options"]["shard_tokens"]
        for key in ("tokens", "documents", "bytes"):
            assert part[key] == sum(shard[key] for shard in part["shards"])
