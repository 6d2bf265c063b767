"""Corpora prepared from text, compared with naive implementations."""

import gzip
import json
import random
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_pretrain.texts import chunks, documents, reading
from gpt_pretrain.tokenizers import splitting
from gpt_pretrain.tokenizers.base import fingerprint
from tests.helpers import corpora

AWKWARD = [
    "plain words",
    "  two spaces, a tab\t, and <|endoftext is no marker",
    "Zürich, 東京、مرحبا, \u0928\u092e\u0938\u094d\u0924\u0947",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f3f4\U000e0067\U000e0062\U000e007f",
    "\ufeffa mark inside, \x00 a zero, \x1f controls, \u2028 separators \u0085",
    "e\u0301 against \u00e9; \ufffd; \U0010ffff",
    "don't, won't, it's; 12345678901234567890; ====----====",
    "x",
    "\nstarts and ends with line feeds\n\n\n",
]


def random_text(seed: int, n_words: int) -> str:
    rng = random.Random(seed)
    vocabulary = ["sea", "lamp", "Kittiwake,", "don't", "1911", "\n", "naïve", "keeper."]
    return " ".join(rng.choice(vocabulary) + str(rng.randrange(99)) for _ in range(n_words))


def write_jsonl(path: Path, documents: list[str], field: str = "text") -> Path:
    lines = "".join(
        json.dumps({"id": number, field: text}, ensure_ascii=number % 2 == 0) + "\n" for number, text in enumerate(documents)
    )
    data = lines.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("tokenizer", ["gpt2", "byte"])
def test_the_shards_contain_the_documents_encoded_one_by_one(tmp_path: Path, tokenizer: str) -> None:
    documents = [*AWKWARD, *(random_text(seed, 30) for seed in range(200))]
    source = write_jsonl(tmp_path / "all.jsonl", documents)
    manifest = corpora.prepare(source, out=tmp_path / "out", tokenizer=tokenizer, val_fraction=0.2, shard_tokens=700)
    corpora.check_manifest(tmp_path / "out")
    for part in ("train", "val"):
        chosen = [text for text in documents if corpora.is_validation(text, 0.2) == (part == "val")]
        assert chosen and manifest["parts"][part]["documents"] == len(chosen)
        assert manifest["parts"][part]["bytes"] == sum(len(text.encode()) for text in chosen)
        expected = corpora.encode_naively(chosen, tokenizer)
        np.testing.assert_array_equal(corpora.tokens(tmp_path / "out", part), expected)
        begins = np.cumsum([0, *(len(corpora.encode_naively([text], tokenizer)) for text in chosen)])[:-1]
        assert corpora.starts(tmp_path / "out", part) == begins.tolist()
    built = corpora.cached_tokenizer(tokenizer)
    expected_entry = {
        "name": tokenizer,
        "vocab_size": built.vocab_size,
        "sha256": fingerprint(built),
        "end_of_text": built.eos_id,
    }
    assert manifest["tokenizer"] == expected_entry
    assert (manifest["format"], manifest["version"], manifest["itemsize"]) == ("gpt-pretrain shards", 1, 2)


def test_every_kind_of_file_gives_the_same_documents(tmp_path: Path) -> None:
    documents = [text for text in AWKWARD if "\ufeff" not in text[:1]]
    folder = tmp_path / "texts"
    folder.mkdir()
    for number, text in enumerate(documents):
        (folder / f"{number:03d}.{'md' if number % 2 else 'txt'}").write_bytes(text.encode())
    (folder / "picture.png").write_bytes(b"\x89PNG")
    (folder / ".hidden.txt").write_text("hidden")
    separated = tmp_path / "one.txt"
    separated.write_bytes("<end>".join(documents).encode())
    sources = {
        "folder": ([folder], {}),
        "glob": ([f"{folder}/*.[tm]*"], {}),
        "separator": ([separated], {"document_separator": "<end>"}),
        "jsonl": ([write_jsonl(tmp_path / "a.jsonl", documents)], {}),
        "gz": ([write_jsonl(tmp_path / "a.jsonl.gz", documents)], {}),
        "field": ([write_jsonl(tmp_path / "b.jsonl", documents, field="body")], {"text_field": "body"}),
    }
    for name, (inputs, options) in sources.items():
        corpora.prepare(*inputs, out=tmp_path / name, val_fraction=0.0, **options)
        assert corpora.texts(tmp_path / name, "train") == documents, name


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(alphabet="ab1 \n.,'<>é東\u0301\U0001f600", max_size=120), min_size=1, max_size=8),
    st.integers(1, 40),
    st.integers(1, 30),
)
def test_documents_are_split_alike_for_any_size_of_blocks(texts: list[str], block: int, part: int) -> None:
    tokenizer = corpora.cached_tokenizer("gpt2")
    with patch.multiple(splitting, PART=part, LOOKAHEAD=40, CHECKED=10):
        data = "<>".join(texts).encode()
        blocks = [data[start : start + block] for start in range(0, len(data), block)]
        cursor = chunks.Cursor("name", chunks.ReadPosition(), bytes_read=lambda: 0)
        found, open_parts = [], []
        chunks_read = reading.split_documents(blocks, cursor, "<>", tokenizer)
        for chunk in (part for read in chunks_read for part in documents.divide_documents(read)):
            assert isinstance(chunk.content, str) and chunk.begins == (not open_parts)
            open_parts.append(chunk.content)
            if chunk.ends:
                found.append("".join(open_parts))
                assert len(open_parts) == 1 or open_parts == list(splitting.split_text(found[-1], tokenizer))
                open_parts = []
        expected = "<>".join(texts).split("<>")
        assert found == (expected if expected[-1] or len(expected) == 1 else expected[:-1])
        assert not open_parts and cursor.offset == len(data)


@pytest.mark.parametrize("workers", [2, 3])
def test_the_number_of_workers_does_not_change_the_corpus(tmp_path: Path, workers: int) -> None:
    documents = [random_text(seed, 400) for seed in range(300)]
    inputs = [write_jsonl(tmp_path / f"{number}.jsonl", documents[number::3]) for number in range(2)]
    long = tmp_path / "long.txt"
    long.write_text(random_text(7, 200_000))
    options = {"tokenizer": "gpt2", "dedup": "exact", "val_tokens": 5_000, "shard_tokens": 30_000}
    corpora.prepare(*inputs, long, inputs[0], out=tmp_path / "one", **options)
    corpora.prepare(*inputs, long, inputs[0], out=tmp_path / "more", workers=workers, **options)
    assert corpora.contents(tmp_path / "one") == corpora.contents(tmp_path / "more")
    assert len(corpora.read_manifest(tmp_path / "one")["parts"]["train"]["shards"]) > 5
