"""Shards hold the tokens of their documents, however these lie in the segments and are cut."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gpt_pretrain.prepare import shards
from gpt_pretrain.prepare.assigning import TRAIN, VAL, DocumentSplit
from gpt_pretrain.prepare.encoded_batch import COMPLETE, REJECTED, ROW, EncodedBatch
from gpt_pretrain.prepare.encoded_corpus import EncodedCorpus
from gpt_pretrain.prepare.segments import SegmentWriter
from gpt_pretrain.prepare.shards import ShardJob, plan_shards, write_shard
from gpt_pretrain.texts.chunks import ReadPosition


def encode_documents(folder: Path, rng: np.random.Generator) -> list[tuple[np.ndarray, bool, bytes]]:
    """Write segments of random documents, and return the tokens of each, whether it is complete, and its hash."""
    writer, documents = SegmentWriter(folder, itemsize=2), []
    for _ in range(4):
        lengths = rng.choice([1, 2, 3, 30, 200], 60)
        rows = np.empty(len(lengths), ROW)
        rows["hash"] = np.frombuffer(rng.bytes(16 * len(lengths)), ROW["hash"])
        rows["tokens"], rows["bytes"] = lengths, lengths
        rows["state"] = np.where(rng.random(len(lengths)) < 0.1, REJECTED, COMPLETE)
        tokens = rng.integers(0, 256, lengths.sum()).astype("<u2")
        writer.add(EncodedBatch(tokens, rows), ReadPosition())
        writer.finish_segment()
        parts = np.split(tokens, lengths.cumsum()[:-1])
        documents += [(part, row["state"] == COMPLETE, row["hash"].tobytes()) for part, row in zip(parts, rows, strict=True)]
    writer.close()
    return documents


@pytest.mark.parametrize("shard_tokens", [67, 1000, 100_000])
@pytest.mark.parametrize("threshold", ["", "20" + "f" * 30, "c0" + "f" * 30])
def test_a_shard_has_the_tokens_of_its_documents(
    shard_tokens: int, threshold: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "COPIED_TOKENS", 64)
    monkeypatch.setattr(EncodedCorpus.rows, "__kwdefaults__", {"count": 25})
    documents = encode_documents(tmp_path / "segments", np.random.default_rng(shard_tokens))
    split = DocumentSplit(threshold)
    plans = plan_shards(EncodedCorpus.open([tmp_path / "segments"], itemsize=2), split, shard_tokens=shard_tokens)
    for assigned in (TRAIN, VAL):
        chosen = [
            tokens
            for tokens, is_complete, its_hash in documents
            if is_complete and (its_hash <= bytes.fromhex(threshold)) == (assigned == VAL)
        ]
        stream = np.concatenate([*chosen, np.empty(0, "<u2")])
        starts = np.cumsum([0, *map(len, chosen)])[:-1]
        assert plans[assigned].tokens == len(stream)
        for number, start in list(enumerate(plans[assigned].starts))[::7]:
            expected = stream[number * shard_tokens :][:shard_tokens]
            inside = starts[(starts >= number * shard_tokens) & (starts < number * shard_tokens + len(expected))]
            job = ShardJob("train-00000", tmp_path, assigned, start, len(expected), (tmp_path / "segments",), split, 2, "byte")
            entry = write_shard(job)
            assert np.fromfile(tmp_path / "train-00000.bin", "<u2").tolist() == expected.tolist()
            assert np.fromfile(tmp_path / "train-00000.idx", "<u8").tolist() == (inside - number * shard_tokens).tolist()
            # A document is as long as its row says; of one that is cut, each token counts its bytes.
            assert json.dumps(entry) and entry["tokens"] == entry["bytes"] == len(expected)
