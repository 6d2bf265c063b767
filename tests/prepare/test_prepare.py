"""Corpora of text as shards of tokens, compared with naive restatements."""

import gzip
import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_pretrain.prepare import encoding, items, stretches
from gpt_pretrain.tokenizers.base import fingerprint
from tests.helpers import corpora

AWKWARD = [
    "plain words",
    "  two spaces, a tab\t, and\r\nWindows' line ends\r\n\r\n",
    "<|endoftext|> is text here, <|endoftext|>",
    "Zürich, 東京、مرحبا, \u0928\u092e\u0938\u094d\u0924\u0947",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f3f4\U000e0067\U000e0062\U000e007f",
    "\ufeffa mark inside, \x00 a zero, \x1f controls, \u2028 separators \u0085",
    "e\u0301 against \u00e9; \ufffd; \U0010ffff",
    "don't, won't, it's; 12345678901234567890; ====----====",
    "x",
    "\nstarts and ends with line feeds\n\n\n",
]


def words(seed: int, count: int) -> str:
    """A text that is like no other."""
    drawn = random.Random(seed)
    return " ".join(
        drawn.choice(["sea", "lamp", "Kittiwake,", "don't", "1911", "\n", "naïve", "keeper."]) + str(drawn.randrange(99))
        for _ in range(count)
    )


def write_jsonl(path: Path, documents: list[str], field: str = "text") -> Path:
    lines = "".join(
        json.dumps({"id": number, field: text}, ensure_ascii=number % 2 == 0) + "\n" for number, text in enumerate(documents)
    )
    data = lines.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("tokenizer", ["gpt2", "byte"])
def test_the_parts_are_the_documents_encoded_one_by_one(tmp_path: Path, tokenizer: str) -> None:
    documents = [*AWKWARD, *(words(seed, 30) for seed in range(200))]
    source = write_jsonl(tmp_path / "all.jsonl", documents)
    about = corpora.made(source, out=tmp_path / "out", tokenizer=tokenizer, val_fraction=0.2, shard_tokens=700)
    corpora.check_files(tmp_path / "out")
    for part in ("train", "val"):
        chosen = [text for text in documents if corpora.for_validation(text, 0.2) == (part == "val")]
        assert chosen and about["parts"][part]["documents"] == len(chosen)
        assert about["parts"][part]["bytes"] == sum(len(text.encode()) for text in chosen)
        expected = corpora.naive(chosen, tokenizer)
        np.testing.assert_array_equal(corpora.stream(tmp_path / "out", part), expected)
        begins = np.cumsum([0, *(len(corpora.naive([text], tokenizer)) for text in chosen)])[:-1]
        assert corpora.starts(tmp_path / "out", part) == begins.tolist()
    built = corpora.tokenizer_of(tokenizer)
    expected_about = {
        "name": tokenizer,
        "vocab_size": built.vocab_size,
        "sha256": fingerprint(built),
        "end_of_text": built.eos_id,
    }
    assert about["tokenizer"] == expected_about
    assert (about["format"], about["version"], about["itemsize"]) == ("gpt-pretrain shards", 1, 2)


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
        corpora.made(*inputs, out=tmp_path / name, val_fraction=0.0, **options)
        assert corpora.texts(tmp_path / name, "train") == documents, name


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(alphabet="ab1 \n.,'<>é東\u0301\U0001f600", max_size=120), min_size=1, max_size=8),
    st.integers(1, 40),
    st.integers(1, 30),
)
def test_documents_in_a_file_are_found_whatever_the_blocks(texts: list[str], block: int, part: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stretches, "PART", part)
        patch.setattr(encoding, "PART", part)
        data = "<>".join(texts).encode()
        blocks = [data[place : place + block] for place in range(0, len(data), block)]
        cursor = stretches.Cursor("name", items.ReadPosition(), read=lambda: 0)
        found, open_parts = [], []
        for item in stretches.documents(blocks, cursor, "<>"):
            assert isinstance(item.content, str) and item.begins == (not open_parts)
            open_parts.append(item.content)
            if item.ends:
                found.append("".join(open_parts))
                assert open_parts == list(encoding.parts(found[-1]))
                open_parts = []
        expected = "<>".join(texts).split("<>")
        assert found == (expected if expected[-1] or len(expected) == 1 else expected[:-1])
        assert not open_parts and cursor.offset == len(data)


@settings(max_examples=150, deadline=None)
@given(
    st.text(alphabet=st.sampled_from("abcXYZ019  \n\t\r.,;'\"-_(éñ東京。、\u0301\u0928\u094d\u00a0\u2003²½Ⅷ"), max_size=200),
    st.integers(5, 40),
)
def test_a_text_in_parts_has_the_tokens_of_the_whole(text: str, part: int) -> None:
    built = corpora.tokenizer_of("gpt2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "PART", part)
        cuts = list(encoding.parts(text))
    assert "".join(cuts) == text
    forced = [piece for piece in cuts[:-1] if len(piece) == part]
    if not forced:
        assert [one for piece in cuts for one in built._encoding.encode_ordinary(piece)] == built._encoding.encode_ordinary(text)


@pytest.mark.parametrize("workers", [2, 3])
def test_the_number_of_workers_changes_no_byte(tmp_path: Path, workers: int) -> None:
    documents = [words(seed, 400) for seed in range(300)]
    inputs = [write_jsonl(tmp_path / f"{number}.jsonl", documents[number::3]) for number in range(2)]
    long = tmp_path / "long.txt"
    long.write_text(words(7, 200_000))
    options = {"tokenizer": "gpt2", "dedup": "exact", "val_tokens": 5_000, "shard_tokens": 30_000}
    corpora.made(*inputs, long, inputs[0], out=tmp_path / "one", **options)
    corpora.made(*inputs, long, inputs[0], out=tmp_path / "more", workers=workers, **options)
    assert corpora.contents(tmp_path / "one") == corpora.contents(tmp_path / "more")
    assert len(corpora.manifest(tmp_path / "one")["parts"]["train"]["shards"]) > 5
